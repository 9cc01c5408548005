//! One suite for every ring: what the trait promises, tried with real sockets and with the simulated network.

use std::collections::HashSet;
use std::fmt::Debug;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::epoll::Epoll;
use super::sim::random::{Random, mix};
use super::sim::{ClientId, End, Faults, SimNet, SimRing};
use super::uring::Uring;
use super::*;
use crate::sys;
use crate::wire_log::{Pool, Slice, WireLog};

/// A ring with one listener, number 0, and clients that connect to it.
trait World {
    type Ring: Ring;
    fn ring(&mut self) -> &mut Self::Ring;
    /// Connects a client; `None` if it is refused.
    fn connect(&mut self) -> Option<usize>;
    /// Writes what fits now.
    fn write(&mut self, client: usize, bytes: &[u8]) -> usize;
    fn read(&mut self, client: usize, max: usize) -> Got;
    fn close(&mut self, client: usize);
    fn reset(&mut self, client: usize);
    /// The address the ring must see.
    fn address(&self, client: usize) -> Option<SocketAddr>;
    /// Gives a turn, and lets a little time pass.
    fn turn(&mut self, out: &mut Vec<Completion>);
    /// Lets everything arrive that is on its way, without a turn.
    fn settle(&mut self);
    /// Whether a RST is told from an end here; AF_UNIX has none.
    fn has_resets(&self) -> bool;
}

#[derive(Debug, PartialEq, Eq)]
enum Got {
    Bytes(Vec<u8>),
    Nothing,
    End,
    Reset,
}

/// Real sockets.
struct Sockets<R> {
    ring: R,
    bell: Fd,
    place: Place,
    clients: Vec<Option<Client>>,
}

enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf, #[expect(dead_code, reason = "keeps the directory")] tempfile::TempDir),
}

enum Client {
    Tcp(TcpStream),
    Unix(UnixStream),
}

trait Make: Ring {
    fn make(bell: Fd) -> Self;
}

impl Make for Uring {
    fn make(bell: Fd) -> Self {
        Uring::new(256, bell).unwrap()
    }
}

impl Make for Epoll {
    fn make(bell: Fd) -> Self {
        Epoll::new(bell).unwrap()
    }
}

/// A world whose queues overflow at the slightest occasion.
fn tiny() -> Sockets<Uring> {
    Sockets::tcp_on("127.0.0.1:0", |bell| Uring::with_queues(4, 8, bell).unwrap())
}

impl<R: Make> Sockets<R> {
    fn tcp(address: &str) -> Self {
        Self::tcp_on(address, R::make)
    }

    fn unix() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ring.sock");
        let listener = sys::unix_listener(&path).unwrap();
        Self::on(listener, Place::Unix(path, dir), R::make)
    }
}

impl<R: Ring> Sockets<R> {
    fn tcp_on(address: &str, make: impl FnOnce(Fd) -> R) -> Self {
        let listener = sys::tcp_listener(address.parse().unwrap(), false, true, 1024).unwrap();
        let place = Place::Tcp(sys::bound_addr(listener).unwrap());
        Self::on(listener, place, make)
    }

    fn on(listener: Fd, place: Place, make: impl FnOnce(Fd) -> R) -> Self {
        // Accepted sockets inherit it: sends are short sooner.
        sys::set_send_buffer(listener, 16 << 10).unwrap();
        let bell = sys::eventfd().unwrap();
        let mut ring = make(bell);
        ring.listen(0, listener);
        Self { ring, bell, place, clients: Vec::new() }
    }

    fn stream<T>(&mut self, client: usize, act: impl FnOnce(&mut dyn ReadWrite) -> T) -> T {
        match self.clients[client].as_mut().expect("the client has closed") {
            Client::Tcp(stream) => act(stream),
            Client::Unix(stream) => act(stream),
        }
    }
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

impl<R> Drop for Sockets<R> {
    fn drop(&mut self) {
        sys::close(self.bell);
    }
}

impl<R: Ring> World for Sockets<R> {
    type Ring = R;

    fn ring(&mut self) -> &mut R {
        &mut self.ring
    }

    fn connect(&mut self) -> Option<usize> {
        let client = match &self.place {
            Place::Tcp(address) => TcpStream::connect(address).map(|stream| {
                stream.set_nonblocking(true).unwrap();
                Client::Tcp(stream)
            }),
            Place::Unix(path, _) => UnixStream::connect(path).map(|stream| {
                stream.set_nonblocking(true).unwrap();
                Client::Unix(stream)
            }),
        };
        self.clients.push(Some(client.ok()?));
        Some(self.clients.len() - 1)
    }

    fn write(&mut self, client: usize, bytes: &[u8]) -> usize {
        match self.stream(client, |stream| stream.write(bytes)) {
            Ok(written) => written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("client {client}: {error}"),
        }
    }

    fn read(&mut self, client: usize, max: usize) -> Got {
        let mut bytes = vec![0; max];
        match self.stream(client, |stream| stream.read(&mut bytes)) {
            Ok(0) => Got::End,
            Ok(read) => {
                bytes.truncate(read);
                Got::Bytes(bytes)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Got::Nothing,
            Err(_) => Got::Reset,
        }
    }

    fn close(&mut self, client: usize) {
        self.clients[client] = None;
    }

    fn reset(&mut self, client: usize) {
        if let Some(Client::Tcp(stream)) = &self.clients[client] {
            sys::reset_on_close(stream.as_raw_fd());
        }
        self.clients[client] = None;
    }

    fn address(&self, client: usize) -> Option<SocketAddr> {
        match &self.clients[client] {
            Some(Client::Tcp(stream)) => stream.local_addr().ok(),
            _ => None,
        }
    }

    fn turn(&mut self, out: &mut Vec<Completion>) {
        self.ring.turn(Some(Duration::from_millis(1)), out);
    }

    fn settle(&mut self) {}

    fn has_resets(&self) -> bool {
        matches!(self.place, Place::Tcp(_))
    }
}

/// The simulated network. Its clients take bytes only when they read, like a kernel's with a small window.
struct Simulated {
    faults: Faults,
    net: SimNet,
    ring: SimRing,
    clients: Vec<ClientId>,
}

impl Simulated {
    fn new(seed: u64, faults: Faults) -> Self {
        let net = SimNet::new(seed, faults.clone(), 0);
        let mut ring = net.ring(0);
        ring.listen(0, 0);
        Self { faults, net, ring, clients: Vec::new() }
    }

    fn plain() -> Self {
        Self::new(0, Faults { send_buffer: 16 << 10, ..Faults::default() })
    }

    /// Everything but resets, which leave nothing to compare.
    fn faulty() -> Self {
        Self::new(
            1,
            Faults {
                short_recv: 0.3,
                short_send: 0.3,
                send_would_block: 0.2,
                delay_to_server: 0.3,
                delay_to_client: 0.3,
                delay_completion: 0.3,
                max_delay: Duration::from_millis(3),
                reorder: 0.5,
                reset: 0.0,
                accept_fails: 0.2,
                accept_burst: 4,
                send_buffer: 9000,
            },
        )
    }
}

impl World for Simulated {
    type Ring = SimRing;

    fn ring(&mut self) -> &mut SimRing {
        &mut self.ring
    }

    fn connect(&mut self) -> Option<usize> {
        let client = self.net.connect(0, 0);
        self.net.client_stall(client, true);
        self.settle();
        self.clients.push(client);
        let refused = self.net.client_state(client).end == End::Reset;
        (!refused).then_some(self.clients.len() - 1)
    }

    fn write(&mut self, client: usize, bytes: &[u8]) -> usize {
        self.net.client_write(self.clients[client], bytes);
        bytes.len()
    }

    fn read(&mut self, client: usize, max: usize) -> Got {
        let client = self.clients[client];
        self.net.client_stall(client, false);
        let bytes = self.net.client_read(client, max);
        self.net.client_stall(client, true);
        match self.net.client_state(client).end {
            _ if !bytes.is_empty() => Got::Bytes(bytes),
            End::Open => Got::Nothing,
            End::Finished => Got::End,
            End::Reset => Got::Reset,
        }
    }

    fn close(&mut self, client: usize) {
        self.net.client_close(self.clients[client]);
    }

    fn reset(&mut self, client: usize) {
        self.net.client_reset(self.clients[client]);
    }

    fn address(&self, client: usize) -> Option<SocketAddr> {
        let [_, a, b, c] = (client as u32).to_be_bytes();
        Some(SocketAddr::from(([10, a, b, c], 40_000)))
    }

    fn turn(&mut self, out: &mut Vec<Completion>) {
        self.ring.turn(None, out);
        let now = self.net.now().mono;
        let next = self.net.next_event_time().unwrap_or(now + 1_000_000);
        self.net.advance(Duration::from_nanos(next - now));
    }

    fn settle(&mut self) {
        self.net.advance(Duration::from_secs(1));
    }

    fn has_resets(&self) -> bool {
        true
    }
}

/// A server on a ring, as simple as it can be, that watches over the ring's promises.
struct Host<W> {
    world: W,
    peers: Vec<Peer>,
    /// Accepted, and nobody's yet.
    fds: Vec<Fd>,
    bells: usize,
    accept_failures: usize,
    pool: Rc<Pool>,
    trace: Vec<String>,
}

/// One connection of the server's.
struct Peer {
    key: Key,
    fd: Fd,
    reads: bool,
    input: Vec<u8>,
    ended: Option<Result<(), i32>>,
    log: WireLog,
    cursor: u64,
    in_flight: bool,
    awaits_room: bool,
    closing: bool,
    closed: bool,
    readable: usize,
    writable: usize,
    /// Sends that were cut short or found no room.
    cut: usize,
}

impl<W: World> Host<W> {
    fn new(world: W) -> Self {
        let (peers, fds, trace) = (Vec::new(), Vec::new(), Vec::new());
        Self { world, peers, fds, bells: 0, accept_failures: 0, pool: Pool::new(1 << 20), trace }
    }

    /// A client that is accepted and watched: its number, and its peer's.
    fn open(&mut self) -> (usize, usize) {
        let client = self.connect();
        let fd = self.accepted();
        let index = self.peers.iter().position(|peer| peer.closed);
        (client, self.register(fd, index.unwrap_or(self.peers.len())))
    }

    fn connect(&mut self) -> usize {
        self.world.connect().expect("refused")
    }

    fn accepted(&mut self) -> Fd {
        self.until(|host| !host.fds.is_empty());
        self.fds.remove(0)
    }

    fn register(&mut self, fd: Fd, index: usize) -> usize {
        let before = self.peers.get(index).map(|peer| peer.key.generation);
        let generation = before.map_or(0, |before| (before + 1) & Key::GENERATION_MASK);
        let key = Key { index: index as u32, generation };
        let peer = Peer {
            key,
            fd,
            reads: true,
            input: Vec::new(),
            ended: None,
            log: WireLog::new(0),
            cursor: 0,
            in_flight: false,
            awaits_room: false,
            closing: false,
            closed: false,
            readable: 0,
            writable: 0,
            cut: 0,
        };
        match self.peers.get_mut(index) {
            Some(place) => *place = peer,
            None => self.peers.push(peer),
        }
        self.world.ring().register(key, fd);
        index
    }

    fn append(&mut self, peer: usize, bytes: &[u8]) {
        let log = &mut self.peers[peer].log;
        for frame in bytes.chunks(3000) {
            log.append(&self.pool, frame, log.newest_offset() + 1, 0);
        }
    }

    /// Sends what there is to send, unless a send is in flight or there is no room.
    fn pump(&mut self, peer: usize) {
        let peer = &mut self.peers[peer];
        if peer.in_flight || peer.awaits_room || peer.closing {
            return;
        }
        if let Some(slice) = peer.log.slice(peer.cursor, 40_000) {
            peer.in_flight = true;
            self.world.ring().send(peer.key, peer.fd, slice);
        }
    }

    /// Sends to a client that doesn't read until there is no room any more, for good.
    fn fill(&mut self, peer: usize) {
        self.pump(peer);
        let mut quiet = 0;
        self.until(|host| {
            quiet = if host.peers[peer].awaits_room { quiet + 1 } else { 0 };
            quiet > 20
        });
    }

    fn close(&mut self, peer: usize, reset: bool) {
        let peer = &mut self.peers[peer];
        peer.closing = true;
        self.world.ring().close(peer.key, peer.fd, reset);
    }

    /// One turn, and what follows from it. Checks everything that is never allowed.
    fn step(&mut self) {
        let mut completions = Vec::new();
        self.world.turn(&mut completions);
        for completion in completions {
            self.trace.push(format!("{completion:?}"));
            match completion {
                Completion::Accepted { listener, fd } => {
                    assert_eq!(listener, 0);
                    self.fds.push(fd);
                }
                Completion::AcceptFailed { listener, .. } => {
                    self.accept_failures += 1;
                    self.world.ring().accept(listener);
                }
                Completion::Doorbell => self.bells += 1,
                Completion::Readable(key) => {
                    let peer = self.live(key);
                    self.peers[peer].readable += 1;
                    if self.peers[peer].reads {
                        self.read(peer);
                    }
                }
                Completion::Writable(key) => {
                    let peer = self.live(key);
                    assert!(self.peers[peer].awaits_room, "{key:?}: nobody asked for room");
                    self.peers[peer].awaits_room = false;
                    self.peers[peer].writable += 1;
                    self.pump(peer);
                }
                Completion::Sent { key, result } => self.sent(key, result),
                Completion::Closed(key) => {
                    let peer = self.known(key);
                    assert!(peer.closing && !peer.in_flight, "{key:?}: closed too soon");
                    peer.closed = true;
                }
            }
        }
    }

    fn known(&mut self, key: Key) -> &mut Peer {
        let peer = &mut self.peers[key.index as usize];
        assert_eq!(peer.key, key, "told of somebody who is gone");
        assert!(!peer.closed, "{key:?}: told after Closed");
        peer
    }

    fn live(&mut self, key: Key) -> usize {
        assert!(!self.known(key).closing, "{key:?}: told after close");
        key.index as usize
    }

    fn sent(&mut self, key: Key, result: Result<usize, i32>) {
        let peer = self.known(key);
        assert!(peer.in_flight, "{key:?}: nothing was in flight");
        peer.in_flight = false;
        let whole = peer.log.slice(peer.cursor, 40_000).map_or(0, |slice| slice.len());
        let sent = match result {
            Ok(sent) => sent,
            Err(libc::EAGAIN) => 0,
            Err(_) => return,
        };
        assert!(sent <= whole);
        peer.cursor += sent as u64;
        peer.log.release(peer.cursor);
        if sent < whole {
            peer.cut += 1;
            if !peer.closing {
                peer.awaits_room = true;
                let (key, fd) = (peer.key, peer.fd);
                self.world.ring().await_writable(key, fd);
            }
        } else {
            self.pump(key.index as usize);
        }
    }

    /// Reads as the trait asks for: until a short read, or until it would block.
    fn read(&mut self, peer: usize) {
        let mut buffer = [0; 5000];
        let peer = &mut self.peers[peer];
        loop {
            match self.world.ring().recv(peer.fd, &mut buffer) {
                Ok(0) => return peer.ended = Some(Ok(())),
                Ok(read) => {
                    self.trace.push(format!("{:?} reads {read}", peer.key));
                    peer.input.extend_from_slice(&buffer[..read]);
                    if read < buffer.len() {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return peer.ended = Some(Err(error.raw_os_error().unwrap())),
            }
        }
    }

    /// Takes steps until something holds.
    #[track_caller]
    fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !done(self) {
            assert!(Instant::now() < deadline, "never happened; told: {:?}", self.trace);
            self.step();
        }
    }

    /// Takes steps in which nothing should be left to happen.
    fn idle(&mut self) {
        for _ in 0..10 {
            self.world.settle();
            self.step();
        }
    }

    /// Reads all that a client gets, up to its end.
    fn drain_client(&mut self, client: usize) -> (Vec<u8>, Got) {
        let mut bytes = Vec::new();
        let mut end = Got::Nothing;
        self.until(|host| {
            match host.world.read(client, 10_000) {
                Got::Bytes(more) => bytes.extend(more),
                other => end = other,
            }
            end != Got::Nothing
        });
        (bytes, end)
    }
}

/// Bytes that differ between streams and between places in a stream.
fn pattern(salt: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| mix(salt << 40 ^ at) as u8).collect()
}

fn every_client_is_accepted(world: impl World) {
    let mut host = Host::new(world);
    for _ in 0..200 {
        host.connect();
    }
    host.until(|host| host.fds.len() == 200);
    assert_eq!(host.fds.iter().collect::<HashSet<_>>().len(), 200);
    for number in 0..200 {
        let fd = host.fds[number];
        host.register(fd, number);
    }
    for client in 0..200 {
        assert_eq!(host.world.write(client, &[client as u8; 9]), 9);
    }
    host.until(|host| host.peers.iter().all(|peer| peer.input.len() == 9));
}

fn input_is_told_once_per_arrival(world: impl World) {
    let mut host = Host::new(world);
    let (client, peer) = host.open();
    host.idle();
    assert_eq!(host.peers[peer].readable, 0, "nothing has come");
    host.world.write(client, b"abc");
    host.until(|host| host.peers[peer].input == b"abc");
    host.idle();
    let told = host.peers[peer].readable;
    host.idle();
    assert_eq!(host.peers[peer].readable, told, "nothing new has come");
    let fd = host.peers[peer].fd;
    let blocked = host.world.ring().recv(fd, &mut [0; 9]).unwrap_err();
    assert_eq!(blocked.kind(), ErrorKind::WouldBlock);
    host.world.write(client, b"def");
    host.until(|host| host.peers[peer].input == b"abcdef");
}

fn input_before_registration_is_told(world: impl World) {
    let mut host = Host::new(world);
    let client = host.connect();
    host.world.write(client, b"early");
    let fd = host.accepted();
    host.idle();
    host.register(fd, 0);
    host.until(|host| host.peers[0].input == b"early");
}

fn an_end_right_behind_bytes_is_told(world: impl World) {
    let mut host = Host::new(world);
    let (client, peer) = host.open();
    host.idle();
    host.world.write(client, b"bye");
    host.world.close(client);
    host.world.settle();
    host.until(|host| host.peers[peer].ended.is_some());
    assert_eq!((&host.peers[peer].input[..], host.peers[peer].ended), (&b"bye"[..], Some(Ok(()))));
}

fn an_end_is_told_to_who_reads_late(world: impl World) {
    let mut host = Host::new(world);
    let (client, peer) = host.open();
    host.peers[peer].reads = false;
    host.world.write(client, b"bye");
    host.world.close(client);
    host.until(|host| host.peers[peer].readable > 0);
    host.idle();
    let told = host.peers[peer].readable;
    host.read(peer);
    host.until(|host| host.peers[peer].readable > told || host.peers[peer].ended.is_some());
    host.peers[peer].reads = true;
    host.read(peer);
    host.until(|host| host.peers[peer].ended.is_some());
    assert_eq!(host.peers[peer].input, b"bye");
}

fn sends_go_on_where_a_full_buffer_cut_them(world: impl World) {
    let mut host = Host::new(world);
    let (client, peer) = host.open();
    let sent = pattern(7, 8 << 20);
    host.append(peer, &sent);
    host.fill(peer);
    assert!(host.peers[peer].cut > 0);
    let mut got = Vec::new();
    host.until(|host| {
        if let Got::Bytes(bytes) = host.world.read(client, 30_000) {
            got.extend(bytes);
        }
        got.len() >= sent.len()
    });
    assert!(got == sent, "the stream is not what was sent");
    assert!(host.peers[peer].writable > 0);
    host.until(|host| !host.peers[peer].in_flight);
    assert_eq!(host.pool.used_bytes(), 0, "no slice is held any more");
}

fn many_streams_are_exact_both_ways(world: impl World) {
    const STREAMS: usize = 24;
    let mut host = Host::new(world);
    let mut random = Random::new(5);
    // Which peer a client got is up to the ring, so each says who it is.
    let clients: Vec<usize> = (0..STREAMS).map(|_| host.open().0).collect();
    let down: Vec<_> = (0..STREAMS).map(|n| pattern(n as u64, 300_000)).collect();
    let up: Vec<_> = (0..STREAMS).map(|n| pattern(100 + n as u64, 100_000)).collect();
    for (peer, bytes) in down.iter().enumerate() {
        host.append(peer, bytes);
        host.pump(peer);
    }
    let mut written = [0; STREAMS];
    let mut got = vec![Vec::new(); STREAMS];
    host.until(|host| {
        for number in 0..STREAMS {
            let end = up[number].len().min(written[number] + random.below(9000) as usize);
            written[number] += host.world.write(clients[number], &up[number][written[number]..end]);
            let max = 1 + random.below(20_000) as usize;
            if let Got::Bytes(bytes) = host.world.read(clients[number], max) {
                got[number].extend(bytes);
            }
        }
        let all_up = host.peers.iter().all(|peer| peer.input.len() == 100_000);
        all_up && got.iter().all(|got| got.len() == 300_000)
    });
    for number in 0..STREAMS {
        assert!(got[number] == down[number], "down {number}");
        assert!(host.peers[number].input == up[number], "up {number}");
    }
    assert!(host.peers.iter().any(|peer| peer.cut > 0), "too easy: no send was cut");
}

fn a_close_ends_the_stream_and_is_told_once(world: impl World) {
    let mut host = Host::new(world);
    let (client, peer) = host.open();
    host.idle();
    host.close(peer, false);
    host.until(|host| host.peers[peer].closed);
    assert_eq!(host.drain_client(client), (vec![], Got::End));
    host.idle();
}

fn a_send_in_flight_ends_before_the_close(world: impl World) {
    let mut host = Host::new(world);
    for reset in [false, true] {
        let (client, peer) = host.open();
        host.append(peer, b"the last words");
        host.pump(peer);
        host.close(peer, reset);
        host.until(|host| host.peers[peer].closed);
        let sent = host.peers[peer].cursor as usize;
        if !reset {
            let (bytes, end) = host.drain_client(client);
            assert_eq!((&bytes[..], end), (&b"the last words"[..sent], Got::End));
        }
        host.idle();
    }
}

fn a_close_while_waiting_for_room_ends_the_wait(world: impl World) {
    let mut host = Host::new(world);
    for reset in [false, true] {
        let (client, peer) = host.open();
        let sent = pattern(3, 8 << 20);
        host.append(peer, &sent);
        host.fill(peer);
        host.close(peer, reset);
        host.until(|host| host.peers[peer].closed);
        if !reset {
            let (bytes, end) = host.drain_client(client);
            assert!(bytes == sent[..host.peers[peer].cursor as usize], "what was taken is delivered");
            assert_eq!(end, Got::End);
        }
        host.idle();
    }
}

fn a_reset_close_is_seen_as_a_reset(world: impl World) {
    if !world.has_resets() {
        return;
    }
    let mut host = Host::new(world);
    let (client, peer) = host.open();
    host.close(peer, true);
    host.until(|host| host.peers[peer].closed);
    assert_eq!(host.drain_client(client).1, Got::Reset);
    host.idle();
}

fn places_are_let_again(world: impl World) {
    let mut host = Host::new(world);
    for round in 0..60u8 {
        let (client, peer) = host.open();
        assert_eq!(peer, 0, "one place serves them all");
        host.peers[peer].reads = round % 3 > 0;
        host.world.write(client, &[round; 3]);
        if round % 2 == 0 {
            host.until(|host| host.peers[peer].readable > 0);
        }
        if round % 5 == 0 {
            host.world.close(client);
        }
        host.close(peer, round % 4 == 0);
        host.until(|host| host.peers[peer].closed);
        let input = &host.peers[peer].input;
        assert!(input.is_empty() || [round; 3].starts_with(input), "somebody else's bytes");
    }
    host.idle();
}

fn a_peer_that_resets_is_told(world: impl World) {
    let resets = world.has_resets();
    let mut host = Host::new(world);
    let (client, peer) = host.open();
    host.idle();
    host.world.reset(client);
    host.until(|host| host.peers[peer].ended.is_some());
    if resets {
        assert_eq!(host.peers[peer].ended, Some(Err(libc::ECONNRESET)));
    }
    host.close(peer, false);
    host.until(|host| host.peers[peer].closed);
    host.idle();
}

fn a_peer_that_resets_ends_a_wait_for_room(world: impl World) {
    let mut host = Host::new(world);
    let (client, peer) = host.open();
    host.append(peer, &pattern(3, 8 << 20));
    host.fill(peer);
    let told = host.peers[peer].writable;
    host.world.reset(client);
    host.until(|host| host.peers[peer].ended.is_some() && host.peers[peer].writable > told);
    host.until(|host| !host.peers[peer].in_flight);
    host.close(peer, false);
    host.until(|host| host.peers[peer].closed);
}

fn stopping_keeps_who_waits_already(world: impl World) {
    let mut host = Host::new(world);
    host.open();
    host.idle();
    for _ in 0..20 {
        host.connect();
    }
    host.world.ring().stop_accepting(0);
    host.until(|host| host.fds.len() == 20);
    host.until(|host| host.world.connect().is_none());
    host.idle();
    for index in 1..=20 {
        let fd = host.fds.remove(0);
        host.register(fd, index);
        host.world.write(index, &[index as u8]);
    }
    host.until(|host| host.peers[1..].iter().all(|peer| peer.input.len() == 1));
    // The listener's number is free again.
    host.world.ring().stop_accepting(0);
    host.idle();
}

fn who_is_refused_sees_the_end(world: impl World) {
    let mut host = Host::new(world);
    let client = host.connect();
    let fd = host.accepted();
    host.world.ring().refuse(fd);
    assert_eq!(host.drain_client(client), (vec![], Got::End));
}

fn replies_go_at_once(world: impl World) {
    let mut host = Host::new(world);
    let (client, peer) = host.open();
    let (fd, mut left) = (host.peers[peer].fd, &b"pong"[..]);
    host.until(|host| {
        match host.world.ring().send_now(fd, left) {
            Ok(sent) => left = &left[sent..],
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        left.is_empty()
    });
    let mut got = Vec::new();
    host.until(|host| {
        if let Got::Bytes(bytes) = host.world.read(client, 100) {
            got.extend(bytes);
        }
        got == b"pong"
    });
}

fn peers_have_their_address(world: impl World) {
    let mut host = Host::new(world);
    let (client, peer) = host.open();
    let fd = host.peers[peer].fd;
    assert_eq!(host.world.ring().peer(fd), host.world.address(client));
}

fn a_slice_is_held_until_sent(world: impl World) {
    let mut host = Host::new(world);
    let (_client, peer) = host.open();
    let mut log = WireLog::new(0);
    log.append(&host.pool, b"held", 1, 0);
    let slice: Slice = log.slice(0, 100).unwrap();
    log.release(log.head());
    host.append(peer, b"held");
    host.peers[peer].in_flight = true;
    let (key, fd, other) = (host.peers[peer].key, host.peers[peer].fd, host.pool.used_bytes());
    host.world.ring().send(key, fd, slice);
    assert_eq!(host.pool.used_bytes(), other, "the ring holds it");
    let pool = Rc::clone(&host.pool);
    while host.peers[peer].in_flight {
        assert!(pool.used_bytes() > 0);
        host.step();
    }
    let log = &mut host.peers[peer].log;
    log.release(log.head());
    assert_eq!(pool.used_bytes(), 0, "the ring has let go");
}

fn the_doorbell_ends_a_wait(sockets: Sockets<impl Ring>) {
    let mut host = Host::new(sockets);
    host.idle();
    for wait in [None, Some(Duration::from_secs(30)), Some(Duration::MAX)] {
        let bell = host.world.bell;
        let ringer = std::thread::spawn(move || {
            sys::ring_bell(bell);
            sys::ring_bell(bell);
        });
        let mut out = Vec::new();
        host.world.ring.turn(wait, &mut out);
        assert!(!out.is_empty(), "nothing but the bell ends {wait:?}");
        ringer.join().unwrap();
        host.world.ring.turn(Some(Duration::from_millis(20)), &mut out);
        let rung = out.iter().filter(|told| matches!(told, Completion::Doorbell)).count();
        assert!((1..=2).contains(&rung), "{out:?}");
        assert_eq!(out.len(), rung, "and nothing else");
        out.clear();
        host.world.ring.turn(Some(Duration::from_millis(1)), &mut out);
        assert!(out.is_empty(), "it has stopped ringing");
    }
}

fn a_ring_that_goes_closes_what_it_owns<R: Make>() {
    let mut host = Host::new(Sockets::<R>::tcp("127.0.0.1:0"));
    let (client, _) = host.open();
    host.idle();
    let Place::Tcp(address) = host.world.place else { unreachable!() };
    let Some(Client::Tcp(mut client)) = host.world.clients[client].take() else { unreachable!() };
    drop(host);
    client.set_nonblocking(false).unwrap();
    assert_eq!(client.read(&mut [0; 9]).unwrap(), 0);
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(address).is_ok() {
        assert!(Instant::now() < deadline, "the listener outlives its ring");
    }
}

/// A shard's thread has its own descriptors and shares only the doorbell.
fn a_shard_can_own_its_descriptors<R: Make>() {
    let bell = sys::eventfd().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let shard = std::thread::spawn(move || {
        sys::unshare_files().unwrap();
        let listener = sys::tcp_listener("127.0.0.1:0".parse().unwrap(), true, false, 64).unwrap();
        let mut ring = R::make(bell);
        ring.listen(0, listener);
        tell.send(sys::bound_addr(listener).unwrap()).unwrap();
        let (mut served, mut out) = (0, Vec::new());
        while !out.iter().any(|told| matches!(told, Completion::Doorbell)) {
            out.clear();
            ring.turn(None, &mut out);
            for completion in &out {
                if let Completion::Accepted { fd, .. } = completion {
                    ring.send_now(*fd, b"hello").unwrap();
                    ring.refuse(*fd);
                    served += 1;
                }
            }
        }
        served
    });
    let address = told.recv().unwrap();
    for _ in 0..50 {
        let mut text = String::new();
        TcpStream::connect(address).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }
    sys::ring_bell(bell);
    assert_eq!(shard.join().unwrap(), 50);
    sys::close(bell);
}

/// The server half runs in a process of its own, where few descriptors are allowed.
fn accepting_goes_on_after_descriptors_ran_out<R: Make>(name: &str) {
    const CLIENTS: usize = 80;
    const IN_CHILD: &str = "RING_CONFORMANCE_CHILD";
    if std::env::var_os(IN_CHILD).is_some() {
        return serve_with_few_descriptors::<R>(CLIENTS);
    }
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -n 40; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(IN_CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut ports = lines.filter_map(|line| {
        let (_, port) = line.split_once("port ")?;
        port.parse::<u16>().ok()
    });
    let port = ports.next().expect("the child says where it listens");
    let clients: Vec<_> = (0..CLIENTS).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    for mut client in clients {
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }
    // Reading on to the end keeps the pipe from filling up.
    assert_eq!(ports.next(), None);
    assert!(child.wait().unwrap().success());
}

fn serve_with_few_descriptors<R: Make>(clients: usize) {
    let mut world = Sockets::<R>::tcp("127.0.0.1:0");
    let Place::Tcp(address) = &world.place else { unreachable!() };
    println!("port {}", address.port());
    let (mut open, mut served, mut failures) = (Vec::new(), 0, 0);
    let deadline = Instant::now() + Duration::from_secs(30);
    while served < clients {
        assert!(Instant::now() < deadline, "{served} served, {failures} failures");
        let mut out = Vec::new();
        world.ring.turn(Some(Duration::from_millis(100)), &mut out);
        for completion in out {
            match completion {
                Completion::Accepted { fd, .. } => open.push(fd),
                Completion::AcceptFailed { listener, errno } => {
                    assert_eq!((listener, errno), (0, libc::EMFILE));
                    failures += 1;
                    // Nothing is told, and no time is burnt, before the shard says to go on.
                    let mut out = Vec::new();
                    world.ring.turn(Some(Duration::from_millis(5)), &mut out);
                    assert!(out.is_empty(), "{out:?}");
                    served += open.len();
                    for fd in open.drain(..) {
                        world.ring.send_now(fd, b"hello").unwrap();
                        world.ring.refuse(fd);
                    }
                    world.ring.accept(listener);
                }
                other => panic!("{other:?}"),
            }
        }
        if failures > 0 && served + open.len() == clients {
            served = clients;
            for fd in open.drain(..) {
                world.ring.send_now(fd, b"hello").unwrap();
                world.ring.refuse(fd);
            }
        }
    }
    assert!(failures > 0, "the limit was never met");
}

macro_rules! suite {
    ($($world:ident: $make:expr;)*) => {$(
        mod $world {
            use super::*;
            suite!(@tests $make;
                every_client_is_accepted
                input_is_told_once_per_arrival
                input_before_registration_is_told
                an_end_right_behind_bytes_is_told
                an_end_is_told_to_who_reads_late
                sends_go_on_where_a_full_buffer_cut_them
                many_streams_are_exact_both_ways
                a_close_ends_the_stream_and_is_told_once
                a_send_in_flight_ends_before_the_close
                a_close_while_waiting_for_room_ends_the_wait
                a_reset_close_is_seen_as_a_reset
                places_are_let_again
                a_peer_that_resets_is_told
                a_peer_that_resets_ends_a_wait_for_room
                stopping_keeps_who_waits_already
                who_is_refused_sees_the_end
                replies_go_at_once
                peers_have_their_address
                a_slice_is_held_until_sent
            );
        }
    )*};
    (@tests $make:expr; $($test:ident)*) => {$(
        #[test]
        fn $test() {
            super::$test($make);
        }
    )*};
}

suite! {
    uring_tcp4: Sockets::<Uring>::tcp("127.0.0.1:0");
    uring_tcp6: Sockets::<Uring>::tcp("[::1]:0");
    uring_unix: Sockets::<Uring>::unix();
    uring_tiny: tiny();
    epoll_tcp4: Sockets::<Epoll>::tcp("127.0.0.1:0");
    epoll_tcp6: Sockets::<Epoll>::tcp("[::1]:0");
    epoll_unix: Sockets::<Epoll>::unix();
    sim_plain: Simulated::plain();
    sim_faulty: Simulated::faulty();
}

mod kernel {
    use super::*;

    #[test]
    fn doorbell_uring() {
        the_doorbell_ends_a_wait(Sockets::<Uring>::tcp("127.0.0.1:0"));
    }

    #[test]
    fn doorbell_epoll() {
        the_doorbell_ends_a_wait(Sockets::<Epoll>::tcp("127.0.0.1:0"));
    }

    #[test]
    fn drop_uring() {
        a_ring_that_goes_closes_what_it_owns::<Uring>();
    }

    #[test]
    fn drop_epoll() {
        a_ring_that_goes_closes_what_it_owns::<Epoll>();
    }

    #[test]
    fn own_descriptors_uring() {
        a_shard_can_own_its_descriptors::<Uring>();
    }

    #[test]
    fn own_descriptors_epoll() {
        a_shard_can_own_its_descriptors::<Epoll>();
    }

    #[test]
    fn few_descriptors_uring() {
        let this = "ring::conformance::kernel::few_descriptors_uring";
        accepting_goes_on_after_descriptors_ran_out::<Uring>(this);
    }

    #[test]
    fn few_descriptors_epoll() {
        let this = "ring::conformance::kernel::few_descriptors_epoll";
        accepting_goes_on_after_descriptors_ran_out::<Epoll>(this);
    }

    #[test]
    fn nothing_is_lost_when_the_completion_queue_overflows() {
        const CONNECTIONS: usize = 300;
        let mut host =
            Host::new(Sockets::tcp_on("127.0.0.1:0", |bell| Uring::with_queues(32, 64, bell).unwrap()));
        let clients: Vec<_> = (0..CONNECTIONS).map(|_| host.open().0).collect();
        host.idle();
        let before = host.world.ring.take_counts();
        for round in 1..=3 {
            for &client in &clients {
                host.world.write(client, &[round; 7]);
            }
            for peer in 0..CONNECTIONS {
                host.append(peer, &[round; 11]);
                host.pump(peer);
            }
            host.until(|host| host.peers.iter().all(|peer| peer.input.len() == 7 * round as usize));
            host.until(|host| host.peers.iter().all(|peer| !peer.in_flight));
        }
        let counts = host.world.ring.take_counts();
        assert!(counts.overflows > 0, "{counts:?}");
        assert!(counts.rearms > 0 && before.enters > 0, "{before:?}, {counts:?}");
        for peer in 0..CONNECTIONS {
            host.close(peer, false);
        }
        host.until(|host| host.peers.iter().all(|peer| peer.closed));
        host.idle();
    }
}

mod simulated {
    use super::*;

    /// What a run came to.
    struct Outcome {
        trace: Vec<String>,
        accept_failures: usize,
        cut: usize,
        resets: usize,
    }

    /// A few clients whose streams go both ways until they are complete or reset; all checks included.
    fn run(seed: u64, faults: Faults) -> Outcome {
        let mut host = Host::new(Simulated::new(seed, faults));
        let mut random = Random::new(seed);
        let streams = 1 + random.below(5) as usize;
        let lens: Vec<_> = (0..streams).map(|_| random.below(30_000) as usize).zip(1000..).collect();
        let down: Vec<_> = lens.iter().map(|&(len, salt)| pattern(salt, len)).collect();
        let up: Vec<_> = lens.iter().map(|&(len, salt)| pattern(salt + 500, len / 2)).collect();
        let clients: Vec<_> = (0..streams).map(|_| host.open().0).collect();
        for (peer, bytes) in down.iter().enumerate() {
            host.append(peer, bytes);
            host.pump(peer);
        }
        let (mut written, mut got) = (vec![0; streams], vec![Vec::new(); streams]);
        let mut reset = vec![false; streams];
        host.until(|host| {
            for number in 0..streams {
                let rest = &up[number][written[number]..];
                let rest = &rest[..rest.len().min(random.below(4000) as usize)];
                written[number] += host.world.write(clients[number], rest);
                match host.world.read(clients[number], 1 + random.below(8000) as usize) {
                    Got::Bytes(bytes) => {
                        host.trace.push(format!("client {number} reads {}", bytes.len()));
                        got[number].extend(bytes);
                    }
                    Got::Reset => reset[number] = true,
                    Got::Nothing | Got::End => {}
                }
            }
            (0..streams).all(|number| {
                let peer = &host.peers[number];
                let complete = peer.input == up[number] && got[number] == down[number];
                (complete && !peer.in_flight) || (reset[number] && peer.ended.is_some())
            })
        });
        for number in 0..streams {
            assert!(down[number].starts_with(&got[number]), "down {number}");
            assert!(up[number].starts_with(&host.peers[number].input), "up {number}");
            host.close(number, random.chance(0.3));
        }
        host.until(|host| host.peers.iter().all(|peer| peer.closed));
        host.idle();
        let cut = host.peers.iter().map(|peer| peer.cut).sum();
        host.peers.clear();
        assert_eq!(host.pool.used_bytes(), 0, "a slice is still held");
        let resets = reset.iter().filter(|&&reset| reset).count();
        Outcome { trace: host.trace, accept_failures: host.accept_failures, cut, resets }
    }

    proptest! {
        #[test]
        fn streams_are_exact_under_all_faults(seed in any::<u64>(), faults in any::<u64>()) {
            run(seed, Faults::from_seed(faults));
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_run() {
        for seed in 0..20 {
            let [first, second] = [(); 2].map(|()| run(seed, Faults::from_seed(seed)).trace);
            assert!(first == second, "seed {seed}");
        }
        let [one, other] = [1, 2].map(|seed| run(seed, Simulated::faulty().faults).trace);
        assert!(one != other, "seeds make no difference");
    }

    #[test]
    fn every_fault_happens_alone() {
        /// Draws several streams, without which nothing could change places.
        const SEED: u64 = 4;
        let plain = Faults { max_delay: Duration::from_millis(2), ..Faults::default() };
        let calm = run(SEED, plain.clone());
        assert_eq!((calm.accept_failures, calm.cut, calm.resets), (0, 0, 0));
        for faults in [
            Faults { short_recv: 0.5, ..plain.clone() },
            Faults { delay_to_server: 0.5, ..plain.clone() },
            Faults { delay_to_client: 0.5, ..plain.clone() },
            Faults { delay_completion: 0.5, ..plain.clone() },
            Faults { reorder: 0.5, ..plain.clone() },
        ] {
            assert!(run(SEED, faults.clone()).trace != calm.trace, "no trace of {faults:?}");
        }
        assert!(run(SEED, Faults { short_send: 0.5, ..plain.clone() }).cut > 0);
        assert!(run(SEED, Faults { send_would_block: 0.5, ..plain.clone() }).cut > 0);
        assert!(run(SEED, Faults { send_buffer: 100, ..plain.clone() }).cut > 0);
        assert!(run(SEED, Faults { reset: 0.5, ..plain.clone() }).resets > 0);
        let failing = Faults { accept_fails: 0.5, accept_burst: 3, ..plain };
        assert!(run(SEED, failing).accept_failures > 1);
    }
}
