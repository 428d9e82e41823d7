//! Platforms: what an image was built for, and in which order a node accepts them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Operating system, architecture and variant, normalised (`aarch64` is `arm64`, `arm64` is `arm64/v8`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// GOOS, such as `linux`.
    pub os: String,
    /// GOARCH, such as `amd64`.
    pub architecture: String,
    /// Such as `v8` or `v3`; empty where the architecture has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// Such as `10.0.14393.1066`; empty where it does not matter.
    #[serde(
        default,
        rename = "os.version",
        skip_serializing_if = "String::is_empty"
    )]
    pub os_version: String,
}

/// Why a string is no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a platform: {reason}; write os/architecture[/variant], such as linux/arm64/v8"
)]
pub struct PlatformError {
    /// What was given, shortened.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl Platform {
    /// The platform this program was built for, always `linux` in practice.
    pub fn host() -> Self {
        todo!()
    }
    /// Normalised platform of an image config or index entry.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let _ = (os, architecture, variant);
        todo!()
    }
    /// How well `offered` serves this platform: lower is better, `None` is not at all.
    /// The order is containerd's: amd64/v3 > v2 > v1 > 386; arm64/v8 > arm/v7 > v6 > v5.
    pub fn rank(&self, offered: &Platform) -> Option<u32> {
        let _ = offered;
        todo!()
    }
}

impl FromStr for Platform {
    type Err = PlatformError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let _ = text;
        todo!()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}
