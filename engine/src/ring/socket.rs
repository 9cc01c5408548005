//! What the two kernel rings do alike with sockets: tags on events, accepting by hand, ends behind a short
//! read.

use std::collections::HashMap;
use std::io;

use super::{Completion, Fd, Key};
use crate::sys;

/// An operation and its key in the 64 bits a kernel hands back with an event:
/// operation (8 bits), generation (24), index (32).
pub(super) fn tag(op: u8, key: Key) -> u64 {
    let generation = key.generation & Key::GENERATION_MASK;
    u64::from(op) << 56 | u64::from(generation) << 32 | u64::from(key.index)
}

/// Operation and key of a [`tag`].
pub(super) fn untag(tag: u64) -> (u8, Key) {
    let generation = (tag >> 32) as u32 & Key::GENERATION_MASK;
    ((tag >> 56) as u8, Key { index: tag as u32, generation })
}

/// What stands in a key's place for listeners, which are never let twice at once; the doorbell takes number
/// 0.
pub(super) fn listener_key(number: u16) -> Key {
    Key { index: u32::from(number), generation: 0 }
}

/// How [`accept_queued`] left a listener's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backlog {
    Empty,
    More,
    Failed,
}

/// Accepts at most `limit` clients that wait on a listener.
pub(super) fn accept_queued(listener: u16, fd: Fd, limit: usize, out: &mut Vec<Completion>) -> Backlog {
    for _ in 0..limit {
        match sys::accept(fd) {
            Ok(fd) => out.push(Completion::Accepted { listener, fd }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Backlog::Empty,
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                if !sys::concerns_one_client(errno) {
                    out.push(Completion::AcceptFailed { listener, errno });
                    return Backlog::Failed;
                }
            }
        }
    }
    Backlog::More
}

/// Connections whose peer has ended or failed, as far as the shard may not know it yet.
///
/// Bytes and the end behind them can arrive as one event. The shard stops reading at a short read, so the end
/// would never be read: a short read on such a connection earns it another `Readable`.
#[derive(Debug, Default)]
pub(super) struct Hangups {
    keys: HashMap<Fd, Key>,
    again: Vec<Key>,
}

impl Hangups {
    /// Notes that a connection's last event told of an end or an error, if it did (`events` as in poll(2)).
    pub(super) fn note(&mut self, key: Key, fd: Fd, events: u32) {
        const ENDS: u32 = (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) as u32;
        if events & ENDS != 0 {
            self.keys.insert(fd, key);
        }
    }

    /// Reads what is there.
    pub(super) fn recv(&mut self, fd: Fd, into: &mut [u8]) -> io::Result<usize> {
        let read = sys::recv(fd, into)?;
        if read > 0
            && read < into.len()
            && let Some(&key) = self.keys.get(&fd)
        {
            self.again.push(key);
        }
        Ok(read)
    }

    /// Drops what is known of a connection that is being closed.
    pub(super) fn forget(&mut self, key: Key, fd: Fd) {
        self.keys.remove(&fd);
        self.again.retain(|&other| other != key);
    }

    /// Tells the shard again.
    pub(super) fn tell(&mut self, out: &mut Vec<Completion>) {
        out.extend(self.again.drain(..).map(Completion::Readable));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_gives_back_what_was_put_in() {
        for op in [0, 1, 255] {
            for index in [0, 1, u32::MAX] {
                for generation in [0, 1, Key::GENERATION_MASK] {
                    let key = Key { index, generation };
                    assert_eq!(untag(tag(op, key)), (op, key));
                }
            }
        }
    }
}
