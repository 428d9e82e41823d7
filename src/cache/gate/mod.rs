//! Who may fetch layers now: first what pods wait for, then, in what is left, what is fetched ahead of them.
//!
//! [`turns::Turns`] decides, as a pure function of who runs and who waits; the shell here wakes those it lets in, holds
//! back streams and spends the bandwidth. A pull holds a [`PullPass`], a layer a [`LayerPass`]; both give their place
//! back when they are dropped, wherever that happens, so nobody can leave without being counted out.

mod bandwidth;
mod turns;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::{Metrics, Priority, Traffic};

pub(super) use bandwidth::Bucket;
pub(super) use turns::Limits;
use turns::Turns;

/// The gate of one cache. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Sent at each change, so that whoever is held back looks again.
    traffic: watch::Sender<Traffic>,
    bandwidth: Option<Bandwidth>,
    metrics: Metrics,
}

#[derive(Debug)]
struct State {
    turns: Turns,
    wake: HashMap<u64, oneshot::Sender<LayerPass>>,
}

/// What layers may take off the line.
#[derive(Debug)]
struct Bandwidth {
    bucket: Mutex<Bucket>,
    /// For foreground pulls too.
    all: bool,
}

/// A pull under way.
#[derive(Debug)]
pub(super) struct PullPass {
    shared: Arc<Shared>,
    number: u64,
}

/// A layer that may be fetched and ingested.
#[derive(Debug)]
pub(super) struct LayerPass {
    shared: Arc<Shared>,
    number: u64,
}

/// A place in the queue.
struct Queued {
    shared: Arc<Shared>,
    number: u64,
}

impl Gate {
    /// `bytes_per_second` limits background layers, with `throttle_all` every layer.
    pub(super) fn new(
        limits: Limits,
        bytes_per_second: Option<u64>,
        throttle_all: bool,
        metrics: Metrics,
    ) -> Self {
        let bandwidth = bytes_per_second.map(|rate| Bandwidth {
            bucket: Mutex::new(Bucket::new(rate)),
            all: throttle_all,
        });
        Gate {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    turns: Turns::new(limits),
                    wake: HashMap::new(),
                }),
                traffic: watch::Sender::new(Traffic::default()),
                bandwidth,
                metrics,
            }),
        }
    }

    /// A pull begins.
    pub(super) fn enter(&self, priority: Priority) -> PullPass {
        let mut number = 0;
        self.shared
            .change(|state| number = state.turns.enter(priority));
        PullPass {
            shared: self.shared.clone(),
            number,
        }
    }

    /// Somebody asks for a pull under way more urgently. One that ended is left in peace.
    pub(super) fn promote(&self, pull: u64, priority: Priority) {
        self.shared
            .change(|state| state.turns.promote(pull, priority));
    }

    /// Waits until a layer of a pull may begin. Dropping the future leaves the queue.
    pub(super) async fn layer(self, pull: u64, registry: Arc<str>) -> Option<LayerPass> {
        let (wake, admitted) = oneshot::channel();
        let mut number = 0;
        self.shared.change(|state| {
            number = state.turns.queue(pull, registry);
            state.wake.insert(number, wake);
        });
        // Declared after the receiver, so dropped before it: a place is never given to one who has gone.
        let _queued = Queued {
            shared: self.shared.clone(),
            number,
        };
        admitted.await.ok()
    }

    /// A pull waits for a layer that another one fetches.
    pub(super) fn join(&self, layer: u64, pull: u64) {
        self.shared.change(|state| state.turns.join(layer, pull));
    }

    /// A pull waits for a layer no more.
    pub(super) fn leave(&self, layer: u64, pull: u64) {
        self.shared.change(|state| state.turns.leave(layer, pull));
    }

    /// Counts bytes that came for a layer, and waits until they may be used: while a foreground pull runs, one
    /// background layer moves at a time; and none exceeds the bandwidth. Ends early when the layer is promoted.
    pub(super) async fn pace(&self, layer: u64, bytes: usize) {
        let shared = &self.shared;
        let mut changed = shared.traffic.subscribe();
        let foreground = shared.lock().turns.is_foreground(layer);
        shared.metrics.received(foreground, bytes as u64);
        if let Some(bandwidth) = &shared.bandwidth
            && (bandwidth.all || !foreground)
        {
            let began = Instant::now();
            let until = bandwidth.take(began, bytes as u64);
            while Instant::now() < until {
                tokio::select! {
                    () = tokio::time::sleep_until(until) => break,
                    // The sender lives as long as this.
                    _ = changed.changed() => {}
                }
                if !bandwidth.all && shared.lock().turns.is_foreground(layer) {
                    break;
                }
            }
            shared.metrics.throttled(began.elapsed());
        }
        while !shared.lock().turns.flows(layer) {
            let _ = changed.changed().await;
        }
    }

    /// Who runs and who waits: the newest state, and a wake-up when it changes.
    pub(super) fn traffic(&self) -> watch::Receiver<Traffic> {
        self.shared.traffic.subscribe()
    }
}

impl Bandwidth {
    fn take(&self, now: Instant, bytes: u64) -> Instant {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        now + bucket.take(now.into_std(), bytes)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change and lets in who may come in after it.
    fn change(self: &Arc<Self>, change: impl FnOnce(&mut State)) {
        let mut unwanted = Vec::new();
        {
            let mut state = self.lock();
            change(&mut state);
            while let Some(number) = state.turns.admit() {
                let pass = LayerPass {
                    shared: self.clone(),
                    number,
                };
                match state.wake.remove(&number) {
                    Some(wake) => unwanted.extend(wake.send(pass).err()),
                    None => unwanted.push(pass),
                }
            }
            let traffic = state.turns.traffic();
            self.metrics.traffic(&traffic);
            self.traffic.send_replace(traffic);
        }
        // Outside the lock, which a drop takes.
        drop(unwanted);
    }
}

impl PullPass {
    /// For layers of this pull.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Whether a pod waits for it.
    pub(super) fn is_foreground(&self) -> bool {
        self.shared.lock().turns.is_foreground_pull(self.number)
    }

    /// Ends when a pod waits for it.
    pub(super) async fn promoted(&self) {
        let mut changed = self.shared.traffic.subscribe();
        while !self.is_foreground() {
            let _ = changed.changed().await;
        }
    }
}

impl LayerPass {
    /// For those who join this layer.
    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for PullPass {
    fn drop(&mut self) {
        self.shared
            .change(|state| state.turns.leave_pull(self.number));
    }
}

impl Drop for LayerPass {
    fn drop(&mut self) {
        self.shared
            .change(|state| state.turns.leave_layer(self.number));
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.wake.remove(&self.number);
            state.turns.unqueue(self.number);
        });
    }
}

/// Longest time for which an idle line saves up.
const BURST: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(layers: usize, background: usize) -> Gate {
        let limits = Limits {
            layers,
            background,
            per_registry: background,
        };
        Gate::new(limits, None, false, Metrics::default())
    }

    fn registry() -> Arc<str> {
        "r.example".into()
    }

    fn is_idle(gate: &Gate) -> bool {
        *gate.traffic().borrow() == Traffic::default()
    }

    #[tokio::test]
    async fn whoever_is_dropped_anywhere_gives_its_place_back() {
        let gate = gate(1, 1);
        let pull = gate.enter(Priority::Background { order: 0 });
        let running = gate.clone().layer(pull.number(), registry()).await.unwrap();
        let mut waiting = Box::pin(gate.clone().layer(pull.number(), registry()));
        let mut second = Box::pin(gate.clone().layer(pull.number(), registry()));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        assert!(futures_util::poll!(&mut second).is_pending());
        // Admitted, but dropped before it looked: the place goes on to the next.
        drop(running);
        drop(waiting);
        let pass = second.await.unwrap();
        drop(pull);
        drop(pass);
        assert!(is_idle(&gate), "{:?}", gate.traffic().borrow());
    }

    #[tokio::test]
    async fn a_waiting_background_layer_begins_when_its_pull_is_promoted() {
        let gate = gate(2, 1);
        let front = gate.enter(Priority::Foreground);
        let back = gate.enter(Priority::Background { order: 9 });
        let mut waiting = Box::pin(gate.clone().layer(back.number(), registry()));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        gate.promote(back.number(), Priority::Foreground);
        back.promoted().await;
        drop(waiting.await.unwrap());
        drop((front, back));
        assert!(is_idle(&gate));
    }

    #[tokio::test]
    async fn a_held_back_stream_goes_on_when_the_foreground_is_through() {
        let gate = gate(4, 2);
        let back = gate.enter(Priority::Background { order: 0 });
        let first = gate.clone().layer(back.number(), registry()).await.unwrap();
        let second = gate.clone().layer(back.number(), registry()).await.unwrap();
        let front = gate.enter(Priority::Foreground);
        // The first is the one stream that goes on.
        gate.pace(first.number(), 1).await;
        let mut held = Box::pin(gate.pace(second.number(), 1));
        assert!(futures_util::poll!(&mut held).is_pending());
        drop(front);
        held.await;
    }

    #[tokio::test]
    async fn a_promoted_layer_waits_for_no_bandwidth() {
        let limits = Limits {
            layers: 1,
            background: 1,
            per_registry: 1,
        };
        // A thousand seconds' worth.
        let gate = Gate::new(limits, Some(1000), false, Metrics::default());
        let back = gate.enter(Priority::Background { order: 0 });
        let layer = gate.clone().layer(back.number(), registry()).await.unwrap();
        let mut held = Box::pin(gate.pace(layer.number(), 1_000_000));
        assert!(futures_util::poll!(&mut held).is_pending());
        let front = gate.enter(Priority::Foreground);
        gate.join(layer.number(), front.number());
        held.await;
    }
}
