//! Bytes, or a share of a file system.

use serde::{Deserialize, Serialize};

/// `1000`, `20Gi` or `15%`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Amount {
    /// Bytes.
    Bytes(i64),
    /// A quantity of bytes (`20Gi`), or a percentage (`15%`).
    Text(String),
}

/// Why a value is neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither bytes above 0, such as 20Gi, nor a share from 1% to 100%")]
pub struct AmountError(String);

impl Amount {
    /// Bytes, where the file system has `capacity` bytes. Fractions of a byte count as a whole one; what does not fit
    /// is as much as there can be.
    pub fn of(&self, capacity: u64) -> Result<u64, AmountError> {
        let bytes = match self {
            Amount::Bytes(bytes) => u64::try_from(*bytes).ok(),
            Amount::Text(text) => match text.strip_suffix('%') {
                Some(digits) => percent(digits).map(|percent| {
                    let bytes = u128::from(capacity) * percent / 100;
                    u64::try_from(bytes).unwrap_or(u64::MAX).max(1)
                }),
                None => quantity(text),
            },
        };
        bytes.filter(|bytes| *bytes > 0).ok_or_else(|| {
            let text = match self {
                Amount::Bytes(bytes) => bytes.to_string(),
                Amount::Text(text) => text.chars().take(32).collect(),
            };
            AmountError(text)
        })
    }
}

fn percent(digits: &str) -> Option<u128> {
    let plain = !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
    let percent = digits.parse().ok()?;
    (plain && (1..=100).contains(&percent)).then_some(percent)
}

/// As Kubernetes writes quantities, without exponents and without units below one.
fn quantity(text: &str) -> Option<u64> {
    let end = text
        .find(|c: char| c != '.' && !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    let unit: u128 = match unit {
        "" => 1,
        "k" => 1000,
        "M" => 1000u128.pow(2),
        "G" => 1000u128.pow(3),
        "T" => 1000u128.pow(4),
        "P" => 1000u128.pow(5),
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        _ => return None,
    };
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) if (1..=3).contains(&fraction.len()) => (whole, fraction),
        Some(_) => return None,
        None => (number, ""),
    };
    if !(1..=15).contains(&whole.len()) {
        return None;
    }
    // At most 15 and 3 digits, so nothing overflows.
    let thousandths: u128 = format!("{whole}{fraction:0<3}").parse().ok()?;
    let bytes = (thousandths * unit).div_ceil(1000);
    Some(u64::try_from(bytes).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Result<u64, AmountError> {
        Amount::Text(text.to_owned()).of(1 << 40)
    }

    #[test]
    fn reads_bytes_and_shares() {
        assert_eq!(Amount::Bytes(5).of(0), Ok(5));
        for (given, bytes) in [
            ("1", 1),
            ("5k", 5000),
            ("20Gi", 20 << 30),
            ("0.5Ki", 512),
            ("1.001k", 1001),
            ("0.001", 1),
            ("15%", (1u64 << 40) * 15 / 100),
            ("100%", 1 << 40),
            ("999999999999999P", u64::MAX),
        ] {
            assert_eq!(text(given), Ok(bytes), "{given}");
        }
    }

    #[test]
    fn refuses_the_rest() {
        for wrong in [
            "",
            "0",
            "0%",
            "101%",
            "5%%",
            "-5",
            "+5",
            ".5",
            "5.",
            "1e9",
            "100m",
            "5gi",
            "5 Gi",
            "0.000Gi",
            "1.2.3",
            "1.0001",
            "01%",
            "Gi",
            "1000000000000000",
            "٣",
        ] {
            assert!(text(wrong).is_err(), "{wrong}");
        }
        for wrong in [0, -1, i64::MIN] {
            assert!(Amount::Bytes(wrong).of(10).is_err(), "{wrong}");
        }
    }
}
