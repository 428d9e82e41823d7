//! Durations as specs write them: `90s`, `5m`, `1h30m`.

use std::time::Duration;

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no duration: write whole hours, minutes and seconds, such as 1h30m")]
pub struct DurationError(String);

/// Parses one to three groups of up to six digits with `h`, `m` or `s`: `^([0-9]{1,6}(h|m|s)){1,3}$`, as the schema
/// has it. Groups add up, in any order.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let fault = || DurationError(text.chars().take(32).collect());
    let (mut total, mut number, mut digits, mut groups) = (0u64, 0u64, 0, 0);
    for c in text.chars() {
        match c {
            '0'..='9' if digits < 6 => {
                number = number * 10 + u64::from(c) - u64::from('0');
                digits += 1;
            }
            'h' | 'm' | 's' if digits > 0 && groups < 3 => {
                total += number
                    * match c {
                        'h' => 3600,
                        'm' => 60,
                        _ => 1,
                    };
                (number, digits) = (0, 0);
                groups += 1;
            }
            _ => return Err(fault()),
        }
    }
    if groups == 0 || digits > 0 {
        return Err(fault());
    }
    Ok(Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_schema_accepts() {
        for (text, seconds) in [
            ("90s", 90),
            ("5m", 300),
            ("1h30m", 5400),
            ("30m1h", 5400),
            ("1h1m1s", 3661),
            ("999999h", 3_599_996_400),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)));
        }
    }

    #[test]
    fn refuses_the_rest() {
        for text in [
            "", "5", "m", "1d", "1w", "P1D", "-5m", "1.5h", "5 m", "1h1m1s1s", "1000000s", "5m3",
            "ms",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
