//! `WWW-Authenticate` headers (RFC 9110, 11.6.1; distribution token specification).

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::registry) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token, bought at `realm`.
    Bearer {
        realm: String,
        service: String,
        scope: String,
        /// Why a token that was shown is refused.
        error: String,
    },
}

/// Longer headers are not read further.
const MAX: usize = 8192;

/// The challenges of one or more headers, in order; schemes that larder does not speak are left out.
pub(in crate::registry) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Vec<Challenge> {
    let mut found = Vec::new();
    for header in headers {
        let text: String = header.chars().take(MAX).collect();
        for (scheme, parameters) in split(&text) {
            let get = |name: &str| {
                parameters
                    .iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.clone())
                    .unwrap_or_default()
            };
            match scheme.to_ascii_lowercase().as_str() {
                "basic" => found.push(Challenge::Basic),
                "bearer" if !get("realm").is_empty() => found.push(Challenge::Bearer {
                    realm: get("realm"),
                    service: get("service"),
                    scope: get("scope"),
                    error: get("error"),
                }),
                _ => {}
            }
        }
    }
    found
}

type Parameters = Vec<(String, String)>;

/// Splits `Scheme a=b, c="d", Other e=f`.
fn split(text: &str) -> Vec<(String, Parameters)> {
    let mut challenges: Vec<(String, Parameters)> = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let value = after.trim_start().strip_prefix('=');
        match value {
            Some(value) => {
                let (value, after) = take_value(value.trim_start());
                if let Some((_, parameters)) = challenges.last_mut() {
                    parameters.push((word.to_owned(), value));
                }
                rest = after;
            }
            None if word.is_empty() => {
                rest = after.get(1..).unwrap_or_default();
            }
            None => {
                challenges.push((word.to_owned(), Vec::new()));
                rest = after;
            }
        }
    }
    challenges
}

/// A token, or a quoted string with its escapes undone.
fn take_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return (value, quoted.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: &str, scope: &str, error: &str) -> Challenge {
        Challenge::Bearer {
            realm: realm.into(),
            service: service.into(),
            scope: scope.into(),
            error: error.into(),
        }
    }

    #[test]
    fn reads_what_registries_send() {
        for (text, wanted) in [
            (
                r#"Bearer realm="https://auth.x/token",service="x",scope="repository:a/b:pull,push""#,
                vec![bearer(
                    "https://auth.x/token",
                    "x",
                    "repository:a/b:pull,push",
                    "",
                )],
            ),
            ("Basic realm=\"x\"", vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                r#"Negotiate, Basic realm="a, b", bearer realm=https://t , error="invalid_token""#,
                vec![
                    Challenge::Basic,
                    bearer("https://t", "", "", "invalid_token"),
                ],
            ),
            (r#"Bearer realm="a\"b""#, vec![bearer("a\"b", "", "", "")]),
            ("Bearer service=\"x\"", vec![]),
            ("", vec![]),
            ("=,=", vec![]),
        ] {
            assert_eq!(parse([text].into_iter()), wanted, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,100}", odd in "[A-Za-z =,\"\\\\]{0,40}") {
            parse([text.as_str(), odd.as_str()].into_iter());
        }
    }
}
