//! Which nodes a rollout lets in next. Pure: seats in, a threshold out.
//!
//! Every node that a prepull chooses has a seat, ordered by its slot; those up to the threshold are admitted. The
//! threshold only moves forward, and only so far that no more than the allowed number of nodes work at once.

use crate::k8s::api::{ALL, NOBODY, Slot};

/// How far the node on a seat is with the current revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Progress {
    /// Not done, and nothing bad is known.
    #[default]
    Working,
    /// Holds every image.
    Ready,
    /// Gave up for now.
    Failed,
}

/// One node's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) slot: Slot,
    pub(super) progress: Progress,
    /// Not ready as a node, or silent, for long.
    pub(super) unreachable: bool,
}

/// Where a rollout stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    /// Nodes up to this slot are admitted.
    pub(super) threshold: Slot,
    /// What the threshold was a little while ago. An unreachable node holds its place until it is admitted for so
    /// long: perhaps only its kubelet is silent, and the agent works.
    pub(super) settled: Slot,
}

/// What bounds the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Nodes that may work at once; at least one.
    pub(super) max_in_flight: u64,
    /// The fewest nodes worth a step, unless they are the last: each step is sent to every agent.
    pub(super) min_step: u64,
}

/// Nodes, counted: `ready <= admitted <= desired`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) desired: u64,
    pub(super) admitted: u64,
    pub(super) ready: u64,
    pub(super) failed: u64,
    pub(super) unreachable: u64,
    /// Admitted and neither done nor given up on.
    pub(super) in_flight: u64,
}

impl Counts {
    /// Whether every node was let in and has answered, those apart that cannot.
    pub(super) fn answered(&self) -> bool {
        self.admitted == self.desired && self.in_flight == 0
    }
}

impl Seat {
    fn in_flight(&self, position: Position) -> bool {
        self.slot <= position.threshold
            && self.progress == Progress::Working
            && !(self.unreachable && self.slot <= position.settled)
    }
}

/// Counts seats at a position.
pub(super) fn count(seats: impl IntoIterator<Item = Seat>, position: Position) -> Counts {
    let mut counts = Counts::default();
    for seat in seats {
        counts.desired += 1;
        if seat.unreachable {
            counts.unreachable += 1;
        }
        if seat.slot > position.threshold {
            continue;
        }
        counts.admitted += 1;
        match seat.progress {
            Progress::Ready => counts.ready += 1,
            Progress::Failed => counts.failed += 1,
            Progress::Working if seat.in_flight(position) => counts.in_flight += 1,
            Progress::Working => {}
        }
    }
    counts
}

/// The next threshold: at least the present one. Seats come in ascending order of their slots. Nodes that are done
/// already take no place. [`ALL`] once every node is in; without any node it stays, so that the first ones to come
/// are let in like all others.
pub(super) fn advance(
    seats: impl IntoIterator<Item = Seat> + Clone,
    position: Position,
    limits: Limits,
) -> Slot {
    let now = count(seats.clone(), position);
    if now.desired == 0 || position.threshold >= ALL {
        return position.threshold;
    }
    let max = limits.max_in_flight.max(1);
    let mut free = max.saturating_sub(now.in_flight);
    let (mut threshold, mut taken) = (position.threshold, 0);
    let mut all = true;
    for seat in seats {
        if seat.slot <= threshold {
            continue;
        }
        if seat.progress == Progress::Working {
            if free == 0 {
                all = false;
                break;
            }
            free -= 1;
            taken += 1;
        }
        threshold = seat.slot;
    }
    if all {
        return ALL;
    }
    let waiting = now.in_flight > 0;
    if waiting && taken < limits.min_step {
        return position.threshold;
    }
    threshold
}

/// The threshold from which a rollout goes on when the spec changed and its images did not: where it was, unless that
/// lets in more nodes than may work at once, as a wider selector does. Then from the start, past all that are done.
pub(super) fn resume(
    seats: impl IntoIterator<Item = Seat> + Clone,
    position: Position,
    limits: Limits,
) -> Slot {
    if count(seats.clone(), position).in_flight <= limits.max_in_flight.max(1) {
        return position.threshold;
    }
    let start = Position {
        threshold: NOBODY,
        settled: NOBODY,
    };
    advance(
        seats,
        start,
        Limits {
            min_step: 1,
            ..limits
        },
    )
    .min(position.threshold)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seat(slot: Slot, progress: Progress) -> Seat {
        Seat {
            slot,
            progress,
            unreachable: false,
        }
    }

    fn at(threshold: Slot) -> Position {
        Position {
            threshold,
            settled: NOBODY,
        }
    }

    const ONE: Limits = Limits {
        max_in_flight: 1,
        min_step: 1,
    };

    #[test]
    fn one_at_a_time_in_the_order_of_slots() {
        use Progress::{Failed, Ready, Working};
        let seats = |a, b, c| [seat(10, a), seat(20, b), seat(30, c)];
        for (seats, threshold, next) in [
            (seats(Working, Working, Working), NOBODY, 10),
            (seats(Working, Working, Working), 10, 10),
            (seats(Ready, Working, Working), 10, 20),
            (seats(Failed, Working, Working), 10, 20),
            (seats(Ready, Working, Working), 20, 20),
            (seats(Ready, Ready, Working), 20, ALL),
            // Who is done already takes no place.
            (seats(Working, Ready, Working), NOBODY, 20),
            (seats(Ready, Ready, Ready), NOBODY, ALL),
            (seats(Working, Working, Working), ALL, ALL),
        ] {
            assert_eq!(advance(seats, at(threshold), ONE), next, "{seats:?}");
        }
        assert_eq!(advance([], at(NOBODY), ONE), NOBODY);
    }

    #[test]
    fn an_unreachable_node_holds_its_place_only_a_little_while() {
        let mut seats = [
            seat(10, Progress::Working),
            seat(20, Progress::Working),
            seat(30, Progress::Working),
        ];
        seats[0].unreachable = true;
        let first = advance(seats, at(NOBODY), ONE);
        assert_eq!(first, 10);
        assert_eq!(advance(seats, at(first), ONE), 10);
        let settled = Position {
            threshold: 10,
            settled: 10,
        };
        assert_eq!(advance(seats, settled, ONE), 20);
        let counts = count(seats, settled);
        assert_eq!(
            (counts.desired, counts.unreachable, counts.in_flight),
            (3, 1, 0)
        );
    }

    #[test]
    fn small_steps_of_a_large_rollout_wait_for_each_other() {
        let limits = Limits {
            max_in_flight: 8,
            min_step: 2,
        };
        let mut seats: Vec<Seat> = (1..=20).map(|at| seat(at, Progress::Working)).collect();
        assert_eq!(advance(seats.iter().copied(), at(NOBODY), limits), 8);
        seats[3].progress = Progress::Ready;
        assert_eq!(advance(seats.iter().copied(), at(8), limits), 8);
        seats[0].progress = Progress::Failed;
        assert_eq!(advance(seats.iter().copied(), at(8), limits), 10);
        for seat in &mut seats[..19] {
            seat.progress = Progress::Ready;
        }
        assert_eq!(advance(seats.iter().copied(), at(10), limits), ALL);
    }

    #[test]
    fn a_wider_selector_does_not_let_everybody_in() {
        let mut seats: Vec<Seat> = (1..=20).map(|at| seat(at, Progress::Working)).collect();
        seats[4].progress = Progress::Ready;
        let limits = Limits {
            max_in_flight: 3,
            min_step: 1,
        };
        assert_eq!(resume(seats.iter().copied(), at(ALL), limits), 3);
        for seat in &mut seats {
            seat.progress = Progress::Ready;
        }
        assert_eq!(resume(seats.iter().copied(), at(ALL), limits), ALL);
        // A changed pause, deadline or priority leaves the rollout where it was.
        seats[1].progress = Progress::Working;
        seats[10].progress = Progress::Working;
        assert_eq!(resume(seats.iter().copied(), at(6), limits), 6);
    }

    fn seats() -> impl Strategy<Value = Vec<Seat>> {
        let seat =
            (1..1000u64, 0..3u8, any::<bool>()).prop_map(|(slot, progress, unreachable)| Seat {
                slot,
                progress: [Progress::Working, Progress::Ready, Progress::Failed]
                    [usize::from(progress)],
                unreachable,
            });
        proptest::collection::vec(seat, 0..60).prop_map(|mut seats| {
            seats.sort_by_key(|seat| seat.slot);
            seats.dedup_by_key(|seat| seat.slot);
            seats
        })
    }

    proptest! {
        #[test]
        fn a_step_never_goes_back_and_never_over_the_limit(
            seats in seats(), threshold in 0..1100u64, settled in 0..1100u64,
            max_in_flight in 0..20u64, min_step in 0..8u64,
        ) {
            let position = Position { threshold, settled: settled.min(threshold) };
            let limits = Limits { max_in_flight, min_step };
            let before = count(seats.iter().copied(), position);
            let next = advance(seats.iter().copied(), position, limits);
            prop_assert!(next >= threshold);
            prop_assert_eq!(next, advance(seats.iter().copied(), position, limits));
            let after = count(seats.iter().copied(), Position { threshold: next, ..position });
            prop_assert!(after.in_flight <= before.in_flight.max(max_in_flight.max(1)));
            for counts in [before, after] {
                prop_assert!(counts.ready <= counts.admitted && counts.admitted <= counts.desired);
                prop_assert!(counts.ready + counts.failed + counts.in_flight <= counts.admitted);
            }
        }

        /// Agents that work on admitted nodes only, and report in any order: all nodes get there, and never more than
        /// the limit at once.
        #[test]
        fn a_rollout_ends_and_keeps_its_limit(
            slots in proptest::collection::btree_set(1..5000u64, 1..60),
            max_in_flight in 1..9u64, min_step in 1..4u64, picks in proptest::collection::vec(any::<u16>(), 256),
        ) {
            let limits = Limits { max_in_flight, min_step: min_step.min(max_in_flight) };
            let mut seats: Vec<Seat> = slots.iter().map(|slot| seat(*slot, Progress::Working)).collect();
            let mut threshold = NOBODY;
            for pick in picks {
                threshold = advance(seats.iter().copied(), at(threshold), limits);
                let working: Vec<usize> = (0..seats.len())
                    .filter(|at| seats[*at].slot <= threshold && seats[*at].progress == Progress::Working)
                    .collect();
                prop_assert!(working.len() as u64 <= max_in_flight);
                let Some(one) = working.get(usize::from(pick) % working.len().max(1)) else { break };
                seats[*one].progress = if pick % 7 == 0 { Progress::Failed } else { Progress::Ready };
            }
            prop_assert_eq!(threshold, ALL);
            prop_assert!(count(seats.iter().copied(), at(threshold)).answered());
        }
    }
}
