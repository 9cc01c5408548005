//! The ring on epoll, for where io_uring is forbidden: the same completions, from readiness and plain system
//! calls.
//!
//! Connections are watched edge-triggered, listeners and the doorbell level-triggered. What is asked for
//! between two collections (sends, closes) is done at the start of the next one, in that order.
//!
//! Unsafe, and why: the three system calls of epoll(7), with arguments on the stack or in a vector of this
//! ring.
#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use libc::{EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, epoll_event};

use super::socket::{Backlog, Hangups, accept_queued, listener_key, tag, untag};
use super::{Completion, Counts, Fd, Key, Now, Ring};
use crate::sys;
use crate::wire_log::Slice;

/// Events taken at once. More wait for the next turn.
const EVENTS: usize = 1024;
/// Clients accepted at once on one listener. More wait for the next turn, so that a storm of clients doesn't
/// keep the shard from those it has.
const ACCEPT_BATCH: usize = 256;

const CONNECTION: u8 = 1;
const LISTENER: u8 = 2;
const DOORBELL: u8 = 3;

const INPUT: i32 = libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET;
const FAILURE: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;

/// The epoll ring of one shard.
pub struct Epoll {
    epoll: Fd,
    doorbell: Fd,
    /// By a key's index.
    slots: Vec<Slot>,
    /// By number.
    listeners: Vec<Option<Listener>>,
    hangups: Hangups,
    sends: Vec<(Key, Fd, Slice)>,
    closes: Vec<(Key, Fd)>,
    /// Told with the next collection.
    pending: Vec<Completion>,
    events: Vec<epoll_event>,
    counts: Counts,
}

/// What the ring knows of a connection.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// [`Slot::FREE`] if nobody lives here.
    fd: Fd,
    generation: u32,
    /// The shard has asked for `Writable`.
    writing: bool,
    sending: bool,
    closing: bool,
}

/// There is one for every connection, idle ones too.
const _: () = assert!(size_of::<Slot>() == 12);

impl Slot {
    const FREE: Fd = -1;

    const fn let_to(fd: Fd, generation: u32) -> Self {
        Self { fd, generation, writing: false, sending: false, closing: false }
    }
}

#[derive(Clone, Copy, Debug)]
struct Listener {
    fd: Fd,
    /// Watched: it isn't after a failure, until the shard says to go on.
    armed: bool,
    /// To be closed once its queue is empty.
    stopping: bool,
}

impl Epoll {
    /// A ring for one shard. Writes to `doorbell`, an eventfd that stays the caller's, end a wait.
    pub fn new(doorbell: Fd) -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if epoll < 0 {
            return Err(io::Error::last_os_error());
        }
        let ring = Self {
            epoll,
            doorbell,
            slots: Vec::new(),
            listeners: Vec::new(),
            hangups: Hangups::default(),
            sends: Vec::new(),
            closes: Vec::new(),
            pending: Vec::new(),
            events: Vec::with_capacity(EVENTS),
            counts: Counts::default(),
        };
        ring.watch(EPOLL_CTL_ADD, doorbell, libc::EPOLLIN, tag(DOORBELL, listener_key(0)))?;
        Ok(ring)
    }

    fn collect(&mut self, wait: Option<Duration>, out: &mut Vec<Completion>) {
        let told = out.len();
        out.append(&mut self.pending);
        self.hangups.tell(out);
        self.run_sends(out);
        self.run_closes(out);
        let wait = if out.len() > told { Some(Duration::ZERO) } else { wait };
        let mut events = std::mem::take(&mut self.events);
        self.wait(wait, &mut events);
        for event in events.drain(..) {
            self.run(event, out);
        }
        self.events = events;
    }

    fn run_sends(&mut self, out: &mut Vec<Completion>) {
        for (key, fd, slice) in self.sends.drain(..) {
            let errno = |error: io::Error| error.raw_os_error().unwrap_or(libc::EIO);
            let result = sys::send(fd, slice.bytes()).map_err(errno);
            self.slots[key.index as usize].sending = false;
            out.push(Completion::Sent { key, result });
        }
    }

    fn run_closes(&mut self, out: &mut Vec<Completion>) {
        for (key, fd) in self.closes.drain(..) {
            sys::close(fd);
            self.slots[key.index as usize].fd = Slot::FREE;
            out.push(Completion::Closed(key));
        }
    }

    fn wait(&mut self, wait: Option<Duration>, events: &mut Vec<epoll_event>) {
        self.counts.enters += 1;
        let millis = sys::millis_up(wait);
        // SAFETY: the kernel writes at most EVENTS events into the vector's capacity and says how many it
        // wrote.
        unsafe {
            let room = events.as_mut_ptr();
            let ready = libc::epoll_wait(self.epoll, room, EVENTS as i32, millis);
            // A signal (EINTR) is like nothing having happened.
            events.set_len(usize::try_from(ready).unwrap_or(0));
        }
    }

    fn run(&mut self, event: epoll_event, out: &mut Vec<Completion>) {
        let (op, key) = untag(event.u64);
        match op {
            CONNECTION => self.run_connection(key, event.events, out),
            LISTENER => self.accept_some(key.index as u16, out),
            _ => {
                if sys::hush_bell(self.doorbell) {
                    out.push(Completion::Doorbell);
                }
            }
        }
    }

    fn run_connection(&mut self, key: Key, events: u32, out: &mut Vec<Completion>) {
        let slot = &mut self.slots[key.index as usize];
        if slot.fd == Slot::FREE || slot.generation != key.generation {
            return;
        }
        self.hangups.note(key, slot.fd, events);
        if events & (INPUT as u32 | FAILURE) != 0 {
            out.push(Completion::Readable(key));
        }
        if slot.writing && events & (libc::EPOLLOUT as u32 | FAILURE) != 0 {
            slot.writing = false;
            out.push(Completion::Writable(key));
        }
    }

    /// Accepts clients that wait; all of them, and then closes the listener, if it is stopping.
    fn accept_some(&mut self, number: u16, out: &mut Vec<Completion>) {
        let Some(Some(listener)) = self.listeners.get(usize::from(number)).copied() else {
            return;
        };
        let limit = if listener.stopping { usize::MAX } else { ACCEPT_BATCH };
        match accept_queued(number, listener.fd, limit, out) {
            Backlog::Empty if listener.stopping => {
                sys::close(listener.fd);
                self.listeners[usize::from(number)] = None;
            }
            // What can't be accepted stays readable, and would be told in every turn.
            Backlog::Failed if listener.armed => {
                let _ = self.watch(EPOLL_CTL_DEL, listener.fd, 0, 0);
                self.listeners[usize::from(number)] = Some(Listener { armed: false, ..listener });
            }
            _ => {}
        }
    }

    fn accept_rest(&mut self, number: u16) {
        let mut pending = std::mem::take(&mut self.pending);
        self.accept_some(number, &mut pending);
        self.pending = pending;
    }

    fn watch_listener(&mut self, number: u16) {
        let Some(Some(listener)) = self.listeners.get(usize::from(number)).copied() else {
            return;
        };
        let tag = tag(LISTENER, listener_key(number));
        let watched = self.watch(EPOLL_CTL_ADD, listener.fd, libc::EPOLLIN, tag);
        let armed = watched.is_ok();
        self.listeners[usize::from(number)] = Some(Listener { armed, ..listener });
        if let Err(error) = watched {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            self.pending.push(Completion::AcceptFailed { listener: number, errno });
        }
    }

    fn watch(&self, op: i32, fd: Fd, events: i32, tag: u64) -> io::Result<()> {
        let mut event = epoll_event { events: events as u32, u64: tag };
        // SAFETY: the kernel reads one event.
        let result = unsafe { libc::epoll_ctl(self.epoll, op, fd, &mut event) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Has the shard find out that a connection can't be watched: it ends, and reading says so.
    fn give_up(&mut self, key: Key, fd: Fd) {
        sys::shutdown(fd);
        self.pending.push(Completion::Readable(key));
    }

    /// The slot of a connection, let to it if it was free.
    fn slot(&mut self, key: Key, fd: Fd) -> &mut Slot {
        let index = key.index as usize;
        if index >= self.slots.len() {
            self.slots.resize(index + 1, Slot::let_to(Slot::FREE, 0));
        }
        let slot = &mut self.slots[index];
        if slot.fd == Slot::FREE {
            *slot = Slot::let_to(fd, key.generation);
        }
        debug_assert!(slot.fd == fd && slot.generation == key.generation, "{key:?}: place taken");
        debug_assert!(!slot.closing, "{key:?}: used after close");
        slot
    }
}

impl Ring for Epoll {
    fn listen(&mut self, listener: u16, fd: Fd) {
        let index = usize::from(listener);
        if index >= self.listeners.len() {
            self.listeners.resize(index + 1, None);
        }
        debug_assert!(self.listeners[index].is_none(), "listener {listener} is in use");
        self.listeners[index] = Some(Listener { fd, armed: false, stopping: false });
        self.watch_listener(listener);
    }

    fn accept(&mut self, listener: u16) {
        match self.listeners.get(usize::from(listener)) {
            Some(Some(Listener { stopping: true, .. })) => self.accept_rest(listener),
            Some(Some(Listener { armed: false, .. })) => self.watch_listener(listener),
            _ => {}
        }
    }

    fn stop_accepting(&mut self, listener: u16) {
        if let Some(Some(entry)) = self.listeners.get_mut(usize::from(listener)) {
            entry.stopping = true;
            self.accept_rest(listener);
        }
    }

    fn register(&mut self, key: Key, fd: Fd) {
        self.slot(key, fd);
        if self.watch(EPOLL_CTL_ADD, fd, INPUT, tag(CONNECTION, key)).is_err() {
            self.give_up(key, fd);
        }
    }

    fn recv(&mut self, fd: Fd, into: &mut [u8]) -> io::Result<usize> {
        self.hangups.recv(fd, into)
    }

    fn send_now(&mut self, fd: Fd, bytes: &[u8]) -> io::Result<usize> {
        sys::send(fd, bytes)
    }

    fn send(&mut self, key: Key, fd: Fd, slice: Slice) {
        let slot = self.slot(key, fd);
        assert!(!slot.sending, "{key:?}: a send is in flight");
        slot.sending = true;
        self.sends.push((key, fd, slice));
    }

    fn await_writable(&mut self, key: Key, fd: Fd) {
        self.slot(key, fd).writing = true;
        // Setting the same events again has the kernel look again: room that came before is told, and so is
        // input that was told already. EPOLLOUT stays watched; it is heard only while somebody has asked.
        let events = INPUT | libc::EPOLLOUT;
        if self.watch(EPOLL_CTL_MOD, fd, events, tag(CONNECTION, key)).is_err() {
            self.give_up(key, fd);
        }
    }

    fn close(&mut self, key: Key, fd: Fd, reset: bool) {
        self.slot(key, fd).closing = true;
        if reset {
            sys::reset_on_close(fd);
        }
        self.hangups.forget(key, fd);
        self.pending.retain(|told| !matches!(told, Completion::Readable(other) if *other == key));
        self.closes.push((key, fd));
    }

    fn refuse(&mut self, fd: Fd) {
        sys::close(fd);
    }

    fn peer(&self, fd: Fd) -> Option<SocketAddr> {
        sys::peer_addr(fd).ok()
    }

    fn submit(&mut self, completions: &mut Vec<Completion>) {
        self.collect(Some(Duration::ZERO), completions);
    }

    fn turn(&mut self, wait: Option<Duration>, completions: &mut Vec<Completion>) {
        self.collect(wait, completions);
    }

    fn now(&self) -> Now {
        sys::clocks()
    }

    fn name(&self) -> &'static str {
        "epoll"
    }

    fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }
}

impl Drop for Epoll {
    /// Closes everything the ring owns.
    fn drop(&mut self) {
        let connections = self.slots.iter().map(|slot| slot.fd);
        let listeners = self.listeners.iter().flatten().map(|listener| listener.fd);
        let all = connections.chain(listeners).chain([self.epoll]);
        all.filter(|&fd| fd != Slot::FREE).for_each(sys::close);
    }
}
