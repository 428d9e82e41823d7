//! Times of day at which pulls may start. UTC, as specs write them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::k8s::api::{self, parse_duration};

const DAY: i64 = 86_400;
/// 1970-01-01 was a Thursday.
const FIRST_WEEKDAY: i64 = 3;
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// A window of the day, compiled.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Window {
    /// Seconds after midnight.
    start: u32,
    /// Seconds.
    duration: u32,
    /// Bit 0 is Monday.
    days: u8,
}

impl Window {
    /// Never open.
    pub(super) const NEVER: Window = Window {
        start: 0,
        duration: 0,
        days: 0,
    };

    /// Of a spec; the error is for people.
    pub(super) fn compile(window: &api::Window) -> Result<Self, String> {
        let start = start(&window.start).ok_or_else(|| {
            let text: String = window.start.chars().take(16).collect();
            format!("start {text:?} is no time of day: write HH:MM, such as 22:00")
        })?;
        let duration = parse_duration(&window.duration).map_err(|error| error.to_string())?;
        let duration = u32::try_from(duration.as_secs())
            .ok()
            .filter(|seconds| (1..=86_400).contains(seconds))
            .ok_or("duration is not between 1s and 24h")?;
        let mut days = 0u8;
        for day in &window.days {
            let at = DAYS.iter().position(|name| name == day).ok_or_else(|| {
                format!(
                    "{:?} is none of Mon to Sun",
                    day.chars().take(16).collect::<String>()
                )
            })?;
            days |= 1 << at;
        }
        if window.days.is_empty() {
            days = 0x7f;
        }
        Ok(Window {
            start,
            duration,
            days,
        })
    }

    /// Whether it is open.
    pub(super) fn open(&self, now: Timestamp) -> bool {
        let second = now.as_second();
        // A window that opened yesterday may be open still.
        [0, 1].into_iter().any(|days_ago| {
            let day = second.div_euclid(DAY) - days_ago;
            let opened = day * DAY + i64::from(self.start);
            self.opens_on(day) && (opened..opened + i64::from(self.duration)).contains(&second)
        })
    }

    /// When it opens next, if it is closed now and opens at all.
    pub(super) fn opens(&self, now: Timestamp) -> Option<Timestamp> {
        let second = now.as_second();
        let today = second.div_euclid(DAY);
        (today..=today + 7)
            .filter(|day| self.opens_on(*day))
            .map(|day| day * DAY + i64::from(self.start))
            .find(|opening| *opening > second)
            .and_then(|opening| Timestamp::from_second(opening).ok())
    }

    fn opens_on(&self, day: i64) -> bool {
        let weekday = (day + FIRST_WEEKDAY).rem_euclid(7);
        self.duration > 0 && self.days >> weekday & 1 == 1
    }
}

/// `HH:MM` in seconds.
fn start(text: &str) -> Option<u32> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn window(start: &str, duration: &str, days: &[&str]) -> Result<Window, String> {
        Window::compile(&api::Window {
            start: start.to_owned(),
            duration: duration.to_owned(),
            days: days.iter().map(|day| (*day).to_owned()).collect(),
        })
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn over_midnight_and_by_weekday() {
        // 2026-11-21 is a Saturday.
        let nights = window("22:00", "6h", &[]).unwrap();
        for (time, open) in [
            ("2026-11-21T21:59:59Z", false),
            ("2026-11-21T22:00:00Z", true),
            ("2026-11-22T03:59:59Z", true),
            ("2026-11-22T04:00:00Z", false),
        ] {
            assert_eq!(nights.open(at(time)), open, "{time}");
        }
        assert_eq!(
            nights.opens(at("2026-11-21T04:00:00Z")),
            Some(at("2026-11-21T22:00:00Z"))
        );
        let saturday = window("22:00", "6h", &["Sat"]).unwrap();
        assert!(saturday.open(at("2026-11-22T01:00:00Z")));
        assert!(!saturday.open(at("2026-11-22T23:00:00Z")));
        assert_eq!(
            saturday.opens(at("2026-11-22T23:00:00Z")),
            Some(at("2026-11-28T22:00:00Z"))
        );
        assert!(
            window("00:00", "24h", &[])
                .unwrap()
                .open(at("2026-11-22T23:00:00Z"))
        );
        assert!(!Window::NEVER.open(at("2026-11-22T23:00:00Z")));
        assert_eq!(Window::NEVER.opens(at("2026-11-22T23:00:00Z")), None);
    }

    #[test]
    fn says_what_is_wrong() {
        for (start, duration, days) in [
            ("24:00", "1h", &[][..]),
            ("9:00", "1h", &[]),
            ("09:60", "1h", &[]),
            ("+9:00", "1h", &[]),
            ("", "1h", &[]),
            ("09:00", "25h", &[]),
            ("09:00", "0s", &[]),
            ("09:00", "1d", &[]),
            ("09:00", "1h", &["Monday"]),
        ] {
            assert!(
                window(start, duration, days).is_err(),
                "{start} {duration} {days:?}"
            );
        }
    }
}
