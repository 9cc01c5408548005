//! Thousands of streams, received by one thread.
//!
//! Few of them are *verified*: read, cut into events, checked, timed. The others are *drained*: the kernel throws
//! their bytes away (MSG_TRUNC) and only tells how many there were, so that the generator costs a small part of
//! what the server does. Verified streams are looked at again after every slice of drained ones: how long a round
//! through all streams takes here is not charged to the server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use rustix::time::Timespec;

use crate::check::{Checker, Start};
use crate::response::{self, MAX_HEAD_BYTES};
use crate::stream::Parser;
use crate::sys::now_ns;

/// Streams that are being opened at one time, per thread. Below any server's accept queue.
const OPENING: usize = 128;
/// Streams served between two looks at the verified ones.
const SLICE: usize = 64;
/// How long to wait for something to happen, and so how late a stop may be noticed.
const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// Bytes read from a verified stream at once.
const READ_BYTES: usize = 256 << 10;
/// Bytes drained at once. Never written to where the socket is TCP.
const DRAIN_BYTES: usize = 4 << 20;
/// In the outer epoll: the inner one, with the verified streams.
const INNER: u64 = u64::MAX;

/// What one thread is to open.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server.
    pub address: SocketAddr,
    /// What to ask for, from request line to empty line.
    pub request: Vec<u8>,
    /// How many streams.
    pub connections: usize,
    /// How many of them are verified, spread over all.
    pub verify: usize,
    /// Where publications begin.
    pub start: Start,
}

/// What the threads are told.
#[derive(Debug, Default)]
pub struct Control {
    /// No more: close everything.
    pub stop: AtomicBool,
    /// Latency is recorded of publications due from here, ns ...
    pub from_ns: AtomicU64,
    /// ... to here, ns.
    pub to_ns: AtomicU64,
}

/// What a thread tells while it runs. It alone writes.
#[derive(Debug, Default)]
pub struct Board {
    /// Streams that were opened: the server answered 200.
    pub opened: AtomicU64,
    /// Streams that could not be.
    pub refused: AtomicU64,
    /// Streams that were open, and ended before the stop.
    pub ended: AtomicU64,
    /// Publications on verified streams, repeats left out.
    pub publications: AtomicU64,
    /// Bytes of verified streams, heads left out.
    pub verified_bytes: AtomicU64,
    /// Bytes of drained streams, heads left out.
    pub drained_bytes: AtomicU64,
}

/// What a thread has found, at the end.
#[derive(Debug)]
pub struct Findings {
    /// The checkers of the verified streams.
    pub checkers: Vec<Checker>,
    /// From due to received, µs.
    pub latency: Histogram<u64>,
    /// Why streams were not opened, or ended: text and how often.
    pub troubles: BTreeMap<String, u64>,
}

/// An empty histogram of microseconds, up to 100 s, to three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 100_000_000, 3).expect("the bounds are constant and in order")
}

/// Opens the streams and receives until it is told to stop.
///
/// # Errors
/// If the system refuses what is needed to begin. What goes wrong with a stream is among the findings.
pub fn run(plan: Plan, control: &Control, board: &Board) -> Result<Findings, String> {
    let mut subscribers =
        Subscribers::new(plan, control, board).map_err(|error| format!("can't make an epoll: {error}"))?;
    while !control.stop.load(Relaxed) {
        subscribers.turn().map_err(|error| format!("can't wait for streams: {error}"))?;
    }
    Ok(subscribers.finish())
}

struct Subscribers<'a> {
    plan: Plan,
    control: &'a Control,
    board: &'a Board,
    outer: OwnedFd,
    inner: OwnedFd,
    events: Vec<Event>,
    connections: Vec<Connection>,
    /// How many of them are being opened.
    opening: usize,
    /// Checkers of streams that have ended.
    ended: Vec<Checker>,
    read_buffer: Vec<u8>,
    sink: Vec<u8>,
    latency: Histogram<u64>,
    troubles: BTreeMap<String, u64>,
}

struct Connection {
    socket: Option<OwnedFd>,
    state: State,
}

enum State {
    Connecting,
    /// The request is sent; what has come of the response's head.
    Asking(Vec<u8>),
    Verified(Box<Verified>),
    Drained,
}

struct Verified {
    parser: Parser,
    checker: Checker,
}

impl<'a> Subscribers<'a> {
    fn new(plan: Plan, control: &'a Control, board: &'a Board) -> Result<Self, Errno> {
        let outer = epoll::create(CreateFlags::CLOEXEC)?;
        let inner = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&outer, &inner, EventData::new_u64(INNER), EventFlags::IN)?;
        Ok(Self {
            connections: Vec::with_capacity(plan.connections),
            plan,
            control,
            board,
            outer,
            inner,
            events: Vec::with_capacity(SLICE),
            opening: 0,
            ended: Vec::new(),
            read_buffer: vec![0; READ_BYTES],
            sink: vec![0; DRAIN_BYTES],
            latency: histogram(),
            troubles: BTreeMap::new(),
        })
    }

    fn turn(&mut self) -> Result<(), Errno> {
        while self.opening < OPENING && self.connections.len() < self.plan.connections {
            self.open();
        }
        let mut events = std::mem::take(&mut self.events);
        wait(&self.outer, &mut events, &WAIT)?;
        for event in events.drain(..) {
            match event.data.u64() {
                INNER => {}
                index => self.serve(index as usize),
            }
        }
        wait(&self.inner, &mut events, &AT_ONCE)?;
        for event in events.drain(..) {
            self.serve(event.data.u64() as usize);
        }
        self.events = events;
        Ok(())
    }

    fn finish(self) -> Findings {
        let open = self.connections.into_iter().filter_map(|connection| match connection.state {
            State::Verified(verified) => Some(verified.checker),
            _ => None,
        });
        Findings {
            checkers: self.ended.into_iter().chain(open).collect(),
            latency: self.latency,
            troubles: self.troubles,
        }
    }

    fn open(&mut self) {
        let index = self.connections.len();
        let socket = connect(self.plan.address).and_then(|socket| {
            epoll::add(&self.outer, &socket, EventData::new_u64(index as u64), EventFlags::OUT)?;
            Ok(socket)
        });
        let state = State::Connecting;
        self.opening += 1;
        match socket {
            Ok(socket) => self.connections.push(Connection { socket: Some(socket), state }),
            Err(error) => {
                self.connections.push(Connection { socket: None, state });
                self.lose(index, explain(error, self.plan.address));
            }
        }
    }

    fn serve(&mut self, index: usize) {
        let served = match &self.connections[index].state {
            State::Connecting => self.ask(index),
            State::Asking(_) => self.read_head(index),
            State::Verified(_) => self.verify(index),
            State::Drained => self.drain(index),
        };
        if let Err(trouble) = served {
            self.lose(index, trouble);
        }
    }

    /// The connection is made, or not: sends the request.
    fn ask(&mut self, index: usize) -> Result<(), String> {
        let Connection { socket: Some(socket), state } = &mut self.connections[index] else {
            return Ok(());
        };
        let explain = |error| explain(error, self.plan.address);
        sockopt::socket_error(&*socket).map_err(explain)?.map_err(explain)?;
        let sent = rustix::net::send(&*socket, &self.plan.request, SendFlags::NOSIGNAL).map_err(explain)?;
        if sent < self.plan.request.len() {
            return Err("a fresh socket does not take one request".into());
        }
        *state = State::Asking(Vec::new());
        let data = EventData::new_u64(index as u64);
        epoll::modify(&self.outer, &*socket, data, EventFlags::IN).map_err(explain)
    }

    fn read_head(&mut self, index: usize) -> Result<(), String> {
        let connection = &mut self.connections[index];
        let (Some(socket), State::Asking(have)) = (&connection.socket, &mut connection.state) else {
            return Ok(());
        };
        // With what is there already a head still leaves room for all of it in the buffer.
        let buffer = &mut self.read_buffer[..MAX_HEAD_BYTES];
        match receive(socket, buffer, RecvFlags::empty())? {
            0 => return Ok(()),
            read => have.extend_from_slice(&self.read_buffer[..read]),
        }
        let Some(head) = response::head(have).map_err(|error| error.to_string())? else {
            return Ok(());
        };
        let body = have.split_off(head.bytes);
        if head.status != 200 {
            return Err(refusal(head.status, &body));
        }
        let (count, verify) = (self.plan.connections, self.plan.verify);
        // Evenly among all: where the whole part of their share goes up.
        let is_verified = (index + 1) * verify / count > index * verify / count;
        connection.state = if is_verified {
            let data = EventData::new_u64(index as u64);
            epoll::delete(&self.outer, socket)
                .and_then(|()| epoll::add(&self.inner, socket, data, EventFlags::IN))
                .map_err(|error| error.to_string())?;
            State::Verified(Box::new(Verified {
                parser: Parser::default(),
                checker: Checker::new(self.plan.start),
            }))
        } else {
            add(&self.board.drained_bytes, body.len() as u64);
            State::Drained
        };
        self.opening -= 1;
        add(&self.board.opened, 1);
        self.read_buffer[..body.len()].copy_from_slice(&body);
        self.check(index, body.len())
    }

    fn verify(&mut self, index: usize) -> Result<(), String> {
        let Some(socket) = &self.connections[index].socket else {
            return Ok(());
        };
        let read = receive(socket, &mut self.read_buffer, RecvFlags::empty())?;
        self.check(index, read)
    }

    /// Checks and times the events in the first bytes of the buffer.
    fn check(&mut self, index: usize, read: usize) -> Result<(), String> {
        let State::Verified(verified) = &mut self.connections[index].state else {
            return Ok(());
        };
        let now = now_ns();
        let timed = self.control.from_ns.load(Relaxed)..self.control.to_ns.load(Relaxed);
        let Verified { parser, checker } = &mut **verified;
        let (latency, mut publications) = (&mut self.latency, 0);
        let fed = parser.feed(&self.read_buffer[..read], |event| {
            let Some(marks) = checker.event(&event) else {
                return;
            };
            publications += 1;
            if timed.contains(&marks.due_ns) {
                latency.saturating_record(now.saturating_sub(marks.due_ns).div_ceil(1000));
            }
        });
        add(&self.board.publications, publications);
        add(&self.board.verified_bytes, read as u64);
        fed.map_err(|_| "an event is too long to be one".into())
    }

    fn drain(&mut self, index: usize) -> Result<(), String> {
        let Some(socket) = &self.connections[index].socket else {
            return Ok(());
        };
        let drained = receive(socket, &mut self.sink, RecvFlags::TRUNC)?;
        add(&self.board.drained_bytes, drained as u64);
        Ok(())
    }

    /// A stream can't be opened, or has ended.
    fn lose(&mut self, index: usize, trouble: String) {
        let connection = &mut self.connections[index];
        connection.socket = None;
        match std::mem::replace(&mut connection.state, State::Drained) {
            State::Connecting | State::Asking(_) => {
                self.opening -= 1;
                add(&self.board.refused, 1);
            }
            State::Verified(verified) => {
                self.ended.push(verified.checker);
                add(&self.board.ended, 1);
            }
            State::Drained => add(&self.board.ended, 1),
        }
        *self.troubles.entry(trouble).or_default() += 1;
    }
}

/// Adds to a counter that only this thread writes.
fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Relaxed) + amount, Relaxed);
}

fn wait(epoll: &OwnedFd, events: &mut Vec<Event>, timeout: &Timespec) -> Result<(), Errno> {
    match epoll::wait(epoll, spare_capacity(events), Some(timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Begins to connect.
fn connect(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Bytes received; 0 if there are none yet.
fn receive(socket: &OwnedFd, buffer: &mut [u8], flags: RecvFlags) -> Result<usize, String> {
    match rustix::net::recv(socket, buffer, flags) {
        Ok((0, _)) => Err("the server has closed the stream".into()),
        Ok((received, _)) => Ok(received),
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        Err(error) => Err(format!("the stream is broken: {error}")),
    }
}

fn explain(error: Errno, address: SocketAddr) -> String {
    match error {
        Errno::CONNREFUSED => {
            format!("nothing listens at {address}: start the server, or correct --url")
        }
        Errno::ADDRNOTAVAIL => {
            "no local port is free: widen net.ipv4.ip_local_port_range (sysctl), or ask for fewer connections"
                .into()
        }
        Errno::MFILE | Errno::NFILE => format!("{error}: raise `ulimit -n`"),
        error => format!("can't connect to {address}: {error}"),
    }
}

/// A response that opens no stream.
fn refusal(status: u16, body: &[u8]) -> String {
    const SHOWN: usize = 200;
    let text = String::from_utf8_lossy(&body[..body.len().min(SHOWN)]);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let hint = match status {
        401 | 403 => " (give a valid --token or --token-file)",
        404 => " (check --url and --well)",
        429 | 503 => " (raise the server's connection limits)",
        _ => "",
    };
    format!("the server answers {status}{hint}: {text}")
}
