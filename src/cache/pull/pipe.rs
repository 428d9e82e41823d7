//! From the network to a blocking reader: a channel bounded in bytes, with `std::io::Read` at its far end.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::registry;

/// Bytes in the channel at most, in units of [`UNIT`].
const ROOM: u32 = 2048;
const UNIT: usize = 1024;
/// A larger chunk travels in pieces.
const MAX_PIECE: usize = 256 << 10;
/// Messages in the channel at most, however small: each takes at least one unit of room.
const MAX_MESSAGES: usize = 256;

enum Message {
    Piece(Bytes, OwnedSemaphorePermit),
    End,
    Failed(registry::Error),
}

/// The sending end.
pub(in crate::cache) struct Feed {
    to: mpsc::Sender<Message>,
    room: Arc<Semaphore>,
}

/// The reading end. Without an end from the sender, a read fails: a cancelled transfer is never taken for a whole one.
pub(in crate::cache) struct Drain {
    from: mpsc::Receiver<Message>,
    piece: Bytes,
    room: Option<OwnedSemaphorePermit>,
    ended: bool,
}

pub(in crate::cache) fn pipe() -> (Feed, Drain) {
    let (to, from) = mpsc::channel(MAX_MESSAGES);
    let room = Arc::new(Semaphore::new(ROOM as usize));
    (
        Feed { to, room },
        Drain {
            from,
            piece: Bytes::new(),
            room: None,
            ended: false,
        },
    )
}

impl Feed {
    /// Waits for room. False when the reader is gone.
    pub(in crate::cache) async fn send(&self, mut bytes: Bytes) -> bool {
        while bytes.has_remaining() {
            let piece = bytes.split_to(bytes.len().min(MAX_PIECE));
            let units = u32::try_from(piece.len().div_ceil(UNIT))
                .unwrap_or(ROOM)
                .min(ROOM);
            let Ok(room) = self.room.clone().acquire_many_owned(units).await else {
                return false;
            };
            if self.to.send(Message::Piece(piece, room)).await.is_err() {
                return false;
            }
        }
        true
    }

    /// All bytes were sent.
    pub(in crate::cache) async fn end(self) {
        // A reader that is gone has told why already.
        let _ = self.to.send(Message::End).await;
    }

    /// No more bytes will come, for this reason.
    pub(in crate::cache) async fn fail(self, error: registry::Error) {
        let _ = self.to.send(Message::Failed(error)).await;
    }
}

impl Read for Drain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while !self.piece.has_remaining() {
            if self.ended {
                return Ok(0);
            }
            match self.from.blocking_recv() {
                Some(Message::Piece(piece, room)) => {
                    self.piece = piece;
                    self.room = Some(room);
                }
                Some(Message::End) => self.ended = true,
                Some(Message::Failed(error)) => return Err(io::Error::other(error)),
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the transfer was cancelled",
                    ));
                }
            }
        }
        let count = self.piece.remaining().min(buffer.len());
        self.piece
            .copy_to_slice(buffer.get_mut(..count).unwrap_or_default());
        if !self.piece.has_remaining() {
            self.room = None;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(mut drain: Drain) -> std::thread::JoinHandle<io::Result<Vec<u8>>> {
        std::thread::spawn(move || {
            let mut out = Vec::new();
            drain.read_to_end(&mut out).map(|_| out)
        })
    }

    #[tokio::test]
    async fn bytes_arrive_in_order_whatever_the_size_of_the_pieces() {
        let (feed, drain) = pipe();
        let reader = read_all(drain);
        let mut sent = Vec::new();
        for (n, size) in [1usize, 0, 1023, 1024, 1025, 3 << 20, 7]
            .into_iter()
            .enumerate()
        {
            let piece = vec![u8::try_from(n).unwrap(); size];
            sent.extend_from_slice(&piece);
            assert!(feed.send(Bytes::from(piece)).await);
        }
        feed.end().await;
        assert!(reader.join().unwrap().unwrap() == sent);
    }

    #[tokio::test]
    async fn without_an_end_a_read_fails() {
        let (feed, drain) = pipe();
        assert!(feed.send(Bytes::from_static(b"part")).await);
        drop(feed);
        assert!(read_all(drain).join().unwrap().is_err());
    }

    #[tokio::test]
    async fn a_sender_learns_that_the_reader_is_gone_even_while_it_waits_for_room() {
        let (feed, drain) = pipe();
        let sending = tokio::spawn(async move { feed.send(Bytes::from(vec![0; 64 << 20])).await });
        tokio::task::yield_now().await;
        drop(drain);
        assert!(!sending.await.unwrap());
    }

    #[tokio::test]
    async fn no_more_than_the_room_is_ever_in_flight() {
        let (feed, drain) = pipe();
        let mut sending = Box::pin(feed.send(Bytes::from(vec![0; 64 << 20])));
        tokio::select! {
            biased;
            _ = &mut sending => panic!("64 MiB went into the pipe with nobody reading"),
            () = std::future::ready(()) => {}
        }
        let queued: usize = drain.from.len() * MAX_PIECE;
        assert!(queued <= ROOM as usize * UNIT, "{queued}");
    }
}
