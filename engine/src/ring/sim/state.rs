//! The state of a simulated network: connections, listeners, descriptors, and what waits to be told.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::net::SocketAddr;

use super::End;
use crate::ring::{Completion, Counts, Fd, Key};
use crate::wire_log::Slice;

/// An event to come. Ordered by time, then by when it was scheduled.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Scheduled {
    pub(super) at: u64,
    pub(super) sequence: u64,
    pub(super) event: Event,
}

/// What happens to a connection, given by its client's number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// The connection reaches its listener.
    Connect(u32),
    /// Its oldest packet on the way reaches the server.
    ToServer(u32),
    /// Its oldest packet on the way reaches the client.
    ToClient(u32),
    /// A RST reaches both sides.
    Reset(u32),
    /// Its oldest completion that is late is told.
    Tell(u32),
}

/// What travels in one direction of a connection.
#[derive(Debug)]
pub(super) enum Packet {
    Bytes(Vec<u8>),
    Fin,
}

/// One connection, both ends of it.
#[derive(Default)]
pub(super) struct Conn {
    pub(super) shard: usize,
    pub(super) listener: u16,
    pub(super) peer: Option<SocketAddr>,
    pub(super) fd: Fd,
    pub(super) key: Option<Key>,

    pub(super) registered: bool,
    /// A `Readable` is told or about to be, and not collected.
    pub(super) readable: bool,
    pub(super) awaits_room: bool,
    /// From `send` until its `Sent` is collected.
    pub(super) in_flight: bool,
    pub(super) closing: bool,
    /// The server's input, and how it ends.
    pub(super) inbox: VecDeque<u8>,
    pub(super) end: End,
    /// The server has read ECONNRESET: told once, as the kernel does.
    pub(super) reset_read: bool,
    /// Completions told later, in order.
    pub(super) late: VecDeque<Told>,

    pub(super) to_server: VecDeque<Packet>,
    pub(super) to_client: VecDeque<Packet>,
    /// Bytes in `to_client`.
    pub(super) buffered: usize,

    pub(super) client_inbox: VecDeque<u8>,
    pub(super) client_end: End,
    /// The client has closed or reset.
    pub(super) client_gone: bool,
    pub(super) stalled: bool,
    /// Packets that have arrived while the client was stalled.
    pub(super) held: usize,
}

/// A completion, what it belongs to, and the slice it lets go of.
pub(super) struct Told {
    pub(super) conn: Option<u32>,
    pub(super) completion: Completion,
    /// Dropped when the completion is collected, not before.
    pub(super) slice: Option<Slice>,
}

/// One ring's side of the network, and what its shard has asked for or is to be told.
#[derive(Default)]
pub(super) struct Shard {
    pub(super) listeners: Vec<Option<Listener>>,
    pub(super) files: Files,
    pub(super) sends: Vec<(u32, Slice)>,
    pub(super) closes: Vec<(u32, bool)>,
    pub(super) told: Vec<Told>,
    pub(super) counts: Counts,
}

impl Shard {
    pub(super) fn has_work(&self) -> bool {
        !(self.told.is_empty() && self.sends.is_empty() && self.closes.is_empty())
    }
}

/// A listening socket and the clients in its queue.
#[derive(Default)]
pub(super) struct Listener {
    pub(super) armed: bool,
    pub(super) stopping: bool,
    pub(super) backlog: VecDeque<u32>,
    /// How often accepting will fail again.
    pub(super) failing: u32,
}

/// A table of descriptors; like a kernel's, it gives the lowest free number.
#[derive(Default)]
pub(super) struct Files {
    conns: Vec<Option<u32>>,
    free: BinaryHeap<Reverse<usize>>,
}

impl Files {
    /// Standard input, output and error come before.
    const FIRST: usize = 3;

    pub(super) fn open(&mut self, conn: u32) -> Fd {
        let place = self.free.pop().map_or(self.conns.len(), |Reverse(place)| place);
        if place == self.conns.len() {
            self.conns.push(None);
        }
        self.conns[place] = Some(conn);
        (place + Self::FIRST) as Fd
    }

    pub(super) fn get(&self, fd: Fd) -> Option<u32> {
        let place = usize::try_from(fd).ok()?.checked_sub(Self::FIRST)?;
        self.conns.get(place).copied().flatten()
    }

    pub(super) fn close(&mut self, fd: Fd) {
        let place = fd as usize - Self::FIRST;
        self.conns[place] = None;
        self.free.push(Reverse(place));
    }
}

impl Conn {
    /// What reading gives when there are no bytes.
    pub(super) fn read_end(&mut self) -> io::Result<usize> {
        match self.end {
            End::Open => Err(io::ErrorKind::WouldBlock.into()),
            End::Reset if !std::mem::replace(&mut self.reset_read, true) => {
                Err(io::Error::from_raw_os_error(libc::ECONNRESET))
            }
            End::Finished | End::Reset => Ok(0),
        }
    }

    pub(super) fn let_to(&mut self, key: Key) {
        assert!(!self.closing, "{key:?}: used after close");
        assert_eq!(*self.key.get_or_insert(key), key, "one connection, two keys");
    }
}
