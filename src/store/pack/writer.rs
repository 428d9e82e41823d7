//! The thread of an ingest that writes to packs, past the page cache where the file system can.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::BLOCK;

/// One write.
pub(super) const BUFFER: usize = 1 << 20;
/// Filled, being written, and being filled.
const BUFFERS: usize = 3;

/// A buffer aligned for `O_DIRECT`, without unsafe code: the aligned part of a larger one.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new() -> Self {
        let bytes = vec![0; BUFFER + BLOCK as usize];
        let start = bytes.as_ptr().align_offset(BLOCK as usize);
        // Alignment of a byte pointer always succeeds within one block.
        let start = if start < BLOCK as usize { start } else { 0 };
        Buffer { bytes, start }
    }
    pub(super) fn whole(&mut self) -> &mut [u8] {
        let start = self.start;
        self.bytes
            .get_mut(start..start + BUFFER)
            .unwrap_or_default()
    }
    fn filled(&self, len: usize) -> &[u8] {
        self.bytes
            .get(self.start..self.start + len)
            .unwrap_or_default()
    }
}

struct Job {
    file: Arc<File>,
    offset: u64,
    buffer: Buffer,
    len: usize,
}

/// Some file systems take `O_DIRECT` when a file is opened and refuse the write: then it goes on without.
fn write(job: &Job) -> io::Result<()> {
    let bytes = job.buffer.filled(job.len);
    match job.file.write_all_at(bytes, job.offset) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            let flags = fcntl_getfl(&job.file)?;
            if !flags.contains(OFlags::DIRECT) {
                return Err(error);
            }
            fcntl_setfl(&job.file, flags - OFlags::DIRECT)?;
            job.file.write_all_at(bytes, job.offset)
        }
        other => other,
    }
}

/// The thread that writes. Jobs are done in order, so a later write to the same place wins.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: Option<SyncSender<Job>>,
    done: Receiver<(Buffer, io::Result<()>)>,
    under_way: usize,
    idle: Vec<Buffer>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start() -> io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(BUFFERS);
        let (finished, done) = channel();
        let thread = std::thread::Builder::new()
            .name("larder-pack".to_owned())
            .spawn(move || {
                for job in queue {
                    let result = write(&job);
                    if finished.send((job.buffer, result)).is_err() {
                        break;
                    }
                }
            })?;
        Ok(Writer {
            jobs: Some(jobs),
            done,
            under_way: 0,
            idle: Vec::new(),
            thread: Some(thread),
        })
    }

    pub(super) fn buffer(&mut self) -> io::Result<Buffer> {
        if let Some(buffer) = self.idle.pop() {
            return Ok(buffer);
        }
        if self.under_way + 1 < BUFFERS {
            return Ok(Buffer::new());
        }
        self.wait_one()?;
        self.idle
            .pop()
            .ok_or_else(|| io::Error::other("the pack writer lost a buffer"))
    }

    pub(super) fn submit(
        &mut self,
        file: &Arc<File>,
        offset: u64,
        buffer: Buffer,
        len: usize,
    ) -> io::Result<()> {
        let job = Job {
            file: file.clone(),
            offset,
            buffer,
            len,
        };
        let gone = || io::Error::other("the pack writer has ended");
        self.jobs
            .as_ref()
            .ok_or_else(gone)?
            .send(job)
            .map_err(|_| gone())?;
        self.under_way += 1;
        Ok(())
    }

    pub(super) fn wait_one(&mut self) -> io::Result<()> {
        let (buffer, result) = self
            .done
            .recv()
            .map_err(|_| io::Error::other("the pack writer has ended"))?;
        self.under_way -= 1;
        self.idle.push(buffer);
        result
    }

    pub(super) fn wait_all(&mut self) -> io::Result<()> {
        let mut outcome = Ok(());
        while self.under_way > 0 {
            let before = self.under_way;
            let result = self.wait_one();
            if self.under_way == before {
                return result;
            }
            outcome = outcome.and(result);
        }
        outcome
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(super) fn open_for_writing(path: &Path, new: bool) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(new).mode(0o600);
    let direct = options
        .clone()
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(path);
    match direct {
        // Such as tmpfs, which has nothing to go past. It may have made the file.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            options.create_new(false).create(new).open(path)
        }
        other => other,
    }
}
