//! Patterns of image names.

use std::fmt;

use crate::image::{Reference, repository};

/// A pattern of image names: `*` stands for any characters but `/`, `**` for any; `*` alone is every image.
///
/// It is held against the whole canonical name (`docker.io/library/busybox:1`), against its repository, so that
/// `registry.example/app` means all of its tags, and against both as people type them (`busybox:1`, `busybox`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Any text is one.
    pub fn new(text: impl Into<String>) -> Self {
        Pattern(text.into())
    }

    /// Whether a canonical name matches.
    pub fn matches(&self, name: &str) -> bool {
        if self.0 == "*" || self.in_either_form(name) {
            return true;
        }
        let familiar = name
            .parse::<Reference>()
            .map(|reference| reference.familiar());
        familiar.is_ok_and(|familiar| familiar != name && self.in_either_form(&familiar))
    }

    fn in_either_form(&self, name: &str) -> bool {
        let pattern = self.0.as_bytes();
        glob(pattern, name.as_bytes()) || glob(pattern, repository(name).as_bytes())
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// After a mismatch the last `*` takes one character more; where it may not, the last `**` does. Stars before those
/// need no second try: the shortest text they could take left the most to the others.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    type Retry<'a> = Option<(&'a [u8], &'a [u8])>;
    let (mut pattern, mut text) = (pattern, text);
    let (mut one, mut two): (Retry<'_>, Retry<'_>) = (None, None);
    loop {
        if let Some(rest) = pattern.strip_prefix(b"**") {
            // More stars in a row say no more.
            let rest = rest.strip_prefix(b"*").unwrap_or(rest);
            (pattern, one, two) = (rest, None, Some((rest, text)));
            continue;
        }
        match (pattern.split_first(), text.split_first()) {
            (Some((b'*', rest)), _) => {
                (pattern, one) = (rest, Some((rest, text)));
                continue;
            }
            (Some((wanted, after)), Some((found, left))) if wanted == found => {
                (pattern, text) = (after, left);
                continue;
            }
            (None, None) => return true,
            _ => {}
        }
        let longer =
            |retry: Retry<'_>| retry.and_then(|(_, from)| from.split_first().map(|(c, _)| *c));
        if let (Some((after, from)), Some(taken)) = (one, longer(one))
            && taken != b'/'
        {
            let from = from.get(1..).unwrap_or_default();
            (pattern, text, one) = (after, from, Some((after, from)));
        } else if let (Some((after, from)), Some(_)) = (two, longer(two)) {
            let from = from.get(1..).unwrap_or_default();
            (pattern, text, one, two) = (after, from, None, Some((after, from)));
        } else {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_of_names() {
        for (pattern, name, expected) in [
            ("registry.example/ci/*", "registry.example/ci/app:1", true),
            (
                "registry.example/ci/*",
                "registry.example/ci/app@sha256:ab",
                true,
            ),
            (
                "registry.example/ci/*",
                "registry.example/ci/team/app:1",
                false,
            ),
            (
                "registry.example/ci/**",
                "registry.example/ci/team/app:1",
                true,
            ),
            ("registry.example/ci/*", "registry.example/ci:1", false),
            ("registry.example/app", "registry.example/app:1", true),
            ("registry.example/app", "registry.example/app2:1", false),
            ("registry.example/app:1", "registry.example/app:1", true),
            ("registry.example/app:1", "registry.example/app:10", false),
            ("127.0.0.1:5000/app", "127.0.0.1:5000/app:1", true),
            ("127.0.0.1:5000/*", "127.0.0.1:5000/app", true),
            ("**/app:*", "registry.example/a/b/app:1", true),
            ("**:pr-*", "registry.example/a/app:pr-12", true),
            ("**:pr-*", "registry.example/a/app:main", false),
            ("busybox", "docker.io/library/busybox:1", true),
            ("busybox:*", "docker.io/library/busybox:1", true),
            ("grafana/*", "docker.io/grafana/grafana:11", true),
            ("docker.io/library/*", "docker.io/library/busybox:1", true),
            ("*", "registry.example/a/b:1", true),
            ("**", "registry.example/a/b:1", true),
            ("", "registry.example/a/b:1", false),
        ] {
            assert_eq!(
                Pattern::new(pattern).matches(name),
                expected,
                "{pattern:?} {name:?}"
            );
        }
    }

    /// What stars mean, without any care for time.
    fn naive(pattern: &[u8], text: &[u8]) -> bool {
        if let Some(rest) = pattern.strip_prefix(b"**") {
            let rest = rest.strip_prefix(b"*").unwrap_or(rest);
            return (0..=text.len()).any(|taken| naive(rest, &text[taken..]));
        }
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len())
                .take_while(|taken| !text[..*taken].contains(&b'/'))
                .any(|taken| naive(rest, &text[taken..])),
            Some((wanted, rest)) => text
                .split_first()
                .is_some_and(|(found, left)| found == wanted && naive(rest, left)),
        }
    }

    proptest! {
        #[test]
        fn two_stars_to_fall_back_to_are_enough(pattern in "[ab/*]{0,10}", text in "[ab/]{0,14}") {
            prop_assert_eq!(
                glob(pattern.as_bytes(), text.as_bytes()),
                naive(pattern.as_bytes(), text.as_bytes())
            );
        }

        #[test]
        fn any_text_is_a_pattern(pattern in ".{0,40}", text in ".{0,40}") {
            let _ = Pattern::new(pattern).matches(&text);
        }
    }
}
