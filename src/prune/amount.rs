//! Bytes, or a share of a file system.

use std::fmt;

/// How much of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Bytes.
    Bytes(u64),
    /// Hundredths of the file system's size; more than 100 is as much as 100.
    Percent(u8),
}

impl Amount {
    /// Whether the size of the file system matters.
    pub fn is_share(self) -> bool {
        matches!(self, Amount::Percent(_))
    }

    /// Bytes, where the file system has `capacity` bytes.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Amount::Bytes(bytes) => bytes,
            Amount::Percent(percent) => {
                let bytes = u128::from(capacity) * u128::from(percent.min(100)) / 100;
                u64::try_from(bytes).unwrap_or(capacity)
            }
        }
    }
}

/// `15%`, `20Gi`, `1500`: the largest binary unit that leaves a whole number.
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = match self {
            Amount::Percent(percent) => return write!(f, "{percent}%"),
            Amount::Bytes(bytes) => *bytes,
        };
        for (shift, unit) in [(40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")] {
            if bytes > 0 && bytes.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", bytes >> shift);
            }
        }
        write!(f, "{bytes}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_whole_and_never_more() {
        assert_eq!(Amount::Percent(15).of(200), 30);
        assert_eq!(Amount::Percent(255).of(200), 200);
        assert_eq!(Amount::Percent(100).of(u64::MAX), u64::MAX);
        assert_eq!(Amount::Bytes(7).of(0), 7);
    }

    #[test]
    fn are_written_as_people_write_them() {
        for (amount, text) in [
            (Amount::Bytes(0), "0"),
            (Amount::Bytes(1500), "1500"),
            (Amount::Bytes(20 << 30), "20Gi"),
            (Amount::Bytes(3 << 39), "1536Gi"),
            (Amount::Percent(15), "15%"),
        ] {
            assert_eq!(amount.to_string(), text);
        }
    }
}
