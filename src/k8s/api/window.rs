//! Times of day, in UTC: whether a window is open, and until when that stays so.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::duration::parse_duration;
use super::prepull::Window;

const DAY: i64 = 86_400;
/// As the schema has it, in seconds.
const SHORTEST: u32 = 60;
const LONGEST: u32 = 86_400;
/// 1970-01-01 was a Thursday.
const FIRST_WEEKDAY: i64 = 3;
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const EVERY_DAY: u8 = 0x7f;

/// Why a window is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("window: {0}")]
pub struct WindowError(String);

/// Whether a window is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Open, until then; `None` for ever.
    Open(Option<Timestamp>),
    /// Closed, until then; `None` for ever.
    Closed(Option<Timestamp>),
}

/// A window that makes sense.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct TimeWindow {
    /// Seconds after midnight.
    start: u32,
    /// Seconds.
    duration: u32,
    /// Bit 0 is Monday.
    days: u8,
}

impl TimeWindow {
    /// Never open.
    pub const NEVER: TimeWindow = TimeWindow {
        start: 0,
        duration: 0,
        days: 0,
    };

    /// Of a spec; refuses what the schema refuses.
    pub fn new(window: &Window) -> Result<Self, WindowError> {
        let start = parse_start(&window.start).ok_or_else(|| {
            let text = excerpt(&window.start);
            WindowError(format!(
                "start {text:?} is no time of day: write hours and minutes, such as 22:00"
            ))
        })?;
        let duration = parse_duration(&window.duration)
            .map_err(|error| WindowError(format!("duration {error}")))?;
        let duration = u32::try_from(duration.as_secs())
            .ok()
            .filter(|seconds| (SHORTEST..=LONGEST).contains(seconds))
            .ok_or_else(|| {
                let text = excerpt(&window.duration);
                WindowError(format!("duration {text:?} is not between 1m and 24h"))
            })?;
        let mut days = 0;
        for day in &window.days {
            let bit = DAYS.iter().position(|name| name == day).ok_or_else(|| {
                let text = excerpt(day);
                WindowError(format!(
                    "{text:?} is no day: write Mon, Tue, Wed, Thu, Fri, Sat or Sun"
                ))
            })?;
            days |= 1 << bit;
        }
        if window.days.is_empty() {
            days = EVERY_DAY;
        }
        Ok(TimeWindow {
            start,
            duration,
            days,
        })
    }

    /// Whether it is open, and until when. Where it opens again before it closes, it counts as open all the time.
    pub fn opening(&self, now: Timestamp) -> Opening {
        if self.days & EVERY_DAY == 0 || self.duration == 0 {
            return Opening::Closed(None);
        }
        if self.days & EVERY_DAY == EVERY_DAY && self.duration == LONGEST {
            return Opening::Open(None);
        }
        let second = now.as_second();
        let today = second.div_euclid(DAY);
        let mut open_until: Option<i64> = None;
        // Yesterday's may be open still; a week ahead there is one for each choice of days.
        for day in (today - 1..=today + 8).filter(|day| self.opens_on(*day)) {
            let opens = day * DAY + i64::from(self.start);
            let closes = opens + i64::from(self.duration);
            match open_until {
                Some(until) if opens > until => break,
                None if opens > second => return Opening::Closed(at(opens)),
                _ if closes > second => open_until = Some(closes),
                _ => {}
            }
        }
        Opening::Open(open_until.and_then(at))
    }

    /// Whether it is open.
    pub fn is_open(&self, now: Timestamp) -> bool {
        matches!(self.opening(now), Opening::Open(_))
    }

    fn opens_on(&self, day: i64) -> bool {
        let weekday = (day + FIRST_WEEKDAY).rem_euclid(7);
        self.days >> weekday & 1 == 1
    }
}

fn at(second: i64) -> Option<Timestamp> {
    Timestamp::from_second(second).ok()
}

/// `HH:MM` in seconds.
fn parse_start(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let two = |digits: &str, most: u32| {
        let plain = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit());
        digits
            .parse::<u32>()
            .ok()
            .filter(|number| plain && *number <= most)
    };
    Some(two(hours, 23)? * 3600 + two(minutes, 59)? * 60)
}

fn excerpt(text: &str) -> String {
    text.chars().take(16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(start: &str, duration: &str, days: &[&str]) -> Result<TimeWindow, WindowError> {
        TimeWindow::new(&Window {
            start: start.to_owned(),
            duration: duration.to_owned(),
            days: days.iter().map(|day| (*day).to_owned()).collect(),
        })
    }

    #[test]
    fn opens_and_closes() {
        // 2026-11-21 is a Saturday.
        let open = |text: &str| Opening::Open(Some(text.parse().unwrap()));
        let closed = |text: &str| Opening::Closed(Some(text.parse().unwrap()));
        for (start, duration, days, now, opening) in [
            (
                "22:00",
                "6h",
                &[][..],
                "2026-11-21T21:59:59.9Z",
                closed("2026-11-21T22:00:00Z"),
            ),
            (
                "22:00",
                "6h",
                &[],
                "2026-11-21T22:00:00Z",
                open("2026-11-22T04:00:00Z"),
            ),
            (
                "22:00",
                "6h",
                &[],
                "2026-11-22T03:59:59.9Z",
                open("2026-11-22T04:00:00Z"),
            ),
            (
                "22:00",
                "6h",
                &[],
                "2026-11-22T04:00:00Z",
                closed("2026-11-22T22:00:00Z"),
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
                open("2026-11-22T04:00:00Z"),
            ),
            (
                "22:00",
                "6h",
                &["Sun"],
                "2026-11-22T03:00:00Z",
                closed("2026-11-22T22:00:00Z"),
            ),
            (
                "22:00",
                "6h",
                &["Mon"],
                "2026-11-21T22:00:00Z",
                closed("2026-11-23T22:00:00Z"),
            ),
            (
                "22:00",
                "6h",
                &["Sat"],
                "2026-11-22T05:00:00Z",
                closed("2026-11-28T22:00:00Z"),
            ),
            (
                "00:00",
                "24h",
                &["Sat", "Sun"],
                "2026-11-21T12:00:00Z",
                open("2026-11-23T00:00:00Z"),
            ),
            (
                "12:00",
                "24h",
                &["Fri", "Sat"],
                "2026-11-21T08:00:00Z",
                open("2026-11-22T12:00:00Z"),
            ),
        ] {
            let now: Timestamp = now.parse().unwrap();
            let window = window(start, duration, days).unwrap();
            assert_eq!(
                window.opening(now),
                opening,
                "{start} {duration} {days:?} {now}"
            );
            assert_eq!(window.is_open(now), matches!(opening, Opening::Open(_)));
        }
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(TimeWindow::NEVER.opening(now), Opening::Closed(None));
    }

    #[test]
    fn refuses_what_the_schema_refuses() {
        for (start, duration, days) in [
            ("24:00", "1h", &[][..]),
            ("9:00", "1h", &[]),
            ("09:60", "1h", &[]),
            ("+9:00", "1h", &[]),
            ("", "1h", &[]),
            ("09:00", "24h1s", &[]),
            ("09:00", "59s", &[]),
            ("09:00", "0s", &[]),
            ("09:00", "1 hour", &[]),
            ("09:00", "1h", &["Monday"]),
        ] {
            assert!(
                window(start, duration, days).is_err(),
                "{start} {duration} {days:?}"
            );
        }
    }
}
