//! Image references, exactly as the distribution reference grammar has them.

use std::fmt;
use std::str::FromStr;

use super::Digest;

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
        todo!()
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let _ = text;
        todo!()
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
