//! Addresses that an agent listens at, and what the mirror does at its own.

use std::net::SocketAddr;

use super::file::File;
use super::{AgentArgs, ConfigError, HTTP, Placed, of_file, pick, ranged, reserved};
use crate::cache::Keep;
use crate::prune::{Amount, Pattern};

/// Default of `keep.max_bytes`.
const KEEP_BYTES: u64 = 10 << 30;
/// Default of `keep.min_free`: more than the kubelet's collection of images leaves, so that none goes for these.
const KEEP_FREE: Amount = Amount::Percent(20);

/// The registry mirror for container runtimes.
#[derive(Clone, Debug)]
pub struct MirrorConfig {
    /// Of loopback.
    pub address: SocketAddr,
    /// Which blobs it keeps.
    pub keep: Keep,
}

/// Everything is kept by default: who turns the mirror on wants to fetch a blob once.
pub(super) fn mirror(args: &AgentArgs, file: &File) -> Result<Option<MirrorConfig>, ConfigError> {
    let address = loopback(pick(&args.mirror, "--mirror", &file.mirror, "mirror"))?;
    let images = file.keep.images.clone();
    let images = images.unwrap_or_else(|| vec!["*".to_owned()]);
    let max_bytes = of_file(&file.keep.max_bytes, "keep.max_bytes");
    let min_free = of_file(&file.keep.min_free, "keep.min_free");
    let keep = Keep {
        images: images.into_iter().map(Pattern::new).collect(),
        max_bytes: ranged(max_bytes, 1 << 20, u64::MAX)?.unwrap_or(KEEP_BYTES),
        min_free: reserved(min_free)?.unwrap_or(KEEP_FREE),
    };
    Ok(address.map(|address| MirrorConfig { address, keep }))
}

/// Whoever reaches it may ask, so it is for this machine, or this pod, alone.
pub(super) fn loopback(value: Placed<String>) -> Result<Option<SocketAddr>, ConfigError> {
    let Some((text, place)) = value else {
        return Ok(None);
    };
    match address(Some((text, place)))? {
        Some(address) if !address.ip().is_loopback() => Err(ConfigError::new(
            place,
            format!("{address} is reached from elsewhere: write 127.0.0.1:PORT or [::1]:PORT"),
        )),
        address => Ok(address),
    }
}

/// An empty address is none.
pub(super) fn address(value: Placed<String>) -> Result<Option<SocketAddr>, ConfigError> {
    let (text, place) = value.unwrap_or((HTTP.to_owned(), "http"));
    if text.is_empty() {
        return Ok(None);
    }
    // As Kubernetes' components take it: all addresses of the machine.
    let full = if text.starts_with(':') {
        format!("0.0.0.0{text}")
    } else {
        text.clone()
    };
    full.parse().map(Some).map_err(|_| {
        ConfigError::new(
            place,
            format!(
                "{text:?} is no address: write IP:PORT, such as {HTTP}, or nothing for no listener"
            ),
        )
    })
}
