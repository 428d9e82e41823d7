//! Image references, exactly as the distribution reference grammar has them.

use std::fmt;
use std::str::FromStr;

use super::{Digest, excerpt};

/// The registry of names that name none.
const DEFAULT_DOMAIN: &str = "docker.io";
/// An old name of the default registry.
const LEGACY_DOMAIN: &str = "index.docker.io";
/// Where the default registry keeps repositories of one element.
const OFFICIAL: &str = "library/";
/// Most characters of a repository name, its registry apart.
const MAX_PATH: usize = 255;
/// Most characters of a tag.
const MAX_TAG: usize = 128;
/// A DNS name has at most 253 characters; with brackets, colon and port this is ample.
const MAX_DOMAIN: usize = 265;

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
    /// Always parses to this reference again, so a name that would mean something else when shortened stays whole.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        if *self.domain != *DEFAULT_DOMAIN {
            return full;
        }
        let rest = full
            .strip_prefix(DEFAULT_DOMAIN)
            .and_then(|rest| rest.strip_prefix('/'))
            .unwrap_or(&full);
        [rest.strip_prefix(OFFICIAL).unwrap_or(rest), rest]
            .into_iter()
            .find(|short| short.parse::<Reference>().is_ok_and(|back| back == *self))
            .map_or_else(|| full.clone(), str::to_owned)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(text) = without_userinfo(text) {
            return Err(ReferenceError {
                text: excerpt(&text),
                reason: "user and password do not belong in it; give them as credentials, with --creds, an authfile or a pull secret"
                    .to_owned(),
            });
        }
        parse(text).map_err(|reason| ReferenceError {
            text: excerpt(text),
            reason,
        })
    }
}

/// The text without `user:password@`, where it has that: errors are logged, passwords must not be.
fn without_userinfo(text: &str) -> Option<String> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, text),
    };
    let is_digest = |text: &str| {
        text.split_once(':').is_some_and(|(algorithm, hex)| {
            algorithm.bytes().all(|b| b.is_ascii_alphanumeric())
                && hex.bytes().all(|b| b.is_ascii_hexdigit())
        })
    };
    let (before, after) = match rest.rsplit_once('@')? {
        (named, digest) if is_digest(digest) => named.rsplit_once('@')?,
        both => both,
    };
    // A colon behind a slash, or none, is a tag's or a port's.
    let secret = before.contains(':') && (scheme.is_some() || !before.contains('/'));
    let scheme = scheme.map_or_else(String::new, |scheme| format!("{scheme}://"));
    (secret && !after.is_empty()).then(|| format!("{scheme}[redacted]@{after}"))
}

fn parse(text: &str) -> Result<Reference, String> {
    check_shape(text)?;
    let (domain, remainder) = split_domain(text);
    check_domain(domain)?;

    let (named, digest) = match remainder.split_once('@') {
        Some((named, digest)) => {
            let digest: Digest = digest.parse().map_err(|e| format!("{e}"))?;
            (named, Some(digest))
        }
        None => (remainder, None),
    };
    let (path, tag) = match named.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (named, None),
    };
    let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
        format!("{OFFICIAL}{path}")
    } else {
        path.to_owned()
    };
    check_path(&path)?;
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let tag = match (tag, &digest) {
        (None, None) => Some("latest"),
        (tag, _) => tag,
    };
    Ok(Reference {
        domain: domain.into(),
        path: path.into(),
        tag: tag.map(Into::into),
        digest,
    })
}

/// Mistakes that the grammar would report in a roundabout way.
fn check_shape(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("it is empty; write a name such as docker.io/library/busybox:1.36".into());
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("it contains a space or control character; remove it".into());
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        return Err(format!(
            "leave out {:?} and write {:?}",
            excerpt(&format!("{scheme}://")),
            excerpt(rest)
        ));
    }
    if !text.is_ascii() {
        return Err("only ASCII letters, digits and punctuation may appear in it".into());
    }
    if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err("64 hex digits are an image id, not a name; write sha256: before an id".into());
    }
    Ok(())
}

/// The first element is a registry only if it cannot be part of a repository name.
fn split_domain(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((LEGACY_DOMAIN, rest)) => (DEFAULT_DOMAIN, rest),
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, text),
    }
}

fn check_domain(domain: &str) -> Result<(), String> {
    let refuse = |what: &str| Err(format!("registry {:?} {what}", excerpt(domain)));
    if domain.len() > MAX_DOMAIN {
        return refuse("is too long for a host name");
    }
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => {
            let Some((address, after)) = rest.split_once(']') else {
                return refuse("opens a bracket and does not close it");
            };
            if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
                return refuse("has no IPv6 address between its brackets");
            }
            match after.strip_prefix(':') {
                Some(port) => (None, Some(port)),
                None if after.is_empty() => (None, None),
                None => return refuse("has something other than a port after its brackets"),
            }
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        },
    };
    if port.is_some_and(|port| port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit())) {
        return refuse("has a port that is not a number");
    }
    if host.is_some_and(|host| !host.split('.').all(is_domain_component)) {
        return refuse("is not a host name; only letters, digits, '-' and '.' may appear in one");
    }
    Ok(())
}

fn is_domain_component(component: &str) -> bool {
    !component.starts_with('-')
        && !component.ends_with('-')
        && !component.is_empty()
        && component
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn check_path(path: &str) -> Result<(), String> {
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(format!(
            "repository names are lower case; write {:?}",
            excerpt(&path.to_ascii_lowercase())
        ));
    }
    if path.len() > MAX_PATH {
        return Err(format!(
            "the repository name has {} characters, the limit is {MAX_PATH}",
            path.len()
        ));
    }
    match path
        .split('/')
        .find(|component| !is_path_component(component))
    {
        None => Ok(()),
        Some("") => Err("a repository name has no empty element; check the slashes".into()),
        Some(component) => Err(format!(
            "{component:?} is no element of a repository name: lower-case letters and digits, \
             separated by one '.', one or two '_', or any number of '-'"
        )),
    }
}

/// Runs of letters and digits, joined by the separators `.`, `_`, `__` and any number of `-`.
fn is_path_component(component: &str) -> bool {
    let mut rest = component;
    loop {
        let after = rest.trim_start_matches(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        if after.len() == rest.len() {
            return false;
        }
        if after.is_empty() {
            return true;
        }
        rest = if let Some(after) = after.strip_prefix("__") {
            after
        } else if let Some(after) = after.strip_prefix(['.', '_']) {
            after
        } else {
            // No separator at all leaves a character that is neither, which ends the next turn.
            after.trim_start_matches('-')
        };
    }
}

fn check_tag(tag: &str) -> Result<(), String> {
    if tag.len() > MAX_TAG {
        return Err(format!(
            "the tag has {} characters, the limit is {MAX_TAG}",
            tag.len()
        ));
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let good = tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if good {
        return Ok(());
    }
    Err(if tag.is_empty() {
        "the tag is empty; write one after the colon, or leave the colon out".into()
    } else {
        format!(
            "tag {tag:?} may have letters, digits, '_', '.' and '-' only, and must not begin with '.' or '-'"
        )
    })
}

/// A name without tag and digest, whether it is a reference or not. A colon before the last slash is a port.
pub fn repository(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or(name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
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
#[path = "reference_tests.rs"]
mod tests;
