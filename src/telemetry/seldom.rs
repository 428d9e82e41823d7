//! A line that would be logged over and over is logged now and then.

use std::time::{Duration, Instant};

/// Between two lines of a kind.
const PAUSE: Duration = Duration::from_secs(60);

/// Lets one line of a kind through each minute, and counts the rest.
#[derive(Debug, Default)]
pub struct Seldom {
    last: Option<Instant>,
    held_back: u64,
}

impl Seldom {
    /// How many lines were held back since the last, if it is time for one.
    pub fn due(&mut self, now: Instant) -> Option<u64> {
        if let Some(last) = self.last
            && now.saturating_duration_since(last) < PAUSE
        {
            self.held_back = self.held_back.saturating_add(1);
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute() {
        let mut seldom = Seldom::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(seldom.due(at(0)), Some(0));
        assert_eq!(seldom.due(at(1)), None);
        assert_eq!(seldom.due(at(59)), None);
        assert_eq!(seldom.due(at(60)), Some(2));
        assert_eq!(seldom.due(at(61)), None);
        assert_eq!(seldom.due(at(200)), Some(1));
    }
}
