//! Platforms: what an image was built for, and in which order a node accepts them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::excerpt;

/// Operating system, architecture and variant, normalised as containerd does: `aarch64` is `arm64`,
/// `arm64/v8` is `arm64`, `amd64/v1` is `amd64`, `arm` is `arm/v7`.
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
        let architecture = match std::env::consts::ARCH {
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            other => other,
        };
        Platform::new(std::env::consts::OS, architecture, "")
    }
    /// Normalised platform of an image config or index entry. An empty `os` is the host's.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let os = match os.to_ascii_lowercase() {
            os if os.is_empty() => std::env::consts::OS.to_owned(),
            os if os == "macos" => "darwin".to_owned(),
            os => os,
        };
        let (architecture, variant) = normalise(
            architecture.to_ascii_lowercase(),
            variant.to_ascii_lowercase(),
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
    /// The order is containerd's: amd64/v3 > v2 > amd64 > 386; arm64/v9.x > lower v9 > v8.(x+5) and lower > arm/v8 > v7 > v6 > v5.
    /// `os_version` counts on Windows only, where both name one: the build must be the same.
    pub fn rank(&self, offered: &Platform) -> Option<u32> {
        if self.os != offered.os || !self.takes_build_of(offered) {
            return None;
        }
        let wanted = self.served_by();
        let place = wanted.iter().position(|(architecture, variant)| {
            *architecture == offered.architecture && *variant == offered.variant
        })?;
        u32::try_from(place).ok()
    }

    /// Architectures and variants that run on this platform, best first.
    fn served_by(&self) -> Vec<(&str, String)> {
        let architecture = self.architecture.as_str();
        let mut order = vec![(architecture, self.variant.clone())];
        match architecture {
            "amd64" => {
                let level = number(&self.variant).unwrap_or(1);
                order.extend((2..level).rev().map(|n| ("amd64", format!("v{n}"))));
                if level > 1 {
                    order.push(("amd64", String::new()));
                }
                order.push(("386", String::new()));
            }
            "arm" => {
                let version = number(&self.variant).unwrap_or(5);
                order.extend((5..version).rev().map(|n| ("arm", format!("v{n}"))));
            }
            "arm64" => {
                if let Some((major, minor)) = arm64_version(&self.variant) {
                    if major == 9 {
                        order.extend((1..minor).rev().map(|n| ("arm64", format!("v9.{n}"))));
                        if minor > 0 {
                            order.push(("arm64", "v9".to_owned()));
                        }
                    }
                    // Armv9.x contains Armv8.(x+5).
                    let v8 = if major == 9 { minor + 6 } else { minor };
                    order.extend((1..v8).rev().map(|n| ("arm64", format!("v8.{n}"))));
                    if v8 > 0 {
                        order.push(("arm64", String::new()));
                    }
                }
                order.extend((5..=8).rev().map(|n| ("arm", format!("v{n}"))));
            }
            _ => {}
        }
        order
    }

    fn takes_build_of(&self, offered: &Platform) -> bool {
        let build = |version: &'_ str| {
            version
                .splitn(4, '.')
                .take(3)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        self.os != "windows"
            || self.os_version.is_empty()
            || offered.os_version.is_empty()
            || build(&self.os_version) == build(&offered.os_version)
    }
}

/// Other names of an architecture, and variants that say nothing beyond it.
fn normalise(architecture: String, variant: String) -> (String, String) {
    let pair = |architecture: &str, variant: &str| (architecture.to_owned(), variant.to_owned());
    match (architecture.as_str(), variant.as_str()) {
        ("i386" | "x86", _) => pair("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => pair("amd64", ""),
        ("x86_64" | "x86-64", other) => pair("amd64", other),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => pair("arm64", ""),
        ("aarch64" | "arm64", "9" | "v9.0") => pair("arm64", "v9"),
        ("aarch64", other) => pair("arm64", other),
        ("armhf", _) => pair("arm", "v7"),
        ("armel", _) => pair("arm", "v6"),
        ("arm", "" | "7") => pair("arm", "v7"),
        ("arm", "5" | "6" | "8") => ("arm".to_owned(), format!("v{variant}")),
        ("ppc64el" | "powerpc64le", variant) => pair("ppc64le", variant),
        _ => (architecture, variant),
    }
}

/// `v3` is 3. Capped, since the variant comes from outside and sizes a list.
fn number(variant: &str) -> Option<u32> {
    variant.strip_prefix('v')?.parse().ok().filter(|n| *n <= 99)
}

/// Major and minor of an arm64 variant; no variant is v8.
fn arm64_version(variant: &str) -> Option<(u32, u32)> {
    if variant.is_empty() {
        return Some((8, 0));
    }
    let (major, minor) = match variant.split_once('.') {
        Some((major, minor)) => (major, minor.parse().ok().filter(|n| *n <= 9)?),
        None => (variant, 0),
    };
    number(major)
        .filter(|major| matches!(major, 8 | 9))
        .map(|major| (major, minor))
}

/// Operating systems that a single word may name (Go's list, as in containerd).
const SYSTEMS: [&str; 16] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
];
/// Architectures that a single word may name (Go's list, as in containerd).
const ARCHITECTURES: [&str; 23] = [
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "loong64",
    "mips",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "mipsle",
    "ppc",
    "ppc64",
    "ppc64le",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc64",
    "wasm",
];

impl FromStr for Platform {
    type Err = PlatformError;
    /// `os/architecture[/variant]`, or one word that is either, completed from the host.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |reason| PlatformError {
            text: excerpt(text),
            reason,
        };
        let mut parts = text.split('/');
        let (first, second, third) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        if parts.next().is_some() {
            return Err(refuse("it has more than three parts"));
        }
        for part in [Some(first), second, third].into_iter().flatten() {
            if part.is_empty() {
                return Err(refuse("it has an empty part"));
            }
            if part.len() > 64
                || !part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
            {
                return Err(refuse(
                    "a part is up to 64 letters, digits, '.', '-' and '_'",
                ));
            }
        }
        if let Some(architecture) = second {
            return Ok(Platform::new(
                first,
                architecture,
                third.unwrap_or_default(),
            ));
        }
        let host = Platform::host();
        let as_system = Platform::new(first, &host.architecture, &host.variant);
        if SYSTEMS.contains(&as_system.os.as_str()) {
            return Ok(as_system);
        }
        let as_architecture = Platform::new(&host.os, first, "");
        if ARCHITECTURES.contains(&as_architecture.architecture.as_str()) {
            return Ok(as_architecture);
        }
        Err(refuse(
            "it is no operating system or architecture known here",
        ))
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
    use proptest::prelude::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn parses_and_normalises() {
        let host = Platform::host();
        for (text, want) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("Linux/X86_64", "linux/amd64"),
            ("linux/x86-64/v2", "linux/amd64/v2"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/8", "linux/arm64"),
            ("linux/arm64/v8.2", "linux/arm64/v8.2"),
            ("linux/arm64/v9.0", "linux/arm64/v9"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/7", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/i386", "linux/386"),
            ("linux/ppc64el", "linux/ppc64le"),
            ("linux/s390x", "linux/s390x"),
            ("macos/arm64", "darwin/arm64"),
            ("wasi/wasm", "wasi/wasm"),
        ] {
            assert_eq!(platform(text).to_string(), want, "{text}");
        }
        assert_eq!(platform("linux").architecture, host.architecture);
        assert_eq!(platform("arm64"), Platform::new(&host.os, "arm64", "v8"));
        assert_eq!(platform("x86_64"), Platform::new(&host.os, "amd64", ""));
        assert_eq!(host.to_string().parse::<Platform>().unwrap(), host);
    }

    #[test]
    fn refuses_with_a_reason() {
        for (text, reason) in [
            ("", "empty part"),
            ("/", "empty part"),
            ("linux/", "empty part"),
            ("linux//v8", "empty part"),
            ("linux/arm64/v8/x", "more than three"),
            ("linux/arm 64", "letters"),
            ("z80", "known here"),
            ("*", "letters"),
        ] {
            let error = text.parse::<Platform>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }

    #[test]
    fn ranks_in_the_order_of_containerd() {
        for (wanted, order) in [
            ("linux/amd64", &["linux/amd64", "linux/386"][..]),
            (
                "linux/amd64/v3",
                &[
                    "linux/amd64/v3",
                    "linux/amd64/v2",
                    "linux/amd64",
                    "linux/386",
                ],
            ),
            (
                "linux/arm64",
                &[
                    "linux/arm64",
                    "linux/arm/v8",
                    "linux/arm/v7",
                    "linux/arm/v6",
                    "linux/arm/v5",
                ],
            ),
            (
                "linux/arm64/v8.2",
                &[
                    "linux/arm64/v8.2",
                    "linux/arm64/v8.1",
                    "linux/arm64/v8",
                    "linux/arm/v8",
                    "linux/arm/v5",
                ],
            ),
            (
                "linux/arm64/v9.1",
                &[
                    "linux/arm64/v9.1",
                    "linux/arm64/v9",
                    "linux/arm64/v8.6",
                    "linux/arm64/v8.5",
                    "linux/arm64/v8.1",
                    "linux/arm64",
                    "linux/arm/v8",
                    "linux/arm/v7",
                ],
            ),
            (
                "linux/arm64/v9",
                &["linux/arm64/v9", "linux/arm64/v8.5", "linux/arm64"],
            ),
            (
                "linux/arm/v7",
                &["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"],
            ),
            ("linux/arm/v5", &["linux/arm/v5"]),
            ("linux/riscv64", &["linux/riscv64"]),
        ] {
            let wanted = platform(wanted);
            let ranks: Vec<_> = order
                .iter()
                .map(|o| wanted.rank(&platform(o)).unwrap())
                .collect();
            assert_eq!(ranks.first(), Some(&0), "{wanted}");
            assert!(ranks.is_sorted_by(|a, b| a < b), "{wanted}: {ranks:?}");
        }
        for (wanted, offered) in [
            ("linux/amd64", "linux/amd64/v2"),
            ("linux/amd64", "windows/amd64"),
            ("linux/386", "linux/amd64"),
            ("linux/arm64", "linux/arm64/v9"),
            ("linux/arm/v6", "linux/arm/v7"),
            ("linux/arm/v7", "linux/arm64"),
            ("linux/s390x", "linux/amd64"),
        ] {
            assert_eq!(
                platform(wanted).rank(&platform(offered)),
                None,
                "{wanted} {offered}"
            );
        }
    }

    #[test]
    fn compares_the_build_on_windows_only() {
        let with = |os: &str, version: &str| Platform {
            os_version: version.into(),
            ..Platform::new(os, "amd64", "")
        };
        let node = with("windows", "10.0.20348.1");
        assert_eq!(node.rank(&with("windows", "10.0.20348.999")), Some(0));
        assert_eq!(node.rank(&with("windows", "")), Some(0));
        assert_eq!(node.rank(&with("windows", "10.0.17763.1")), None);
        assert_eq!(with("linux", "1").rank(&with("linux", "2")), Some(0));
    }

    proptest! {
        #[test]
        fn never_panics_and_reads_back(text in "[a-zA-Z0-9/._-]{0,24}|.{0,24}") {
            if let Ok(platform) = text.parse::<Platform>() {
                prop_assert_eq!(&platform.to_string().parse::<Platform>().unwrap(), &platform);
                prop_assert_eq!(platform.rank(&platform), Some(0));
            }
        }

        #[test]
        fn any_variant_has_a_short_order(
            architecture in "amd64|arm|arm64",
            variant in "v[0-9]{1,10}(\\.[0-9]{1,10})?|.{0,6}",
        ) {
            prop_assert!(Platform::new("linux", &architecture, &variant).served_by().len() < 120);
        }
    }
}
