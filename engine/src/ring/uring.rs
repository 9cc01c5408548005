//! The ring on io_uring.
//!
//! Accepting is one multishot accept per listener, reading one multishot poll per connection followed by the
//! shard's own `recv`, sending one SEND per slice. Completions come only from io_uring_enter(2) with
//! GETEVENTS (DEFER_TASKRUN), so every turn enters, and between turns nothing happens behind the shard's
//! back.
//!
//! A connection closes in steps, because the kernel holds the socket while a poll is armed on it: shutdown,
//! cancel, the final completion of everything in flight, close, `Closed`.
//!
//! Unsafe, and why: the kernel reads submission entries and the bytes they point to. Entries are copied into
//! the queue; the bytes are slices that this ring holds until the send's completion.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{self, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode};
use libc::c_long;

use self::table::Table;
use super::refusal::SetupError;
use super::socket::{Backlog, Hangups, accept_queued, listener_key, tag, untag};
use super::{Completion, Counts, Fd, Key, Now, Ring};
use crate::sys;
use crate::wire_log::Slice;

mod table;

/// Completion queue entries if nothing else is said. A queue that overflows ends the multishot operations, so
/// it is made large: one entry is 16 bytes.
pub const COMPLETIONS: u32 = 16 << 10;

/// A longer wait is cut to this: the kernel takes seconds as a signed number.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

const ACCEPT: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 3;
const SEND: u8 = 4;
const DOORBELL: u8 = 5;
const CANCEL: u8 = 6;

/// The io_uring ring of one shard. It belongs to the thread that made it.
pub struct Uring {
    ring: IoUring,
    /// The ring's place in the thread's table of registered rings, which saves a descriptor lookup per enter.
    registered: Option<u32>,
    doorbell: Fd,
    table: Table,
    /// By number.
    listeners: Vec<Option<Listener>>,
    hangups: Hangups,
    /// Told with the next collection.
    pending: Vec<Completion>,
    /// Taken off the completion queue, not looked at yet.
    reaped: Vec<cqueue::Entry>,
    /// Entries that found the submission queue full, oldest first.
    waiting: VecDeque<Entry>,
    counts: Counts,
}

#[derive(Clone, Copy, Debug)]
struct Listener {
    fd: Fd,
    /// A multishot accept is armed.
    armed: bool,
    /// To be closed once its queue is empty.
    stopping: bool,
}

impl Uring {
    /// A ring with room for `entries` operations between two submissions (256 to 4096 are sensible), to be
    /// used by the calling thread only. Writes to `doorbell`, an eventfd that stays the caller's, end a wait.
    pub fn new(entries: u32, doorbell: Fd) -> Result<Self, SetupError> {
        Self::with_queues(entries, COMPLETIONS, doorbell)
    }

    /// Like [`new`](Self::new), with room for `completions` between two turns. The kernel rounds both up to
    /// powers of two and has maxima of its own (32,768 and 65,536).
    pub fn with_queues(entries: u32, completions: u32, doorbell: Fd) -> Result<Self, SetupError> {
        let ring = build(entries, completions)
            .map_err(|error| SetupError::here(error.raw_os_error().unwrap_or(libc::EIO)))?;
        let registered = register_ring(ring.as_raw_fd());
        let mut uring = Self {
            ring,
            registered,
            doorbell,
            table: Table::default(),
            listeners: Vec::new(),
            hangups: Hangups::default(),
            pending: Vec::new(),
            reaped: Vec::new(),
            waiting: VecDeque::new(),
            counts: Counts::default(),
        };
        uring.arm_doorbell();
        Ok(uring)
    }

    fn collect(&mut self, wait: Option<Duration>, out: &mut Vec<Completion>) {
        let told = out.len();
        out.append(&mut self.pending);
        self.hangups.tell(out);
        let wait = if out.len() > told { Some(Duration::ZERO) } else { wait };
        self.enter(wait);
        self.run_reaped(out);
        // The kernel keeps what found no room, and moves it over when it is entered again. Nothing is
        // submitted here: a poll armed again finds input that the shard couldn't read yet, and would overflow
        // for ever.
        while self.ring.submission().cq_overflow() {
            self.enter_once(0, Some(Duration::ZERO));
            self.run_reaped(out);
        }
    }

    fn run_reaped(&mut self, out: &mut Vec<Completion>) {
        while !self.reaped.is_empty() {
            let mut batch = std::mem::take(&mut self.reaped);
            for entry in batch.drain(..) {
                self.run(&entry, out);
            }
            if self.reaped.is_empty() {
                self.reaped = batch;
            }
        }
    }

    fn run(&mut self, entry: &cqueue::Entry, out: &mut Vec<Completion>) {
        let (op, key) = untag(entry.user_data());
        let (result, more) = (entry.result(), cqueue::more(entry.flags()));
        match op {
            READ | WRITE | SEND => self.run_connection(op, key, result, more, out),
            ACCEPT => self.run_accept(key, result, more, out),
            DOORBELL => {
                if sys::hush_bell(self.doorbell) {
                    out.push(Completion::Doorbell);
                }
                if !more {
                    self.counts.rearms += 1;
                    self.arm_doorbell();
                }
            }
            // A cancellation that came too late, or found nothing: what it was for completes by itself.
            _ => {}
        }
    }

    fn run_connection(&mut self, op: u8, key: Key, result: i32, more: bool, out: &mut Vec<Completion>) {
        let Some(slot) = self.table.find(key) else {
            return;
        };
        match op {
            READ => {
                slot.reading = more;
                if !slot.closing {
                    // A poll that failed is a matter for `recv` to tell.
                    let events = u32::try_from(result).unwrap_or(libc::POLLERR as u32);
                    self.hangups.note(key, slot.fd, events);
                    out.push(Completion::Readable(key));
                    if !more {
                        self.counts.rearms += 1;
                        self.arm_read(key);
                    }
                }
            }
            WRITE => {
                slot.writing = false;
                if !slot.closing {
                    out.push(Completion::Writable(key));
                }
            }
            _ => {
                self.table.let_go(key);
                let result = usize::try_from(result).map_err(|_| -result);
                out.push(Completion::Sent { key, result });
            }
        }
        self.finish_close(key, out);
    }

    fn run_accept(&mut self, key: Key, result: i32, more: bool, out: &mut Vec<Completion>) {
        let number = key.index as u16;
        let Some(Some(listener)) = self.listeners.get_mut(usize::from(number)) else {
            if result >= 0 {
                sys::close(result);
            }
            return;
        };
        // The completion that ends a multishot accept may still carry a client.
        if result >= 0 {
            out.push(Completion::Accepted { listener: number, fd: result });
        }
        if more {
            return;
        }
        listener.armed = false;
        if listener.stopping {
            self.drain(number, out);
        } else if result >= 0 || sys::concerns_one_client(-result) {
            self.counts.rearms += 1;
            self.arm_accept(number);
        } else {
            out.push(Completion::AcceptFailed { listener: number, errno: -result });
        }
    }

    /// Closes a connection that is to be closed and has nothing in flight any more.
    fn finish_close(&mut self, key: Key, out: &mut Vec<Completion>) {
        if let Some(slot) = self.table.find(key)
            && slot.closing
            && !slot.in_flight()
        {
            sys::close(slot.fd);
            self.table.move_out(key);
            out.push(Completion::Closed(key));
        }
    }

    /// Accepts what still waits on a listener that is stopping, and closes it.
    fn drain(&mut self, number: u16, out: &mut Vec<Completion>) {
        let entry = &mut self.listeners[usize::from(number)];
        let Some(listener) = *entry else { return };
        if accept_queued(number, listener.fd, usize::MAX, out) == Backlog::Empty {
            sys::close(listener.fd);
            *entry = None;
        }
    }

    fn arm_doorbell(&mut self) {
        let poll = opcode::PollAdd::new(types::Fd(self.doorbell), libc::POLLIN as u32).multi(true);
        self.push(poll.build().user_data(tag(DOORBELL, listener_key(0))));
    }

    fn arm_accept(&mut self, number: u16) {
        let Some(Some(listener)) = self.listeners.get_mut(usize::from(number)) else {
            return;
        };
        listener.armed = true;
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let accept = opcode::AcceptMulti::new(types::Fd(listener.fd)).flags(flags).build();
        self.push(accept.user_data(tag(ACCEPT, listener_key(number))));
    }

    fn arm_read(&mut self, key: Key) {
        const INPUT: u32 = (libc::POLLIN | libc::POLLRDHUP) as u32;
        if let Some(slot) = self.table.find(key) {
            slot.reading = true;
            let poll = opcode::PollAdd::new(types::Fd(slot.fd), INPUT).multi(true).build();
            self.push(poll.user_data(tag(READ, key)));
        }
    }

    /// Asks for the end of an armed operation. Only a failure is told, and then ignored.
    fn cancel(&mut self, op: u8, key: Key) {
        let cancel = opcode::AsyncCancel::new(tag(op, key)).build();
        self.push(cancel.flags(Flags::SKIP_SUCCESS).user_data(tag(CANCEL, key)));
    }

    /// Queues an operation. Beyond the queue's size they wait for the next [`enter`](Self::enter), which
    /// submits in as many steps as it takes.
    fn push(&mut self, entry: Entry) {
        self.waiting.push_back(entry);
        self.fill_queue();
    }

    /// Moves waiting entries into the submission queue, as far as there is room.
    fn fill_queue(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.waiting.front() {
            // SAFETY: the descriptors are this shard's own. The only entry with a pointer is that of a send,
            // and `table` holds its slice until the completion.
            if unsafe { queue.push(entry) }.is_err() {
                return;
            }
            self.waiting.pop_front();
        }
    }

    /// Submits everything, and waits for a completion or until `wait` is over. What the kernel doesn't take
    /// for want of memory stays queued.
    fn enter(&mut self, wait: Option<Duration>) {
        let (mut wait, mut left) = (wait, usize::MAX);
        loop {
            self.fill_queue();
            let queued = self.ring.submission().len();
            let last = self.waiting.is_empty();
            self.enter_once(queued as u32, if last { wait } else { Some(Duration::ZERO) });
            let still = self.ring.submission().len() + self.waiting.len();
            if still == 0 || still >= left {
                return;
            }
            left = still;
            if last {
                wait = Some(Duration::ZERO);
            }
        }
    }

    /// One io_uring_enter(2), and all completions off the queue.
    ///
    /// # Panics
    /// On an error that means the ring itself is broken: nothing this shard serves would ever move again.
    fn enter_once(&mut self, submit: u32, wait: Option<Duration>) {
        self.counts.enters += 1;
        let flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        let (fd, flags) = match self.registered {
            Some(place) => (place as i32, flags | EnterFlags::REGISTERED_RING),
            None => (self.ring.as_raw_fd(), flags),
        };
        let at_least = u32::from(wait != Some(Duration::ZERO));
        let time = wait.map(|wait| Timespec::from(wait.min(LONGEST_WAIT)));
        let args = match &time {
            Some(time) => SubmitArgs::new().timespec(time),
            None => SubmitArgs::new(),
        };
        // SAFETY: the entries are valid (see `fill_queue`); the kernel reads the arguments during the call
        // only.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                fd as c_long,
                submit as c_long,
                at_least as c_long,
                flags.bits() as c_long,
                &raw const args,
                size_of_val(&args),
            )
        };
        match io::Error::last_os_error().raw_os_error() {
            _ if result >= 0 => {}
            // A signal, the end of the wait; no room for completions or no memory for operations, to be tried
            // again.
            Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN | libc::ENOMEM) => {}
            // The kernel has dropped completions for want of memory.
            Some(libc::EBADR) => self.counts.overflows += 1,
            error => panic!("io_uring_enter: {error:?}"),
        }
        self.counts.overflows += u64::from(self.ring.submission().cq_overflow());
        self.reaped.extend(self.ring.completion());
    }
}

impl Ring for Uring {
    fn listen(&mut self, listener: u16, fd: Fd) {
        let index = usize::from(listener);
        if index >= self.listeners.len() {
            self.listeners.resize(index + 1, None);
        }
        debug_assert!(self.listeners[index].is_none(), "listener {listener} is in use");
        self.listeners[index] = Some(Listener { fd, armed: false, stopping: false });
        self.arm_accept(listener);
    }

    fn accept(&mut self, listener: u16) {
        match self.listeners.get(usize::from(listener)) {
            Some(Some(Listener { armed: false, stopping: false, .. })) => self.arm_accept(listener),
            Some(Some(Listener { armed: false, stopping: true, .. })) => {
                let mut pending = std::mem::take(&mut self.pending);
                self.drain(listener, &mut pending);
                self.pending = pending;
            }
            _ => {}
        }
    }

    fn stop_accepting(&mut self, listener: u16) {
        let Some(Some(entry)) = self.listeners.get_mut(usize::from(listener)) else {
            return;
        };
        entry.stopping = true;
        if entry.armed {
            self.cancel(ACCEPT, listener_key(listener));
        } else {
            self.accept(listener);
        }
    }

    fn register(&mut self, key: Key, fd: Fd) {
        self.table.tenant(key, fd);
        self.arm_read(key);
    }

    fn recv(&mut self, fd: Fd, into: &mut [u8]) -> io::Result<usize> {
        self.hangups.recv(fd, into)
    }

    fn send_now(&mut self, fd: Fd, bytes: &[u8]) -> io::Result<usize> {
        sys::send(fd, bytes)
    }

    fn send(&mut self, key: Key, fd: Fd, slice: Slice) {
        let (bytes, len) = (slice.bytes().as_ptr(), slice.len() as u32);
        self.table.hold(key, fd, slice);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let send = opcode::Send::new(types::Fd(fd), bytes, len).flags(flags).build();
        self.push(send.user_data(tag(SEND, key)));
    }

    fn await_writable(&mut self, key: Key, fd: Fd) {
        let slot = self.table.tenant(key, fd);
        if slot.writing {
            return;
        }
        slot.writing = true;
        let poll = opcode::PollAdd::new(types::Fd(fd), libc::POLLOUT as u32).build();
        self.push(poll.user_data(tag(WRITE, key)));
    }

    fn close(&mut self, key: Key, fd: Fd, reset: bool) {
        let slot = self.table.tenant(key, fd);
        slot.closing = true;
        let slot = *slot;
        if reset {
            sys::reset_on_close(fd);
        } else if !slot.is_sending() {
            // A send not yet submitted still goes out; there the FIN comes with close(2).
            sys::shutdown(fd);
        }
        self.hangups.forget(key, fd);
        if slot.reading {
            self.cancel(READ, key);
        }
        if slot.writing {
            self.cancel(WRITE, key);
        }
        let mut pending = std::mem::take(&mut self.pending);
        self.finish_close(key, &mut pending);
        self.pending = pending;
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
        "io_uring"
    }

    fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }
}

impl Drop for Uring {
    /// Closes everything the ring owns. Slices may go with it: a send never waits (MSG_DONTWAIT), so the
    /// kernel has read its bytes by the time the entry is submitted, and what was not submitted it never
    /// reads.
    fn drop(&mut self) {
        if let Some(place) = self.registered {
            unregister_ring(self.ring.as_raw_fd(), place);
        }
        let listeners = self.listeners.iter().flatten().map(|listener| listener.fd);
        self.table.fds().chain(listeners).for_each(sys::close);
    }
}

/// Sets the queues up, with everything this kernel knows that helps: NO_SQARRAY came with 6.6, the rest by
/// 6.1.
fn build(entries: u32, completions: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_submit_all()
        .setup_clamp()
        .setup_cqsize(completions.max(entries));
    let older = builder.clone();
    match builder.setup_no_sqarray().build(entries) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => older.build(entries),
        built => built,
    }
}

/// `struct io_uring_rsrc_update` of linux/io_uring.h.
#[repr(C)]
struct RingUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// Enters the ring in the thread's table of registered rings; `None` if it doesn't get in.
fn register_ring(fd: Fd) -> Option<u32> {
    const REGISTER_RING_FDS: c_long = 20;
    let mut update = RingUpdate { offset: u32::MAX, reserved: 0, data: fd as u64 };
    (change_rings(fd, REGISTER_RING_FDS, &mut update) == 1).then_some(update.offset)
}

/// Takes the ring out of the thread's table, which would keep it open until the thread ends.
fn unregister_ring(fd: Fd, place: u32) {
    const UNREGISTER_RING_FDS: c_long = 21;
    let mut update = RingUpdate { offset: place, reserved: 0, data: 0 };
    change_rings(fd, UNREGISTER_RING_FDS, &mut update);
}

fn change_rings(fd: Fd, change: c_long, update: &mut RingUpdate) -> c_long {
    let update: *mut RingUpdate = update;
    let one: c_long = 1;
    // SAFETY: both changes read one update; registering writes the place it chose into it.
    unsafe { libc::syscall(libc::SYS_io_uring_register, fd as c_long, change, update, one) }
}
