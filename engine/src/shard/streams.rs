//! From a request for a stream to a member of a group.
//!
//! A shard has one view of each topic its streams want: the owner sends the topic's publications to the view, once, in
//! order. A stream that starts now joins its group at the head. One that resumes is replayed to from the topic log until
//! the owner says that the live tail follows on the same lane; nothing can stand between, so nothing is lost or
//! repeated at the seam.

use std::collections::HashMap;
use std::rc::Rc;

use protocol::dialect::DialectId;
use protocol::message::{GapReason, Notice, Refusal};
use protocol::sse;

use super::connection::{Outbox, Stage, Stream, key_of, tag_of};
use super::input::publication_of;
use super::{Shard, Timer};
use crate::group::Standing;
use crate::mail::{Gap, Item, Mail};
use crate::metrics::Counter;
use crate::ring::{Key, Ring};
use crate::session::StreamRequest;

/// The topics this shard's streams want.
pub struct Views {
    pub(super) views: Vec<(u32, Option<View>)>,
    pub(super) by_name: HashMap<Rc<str>, u32>,
    pub(super) free: Vec<u32>,
}

/// One topic.
pub struct View {
    pub name: Rc<str>,
    /// Offset up to which publications have been appended to the groups; `None` until the owner has said where the
    /// topic is.
    head: Option<u64>,
    /// Its groups.
    groups: Vec<(DialectId, u32)>,
    /// Streams that wait for the owner.
    waiting: Vec<Key>,
    /// Streams of any stage.
    streams: usize,
}

impl Views {
    fn get(&mut self, index: u32) -> Option<&mut View> {
        self.views.get_mut(index as usize)?.1.as_mut()
    }

    /// The view of this name on lanes, unless it has ended.
    fn of_tag(&mut self, tag: u64) -> Option<(u32, &mut View)> {
        let (generation, view) = self.views.get_mut(tag as u32 as usize)?;
        if u64::from(*generation) == tag >> 32 { Some((tag as u32, view.as_mut()?)) } else { None }
    }

    /// The view's name on lanes.
    fn tag(&self, index: u32) -> u64 {
        u64::from(self.views[index as usize].0) << 32 | u64::from(index)
    }

    fn insert(&mut self, name: &str) -> u32 {
        let name: Rc<str> = name.into();
        let view =
            View { name: Rc::clone(&name), head: None, groups: Vec::new(), waiting: Vec::new(), streams: 0 };
        let index = self.free.pop().unwrap_or_else(|| {
            self.views.push((0, None));
            (self.views.len() - 1) as u32
        });
        self.views[index as usize].1 = Some(view);
        self.by_name.insert(name, index);
        index
    }

    fn remove(&mut self, index: u32) {
        let (generation, view) = &mut self.views[index as usize];
        if let Some(view) = view.take() {
            *generation = generation.wrapping_add(1);
            self.by_name.remove(&view.name);
            self.free.push(index);
        }
    }
}

impl<R: Ring> Shard<R> {
    pub(super) fn open_stream(&mut self, key: Key, request: StreamRequest) {
        let StreamRequest { dialect, topic, snapshot, after, expires } = request;
        let view = match self.views.by_name.get(&*topic) {
            Some(&view) => view,
            None if self.views.by_name.len() >= self.bounds.views => return self.refuse_stream(key),
            None => {
                let view = self.views.insert(&topic);
                let mail = Mail::Watch { view: self.views.tag(view), topic: &topic };
                self.post(self.owner_of(&topic), mail);
                view
            }
        };
        let (Some(connection), Some(found)) = (self.connections.get(key), self.views.get(view)) else {
            return;
        };
        found.streams += 1;
        let left = expires.saturating_mul(1000).saturating_sub(self.now.wall);
        connection.stream = Some(Stream {
            view,
            dialect,
            stage: Stage::Opening { after, snapshot },
            after: 0,
            expires: self.now.millis().saturating_add(left),
        });
        match found.head {
            Some(_) => self.start_stream(key),
            None => found.waiting.push(key),
        }
        self.metrics.set(Counter::Views, self.views.by_name.len() as u64);
    }

    fn refuse_stream(&mut self, key: Key) {
        self.answer(key, Err(&Refusal::TooLarge("too many topics are watched; the limit is limits.topics")));
    }

    pub(super) fn watching(&mut self, tag: u64, head: u64) {
        let Some((_, view)) = self.views.of_tag(tag) else { return };
        view.head = Some(head);
        for key in std::mem::take(&mut view.waiting) {
            self.start_stream(key);
        }
    }

    pub(super) fn unwatchable(&mut self, tag: u64) {
        let Some((_, view)) = self.views.of_tag(tag) else { return };
        for key in std::mem::take(&mut view.waiting) {
            self.forget_stream(key);
            self.refuse_stream(key);
        }
    }

    /// Writes the head of the response and the first event, and goes on to where the client wants to start.
    fn start_stream(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        let Some(Stream { view, dialect, stage: Stage::Opening { after, snapshot }, .. }) = connection.stream
        else {
            return;
        };
        let Some(found) = self.views.get(view) else { return };
        let head = found.head.unwrap_or(0);
        let start = after.unwrap_or(head);
        let mut out = Vec::new();
        let cx = Self::context(&self.site, &self.metrics, self.now, self.phase);
        connection.session.begin_stream(&cx, &mut out);
        let mut data = Vec::new();
        let (platform, time) = (&*self.site.manners(dialect).platform, self.now.wall);
        let name = dialect.notice(&Notice::Connected { platform, topic: &found.name, time }, &mut data);
        // A position that is not from here must not become the client's own.
        sse::event(&mut out, Some(start.min(head)), name, &data);
        let topic = Rc::clone(&found.name);
        self.metrics.add(Counter::SseConnections, 1);
        if let Some(stream) = &mut connection.stream {
            stream.after = start;
            stream.stage = match (after, snapshot) {
                (None, true) => Stage::Snapshot,
                _ => Stage::Behind { conflate: false },
            };
        }
        self.write(key, &out);
        if after.is_none() && snapshot {
            self.post(self.owner_of(&topic), Mail::Latest { tag: tag_of(key), topic: &topic });
            return self.follow_stream(key);
        }
        self.catch_up(key);
    }

    /// Goes on with a stream that may be behind: joins its group if it is not, asks for a replay if it is.
    fn catch_up(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        let Some(stream) = &connection.stream else { return };
        let (view, after) = (stream.view, stream.after);
        if self.views.get(view).and_then(|view| view.head) == Some(after) {
            self.join_group(key);
        } else if connection.outbox.is_none() {
            self.queue_replay(key);
        }
        self.follow_stream(key);
    }

    pub(super) fn queue_replay(&mut self, key: Key) {
        self.replay_queue.push_back(key);
        self.ask_for_replays();
    }

    /// Asks for the next parts, as many at once as the bounds allow.
    fn ask_for_replays(&mut self) {
        while self.replays < self.bounds.replays {
            let Some(key) = self.replay_queue.pop_front() else { return };
            let Some(connection) = self.connections.get(key) else { continue };
            let Some(stream) = &mut connection.stream else { continue };
            let Stage::Behind { conflate } = stream.stage else { continue };
            let (view, after) = (stream.view, stream.after);
            let Some(found) = self.views.get(view) else { continue };
            let topic = Rc::clone(&found.name);
            if found.head == Some(after) {
                self.join_group(key);
                continue;
            }
            stream.stage = Stage::Replaying { conflate, rows: 0 };
            connection.outbox = Some(Box::new(Outbox::default()));
            self.replays += 1;
            let mail = Mail::Replay { tag: tag_of(key), topic: &topic, after, conflate };
            self.post(self.owner_of(&topic), mail);
        }
    }

    pub(super) fn replayed(&mut self, tag: u64, item: Item<'_>) {
        let key = key_of(tag);
        if self.collect(key, item) {
            return;
        }
        let Some(connection) = self.connections.get(key) else { return };
        let Some(stream) = &mut connection.stream else { return };
        let (dialect, after) = (stream.dialect, stream.after);
        let Some(view) = self.views.get(stream.view) else { return };
        let mut data = Vec::new();
        let name = dialect.event(&publication_of(&view.name, item), &mut data);
        match &mut stream.stage {
            Stage::Replaying { rows, .. } => {
                *rows += 1;
                if let Some(outbox) = &mut connection.outbox {
                    sse::event(&mut outbox.bytes, Some(item.offset), name, &data);
                }
            }
            Stage::Snapshot => {
                // What was published since the stream's start comes with its offset anyway.
                if item.offset <= after {
                    let mut frame = Vec::new();
                    sse::event(&mut frame, None, name, &data);
                    self.write(key, &frame);
                }
                self.snapshot_sent(key);
            }
            _ => {}
        }
    }

    pub(super) fn no_latest(&mut self, tag: u64) {
        let key = key_of(tag);
        let Some(connection) = self.connections.get(key) else { return };
        if connection.stream.is_some() {
            self.snapshot_sent(key);
        } else {
            self.nothing_latest(key);
        }
    }

    fn snapshot_sent(&mut self, key: Key) {
        if let Some(connection) = self.connections.get(key)
            && let Some(stream) = &mut connection.stream
            && stream.stage == Stage::Snapshot
        {
            stream.stage = Stage::Behind { conflate: false };
            self.catch_up(key);
        }
    }

    pub(super) fn replay_end(&mut self, tag: u64, upto: u64, live: bool, gap: Option<Gap>) {
        self.replays -= 1;
        let key = key_of(tag);
        self.replay_part(key, upto, live, gap);
        self.ask_for_replays();
    }

    fn replay_part(&mut self, key: Key, upto: u64, live: bool, gap: Option<Gap>) {
        let Some(connection) = self.connections.get(key) else { return };
        let Some(stream) = &mut connection.stream else { return };
        let Stage::Replaying { conflate, rows } = stream.stage else { return };
        let Some(view) = self.views.get(stream.view) else { return };
        if !live && gap.is_none() && upto <= stream.after {
            // The store can't be read. Asking again would be asking for ever.
            return self.fail_stream(key, &Refusal::StoreFailed);
        }
        let skipped = conflate && u64::from(rows) < upto.saturating_sub(stream.after);
        let slow = skipped.then(|| Gap { from: stream.after + 1, to: upto, reason: GapReason::SlowConsumer });
        if let (Some(gap), Some(outbox)) = (gap.or(slow), &mut connection.outbox) {
            let id = match gap.reason {
                GapReason::UnknownPosition => upto,
                GapReason::SlowConsumer => stream.after,
                GapReason::Retention | GapReason::Crash => gap.to,
            };
            let mut frame = Vec::new();
            write_gap(stream.dialect, &view.name, gap, self.now.wall, id, &mut frame);
            // It stands before what follows it.
            outbox.bytes.splice(0..0, frame);
            self.metrics.count(Counter::Gaps);
        }
        stream.after = upto;
        stream.stage = Stage::Behind { conflate };
        if live {
            debug_assert!(view.head == Some(upto), "the seam: {:?} is not {upto}", view.head);
            self.join_group(key);
        }
        self.flush_outbox(key);
        self.follow_stream(key);
    }

    /// The stream has everything its group has been given: from here on it is a cursor.
    fn join_group(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        let Some(stream) = &mut connection.stream else { return };
        let (dialect, index) = (stream.dialect, stream.view);
        let Some(view) = self.views.get(index) else { return };
        let group = match view.groups.iter().find(|(of, _)| *of == dialect) {
            Some(&(_, group)) => group,
            None => {
                let (group, generation) = self.groups.insert(index, dialect, view.head.unwrap_or(0));
                view.groups.push((dialect, group));
                let first = self.now.millis() + self.site.manners(dialect).heartbeat;
                self.wheel.set(first, Timer::Heartbeat(group, generation));
                group
            }
        };
        let free = connection.outbox.is_none() && !connection.awaits_room;
        let standing = if free { Standing::Ready } else { Standing::Blocked };
        if let Some(place) = self.groups.get(group) {
            stream.stage = Stage::Live { group, member: place.group.join(key.index, standing) };
        }
    }

    /// The topic's next publication: encoded once for each group.
    pub(super) fn live(&mut self, tag: u64, item: Item<'_>) {
        let Some((index, view)) = self.views.of_tag(tag) else { return };
        debug_assert!(view.head.is_some_and(|head| head < item.offset));
        view.head = Some(item.offset);
        for at in 0..view.groups.len() {
            let Some(view) = self.views.get(index) else { return };
            let (dialect, group) = view.groups[at];
            let mut data = std::mem::take(&mut self.scratch);
            let mut frame = std::mem::take(&mut self.frame);
            data.clear();
            frame.clear();
            let name = dialect.event(&publication_of(&view.name, item), &mut data);
            sse::event(&mut frame, Some(item.offset), name, &data);
            self.append(group, &frame, item.offset, Self::is_urgent(item.kind));
            (self.scratch, self.frame) = (data, frame);
        }
    }

    /// This shard was so slow that the topic log has moved on: every member is told.
    pub(super) fn missed(&mut self, tag: u64, gap: Gap) {
        let Some((_, view)) = self.views.of_tag(tag) else { return };
        view.head = Some(gap.to);
        let (name, groups) = (Rc::clone(&view.name), view.groups.clone());
        for (dialect, group) in groups {
            let mut frame = Vec::new();
            write_gap(dialect, &name, gap, self.now.wall, gap.to, &mut frame);
            self.metrics.count(Counter::Gaps);
            self.append(group, &frame, gap.to, false);
        }
    }

    /// A connection that carries a stream, or was about to, has ended.
    pub(super) fn leave_stream(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        if let Some((group, member)) = connection.membership() {
            self.leave_place(group, member);
        }
        self.forget_stream(key);
    }

    /// Takes a stream off its view, and ends the view with its last stream.
    fn forget_stream(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        let Some(stream) = connection.stream.take() else { return };
        if !matches!(stream.stage, Stage::Opening { .. }) {
            self.metrics.subtract(Counter::SseConnections, 1);
        }
        let Some(view) = self.views.get(stream.view) else { return };
        view.streams -= 1;
        if view.streams > 0 {
            return;
        }
        let (name, tag) = (Rc::clone(&view.name), self.views.tag(stream.view));
        self.views.remove(stream.view);
        self.post(self.owner_of(&name), Mail::Unwatch { view: tag, topic: &name });
        self.metrics.set(Counter::Views, self.views.by_name.len() as u64);
    }

    pub(super) fn end_group_if_empty(&mut self, group: u32) {
        let Some(place) = self.groups.get(group) else { return };
        if !place.group.is_empty() {
            return;
        }
        let view = place.view;
        self.groups.remove(group);
        if let Some(view) = self.views.get(view) {
            view.groups.retain(|(_, other)| *other != group);
        }
    }
}

/// Writes a gap as an event; `id` is where a client that sees it stands.
fn write_gap(dialect: DialectId, topic: &str, gap: Gap, time: u64, id: u64, out: &mut Vec<u8>) {
    let Gap { from, to, reason } = gap;
    let mut data = Vec::new();
    let name = dialect.notice(&Notice::Gap { topic, from, to, reason, time }, &mut data);
    sse::event(out, Some(id), name, &data);
}
