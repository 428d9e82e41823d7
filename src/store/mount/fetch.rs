//! Reads trees into the page cache, for containers that are about to look into them. By itself the kernel reads one block
//! at a time, as somebody comes upon it (`docs/adr/0015-trees-are-fetched-as-they-are-mounted.md`).

use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use rustix::fs::{Advice, fadvise};

/// Of a tree, in bytes. The trees of images of 1 GB have some 10 MB; what is beyond is read as it is come upon.
const MAX_BYTES: u64 = 32 << 20;
/// Whoever needs a block meanwhile waits for no more than this to be read first.
const STEP: u64 = 128 << 10;
/// Trees that wait: those of the images of a node that starts. More are not fetched.
const MAX_WAITING: usize = 1024;

/// A thread that reads one tree after the other, and ends with the store.
#[derive(Debug)]
pub(in crate::store) struct Fetcher {
    queue: Option<SyncSender<PathBuf>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fetcher {
    /// Without a thread where there can be none: trees are not fetched then.
    pub(super) fn new() -> Self {
        let (queue, trees) = sync_channel(MAX_WAITING);
        let ended = Arc::new(AtomicBool::new(false));
        let until = ended.clone();
        let thread = thread::Builder::new().name("fetch".to_owned());
        let thread = thread.spawn(move || run(&trees, &until)).ok();
        Fetcher {
            queue: Some(queue),
            ended,
            thread,
        }
    }

    /// Nobody waits for it.
    pub(super) fn fetch(&self, tree: PathBuf) {
        if let Some(queue) = &self.queue {
            let _ = queue.try_send(tree);
        }
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(trees: &Receiver<PathBuf>, ended: &AtomicBool) {
    while let Ok(tree) = trees.recv() {
        read(&tree, ended);
    }
}

/// What cannot be read costs time, later, and is told to whoever needs it.
fn read(tree: &Path, ended: &AtomicBool) {
    let Ok(file) = File::open(tree) else {
        return;
    };
    let len = file.metadata().map_or(0, |meta| meta.len()).min(MAX_BYTES);
    let mut at = 0;
    while at < len && !ended.load(Ordering::Relaxed) {
        let end = len.min(at + STEP);
        let _ = fadvise(&file, at, NonZeroU64::new(end - at), Advice::WillNeed);
        // Its last byte is there when all of it is.
        if file.read_at(&mut [0], end - 1).is_err() {
            return;
        }
        at = end;
    }
}
