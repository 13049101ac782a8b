//! References of container images.

use std::sync::Arc;

use super::text;
use crate::error::Error;
use crate::function::Row;
use crate::opaque::Opaque;
use crate::value::Value;

/// A reference's parts. It has a tag or a digest; of both, the digest counts.
#[derive(Debug, PartialEq)]
pub struct Image {
    registry: String,
    repository: String,
    tag: String,
    digest: String,
}

const DEFAULT_REGISTRY: &str = "index.docker.io";

pub(crate) const ROWS: &[Row] = &[
    ("image", "string_to_image", "(string) kubernetes.Image", |_, args| {
        let image = parse(text(args, 0)?).map_err(Error::new)?;
        Ok(Value::Opaque(Opaque::Image(Arc::new(image))))
    }),
    ("isImage", "is_image_string", "(string) bool", |_, args| Ok(Value::Bool(parse(text(args, 0)?).is_ok()))),
    ("containsDigest", "image_contains_digest", ".(kubernetes.Image) bool", |_, args| {
        Ok(Value::Bool(!of(args)?.digest.is_empty()))
    }),
    ("registry", "image_registry", ".(kubernetes.Image) string", |_, args| {
        Ok(of(args)?.registry.clone().into())
    }),
    ("repository", "image_repository", ".(kubernetes.Image) string", |_, args| {
        Ok(of(args)?.repository.clone().into())
    }),
    ("identifier", "image_identifier", ".(kubernetes.Image) string", |_, args| {
        let image = of(args)?;
        Ok(if image.digest.is_empty() { &image.tag } else { &image.digest }.clone().into())
    }),
    ("tag", "image_tag", ".(kubernetes.Image) string", |_, args| Ok(of(args)?.tag.clone().into())),
    ("digest", "image_digest", ".(kubernetes.Image) string", |_, args| Ok(of(args)?.digest.clone().into())),
];

fn of<'v>(args: &'v [Value<'_>]) -> Result<&'v Image, Error> {
    match args.first() {
        Some(Value::Opaque(Opaque::Image(image))) => Ok(image),
        _ => Err(Error::no_such_overload()),
    }
}

fn parse(text: &str) -> Result<Image, String> {
    let bad = || format!("could not parse reference: {text}");
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, digest),
        None => (text, ""),
    };
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    if text.contains('@')
        && (hex.len() != 64 || !hex.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c)))
    {
        return Err(bad());
    }
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (rest, ""),
    };
    let tag_fits = tag.len() <= 128 && tag.bytes().all(|c| c.is_ascii_alphanumeric() || b"_-.".contains(&c));
    let (registry, path) = match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
        _ => (DEFAULT_REGISTRY, name),
    };
    let path_fits = (2..=255).contains(&path.len())
        && path.split('/').all(|part| !part.is_empty())
        && path.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"_-./".contains(&c));
    let host_fits = registry.bytes().all(|c| c.is_ascii_alphanumeric() || b".:-[]".contains(&c));
    if !tag_fits || !path_fits || !host_fits {
        return Err(bad());
    }
    let registry = if registry == "docker.io" { DEFAULT_REGISTRY } else { registry };
    let implied = if registry == DEFAULT_REGISTRY && !path.contains('/') { "library/" } else { "" };
    let tag = match (tag, digest) {
        (_, digest) if !digest.is_empty() => "",
        ("", _) => "latest",
        (tag, _) => tag,
    };
    Ok(Image {
        registry: registry.into(),
        repository: format!("{implied}{path}"),
        tag: tag.into(),
        digest: digest.into(),
    })
}
