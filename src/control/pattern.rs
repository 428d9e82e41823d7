//! Which images a list pattern names. Pure.

use crate::cache::ImageView;
use crate::image::Reference;

/// True where the pattern is empty, or names the image: as a repository or as a whole reference, in the full form or
/// in the one people type. `*` is any text, `?` any one character; slashes are nothing special.
pub(super) fn matches(image: &ImageView, pattern: &str) -> bool {
    if pattern.is_empty() {
        return true;
    }
    let names = image.repo_tags.iter().chain(&image.repo_digests);
    for name in names {
        let familiar = name
            .parse::<Reference>()
            .map(|reference| reference.familiar())
            .unwrap_or_default();
        for form in [name.as_str(), familiar.as_str()] {
            if glob(pattern, form) || glob(pattern, repository(form)) {
                return true;
            }
        }
    }
    false
}

/// A name without tag and digest. A colon before the last slash is a port.
fn repository(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or(name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
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

    #[test]
    fn repositories() {
        for (name, expected) in [
            ("busybox:1", "busybox"),
            ("127.0.0.1:5000/app:1", "127.0.0.1:5000/app"),
            ("127.0.0.1:5000/app", "127.0.0.1:5000/app"),
            (
                "docker.io/library/busybox@sha256:ab",
                "docker.io/library/busybox",
            ),
        ] {
            assert_eq!(repository(name), expected);
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
