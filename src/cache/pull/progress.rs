//! The state of a pull as watchers see it: sampled from live counters, at most ten times a second.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::cache::{LayerProgress, LayerSource, Phase, PullProgress};
use crate::image::Digest;

use super::download::Download;
use super::plan::Plan;

/// Shortest time between two updates.
pub(super) const INTERVAL: Duration = Duration::from_millis(100);

/// Gathers the state and publishes it.
pub(super) struct Board {
    to: watch::Sender<PullProgress>,
    state: PullProgress,
    downloads: Vec<Option<Arc<Download>>>,
    last: Option<Instant>,
}

impl Board {
    pub(super) fn new(to: watch::Sender<PullProgress>) -> Self {
        let state = to.borrow().clone();
        Board {
            to,
            state,
            downloads: Vec::new(),
            last: None,
        }
    }

    pub(super) fn resolved(&mut self, digest: &Digest, host: &str) {
        self.state.digest = Some(digest.clone());
        self.state.host = host.to_owned();
        self.sample();
    }

    pub(super) fn phase(&mut self, phase: Phase) {
        self.state.phase = phase;
        match phase {
            Phase::Done | Phase::Failed => self.publish(),
            Phase::Resolving | Phase::Fetching | Phase::Committing => self.sample(),
        }
    }

    /// Takes over which layers there are and which are here.
    pub(super) fn plan(&mut self, plan: &Plan) {
        if self.state.layers.is_empty() {
            self.state.layers = plan
                .layers()
                .map(|(layer, _)| unknown(&layer.digest, layer.size))
                .collect();
            self.downloads = self.state.layers.iter().map(|_| None).collect();
        }
        for (row, (_, present)) in self.state.layers.iter_mut().zip(plan.layers()) {
            if present {
                row.done = true;
                if row.source == LayerSource::Unknown {
                    row.source = LayerSource::Present;
                }
            }
        }
    }

    /// Waits until the downloads of a failed pull have taken back what they wrote.
    pub(super) async fn wound_down(&mut self) {
        for download in std::mem::take(&mut self.downloads).into_iter().flatten() {
            download.wound_down().await;
        }
    }

    /// True once a layer is in the store.
    pub(super) fn holds_layers(&self) -> bool {
        self.state.layers.iter().any(|layer| layer.done)
    }

    /// All layers of a complete image.
    pub(super) fn present(&mut self, layers: impl Iterator<Item = (Digest, u64)>) {
        self.downloads.clear();
        self.state.layers = layers
            .map(|(blob, size)| LayerProgress {
                source: LayerSource::Present,
                done: true,
                ..unknown(&blob, size)
            })
            .collect();
    }

    /// A blob is on its way.
    pub(super) fn started(&mut self, blob: &Digest, source: LayerSource, download: &Arc<Download>) {
        for (row, slot) in self
            .state
            .layers
            .iter_mut()
            .zip(self.downloads.iter_mut())
            .filter(|(row, _)| row.blob == *blob)
        {
            row.source = source;
            *slot = Some(download.clone());
        }
    }

    /// A blob is not on its way any more: it is here, or has to be fetched anew.
    pub(super) fn stopped(&mut self, blob: &Digest, done: bool) {
        self.refresh();
        for (row, slot) in self
            .state
            .layers
            .iter_mut()
            .zip(self.downloads.iter_mut())
            .filter(|(row, _)| row.blob == *blob)
        {
            *slot = None;
            if done {
                row.done = true;
                row.fetched = row.size;
            } else {
                *row = unknown(blob, row.size);
            }
        }
    }

    /// Publishes if the last time is long enough ago.
    pub(super) fn sample(&mut self) {
        if self.last.is_none_or(|last| last.elapsed() >= INTERVAL) {
            self.publish();
        }
    }

    fn publish(&mut self) {
        self.refresh();
        self.last = Some(Instant::now());
        let state = &self.state;
        self.to.send_if_modified(|seen| {
            let changed = seen != state;
            if changed {
                seen.clone_from(state);
            }
            changed
        });
    }

    fn refresh(&mut self) {
        for (row, slot) in self.state.layers.iter_mut().zip(&self.downloads) {
            if let Some(download) = slot {
                let counters = &download.counters;
                row.fetched = download.received.load(Ordering::Relaxed).min(row.size);
                row.inflated = counters.inflated.load(Ordering::Relaxed);
                row.deduplicated = counters.deduplicated.load(Ordering::Relaxed);
                row.written = counters.written.load(Ordering::Relaxed);
            }
        }
    }
}

fn unknown(blob: &Digest, size: u64) -> LayerProgress {
    LayerProgress {
        blob: blob.clone(),
        size,
        fetched: 0,
        inflated: 0,
        deduplicated: 0,
        written: 0,
        source: LayerSource::Unknown,
        done: false,
    }
}
