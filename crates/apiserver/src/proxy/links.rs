//! Links of pages and redirects, so that they lead through the proxy again.
//! Upstream counterpart: `k8s.io/apimachinery/pkg/util/proxy/transport.go`.

/// Which attributes of which elements are URLs.
const ATTRIBUTES: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// Elements whose content is text up to their end tag.
const TEXT: &[&str] =
    &["script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes", "noscript"];

/// Where a page came from, and what its links begin with.
pub struct Links<'a> {
    /// `address:port` of the backend.
    pub backend: &'a str,
    /// The host that the client asked for.
    pub host: &'a str,
    /// The path of the proxy: `/api/v1/namespaces/a/pods/b/proxy`.
    pub prefix: &'a str,
}

impl Links<'_> {
    /// The link through the proxy, if it is an absolute path on the same host.
    pub fn rewrite(&self, link: &str) -> Option<String> {
        let (head, tail) = link.split_at(link.find(['?', '#']).unwrap_or(link.len()));
        let (scheme, rest) = match head.split_once(':') {
            Some((scheme, rest)) if is_scheme(scheme) => (scheme, rest),
            _ => ("", head),
        };
        let (host, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            None => ("", rest),
        };
        if !path.starts_with('/') || !(host.is_empty() || host == self.backend || host == self.host) {
            return None;
        }
        let mut out = String::new();
        if !host.is_empty() && host == self.host {
            out = if scheme.is_empty() { format!("//{host}") } else { format!("{scheme}://{host}") };
        }
        if path.starts_with(self.prefix) {
            out.push_str(path);
        } else {
            out.push_str(&super::relay::join(self.prefix, path));
        }
        out.push_str(tail);
        Some(out)
    }

    /// A page with its links rewritten; all else stays as it is, byte for byte.
    pub fn page(&self, page: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(page.len() + page.len() / 8);
        let mut rest = page;
        while let Some(start) = rest.iter().position(|byte| *byte == b'<') {
            let (before, tag) = rest.split_at(start);
            out.extend_from_slice(before);
            if let Some(comment) = tag.strip_prefix(b"<!--") {
                let end = find(comment, b"-->").map_or(tag.len(), |at| at + 7);
                out.extend_from_slice(&tag[..end]);
                rest = &tag[end..];
                continue;
            }
            let name_len = tag[1..].iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
            let name = String::from_utf8_lossy(&tag[1..=name_len]).to_ascii_lowercase();
            out.extend_from_slice(&tag[..=name_len]);
            rest = &tag[name_len + 1..];
            if !name.starts_with(|first: char| first.is_ascii_alphabetic()) {
                continue;
            }
            rest = self.attributes(&name, rest, &mut out);
            if TEXT.contains(&name.as_str()) {
                let end = end_of_text(rest, name.as_bytes());
                out.extend_from_slice(&rest[..end]);
                rest = &rest[end..];
            }
        }
        out.extend_from_slice(rest);
        out
    }

    /// Passes the rest of a start tag on, and returns what follows it.
    fn attributes<'p>(&self, element: &str, mut rest: &'p [u8], out: &mut Vec<u8>) -> &'p [u8] {
        let urls = ATTRIBUTES.iter().find(|(name, _)| *name == element).map_or(&[][..], |(_, urls)| urls);
        loop {
            let gap = count(rest, |byte| byte.is_ascii_whitespace() || byte == b'/');
            pass(out, &mut rest, gap);
            match rest.first() {
                None => return rest,
                Some(b'>') => {
                    pass(out, &mut rest, 1);
                    return rest;
                }
                Some(_) => {}
            }
            // A name may begin with `=`, says the HTML standard.
            let length = 1 + count(&rest[1..], |byte| {
                !byte.is_ascii_whitespace() && !matches!(byte, b'/' | b'>' | b'=')
            });
            let name = String::from_utf8_lossy(pass(out, &mut rest, length)).to_ascii_lowercase();
            let gap = count(rest, |byte| byte.is_ascii_whitespace());
            if rest.get(gap) != Some(&b'=') {
                continue;
            }
            pass(out, &mut rest, gap + 1);
            let gap = count(rest, |byte| byte.is_ascii_whitespace());
            pass(out, &mut rest, gap);
            let length = match rest.first() {
                Some(quote @ (b'"' | b'\'')) => {
                    pass(out, &mut rest, 1);
                    count(rest, |byte| byte != *quote)
                }
                _ => count(rest, |byte| !byte.is_ascii_whitespace() && byte != b'>'),
            };
            let value = std::str::from_utf8(&rest[..length]).ok().filter(|_| urls.contains(&name.as_str()));
            match value.and_then(|value| self.rewrite(value)) {
                Some(link) => {
                    out.extend_from_slice(link.as_bytes());
                    rest = &rest[length..];
                }
                None => {
                    pass(out, &mut rest, length);
                }
            }
        }
    }
}

/// Moves bytes from the front of `rest` to `out`.
fn pass<'p>(out: &mut Vec<u8>, rest: &mut &'p [u8], count: usize) -> &'p [u8] {
    let (passed, left) = rest.split_at(count);
    out.extend_from_slice(passed);
    *rest = left;
    passed
}

fn count(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> usize {
    bytes.iter().take_while(|byte| wanted(**byte)).count()
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn end_of_text(bytes: &[u8], name: &[u8]) -> usize {
    let is_end = |window: &[u8]| window.starts_with(b"</") && window[2..].eq_ignore_ascii_case(name);
    bytes.windows(name.len() + 2).position(is_end).unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINKS: Links<'static> =
        Links { backend: "10.1.2.3:80", host: "localhost:8001", prefix: "/api/v1/namespaces/a/pods/b/proxy" };

    #[test]
    fn links_on_the_same_host_lead_through_the_proxy() {
        let p = LINKS.prefix;
        for (link, expected) in [
            ("/x/y/?q=1#z", Some(format!("{p}/x/y/?q=1#z"))),
            ("/", Some(format!("{p}/"))),
            ("http://10.1.2.3:80/x", Some(format!("{p}/x"))),
            ("http://localhost:8001/x", Some(format!("http://localhost:8001{p}/x"))),
            ("//localhost:8001/x", Some(format!("//localhost:8001{p}/x"))),
            (&format!("{p}/x"), Some(format!("{p}/x"))),
            ("x/y", None),
            ("#top", None),
            ("?a=/b", None),
            ("mailto:a@b", None),
            ("http://elsewhere/x", None),
            ("http://10.1.2.3:80", None),
        ] {
            assert_eq!(LINKS.rewrite(link), expected, "{link}");
        }
    }

    #[test]
    fn pages_keep_all_but_their_links() {
        let p = LINKS.prefix;
        for (page, expected) in [
            ("<A class=x HREF = '/y' >/y</a>", format!("<A class=x HREF = '{p}/y' >/y</a>")),
            ("<img src=/i.png/><form action=\"/f\">", format!("<img src={p}/i.png/><form action=\"{p}/f\">")),
            (
                "<!-- <a href='/y'> --><p href='/y'>1 < 2",
                "<!-- <a href='/y'> --><p href='/y'>1 < 2".to_owned(),
            ),
            (
                "<script src='/s'>'<a href=\"/n\">'</SCRIPT><a href='/y'>",
                format!("<script src='{p}/s'>'<a href=\"/n\">'</SCRIPT><a href='{p}/y'>"),
            ),
            ("<a href='/cut", format!("<a href='{p}/cut")),
            ("<", "<".to_owned()),
            ("<a", "<a".to_owned()),
            ("<!-- open", "<!-- open".to_owned()),
        ] {
            let got = LINKS.page(page.as_bytes());
            assert_eq!(String::from_utf8(got).unwrap(), expected);
        }
        assert_eq!(LINKS.page(b"<a title='\xff' href='/y'>").len(), 23 + p.len());
    }
}
