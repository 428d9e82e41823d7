//! Image references, exactly as the distribution reference grammar has them.
//!
//! ```text
//! reference  = [ domain "/" ] path [ ":" tag ] [ "@" digest ]
//! domain     = host [ ":" port ]          host is a DNS name, an IPv4 address or a bracketed IPv6 address
//! path       = component *( "/" component )
//! component  = alnum *( separator alnum ) separator is ".", "_", "__" or any number of "-"; lower case only
//! tag        = word character, then up to 127 word characters, "." or "-"
//! ```

use std::fmt;
use std::str::FromStr;

use super::Digest;
use super::digest::shorten;

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Of domain and path together, as the grammar's implementation limits it.
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;

/// A normalised image reference: `host[:port]/repository[:tag][@digest]`.
///
/// Parsing applies the rules docker and containerd share: `busybox` is
/// `docker.io/library/busybox:latest`. A reference with both tag and digest keeps both.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: Box<str>,
    path: Box<str>,
    tag: Option<Box<str>>,
    digest: Option<Digest>,
}

/// Why a string is no reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an image reference: {reason}")]
pub struct ReferenceError {
    /// What was given, shortened.
    pub text: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl Reference {
    /// Registry host with its port, such as `docker.io` or `127.0.0.1:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Repository within the registry, such as `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag; `latest` where neither tag nor digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference has one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `domain/path`: the repository without tag or digest.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// `domain/path:tag`, if there is a tag.
    pub fn tagged(&self) -> Option<String> {
        self.tag
            .as_ref()
            .map(|tag| format!("{}/{}:{}", self.domain, self.path, tag))
    }

    /// `domain/path@digest` for any digest in this repository.
    pub fn digested(&self, digest: &Digest) -> String {
        format!("{}/{}@{}", self.domain, self.path, digest)
    }

    /// The short form people type: `docker.io/library/busybox:latest` is `busybox:latest`.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let Some(short) = full.strip_prefix("docker.io/") else {
            return full;
        };
        match self.path.strip_prefix(OFFICIAL_PREFIX) {
            Some(name) if !name.contains('/') => short
                .strip_prefix(OFFICIAL_PREFIX)
                .unwrap_or(short)
                .to_owned(),
            // A first element that looks like a host would be read as one.
            _ if split_domain(&self.path).0 != DEFAULT_DOMAIN => full,
            _ => short.to_owned(),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|reason| ReferenceError {
            text: shorten(text),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    if text.is_empty() {
        return Err("it is empty".into());
    }
    if text.contains("://") {
        return Err("leave out the scheme: write host[:port]/repository[:tag]".into());
    }
    if text.chars().any(char::is_whitespace) {
        return Err("it contains white space".into());
    }
    if is_bare_id(text) {
        return Err("64 hex digits are an image id, not a name".into());
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (
            name,
            Some(
                digest
                    .parse::<Digest>()
                    .map_err(|error| error.to_string())?,
            ),
        ),
        None => (text, None),
    };
    let (domain, remainder) = split_domain(name);
    let (path, tag) = match remainder.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (remainder, None),
    };
    check_domain(domain)?;
    let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
        format!("{OFFICIAL_PREFIX}{path}")
    } else {
        path.to_owned()
    };
    check_path(&path)?;
    if domain.len() + 1 + path.len() > MAX_REPOSITORY {
        return Err(format!(
            "the repository name is longer than {MAX_REPOSITORY} characters"
        ));
    }
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let tag = match (tag, &digest) {
        (Some(tag), _) => Some(tag.into()),
        (None, None) => Some(DEFAULT_TAG.into()),
        (None, Some(_)) => None,
    };
    Ok(Reference {
        domain: domain.into(),
        path: path.into(),
        tag,
        digest,
    })
}

fn is_bare_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The first path element is a host only if it could not be a repository's first element: it has a dot, a colon or
/// an upper-case letter, or is `localhost`.
fn split_domain(name: &str) -> (&str, &str) {
    let (domain, rest) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    };
    let domain = if domain == LEGACY_DEFAULT_DOMAIN {
        DEFAULT_DOMAIN
    } else {
        domain
    };
    (domain, rest)
}

fn check_domain(domain: &str) -> Result<(), String> {
    let (host, port) = if let Some(rest) = domain.strip_prefix('[') {
        let (address, after) = rest
            .split_once(']')
            .ok_or_else(|| format!("host {domain:?} has no closing ']'"))?;
        if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
            return Err(format!(
                "host {domain:?} is not an IPv6 address in brackets"
            ));
        }
        match after.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if after.is_empty() => (None, None),
            None => return Err(format!("host {domain:?} has something after ']'")),
        }
    } else {
        match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        }
    };
    if let Some(host) = host {
        let label = |label: &str| {
            let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
            let bytes = label.as_bytes();
            ends(bytes.first())
                && ends(bytes.last())
                && bytes
                    .iter()
                    .all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        };
        if !host.split('.').all(label) {
            return Err(format!("{host:?} is not a host name"));
        }
    }
    if let Some(port) = port
        && (port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()))
    {
        return Err(format!("{port:?} is not a port"));
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), String> {
    for component in path.split('/') {
        if component.is_empty() {
            return Err("a part of the repository name is empty".into());
        }
        if component.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(format!(
                "repository name must be lower case; try {:?}",
                path.to_ascii_lowercase()
            ));
        }
        if !is_component(component) {
            return Err(format!(
                "{component:?} is not a part of a repository name: letters a-z and digits, separated by '.', '_', '__' or '-'"
            ));
        }
    }
    Ok(())
}

fn is_component(component: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut rest = component.as_bytes();
    loop {
        let word = rest.iter().take_while(|b| alnum(**b)).count();
        if word == 0 {
            return false;
        }
        rest = rest.get(word..).unwrap_or_default();
        if rest.is_empty() {
            return true;
        }
        let separator = rest.iter().take_while(|b| !alnum(**b)).count();
        let ok = match rest.get(..separator).unwrap_or_default() {
            b"." | b"_" | b"__" => true,
            dashes => dashes.iter().all(|b| *b == b'-'),
        };
        if !ok {
            return false;
        }
        rest = rest.get(separator..).unwrap_or_default();
    }
}

fn check_tag(tag: &str) -> Result<(), String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = tag.as_bytes();
    if bytes.len() > MAX_TAG {
        return Err(format!("the tag is longer than {MAX_TAG} characters"));
    }
    match bytes.first() {
        None => return Err("the tag after ':' is empty".into()),
        Some(first) if !word(*first) => {
            return Err(format!(
                "tag {tag:?} must begin with a letter, a digit or '_'"
            ));
        }
        Some(_) => {}
    }
    if !bytes.iter().all(|b| word(*b) || matches!(b, b'.' | b'-')) {
        return Err(format!(
            "tag {tag:?} may hold only letters, digits, '_', '.' and '-'"
        ));
    }
    Ok(())
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf";

    fn check(text: &str, full: &str, familiar: &str) {
        let reference: Reference = text.parse().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(reference.to_string(), full, "{text}");
        assert_eq!(reference.familiar(), familiar, "{text}");
        assert_eq!(full.parse::<Reference>().unwrap(), reference, "{text}");
    }

    #[test]
    fn normalises() {
        let at = format!("@sha256:{HEX}");
        check(
            "busybox",
            "docker.io/library/busybox:latest",
            "busybox:latest",
        );
        check(
            "busybox:1.36-RC1",
            "docker.io/library/busybox:1.36-RC1",
            "busybox:1.36-RC1",
        );
        check(
            "docker.io/busybox",
            "docker.io/library/busybox:latest",
            "busybox:latest",
        );
        check(
            "index.docker.io/library/a",
            "docker.io/library/a:latest",
            "a:latest",
        );
        check("user/app", "docker.io/user/app:latest", "user/app:latest");
        check(
            "library/a/b",
            "docker.io/library/a/b:latest",
            "library/a/b:latest",
        );
        check(
            "localhost/app",
            "localhost/app:latest",
            "localhost/app:latest",
        );
        check(
            "localhost:5000/app:v1",
            "localhost:5000/app:v1",
            "localhost:5000/app:v1",
        );
        check(
            "gcr.io/k8s-staging-cri-tools/test:a_b",
            "gcr.io/k8s-staging-cri-tools/test:a_b",
            "gcr.io/k8s-staging-cri-tools/test:a_b",
        );
        check("Host/app", "Host/app:latest", "Host/app:latest");
        check(
            "[::1]:5000/a/b",
            "[::1]:5000/a/b:latest",
            "[::1]:5000/a/b:latest",
        );
        check(
            "127.0.0.1:5000/a--b__c.d",
            "127.0.0.1:5000/a--b__c.d:latest",
            "127.0.0.1:5000/a--b__c.d:latest",
        );
        check(
            &format!("a{at}"),
            &format!("docker.io/library/a{at}"),
            &format!("a{at}"),
        );
        check(
            &format!("a:1{at}"),
            &format!("docker.io/library/a:1{at}"),
            &format!("a:1{at}"),
        );
    }

    #[test]
    fn refuses_with_a_reason() {
        let long = "a".repeat(256);
        let tag = format!("a:{}", "t".repeat(129));
        for (text, reason) in [
            ("", "empty"),
            ("https://host/app", "scheme"),
            ("Busybox", "lower case"),
            ("host.io/App", "lower case"),
            ("a b", "white space"),
            (HEX, "image id"),
            ("a:", "tag"),
            ("a:-b", "begin"),
            ("a:b:c", "only"),
            ("a//b", "empty"),
            ("/a", "empty"),
            ("a/", "empty"),
            ("-a/b", "part of a repository"),
            ("a..b", "part of a repository"),
            ("a___b", "part of a repository"),
            ("a._b", "part of a repository"),
            ("a@sha256:12", "64"),
            ("a@", "':'"),
            ("host:port/a", "port"),
            ("-h.io/a", "host name"),
            ("[::1/a", "']'"),
            ("[x.y]/a", "IPv6"),
            ("é", "part of a repository"),
            (&long, "255"),
            (&tag, "128"),
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert!(error.reason.contains(reason), "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,300}") {
            let _ = text.parse::<Reference>();
        }

        #[test]
        fn full_form_parses_to_itself(
            text in "((localhost|[a-z]{1,5}\\.io|127\\.0\\.0\\.1)(:[0-9]{1,4})?/)?[a-z0-9]{1,6}((_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,5}){0,3}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,12})?"
        ) {
            let reference: Reference = text.parse().unwrap();
            proptest::prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
            proptest::prop_assert_eq!(&reference.familiar().parse::<Reference>().unwrap(), &reference);
        }
    }
}
