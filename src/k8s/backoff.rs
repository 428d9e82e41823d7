//! How long to wait after failures. Pure.

use std::time::Duration;

/// Doublings after which nothing sensible is below its limit any more.
const MOST_DOUBLINGS: u32 = 20;

/// Pause after failure number `failures` (the first is 1): doubles from `first` up to `most`, drawn between half of
/// that and all of it by `roll`, which is within 0..1.
pub(super) fn backoff(failures: u32, first: Duration, most: Duration, roll: f64) -> Duration {
    first
        .saturating_mul(1 << failures.saturating_sub(1).min(MOST_DOUBLINGS))
        .min(most)
        .mul_f64(0.5 + 0.5 * roll.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_its_limit() {
        let (first, most) = (Duration::from_secs(1), Duration::from_secs(60));
        assert_eq!(backoff(1, first, most, 1.0), first);
        assert_eq!(backoff(1, first, most, 0.0), first / 2);
        assert_eq!(backoff(3, first, most, 1.0), first * 4);
        assert_eq!(backoff(30, first, most, 1.0), most);
        assert_eq!(backoff(u32::MAX, first, most, 1.0), most);
        assert_eq!(backoff(0, first, most, 1.0), first);
    }
}
