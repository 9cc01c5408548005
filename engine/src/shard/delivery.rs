//! From wire logs and outboxes to sockets.
//!
//! At most one send is in flight per socket. What is private to a client (its outbox) goes out before anything of its
//! group, and never inside a frame: a stream that leaves its group takes the rest of its unfinished frame along.

use std::collections::VecDeque;

use protocol::dialect::DialectId;
use protocol::message::{Kind, Notice, Refusal};
use protocol::sse;

use super::connection::{NEVER, Outbox, Stage};
use super::{Phase, Shard, Timer};
use crate::group::{Group, Standing, Step};
use crate::metrics::Counter;
use crate::ring::{Key, Ring};
use crate::wire_log::{LARGE_CHUNK, Slice};

/// Longest wait of a client for another address to connect to, ms: what a drain spreads reconnects over.
const RECONNECT_SPREAD: u64 = 3000;

/// A shard's groups, and which of them owe their members something.
#[derive(Default)]
pub struct Groups {
    places: Vec<(u32, Option<Place>)>,
    free: Vec<u32>,
    /// Groups to walk; those that hold alerts come first.
    urgent: VecDeque<u32>,
    dirty: VecDeque<u32>,
}

pub struct Place {
    pub group: Group,
    pub view: u32,
    pub dialect: DialectId,
    queued: Queue,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Queue {
    Not,
    Dirty,
    Urgent,
}

impl Groups {
    /// A new group that follows `offset`, and its generation.
    pub fn insert(&mut self, view: u32, dialect: DialectId, offset: u64) -> (u32, u32) {
        let place = Place { group: Group::new(offset), view, dialect, queued: Queue::Not };
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            (self.places.len() - 1) as u32
        });
        let (generation, slot) = &mut self.places[index as usize];
        *slot = Some(place);
        (index, *generation)
    }

    /// Ends a group that has no member.
    pub fn remove(&mut self, index: u32) {
        let (generation, place) = &mut self.places[index as usize];
        if place.take().is_some() {
            *generation = generation.wrapping_add(1);
            self.free.push(index);
        }
    }

    /// The group at this place.
    pub fn get(&mut self, index: u32) -> Option<&mut Place> {
        self.places.get_mut(index as usize)?.1.as_mut()
    }

    /// The group at this place, if it is still the one of this generation.
    pub fn of_generation(&mut self, index: u32, generation: u32) -> Option<&mut Place> {
        let (now, place) = self.places.get_mut(index as usize)?;
        if *now == generation { place.as_mut() } else { None }
    }

    /// Whether some group owes its members something.
    pub fn want_flush(&self) -> bool {
        !self.urgent.is_empty() || !self.dirty.is_empty()
    }

    /// Queues a group for a walk.
    pub fn queue(&mut self, index: u32, urgent: bool) {
        let Some(place) = self.places[index as usize].1.as_mut() else { return };
        if urgent && place.queued != Queue::Urgent {
            place.queued = Queue::Urgent;
            self.urgent.push_back(index);
        } else if place.queued == Queue::Not {
            place.queued = Queue::Dirty;
            self.dirty.push_back(index);
        }
    }

    /// The group to walk next. One that was queued twice, or has ended since, is passed over.
    fn next(&mut self) -> Option<u32> {
        loop {
            let (index, queue) = match self.urgent.pop_front() {
                Some(index) => (index, Queue::Urgent),
                None => (self.dirty.pop_front()?, Queue::Dirty),
            };
            let place = self.places[index as usize].1.as_mut();
            if let Some(place) = place.filter(|place| place.queued == queue) {
                place.queued = Queue::Not;
                return Some(index);
            }
        }
    }
}

impl<R: Ring> Shard<R> {
    /// Appends a frame to a group. `alert`: before the frames of other groups.
    pub(super) fn append(&mut self, group: u32, frame: &[u8], offset: u64, alert: bool) {
        let now = self.now.millis();
        let Some(place) = self.groups.get(group) else { return };
        place.group.append(&self.pool, frame, offset, now);
        if !place.group.is_empty() {
            self.metrics.count(Counter::Encoded);
            self.groups.queue(group, alert);
        }
    }

    /// Whether a kind of publication overtakes those of other topics.
    pub(super) fn is_urgent(kind: Kind) -> bool {
        kind == Kind::Alert
    }

    /// Sends one slice of what groups owe their members. Large groups take turns.
    pub(super) fn flush_groups(&mut self) {
        let mut budget = self.bounds.slice;
        while budget > 0 {
            let Some(index) = self.groups.next() else { return };
            self.walk(index, &mut budget);
            let Some(place) = self.groups.get(index) else { continue };
            if place.group.wants_walk() {
                self.groups.queue(index, false);
                if budget == self.bounds.slice {
                    return;
                }
            }
        }
    }

    fn walk(&mut self, index: u32, budget: &mut usize) {
        while *budget > 0 {
            let Some(place) = self.groups.get(index) else { return };
            match place.group.next_step(LARGE_CHUNK, self.bounds.pending_bytes) {
                None => return,
                Some(Step::Send { connection, slice, .. }) => {
                    *budget -= 1;
                    self.send(connection, slice);
                }
                Some(Step::Lagging { connection, .. }) => {
                    if let Some((key, _)) = self.connections.at(connection) {
                        self.metrics.count(Counter::Lagging);
                        self.leave_group(key, Stage::Behind { conflate: true });
                    }
                }
            }
        }
    }

    fn send(&mut self, index: u32, slice: Slice) {
        let Some((key, connection)) = self.connections.at(index) else { return };
        debug_assert!(connection.sending == 0 && connection.outbox.is_none());
        connection.sending = slice.len() as u32;
        self.metrics.count(Counter::Deliveries);
        self.ring.send(key, connection.fd, slice);
    }

    pub(super) fn sent(&mut self, key: Key, result: Result<usize, i32>) {
        let Some(connection) = self.connections.get(key) else { return };
        let wanted = std::mem::take(&mut connection.sending) as usize;
        if connection.closing {
            return;
        }
        let taken = match result {
            Ok(taken) => taken,
            Err(libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM) => 0,
            Err(_) => return self.close(key, true),
        };
        self.metrics.add(Counter::DeliveredBytes, taken as u64);
        let Some((group, member)) = connection.membership() else { return };
        let Some(place) = self.groups.get(group) else { return };
        if taken < wanted {
            self.metrics.count(Counter::ShortSends);
            place.group.sent(member, taken, Standing::Blocked);
            let since = place.group.log().unsent_since(place.group.member(member).cursor);
            let stalled = since.unwrap_or(self.now.millis());
            if let Some(last) = connection.last_frame.take() {
                self.await_room(key, stalled);
                return self.end_stream(key, &last);
            }
            return self.await_room(key, stalled);
        }
        let done = place.group.sent(member, taken, Standing::Ready);
        connection.stalled = 0;
        if let Some(last) = connection.last_frame.take() {
            return self.end_stream(key, &last);
        }
        // A walk that still comes by will join what has come since; without one the rest goes on now.
        if !done
            && !place.group.will_visit(member)
            && let Some(slice) = place.group.stand(member, Standing::Ready, LARGE_CHUNK)
        {
            self.send(key.index, slice);
        }
    }

    /// Waits until the socket has room, but not longer than its oldest byte may wait.
    fn await_room(&mut self, key: Key, stalled: u64) {
        let Some(connection) = self.connections.get(key) else { return };
        connection.stalled = stalled.max(1);
        if !connection.awaits_room {
            connection.awaits_room = true;
            self.ring.await_writable(key, connection.fd);
        }
        self.follow_stream(key);
    }

    pub(super) fn writable(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        connection.awaits_room = false;
        if connection.closing {
            return;
        }
        if connection.outbox.is_some() {
            self.flush_outbox(key);
        } else {
            self.outbox_empty(key);
        }
    }

    /// Sends bytes to one client alone: now as far as they go, the rest when there is room.
    pub(super) fn write(&mut self, key: Key, bytes: &[u8]) {
        let Some(connection) = self.connections.get(key) else { return };
        if bytes.is_empty() || connection.closing {
            return;
        }
        if let Some(outbox) = &mut connection.outbox {
            return outbox.bytes.extend_from_slice(bytes);
        }
        debug_assert_eq!(connection.sending, 0, "private bytes inside a frame");
        if connection.awaits_room {
            connection.outbox = Some(Box::new(Outbox { bytes: bytes.to_vec(), sent: 0 }));
            return;
        }
        match self.ring.send_now(connection.fd, bytes) {
            Ok(taken) if taken == bytes.len() => {}
            Ok(taken) => {
                connection.outbox = Some(Box::new(Outbox { bytes: bytes[taken..].to_vec(), sent: 0 }));
                self.await_room(key, self.now.millis());
            }
            Err(error) if is_transient(&error) => {
                connection.outbox = Some(Box::new(Outbox { bytes: bytes.to_vec(), sent: 0 }));
                self.await_room(key, self.now.millis());
            }
            Err(_) => self.close(key, true),
        }
    }

    /// Sends on what is in the outbox; once it is empty, goes on with what has waited for that.
    pub(super) fn flush_outbox(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        if connection.awaits_room || connection.closing || connection.sending > 0 {
            return;
        }
        let stalled = connection.stalled;
        if let Some(outbox) = connection.outbox.as_mut().filter(|outbox| !outbox.bytes.is_empty()) {
            match self.ring.send_now(connection.fd, &outbox.bytes[outbox.sent..]) {
                Ok(taken) => outbox.sent += taken,
                Err(error) if is_transient(&error) => return self.await_room(key, stalled),
                Err(_) => return self.close(key, true),
            }
            if outbox.sent < outbox.bytes.len() {
                return self.await_room(key, self.now.millis());
            }
        }
        self.outbox_empty(key);
    }

    fn outbox_empty(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        connection.outbox = None;
        connection.stalled = 0;
        if connection.closes_when_sent {
            return self.close(key, false);
        }
        let Some(stream) = &connection.stream else { return self.read_on(key) };
        match stream.stage {
            Stage::Live { group, member } => {
                let place = self.groups.get(group);
                let slice = place.and_then(|place| place.group.stand(member, Standing::Ready, LARGE_CHUNK));
                if let Some(slice) = slice {
                    self.send(key.index, slice);
                }
            }
            Stage::Behind { .. } => self.queue_replay(key),
            _ => {}
        }
        if connection_unread(&mut self.connections, key) {
            self.to_read.push(key);
        }
        self.follow_stream(key);
    }

    /// Sets the deadline of a stream, or of a connection whose socket is full: the end of its token, or of patience.
    pub(super) fn follow_stream(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        let expires = connection.stream.as_ref().map_or(NEVER, |stream| stream.expires);
        let patience = match connection.stalled {
            0 => NEVER,
            since => since + self.bounds.pending_age,
        };
        if connection.stream.is_some() || connection.stalled > 0 {
            self.set_deadline(key, expires.min(patience));
        }
    }

    pub(super) fn stream_deadline_over(&mut self, key: Key) {
        let now = self.now.millis();
        let Some(connection) = self.connections.get(key) else { return };
        if connection.stalled > 0 && connection.stalled + self.bounds.pending_age <= now {
            self.metrics.count(Counter::SlowClosed);
            return self.close(key, true);
        }
        if connection.stream.as_ref().is_some_and(|stream| stream.expires <= now) {
            self.metrics.count(Counter::Unauthenticated);
            return self.fail_stream(key, &Refusal::Unauthenticated);
        }
        self.follow_stream(key);
    }

    /// Ends a stream with an event that says why.
    pub(super) fn fail_stream(&mut self, key: Key, refusal: &Refusal) {
        let Some(connection) = self.connections.get(key) else { return };
        let Some(dialect) = connection.stream.as_ref().map(|stream| stream.dialect) else { return };
        let (mut data, mut frame) = (Vec::new(), Vec::new());
        let name = dialect.notice(&Notice::Error(refusal), &mut data);
        sse::event(&mut frame, None, name, &data);
        self.end_stream(key, &frame);
    }

    /// Ends a stream with a last frame.
    pub(super) fn end_stream(&mut self, key: Key, last: &[u8]) {
        let Some(connection) = self.connections.get(key) else { return };
        if connection.sending > 0 {
            // How much of the log it has been sent is not known yet.
            connection.last_frame = Some(Box::new(last.to_vec()));
            return;
        }
        self.leave_group(key, Stage::Snapshot);
        self.write(key, last);
        self.close_when_sent(key);
    }

    /// Takes a stream out of its group: the rest of its unfinished frame goes into its outbox.
    pub(super) fn leave_group(&mut self, key: Key, stage: Stage) {
        let Some(connection) = self.connections.get(key) else { return };
        let Some((group, member)) = connection.membership() else { return };
        let Some(place) = self.groups.get(group) else { return };
        let cursor = place.group.member(member).cursor;
        let rest = place.group.log().rest_of_frame(cursor);
        let after = place.group.log().offset_at(cursor);
        if let Some(stream) = &mut connection.stream {
            (stream.stage, stream.after) = (stage, after);
        }
        self.leave_place(group, member);
        let Some(connection) = self.connections.get(key) else { return };
        debug_assert_eq!(connection.sending, 0);
        if !rest.is_empty() {
            connection.outbox = Some(Box::new(Outbox { bytes: rest, sent: 0 }));
        }
    }

    /// Frees a member's place in its group; the member that moves there is told.
    pub(super) fn leave_place(&mut self, group: u32, member: u32) {
        let Some(place) = self.groups.get(group) else { return };
        let moved = place.group.leave(member);
        if let Some((_, connection)) = moved.and_then(|moved| self.connections.at(moved))
            && let Some(stream) = &mut connection.stream
        {
            stream.stage = Stage::Live { group, member };
        }
        self.end_group_if_empty(group);
    }

    pub(super) fn heartbeat(&mut self, group: u32, generation: u32) {
        let Some(place) = self.groups.of_generation(group, generation) else { return };
        let dialect = place.dialect;
        let mut data = Vec::new();
        let name = dialect.notice(&Notice::Heartbeat { time: self.now.wall }, &mut data);
        let offset = place.group.log().newest_offset();
        let mut frame = Vec::new();
        sse::event(&mut frame, Some(offset), name, &data);
        self.append(group, &frame, offset, false);
        let next = self.now.millis() + self.site.manners(dialect).heartbeat;
        self.wheel.set(next, Timer::Heartbeat(group, generation));
    }

    /// Says goodbye, as the server ends.
    pub(super) fn drain(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        if connection.closing {
            return;
        }
        if self.phase == Phase::Ending {
            return self.close(key, false);
        }
        if connection.stream.is_some() {
            let mut frame = Vec::new();
            // Spread by place: neighbours in the table come back at different times.
            sse::retry(&mut frame, 500 + u64::from(key.index).wrapping_mul(0x9E37_79B9) % RECONNECT_SPREAD);
            self.end_stream(key, &frame);
        } else if connection.session.activity() == crate::session::Activity::Idle {
            self.close_when_sent(key);
        }
    }

    /// Closes once everything written has been sent.
    pub(super) fn close_when_sent(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        if connection.outbox.is_none() {
            return self.close(key, false);
        }
        connection.closes_when_sent = true;
        if connection.stalled == 0 {
            connection.stalled = self.now.millis().max(1);
        }
        self.flush_outbox(key);
        self.follow_stream(key);
    }

    /// Closes now. `reset`: what is unsent is dropped.
    pub(super) fn close(&mut self, key: Key, reset: bool) {
        let Some(connection) = self.connections.get(key) else { return };
        if std::mem::replace(&mut connection.closing, true) {
            return;
        }
        connection.outbox = None;
        connection.pending = None;
        self.ring.close(key, connection.fd, reset);
        self.leave_stream(key);
    }

    pub(super) fn closed(&mut self, key: Key) {
        if self.connections.remove(key).is_some() {
            self.metrics.subtract(Counter::Connections, 1);
            self.state.connections.fetch_sub(1, std::sync::atomic::Ordering::AcqRel);
        }
    }
}

fn is_transient(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM))
}

fn connection_unread(connections: &mut super::connection::Connections, key: Key) -> bool {
    connections.get(key).is_some_and(|connection| connection.unread)
}
