//! The decisions of the gate, as values: no clock, no waiting.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cache::{Priority, Traffic};

/// How many layers at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cache) struct Limits {
    /// Of foreground pulls, and of all pulls while there is no foreground pull.
    pub(in crate::cache) layers: usize,
    /// Of background pulls.
    pub(in crate::cache) background: usize,
    /// Of background pulls from one registry.
    pub(in crate::cache) per_registry: usize,
}

#[derive(Debug)]
struct Waiting {
    pull: u64,
    registry: Arc<str>,
}

#[derive(Debug)]
struct Running {
    registry: Arc<str>,
    /// All that wait for it.
    pulls: Vec<u64>,
}

/// Who runs and who waits. Numbers are given in the order of coming and never twice.
#[derive(Debug)]
pub(super) struct Turns {
    limits: Limits,
    next: u64,
    pulls: BTreeMap<u64, Priority>,
    waiting: BTreeMap<u64, Waiting>,
    running: BTreeMap<u64, Running>,
}

impl Turns {
    pub(super) fn new(limits: Limits) -> Self {
        let layers = limits.layers.max(1);
        let background = limits.background.clamp(1, layers);
        Turns {
            limits: Limits {
                layers,
                background,
                per_registry: limits.per_registry.clamp(1, background),
            },
            next: 0,
            pulls: BTreeMap::new(),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
        }
    }

    fn number(&mut self) -> u64 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    pub(super) fn enter(&mut self, priority: Priority) -> u64 {
        let number = self.number();
        self.pulls.insert(number, priority);
        number
    }

    pub(super) fn promote(&mut self, pull: u64, priority: Priority) {
        if let Some(known) = self.pulls.get_mut(&pull) {
            *known = (*known).max(priority);
        }
    }

    pub(super) fn leave_pull(&mut self, pull: u64) {
        self.pulls.remove(&pull);
    }

    pub(super) fn queue(&mut self, pull: u64, registry: Arc<str>) -> u64 {
        let number = self.number();
        self.waiting.insert(number, Waiting { pull, registry });
        number
    }

    pub(super) fn unqueue(&mut self, number: u64) {
        self.waiting.remove(&number);
    }

    pub(super) fn join(&mut self, layer: u64, pull: u64) {
        if let Some(running) = self.running.get_mut(&layer) {
            running.pulls.push(pull);
        }
    }

    pub(super) fn leave(&mut self, layer: u64, pull: u64) {
        if let Some(running) = self.running.get_mut(&layer)
            && let Some(at) = running.pulls.iter().position(|known| *known == pull)
        {
            running.pulls.swap_remove(at);
        }
    }

    pub(super) fn leave_layer(&mut self, layer: u64) {
        self.running.remove(&layer);
    }

    pub(super) fn is_foreground_pull(&self, pull: u64) -> bool {
        self.pulls.get(&pull) == Some(&Priority::Foreground)
    }

    /// A layer is what the most urgent of those who wait for it is.
    pub(super) fn is_foreground(&self, layer: u64) -> bool {
        self.running.get(&layer).is_some_and(|it| self.urgent(it))
    }

    fn urgent(&self, running: &Running) -> bool {
        running
            .pulls
            .iter()
            .any(|pull| self.is_foreground_pull(*pull))
    }

    fn foreground_pulls(&self) -> usize {
        let mut pulls = self.pulls.values();
        pulls
            .by_ref()
            .filter(|it| **it == Priority::Foreground)
            .count()
    }

    /// Lets the next layer begin, if one may.
    ///
    /// Foreground layers come in the order of asking; their number is limited without regard to background ones, of
    /// which but one moves meanwhile. A background layer begins only while there is no foreground pull: the highest
    /// order first, passing over registries that have enough.
    pub(super) fn admit(&mut self) -> Option<u64> {
        let number = self.next_one()?;
        let waiting = self.waiting.remove(&number)?;
        self.running.insert(
            number,
            Running {
                registry: waiting.registry,
                pulls: vec![waiting.pull],
            },
        );
        Some(number)
    }

    fn next_one(&self) -> Option<u64> {
        let urgent = self.running.values().filter(|it| self.urgent(it)).count();
        let first = self
            .waiting
            .iter()
            .find(|(_, it)| self.is_foreground_pull(it.pull));
        if let Some((number, _)) = first
            && urgent < self.limits.layers
        {
            return Some(*number);
        }
        let background = self.running.len().saturating_sub(urgent);
        if self.foreground_pulls() > 0
            || background >= self.limits.background
            || self.running.len() >= self.limits.layers
        {
            return None;
        }
        let busy = |registry: &str| {
            let mut running = self.running.values();
            running
                .by_ref()
                .filter(|it| *it.registry == *registry && !self.urgent(it))
                .count()
                >= self.limits.per_registry
        };
        self.waiting
            .iter()
            .filter(|(_, it)| !busy(&it.registry))
            .max_by_key(|(number, it)| (self.pulls.get(&it.pull), Reverse(**number)))
            .map(|(number, _)| *number)
    }

    /// Whether a layer may take bytes: while there is a foreground pull, the oldest of the background ones only.
    pub(super) fn flows(&self, layer: u64) -> bool {
        self.foreground_pulls() == 0
            || self.is_foreground(layer)
            || self
                .running
                .iter()
                .find(|(_, it)| !self.urgent(it))
                .is_none_or(|(oldest, _)| *oldest == layer)
    }

    pub(super) fn traffic(&self) -> Traffic {
        let foreground_pulls = self.foreground_pulls();
        let foreground_layers = self.running.values().filter(|it| self.urgent(it)).count();
        let foreground_waiting = self
            .waiting
            .values()
            .filter(|it| self.is_foreground_pull(it.pull))
            .count();
        let background_layers = self.running.len().saturating_sub(foreground_layers);
        Traffic {
            foreground_pulls,
            background_pulls: self.pulls.len().saturating_sub(foreground_pulls),
            foreground_layers,
            background_layers,
            foreground_waiting,
            background_waiting: self.waiting.len().saturating_sub(foreground_waiting),
            held_back: if foreground_pulls > 0 {
                background_layers.saturating_sub(1)
            } else {
                0
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "a.example";
    const B: &str = "b.example";

    fn turns(layers: usize, background: usize, per_registry: usize) -> Turns {
        Turns::new(Limits {
            layers,
            background,
            per_registry,
        })
    }

    fn back(order: i32) -> Priority {
        Priority::Background { order }
    }

    fn admitted(turns: &mut Turns) -> Vec<u64> {
        std::iter::from_fn(|| turns.admit()).collect()
    }

    #[test]
    fn foreground_layers_begin_in_the_order_of_asking() {
        let mut turns = turns(2, 1, 1);
        let pull = turns.enter(Priority::Foreground);
        let numbers: Vec<u64> = (0..3).map(|_| turns.queue(pull, A.into())).collect();
        assert_eq!(admitted(&mut turns), numbers[..2]);
        turns.leave_layer(numbers[0]);
        assert_eq!(admitted(&mut turns), numbers[2..]);
    }

    #[test]
    fn no_background_layer_begins_while_a_foreground_pull_runs() {
        let mut turns = turns(4, 2, 2);
        let front = turns.enter(Priority::Foreground);
        let pull = turns.enter(back(0));
        let number = turns.queue(pull, A.into());
        assert_eq!(turns.admit(), None);
        turns.leave_pull(front);
        assert_eq!(turns.admit(), Some(number));
    }

    #[test]
    fn background_layers_take_nothing_from_the_foreground() {
        let mut turns = turns(2, 2, 2);
        let (front, pull) = {
            let pull = turns.enter(back(0));
            for _ in 0..3 {
                turns.queue(pull, A.into());
            }
            assert_eq!(admitted(&mut turns).len(), 2);
            (turns.enter(Priority::Foreground), pull)
        };
        for _ in 0..3 {
            turns.queue(front, A.into());
        }
        assert_eq!(admitted(&mut turns).len(), 2);
        let traffic = turns.traffic();
        assert_eq!(
            (traffic.foreground_layers, traffic.background_layers),
            (2, 2)
        );
        assert_eq!(traffic.held_back, 1);
        assert!(!turns.is_foreground_pull(pull));
    }

    #[test]
    fn the_highest_order_comes_first_and_the_oldest_among_equals() {
        let mut turns = turns(1, 1, 1);
        let pulls: Vec<u64> = [0, 5, 5, -3].map(|order| turns.enter(back(order))).into();
        let numbers: Vec<u64> = pulls
            .iter()
            .map(|pull| turns.queue(*pull, A.into()))
            .collect();
        let mut order = Vec::new();
        while let Some(number) = turns.admit() {
            order.push(number);
            turns.leave_layer(number);
        }
        assert_eq!(order, [numbers[1], numbers[2], numbers[0], numbers[3]]);
    }

    #[test]
    fn a_busy_registry_holds_up_no_other() {
        let mut turns = turns(4, 3, 1);
        let pull = turns.enter(back(0));
        let first = turns.queue(pull, A.into());
        let second = turns.queue(pull, A.into());
        let other = turns.queue(pull, B.into());
        assert_eq!(admitted(&mut turns), [first, other]);
        turns.leave_layer(first);
        assert_eq!(turns.admit(), Some(second));
    }

    #[test]
    fn one_background_stream_moves_beside_a_foreground_pull() {
        let mut turns = turns(4, 3, 3);
        let pull = turns.enter(back(0));
        let layers: Vec<u64> = (0..3).map(|_| turns.queue(pull, A.into())).collect();
        admitted(&mut turns);
        let moving = |turns: &Turns| -> Vec<u64> {
            layers
                .iter()
                .copied()
                .filter(|it| turns.flows(*it))
                .collect()
        };
        assert_eq!(moving(&turns), layers);
        let front = turns.enter(Priority::Foreground);
        assert_eq!(moving(&turns), layers[..1]);
        // A foreground pull that waits for one of them sets it free, and one of the others moves beside it.
        turns.join(layers[0], front);
        assert_eq!(moving(&turns), layers[..2]);
        turns.leave(layers[0], front);
        assert_eq!(moving(&turns), layers[..1]);
        turns.leave_layer(layers[0]);
        assert_eq!(moving(&turns), layers[..2][1..]);
        turns.leave_pull(front);
        assert_eq!(moving(&turns), layers);
    }

    #[test]
    fn a_promotion_is_never_taken_back() {
        let mut turns = turns(1, 1, 1);
        let pull = turns.enter(back(1));
        turns.promote(pull, back(7));
        turns.promote(pull, back(2));
        assert_eq!(turns.pulls.get(&pull), Some(&back(7)));
        turns.promote(pull, Priority::Foreground);
        turns.promote(pull, back(9));
        assert!(turns.is_foreground_pull(pull));
        turns.promote(999, Priority::Foreground);
        assert_eq!(turns.foreground_pulls(), 1);
    }

    proptest::proptest! {
        /// Whatever comes and goes, the limits hold, and what can begin has begun.
        #[test]
        fn limits_hold_and_nobody_waits_for_nothing(
            steps in proptest::collection::vec((0u8..7, 0usize..8), 0..80),
            layers in 1usize..5, background in 1usize..5, per_registry in 1usize..5,
        ) {
            let mut turns = turns(layers, background, per_registry);
            let limits = turns.limits;
            for (step, pick) in steps {
                let pulls: Vec<u64> = turns.pulls.keys().copied().collect();
                let pull = pulls.get(pick % pulls.len().max(1)).copied().unwrap_or(0);
                let running: Vec<u64> = turns.running.keys().copied().collect();
                let layer = running.get(pick % running.len().max(1)).copied().unwrap_or(0);
                match step {
                    0 => drop(turns.enter(Priority::Foreground)),
                    1 => drop(turns.enter(back(i32::try_from(pick).unwrap()))),
                    2 => turns.leave_pull(pull),
                    3 | 4 if pull > 0 => drop(turns.queue(pull, if pick % 2 == 0 { A } else { B }.into())),
                    5 => turns.leave_layer(layer),
                    _ => turns.join(layer, pull),
                }
                let before = turns.traffic();
                let begun = admitted(&mut turns);
                let after = turns.traffic();
                if before.foreground_pulls > 0 {
                    proptest::prop_assert!(begun.iter().all(|layer| turns.is_foreground(*layer)));
                }
                if after.foreground_pulls == 0 && turns.running.is_empty() {
                    proptest::prop_assert!(turns.waiting.is_empty());
                }
                if after.foreground_waiting > 0 {
                    proptest::prop_assert!(after.foreground_layers >= limits.layers);
                }
                // Something moves as long as anything runs.
                proptest::prop_assert!(turns.running.is_empty() || turns.running.keys().any(|it| turns.flows(*it)));
            }
        }
    }
}
