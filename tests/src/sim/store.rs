//! The store as the simulation has it: what was committed survives a crash, what was on its way does not.

use std::collections::BTreeMap;

use engine::mail::{Failure, Gap, Item, Mail, ReadEnd};
use engine::mesh::{Inbox, Port};
use engine::topic::IdRange;
use protocol::message::{GapReason, Kind};

/// Offsets reserved when a topic is made.
const STEP: u64 = 64;
/// Ids reserved for a partition at a start.
const IDS: u64 = 128;

struct Row {
    id: u64,
    kind: Kind,
    time: u64,
    body: Vec<u8>,
}

impl Row {
    fn item(&self, offset: u64) -> Item<'_> {
        Item { offset, id: self.id, kind: self.kind, time: self.time, body: &self.body }
    }
}

#[derive(Default)]
struct Topic {
    rows: BTreeMap<u64, Row>,
    ceiling: u64,
    holes: Vec<(u64, u64)>,
    /// The start at which it was last opened.
    start: u32,
}

impl Topic {
    fn stored(&self) -> u64 {
        self.rows.last_key_value().map_or(0, |(offset, _)| *offset)
    }
}

/// What is on the disk.
#[derive(Default)]
pub struct Disk {
    topics: BTreeMap<String, Topic>,
    ids: BTreeMap<u8, u64>,
    starts: u32,
}

impl Disk {
    /// A start of the server: what may be used of each partition's ids.
    pub fn start(&mut self) -> Vec<IdRange> {
        self.starts += 1;
        let range = |partition: u8| {
            let next = self.ids.get(&partition).copied().unwrap_or(1);
            self.ids.insert(partition, next + IDS);
            IdRange { next, ceiling: next + IDS, asked: false }
        };
        (0..=u8::MAX).map(range).collect()
    }
}

/// Both of the store's nodes, writer and reader.
pub struct Store {
    /// What survives.
    pub disk: Disk,
    writer: Port,
    reader: Port,
    shards: usize,
    appended: Vec<u64>,
    /// Everything is answered with this while it is set.
    pub failing: Option<Failure>,
    /// Nothing can be read back while it is set.
    pub unreadable: bool,
    /// No ceiling is raised while it is set.
    pub grants_nothing: bool,
    inbox: Inbox,
    out: Vec<u8>,
}

impl Store {
    /// On this disk, for so many shards.
    pub fn new(disk: Disk, writer: Port, reader: Port, shards: usize) -> Self {
        let (inbox, out) = Default::default();
        Self {
            disk,
            writer,
            reader,
            shards,
            appended: vec![0; shards],
            failing: None,
            unreadable: false,
            grants_nothing: false,
            inbox,
            out,
        }
    }

    /// Commits what has arrived, at most `most` records of each shard, and answers.
    pub fn write(&mut self, most: usize) {
        for shard in 0..self.shards {
            let mut inbox = std::mem::take(&mut self.inbox);
            self.writer.receive(shard, most, &mut inbox);
            let before = self.appended[shard];
            for (from, record) in inbox.records() {
                if let Some(mail) = Mail::decode(record) {
                    self.apply(from, mail);
                }
            }
            inbox.clear();
            self.inbox = inbox;
            let count = self.appended[shard];
            if count > before {
                let mail = match self.failing {
                    None => Mail::Stored { count },
                    Some(failure) => Mail::Unstored { count, failure },
                };
                send(&mut self.out, &mut self.writer, shard, mail);
            }
        }
        self.writer.flush();
    }

    fn apply(&mut self, from: usize, mail: Mail<'_>) {
        let start = self.disk.starts;
        match mail {
            Mail::Append { topic, item } => {
                self.appended[from] += 1;
                if self.failing.is_none() {
                    let Item { offset, id, kind, time, body } = item;
                    let rows = &mut self.disk.topics.entry(topic.into()).or_default().rows;
                    let old = rows.insert(offset, Row { id, kind, time, body: body.into() });
                    assert!(old.is_none(), "offset {offset} of {topic} was given twice");
                }
            }
            Mail::Open { topic, create } => {
                let found = self.disk.topics.contains_key(topic);
                let (mut head, mut ceiling, mut stored) = (0, 0, 0);
                if found || create {
                    let entry = self.disk.topics.entry(topic.into()).or_default();
                    stored = entry.stored();
                    if entry.start != start && entry.ceiling > stored {
                        entry.holes.push((stored + 1, entry.ceiling));
                    }
                    head = if entry.start == start { stored } else { entry.ceiling.max(stored) };
                    entry.start = start;
                    entry.ceiling = head + if create && !self.grants_nothing { STEP } else { 0 };
                    ceiling = entry.ceiling;
                }
                let rows = self.disk.topics.get(topic).map(|topic| &topic.rows);
                let newest =
                    rows.and_then(|rows| rows.iter().rev().find(|(_, row)| row.kind == Kind::Telemetry));
                let latest = newest.map(|(offset, row)| row.item(*offset));
                let mail = Mail::Opened { topic, head, ceiling, stored, latest };
                send(&mut self.out, &mut self.writer, from, mail);
            }
            Mail::Reserve { topic, ceiling } => {
                let entry = self.disk.topics.entry(topic.into()).or_default();
                entry.start = start;
                if !self.grants_nothing {
                    entry.ceiling = entry.ceiling.max(ceiling);
                }
                let ceiling = entry.ceiling;
                send(&mut self.out, &mut self.writer, from, Mail::Reserved { topic, ceiling });
            }
            Mail::ReserveIds { partition, ceiling } => {
                self.disk.ids.insert(partition, ceiling);
                send(&mut self.out, &mut self.writer, from, Mail::ReservedIds { partition, ceiling });
            }
            Mail::Close { topic, head } => {
                if let Some(topic) = self.disk.topics.get_mut(topic) {
                    topic.ceiling = head;
                }
            }
            other => panic!("the store's writer got {other:?}"),
        }
    }

    /// Answers questions, at most `most` of each shard.
    pub fn read(&mut self, most: usize) {
        for shard in 0..self.shards {
            let mut inbox = std::mem::take(&mut self.inbox);
            self.reader.receive(shard, most, &mut inbox);
            for (from, record) in inbox.records() {
                match Mail::decode(record) {
                    Some(Mail::ReadRange { node, tag, topic, after, before, max_bytes, conflate }) => {
                        self.range(
                            usize::from(node),
                            tag,
                            topic,
                            (after, before),
                            max_bytes as usize,
                            conflate,
                        );
                    }
                    Some(Mail::ReadHistory { tag, topic, from: start, to, limit }) => {
                        self.history(from, tag, topic, start..=to, limit as usize);
                    }
                    Some(Mail::ReadTopics { tag, prefix }) => self.listing(from, tag, prefix),
                    other => panic!("the store's reader got {other:?}"),
                }
            }
            inbox.clear();
            self.inbox = inbox;
        }
        self.reader.flush();
    }

    fn range(
        &mut self,
        to: usize,
        tag: u64,
        name: &str,
        (after, before): (u64, u64),
        max_bytes: usize,
        conflate: bool,
    ) {
        let (mut upto, mut gap, mut bytes) = (before - 1, None, 0);
        if self.unreadable {
            return send(
                &mut self.out,
                &mut self.reader,
                to,
                Mail::ReplayEnd { tag, upto: after, live: false, gap },
            );
        }
        if let Some(topic) = self.disk.topics.get(name) {
            let hole = topic.holes.iter().find(|(from, to)| (*from..=*to).contains(&after));
            gap = hole.map(|&(_, end)| Gap {
                from: after + 1,
                to: end.min(before - 1),
                reason: GapReason::Crash,
            });
            gap = gap.filter(|gap| gap.from <= gap.to);
            for (&offset, row) in topic.rows.range(after + 1..before) {
                if bytes >= max_bytes {
                    upto = offset - 1;
                    break;
                }
                if !conflate || !row.kind.conflates() {
                    bytes += row.body.len();
                    let mail = Mail::Replayed { tag, item: row.item(offset) };
                    send(&mut self.out, &mut self.reader, to, mail);
                }
            }
        }
        send(&mut self.out, &mut self.reader, to, Mail::ReplayEnd { tag, upto, live: false, gap });
    }

    fn history(
        &mut self,
        to: usize,
        tag: u64,
        name: &str,
        times: std::ops::RangeInclusive<u64>,
        limit: usize,
    ) {
        let rows = self.disk.topics.get(name).map(|topic| &topic.rows);
        let fits = |row: &Row| row.kind == Kind::Telemetry && times.contains(&row.time);
        let mut found: Vec<_> =
            rows.into_iter().flatten().rev().filter(|(_, row)| fits(row)).take(limit).collect();
        found.reverse();
        for (offset, row) in found {
            send(&mut self.out, &mut self.reader, to, Mail::Replayed { tag, item: row.item(*offset) });
        }
        send(&mut self.out, &mut self.reader, to, Mail::ReadDone { tag, end: ReadEnd::Done });
    }

    fn listing(&mut self, to: usize, tag: u64, prefix: &str) {
        for (name, topic) in self.disk.topics.iter().filter(|(name, _)| name.starts_with(prefix)) {
            if let Some((&offset, row)) = topic.rows.last_key_value() {
                let mail = Mail::TopicRow { tag, topic: name, offset, time: row.time };
                send(&mut self.out, &mut self.reader, to, mail);
            }
        }
        send(&mut self.out, &mut self.reader, to, Mail::ReadDone { tag, end: ReadEnd::Done });
    }
}

fn send(out: &mut Vec<u8>, port: &mut Port, to: usize, mail: Mail<'_>) {
    mail.encode(out);
    port.send(to, out);
}
