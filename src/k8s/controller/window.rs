//! Times of day at which a rollout lets nodes in. Pure.

use std::time::Duration;

use k8s_openapi::jiff::civil::{Time, Weekday};
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::k8s::api::{Window, parse_duration};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Whether a window is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// Open, for so long still; `None` for ever.
    Open(Option<Duration>),
    /// Closed, for so long still.
    Closed(Duration),
}

/// Why a window is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("window: {0}")]
pub(super) struct WindowError(String);

/// Whether the window is open now, in UTC.
pub(super) fn opening(window: &Window, now: Timestamp) -> Result<Opening, WindowError> {
    let start = parse_start(&window.start)?;
    let duration = parse_duration(&window.duration)
        .map_err(|error| WindowError(format!("duration {error}")))?
        .min(DAY);
    let days = window
        .days
        .iter()
        .map(|day| parse_day(day))
        .collect::<Result<Vec<_>, _>>()?;
    if duration == DAY && days.is_empty() {
        return Ok(Opening::Open(None));
    }
    let today = now.to_zoned(TimeZone::UTC).date();
    let mut open_for: Option<Duration> = None;
    // Yesterday's may still be open; a week ahead there is one for each choice of days.
    for ahead in -1..=8 {
        let Ok(date) = today.checked_add(SignedDuration::from_hours(24 * ahead)) else {
            continue;
        };
        if !days.is_empty() && !days.contains(&date.weekday()) {
            continue;
        }
        let Ok(opens) = date.to_datetime(start).to_zoned(TimeZone::UTC) else {
            continue;
        };
        let until = opens.timestamp().duration_since(now);
        if until > SignedDuration::ZERO {
            if open_for.is_some_and(|left| left < until.unsigned_abs()) || open_for.is_none() {
                return Ok(match open_for {
                    Some(left) => Opening::Open(Some(left)),
                    None => Opening::Closed(until.unsigned_abs()),
                });
            }
            // It opens again before it closes.
            open_for = Some(until.unsigned_abs() + duration);
        } else if until.unsigned_abs() < duration {
            let left = duration - until.unsigned_abs();
            open_for = Some(open_for.map_or(left, |other| other.max(left)));
        }
    }
    Ok(match open_for {
        Some(left) => Opening::Open(Some(left)),
        None => Opening::Closed(DAY),
    })
}

fn parse_start(text: &str) -> Result<Time, WindowError> {
    let fault = || {
        let text: String = text.chars().take(16).collect();
        WindowError(format!(
            "start {text:?} is no time of day: write hours and minutes, such as 22:00"
        ))
    };
    let (hour, minute) = text.split_once(':').ok_or_else(fault)?;
    let number = |text: &str| {
        let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<i8>().ok()).flatten()
    };
    let (hour, minute) = number(hour).zip(number(minute)).ok_or_else(fault)?;
    Time::new(hour, minute, 0, 0).map_err(|_| fault())
}

fn parse_day(text: &str) -> Result<Weekday, WindowError> {
    Ok(match text {
        "Mon" => Weekday::Monday,
        "Tue" => Weekday::Tuesday,
        "Wed" => Weekday::Wednesday,
        "Thu" => Weekday::Thursday,
        "Fri" => Weekday::Friday,
        "Sat" => Weekday::Saturday,
        "Sun" => Weekday::Sunday,
        other => {
            let other: String = other.chars().take(16).collect();
            return Err(WindowError(format!(
                "{other:?} is no day: write Mon, Tue, Wed, Thu, Fri, Sat or Sun"
            )));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(start: &str, duration: &str, days: &[&str]) -> Window {
        Window {
            start: start.to_owned(),
            duration: duration.to_owned(),
            days: days.iter().map(|day| (*day).to_owned()).collect(),
        }
    }

    fn hours(hours: u64) -> Duration {
        Duration::from_secs(hours * 3600)
    }

    #[test]
    fn opens_and_closes() {
        // 2026-11-21 is a Saturday.
        for (start, duration, days, now, opening) in [
            (
                "22:00",
                "6h",
                &[][..],
                "2026-11-21T21:00:00Z",
                Opening::Closed(hours(1)),
            ),
            (
                "22:00",
                "6h",
                &[],
                "2026-11-21T22:00:00Z",
                Opening::Open(Some(hours(6))),
            ),
            (
                "22:00",
                "6h",
                &[],
                "2026-11-22T03:00:00Z",
                Opening::Open(Some(hours(1))),
            ),
            (
                "22:00",
                "6h",
                &[],
                "2026-11-22T04:00:00Z",
                Opening::Closed(hours(18)),
            ),
            (
                "00:00",
                "24h",
                &[],
                "2026-11-22T04:00:00Z",
                Opening::Open(None),
            ),
            (
                "22:00",
                "6h",
                &["Sat"],
                "2026-11-22T03:00:00Z",
                Opening::Open(Some(hours(1))),
            ),
            (
                "22:00",
                "6h",
                &["Sun"],
                "2026-11-22T03:00:00Z",
                Opening::Closed(hours(19)),
            ),
            (
                "22:00",
                "6h",
                &["Mon"],
                "2026-11-21T22:00:00Z",
                Opening::Closed(hours(48)),
            ),
            (
                "22:00",
                "6h",
                &["Sat"],
                "2026-11-22T05:00:00Z",
                Opening::Closed(hours(6 * 24 + 17)),
            ),
            (
                "00:00",
                "24h",
                &["Sat", "Sun"],
                "2026-11-21T12:00:00Z",
                Opening::Open(Some(hours(36))),
            ),
        ] {
            let now: Timestamp = now.parse().unwrap();
            assert_eq!(
                super::opening(&window(start, duration, days), now),
                Ok(opening),
                "{start} {duration} {days:?} {now}"
            );
        }
    }

    #[test]
    fn refuses_what_is_no_window() {
        let now = Timestamp::UNIX_EPOCH;
        for (start, duration, days) in [
            ("24:00", "1h", &[][..]),
            ("1:00", "1h", &[]),
            ("+1:00", "1h", &[]),
            ("", "1h", &[]),
            ("10:00", "1 hour", &[]),
            ("10:00", "1h", &["Monday"]),
        ] {
            assert!(
                opening(&window(start, duration, days), now).is_err(),
                "{start}"
            );
        }
    }
}
