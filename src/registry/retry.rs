//! When a request is tried again: a pure decision.

use std::time::Duration;

/// What an attempt ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// No connection, or it was lost before an answer came.
    Connect,
    /// Connected, but no answer in time.
    Timeout,
    /// An answer with this status and, if given, the wait it asks for.
    Status(u16, Option<Duration>),
    /// What trying again cannot mend, such as a certificate that is not trusted.
    Permanent,
}

/// Bounds of trying again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Attempts in all.
    pub(super) attempts: u32,
    /// Longest `Retry-After` that is waited for.
    pub(super) max_retry_after: Duration,
    /// No attempt starts later than this after the first.
    pub(super) total: Duration,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// Try again after this time.
    After(Duration),
    /// The failure counts.
    GiveUp,
}

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(10);
/// A host that accepts and says nothing costs a whole timeout each time.
const SILENT_ATTEMPTS: u32 = 2;

/// Decides after attempt number `attempt` (the first is 1). `jitter` is within 0..1.
pub(super) fn decide(
    attempt: u32,
    failure: Failure,
    elapsed: Duration,
    limits: &Limits,
    jitter: f64,
) -> Retry {
    if attempt >= limits.attempts {
        return Retry::GiveUp;
    }
    let wait = match failure {
        Failure::Permanent => return Retry::GiveUp,
        Failure::Timeout if attempt >= SILENT_ATTEMPTS => return Retry::GiveUp,
        Failure::Connect | Failure::Timeout => backoff(attempt, jitter),
        Failure::Status(429 | 503, Some(asked)) => {
            if asked > limits.max_retry_after {
                return Retry::GiveUp;
            }
            // All clients were told the same time: spread them a little behind it.
            asked.saturating_add(FIRST.mul_f64(jitter.clamp(0.0, 1.0)))
        }
        Failure::Status(408 | 429 | 500 | 502 | 503 | 504, _) => backoff(attempt, jitter),
        Failure::Status(..) => return Retry::GiveUp,
    };
    if elapsed.saturating_add(wait) > limits.total {
        return Retry::GiveUp;
    }
    Retry::After(wait)
}

/// Doubles with each attempt, up to [`LONGEST`]; between half and the whole of it.
pub(super) fn backoff(attempt: u32, jitter: f64) -> Duration {
    let doubled = FIRST.saturating_mul(1_u32 << attempt.saturating_sub(1).min(10));
    doubled
        .min(LONGEST)
        .mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

/// `Retry-After`: seconds, or an HTTP date (RFC 9110 §10.2.3). `now` is in seconds since the epoch.
pub(super) fn retry_after(value: &str, now: i64) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than a u64 has is a long time.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let at = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(value)
        .ok()?
        .as_second();
    Some(Duration::from_secs(
        u64::try_from(at.saturating_sub(now)).unwrap_or(0),
    ))
}

/// A number within 0..1 to keep many nodes from trying at the same moment.
pub(super) fn jitter() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let drawn = std::hash::RandomState::new().build_hasher().finish() >> 40;
    f64::from(u32::try_from(drawn).unwrap_or(0)) / f64::from(1_u32 << 24)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        attempts: 5,
        max_retry_after: Duration::from_secs(60),
        total: Duration::from_secs(300),
    };

    fn after(attempt: u32, failure: Failure) -> Option<Duration> {
        match decide(attempt, failure, Duration::ZERO, &LIMITS, 1.0) {
            Retry::After(wait) => Some(wait),
            Retry::GiveUp => None,
        }
    }

    #[test]
    fn answers_that_mean_no_are_final() {
        for status in [400, 401, 403, 404, 405, 410, 416, 501] {
            assert_eq!(after(1, Failure::Status(status, None)), None, "{status}");
        }
        assert_eq!(after(1, Failure::Permanent), None);
    }

    #[test]
    fn trouble_is_tried_again_and_waits_longer_each_time() {
        for status in [408, 429, 500, 502, 503, 504] {
            assert_eq!(
                after(1, Failure::Status(status, None)),
                Some(Duration::from_millis(200)),
                "{status}"
            );
        }
        assert_eq!(after(3, Failure::Connect), Some(Duration::from_millis(800)));
        assert_eq!(after(5, Failure::Connect), None);
        assert_eq!(after(2, Failure::Timeout), None);
        assert_eq!(backoff(60, 1.0), LONGEST);
    }

    #[test]
    fn the_wait_asked_for_is_kept_up_to_the_limit() {
        let asked = |seconds| Failure::Status(429, Some(Duration::from_secs(seconds)));
        assert_eq!(after(1, asked(7)), Some(Duration::from_millis(7200)));
        assert_eq!(after(1, asked(61)), None);
        assert_eq!(
            decide(1, asked(7), Duration::from_secs(299), &LIMITS, 0.0),
            Retry::GiveUp
        );
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(retry_after(" 12 ", 0), Some(Duration::from_secs(12)));
        assert_eq!(
            retry_after("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_770),
            Some(Duration::from_secs(7))
        );
        assert_eq!(
            retry_after("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_800),
            Some(Duration::ZERO)
        );
        assert_eq!(
            retry_after("99999999999999999999999", 0),
            Some(Duration::from_secs(u64::MAX))
        );
        assert_eq!(retry_after("soon", 0), None);
        assert_eq!(retry_after("", 0), None);
    }

    #[test]
    fn jitter_stays_within_bounds() {
        for _ in 0..100 {
            assert!((0.0..1.0).contains(&jitter()));
        }
    }
}
