//! How rules, times and sizes are worded in a plan.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;

use super::words::{Candidate, Disk, Protection, Rule};

/// The rule as its policy writes it, such as `unusedFor 24h, keepLast 2`.
pub(super) fn rule(rule: &Rule) -> String {
    let mut parts = Vec::new();
    if let Some(unused) = rule.unused_for {
        parts.push(format!("unusedFor {}", exact(unused)));
    }
    if let Some(keep) = rule.keep_last {
        parts.push(format!("keepLast {keep}"));
    }
    if let Some(most) = rule.max_used {
        parts.push(format!("maxUsedBytes {most}"));
    }
    if let Some(least) = rule.min_free {
        parts.push(format!("minFree {least}"));
    }
    if let Some(band) = rule.reserved {
        parts.push(format!("reserved {band}"));
    }
    parts.join(", ")
}

/// Why a rule selects an image.
pub(super) fn selected(
    rule: &Rule,
    image: &Candidate,
    repositories: &[&str],
    disk: &Disk,
    now: Timestamp,
) -> String {
    let mut text = idle(image, now);
    if let Some(keep) = rule.keep_last {
        let _ = match repositories {
            [] => write!(text, ", and in no repository"),
            [one] => write!(text, ", and not among the newest {keep} of {one}"),
            [one, rest @ ..] => write!(
                text,
                ", and not among the newest {keep} of {one} and {} more",
                rest.len()
            ),
        };
    }
    let left = disk.available;
    if let Some(least) = rule.min_free
        && least.of(disk.capacity) > left
    {
        let _ = write!(
            text,
            "; {} of {} are free, and {} must be",
            size(left),
            size(disk.capacity),
            size(least.of(disk.capacity)),
        );
    }
    if let Some(most) = rule.max_used
        && most.of(disk.capacity) < disk.images
    {
        let _ = write!(
            text,
            "; images use {}, and may use {}",
            size(disk.images),
            size(most.of(disk.capacity)),
        );
    }
    text
}

/// How long an image was not used.
pub(super) fn idle(image: &Candidate, now: Timestamp) -> String {
    let unused = about(image.unused(now));
    if image.last_used.is_some() {
        format!("not used for {unused}")
    } else {
        format!("not used since it was pulled {unused} ago")
    }
}

/// Why a protected image stays.
pub(super) fn protection(protection: &Protection) -> String {
    match protection {
        Protection::InUse { by } => format!("in use by {by}"),
        Protection::Pinned => "pinned".to_owned(),
        Protection::Declared { by, .. } => format!("declared by {by}"),
        Protection::Sandbox => "the runtime starts each pod with it".to_owned(),
        Protection::Mounted => "mounted".to_owned(),
        Protection::Leased => "held by a pull or another lease".to_owned(),
        Protection::Grace { until } => format!("pulled a short while ago; protected until {until}"),
    }
}

/// All of it: `36h`, `1h30m`, `90s` becomes `1m30s`.
pub(super) fn exact(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let mut text = String::new();
    for (count, unit) in [
        (seconds / 3600, 'h'),
        (seconds / 60 % 60, 'm'),
        (seconds % 60, 's'),
    ] {
        if count > 0 {
            let _ = write!(text, "{count}{unit}");
        }
    }
    if text.is_empty() {
        text.push_str("0s");
    }
    text
}

/// One unit is enough for people.
pub(super) fn about(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..7200 => format!("{}m", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// Bytes for people: three digits at most, in powers of 1000 as disks are sold and `df -H` counts.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "kB", "MB", "GB", "TB", "PB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    if unit == "B" || value >= 99.95 {
        format!("{value:.0} {unit}")
    } else {
        format!("{value:.1} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::amount::Amount;
    use super::*;

    #[test]
    fn rules_read_as_they_are_written() {
        let all = Rule {
            unused_for: Some(Duration::from_secs(86_400)),
            keep_last: Some(2),
            max_used: Some(Amount::Bytes(100 << 30)),
            min_free: Some(Amount::Percent(15)),
            reserved: Some(Amount::Bytes(5000)),
            ..Rule::default()
        };
        assert_eq!(
            rule(&all),
            "unusedFor 24h, keepLast 2, maxUsedBytes 100Gi, minFree 15%, reserved 5000"
        );
    }

    #[test]
    fn times_and_sizes() {
        for (seconds, whole, short) in [
            (0, "0s", "0s"),
            (90, "1m30s", "1m"),
            (5400, "1h30m", "90m"),
            (86_400, "24h", "24h"),
            (864_000, "240h", "10d"),
        ] {
            let duration = Duration::from_secs(seconds);
            assert_eq!(exact(duration), whole);
            assert_eq!(about(duration), short);
        }
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_949, "1.0 MB"),
            (1_500_000_000, "1.5 GB"),
            (u64::MAX, "18447 PB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
