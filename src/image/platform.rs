//! Platforms: what an image was built for, and in which order a node accepts them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::digest::shorten;

/// Operating system, architecture and variant, normalised: `aarch64` is `arm64`, `arm64/v8` is `arm64`,
/// `amd64/v1` is `amd64`, `arm` is `arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// GOOS, such as `linux`.
    pub os: String,
    /// GOARCH, such as `amd64`.
    pub architecture: String,
    /// Such as `v7` or `v3`; empty where the architecture has none, or has its usual one.
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

const KNOWN_OS: [&str; 9] = [
    "linux", "windows", "darwin", "freebsd", "netbsd", "openbsd", "solaris", "plan9", "android",
];

impl Platform {
    /// The platform this program was built for.
    pub fn host() -> Self {
        Platform::new(std::env::consts::OS, std::env::consts::ARCH, "")
    }

    /// Normalised platform of an image config, an index entry or a person's words.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let (architecture, variant) = normalise(
            &architecture.to_ascii_lowercase(),
            &variant.to_ascii_lowercase(),
        );
        Platform {
            os,
            architecture,
            variant,
            os_version: String::new(),
        }
    }

    /// How well `offered` serves this platform: lower is better, `None` is not at all.
    ///
    /// The order is containerd's: a variant, then each lower one, then the 32-bit family
    /// (amd64/v3, v2, v1, 386; arm64/v9, v8, then arm/v8 to v5).
    pub fn rank(&self, offered: &Platform) -> Option<u32> {
        if self.os != offered.os {
            return None;
        }
        if !self.os_version.is_empty()
            && !offered.os_version.is_empty()
            && self.os_version != offered.os_version
        {
            return None;
        }
        let wanted = (self.architecture.as_str(), offered.architecture.as_str());
        let own = level(&self.architecture, &self.variant)?;
        let theirs = level(&offered.architecture, &offered.variant)?;
        match wanted {
            (a, b) if a == b => own.checked_sub(theirs),
            ("amd64", "386") => Some(own + 1),
            ("arm64", "arm") if theirs <= ARM_V8 => Some(own + 1 + (ARM_V8 - theirs)),
            _ => None,
        }
    }
}

const ARM_V8: u32 = 80;

/// Position of a variant among those of its architecture; higher runs what is lower.
fn level(architecture: &str, variant: &str) -> Option<u32> {
    let usual = match architecture {
        "amd64" => 10,
        "arm64" => 80,
        "arm" => 70,
        _ => return variant.is_empty().then_some(0).or_else(|| minor(variant)),
    };
    if variant.is_empty() {
        Some(usual)
    } else {
        minor(variant)
    }
}

/// `v8` is 80, `v9.2` is 92.
fn minor(variant: &str) -> Option<u32> {
    let number = variant.strip_prefix('v')?;
    let (major, minor) = number.split_once('.').unwrap_or((number, "0"));
    let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    (major < 1000 && minor < 10).then(|| major * 10 + minor)
}

fn normalise(architecture: &str, variant: &str) -> (String, String) {
    let (architecture, variant) = match (architecture, variant) {
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64", variant) => ("amd64", variant),
        ("i386" | "x86", _) => ("386", ""),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
        ("aarch64" | "arm64", "9" | "v9" | "v9.0") => ("arm64", "v9"),
        ("aarch64", variant) => ("arm64", variant),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "" | "7") => ("arm", "v7"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "6") => ("arm", "v6"),
        ("arm", "8") => ("arm", "v8"),
        ("powerpc64le" | "powerpc64" | "ppc64el", variant) => ("ppc64le", variant),
        other => other,
    };
    (architecture.to_owned(), variant.to_owned())
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |reason| PlatformError {
            text: shorten(text),
            reason,
        };
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty()
                && part.len() <= 64
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        if !parts.iter().all(word) {
            return Err(refuse(
                "a part is empty or has a character other than letters, digits, '_', '-' and '.'",
            ));
        }
        let host = Platform::host();
        match parts.as_slice() {
            [one] if KNOWN_OS.contains(&one.to_ascii_lowercase().as_str()) => {
                Ok(Platform::new(one, &host.architecture, &host.variant))
            }
            [one] => Ok(Platform::new(&host.os, one, "")),
            [os, architecture] => Ok(Platform::new(os, architecture, "")),
            [os, architecture, variant] => Ok(Platform::new(os, architecture, variant)),
            _ => Err(refuse("it has more than three parts")),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn normalises() {
        for (text, shown) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("Linux/ARM64/V9", "linux/arm64/v9"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/i386", "linux/386"),
            ("linux/ppc64el", "linux/ppc64le"),
            ("s390x", "linux/s390x"),
        ] {
            assert_eq!(platform(text).to_string(), shown, "{text}");
        }
    }

    #[test]
    fn refuses() {
        for text in [
            "",
            "/",
            "linux/",
            "linux//v8",
            "a/b/c/d",
            "linux/amd 64",
            "é",
        ] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn ranks_as_containerd_orders() {
        for (host, order) in [
            (
                "linux/amd64/v3",
                vec![
                    "linux/amd64/v3",
                    "linux/amd64/v2",
                    "linux/amd64",
                    "linux/386",
                ],
            ),
            (
                "linux/arm64/v9",
                vec![
                    "linux/arm64/v9",
                    "linux/arm64/v8.5",
                    "linux/arm64",
                    "linux/arm/v8",
                    "linux/arm/v7",
                    "linux/arm/v6",
                    "linux/arm/v5",
                ],
            ),
            (
                "linux/arm/v7",
                vec!["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"],
            ),
            ("linux/s390x", vec!["linux/s390x"]),
        ] {
            let host = platform(host);
            let ranks: Vec<_> = order
                .iter()
                .map(|o| host.rank(&platform(o)).unwrap())
                .collect();
            assert!(ranks.is_sorted_by(|a, b| a < b), "{host}: {ranks:?}");
        }
        for (host, offered) in [
            ("linux/amd64", "linux/amd64/v2"),
            ("linux/amd64", "windows/amd64"),
            ("linux/386", "linux/amd64"),
            ("linux/arm/v6", "linux/arm/v7"),
            ("linux/arm64", "linux/arm64/v9"),
            ("linux/arm64", "linux/amd64"),
        ] {
            assert_eq!(
                platform(host).rank(&platform(offered)),
                None,
                "{host} {offered}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,60}", other in "[a-z]{1,5}/[a-z0-9]{1,6}(/v[0-9]{1,12}(\\.[0-9]{1,3})?)?") {
            let other: Platform = other.parse().unwrap();
            if let Ok(platform) = text.parse::<Platform>() {
                let _ = platform.rank(&other);
            }
            proptest::prop_assert_eq!(&other.to_string().parse::<Platform>().unwrap(), &other);
        }
    }
}
