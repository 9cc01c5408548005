//! Rings: what a shard asks of the kernel, and what it is told in return.
//!
//! Three implementations stand behind one trait: io_uring ([`uring`]), epoll ([`epoll`], for where io_uring is
//! forbidden) and a simulated network ([`sim`], seeded and in memory). A ring knows file descriptors, buffers and
//! keys; it knows no protocol, session or topic. Completions are queued by [`Ring::turn`] and run by the shard
//! afterwards: a ring never calls back.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::wire_log::Slice;

pub mod epoll;
pub mod refusal;
pub mod sim;
pub mod uring;

#[cfg(test)]
mod conformance;
mod socket;

/// A file descriptor in the table of the shard that owns the ring. Only that ring uses and closes it.
pub type Fd = i32;

/// One connection's place in its shard's table. The generation tells a late completion from the place's next tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Place in the table.
    pub index: u32,
    /// How often the place was let before, modulo 2^24.
    pub generation: u32,
}

impl Key {
    /// Bits of a generation that fit beside index and operation in 64 bits of user data.
    pub const GENERATION_MASK: u32 = (1 << 24) - 1;
}

/// What happened.
#[derive(Debug)]
pub enum Completion {
    /// A client connected. The descriptor is non-blocking and close-on-exec.
    Accepted {
        /// Which listener, as given to [`Ring::listen`].
        listener: u16,
        /// The new connection.
        fd: Fd,
    },
    /// Accepting has ended with this error (EMFILE, ENFILE, ENOBUFS, ENOMEM, …) and goes on after the next
    /// [`Ring::accept`]. Clients in the backlog are kept meanwhile.
    AcceptFailed {
        /// Which listener.
        listener: u16,
        /// `errno`.
        errno: i32,
    },
    /// There is something to read: bytes, end of stream or an error. Told once per arrival (edge): read until
    /// [`Ring::recv`] gives fewer bytes than asked for, or would block.
    Readable(Key),
    /// There is room to write again, or an error to find. Told once per [`Ring::await_writable`].
    Writable(Key),
    /// A send has ended; the ring has let go of its slice. `Ok(n)` may be short, `Err(EAGAIN)` means nothing went.
    Sent {
        /// Whose.
        key: Key,
        /// Bytes taken by the kernel, or `errno`.
        result: Result<usize, i32>,
    },
    /// The connection is closed and nothing of it is in flight any more: its place may be let again.
    Closed(Key),
    /// Another thread has put something on a lane to this shard.
    Doorbell,
}

/// The two clocks, read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, nanoseconds since an arbitrary start. Timers and ages use it.
    pub mono: u64,
    /// Wall clock, milliseconds since the Unix epoch. Timestamps and token expiry use it.
    pub wall: u64,
}

impl Now {
    /// The monotonic clock in milliseconds.
    pub fn millis(self) -> u64 {
        self.mono / 1_000_000
    }
}

/// A kernel, or something that behaves like one.
///
/// Rules that hold for every implementation:
/// * at most one [`send`](Self::send) per key is in flight; its slice is held until `Sent`;
/// * after [`close`](Self::close) a key gets its outstanding `Sent`, if any, then `Closed`, and nothing else;
/// * no call blocks but [`turn`](Self::turn), and no call reports through anything but its result and `turn`.
pub trait Ring {
    /// Starts accepting on a listening socket (non-blocking, already bound to this shard).
    fn listen(&mut self, listener: u16, fd: Fd);
    /// Accepts again after `AcceptFailed`.
    fn accept(&mut self, listener: u16);
    /// Ends accepting and closes the listening socket. Connections already in its queue are still reported as
    /// `Accepted` by the turns that follow.
    fn stop_accepting(&mut self, listener: u16);
    /// Starts watching a connection for input.
    fn register(&mut self, key: Key, fd: Fd);
    /// Reads what is there now. `Ok(0)` is the end of the stream.
    fn recv(&mut self, fd: Fd, into: &mut [u8]) -> io::Result<usize>;
    /// Writes what fits now: a reply, outside the order of [`send`](Self::send); never while one is in flight.
    fn send_now(&mut self, fd: Fd, bytes: &[u8]) -> io::Result<usize>;
    /// Queues a send; it goes out with the next [`turn`](Self::turn) or [`submit`](Self::submit).
    fn send(&mut self, key: Key, fd: Fd, slice: Slice);
    /// Asks for one `Writable`.
    fn await_writable(&mut self, key: Key, fd: Fd);
    /// Closes a connection: nothing more is sent or read. `reset` drops unsent bytes with a RST.
    fn close(&mut self, key: Key, fd: Fd, reset: bool);
    /// Refuses a connection just accepted, that has no key yet.
    fn refuse(&mut self, fd: Fd);
    /// The peer's address; `None` for AF_UNIX.
    fn peer(&self, fd: Fd) -> Option<SocketAddr>;
    /// Hands queued operations to the kernel and collects what has completed, without waiting.
    fn submit(&mut self, completions: &mut Vec<Completion>);
    /// Like [`submit`](Self::submit), but waits until something completes or `wait` is over (`None`: no limit).
    fn turn(&mut self, wait: Option<Duration>, completions: &mut Vec<Completion>);
    /// The clocks.
    fn now(&self) -> Now;
    /// What runs here, for logs and metrics: `"io_uring"`, `"epoll"`, `"sim"`.
    fn name(&self) -> &'static str;
    /// Events of the ring itself since the last call, for the counters.
    fn take_counts(&mut self) -> Counts;
}

/// What a ring counts of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// System calls that enter the kernel to submit or wait.
    pub enters: u64,
    /// Completion queue overflows.
    pub overflows: u64,
    /// Multishot operations armed again after the kernel had ended them.
    pub rearms: u64,
}
