//! Makes a container's image present, by its pull policy, with the Pod's credentials, and says so
//! in events. Upstream counterpart: `pkg/kubelet/images/image_manager.go`.

use crate::sources::Sources;
use base64::Engine;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use serde_json::Value;
use skeg_images::{Credential, Error, Image, Images};
use std::sync::Arc;

/// Why there is no image, in upstream's reasons.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageFailure {
    pub reason: &'static str,
    pub message: String,
    /// A pull was tried: failures back off under `ImagePullBackOff`.
    pub pulled: bool,
}

pub struct Obtained {
    pub image: Image,
    pub message: String,
}

/// Gets the image; `pulling` is called before a registry is asked.
pub async fn obtain(
    images: &Arc<Images>,
    spec: &PodSpec,
    container: &Container,
    sources: &Sources,
    pulling: impl FnOnce(),
) -> Result<Obtained, ImageFailure> {
    let name = crate::text(&container.image);
    let never = |why: String, reason: &'static str| ImageFailure { reason, message: why, pulled: false };
    let local = images.resolve(name).map_err(|e| match e {
        Error::InvalidReference(_) => {
            never(format!("Failed to apply default image tag \"{name}\": {e}"), "InvalidImageName")
        }
        other => never(format!("Failed to inspect image \"{name}\": {other}"), "ImageInspectError"),
    })?;
    let credentials = credentials(spec, sources);
    if let Some(image) = local {
        if image.pinned {
            let message = format!("Container image \"{name}\" was imported on this machine and is pinned");
            return Ok(Obtained { image, message });
        }
        // What another Pod's credentials brought is not for everybody.
        let allowed = policy(container) != "Always" && images.allows(name, &credentials).unwrap_or(false);
        if allowed {
            let message = format!(
                "Container image \"{name}\" already present on machine and can be accessed by the pod"
            );
            return Ok(Obtained { image, message });
        }
        if policy(container) == "Never" {
            let why = format!(
                "Container image \"{name}\" is present with pull policy of Never but does not have the proper \
                 credentials to access this image"
            );
            return Err(never(why, "ErrImageNeverPull"));
        }
    } else if policy(container) == "Never" {
        let why = format!("Container image \"{name}\" is not present with pull policy of Never");
        return Err(never(why, "ErrImageNeverPull"));
    }
    pulling();
    let began = tokio::time::Instant::now();
    let pulled = images.pull(name, &credentials, None).await;
    match pulled {
        Ok(image) => {
            let ms = began.elapsed().as_millis();
            let took = if ms < 1000 { format!("{ms}ms") } else { format!("{}.{:03}s", ms / 1000, ms % 1000) };
            let message = format!(
                "Successfully pulled image \"{name}\" in {took} ({took} including waiting). Image size: {} bytes.",
                image.size_bytes
            );
            Ok(Obtained { image, message })
        }
        Err(error) => {
            let reason = match error {
                Error::InvalidReference(_) => "InvalidImageName",
                _ => "ErrImagePull",
            };
            let message = format!("failed to pull and unpack image \"{name}\": {error}");
            Err(ImageFailure { reason, message, pulled: true })
        }
    }
}

/// The policy, which the API server has defaulted.
fn policy(container: &Container) -> &str {
    container.image_pull_policy.as_deref().unwrap_or("IfNotPresent")
}

/// What to tell of those of the Pod's `imagePullSecrets` that are not there.
pub fn missing_secrets(spec: &PodSpec, sources: &Sources) -> Option<String> {
    let wanted = spec.image_pull_secrets.iter().flatten().map(|wanted| wanted.name.as_str());
    let missing: Vec<&str> =
        wanted.filter(|name| !name.is_empty() && sources.secret(name).is_none()).collect();
    (!missing.is_empty()).then(|| {
        let missing = missing.join(", ");
        format!(
            "Unable to retrieve some image pull secrets ({missing}); attempting to pull the image may not succeed."
        )
    })
}

/// Entries of the Pod's `imagePullSecrets`, in both forms Docker has used.
fn credentials(spec: &PodSpec, sources: &Sources) -> Vec<Credential> {
    let mut out = Vec::new();
    for wanted in spec.image_pull_secrets.iter().flatten() {
        let Some(secret) = sources.secret(&wanted.name) else { continue };
        let Some(data) = secret.data.as_ref() else { continue };
        let meta = &secret.metadata;
        let of = [&meta.namespace, &meta.name, &meta.uid].map(crate::text).join("/");
        let entries = if let Some(bytes) = data.get(".dockerconfigjson") {
            serde_json::from_slice::<Value>(&bytes.0).ok().map(|v| v["auths"].clone())
        } else {
            data.get(".dockercfg").and_then(|bytes| serde_json::from_slice(&bytes.0).ok())
        };
        let Some(Value::Object(entries)) = entries else { continue };
        for (server, entry) in entries {
            let field = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            let mut credential = Credential {
                server,
                username: field("username"),
                password: field("password"),
                identity_token: field("identitytoken"),
                secret: of.clone(),
            };
            if let Ok(decoded) = base64::engine::general_purpose::STANDARD.decode(field("auth"))
                && let Some((user, password)) = String::from_utf8_lossy(&decoded).split_once(':')
            {
                credential.username = user.to_owned();
                credential.password = password.trim_end_matches('\0').to_owned();
            }
            out.push(credential);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn credentials_come_from_both_forms_of_secrets() {
        let encoded = |value: Value| base64::engine::general_purpose::STANDARD.encode(value.to_string());
        let entry = json!({"auth": base64::engine::general_purpose::STANDARD.encode("ann:p:w")});
        let new = json!({"auths": {"one.example": entry, "two.example/team": {"username": "bob", "password": "x"}}});
        let old = json!({"https://index.docker.io/v1/": {"identitytoken": "t"}});
        let secret = |key: &str, value: Value| {
            Some(Arc::new(serde_json::from_value(json!({"data": {key: encoded(value)}})).unwrap()))
        };
        let sources = Sources {
            secrets: [
                ("new".to_owned(), secret(".dockerconfigjson", new)),
                ("old".to_owned(), secret(".dockercfg", old)),
                ("broken".to_owned(), secret(".dockerconfigjson", json!("{"))),
                ("absent".to_owned(), None),
            ]
            .into(),
            ..Default::default()
        };
        let names: Vec<Value> = ["broken", "absent", "new", "old"].map(|name| json!({"name": name})).into();
        let spec: PodSpec =
            serde_json::from_value(json!({"containers": [], "imagePullSecrets": names})).unwrap();
        let found: Vec<_> = credentials(&spec, &sources)
            .into_iter()
            .map(|c| [c.server, c.username, c.password, c.identity_token].join("|"))
            .collect();
        let expected = ["one.example|ann|p:w|", "two.example/team|bob|x|", "https://index.docker.io/v1/|||t"];
        assert_eq!(found, expected);
        let missing = |names: Value| {
            let spec = json!({"containers": [], "imagePullSecrets": names});
            missing_secrets(&serde_json::from_value(spec).unwrap(), &sources)
        };
        let told = "Unable to retrieve some image pull secrets (absent, unknown); attempting to pull the image may not succeed.";
        let names = json!([{"name": "absent"}, {"name": "new"}, {"name": "unknown"}, {}]);
        assert_eq!(missing(names).as_deref(), Some(told));
        assert_eq!(missing(json!([{"name": "broken"}, {}])), None);
    }
}
