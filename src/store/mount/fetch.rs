//! Reads trees into the page cache, for containers that are about to look into them. By itself the kernel reads one block
//! at a time, as somebody comes upon it (`docs/adr/0015-trees-are-fetched-as-they-are-mounted.md`).

use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};

/// Of a tree, in bytes. The trees of images of 1 GB have some 10 MB; what is beyond is read as it is come upon.
const MAX_BYTES: u64 = 32 << 20;
/// Whoever needs a block meanwhile waits for no more than this to be read first.
const STEP: u64 = 128 << 10;
/// Trees whose beginnings are read before anything is looked for in them; the topmost come first.
const MAX_BEGUN: usize = 16;
/// What a container's first process needs is read first, and by itself: it begins after a tenth of a second.
const HEAD_START: Duration = Duration::from_millis(100);
/// Trees that wait: those of the images of a node that starts. More are not fetched.
const MAX_WAITING: usize = 1024;

/// A thread that reads one tree after the other, and ends with the store.
#[derive(Debug)]
pub(in crate::store) struct Fetcher {
    queue: Option<SyncSender<(Instant, PathBuf)>>,
    /// Nothing comes through it: its end is told to the thread at once, whatever waits.
    alive: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Fetcher {
    /// Without a thread where there can be none: trees are not fetched then.
    pub(super) fn new() -> Self {
        let (queue, trees) = sync_channel(MAX_WAITING);
        let (alive, ended) = sync_channel(0);
        let thread = thread::Builder::new().name("fetch".to_owned());
        let thread = thread.spawn(move || run(&trees, &ended)).ok();
        Fetcher {
            queue: Some(queue),
            alive: Some(alive),
            thread,
        }
    }

    /// Nobody waits for it.
    pub(super) fn fetch(&self, tree: PathBuf) {
        if let Some(queue) = &self.queue {
            let _ = queue.try_send((Instant::now(), tree));
        }
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.alive = None;
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(trees: &Receiver<(Instant, PathBuf)>, ended: &Receiver<()>) {
    while let Ok((asked, tree)) = trees.recv() {
        let waits = HEAD_START.saturating_sub(asked.elapsed());
        if ended.recv_timeout(waits) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
        read(&tree, ended);
    }
}

/// Has the kernel begin to read where trees begin, with the directories that every container looks into first, and waits
/// for nothing.
pub(super) fn begin(trees: &[PathBuf]) {
    for tree in trees.iter().take(MAX_BEGUN) {
        if let Ok(file) = File::open(tree) {
            let _ = fadvise(&file, 0, NonZeroU64::new(STEP), Advice::WillNeed);
        }
    }
}

/// What cannot be read costs time, later, and is told to whoever needs it.
fn read(tree: &Path, ended: &Receiver<()>) {
    let Ok(file) = File::open(tree) else {
        return;
    };
    let len = file.metadata().map_or(0, |meta| meta.len()).min(MAX_BYTES);
    let mut at = 0;
    while at < len && ended.try_recv() == Err(TryRecvError::Empty) {
        let end = len.min(at + STEP);
        let _ = fadvise(&file, at, NonZeroU64::new(end - at), Advice::WillNeed);
        // Its last byte is there when all of it is.
        if file.read_at(&mut [0], end - 1).is_err() {
            return;
        }
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_at_once_whatever_waits() {
        let began = Instant::now();
        let fetcher = Fetcher::new();
        for _ in 0..MAX_WAITING + 1 {
            fetcher.fetch(PathBuf::from("/none"));
        }
        drop(fetcher);
        assert!(began.elapsed() < HEAD_START * 10);
    }

    #[test]
    fn trees_may_be_absent_empty_or_short() {
        let file = tempfile::NamedTempFile::new().unwrap();
        begin(&[PathBuf::from("/none"), file.path().to_path_buf()]);
        file.as_file().set_len(1).unwrap();
        begin(&[file.path().to_path_buf()]);
    }

    #[test]
    fn trees_are_read_to_their_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (alive, ended) = sync_channel(0);
        for len in [0, 1, STEP - 1, STEP, STEP + 1, 5 * STEP] {
            file.as_file().set_len(len).unwrap();
            read(file.path(), &ended);
        }
        drop(alive);
        read(file.path(), &ended);
    }
}
