//! Whether a failed request is tried again, and when: a pure decision.

use std::time::Duration;

use http::StatusCode;

/// What went wrong with one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// No answer.
    Transport,
    /// An answer, and how long it asks to wait.
    Status(StatusCode, Option<Duration>),
}

/// Bounds of trying.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) attempts: u32,
    pub(super) max_retry_after: Duration,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// Again, after waiting.
    After(Duration),
    /// The error counts.
    GiveUp,
}

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// Decides after the `attempt`-th attempt (from 1) failed. `jitter` is a random number from 0 to 1: nodes that failed
/// together must not come back together.
pub(super) fn decide(attempt: u32, failure: Failure, limits: Limits, jitter: f64) -> Retry {
    if attempt >= limits.attempts {
        return Retry::GiveUp;
    }
    let backoff = || {
        let doubled = FIRST.saturating_mul(1 << (attempt.saturating_sub(1)).min(16));
        doubled
            .min(LONGEST)
            .mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    };
    match failure {
        Failure::Transport => Retry::After(backoff()),
        Failure::Status(
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE,
            Some(wait),
        ) => {
            // A little later than asked, so that not all ask again at the same moment.
            if wait > limits.max_retry_after {
                Retry::GiveUp
            } else {
                Retry::After(wait + wait.mul_f64(jitter.clamp(0.0, 1.0) / 10.0))
            }
        }
        Failure::Status(status, _)
            if status.is_server_error()
                || status == StatusCode::TOO_MANY_REQUESTS
                || status == StatusCode::REQUEST_TIMEOUT =>
        {
            Retry::After(backoff())
        }
        Failure::Status(..) => Retry::GiveUp,
    }
}

/// Reads a `Retry-After` header (RFC 9110, 10.2.3): seconds, or a date compared with `now` (seconds since the epoch).
pub(super) fn retry_after(value: &str, now: i64) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(value)
        .ok()?;
    let seconds = date.as_second().saturating_sub(now);
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        attempts: 5,
        max_retry_after: Duration::from_secs(60),
    };

    #[test]
    fn decides() {
        let status = |code: u16, wait: Option<u64>| {
            Failure::Status(
                StatusCode::from_u16(code).unwrap(),
                wait.map(Duration::from_secs),
            )
        };
        let ms = |n| Retry::After(Duration::from_millis(n));
        for (attempt, failure, wanted) in [
            (1, Failure::Transport, ms(50)),
            (2, Failure::Transport, ms(100)),
            (4, Failure::Transport, ms(400)),
            (5, Failure::Transport, Retry::GiveUp),
            (1, status(429, Some(3)), ms(3000)),
            (1, status(503, Some(3)), ms(3000)),
            (1, status(429, Some(61)), Retry::GiveUp),
            (1, status(429, None), ms(50)),
            (1, status(500, Some(3)), ms(50)),
            (1, status(408, None), ms(50)),
            (1, status(401, None), Retry::GiveUp),
            (1, status(403, None), Retry::GiveUp),
            (1, status(404, None), Retry::GiveUp),
        ] {
            assert_eq!(
                decide(attempt, failure, LIMITS, 0.0),
                wanted,
                "{attempt} {failure:?}"
            );
        }
        assert!(
            matches!(decide(40, Failure::Transport, Limits { attempts: 99, ..LIMITS }, 1.0), Retry::After(d) if d <= LONGEST)
        );
    }

    #[test]
    fn reads_retry_after() {
        let now = 1_445_412_480; // Wed, 21 Oct 2015 07:28:00 GMT
        for (text, seconds) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Wed, 21 Oct 2015 07:29:00 GMT", Some(60)),
            ("Wed, 21 Oct 2015 07:27:00 GMT", Some(0)),
            ("soon", None),
            ("-5", None),
        ] {
            assert_eq!(
                retry_after(text, now),
                seconds.map(Duration::from_secs),
                "{text}"
            );
        }
    }
}
