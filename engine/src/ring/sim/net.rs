//! The network behind the simulated rings: connections, both ends of each, and the events between them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::SocketAddr;

use super::random::{Random, mix};
use super::state::{Conn, Event, Listener, Packet, Scheduled, Shard, Told};
use super::{End, Faults, ReadState};
use crate::ring::{Completion, Counts, Fd, Key, Now};
use crate::wire_log::Slice;

/// See [`SimNet`](super::SimNet) and [`SimRing`](super::SimRing), whose functions end here.
pub(super) struct Net {
    /// Nanoseconds since the start.
    now: u64,
    wall_start: u64,
    random: Random,
    faults: Faults,
    events: BinaryHeap<Reverse<Scheduled>>,
    sequence: u64,
    /// Every connection there ever was, by its client's number.
    conns: Vec<Conn>,
    shards: Vec<Shard>,
}

/// What clients do.
impl Net {
    pub(super) fn new(seed: u64, faults: Faults, wall: u64) -> Self {
        Self {
            now: 0,
            wall_start: wall,
            random: Random::new(seed),
            faults,
            events: BinaryHeap::new(),
            sequence: 0,
            conns: Vec::new(),
            shards: Vec::new(),
        }
    }

    pub(super) fn add_shard(&mut self, shard: usize) {
        if self.shards.len() <= shard {
            self.shards.resize_with(shard + 1, Shard::default);
        }
    }

    /// The number of the next client.
    pub(super) fn next_client(&self) -> u32 {
        self.conns.len() as u32
    }

    pub(super) fn connect(&mut self, shard: usize, listener: u16, peer: Option<SocketAddr>) -> u32 {
        assert!(shard < self.shards.len(), "shard {shard} has no ring");
        let number = self.next_client();
        self.conns.push(Conn { shard, listener, peer, ..Conn::default() });
        let at = self.now + self.delay(self.faults.delay_to_server);
        self.schedule(at, Event::Connect(number));
        number
    }

    pub(super) fn client_writes(&mut self, number: u32, bytes: &[u8]) {
        self.client_sends(number, Packet::Bytes(bytes.to_vec()));
    }

    pub(super) fn client_reads(&mut self, number: u32, max: usize) -> Vec<u8> {
        self.settle();
        let inbox = &mut self.conn(number).client_inbox;
        let read = max.min(inbox.len());
        inbox.drain(..read).collect()
    }

    pub(super) fn client_state(&mut self, number: u32) -> ReadState {
        self.settle();
        let conn = self.conn(number);
        ReadState { unread: conn.client_inbox.len(), end: conn.client_end }
    }

    pub(super) fn client_closes(&mut self, number: u32) {
        self.client_sends(number, Packet::Fin);
        let conn = self.conn(number);
        conn.client_gone = true;
        conn.client_inbox.clear();
        self.client_stalls(number, false);
    }

    pub(super) fn client_resets(&mut self, number: u32) {
        self.conn(number).client_gone = true;
        let at = self.now + self.delay(self.faults.delay_to_server);
        self.schedule(at, Event::Reset(number));
    }

    pub(super) fn client_stalls(&mut self, number: u32, stalled: bool) {
        let conn = self.conn(number);
        conn.stalled = stalled;
        if !stalled {
            for _ in 0..std::mem::take(&mut conn.held) {
                self.schedule(self.now, Event::ToClient(number));
            }
        }
    }

    pub(super) fn advance(&mut self, nanos: u64) {
        self.run_until(self.now + nanos);
    }

    pub(super) fn next_event_time(&self) -> Option<u64> {
        if self.shards.iter().any(Shard::has_work) {
            return Some(self.now);
        }
        self.events.peek().map(|Reverse(next)| next.at.max(self.now))
    }

    pub(super) fn clocks(&self) -> Now {
        Now { mono: self.now, wall: self.wall_start.wrapping_add(self.now / 1_000_000) }
    }

    pub(super) fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    pub(super) fn set_wall(&mut self, wall: u64) {
        self.wall_start = wall.wrapping_sub(self.now / 1_000_000);
    }
}

/// What shards do.
impl Net {
    pub(super) fn listen(&mut self, shard: usize, number: u16) {
        let listeners = &mut self.shards[shard].listeners;
        if listeners.len() <= usize::from(number) {
            listeners.resize_with(usize::from(number) + 1, || None);
        }
        let place = &mut listeners[usize::from(number)];
        assert!(place.is_none(), "listener {number} is in use");
        *place = Some(Listener { armed: true, ..Listener::default() });
    }

    pub(super) fn accept(&mut self, shard: usize, number: u16) {
        if let Some(listener) = self.listener(shard, number) {
            listener.armed = true;
        }
        self.accept_queued(shard, number);
    }

    pub(super) fn stop_accepting(&mut self, shard: usize, number: u16) {
        self.settle();
        if let Some(listener) = self.listener(shard, number) {
            (listener.armed, listener.stopping) = (true, true);
        }
        self.accept_queued(shard, number);
    }

    pub(super) fn register(&mut self, shard: usize, key: Key, fd: Fd) {
        let number = self.number_of(shard, fd);
        let conn = self.conn(number);
        conn.let_to(key);
        conn.registered = true;
        if !conn.inbox.is_empty() || conn.end != End::Open {
            self.tell_readable(number);
        }
    }

    pub(super) fn recv(&mut self, shard: usize, fd: Fd, into: &mut [u8]) -> io::Result<usize> {
        assert!(!into.is_empty(), "a read of nothing looks like the end");
        let number = self.number_of(shard, fd);
        let short = self.random.chance(self.faults.short_recv);
        let cut = self.random.next();
        let conn = self.conn(number);
        assert!(!conn.closing, "{:?}: read after close", conn.key);
        let mut read = into.len().min(conn.inbox.len());
        if read == 0 {
            return conn.read_end();
        }
        if short {
            read = 1 + (cut % read as u64) as usize;
        }
        for (place, byte) in into.iter_mut().zip(conn.inbox.drain(..read)) {
            *place = byte;
        }
        // At a short read the shard stops, so it must hear of what is left.
        if read < into.len() && (!conn.inbox.is_empty() || conn.end != End::Open) {
            self.tell_readable(number);
        }
        Ok(read)
    }

    pub(super) fn send_now(&mut self, shard: usize, fd: Fd, bytes: &[u8]) -> io::Result<usize> {
        let number = self.number_of(shard, fd);
        let conn = self.conn(number);
        assert!(!conn.in_flight, "{:?}: a send is in flight", conn.key);
        assert!(!conn.closing, "{:?}: sent after close", conn.key);
        self.write(number, bytes).map_err(io::Error::from_raw_os_error)
    }

    pub(super) fn send(&mut self, shard: usize, key: Key, fd: Fd, slice: Slice) {
        let number = self.number_of(shard, fd);
        let conn = self.conn(number);
        conn.let_to(key);
        assert!(!conn.in_flight, "{key:?}: a send is in flight");
        conn.in_flight = true;
        self.shards[shard].sends.push((number, slice));
    }

    pub(super) fn await_writable(&mut self, shard: usize, key: Key, fd: Fd) {
        let number = self.number_of(shard, fd);
        let conn = self.conn(number);
        conn.let_to(key);
        conn.awaits_room = true;
        self.tell_writable(number);
    }

    pub(super) fn close(&mut self, shard: usize, key: Key, fd: Fd, reset: bool) {
        let number = self.number_of(shard, fd);
        let conn = self.conn(number);
        conn.let_to(key);
        conn.closing = true;
        self.shards[shard].closes.push((number, reset));
    }

    pub(super) fn refuse(&mut self, shard: usize, fd: Fd) {
        let number = self.number_of(shard, fd);
        let conn = self.conn(number);
        assert!(conn.key.is_none(), "{:?}: refused after it was accepted", conn.key);
        conn.closing = true;
        self.server_sends(number, Packet::Fin);
        self.shards[shard].files.close(fd);
    }

    pub(super) fn peer(&self, shard: usize, fd: Fd) -> Option<SocketAddr> {
        self.conns[self.number_of(shard, fd) as usize].peer
    }

    pub(super) fn take_counts(&mut self, shard: usize) -> Counts {
        std::mem::take(&mut self.shards[shard].counts)
    }

    pub(super) fn collect(&mut self, shard: usize, out: &mut Vec<Completion>) {
        self.shards[shard].counts.enters += 1;
        for (number, slice) in std::mem::take(&mut self.shards[shard].sends) {
            let result = self.write(number, slice.bytes());
            if let Some(key) = self.conn(number).key {
                self.tell(number, Completion::Sent { key, result }, Some(slice));
            }
        }
        for (number, reset) in std::mem::take(&mut self.shards[shard].closes) {
            self.run_close(number, reset);
        }
        self.settle();
        let mut told = std::mem::take(&mut self.shards[shard].told);
        if self.random.chance(self.faults.reorder) {
            // Every connection draws a rank; the sort is stable, so its own completions stay in order.
            let salt = self.random.next();
            told.sort_by_key(|told| mix(salt ^ told.conn.map_or(u64::MAX, u64::from)));
        }
        for told in told.drain(..) {
            if self.is_wanted(&told) {
                out.push(told.completion);
            }
            drop(told.slice);
        }
        self.shards[shard].told = told;
    }
}

/// What happens by itself.
impl Net {
    fn conn(&mut self, number: u32) -> &mut Conn {
        &mut self.conns[number as usize]
    }

    fn number_of(&self, shard: usize, fd: Fd) -> u32 {
        let number = self.shards[shard].files.get(fd);
        number.unwrap_or_else(|| panic!("fd {fd} is not open"))
    }

    fn listener(&mut self, shard: usize, listener: u16) -> Option<&mut Listener> {
        self.shards[shard].listeners.get_mut(usize::from(listener))?.as_mut()
    }

    fn delay(&mut self, probability: f64) -> u64 {
        if !self.random.chance(probability) {
            return 0;
        }
        self.random.below(self.faults.max_delay.as_nanos() as u64 + 1)
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse(Scheduled { at, sequence: self.sequence, event }));
    }

    /// Runs what is due now.
    fn settle(&mut self) {
        self.run_until(self.now);
    }

    fn run_until(&mut self, until: u64) {
        while let Some(Reverse(Scheduled { at, event, .. })) = self.events.peek()
            && *at <= until
        {
            let (at, event) = (*at, *event);
            self.events.pop();
            self.now = self.now.max(at);
            match event {
                Event::Connect(conn) => self.run_connect(conn),
                Event::ToServer(conn) => self.run_to_server(conn),
                Event::ToClient(conn) => self.run_to_client(conn),
                Event::Reset(conn) => self.reset(conn),
                Event::Tell(conn) => {
                    if let Some(told) = self.conn(conn).late.pop_front() {
                        let shard = self.conn(conn).shard;
                        self.shards[shard].told.push(told);
                    }
                }
            }
        }
        self.now = until;
    }

    fn run_connect(&mut self, number: u32) {
        let &mut Conn { shard, listener, .. } = self.conn(number);
        match self.listener(shard, listener) {
            Some(open) if !open.stopping => {
                open.backlog.push_back(number);
                self.accept_queued(shard, listener);
            }
            _ => self.conn(number).client_end = End::Reset,
        }
    }

    fn accept_queued(&mut self, shard: usize, number: u16) {
        let (fails, burst) = (self.faults.accept_fails, u64::from(self.faults.accept_burst));
        loop {
            let lot = (self.random.chance(fails), 1 + self.random.below(burst.max(1)) as u32);
            let Some(listener) = self.listener(shard, number) else {
                return;
            };
            if !listener.armed {
                return;
            }
            let Some(&conn) = listener.backlog.front() else {
                if listener.stopping {
                    self.shards[shard].listeners[usize::from(number)] = None;
                }
                return;
            };
            if let (0, (true, burst)) = (listener.failing, lot) {
                listener.failing = burst;
            }
            if listener.failing > 0 {
                listener.failing -= 1;
                listener.armed = false;
                let completion = Completion::AcceptFailed { listener: number, errno: libc::EMFILE };
                let told = Told { conn: None, completion, slice: None };
                self.shards[shard].told.push(told);
                return;
            }
            listener.backlog.pop_front();
            let fd = self.shards[shard].files.open(conn);
            self.conn(conn).fd = fd;
            self.tell(conn, Completion::Accepted { listener: number, fd }, None);
        }
    }

    fn run_to_server(&mut self, number: u32) {
        let Some(packet) = self.conn(number).to_server.pop_front() else {
            return;
        };
        if self.random.chance(self.faults.reset) {
            return self.reset(number);
        }
        match packet {
            Packet::Fin => self.conn(number).end = End::Finished,
            Packet::Bytes(_) if self.conn(number).closing => {}
            Packet::Bytes(mut bytes) => {
                if let Some((rest, at)) = self.split(&mut bytes, self.faults.delay_to_server) {
                    self.conn(number).to_server.push_front(Packet::Bytes(rest));
                    self.schedule(at, Event::ToServer(number));
                }
                self.conn(number).inbox.extend(bytes);
            }
        }
        self.tell_readable(number);
    }

    fn run_to_client(&mut self, number: u32) {
        let conn = self.conn(number);
        if conn.stalled {
            conn.held += 1;
            return;
        }
        let Some(packet) = conn.to_client.pop_front() else {
            return;
        };
        match packet {
            Packet::Fin if conn.client_end == End::Open => conn.client_end = End::Finished,
            Packet::Fin => {}
            Packet::Bytes(_) if conn.client_gone => self.reset(number),
            Packet::Bytes(_) if self.random.chance(self.faults.reset) => self.reset(number),
            Packet::Bytes(mut bytes) => {
                if let Some((rest, at)) = self.split(&mut bytes, self.faults.delay_to_client) {
                    self.conn(number).to_client.push_front(Packet::Bytes(rest));
                    self.schedule(at, Event::ToClient(number));
                }
                let conn = self.conn(number);
                conn.buffered -= bytes.len();
                conn.client_inbox.extend(bytes);
                self.tell_writable(number);
            }
        }
    }

    /// By chance, cuts the end off a packet: the rest, and when it arrives.
    fn split(&mut self, bytes: &mut Vec<u8>, probability: f64) -> Option<(Vec<u8>, u64)> {
        if bytes.len() < 2 || !self.random.chance(probability) {
            return None;
        }
        let rest = bytes.split_off(1 + self.random.below(bytes.len() as u64 - 1) as usize);
        Some((rest, self.now + self.delay(1.0)))
    }

    fn reset(&mut self, number: u32) {
        let conn = self.conn(number);
        (conn.end, conn.client_end) = (End::Reset, End::Reset);
        conn.to_server.clear();
        conn.to_client.clear();
        conn.buffered = 0;
        self.tell_readable(number);
        self.tell_writable(number);
    }

    fn client_sends(&mut self, number: u32, packet: Packet) {
        let conn = self.conn(number);
        if conn.client_gone || conn.client_end == End::Reset {
            return;
        }
        conn.to_server.push_back(packet);
        let at = self.now + self.delay(self.faults.delay_to_server);
        self.schedule(at, Event::ToServer(number));
    }

    fn server_sends(&mut self, number: u32, packet: Packet) {
        self.conn(number).to_client.push_back(packet);
        let at = self.now + self.delay(self.faults.delay_to_client);
        self.schedule(at, Event::ToClient(number));
    }

    /// Puts bytes on their way to the client, as many as there is room for.
    fn write(&mut self, number: u32, bytes: &[u8]) -> Result<usize, i32> {
        let blocks = self.random.chance(self.faults.send_would_block);
        let short = self.random.chance(self.faults.short_send);
        let (cut, buffer) = (self.random.next(), self.faults.send_buffer);
        let conn = self.conn(number);
        if conn.end == End::Reset {
            return Err(libc::EPIPE);
        }
        let mut room = bytes.len().min(buffer.saturating_sub(conn.buffered));
        if short && room > 0 {
            room = 1 + (cut % room as u64) as usize;
        }
        if room == 0 || blocks {
            return Err(libc::EAGAIN);
        }
        conn.buffered += room;
        self.server_sends(number, Packet::Bytes(bytes[..room].to_vec()));
        Ok(room)
    }

    fn tell_readable(&mut self, number: u32) {
        let conn = self.conn(number);
        if !conn.registered || conn.closing || conn.readable {
            return;
        }
        if let Some(key) = conn.key {
            conn.readable = true;
            self.tell(number, Completion::Readable(key), None);
        }
    }

    /// Tells of room, once asked for: like Linux as soon as a third of the buffer is free.
    fn tell_writable(&mut self, number: u32) {
        let buffer = self.faults.send_buffer;
        let conn = self.conn(number);
        let room = buffer.saturating_sub(conn.buffered) * 3 >= buffer || conn.end == End::Reset;
        if !conn.awaits_room || conn.closing || !room {
            return;
        }
        if let Some(key) = conn.key {
            conn.awaits_room = false;
            self.tell(number, Completion::Writable(key), None);
        }
    }

    /// Tells a shard something about a connection, after what it was told before.
    fn tell(&mut self, number: u32, completion: Completion, slice: Option<Slice>) {
        let due = self.now + self.delay(self.faults.delay_completion);
        let now = self.now;
        let told = Told { conn: Some(number), completion, slice };
        let conn = self.conn(number);
        if due == now && conn.late.is_empty() {
            let shard = conn.shard;
            self.shards[shard].told.push(told);
        } else {
            conn.late.push_back(told);
            self.schedule(due, Event::Tell(number));
        }
    }

    fn run_close(&mut self, number: u32, reset: bool) {
        if reset {
            let conn = self.conn(number);
            conn.to_client.clear();
            conn.buffered = 0;
            let at = self.now + self.delay(self.faults.delay_to_client);
            self.schedule(at, Event::Reset(number));
        } else {
            self.server_sends(number, Packet::Fin);
        }
        if let Some(key) = self.conn(number).key {
            self.tell(number, Completion::Closed(key), None);
        }
    }

    /// Notes that a completion is collected; whether the shard still wants it.
    fn is_wanted(&mut self, told: &Told) -> bool {
        let Some(number) = told.conn else { return true };
        let conn = self.conn(number);
        match told.completion {
            Completion::Readable(_) => {
                conn.readable = false;
                !conn.closing
            }
            Completion::Writable(_) => !conn.closing,
            Completion::Sent { .. } => {
                conn.in_flight = false;
                true
            }
            Completion::Closed(_) => {
                let (shard, fd) = (conn.shard, conn.fd);
                self.shards[shard].files.close(fd);
                true
            }
            _ => true,
        }
    }
}
