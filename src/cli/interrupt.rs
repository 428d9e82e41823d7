//! Ctrl-C, SIGTERM and a terminal that is closed: the first asks to stop, the second ends the process at once.
//!
//! Owns the handlers from [`Interrupts::listen`] on. Never stops anything itself but the process, at the second.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::Failure;
use crate::lifecycle::Shutdown;

/// Signals with the exit codes that shells use for them.
const SIGNALS: [(SignalKind, u8); 3] = [
    (SignalKind::hangup(), 129),
    (SignalKind::interrupt(), 130),
    (SignalKind::terminate(), 143),
];

/// The wish of whoever sits at the terminal. Cheap to clone: all clones are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Interrupts {
    asked: Shutdown,
    code: Arc<AtomicU8>,
    /// What an end at once would leave behind.
    left: Arc<Mutex<Option<PathBuf>>>,
}

impl Interrupts {
    /// Handlers are in place when this returns. Needs a tokio runtime.
    pub(super) fn listen() -> std::io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = ignored(&status);
        let mut signals = Vec::new();
        for (kind, code) in SIGNALS {
            // nohup, and a shell's background jobs: what the parent ignores stays ignored.
            if !is_set(ignored, kind) {
                signals.push((signal(kind)?, code));
            }
        }
        let interrupts = Self::default();
        tokio::spawn(interrupts.clone().watch(signals));
        Ok(interrupts)
    }

    async fn watch(self, mut signals: Vec<(Signal, u8)>) {
        self.code.store(next(&mut signals).await, Ordering::Release);
        self.asked.request();
        let code = next(&mut signals).await;
        let left = self.left().take();
        if let Some(left) = left.filter(|left| left.exists()) {
            Failure::new(left_behind(&left)).print(&mut std::io::stderr().lock());
        }
        std::process::exit(code.into());
    }

    /// Waits for the first.
    pub(super) async fn first(&self) -> Failure {
        self.asked.wait().await;
        self.failure()
    }

    /// Whether there was one already.
    pub(super) fn asked(&self) -> Option<Failure> {
        self.asked.requested().then(|| self.failure())
    }

    /// From now on there is this folder to be cleared away.
    pub(super) fn leaves(&self, folder: &Path) {
        *self.left() = Some(folder.to_owned());
    }

    fn failure(&self) -> Failure {
        Failure::silent(self.code.load(Ordering::Acquire))
    }

    fn left(&self) -> std::sync::MutexGuard<'_, Option<PathBuf>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The exit code of the next signal.
async fn next(signals: &mut [(Signal, u8)]) -> u8 {
    std::future::poll_fn(|context| {
        for (signal, code) in signals.iter_mut() {
            if signal.poll_recv(context).is_ready() {
                return std::task::Poll::Ready(*code);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

/// The mask of ignored signals in `/proc/self/status` (proc(5), `SigIgn`).
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

fn is_set(mask: u64, signal: SignalKind) -> bool {
    let bit = u32::try_from(signal.as_raw_value() - 1).unwrap_or(u32::MAX);
    mask.checked_shr(bit).unwrap_or(0) & 1 == 1
}

fn left_behind(folder: &Path) -> String {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let begin = format!("{}/", folder.display());
    let points = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| point.starts_with(&begin));
    let (folder, mounts) = (folder.display(), points.count());
    match mounts {
        0 => format!("ended at once; left behind: {folder}"),
        _ => format!(
            "ended at once; left behind: {folder} and what is mounted below it ({mounts}): unmount that, then remove it"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_parent_ignores_is_known() {
        // nohup: SIGHUP and SIGPIPE.
        let mask = ignored("SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0\n");
        assert!(is_set(mask, SignalKind::hangup()));
        assert!(!is_set(mask, SignalKind::interrupt()));
        assert!(!is_set(mask, SignalKind::terminate()));
        assert_eq!(ignored("SigIgn: what\n"), 0);
        assert_eq!(ignored(""), 0);
    }

    #[test]
    fn an_end_at_once_names_what_it_leaves() {
        let text = left_behind(Path::new("/tmp/larder-demo-x"));
        assert_eq!(text, "ended at once; left behind: /tmp/larder-demo-x");
        assert!(left_behind(Path::new("/proc/..")).contains("left behind: /proc/.."));
    }
}
