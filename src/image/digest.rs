//! Content digests as the OCI image specification writes them: `algorithm:hex`.

use std::fmt;
use std::str::FromStr;

use ring::digest::{Context, SHA256, SHA512};
use serde::{Deserialize, Serialize};

use super::excerpt;

/// The hash of a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, 64 hex digits.
    Sha256,
    /// SHA-512, 128 hex digits.
    Sha512,
}

impl Algorithm {
    /// Length of a digest in hex digits.
    pub const fn hex_len(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

/// A verified-form content digest, such as `sha256:2c26…`. Lower-case hex of the right length.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

/// Digest of a layer's uncompressed tar.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(pub Digest);

/// Digest of an image's config: the identity of an image on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(pub Digest);

/// Computes a [`Digest`] over bytes as they stream by.
#[derive(Clone)]
pub struct Hasher {
    algorithm: Algorithm,
    // Twice as fast as the pure Rust crate where the processor has no SHA instructions.
    context: Context,
}

/// Why a string is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a digest: {reason}")]
pub struct DigestError {
    /// What was given, shortened.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl Digest {
    /// The hash function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
    /// Lower-case hex digits, without the algorithm.
    pub fn hex(&self) -> &str {
        &self.hex
    }
    /// SHA-256 of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::of(Algorithm::Sha256, bytes)
    }
    /// Digest of `bytes` by any algorithm.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }
}

impl Hasher {
    /// A hasher of nothing yet.
    pub fn new(algorithm: Algorithm) -> Self {
        let context = Context::new(match algorithm {
            Algorithm::Sha256 => &SHA256,
            Algorithm::Sha512 => &SHA512,
        });
        Hasher { algorithm, context }
    }
    /// Hashes `bytes` too.
    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }
    /// The digest of all bytes given.
    pub fn finish(self) -> Digest {
        Digest {
            algorithm: self.algorithm,
            hex: hex::encode(self.context.finish()).into_boxed_str(),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hasher({})", self.algorithm)
    }
}

impl FromStr for Digest {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |reason| DigestError {
            text: excerpt(text),
            reason,
        };
        let (algorithm, hex) = text
            .split_once(':')
            .ok_or_else(|| refuse("it has no algorithm; write sha256: and 64 hex digits"))?;
        let algorithm = match algorithm {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(refuse("the algorithm must be sha256 or sha512")),
        };
        if hex.len() != algorithm.hex_len() {
            return Err(refuse(match algorithm {
                Algorithm::Sha256 => "sha256 has exactly 64 hex digits",
                Algorithm::Sha512 => "sha512 has exactly 128 hex digits",
            }));
        }
        if !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(refuse(
                "only the hex digits 0-9 and a-f in lower case may follow the algorithm",
            ));
        }
        Ok(Digest {
            algorithm,
            hex: hex.into(),
        })
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm, self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ABC_256: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const ABC_512: &str = "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                           2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";

    #[test]
    fn hashes_the_published_vectors_in_any_split() {
        for (algorithm, want) in [
            (Algorithm::Sha256, format!("sha256:{ABC_256}")),
            (Algorithm::Sha512, format!("sha512:{ABC_512}")),
        ] {
            let mut hasher = Hasher::new(algorithm);
            hasher.update(b"a");
            hasher.update(b"");
            hasher.update(b"bc");
            let digest = hasher.finish();
            assert_eq!(digest.to_string(), want);
            assert_eq!(digest.algorithm(), algorithm);
            assert_eq!(want.parse::<Digest>().unwrap(), digest);
        }
        assert_eq!(Digest::sha256(b"abc").hex(), ABC_256);
    }

    #[test]
    fn refuses_what_is_no_digest() {
        let upper = ABC_256.to_uppercase();
        for (text, reason) in [
            (String::new(), "no algorithm"),
            (ABC_256.to_string(), "no algorithm"),
            (format!("sha1:{ABC_256}"), "sha256 or sha512"),
            (format!("SHA256:{ABC_256}"), "sha256 or sha512"),
            (format!("sha256:{upper}"), "lower case"),
            (format!("sha256:{ABC_256}0"), "exactly 64"),
            ("sha256:".to_string(), "exactly 64"),
            (format!("sha512:{ABC_256}"), "exactly 128"),
            (format!("sha256:{}", "g".repeat(64)), "hex digits"),
            (format!("sha256: {}", &ABC_256[1..]), "hex digits"),
        ] {
            let error = text.parse::<Digest>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn an_error_quotes_only_the_start_of_a_long_text() {
        let error = "x".repeat(1 << 20).parse::<Digest>().unwrap_err();
        assert!(error.to_string().len() < 300);
    }

    #[test]
    fn is_a_string_in_json() {
        let id = ImageId(Digest::sha256(b"abc"));
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"sha256:{ABC_256}\""));
        assert_eq!(serde_json::from_str::<ImageId>(&json).unwrap(), id);
        assert!(serde_json::from_str::<DiffId>("\"sha256:12\"").is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,160}") {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }

        #[test]
        fn reads_back_what_it_writes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let digest = Digest::sha256(&bytes);
            prop_assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        }
    }
}
