//! `$(VAR)` references in `command`, `args`, `env` and `subPathExpr`. `$$` escapes a dollar sign;
//! what names no variable stays as written. Upstream counterpart: `third_party/forked/golang/expansion`.

/// Replaces each `$(NAME)` with what `lookup` says; an unknown name stays as it is.
pub fn expand(text: &str, mut lookup: impl FnMut(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.as_bytes().first() {
            Some(b'$') => {
                out.push('$');
                rest = &rest[1..];
            }
            Some(b'(') => match rest.find(')') {
                Some(end) => {
                    let name = &rest[1..end];
                    match lookup(name) {
                        Some(value) => out.push_str(&value),
                        None => out.push_str(&format!("$({name})")),
                    }
                    rest = &rest[end + 1..];
                }
                // An unclosed reference is text; the parenthesis comes out again as plain text.
                None => {
                    out.push_str("$(");
                    rest = &rest[1..];
                }
            },
            // A dollar sign before any other character, or at the end, is itself.
            _ => out.push('$'),
        }
    }
    out.push_str(rest);
    out
}

/// The names that `text` refers to and `known` does not know.
pub fn unknown_references(text: &str, known: impl Fn(&str) -> bool) -> Vec<String> {
    let mut unknown = Vec::new();
    expand(text, |name| {
        if !known(name) {
            unknown.push(name.to_owned());
        }
        None
    });
    unknown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_as_upstream_does() {
        let lookup = |name: &str| match name {
            "VAR_A" => Some("A".to_owned()),
            "VAR_B" => Some("B".to_owned()),
            "VAR_REF" => Some("$(VAR_A)".to_owned()),
            "VAR_EMPTY" => Some(String::new()),
            _ => None,
        };
        for (input, expected) in [
            ("$(VAR_A)", "A"),
            ("___$(VAR_B)___", "___B___"),
            ("$(VAR_A)$(VAR_B)", "AB"),
            ("$(VAR_REF)", "$(VAR_A)"),
            ("$(VAR_EMPTY)", ""),
            ("$$(VAR_A)", "$(VAR_A)"),
            ("$$$(VAR_A)", "$A"),
            ("$$$$(VAR_A)", "$$(VAR_A)"),
            ("$(UNKNOWN)", "$(UNKNOWN)"),
            ("$(VAR_A", "$(VAR_A"),
            ("$VAR_A", "$VAR_A"),
            ("\n", "\n"),
            ("$", "$"),
            ("$(", "$("),
            ("$()", "$()"),
            ("foo$(VAR_A)$bar$", "fooA$bar$"),
            ("$(VAR_A)$", "A$"),
            ("ü$(VAR_A)é", "üAé"),
        ] {
            assert_eq!(expand(input, lookup), expected, "{input}");
        }
        assert_eq!(unknown_references("$(VAR_A) $(X)", |n| n == "VAR_A"), ["X"]);
    }
}
