//! A number of nodes, or a share of them.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// `3` or `10%`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum IntOrPercent {
    /// So many nodes.
    Int(i64),
    /// A whole number with a percent sign.
    Percent(String),
}

/// Why a value is neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a number from 1 to 100000 nor a percentage from 1% to 100%")]
pub struct PercentError(String);

impl IntOrPercent {
    /// How many of `nodes`: percentages are rounded up, and it is at least one, so that small clusters move. Zero
    /// nodes give zero.
    pub fn of(&self, nodes: u64) -> Result<u64, PercentError> {
        let fault = || PercentError(self.to_string().chars().take(16).collect());
        match self {
            IntOrPercent::Int(number) => match u64::try_from(*number) {
                Ok(number @ 1..=100_000) => Ok(number.min(nodes)),
                _ => Err(fault()),
            },
            IntOrPercent::Percent(text) => {
                let digits = text.strip_suffix('%').ok_or_else(fault)?;
                let plain = !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
                match digits.parse::<u64>() {
                    Ok(percent @ 1..=100) if plain => {
                        Ok(nodes.saturating_mul(percent).div_ceil(100))
                    }
                    _ => Err(fault()),
                }
            }
        }
    }
}

impl std::fmt::Display for IntOrPercent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            IntOrPercent::Int(number) => number.fmt(f),
            IntOrPercent::Percent(text) => f.write_str(text),
        }
    }
}

impl JsonSchema for IntOrPercent {
    fn schema_name() -> Cow<'static, str> {
        "IntOrPercent".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "maxLength": 4,
            "x-kubernetes-validations": [{
                "rule": "type(self) == int ? self >= 1 && self <= 100000 : self.matches('^(100|[1-9][0-9]?)%$')",
                "message": "must be a number of nodes from 1 to 100000, or a percentage from 1% to 100%",
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percent(text: &str) -> IntOrPercent {
        IntOrPercent::Percent(text.to_owned())
    }

    #[test]
    fn counts_nodes() {
        assert_eq!(IntOrPercent::Int(3).of(10), Ok(3));
        assert_eq!(IntOrPercent::Int(30).of(10), Ok(10));
        assert_eq!(percent("10%").of(12), Ok(2));
        assert_eq!(percent("1%").of(3), Ok(1));
        assert_eq!(percent("100%").of(7), Ok(7));
        assert_eq!(percent("10%").of(0), Ok(0));
    }

    #[test]
    fn refuses_what_the_schema_refuses() {
        for wrong in ["0%", "101%", "10", "%", "01%", "+5%", "-1%", "1.5%"] {
            assert!(percent(wrong).of(10).is_err(), "{wrong}");
        }
        for wrong in [0, -1, 100_001, i64::MAX] {
            assert!(IntOrPercent::Int(wrong).of(10).is_err(), "{wrong}");
        }
    }
}
