//! The simulated ring: a network in memory, on virtual time, the same for the same seed.
//!
//! A [`SimNet`] is shared by the [`SimRing`]s of any number of shards and by the simulated clients; all of
//! them run in one thread. Time stands still until [`SimNet::advance`]; whatever is delayed is an event on
//! that clock. The loop of a simulation is: let clients act, give every shard a turn until nothing comes,
//! advance to the next event or timer.
//!
//! What goes wrong, and how often, is said by [`Faults`]. Nothing that the [`Ring`] trait promises is ever
//! broken; everything that it doesn't promise happens sooner or later. Two things are kinder than Linux: a
//! client's bytes for a connection that the server has closed are dropped without a RST, and so is input
//! unread at a close.

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use self::net::Net;
use self::random::Random;
use super::{Completion, Counts, Fd, Key, Now, Ring};
use crate::wire_log::Slice;

mod net;
pub(crate) mod random;
mod state;

/// How often things go wrong: probabilities from 0 to 1, and the bounds of what happens then. The default is
/// a network without faults or delays.
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    /// Per read: fewer bytes than there are.
    pub short_recv: f64,
    /// Per send: fewer bytes than there is room for.
    pub short_send: f64,
    /// Per send: nothing goes (`EAGAIN`), although there is room.
    pub send_would_block: f64,
    /// Per packet from a client: it is late, or its end is.
    pub delay_to_server: f64,
    /// Per packet to a client: it is late, or its end is.
    pub delay_to_client: f64,
    /// Per completion: it is told late. Those of one connection stay in order.
    pub delay_completion: f64,
    /// The longest of these delays.
    pub max_delay: Duration,
    /// Per collection: completions of different connections change places.
    pub reorder: f64,
    /// Per packet: the connection is reset instead, on both sides.
    pub reset: f64,
    /// Per client to accept: accepting fails (`EMFILE`), up to `accept_burst` times in a row.
    pub accept_fails: f64,
    /// The longest such burst.
    pub accept_burst: u32,
    /// Room for bytes between a server's socket and its client, bytes.
    pub send_buffer: usize,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            short_recv: 0.0,
            short_send: 0.0,
            send_would_block: 0.0,
            delay_to_server: 0.0,
            delay_to_client: 0.0,
            delay_completion: 0.0,
            max_delay: Duration::ZERO,
            reorder: 0.0,
            reset: 0.0,
            accept_fails: 0.0,
            accept_burst: 1,
            send_buffer: 256 << 10,
        }
    }
}

impl Faults {
    /// Faults drawn by a seed: each kind is absent in half of the draws, so that each also meets the others'
    /// absence.
    pub fn from_seed(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut often = |most: f64| {
            if random.chance(0.5) { most * random.unit() } else { 0.0 }
        };
        Self {
            short_recv: often(0.5),
            short_send: often(0.5),
            send_would_block: often(0.3),
            delay_to_server: often(0.5),
            delay_to_client: often(0.5),
            delay_completion: often(0.5),
            reorder: often(1.0),
            reset: often(0.01),
            accept_fails: often(0.3),
            accept_burst: 1 + random.below(8) as u32,
            max_delay: Duration::from_micros(1 << random.below(20)),
            send_buffer: 1 << (6 + random.below(14)),
        }
    }
}

/// A simulated client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(u32);

/// What a client sees of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadState {
    /// Bytes that can be read now.
    pub unread: usize,
    /// How the server's side of the stream has ended, if it has.
    pub end: End,
}

/// The state of a stream in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// More may come.
    #[default]
    Open,
    /// The other side has closed; what it sent before can be read.
    Finished,
    /// The connection was refused or reset.
    Reset,
}

/// The network. Clones are the same network.
#[derive(Clone)]
pub struct SimNet(Rc<RefCell<Net>>);

impl SimNet {
    /// An empty network. `wall` is what the wall clock shows at the start, milliseconds since the Unix epoch;
    /// the monotonic clock starts at 0.
    pub fn new(seed: u64, faults: Faults, wall: u64) -> Self {
        assert!(faults.send_buffer > 0, "nothing could ever be sent");
        Self(Rc::new(RefCell::new(Net::new(seed, faults, wall))))
    }

    /// The ring of a shard, to be taken once each.
    pub fn ring(&self, shard: usize) -> SimRing {
        self.0.borrow_mut().add_shard(shard);
        SimRing { net: Rc::clone(&self.0), shard }
    }

    /// Connects to a shard's listener from an address that no other client has. A connection that is refused
    /// shows as [`End::Reset`].
    pub fn connect(&self, shard: usize, listener: u16) -> ClientId {
        let [_, a, b, c] = self.0.borrow().next_client().to_be_bytes();
        let peer = SocketAddr::new(Ipv4Addr::new(10, a, b, c).into(), 40_000);
        self.connect_from(shard, listener, Some(peer))
    }

    /// Connects from a given address; `None` is AF_UNIX.
    pub fn connect_from(&self, shard: usize, listener: u16, peer: Option<SocketAddr>) -> ClientId {
        ClientId(self.0.borrow_mut().connect(shard, listener, peer))
    }

    /// Sends bytes to the server. A client's own buffer has no bound.
    pub fn client_write(&self, client: ClientId, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.0.borrow_mut().client_writes(client.0, bytes);
        }
    }

    /// Reads at most `max` bytes of what has arrived.
    pub fn client_read(&self, client: ClientId, max: usize) -> Vec<u8> {
        self.0.borrow_mut().client_reads(client.0, max)
    }

    /// What the client sees.
    pub fn client_state(&self, client: ClientId) -> ReadState {
        self.0.borrow_mut().client_state(client.0)
    }

    /// Closes the client's end: the server reads what was sent, then the end of the stream. What still comes
    /// from the server is answered with a RST.
    pub fn client_close(&self, client: ClientId) {
        self.0.borrow_mut().client_closes(client.0);
    }

    /// Resets the connection: bytes on their way are lost in both directions.
    pub fn client_reset(&self, client: ClientId) {
        self.0.borrow_mut().client_resets(client.0);
    }

    /// Stops the client from taking bytes (`true`: a zero window, so that the server's send buffer fills up),
    /// or has it take them again.
    pub fn client_stall(&self, client: ClientId, stalled: bool) {
        self.0.borrow_mut().client_stalls(client.0, stalled);
    }

    /// Lets time pass, and all that happens meanwhile.
    pub fn advance(&self, time: Duration) {
        self.0.borrow_mut().advance(time.as_nanos() as u64);
    }

    /// When something is due, in nanoseconds of the monotonic clock: now, if a shard has something to collect
    /// or an event is overdue; `None` if nothing will happen by itself.
    pub fn next_event_time(&self) -> Option<u64> {
        self.0.borrow().next_event_time()
    }

    /// The clocks.
    pub fn now(&self) -> Now {
        self.0.borrow().clocks()
    }

    /// Has other things go wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.0.borrow_mut().set_faults(faults);
    }

    /// Sets the wall clock, as NTP or an operator would; the monotonic clock doesn't notice.
    pub fn set_wall(&self, wall: u64) {
        self.0.borrow_mut().set_wall(wall);
    }
}

/// One shard's ring in a [`SimNet`].
pub struct SimRing {
    net: Rc<RefCell<Net>>,
    shard: usize,
}

impl Ring for SimRing {
    /// The descriptor means nothing here: clients name a listener by shard and number.
    fn listen(&mut self, listener: u16, _fd: Fd) {
        self.net.borrow_mut().listen(self.shard, listener);
    }

    fn accept(&mut self, listener: u16) {
        self.net.borrow_mut().accept(self.shard, listener);
    }

    fn stop_accepting(&mut self, listener: u16) {
        self.net.borrow_mut().stop_accepting(self.shard, listener);
    }

    fn register(&mut self, key: Key, fd: Fd) {
        self.net.borrow_mut().register(self.shard, key, fd);
    }

    fn recv(&mut self, fd: Fd, into: &mut [u8]) -> io::Result<usize> {
        self.net.borrow_mut().recv(self.shard, fd, into)
    }

    fn send_now(&mut self, fd: Fd, bytes: &[u8]) -> io::Result<usize> {
        self.net.borrow_mut().send_now(self.shard, fd, bytes)
    }

    fn send(&mut self, key: Key, fd: Fd, slice: Slice) {
        self.net.borrow_mut().send(self.shard, key, fd, slice);
    }

    fn await_writable(&mut self, key: Key, fd: Fd) {
        self.net.borrow_mut().await_writable(self.shard, key, fd);
    }

    fn close(&mut self, key: Key, fd: Fd, reset: bool) {
        self.net.borrow_mut().close(self.shard, key, fd, reset);
    }

    fn refuse(&mut self, fd: Fd) {
        self.net.borrow_mut().refuse(self.shard, fd);
    }

    fn peer(&self, fd: Fd) -> Option<SocketAddr> {
        self.net.borrow().peer(self.shard, fd)
    }

    fn submit(&mut self, completions: &mut Vec<Completion>) {
        self.net.borrow_mut().collect(self.shard, completions);
    }

    /// Never waits: gives what is due at the present virtual time.
    fn turn(&mut self, _wait: Option<Duration>, completions: &mut Vec<Completion>) {
        self.submit(completions);
    }

    fn now(&self) -> Now {
        self.net.borrow().clocks()
    }

    fn name(&self) -> &'static str {
        "sim"
    }

    fn take_counts(&mut self) -> Counts {
        self.net.borrow_mut().take_counts(self.shard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2025-11-20T10:30:00Z.
    const WALL: u64 = 1_763_634_600_000;

    fn net_with_listener(faults: Faults) -> (SimNet, SimRing) {
        let net = SimNet::new(0, faults, WALL);
        let mut ring = net.ring(0);
        ring.listen(0, 0);
        (net, ring)
    }

    fn turn(ring: &mut SimRing) -> Vec<Completion> {
        let mut out = Vec::new();
        ring.turn(None, &mut out);
        out
    }

    /// Takes the only completion there is, which must be a client, and watches it.
    fn accept(ring: &mut SimRing, index: u32) -> (Key, Fd) {
        let told = turn(ring);
        let [Completion::Accepted { fd, .. }] = told[..] else { panic!("{told:?}") };
        let key = Key { index, generation: 0 };
        ring.register(key, fd);
        (key, fd)
    }

    #[test]
    fn the_clocks_run_together_and_the_wall_can_be_set() {
        let (net, ring) = net_with_listener(Faults::default());
        assert_eq!(ring.now(), Now { mono: 0, wall: WALL });
        net.advance(Duration::from_millis(2500));
        assert_eq!(ring.now(), Now { mono: 2_500_000_000, wall: WALL + 2500 });
        net.set_wall(WALL - 3_600_000);
        net.advance(Duration::from_millis(1));
        assert_eq!(net.now(), Now { mono: 2_501_000_000, wall: WALL - 3_599_999 });
    }

    #[test]
    fn nothing_is_due_until_somebody_acts() {
        let slow = Duration::from_millis(10);
        let faults = Faults { delay_to_server: 1.0, max_delay: slow, ..Faults::default() };
        let (net, mut ring) = net_with_listener(faults);
        assert_eq!(net.next_event_time(), None);
        net.connect(0, 0);
        let due = net.next_event_time().unwrap();
        assert!(due > 0 && turn(&mut ring).is_empty());
        net.advance(Duration::from_nanos(due));
        assert_eq!(net.next_event_time(), Some(due), "there is something to collect");
        accept(&mut ring, 0);
        assert_eq!(net.next_event_time(), None);
    }

    #[test]
    fn every_shard_has_its_own_listeners_and_descriptors() {
        let (net, mut first) = net_with_listener(Faults::default());
        let mut second = net.ring(1);
        second.listen(0, 0);
        let peer = Some(SocketAddr::from(([192, 0, 2, 1], 7)));
        let (a, b) = (net.connect_from(1, 0, peer), net.connect_from(0, 0, None));
        let ((_, fd_b), (_, fd_a)) = (accept(&mut first, 0), accept(&mut second, 0));
        assert_eq!(fd_a, fd_b, "one number, two tables");
        assert_eq!((second.peer(fd_a), first.peer(fd_b)), (peer, None));
        second.send_now(fd_a, b"second").unwrap();
        first.send_now(fd_b, b"first").unwrap();
        assert_eq!(net.client_read(a, 100), b"second");
        assert_eq!(net.client_read(b, 100), b"first");
    }

    #[test]
    fn a_client_is_refused_where_nobody_listens() {
        let (net, mut ring) = net_with_listener(Faults::default());
        let client = net.connect(0, 1);
        assert_eq!(net.client_state(client), ReadState { unread: 0, end: End::Reset });
        assert!(turn(&mut ring).is_empty());
    }

    #[test]
    fn a_stalled_client_leaves_the_buffer_full() {
        let (net, mut ring) = net_with_listener(Faults { send_buffer: 10, ..Faults::default() });
        let client = net.connect(0, 0);
        let (key, fd) = accept(&mut ring, 0);
        net.client_stall(client, true);
        assert_eq!(ring.send_now(fd, b"twelve bytes").unwrap(), 10);
        let full = ring.send_now(fd, b"es").unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        ring.await_writable(key, fd);
        net.advance(Duration::from_secs(60));
        assert!(turn(&mut ring).is_empty());
        assert_eq!(net.client_state(client).unread, 0);
        net.client_stall(client, false);
        let told = turn(&mut ring);
        assert!(matches!(told[..], [Completion::Writable(told)] if told == key), "{told:?}");
        assert_eq!(net.client_read(client, 100), b"twelve byt");
    }

    #[test]
    fn a_buffer_may_shrink_below_what_it_holds() {
        let (net, mut ring) = net_with_listener(Faults::default());
        let client = net.connect(0, 0);
        let (key, fd) = accept(&mut ring, 0);
        net.client_stall(client, true);
        assert_eq!(ring.send_now(fd, &[7; 100]).unwrap(), 100);
        net.set_faults(Faults { send_buffer: 10, ..Faults::default() });
        assert_eq!(ring.send_now(fd, b"more").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        ring.await_writable(key, fd);
        assert!(turn(&mut ring).is_empty());
        net.client_stall(client, false);
        assert_eq!(turn(&mut ring).len(), 1);
        assert_eq!(ring.send_now(fd, b"more").unwrap(), 4);
        assert_eq!(net.client_read(client, 200).len(), 104);
    }

    #[test]
    fn bytes_for_a_client_that_has_closed_come_back_as_a_reset() {
        let (net, mut ring) = net_with_listener(Faults::default());
        let client = net.connect(0, 0);
        let (_, fd) = accept(&mut ring, 0);
        net.client_write(client, b"bye");
        net.client_close(client);
        assert_eq!(turn(&mut ring).len(), 1);
        let mut buffer = [0; 9];
        assert_eq!(ring.recv(fd, &mut buffer).unwrap(), 3);
        assert_eq!(turn(&mut ring).len(), 1, "the end is behind the bytes");
        assert_eq!(ring.recv(fd, &mut buffer).unwrap(), 0);
        ring.send_now(fd, b"still there?").unwrap();
        assert_eq!(turn(&mut ring).len(), 1);
        let error = ring.recv(fd, &mut buffer).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
        assert!(ring.send_now(fd, b"hello?").is_err());
        let counts = ring.take_counts();
        assert_eq!((counts.enters, ring.take_counts().enters), (4, 0));
    }
}
