//! Which images a list pattern names. Pure.

use crate::image::{Reference, repository};

/// True where the pattern is empty, or is one of an image's names: as a repository or as a whole reference, in the full form or
/// in the one people type. `*` is any text, `?` any one character; slashes are nothing special.
pub(super) fn matches<'a>(mut names: impl Iterator<Item = &'a str>, pattern: &str) -> bool {
    pattern.is_empty()
        || names.any(|name| {
            let familiar = name
                .parse::<Reference>()
                .map(|reference| reference.familiar())
                .unwrap_or_default();
            let is = |form: &str| glob(pattern, form) || glob(pattern, repository(form));
            is(name) || is(&familiar)
        })
}

/// At most `pattern` times `text` steps: after a mismatch only the last star tries again.
fn glob(pattern: &str, text: &str) -> bool {
    let (mut rest, mut text) = (pattern, text);
    let mut retry: Option<(&str, &str)> = None;
    loop {
        let mut ahead = rest.chars();
        match (ahead.next(), text.chars().next()) {
            (Some('*'), _) => {
                retry = Some((ahead.as_str(), text));
                rest = ahead.as_str();
                continue;
            }
            (Some(wanted), Some(found)) if wanted == '?' || wanted == found => {
                rest = ahead.as_str();
                text = tail(text);
                continue;
            }
            (None, None) => return true,
            _ => {}
        }
        match retry {
            Some((after, from)) if !from.is_empty() => {
                retry = Some((after, tail(from)));
                rest = after;
                text = tail(from);
            }
            _ => return false,
        }
    }
}

fn tail(text: &str) -> &str {
    let mut chars = text.chars();
    chars.next();
    chars.as_str()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "any/thing", true),
            ("a*c", "abbbc", true),
            ("a*c", "abbb", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*ab*ab", "xabyabzab", true),
            ("*:1", "app:1", true),
            ("é?", "éà", true),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern:?} {text:?}");
        }
    }

    proptest! {
        #[test]
        fn text_matches_itself_and_a_star(text in "[a-c/:]{0,12}", cut in 0usize..12) {
            prop_assert!(glob(&text, &text));
            let cut = cut.min(text.len());
            let starred = format!("{}*", text.get(..cut).unwrap_or_default());
            prop_assert!(glob(&starred, &text));
        }

        #[test]
        fn never_panics(pattern in ".{0,20}", text in ".{0,20}") {
            let _ = glob(&pattern, &text);
        }
    }
}
