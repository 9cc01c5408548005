//! Topics at their owner shard: the truth.
//!
//! A topic hashes to one of 256 partitions and a partition belongs to one shard. The owner gives offsets, keeps a
//! bounded log of publications as received, sends them to the shards that watch, and feeds the store.
//!
//! What must hold:
//! * an offset is never given twice: it lies above everything this topic ever used and at most at a ceiling the store has
//!   synced;
//! * a watching shard gets each publication once, in order, on the same lane that answers its replays: where a
//!   replay says that the live tail follows, it does, with nothing between;
//! * a publication is acknowledged only once it is durable by the configured rule.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use protocol::message::{GapReason, Kind};
use protocol::topic::{self, Filter};

use crate::mail::{Failure, Gap, Item, Mail};
use crate::mesh::Port;
use crate::metrics::{Counter, Metrics};

mod log;

pub use log::IdRange;
use log::{Entry, Opening, Queued, Topic, Unanswered, Watcher};

/// Offsets reserved ahead of use for a topic seen for the first time; each further reservation doubles it, up to
/// [`MAX_STEP`]. A crash wastes at most this many.
const FIRST_STEP: u64 = 1 << 10;
const MAX_STEP: u64 = 1 << 20;
/// Publication ids reserved ahead for a partition.
const ID_STEP: u64 = 1 << 16;
/// Bytes of bodies in one part of a replay: several parts fit a lane.
const REPLAY_PART: usize = 128 << 10;
/// Bytes of rows of a shard that may wait for a topic to be opened, for a ceiling, or for room on the store's lane. Beyond
/// it rows are refused: the largest request fits several times.
const MAX_QUEUED_BYTES: usize = 64 << 20;
/// Bytes a publication costs in the log beside its body.
const ENTRY_OVERHEAD: usize = size_of::<Entry>() + size_of::<(u32, u64)>();

/// What an owner does with publications, from the configuration.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Publications kept per topic.
    pub log_publications: usize,
    /// Bytes kept by all topics of the shard.
    pub log_bytes: usize,
    /// Topics per shard.
    pub max_topics: usize,
    /// Whether an acknowledgement waits for the store.
    pub ack_when_stored: bool,
    /// Topics whose publications are delivered only once they are stored.
    pub after_durable: Vec<Filter>,
}

/// Nodes of the mesh that are not shards.
#[derive(Clone, Copy, Debug)]
pub struct StoreNodes {
    /// Who appends and reserves.
    pub writer: usize,
    /// Who reads back.
    pub reader: usize,
}

/// The topics one shard owns.
pub struct Topics {
    rules: Rules,
    store: StoreNodes,
    metrics: Arc<Metrics>,
    by_name: HashMap<Rc<str>, u32>,
    topics: Vec<Option<Topic>>,
    free: Vec<u32>,
    /// Publication ids of each partition, counted in the partition.
    ids: Vec<IdRange>,
    /// (topic, offset) of all publications in logs, oldest first. Entries already gone from their log are passed over.
    order: VecDeque<(u32, u64)>,
    log_bytes: usize,
    /// Publications in logs.
    kept: usize,
    /// Appends sent to the store since the start, and how many it has answered.
    appended: u64,
    answered: u64,
    /// What each unanswered append has to be told, oldest first.
    unanswered: VecDeque<Unanswered>,
    /// Rows that wait, in bytes, and the topics of those that wait for room on the store's lane.
    queued_bytes: usize,
    stalled: Vec<u32>,
    /// Topics with a watcher that a full lane has kept from its publications.
    lagging: Vec<u32>,
    scratch: Vec<u8>,
}

impl Topics {
    /// No topics yet. `ids` holds what the store has reserved for each of the 256 partitions.
    pub fn new(rules: Rules, store: StoreNodes, ids: Vec<IdRange>, metrics: Arc<Metrics>) -> Self {
        Self {
            rules,
            store,
            metrics,
            by_name: HashMap::new(),
            topics: Vec::new(),
            free: Vec::new(),
            ids,
            order: VecDeque::new(),
            log_bytes: 0,
            kept: 0,
            appended: 0,
            answered: 0,
            unanswered: VecDeque::new(),
            queued_bytes: 0,
            stalled: Vec::new(),
            lagging: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Does what a record asks for, if it is one for an owner; `now` is in milliseconds since the epoch.
    pub fn handle(&mut self, from: usize, mail: Mail<'_>, now: u64, port: &mut Port) {
        let from = from as u8;
        match mail {
            Mail::Publish { ticket, row, kind, topic, body } => {
                let row = Queued { node: from, ticket, row, kind, body: body.into() };
                self.publish(topic, row, now, port);
            }
            Mail::Watch { view, topic } => self.watch(from, view, topic, port),
            Mail::Unwatch { view, topic } => self.unwatch(from, view, topic),
            Mail::Replay { tag, topic, after, conflate } => {
                self.replay(from, tag, topic, after, conflate, port);
            }
            Mail::Latest { tag, topic } => self.ask_latest(from, tag, topic, port),
            Mail::Opened { topic, head, ceiling, latest, .. } => {
                self.opened(topic, head, ceiling, latest, now, port);
            }
            Mail::Reserved { topic, ceiling } => self.reserved(topic, ceiling, now, port),
            Mail::ReservedIds { partition, ceiling } => self.reserved_ids(partition, ceiling, now, port),
            Mail::Stored { count } => self.stored(count, None, port),
            Mail::Unstored { count, failure } => self.stored(count, Some(failure), port),
            _ => {}
        }
    }

    /// Goes on with what full lanes had kept back; `now` is in milliseconds since the epoch. Once per loop turn.
    pub fn turn(&mut self, now: u64, port: &mut Port) {
        for index in std::mem::take(&mut self.stalled) {
            self.publish_queued(index, now, port);
        }
        for index in std::mem::take(&mut self.lagging) {
            if let Some(topic) = &mut self.topics[index as usize] {
                topic.is_lagging = false;
            }
            self.pump(index, port);
        }
        self.metrics.set(Counter::Topics, self.by_name.len() as u64);
        self.metrics.set(Counter::LogBytes, self.log_bytes as u64);
    }

    /// Whether publications are waiting for the store, or for room on a lane.
    pub fn is_busy(&self) -> bool {
        !self.unanswered.is_empty() || self.queued_bytes > 0 || self.is_kept_back()
    }

    /// Whether something waits for room on a lane, so that [`turn`](Self::turn) should be called again soon.
    pub fn is_kept_back(&self) -> bool {
        !self.lagging.is_empty() || !self.stalled.is_empty()
    }

    /// Tells the store where offsets end, so that a later start need not skip to the ceilings. At a drain, last.
    pub fn close(&mut self, port: &mut Port) {
        for topic in self.topics.iter().flatten().filter(|topic| topic.ceiling > topic.head) {
            post(
                &mut self.scratch,
                port,
                self.store.writer,
                Mail::Close { topic: &topic.name, head: topic.head },
            );
        }
    }

    fn publish(&mut self, name: &str, row: Queued, now: u64, port: &mut Port) {
        if self.queued_bytes > MAX_QUEUED_BYTES {
            return self.refuse(&row, Failure::Busy, port);
        }
        let Some(index) = self.find_or_make(name, true, port) else {
            return self.refuse(&row, Failure::Topics, port);
        };
        if let Some(topic) = &mut self.topics[index as usize] {
            self.queued_bytes += row.cost();
            topic.queue.push_back(row);
        }
        self.publish_queued(index, now, port);
    }

    /// Whether the topic can give an offset and an id now. Asks for higher ceilings well before they are reached.
    fn may_assign(&mut self, index: u32, port: &mut Port) -> bool {
        let Some(topic) = &mut self.topics[index as usize] else { return false };
        if topic.opening == Opening::Asked {
            return false;
        }
        let ceiling = topic.ceiling;
        if ceiling - topic.head <= topic.step / 2 && topic.opening == Opening::Open {
            topic.opening = Opening::Reserving;
            let mail = Mail::Reserve { topic: &topic.name, ceiling: ceiling + topic.step };
            topic.step = (topic.step * 2).min(MAX_STEP);
            post(&mut self.scratch, port, self.store.writer, mail);
        }
        let partition = topic::partition(&topic.name);
        let ids = &mut self.ids[usize::from(partition)];
        if ids.ceiling - ids.next <= ID_STEP / 2 && !ids.asked {
            ids.asked = true;
            let mail = Mail::ReserveIds { partition, ceiling: ids.ceiling + ID_STEP };
            post(&mut self.scratch, port, self.store.writer, mail);
        }
        topic.head < ceiling && ids.next < ids.ceiling
    }

    /// Gives the topic's next row its offset, stores, publishes and, where the rule does not wait for the store,
    /// acknowledges it. False: the store's lane is full, and the row waits.
    fn assign(&mut self, index: u32, now: u64, port: &mut Port) -> bool {
        let Some(topic) = &mut self.topics[index as usize] else { return true };
        let Some(row) = topic.queue.front() else { return true };
        let partition = topic::partition(&topic.name);
        let counter = &mut self.ids[usize::from(partition)].next;
        let mut entry = Entry {
            offset: topic.head + 1,
            id: *counter * 256 + u64::from(partition),
            time: now,
            append: self.appended + 1,
            kind: row.kind,
            body: Rc::from(&row.body[..]),
        };
        Mail::Append { topic: &topic.name, item: entry.item() }.encode(&mut self.scratch);
        let waits = self.rules.ack_when_stored;
        if port.try_send(self.store.writer, &self.scratch) {
            self.appended += 1;
            let Queued { node, ticket, row, .. } = *row;
            self.unanswered.push_back(Unanswered {
                topic: index,
                offset: entry.offset,
                ticket,
                row,
                node,
                waits,
            });
        } else if waits || topic.strict {
            return false;
        } else {
            entry.append = 0;
            self.metrics.count(Counter::Unstored);
        }
        let Some(row) = topic.queue.pop_front() else { return true };
        self.queued_bytes -= row.cost();
        *counter += 1;
        topic.head = entry.offset;
        if !topic.strict {
            topic.visible = entry.offset;
        }
        if !waits {
            let mail = Mail::Acked { ticket: row.ticket, row: row.row, offset: entry.offset };
            post(&mut self.scratch, port, usize::from(row.node), mail);
        }
        if entry.kind == Kind::Telemetry && !topic.strict {
            topic.latest = Some(entry.clone());
        }
        self.log_bytes += entry.body.len() + ENTRY_OVERHEAD;
        self.order.push_back((index, entry.offset));
        topic.log.push_back(entry);
        self.kept += 1;
        self.metrics.count(Counter::Publishes);
        self.evict(index);
        self.pump(index, port);
        true
    }

    /// Keeps the logs within their bounds. What the store has not answered for stays: it is in no other place, and what
    /// the store's lane takes bounds it.
    fn evict(&mut self, index: u32) {
        let (answered, most) = (self.answered, self.rules.log_publications);
        while let Some(topic) = &mut self.topics[index as usize]
            && topic.log.len() > most
            && let Some(bytes) = topic.drop_oldest(answered)
        {
            self.kept -= 1;
            self.log_bytes -= bytes;
        }
        while let Some(&(index, offset)) = self.order.front() {
            let topic = self.topics[index as usize].as_mut();
            let front = topic.filter(|topic| topic.log.front().is_some_and(|entry| entry.offset <= offset));
            match front {
                // It has left its log already.
                None => {}
                Some(_) if self.log_bytes <= self.rules.log_bytes => break,
                Some(topic) => match topic.drop_oldest(answered) {
                    Some(bytes) => {
                        self.kept -= 1;
                        self.log_bytes -= bytes;
                    }
                    None => break,
                },
            }
            self.order.pop_front();
        }
        self.sweep_order();
    }

    /// Takes out of the order what has left its log, once that is most of it: constant work per publication.
    fn sweep_order(&mut self) {
        if self.order.len() > 2 * self.kept + 1024 {
            let topics = &self.topics;
            self.order.retain(|&(index, offset)| {
                topics[index as usize].as_ref().is_some_and(|topic| topic.floor < offset)
            });
        }
    }

    /// Sends every watcher what it has not been sent yet.
    fn pump(&mut self, index: u32, port: &mut Port) {
        let Some(topic) = &mut self.topics[index as usize] else { return };
        if !topic.pump(&mut self.scratch, port) && !topic.is_lagging {
            topic.is_lagging = true;
            self.lagging.push(index);
            self.metrics.count(Counter::LaneFull);
        }
    }

    fn watch(&mut self, node: u8, view: u64, name: &str, port: &mut Port) {
        let Some(index) = self.find_or_make(name, false, port) else {
            return post(&mut self.scratch, port, usize::from(node), Mail::Unwatchable { view });
        };
        if let Some(topic) = &mut self.topics[index as usize] {
            topic.watchers.retain(|watcher| watcher.node != node);
            topic.watchers.push(Watcher { node, view, sent: 0, told: false });
            self.pump(index, port);
        }
    }

    fn unwatch(&mut self, node: u8, view: u64, name: &str) {
        let Some(&index) = self.by_name.get(name) else { return };
        if let Some(topic) = &mut self.topics[index as usize] {
            topic.watchers.retain(|watcher| watcher.node != node || watcher.view != view);
        }
        self.forget_if_unknown(index);
    }

    fn ask_latest(&mut self, node: u8, tag: u64, name: &str, port: &mut Port) {
        let Some(index) = self.find_or_make(name, false, port) else {
            return post(&mut self.scratch, port, usize::from(node), Mail::NoLatest { tag });
        };
        if let Some(topic) = &mut self.topics[index as usize] {
            topic.asks.push((node, tag));
        }
        self.answer_asks(index, port);
    }

    fn answer_asks(&mut self, index: u32, port: &mut Port) {
        let Some(topic) = &mut self.topics[index as usize] else { return };
        if topic.opening == Opening::Asked {
            return;
        }
        for (node, tag) in std::mem::take(&mut topic.asks) {
            let mail = match &topic.latest {
                Some(entry) => Mail::Replayed { tag, item: entry.item() },
                None => Mail::NoLatest { tag },
            };
            post(&mut self.scratch, port, usize::from(node), mail);
        }
        self.forget_if_unknown(index);
    }

    /// Sends one part of what follows `after`, from the log or by way of the store's reader.
    fn replay(&mut self, node: u8, tag: u64, name: &str, after: u64, conflate: bool, port: &mut Port) {
        let end = |upto, live, gap| Mail::ReplayEnd { tag, upto, live, gap };
        let to = usize::from(node);
        let topic = self.by_name.get(name).and_then(|&index| self.topics[index as usize].as_ref());
        let watcher = topic.and_then(|topic| topic.watchers.iter().find(|watcher| watcher.node == node));
        let (Some(topic), Some(watcher)) = (topic, watcher) else {
            // The watcher has left, or was refused: its streams are gone or about to be told so.
            return post(&mut self.scratch, port, to, end(after, true, None));
        };
        self.metrics.count(Counter::Replays);
        if after > topic.visible {
            let gap = Gap { from: topic.visible + 1, to: after, reason: GapReason::UnknownPosition };
            return post(&mut self.scratch, port, to, end(watcher.sent, true, Some(gap)));
        }
        if after < topic.floor {
            let lost = topic.lost.iter().find(|(_, last)| *last > after);
            if let Some(&(first, last)) = lost
                && first <= after + 1
            {
                let gap = Gap { from: after + 1, to: last, reason: GapReason::Retention };
                return post(&mut self.scratch, port, to, end(last, false, Some(gap)));
            }
            let mail = Mail::ReadRange {
                node,
                tag,
                topic: name,
                after,
                before: lost.map_or(topic.floor + 1, |(first, _)| *first),
                max_bytes: REPLAY_PART as u32,
                conflate,
            };
            return post(&mut self.scratch, port, self.store.reader, mail);
        }
        let (mut bytes, mut upto) = (0, after);
        let newest = topic.latest.as_ref().map_or(0, |entry| entry.offset);
        let start = topic.log.partition_point(|entry| entry.offset <= after);
        for entry in topic.log.range(start..).take_while(|entry| entry.offset <= watcher.sent) {
            if bytes >= REPLAY_PART {
                return post(&mut self.scratch, port, to, end(upto, false, None));
            }
            upto = entry.offset;
            if !conflate || !entry.kind.conflates() || entry.offset == newest {
                bytes += entry.body.len() + ENTRY_OVERHEAD;
                post(&mut self.scratch, port, to, Mail::Replayed { tag, item: entry.item() });
            }
        }
        // A reader that is ahead of this shard's lane must not be joined to a tail that would repeat itself.
        post(&mut self.scratch, port, to, end(watcher.sent.max(after), after <= watcher.sent, None));
    }

    fn opened(
        &mut self,
        name: &str,
        head: u64,
        ceiling: u64,
        latest: Option<Item<'_>>,
        now: u64,
        port: &mut Port,
    ) {
        let Some(&index) = self.by_name.get(name) else { return };
        let Some(topic) = &mut self.topics[index as usize] else { return };
        if topic.opening != Opening::Asked {
            topic.ceiling = topic.ceiling.max(ceiling);
            return;
        }
        topic.opening = Opening::Open;
        (topic.head, topic.visible, topic.floor) = (head, head, head);
        topic.ceiling = ceiling.max(head);
        topic.latest = latest.map(|item| Entry {
            offset: item.offset,
            id: item.id,
            time: item.time,
            append: 0,
            kind: item.kind,
            body: item.body.into(),
        });
        self.answer_asks(index, port);
        self.pump(index, port);
        self.publish_queued(index, now, port);
        self.forget_if_unknown(index);
    }

    fn reserved(&mut self, name: &str, ceiling: u64, now: u64, port: &mut Port) {
        let Some(&index) = self.by_name.get(name) else { return };
        let Some(topic) = &mut self.topics[index as usize] else { return };
        topic.ceiling = topic.ceiling.max(ceiling);
        if topic.opening == Opening::Reserving {
            topic.opening = Opening::Open;
        }
        if topic.head == topic.ceiling {
            // The store can't reserve any more. Whoever publishes next asks again.
            return self.refuse_queued(index, port);
        }
        self.publish_queued(index, now, port);
    }

    fn reserved_ids(&mut self, partition: u8, ceiling: u64, now: u64, port: &mut Port) {
        let ids = &mut self.ids[usize::from(partition)];
        ids.ceiling = ids.ceiling.max(ceiling);
        ids.asked = false;
        let exhausted = ids.next >= ids.ceiling;
        let waiting: Vec<u32> = (0..self.topics.len() as u32)
            .filter(|&index| {
                let topic = self.topics[index as usize].as_ref();
                topic.is_some_and(|topic| {
                    !topic.queue.is_empty() && topic::partition(&topic.name) == partition
                })
            })
            .collect();
        for index in waiting {
            if exhausted {
                self.refuse_queued(index, port);
            } else {
                self.publish_queued(index, now, port);
            }
        }
    }

    fn refuse_queued(&mut self, index: u32, port: &mut Port) {
        let Some(topic) = &mut self.topics[index as usize] else { return };
        for row in std::mem::take(&mut topic.queue) {
            self.queued_bytes -= row.cost();
            self.refuse(&row, Failure::Store, port);
        }
    }

    fn publish_queued(&mut self, index: u32, now: u64, port: &mut Port) {
        while self.topics[index as usize].as_ref().is_some_and(|topic| !topic.queue.is_empty())
            && self.may_assign(index, port)
        {
            if !self.assign(index, now, port) {
                return self.stalled.push(index);
            }
        }
    }

    /// The store has answered the first `count` appends of this shard.
    fn stored(&mut self, count: u64, failure: Option<Failure>, port: &mut Port) {
        while self.answered < count {
            let Some(done) = self.unanswered.pop_front() else { break };
            self.answered += 1;
            if let Some(topic) = &mut self.topics[done.topic as usize]
                && let Some(bytes) = topic.settle(done.offset, failure.is_some())
            {
                self.kept -= 1;
                self.log_bytes -= bytes;
            }
            if done.waits {
                let Unanswered { ticket, row, offset, .. } = done;
                let mail = match failure {
                    None => Mail::Acked { ticket, row, offset },
                    Some(failure) => Mail::Refused { ticket, row, failure },
                };
                post(&mut self.scratch, port, usize::from(done.node), mail);
            }
            if failure.is_some() {
                self.metrics.count(Counter::PublishFailed);
            }
            if self.topics[done.topic as usize].as_ref().is_some_and(|topic| topic.strict) {
                self.pump(done.topic, port);
            }
            // What had to stay until the store answered may go now, even if nothing more is published.
            self.evict(done.topic);
        }
    }

    fn refuse(&mut self, row: &Queued, failure: Failure, port: &mut Port) {
        self.metrics.count(Counter::PublishRefused);
        let mail = Mail::Refused { ticket: row.ticket, row: row.row, failure };
        post(&mut self.scratch, port, usize::from(row.node), mail);
    }

    /// The topic's place; asks the store for it if it is not in memory. `None`: there are too many.
    fn find_or_make(&mut self, name: &str, create: bool, port: &mut Port) -> Option<u32> {
        if let Some(&index) = self.by_name.get(name) {
            return Some(index);
        }
        if self.by_name.len() >= self.rules.max_topics {
            return None;
        }
        let name: Rc<str> = name.into();
        post(&mut self.scratch, port, self.store.writer, Mail::Open { topic: &name, create });
        let strict = self.rules.after_durable.iter().any(|filter| filter.matches(&name));
        let topic = Topic::new(Rc::clone(&name), strict);
        let index = match self.free.pop() {
            Some(index) => {
                self.topics[index as usize] = Some(topic);
                index
            }
            None => {
                self.topics.push(Some(topic));
                (self.topics.len() - 1) as u32
            }
        };
        self.by_name.insert(name, index);
        Some(index)
    }

    /// Drops a topic that was only asked for and never published to.
    fn forget_if_unknown(&mut self, index: u32) {
        let place = &mut self.topics[index as usize];
        let unknown = place.as_ref().is_some_and(|topic| {
            topic.head == 0
                && topic.opening == Opening::Open
                && topic.watchers.is_empty()
                && topic.asks.is_empty()
                && topic.queue.is_empty()
        });
        if unknown && let Some(topic) = place.take() {
            self.by_name.remove(&topic.name);
            self.free.push(index);
        }
    }
}

/// Sends a record whose number is bounded by requests in progress.
fn post(scratch: &mut Vec<u8>, port: &mut Port, to: usize, mail: Mail<'_>) {
    mail.encode(scratch);
    port.send(to, scratch);
}
