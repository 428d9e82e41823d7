//! A token bucket that may go into debt: bytes have come already when they are counted, so their taker waits after.
//! Pure: knows no clock.

use std::time::{Duration, Instant};

use super::BURST;

/// Bytes per second, with a bounded burst.
#[derive(Clone, Debug)]
pub(in crate::cache) struct Bucket {
    /// Bytes per second, at least 1.
    rate: u64,
    /// When all bytes taken so far are paid for.
    paid: Option<Instant>,
}

impl Bucket {
    pub(in crate::cache) fn new(bytes_per_second: u64) -> Self {
        Bucket {
            rate: bytes_per_second.max(1),
            paid: None,
        }
    }

    /// Takes bytes, and says how long to wait before the next. After a pause as much as [`BURST`] brings is free.
    pub(in crate::cache) fn take(&mut self, now: Instant, bytes: u64) -> Duration {
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let from = self.paid.map_or(earliest, |paid| paid.max(earliest));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate);
        // A century is long enough, and no sum of it overflows.
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX).min(CENTURY));
        let paid = from.checked_add(cost).unwrap_or(from);
        self.paid = Some(paid);
        paid.saturating_duration_since(now)
    }
}

const CENTURY: u64 = 3_000_000_000_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes let through in `span` by `streams` takers of pieces of `piece` bytes.
    fn through(rate: u64, piece: u64, streams: usize, span: Duration) -> u64 {
        let mut bucket = Bucket::new(rate);
        let start = Instant::now();
        let mut next = vec![start; streams];
        let mut bytes = 0;
        loop {
            let at = (0..streams).min_by_key(|&at| next[at]).unwrap();
            let now = next[at];
            if now >= start + span {
                return bytes;
            }
            next[at] = now + bucket.take(now, piece);
            bytes += piece;
        }
    }

    #[test]
    fn the_rate_is_kept_within_a_tenth_whatever_the_pieces_and_streams() {
        let span = Duration::from_secs(10);
        for (rate, piece, streams) in [
            (1_000_000, 1_000, 1),
            (1_000_000, 64_000, 1),
            (1_000_000, 16_384, 4),
            (50_000_000, 1_048_576, 2),
            (100_000, 16_384, 3),
        ] {
            let bytes = through(rate, piece, streams, span);
            let wanted = rate * span.as_secs();
            assert!(
                bytes <= wanted + wanted / 10 && bytes >= wanted - wanted / 10,
                "{bytes} of {wanted} at {rate}/{piece}/{streams}"
            );
        }
    }

    #[test]
    fn a_pause_saves_up_one_burst_and_no_more() {
        let mut bucket = Bucket::new(1_000_000);
        let start = Instant::now();
        assert_eq!(bucket.take(start, 100_000), Duration::ZERO);
        assert_eq!(bucket.take(start, 100_000), Duration::from_millis(100));
        let later = start + Duration::from_secs(3600);
        assert_eq!(bucket.take(later, 100_000), Duration::ZERO);
        assert_eq!(bucket.take(later, 1_000_000), Duration::from_secs(1));
    }

    #[test]
    fn no_number_overflows() {
        let mut bucket = Bucket::new(0);
        let now = Instant::now();
        for _ in 0..3 {
            bucket.take(now, u64::MAX);
        }
    }
}
