//! What of a registry's words may appear in messages: hosts and codes, never queries, secrets or bodies.

use url::Url;

/// `host[:port]` of a URL, for messages, metrics and limits.
pub(super) fn host_of(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => "(no host)".to_owned(),
    }
}

/// A URL without user, password, query and fragment; long paths are cut.
pub(super) fn url(url: &Url) -> String {
    let path: String = url.path().chars().take(200).collect();
    format!("{}://{}{path}", url.scheme(), host_of(url))
}

/// A foreign text made safe to print: one line, bounded.
pub(super) fn text(text: &str) -> String {
    let mut out: String = text
        .chars()
        .take(200)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().nth(200).is_some() {
        out.push('…');
    }
    out
}

/// The error codes of a registry's error body (distribution specification, "error codes"), such as
/// `MANIFEST_UNKNOWN`; empty where the body is anything else.
pub(super) fn codes(body: &[u8]) -> Vec<String> {
    #[derive(serde::Deserialize)]
    struct Body {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        code: String,
    }
    let Ok(body) = serde_json::from_slice::<Body>(body) else {
        return Vec::new();
    };
    body.errors
        .into_iter()
        .map(|entry| entry.code)
        .filter(|code| {
            (1..=48).contains(&code.len())
                && code
                    .bytes()
                    .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        })
        .take(3)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lose_what_may_be_secret() {
        let full = Url::parse("https://user:pw@cdn.example:8443/a/b?sig=SECRET#x").unwrap();
        assert_eq!(url(&full), "https://cdn.example:8443/a/b");
        assert_eq!(host_of(&full), "cdn.example:8443");
    }

    #[test]
    fn only_plain_codes_pass() {
        assert_eq!(
            codes(br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"<b>x</b>"},{"code":"<script>"}]}"#),
            ["MANIFEST_UNKNOWN"]
        );
        assert!(codes(b"<html>").is_empty());
        assert!(codes(br#"{"errors":7}"#).is_empty());
    }

    #[test]
    fn texts_are_one_bounded_line() {
        assert_eq!(text("a\nb\x1b[31m"), "a b [31m");
        assert_eq!(text(&"x".repeat(500)).chars().count(), 201);
    }
}
