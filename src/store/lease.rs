//! Leases: protection of layers from collection while somebody works with them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::image::DiffId;

use super::types::Layer;
use super::{Inner, State, Store};
use crate::image::Digest;

/// Protects layers from collection while it lives. Dropping it releases them, and what no image uses is collected:
/// that may take as long as a removal, so drop it where blocking is allowed.
#[derive(Debug)]
pub struct Lease {
    store: Arc<Inner>,
    layers: Mutex<BTreeSet<DiffId>>,
}

impl Lease {
    /// Protects a layer from now on. The caller has the state, so nothing can collect it in between.
    pub(super) fn hold(&self, state: &mut State, layer: &DiffId) {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        if layers.insert(layer.clone()) {
            *state.leases.entry(layer.clone()).or_default() += 1;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let layers = std::mem::take(
            self.layers
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner),
        );
        {
            let mut state = self.store.state();
            for layer in &layers {
                if let Some(count) = state.leases.get_mut(layer) {
                    *count -= 1;
                    if *count == 0 {
                        state.leases.remove(layer);
                    }
                }
            }
        }
        if let Err(error) = self.store.sweep(&layers) {
            // Start-up collects them.
            tracing::warn!(err = %error, "Kept layers that no image uses");
        }
    }
}

impl Store {
    /// A new lease that protects nothing yet.
    pub fn lease(&self) -> Lease {
        Lease {
            store: self.inner.clone(),
            layers: Mutex::default(),
        }
    }

    /// The layer a blob was ingested as, if it is present and sound; the lease protects it from now on.
    pub fn layer_of_blob(&self, blob: &Digest, lease: &Lease) -> Option<Layer> {
        let id = self.inner.state().records.blobs.get(blob).cloned()?;
        self.layer(&id, lease)
    }

    /// A layer by diffID, if it is present and sound; the lease protects it from now on.
    pub fn layer(&self, diff_id: &DiffId, lease: &Lease) -> Option<Layer> {
        let mut state = self.inner.state();
        let row = state.records.layers.get(diff_id)?;
        if row.damaged.is_some() || state.doomed.contains(diff_id) || !self.inner.has_files(row) {
            return None;
        }
        let layer = row.layer();
        lease.hold(&mut state, diff_id);
        Some(layer)
    }

    /// Facts of a layer, without a lease. From memory.
    pub fn layer_info(&self, diff_id: &DiffId) -> Option<Layer> {
        let state = self.inner.state();
        state.records.layers.get(diff_id).map(|row| row.layer())
    }
}
