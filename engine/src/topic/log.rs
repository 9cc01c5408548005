//! One topic at its owner: its log, its watchers, and what waits for the store.

use std::collections::VecDeque;
use std::rc::Rc;

use protocol::message::{GapReason, Kind};

use super::{ENTRY_OVERHEAD, FIRST_STEP, post};
use crate::mail::{Gap, Item, Mail};
use crate::mesh::Port;

/// Ranges of lost offsets remembered per topic; beyond it the oldest are joined.
const MAX_LOST_RANGES: usize = 64;

/// Ids that may be given without asking the store.
#[derive(Clone, Copy, Debug)]
pub struct IdRange {
    /// The next one.
    pub next: u64,
    /// The first one that may not be given.
    pub ceiling: u64,
    /// Whether a higher ceiling has been asked for.
    pub asked: bool,
}

/// An append the store has not answered, and who is to be told.
pub(super) struct Unanswered {
    pub(super) topic: u32,
    pub(super) offset: u64,
    pub(super) ticket: u64,
    pub(super) row: u32,
    pub(super) node: u8,
    /// Whether the publisher waits for the store.
    pub(super) waits: bool,
}

pub(super) struct Topic {
    pub(super) name: Rc<str>,
    /// The highest offset given. Meaningless until opened.
    pub(super) head: u64,
    /// The highest offset that may be given.
    pub(super) ceiling: u64,
    pub(super) step: u64,
    pub(super) opening: Opening,
    /// Offsets up to here may be delivered.
    pub(super) visible: u64,
    pub(super) strict: bool,
    pub(super) log: VecDeque<Entry>,
    /// Every publication above this offset is in the log.
    pub(super) floor: u64,
    /// Offsets that have left the log without having been stored, as ranges in order.
    pub(super) lost: Vec<(u64, u64)>,
    pub(super) latest: Option<Entry>,
    pub(super) watchers: Vec<Watcher>,
    pub(super) queue: VecDeque<Queued>,
    /// Who wants the newest telemetry, once the store has said whether there is any.
    pub(super) asks: Vec<(u8, u64)>,
    pub(super) is_lagging: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// The store has been asked.
    Asked,
    Open,
    /// Open, and a higher ceiling has been asked for.
    Reserving,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) offset: u64,
    pub(super) id: u64,
    pub(super) time: u64,
    /// Which append to the store it was, counted from 1; 0 if it was not appended.
    pub(super) append: u64,
    pub(super) kind: Kind,
    pub(super) body: Rc<[u8]>,
}

impl Entry {
    pub(super) fn item(&self) -> Item<'_> {
        Item { offset: self.offset, id: self.id, kind: self.kind, time: self.time, body: &self.body }
    }
}

pub(super) struct Watcher {
    pub(super) node: u8,
    /// The shard's name for its view.
    pub(super) view: u64,
    /// Offsets up to here are on the lane.
    pub(super) sent: u64,
    /// Whether it has been told where it starts.
    pub(super) told: bool,
}

pub(super) struct Queued {
    pub(super) node: u8,
    pub(super) ticket: u64,
    pub(super) row: u32,
    pub(super) kind: Kind,
    pub(super) body: Box<[u8]>,
}

impl Queued {
    /// Bytes it costs while it waits.
    pub(super) fn cost(&self) -> usize {
        self.body.len() + size_of::<Self>()
    }
}

impl Topic {
    pub(super) fn new(name: Rc<str>, strict: bool) -> Self {
        Self {
            name,
            head: 0,
            ceiling: 0,
            step: FIRST_STEP,
            opening: Opening::Asked,
            visible: 0,
            strict,
            log: VecDeque::new(),
            floor: 0,
            lost: Vec::new(),
            latest: None,
            watchers: Vec::new(),
            queue: VecDeque::new(),
            asks: Vec::new(),
            is_lagging: false,
        }
    }

    /// Drops the oldest publication of the log and gives the bytes it cost, unless the store has yet to answer for it;
    /// `answered`: appends it has answered.
    pub(super) fn drop_oldest(&mut self, answered: u64) -> Option<usize> {
        let entry = self.log.pop_front_if(|entry| entry.append <= answered)?;
        if entry.append == 0 {
            self.lose(entry.offset);
        }
        self.floor = entry.offset;
        Some(entry.body.len() + ENTRY_OVERHEAD)
    }

    /// Notes that an offset is in neither place.
    fn lose(&mut self, offset: u64) {
        // Between two publications that follow each other in the log no offset was used.
        match self.lost.last_mut().filter(|(_, to)| *to == self.floor) {
            Some((_, to)) => *to = offset,
            None => self.lost.push((offset, offset)),
        }
        if self.lost.len() > MAX_LOST_RANGES {
            // What lies between the oldest two is announced as missing too: never less than the truth.
            let (from, _) = self.lost.remove(0);
            self.lost[0].0 = from;
        }
    }

    /// Notes the store's answer about one publication; gives the bytes it cost, if it is taken out of the log.
    pub(super) fn settle(&mut self, offset: u64, failed: bool) -> Option<usize> {
        let mut freed = None;
        let place = self.log.partition_point(|entry| entry.offset < offset);
        if let Some(entry) = self.log.get_mut(place).filter(|entry| entry.offset == offset) {
            if failed && self.strict {
                // Never delivered, not stored: the offset is a hole.
                freed = Some(entry.body.len() + ENTRY_OVERHEAD);
                self.log.remove(place);
            } else if failed {
                // Not in the store: once it leaves the log it is lost, and readers are told.
                entry.append = 0;
            } else if self.strict && entry.kind == Kind::Telemetry {
                self.latest = Some(entry.clone());
            }
        }
        self.visible = self.visible.max(offset);
        freed
    }

    /// Puts on the watchers' lanes what they have not been sent; false if a lane is full.
    pub(super) fn pump(&mut self, scratch: &mut Vec<u8>, port: &mut Port) -> bool {
        if self.opening == Opening::Asked {
            return true;
        }
        let (log, floor, visible) = (&self.log, self.floor, self.visible);
        // All of them, whatever the first says: one slow shard must not keep back the others.
        self.watchers
            .iter_mut()
            .fold(true, |all, watcher| all & watcher.pump(log, floor, visible, scratch, port))
    }
}

impl Watcher {
    fn pump(
        &mut self,
        log: &VecDeque<Entry>,
        floor: u64,
        visible: u64,
        scratch: &mut Vec<u8>,
        port: &mut Port,
    ) -> bool {
        let to = usize::from(self.node);
        if !self.told {
            post(scratch, port, to, Mail::Watching { view: self.view, head: visible });
            (self.told, self.sent) = (true, visible);
        }
        if self.sent >= visible {
            return true;
        }
        if self.sent < floor {
            let gap = Gap { from: self.sent + 1, to: floor, reason: GapReason::Retention };
            Mail::Missed { view: self.view, gap }.encode(scratch);
            if !port.try_send(to, scratch) {
                return false;
            }
            self.sent = floor;
        }
        let start = log.partition_point(|entry| entry.offset <= self.sent);
        for entry in log.range(start..).take_while(|entry| entry.offset <= visible) {
            Mail::Live { view: self.view, item: entry.item() }.encode(scratch);
            if !port.try_send(to, scratch) {
                return false;
            }
            self.sent = entry.offset;
        }
        true
    }
}
