//! The store's own clock: the time that a running machine has shown it, which no wall clock moves.
//!
//! Ages of images are told by it. It counts milliseconds since the store was made, as the kernel's monotonic clock shows
//! them: through restarts of the program, while the machine stays up. Of another boot only what the machine has been up
//! since counts: a node that was off, or asleep, has aged nothing. A wall clock that jumps, either way, is not looked at.
//! `docs/adr/0010-age-by-observed-time.md` tells why.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Where the kernel names the present boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// What a crash of the machine may cost of an age: the clock is written at least so often while something else is, or
/// somebody asks for it.
pub(super) const STEP: Duration = Duration::from_secs(3600);

/// Where the clock begins: images from before it have room to be older.
const BEGIN: u64 = 1_000_000;

/// The kernel's clock at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// Milliseconds since the boot, without those asleep.
    monotonic: u64,
    /// A hash of the boot's id; 0 where it is not known.
    boot: u64,
}

/// The clock as it is kept over a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockRow {
    /// Milliseconds that were observed.
    pub(super) observed: u64,
    /// The kernel's clock then.
    pub(super) monotonic: u64,
    /// The boot it was of.
    pub(super) boot: u64,
}

impl Reading {
    pub(super) fn take() -> Self {
        Reading {
            monotonic: monotonic(),
            boot: boot(),
        }
    }
}

fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let millis = u64::try_from(now.tv_nsec / 1_000_000).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(millis)
}

fn boot() -> u64 {
    let Ok(id) = std::fs::read(BOOT_ID) else {
        return 0;
    };
    let hash = blake3::hash(&id);
    let (head, _) = hash
        .as_bytes()
        .split_first_chunk()
        .unwrap_or((&[0; 8], &[]));
    u64::from_le_bytes(*head)
}

/// The clock of an open store, and of whoever else tells the age of images.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    row: ClockRow,
}

impl Clock {
    /// Goes on from what was kept.
    pub fn open(known: Option<ClockRow>) -> Self {
        Self::resume(known, Reading::take())
    }

    pub(super) fn resume(known: Option<ClockRow>, now: Reading) -> Self {
        let known = known.unwrap_or(ClockRow {
            observed: BEGIN,
            ..ClockRow::default()
        });
        let passed = match (known.boot, now.boot) {
            // Of nothing known nothing is counted.
            (0, _) | (_, 0) => 0,
            (before, now_in) if before == now_in => now.monotonic.saturating_sub(known.monotonic),
            _ => now.monotonic,
        };
        Clock {
            row: ClockRow {
                observed: known.observed.saturating_add(passed),
                monotonic: now.monotonic,
                boot: now.boot,
            },
        }
    }

    /// As it is to be kept.
    pub fn row(&self) -> ClockRow {
        let monotonic = monotonic();
        let passed = monotonic.saturating_sub(self.row.monotonic);
        ClockRow {
            observed: self.row.observed.saturating_add(passed),
            monotonic,
            boot: self.row.boot,
        }
    }

    /// Milliseconds.
    pub fn now(&self) -> u64 {
        self.row().observed
    }

    /// As if so much had passed.
    #[cfg(test)]
    pub(super) fn advance(&mut self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap();
        self.row.observed += by;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_while_the_machine_is_up_and_never_runs_back() {
        let row = |observed, monotonic, boot| {
            Some(ClockRow {
                observed,
                monotonic,
                boot,
            })
        };
        let table = [
            // A new store, wherever the machine's clock is.
            (None, (5000, 7), BEGIN),
            // A restart of the program.
            (row(100, 5000, 7), (5400, 7), 500),
            // The same boot's clock cannot run back; if it did, nothing is counted.
            (row(100, 5000, 7), (4000, 7), 100),
            // Another boot: what it has been up for, however long the machine was off.
            (row(100, 5000, 7), (300, 8), 400),
            // Nobody knows which boot it was.
            (row(100, 5000, 0), (5400, 7), 100),
            (row(100, 5000, 7), (5400, 0), 100),
            (row(u64::MAX, 0, 7), (5400, 7), u64::MAX),
        ];
        for (known, (monotonic, boot), observed) in table {
            let clock = Clock::resume(known, Reading { monotonic, boot });
            assert_eq!(clock.row.observed, observed, "{known:?}");
        }
    }

    #[test]
    fn it_goes_on_by_itself() {
        let clock = Clock::resume(None, Reading::take());
        let first = clock.now();
        while clock.now() == first {
            std::hint::spin_loop();
        }
        let again = Clock::resume(Some(clock.row()), Reading::take());
        assert!(again.now() > first);
    }
}
