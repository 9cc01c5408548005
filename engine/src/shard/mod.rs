//! A shard: one core's loop and everything that core owns.
//!
//! Ring, listeners, connections, groups, topics, timers and counters belong to this thread alone; the mesh is all it
//! shares. One turn: wait, run what the ring has completed, run what the lanes have brought, retry what was
//! kept back, run timers, send a slice of what groups owe their members, hand records on.
//!
//! * `connection` – what is kept of one client
//! * `input` – from accepted sockets and bytes to requests and their answers
//! * `streams` – from a request for a stream to a member of a group
//! * `delivery` – from a group's wire log to sockets
//! * `pages` – what the server says of itself

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use crate::connector::store::StoreMetrics;
use crate::mail::Mail;
use crate::mesh::{Inbox, Port};
use crate::metrics::{Counter, Metrics};
use crate::ring::{Completion, Counts, Fd, Key, Now, Ring};
use crate::session::{Context, Site};
use crate::timer::Wheel;
use crate::topic::Topics;
use crate::wire_log::Pool;

mod connection;
mod delivery;
mod input;
mod pages;
mod streams;

pub use connection::Connection;

use connection::{Connections, NEVER};
use delivery::Groups;
use streams::Views;

/// Records taken from one lane per turn, so that no lane starves the sockets.
const MAIL_PER_TURN: usize = 256;
/// Longest sleep, so that every shard shows that it is alive.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// Bytes read from a socket at once.
const READ_BYTES: usize = 64 << 10;
/// Bytes of free wire log chunks a shard keeps, of each size.
const POOL_BYTES: usize = 16 << 20;

/// How the server is doing, for all shards to see.
#[derive(Debug, Default)]
pub struct State {
    /// A [`Phase`].
    phase: AtomicU8,
    /// Each shard's last turn, ms on the monotonic clock.
    pub turns: Vec<AtomicU64>,
    /// Connections of all shards. Touched on connect and disconnect only.
    pub connections: AtomicU64,
}

/// What the server as a whole is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Serving.
    Serving = 0,
    /// No new clients; streams are ended, requests in progress are answered.
    Draining = 1,
    /// Whatever is left is cut.
    Ending = 2,
}

impl State {
    /// For this many shards.
    pub fn new(shards: usize) -> Self {
        Self { turns: (0..shards).map(|_| AtomicU64::new(0)).collect(), ..Self::default() }
    }

    /// What the server is doing.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Serving,
            1 => Phase::Draining,
            _ => Phase::Ending,
        }
    }

    /// Goes on to a later phase; never back.
    pub fn advance(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }
}

/// Bounds and periods of a shard, from the configuration.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Connections of all shards.
    pub connections: u64,
    /// Bytes a client may have unsent before it leaves its group's shared tail.
    pub pending_bytes: u64,
    /// How long a client's oldest unsent byte may wait, ms.
    pub pending_age: u64,
    /// How long a request may take to arrive, head and body, ms.
    pub request_timeout: u64,
    /// How long a connection may idle between requests, ms.
    pub keep_alive_timeout: u64,
    /// Sends between two looks at completions, so that publications that arrive meanwhile join the sends to come.
    pub slice: usize,
    /// Replays in progress at once.
    pub replays: usize,
    /// Bytes that may wait for full lanes before publishing is refused.
    pub waiting_bytes: usize,
    /// Views at once.
    pub views: usize,
}

/// Which node of the mesh does what.
#[derive(Clone, Copy, Debug)]
pub struct Nodes {
    /// Nodes `0..shards` are the shards.
    pub shards: usize,
    /// Reads back from the store.
    pub reader: usize,
    /// Checks passwords.
    pub accounts: usize,
}

/// What a shard is made of.
pub struct Parts<R> {
    /// Its ring.
    pub ring: R,
    /// Its end of the mesh; its node number is the shard's.
    pub port: Port,
    /// Who the others are.
    pub nodes: Nodes,
    /// The topics it owns.
    pub topics: Topics,
    /// What all sessions share.
    pub site: Arc<Site>,
    /// Bounds.
    pub bounds: Bounds,
    /// The counters of all shards; its own are at its node number.
    pub metrics: Vec<Arc<Metrics>>,
    /// The store's counters.
    pub store_metrics: Arc<StoreMetrics>,
    /// How the server is doing.
    pub state: Arc<State>,
    /// Listening sockets with the number of the listener.
    pub listeners: Vec<(u16, Fd)>,
}

/// What a timer is about.
#[derive(Clone, Copy, Debug)]
enum Timer {
    /// A connection's deadline; the time it was armed for.
    Connection(Key, u64),
    /// A group's next heartbeat: the group and its generation.
    Heartbeat(u32, u32),
    /// Accept again.
    Accept(u16),
}

/// One core's share of the server.
pub struct Shard<R: Ring> {
    ring: R,
    port: Port,
    nodes: Nodes,
    topics: Topics,
    site: Arc<Site>,
    bounds: Bounds,
    metrics: Arc<Metrics>,
    store_metrics: Arc<StoreMetrics>,
    all_metrics: Vec<Arc<Metrics>>,
    state: Arc<State>,
    phase: Phase,
    listeners: Vec<u16>,
    connections: Connections,
    views: Views,
    groups: Groups,
    wheel: Wheel<Timer>,
    pool: Rc<Pool>,
    replays: usize,
    replay_queue: VecDeque<Key>,
    /// Connections whose input should be read on, although no completion will say so.
    to_read: Vec<Key>,
    /// When the log was last told that accepting fails, ms.
    accept_warned: Option<u64>,
    now: Now,
    completions: Vec<Completion>,
    inbox: Inbox,
    due: Vec<Timer>,
    buffer: Box<[u8]>,
    scratch: Vec<u8>,
    frame: Vec<u8>,
}

impl<R: Ring> Shard<R> {
    /// Starts to listen.
    pub fn new(parts: Parts<R>) -> Self {
        let Parts { mut ring, port, nodes, topics, site, bounds, metrics, store_metrics, state, listeners } =
            parts;
        let now = ring.now();
        for &(number, fd) in &listeners {
            ring.listen(number, fd);
        }
        Self {
            ring,
            nodes,
            topics,
            site,
            bounds,
            metrics: Arc::clone(&metrics[port.node()]),
            port,
            all_metrics: metrics,
            store_metrics,
            state,
            phase: Phase::Serving,
            listeners: listeners.iter().map(|&(number, _)| number).collect(),
            connections: Connections::default(),
            views: Views { views: Vec::new(), by_name: HashMap::new(), free: Vec::new() },
            groups: Groups::default(),
            wheel: Wheel::new(now.millis()),
            pool: Pool::new(POOL_BYTES),
            replays: 0,
            replay_queue: VecDeque::new(),
            to_read: Vec::new(),
            accept_warned: None,
            now,
            completions: Vec::new(),
            inbox: Inbox::default(),
            due: Vec::new(),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            scratch: Vec::new(),
            frame: Vec::new(),
        }
    }

    /// Turns until the server has ended.
    pub fn run(mut self) {
        while !self.has_ended() {
            let wait = self.wait();
            self.turn(wait);
        }
        self.finish();
    }

    /// One turn of the loop, waiting at most `wait` for something to happen.
    pub fn turn(&mut self, wait: Duration) {
        let wait = if wait.is_zero() || self.port.may_sleep() { wait } else { Duration::ZERO };
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.turn(Some(wait), &mut completions);
        self.port.awake();
        self.now = self.ring.now();
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.completions = completions;
        self.take_mail();
        self.topics.turn(self.now.wall, &mut self.port);
        self.run_timers();
        for key in std::mem::take(&mut self.to_read) {
            self.read_on(key);
        }
        self.follow_phase();
        self.flush_groups();
        self.port.flush();
        self.tell();
    }

    /// How long the next turn may wait.
    pub fn wait(&self) -> Duration {
        if self.groups.want_flush() || !self.to_read.is_empty() || self.port.has_mail() {
            return Duration::ZERO;
        }
        if self.topics.is_kept_back() || self.port.waiting() > 0 || self.phase != Phase::Serving {
            return Duration::from_millis(1);
        }
        let until = |at: u64| Duration::from_millis(at.saturating_sub(self.now.millis()));
        self.wheel.next().map_or(LONGEST_SLEEP, until).min(LONGEST_SLEEP)
    }

    /// Whether a drain is over: no connection is left, and nothing waits for the store or a lane.
    pub fn has_ended(&self) -> bool {
        self.phase == Phase::Ending
            || self.phase == Phase::Draining
                && self.connections.is_empty()
                && !self.topics.is_busy()
                && self.port.waiting() == 0
                && self.state.connections.load(Ordering::Acquire) == 0
    }

    /// Says the last words to the store.
    pub fn finish(&mut self) {
        self.topics.close(&mut self.port);
        // The store takes what is on its lanes until it is told to stop, which comes after this thread has ended.
        for _ in 0..5000 {
            self.port.flush();
            if self.port.waiting() == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn complete(&mut self, completion: Completion) {
        match completion {
            Completion::Accepted { listener, fd } => self.accept(listener, fd),
            Completion::AcceptFailed { listener, errno } => self.accept_failed(listener, errno),
            Completion::Readable(key) => self.read(key),
            Completion::Writable(key) => self.writable(key),
            Completion::Sent { key, result } => self.sent(key, result),
            Completion::Closed(key) => self.closed(key),
            Completion::Doorbell => {}
        }
    }

    fn take_mail(&mut self) {
        let nodes = self.nodes.accounts + 1;
        for from in 0..nodes {
            let mut inbox = std::mem::take(&mut self.inbox);
            self.port.receive(from, MAIL_PER_TURN, &mut inbox);
            for (from, record) in inbox.records() {
                if let Some(mail) = Mail::decode(record) {
                    self.handle(from, mail);
                }
            }
            inbox.clear();
            self.inbox = inbox;
        }
    }

    fn handle(&mut self, from: usize, mail: Mail<'_>) {
        match mail {
            Mail::Acked { ticket, row, offset } => self.acked(ticket, row, Ok(offset)),
            Mail::Refused { ticket, row, failure } => self.acked(ticket, row, Err(failure)),
            Mail::Watching { view, head } => self.watching(view, head),
            Mail::Unwatchable { view } => self.unwatchable(view),
            Mail::Live { view, item } => self.live(view, item),
            Mail::Missed { view, gap } => self.missed(view, gap),
            Mail::Replayed { tag, item } => self.replayed(tag, item),
            Mail::ReplayEnd { tag, upto, live, gap } => self.replay_end(tag, upto, live, gap),
            Mail::NoLatest { tag } => self.no_latest(tag),
            Mail::TopicRow { tag, topic, offset, time } => self.topic_row(tag, topic, offset, time),
            Mail::ReadDone { tag, end } => self.read_done(tag, end),
            Mail::PasswordChecked { tag, token, busy } => self.password_checked(tag, token, busy),
            owners => self.topics.handle(from, owners, self.now.wall, &mut self.port),
        }
    }

    fn run_timers(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(self.now.millis(), &mut due);
        for timer in due.drain(..) {
            match timer {
                Timer::Connection(key, armed) => self.connection_due(key, armed),
                Timer::Heartbeat(group, generation) => self.heartbeat(group, generation),
                Timer::Accept(listener) if self.phase == Phase::Serving => self.ring.accept(listener),
                Timer::Accept(_) => {}
            }
        }
        self.due = due;
    }

    /// Moves a connection's deadline; the wheel is touched only if it comes nearer.
    fn set_deadline(&mut self, key: Key, deadline: u64) {
        let Some(connection) = self.connections.get(key) else { return };
        connection.deadline = deadline;
        if deadline < connection.armed {
            connection.armed = deadline;
            self.wheel.set(deadline, Timer::Connection(key, deadline));
        }
    }

    fn connection_due(&mut self, key: Key, armed: u64) {
        let now = self.now.millis();
        let Some(connection) = self.connections.get(key) else { return };
        if connection.armed != armed {
            return;
        }
        connection.armed = NEVER;
        let deadline = connection.deadline;
        if deadline > now {
            return self.set_deadline(key, deadline);
        }
        connection.deadline = NEVER;
        self.deadline_over(key);
    }

    /// Takes part in a drain.
    fn follow_phase(&mut self) {
        let phase = self.state.phase();
        if phase == self.phase {
            return;
        }
        self.phase = phase;
        for listener in std::mem::take(&mut self.listeners) {
            self.ring.stop_accepting(listener);
        }
        for key in self.connections.keys() {
            self.drain(key);
        }
    }

    fn tell(&mut self) {
        let Counts { enters, overflows, rearms } = self.ring.take_counts();
        self.metrics.add(Counter::Enters, enters);
        self.metrics.add(Counter::Overflows, overflows);
        self.metrics.add(Counter::Rearms, rearms);
        self.metrics.count(Counter::Turns);
        self.metrics.set(Counter::WireBytes, self.pool.used_bytes() as u64);
        self.state.turns[self.port.node()].store(self.now.millis(), Ordering::Relaxed);
    }

    fn context<'a>(site: &'a Site, metrics: &'a Metrics, now: Now, phase: Phase) -> Context<'a> {
        Context { now, site, metrics, draining: phase != Phase::Serving }
    }
}
