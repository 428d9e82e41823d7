//! Who leads: a Lease, judged by what this process saw of it.
//!
//! Clocks of other machines do not count. A lease has run out when its record did not change for its whole duration
//! by this process's own monotonic clock, so a clock that is minutes off neither steals a lease nor keeps one.

use std::time::Duration;

/// What a holder promises: it is renewed within this, or somebody else takes it. A waiting replica looks every
/// [`LOOK`], so a lease that was left behind is taken less than 15 s after its holder's end.
pub(super) const DURATION: Duration = Duration::from_secs(12);
/// How old its last renewal is when a holder renews.
pub(super) const RENEW_AFTER: Duration = Duration::from_millis(4500);
/// A holder that could not renew for so long stops acting, before another one may begin.
pub(super) const GIVE_UP_AFTER: Duration = Duration::from_secs(9);
/// Pause between two looks at somebody else's lease.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// A record may say what it likes; nobody waits longer than this for a holder that is gone.
const LONGEST: Duration = Duration::from_secs(60);

/// A Lease as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// Who holds it; empty when it was released.
    pub(super) holder: String,
    /// What the holder promised.
    pub(super) duration: Duration,
    /// Changes with each write of it.
    pub(super) version: String,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It is ours and fresh.
    Hold,
    /// Nobody holds it any more.
    Take,
    /// It is ours and should be written again.
    Renew,
    /// Somebody else holds it.
    Wait,
}

/// Decides from the record as last seen, how long it did not change while it was looked at, and who asks.
pub(super) fn decide(record: Option<&Record>, unchanged: Duration, me: &str) -> Decision {
    let Some(record) = record else {
        return Decision::Take;
    };
    if record.holder == me {
        return if unchanged >= RENEW_AFTER {
            Decision::Renew
        } else {
            Decision::Hold
        };
    }
    // A shorter promise than ours is not believed: the holder may be an older version of this program.
    if record.holder.is_empty() || unchanged >= record.duration.clamp(DURATION, LONGEST) {
        Decision::Take
    } else {
        Decision::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(holder: &str, seconds: u64) -> Record {
        Record {
            holder: holder.to_owned(),
            duration: Duration::from_secs(seconds),
            version: "7".to_owned(),
        }
    }

    #[test]
    fn each_case_has_its_decision() {
        let seconds = Duration::from_secs;
        for (record, unchanged, decision) in [
            (None, 0, Decision::Take),
            (Some(record("", 1)), 0, Decision::Take),
            (Some(record("me", 12)), 0, Decision::Hold),
            (Some(record("me", 12)), 4, Decision::Hold),
            (Some(record("me", 12)), 5, Decision::Renew),
            (Some(record("me", 12)), 500, Decision::Renew),
            (Some(record("other", 12)), 0, Decision::Wait),
            (Some(record("other", 12)), 11, Decision::Wait),
            (Some(record("other", 12)), 12, Decision::Take),
            (Some(record("other", 0)), 11, Decision::Wait),
            (Some(record("other", 15)), 14, Decision::Wait),
            (Some(record("other", 15)), 15, Decision::Take),
            (Some(record("other", u64::MAX)), 59, Decision::Wait),
            (Some(record("other", u64::MAX)), 60, Decision::Take),
        ] {
            let got = decide(record.as_ref(), seconds(unchanged), "me");
            assert_eq!(got, decision, "{record:?} {unchanged}");
        }
    }

    #[test]
    fn a_holder_stops_before_another_may_begin() {
        assert!(RENEW_AFTER * 2 <= GIVE_UP_AFTER);
        assert!(GIVE_UP_AFTER < DURATION);
        assert!(DURATION + LOOK < Duration::from_secs(15));
    }
}
