//! The bytes of a blob on their way to who asked, wherever they are.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use crate::cache::Error;
use crate::cache::threads::Threads;
use crate::registry::BlobStream;
use crate::store::KeptBlob;

use super::fill::{Fill, State};

/// Bytes read at once.
const PIECE: usize = 256 << 10;

/// Where what is given out was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// On this node.
    Local,
    /// Somebody else was fetching it.
    Shared,
    /// At the registry.
    Registry,
}

/// A blob, or a part of it.
#[derive(Debug)]
pub struct Relayed {
    subject: String,
    size: u64,
    origin: Origin,
    /// The next byte, and the one after the last.
    at: u64,
    end: u64,
    source: Source,
    threads: Threads,
}

#[derive(Debug)]
pub(super) enum Source {
    Bytes(Bytes),
    Kept(Arc<KeptBlob>),
    Fill(Arc<Fill>, watch::Receiver<State>),
    Stream(Box<BlobStream>),
}

impl Relayed {
    pub(super) fn new(
        (subject, size): (String, u64),
        origin: Origin,
        (at, end): (u64, u64),
        source: Source,
        threads: Threads,
    ) -> Self {
        Relayed {
            subject,
            size,
            origin,
            at,
            end,
            source,
            threads,
        }
    }

    /// Of the whole blob, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where it comes from.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<Bytes, Arc<Error>>> {
        if self.at >= self.end {
            return None;
        }
        let piece = self.piece().await;
        let piece = piece.map(|mut bytes| {
            let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
            bytes.truncate(left);
            self.at += bytes.len() as u64;
            bytes
        });
        match piece {
            Ok(bytes) if bytes.is_empty() => Some(Err(Arc::new(Error::Internal {
                subject: self.subject.clone(),
                cause: format!("only {} of {} bytes are there", self.at, self.end),
            }))),
            piece => {
                if piece.is_err() {
                    self.end = self.at;
                }
                Some(piece)
            }
        }
    }

    async fn piece(&mut self) -> Result<Bytes, Arc<Error>> {
        match &mut self.source {
            Source::Bytes(bytes) => {
                let at = usize::try_from(self.at).unwrap_or(usize::MAX);
                Ok(bytes.slice(at.min(bytes.len())..))
            }
            Source::Kept(blob) => {
                let blob = blob.clone();
                read(&self.threads, &self.subject, blob, self.at, self.end).await
            }
            Source::Fill(fill, state) => {
                let at = self.at;
                let reached = |state: &State| match state {
                    State::Opening => false,
                    State::Moving(bytes) => *bytes > at,
                    State::Done | State::Failed(_) => true,
                };
                let end = match state.wait_for(reached).await {
                    Ok(state) => match &*state {
                        State::Moving(bytes) => *bytes,
                        State::Failed(error) => return Err(error.clone()),
                        State::Done | State::Opening => fill.size,
                    },
                    Err(_) => {
                        return Err(Arc::new(Error::Internal {
                            subject: self.subject.clone(),
                            cause: "its download ended early".to_owned(),
                        }));
                    }
                };
                let (file, end) = (fill.file.clone(), end.min(self.end));
                read(&self.threads, &self.subject, file, at, end).await
            }
            Source::Stream(stream) => match stream.next().await {
                Some(Ok(bytes)) => Ok(bytes),
                Some(Err(source)) => Err(Arc::new(Error::Registry {
                    reference: self.subject.clone(),
                    source,
                })),
                None => Ok(Bytes::new()),
            },
        }
    }
}

async fn read(
    threads: &Threads,
    subject: &str,
    blob: Arc<KeptBlob>,
    at: u64,
    end: u64,
) -> Result<Bytes, Arc<Error>> {
    let length = usize::try_from(end.saturating_sub(at)).unwrap_or(PIECE);
    let length = length.min(PIECE);
    let done = threads.block(subject, move || {
        let mut buffer = vec![0; length];
        let count = blob.read_at(&mut buffer, at)?;
        buffer.truncate(count);
        Ok::<_, std::io::Error>(Bytes::from(buffer))
    });
    match done.await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(Arc::new(Error::Internal {
            subject: subject.to_owned(),
            cause: format!("what is kept cannot be read: {error}"),
        })),
        Err(error) => Err(Arc::new(error)),
    }
}
