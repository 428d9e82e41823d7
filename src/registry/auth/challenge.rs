//! `WWW-Authenticate` (RFC 9110 §11.6.1): several challenges, several headers, quoted strings.

use std::collections::BTreeMap;

/// One challenge of a 401 answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::registry) struct Challenge {
    /// Lower case, such as `bearer`.
    pub(in crate::registry) scheme: String,
    /// Names in lower case.
    pub(in crate::registry) params: BTreeMap<String, String>,
}

/// More than any registry sends.
const MAX_CHALLENGES: usize = 8;
const MAX_PARAMS: usize = 16;
const MAX_BYTES: usize = 8 << 10;

impl Challenge {
    /// All challenges of one header value; what is malformed ends the list.
    pub(in crate::registry) fn parse(value: &str) -> Vec<Challenge> {
        let mut found: Vec<Challenge> = Vec::new();
        let mut rest = value.get(..value.len().min(MAX_BYTES)).unwrap_or_default();
        loop {
            rest = rest.trim_start_matches([' ', '\t', ',']);
            let (name, after) = token(rest);
            if name.is_empty() {
                return found;
            }
            let follows = after.trim_start_matches([' ', '\t']);
            if let (Some(value), Some(challenge)) = (follows.strip_prefix('='), found.last_mut()) {
                let Some((value, after)) = param_value(value) else {
                    return found;
                };
                if challenge.params.len() < MAX_PARAMS {
                    challenge
                        .params
                        .entry(name.to_ascii_lowercase())
                        .or_insert(value);
                }
                rest = after;
            } else {
                if found.len() >= MAX_CHALLENGES {
                    return found;
                }
                found.push(Challenge {
                    scheme: name.to_ascii_lowercase(),
                    params: BTreeMap::new(),
                });
                rest = skip_token68(after);
            }
        }
    }

    /// A parameter that is there and not empty.
    pub(in crate::registry) fn param(&self, name: &str) -> Option<&str> {
        self.params
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

fn token(text: &str) -> (&str, &str) {
    let end = text.find(|c| !is_token(c)).unwrap_or(text.len());
    text.split_at(end)
}

fn param_value(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start_matches([' ', '\t']);
    let Some(quoted) = text.strip_prefix('"') else {
        // Some registries leave URLs unquoted, so this takes more than a token.
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return Some((value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, quoted.get(at + 1..)?)),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

/// Schemes such as `Negotiate` carry one base64 word in place of parameters.
fn skip_token68(text: &str) -> &str {
    let start = text.trim_start_matches(' ');
    let end = start
        .find(|c: char| !(c.is_ascii_alphanumeric() || "-._~+/".contains(c)))
        .unwrap_or(start.len());
    let after = start.get(end..).unwrap_or_default();
    let padded = after.trim_start_matches('=');
    let ends = padded.trim_start_matches([' ', '\t']);
    let closes = ends.is_empty() || ends.starts_with(',');
    let is_word = after.len() != padded.len() || text.len() != start.len();
    if end > 0 && closes && is_word {
        padded
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(value: &str) -> Vec<String> {
        Challenge::parse(value)
            .iter()
            .map(|c| format!("{} {:?}", c.scheme, c.params))
            .collect()
    }

    #[test]
    fn registries_challenges() {
        assert_eq!(
            shown(
                r#"Bearer realm="https://auth.example/token",service="reg.example",scope="repository:a/b:pull,push""#
            ),
            [
                r#"bearer {"realm": "https://auth.example/token", "scope": "repository:a/b:pull,push", "service": "reg.example"}"#
            ]
        );
        assert_eq!(
            shown(r#"Basic realm="a \"b\", c""#),
            [r#"basic {"realm": "a \"b\", c"}"#]
        );
        assert_eq!(
            shown(r#"Negotiate, Basic realm=x , BEARER Realm = "y",service=z"#),
            [
                "negotiate {}",
                r#"basic {"realm": "x"}"#,
                r#"bearer {"realm": "y", "service": "z"}"#
            ]
        );
        assert_eq!(
            shown(r#"Negotiate YWJj==, Basic realm="x""#),
            ["negotiate {}", r#"basic {"realm": "x"}"#]
        );
        assert_eq!(
            shown("Bearer realm=https://a/b"),
            [r#"bearer {"realm": "https://a/b"}"#]
        );
        assert_eq!(shown("Basic"), ["basic {}"]);
        assert_eq!(shown(r#"Bearer realm="open"#), ["bearer {}"]);
        assert!(shown("").is_empty());
        assert!(shown("\"").is_empty());
    }

    proptest! {
        #[test]
        fn any_text_ends(value in ".{0,200}") {
            prop_assert!(Challenge::parse(&value).len() <= MAX_CHALLENGES);
        }
        #[test]
        fn header_like_text_ends(value in "[A-Za-z=\", \\\\]{0,80}") {
            prop_assert!(Challenge::parse(&value).len() <= MAX_CHALLENGES);
        }
        #[test]
        fn quoted_values_come_back(value in "[ -~]{1,40}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let parsed = Challenge::parse(&format!("Bearer realm=\"{quoted}\""));
            prop_assert_eq!(parsed[0].params["realm"].as_str(), value.as_str());
        }
    }
}
