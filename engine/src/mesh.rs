//! The mesh: one bounded, lock-free lane of bytes for each ordered pair of nodes, and a doorbell for each node.
//!
//! Nodes are the shards and the few threads beside them (store, accounts). A lane has one producer and one
//! consumer; what crosses it is bytes in a preallocated ring, never pointers, so no memory is freed by a thread
//! that did not allocate it. A lane allocates on first use. The mesh never blocks and does not know what it
//! carries: [`Port::try_send`] tells that a lane is full, and the caller decides what that means for this kind.
//!
//! Unsafe, and why: a byte ring shared by two threads without a lock is two threads holding one buffer. Which
//! bytes belong to whom is said by two counters, which the borrow checker cannot see.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam::utils::CachePadded;

use crate::sys;

/// Bytes in front of a record: its length, and padding so that headers stay aligned.
const HEADER: usize = 8;
/// In place of a length: the rest of the ring up to its end is unused.
const SKIP: u32 = u32::MAX;

/// The lanes between all nodes. Shared; each node takes its own [`Port`].
pub struct Mesh {
    nodes: usize,
    lanes: Vec<Lane>,
    doors: Vec<CachePadded<Door>>,
    taken: Vec<AtomicBool>,
}

struct Door {
    asleep: AtomicBool,
    /// An eventfd, made before any thread has a descriptor table of its own: the same number in all of them.
    bell: Option<i32>,
}

impl Mesh {
    /// Lanes of `lane_bytes` (a power of two) between `nodes` nodes. Without `bells` nobody is woken: whoever
    /// drives the nodes turns them by itself.
    ///
    /// # Errors
    /// If an eventfd can't be made.
    pub fn new(nodes: usize, lane_bytes: usize, bells: bool) -> io::Result<Arc<Self>> {
        assert!(lane_bytes.is_power_of_two() && lane_bytes >= 4096);
        let doors = (0..nodes)
            .map(|_| {
                let bell = if bells { Some(sys::eventfd()?) } else { None };
                Ok(CachePadded::new(Door { asleep: AtomicBool::new(false), bell }))
            })
            .collect::<io::Result<_>>()?;
        Ok(Arc::new(Self {
            nodes,
            lanes: (0..nodes * nodes).map(|_| Lane::new(lane_bytes)).collect(),
            doors,
            taken: (0..nodes).map(|_| AtomicBool::new(false)).collect(),
        }))
    }

    /// The node's end of all its lanes.
    ///
    /// # Panics
    /// If somebody has it already: a lane has one producer and one consumer.
    pub fn port(self: &Arc<Self>, node: usize) -> Port {
        assert!(!self.taken[node].swap(true, Ordering::AcqRel), "port {node} is taken");
        Port {
            mesh: Arc::clone(self),
            node,
            waiting: (0..self.nodes).map(|_| VecDeque::new()).collect(),
            waiting_bytes: 0,
            to_ring: vec![false; self.nodes],
        }
    }

    /// Wakes a node, from any thread.
    pub fn ring(&self, node: usize) {
        fence(Ordering::SeqCst);
        let door = &self.doors[node];
        if door.asleep.swap(false, Ordering::AcqRel)
            && let Some(bell) = door.bell
        {
            sys::ring_bell(bell);
        }
    }

    /// Largest record a lane takes, bytes.
    pub fn max_record(&self) -> usize {
        self.lanes[0].max_record()
    }
}

/// One node's end of the mesh.
pub struct Port {
    mesh: Arc<Mesh>,
    node: usize,
    /// Records that found their lane full, in order, by receiver.
    waiting: Vec<VecDeque<Box<[u8]>>>,
    waiting_bytes: usize,
    to_ring: Vec<bool>,
}

impl Port {
    /// Which node this is.
    pub fn node(&self) -> usize {
        self.node
    }

    /// The node's eventfd.
    pub fn bell(&self) -> Option<i32> {
        self.mesh.doors[self.node].bell
    }

    /// Puts a record on the lane to `to`; false if it is full, or something is waiting for it already.
    #[must_use]
    pub fn try_send(&mut self, to: usize, record: &[u8]) -> bool {
        let sent = self.waiting[to].is_empty() && self.lane_to(to).push(record);
        self.to_ring[to] |= sent;
        sent
    }

    /// Puts a record on the lane to `to`, or keeps it until there is room. Only for records whose number is bounded
    /// by something else, such as one per request in progress.
    pub fn send(&mut self, to: usize, record: &[u8]) {
        if !self.try_send(to, record) {
            self.waiting_bytes += record.len();
            self.waiting[to].push_back(record.into());
        }
    }

    /// Records kept because their lane was full.
    pub fn waiting(&self) -> usize {
        self.waiting.iter().map(VecDeque::len).sum()
    }

    /// Whether something is waiting for the lane to `to`.
    pub fn is_congested(&self, to: usize) -> bool {
        !self.waiting[to].is_empty()
    }

    /// Their bytes.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Largest record a lane takes, bytes.
    pub fn max_record(&self) -> usize {
        self.mesh.max_record()
    }

    /// Moves up to `max` records from the lane from `from` into `inbox`.
    pub fn receive(&mut self, from: usize, max: usize, inbox: &mut Inbox) {
        let lane = &self.mesh.lanes[from * self.mesh.nodes + self.node];
        lane.pop(max, |record| inbox.push(from, record));
    }

    /// Sends what was kept as far as there is room now, and wakes receivers that sleep. Once per loop turn.
    pub fn flush(&mut self) {
        for to in 0..self.mesh.nodes {
            while let Some(record) = self.waiting[to].front() {
                if !self.lane_to(to).push(record) {
                    break;
                }
                self.waiting_bytes -= record.len();
                self.waiting[to].pop_front();
                self.to_ring[to] = true;
            }
            if std::mem::take(&mut self.to_ring[to]) {
                self.mesh.ring(to);
            }
        }
    }

    /// Says that this node is about to sleep; false if something has arrived, and it must not. From here on a sender
    /// rings the bell.
    #[must_use]
    pub fn may_sleep(&self) -> bool {
        let door = &self.mesh.doors[self.node];
        door.asleep.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        let arrived = self.has_mail();
        if arrived {
            door.asleep.store(false, Ordering::Release);
        }
        !arrived
    }

    /// Says that this node is awake: senders need not ring.
    pub fn awake(&self) {
        self.mesh.doors[self.node].asleep.store(false, Ordering::Release);
    }

    /// Whether a lane to this node holds something.
    pub fn has_mail(&self) -> bool {
        (0..self.mesh.nodes).any(|from| !self.mesh.lanes[from * self.mesh.nodes + self.node].is_empty())
    }

    /// Sleeps until the bell rings or `timeout` is over. For nodes without a ring of their own.
    pub fn wait(&self, timeout: Option<Duration>) {
        if self.may_sleep()
            && let Some(bell) = self.bell()
        {
            sys::wait_bell(bell, timeout);
        }
        self.awake();
    }

    fn lane_to(&self, to: usize) -> &Lane {
        &self.mesh.lanes[self.node * self.mesh.nodes + to]
    }
}

/// Records taken off lanes, to be handled while the lanes fill again.
#[derive(Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    records: Vec<(usize, usize)>,
}

impl Inbox {
    fn push(&mut self, from: usize, record: &[u8]) {
        self.bytes.extend_from_slice(record);
        self.records.push((from, self.bytes.len()));
    }

    /// Whether nothing was taken.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The records and the nodes they came from: each sender's in the order of sending.
    pub fn records(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let mut start = 0;
        self.records.iter().map(move |&(from, end)| {
            let record = &self.bytes[start..end];
            start = end;
            (from, record)
        })
    }

    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.records.clear();
    }
}

/// A single-producer single-consumer ring of records. Positions only grow; `position & mask` is the place.
struct Lane {
    buffer: OnceLock<Box<[UnsafeCell<u8>]>>,
    capacity: usize,
    /// Written by the producer only.
    head: CachePadded<AtomicUsize>,
    /// Written by the consumer only.
    tail: CachePadded<AtomicUsize>,
}

// SAFETY: the bytes between `tail` and `head` are only read, by the consumer; all others are only written, by the
// producer. `head` is stored with Release after the bytes are written and loaded with Acquire before they are read;
// `tail` likewise the other way round. `Port` is handed out once per node and takes `&mut self`, so a lane has one
// producer and one consumer.
unsafe impl Sync for Lane {}
// SAFETY: the cells hold plain bytes.
unsafe impl Send for Lane {}

impl Lane {
    fn new(capacity: usize) -> Self {
        Self {
            buffer: OnceLock::new(),
            capacity,
            head: CachePadded::new(AtomicUsize::new(0)),
            tail: CachePadded::new(AtomicUsize::new(0)),
        }
    }

    fn max_record(&self) -> usize {
        self.capacity / 4
    }

    fn is_empty(&self) -> bool {
        self.head.load(Ordering::Acquire) == self.tail.load(Ordering::Acquire)
    }

    fn push(&self, record: &[u8]) -> bool {
        assert!(record.len() <= self.max_record(), "a record of {} bytes", record.len());
        let buffer = self
            .buffer
            .get_or_init(|| std::iter::repeat_with(|| UnsafeCell::new(0)).take(self.capacity).collect());
        let mut head = self.head.load(Ordering::Relaxed);
        let free = self.capacity - (head - self.tail.load(Ordering::Acquire));
        let need = HEADER + record.len().next_multiple_of(HEADER);
        let to_end = self.capacity - (head & (self.capacity - 1));
        let skip = if to_end < need { to_end } else { 0 };
        if free < skip + need {
            return false;
        }
        if skip > 0 {
            // SAFETY: the places written lie in `head..head + skip + need`, which is free (just checked), inside the
            // buffer (a record that does not fit before the end starts at place 0), and only the producer writes.
            unsafe { self.write(buffer, head, &SKIP.to_ne_bytes()) };
            head += skip;
        }
        // SAFETY: as above.
        unsafe {
            self.write(buffer, head, &(record.len() as u32).to_ne_bytes());
            self.write(buffer, head + HEADER, record);
        }
        self.head.store(head + need, Ordering::Release);
        true
    }

    fn pop(&self, max: usize, mut take: impl FnMut(&[u8])) {
        let Some(buffer) = self.buffer.get() else { return };
        let mut tail = self.tail.load(Ordering::Relaxed);
        let head = self.head.load(Ordering::Acquire);
        let mut taken = 0;
        while tail != head && taken < max {
            // SAFETY: `tail..head` was written before `head` was stored, and the producer writes there again only
            // after `tail` is stored below. Headers are 8-aligned, so 4 bytes of header never cross the end.
            let len = unsafe { self.read(buffer, tail, 4) };
            let len = u32::from_ne_bytes([len[0], len[1], len[2], len[3]]);
            if len == SKIP {
                tail += self.capacity - (tail & (self.capacity - 1));
                continue;
            }
            // SAFETY: as above; the producer never lets a record cross the end.
            take(unsafe { self.read(buffer, tail + HEADER, len as usize) });
            tail += HEADER + (len as usize).next_multiple_of(HEADER);
            taken += 1;
        }
        self.tail.store(tail, Ordering::Release);
    }

    /// # Safety
    /// `position..position + bytes.len()` belongs to the producer, who calls this, and does not cross the end.
    unsafe fn write(&self, buffer: &[UnsafeCell<u8>], position: usize, bytes: &[u8]) {
        let place = position & (self.capacity - 1);
        debug_assert!(place + bytes.len() <= self.capacity);
        // SAFETY: inside the buffer; nobody else looks at these bytes.
        unsafe {
            let to = UnsafeCell::raw_get(buffer.as_ptr().add(place));
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// # Safety
    /// `position..position + len` belongs to the consumer, who calls this, and does not cross the end.
    unsafe fn read<'a>(&self, buffer: &'a [UnsafeCell<u8>], position: usize, len: usize) -> &'a [u8] {
        let place = position & (self.capacity - 1);
        debug_assert!(place + len <= self.capacity);
        // SAFETY: inside the buffer; nobody writes these bytes while the consumer has them.
        unsafe { std::slice::from_raw_parts(buffer.as_ptr().add(place).cast::<u8>(), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair() -> (Port, Port) {
        let mesh = Mesh::new(2, 4096, false).unwrap();
        (mesh.port(0), mesh.port(1))
    }

    fn drain(port: &mut Port, max: usize) -> Vec<Vec<u8>> {
        let mut inbox = Inbox::default();
        port.receive(0, max, &mut inbox);
        inbox.records().map(|(_, record)| record.to_vec()).collect()
    }

    #[test]
    fn a_full_lane_says_so_and_keeps_the_order() {
        let (mut a, mut b) = pair();
        let record = [7u8; 1000];
        let mut accepted = 0;
        while a.try_send(1, &record) {
            accepted += 1;
        }
        assert_eq!(accepted, 4);
        a.send(1, &[8; 1000]);
        assert!(!a.try_send(1, b""), "nothing overtakes what is kept");
        assert_eq!(drain(&mut b, 100).len(), 4);
        a.flush();
        assert_eq!(drain(&mut b, 100), [[8; 1000]]);
        assert!(a.try_send(1, b"x"));
    }

    #[test]
    fn nobody_sleeps_over_mail() {
        let (mut a, b) = pair();
        assert!(b.may_sleep());
        b.awake();
        assert!(a.try_send(1, b"x"));
        assert!(!b.may_sleep());
    }

    #[test]
    fn two_threads_exchange_a_million_records_in_order() {
        let mesh = Mesh::new(2, 1 << 16, true).unwrap();
        let (mut a, mut b) = (mesh.port(0), mesh.port(1));
        let count = 1_000_000u64;
        let sender = std::thread::spawn(move || {
            for number in 0..count {
                let record = [&number.to_le_bytes()[..], &[0; 40][..number as usize % 40]].concat();
                while !a.try_send(1, &record) {
                    a.flush();
                    std::thread::yield_now();
                }
                if number % 64 == 0 {
                    a.flush();
                }
            }
            a.flush();
        });
        let (mut next, mut inbox) = (0u64, Inbox::default());
        while next < count {
            b.receive(0, 256, &mut inbox);
            if inbox.is_empty() {
                b.wait(Some(Duration::from_millis(20)));
            }
            for (_, record) in inbox.records() {
                assert_eq!(record[..8], next.to_le_bytes());
                assert_eq!(record.len(), 8 + next as usize % 40);
                next += 1;
            }
            inbox.clear();
        }
        sender.join().unwrap();
    }

    proptest! {
        #[test]
        fn records_come_out_as_they_went_in(
            steps in prop::collection::vec((any::<bool>(), 0usize..1024), 1..300),
        ) {
            let (mut a, mut b) = pair();
            let (mut sent, mut received) = (Vec::new(), Vec::new());
            for (send, size) in steps {
                if send {
                    let record = vec![size as u8; size];
                    if a.try_send(1, &record) {
                        sent.push(record);
                    }
                } else {
                    received.extend(drain(&mut b, size % 5));
                }
            }
            received.extend(drain(&mut b, usize::MAX));
            prop_assert_eq!(sent, received);
        }
    }
}
