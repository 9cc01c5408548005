//! Questions: what one reads, and what its answer says.
//!
//! A question is answered in slices. Between two of them no transaction is open, so that checkpoints go through, and
//! only positions are kept; inside one everything is read from one snapshot.

use rusqlite::{Connection, OptionalExtension, params};

use super::ledger::{self, Topic};
use super::outbox::Outbox;
use super::schema::{self, signed, unsigned};
use crate::mail::{Gap, Mail, ReadEnd};
use protocol::message::GapReason;

/// Publications read in a slice.
const SLICE_ROWS: usize = 512;
/// Bytes of bodies read in a slice; one body more at most.
const SLICE_BYTES: usize = 256 << 10;
/// Topics listed in a slice: each costs six look-ups.
const SLICE_TOPICS: usize = 256;
/// Stretches of ascending time searched in a slice: each costs two bisections. There are several only where the clock
/// has been set back.
const SLICE_STRETCHES: usize = 16;
/// Publications in a history, whatever its limit says.
const HISTORY_ROWS: usize = 100_000;
/// Topics in a listing.
const LISTED_TOPICS: usize = 100_000;

/// A question being answered.
pub(super) struct Question {
    /// Whom to answer.
    pub node: usize,
    tag: u64,
    task: Task,
}

enum Task {
    Range(Range),
    History(History),
    Topics(Topics),
}

impl Question {
    /// The question in a record from node `from`; `None` if there is none in it.
    pub(super) fn new(from: usize, mail: Mail<'_>) -> Option<Self> {
        let (node, tag, task) = match mail {
            Mail::ReadRange { node, tag, topic, after, before, max_bytes, conflate } => {
                let range = Range {
                    topic: topic.into(),
                    after,
                    before,
                    left: max_bytes as usize,
                    conflate,
                    reached: None,
                    gap: None,
                };
                (usize::from(node), tag, Task::Range(range))
            }
            Mail::ReadHistory { tag, topic, from: earliest, to: latest, limit } => {
                let left = (limit as usize).min(HISTORY_ROWS);
                let history =
                    History { topic: topic.into(), earliest, latest, left, end: None, parts: Vec::new() };
                (from, tag, Task::History(history))
            }
            Mail::ReadTopics { tag, prefix } => {
                let (prefix, next) = (prefix.into(), prefix.into());
                (from, tag, Task::Topics(Topics { prefix, next, left: LISTED_TOPICS }))
            }
            _ => return None,
        };
        Some(Self { node, tag, task })
    }

    /// Answers one slice more. Returns whether that was the last.
    ///
    /// # Errors
    /// SQLite's. What was put before is right, and the next call goes on behind it.
    pub(super) fn advance(&mut self, db: &Connection, answer: &mut Outbox) -> rusqlite::Result<bool> {
        let snapshot = db.unchecked_transaction()?;
        let ended = match &mut self.task {
            Task::Range(range) => range.advance(&snapshot, self.tag, answer),
            Task::History(history) => history.advance(&snapshot, self.tag, answer),
            Task::Topics(topics) => topics.advance(&snapshot, self.tag, answer),
        };
        snapshot.finish()?;
        ended
    }

    /// The end of an answer that can't go on, of which everything up to `sent` has been sent. A range that has come no
    /// further than where it began tells whoever asked that asking again is no use.
    pub(super) fn failed(&self, sent: Option<u64>) -> Mail<'static> {
        let tag = self.tag;
        match &self.task {
            Task::Range(range) => {
                let upto = sent.unwrap_or(range.after);
                Mail::ReplayEnd { tag, upto, live: false, gap: range.gap }
            }
            Task::History(_) | Task::Topics(_) => Mail::ReadDone { tag, end: ReadEnd::Failed },
        }
    }
}

/// `Mail::ReadRange`.
struct Range {
    topic: String,
    after: u64,
    before: u64,
    /// Bytes of bodies still allowed.
    left: usize,
    conflate: bool,
    /// The last offset put; `None` before the first.
    reached: Option<u64>,
    gap: Option<Gap>,
}

impl Range {
    fn advance(&mut self, db: &Connection, tag: u64, answer: &mut Outbox) -> rusqlite::Result<bool> {
        let Some(topic) = ledger::find(db, &self.topic)? else {
            return Ok(self.end(self.before.saturating_sub(1), tag, answer));
        };
        match self.reached {
            None => self.gap = self.find_gap(db, &topic)?,
            // What comes next has been deleted since the last slice: a gap, which a new question begins with.
            Some(reached) if reached < topic.trimmed => return Ok(self.end(reached, tag, answer)),
            Some(_) => {}
        }
        let sql = if self.conflate { &schema::RANGE_KEPT } else { &schema::RANGE };
        let mut statement = db.prepare_cached(sql)?;
        let after = self.reached.unwrap_or(self.after);
        let mut rows =
            statement.query(params![topic.id, signed(after), signed(self.before), SLICE_ROWS as i64])?;
        let (mut read, mut bytes) = (0, 0);
        while let Some(row) = rows.next()? {
            let item = schema::item(row)?;
            read += 1;
            match self.reached {
                // It is in two places.
                Some(reached) if reached == item.offset => continue,
                Some(reached) if item.body.len() > self.left => {
                    return Ok(self.end(reached, tag, answer));
                }
                _ => {}
            }
            self.left = self.left.saturating_sub(item.body.len());
            self.reached = Some(item.offset);
            bytes += item.body.len();
            answer.put(Mail::Replayed { tag, item }, item.offset);
            if bytes >= SLICE_BYTES {
                return Ok(false);
            }
        }
        Ok(read < SLICE_ROWS && self.end(self.before.saturating_sub(1), tag, answer))
    }

    fn end(&self, upto: u64, tag: u64, answer: &mut Outbox) -> bool {
        // An empty range ends where it began, so that asking on from there repeats nothing.
        let upto = upto.max(self.after);
        answer.put(Mail::ReplayEnd { tag, upto, live: false, gap: self.gap }, upto);
        true
    }

    /// What is known to be missing right after `after`.
    fn find_gap(&self, db: &Connection, topic: &Topic) -> rusqlite::Result<Option<Gap>> {
        let (to, reason) = if self.after < topic.trimmed {
            (topic.trimmed, GapReason::Retention)
        } else {
            let hole = db
                .prepare_cached("SELECT max(last) FROM hole WHERE topic = ?1 AND first <= ?2 AND last > ?2")?
                .query_row(params![topic.id, signed(self.after)], |row| row.get::<_, Option<i64>>(0))?;
            let Some(last) = hole else { return Ok(None) };
            (last.max(0) as u64, GapReason::Crash)
        };
        let (from, to) = (self.after.saturating_add(1), to.min(self.before.saturating_sub(1)));
        Ok((from <= to).then_some(Gap { from, to, reason }))
    }
}

/// `Mail::ReadHistory`: first backwards for the offsets, since the newest count, then forwards for the publications.
struct History {
    topic: String,
    earliest: u64,
    latest: u64,
    /// Rows still wanted.
    left: usize,
    /// Offset below which to search on; `None` before the beginning, 0 when all is found.
    end: Option<u64>,
    /// Offsets `.0..=.1` hold what is wanted, newest part first.
    parts: Vec<(u64, u64)>,
}

impl History {
    fn advance(&mut self, db: &Connection, tag: u64, answer: &mut Outbox) -> rusqlite::Result<bool> {
        let topic = ledger::find(db, &self.topic)?;
        if let Some(topic) = topic {
            let end = match self.end {
                Some(end) => end,
                None => ledger::newest(db, &topic)?.0.saturating_add(1),
            };
            if end > 0 && self.left > 0 {
                self.end = Some(self.search(db, topic.id, end)?);
                return Ok(false);
            }
            if !self.send(db, topic.id, tag, answer)? {
                return Ok(false);
            }
        }
        answer.put(Mail::ReadDone { tag, end: ReadEnd::Done }, 0);
        Ok(true)
    }

    /// Searches a few stretches of ascending time below `end`; returns where to go on.
    fn search(&mut self, db: &Connection, topic: i64, mut end: u64) -> rusqlite::Result<u64> {
        for _ in 0..SLICE_STRETCHES {
            let begin: Option<i64> = db
                .prepare_cached("SELECT max(offset) FROM step WHERE topic = ?1 AND offset < ?2")?
                .query_row(params![topic, signed(end)], |row| row.get(0))?;
            let begin = begin.map_or(0, |begin| begin.max(0) as u64);
            let from = bisect(db, topic, (begin, end), self.earliest)?;
            let before = bisect(db, topic, (from, end), self.latest.saturating_add(1))?;
            let mut statement = db.prepare_cached(&schema::TELEMETRY_BACKWARDS)?;
            let mut rows = statement.query(params![topic, signed(from), signed(before)])?;
            let mut part = None;
            while self.left > 0
                && let Some(row) = rows.next()?
            {
                let offset = unsigned(row, 0)?;
                part = Some((offset, part.map_or(offset, |(_, last)| last)));
                self.left -= 1;
            }
            self.parts.extend(part);
            end = begin;
            if end == 0 || self.left == 0 {
                return Ok(0);
            }
        }
        Ok(end)
    }

    /// Puts a slice of what was found, oldest first. Returns whether that was the last.
    fn send(&mut self, db: &Connection, topic: i64, tag: u64, answer: &mut Outbox) -> rusqlite::Result<bool> {
        let mut statement = db.prepare_cached(&schema::RANGE_CONFLATING)?;
        let (mut read, mut bytes) = (0, 0);
        while let Some((from, last)) = self.parts.last_mut() {
            let slice = params![
                topic,
                signed(*from) - 1,
                signed(*last).saturating_add(1),
                (SLICE_ROWS - read) as i64
            ];
            let mut rows = statement.query(slice)?;
            while let Some(row) = rows.next()? {
                let item = schema::item(row)?;
                read += 1;
                // It is in two places.
                if item.offset < *from {
                    continue;
                }
                *from = item.offset.saturating_add(1);
                bytes += item.body.len();
                answer.put(Mail::Replayed { tag, item }, 0);
                if bytes >= SLICE_BYTES {
                    return Ok(false);
                }
            }
            if read >= SLICE_ROWS {
                return Ok(false);
            }
            drop(rows);
            self.parts.pop();
        }
        Ok(true)
    }
}

/// The lowest offset of a stretch in which time ascends, from which on all telemetry has at least this time; the
/// stretch's end if none has.
fn bisect(db: &Connection, topic: i64, (mut low, mut high): (u64, u64), time: u64) -> rusqlite::Result<u64> {
    let mut statement = db.prepare_cached(&schema::TELEMETRY_AT)?;
    while low < high {
        let middle = low + (high - low) / 2;
        let found = statement
            .query_row(params![topic, signed(middle), signed(high)], |row| {
                Ok((unsigned(row, 0)?, unsigned(row, 1)?))
            })
            .optional()?;
        match found {
            Some((offset, earlier)) if earlier < time => low = offset.saturating_add(1),
            _ => high = middle,
        }
    }
    Ok(low)
}

/// `Mail::ReadTopics`.
struct Topics {
    prefix: String,
    /// The first name that was not looked at.
    next: String,
    left: usize,
}

impl Topics {
    fn advance(&mut self, db: &Connection, tag: u64, answer: &mut Outbox) -> rusqlite::Result<bool> {
        let mut statement = db.prepare_cached(
            "SELECT id, run, ceiling, trimmed, trimmed_time, name FROM topic WHERE name >= ?1 ORDER BY name LIMIT ?2",
        )?;
        let mut rows = statement.query(params![self.next, SLICE_TOPICS as i64])?;
        let mut read = 0;
        while let Some(row) = rows.next()? {
            let name = row.get_ref(5)?.as_str()?;
            if self.left == 0 || !name.starts_with(&self.prefix) {
                read = 0;
                break;
            }
            let topic = Topic::from_row(row)?;
            let (offset, time) = ledger::newest(db, &topic)?;
            read += 1;
            // Nobody has published to it yet: it is only reserved.
            if offset > 0 {
                answer.put(Mail::TopicRow { tag, topic: name, offset, time }, 0);
                self.left -= 1;
            }
            self.next.clear();
            self.next.push_str(name);
            self.next.push('\0');
        }
        if read == SLICE_TOPICS {
            return Ok(false);
        }
        answer.put(Mail::ReadDone { tag, end: ReadEnd::Done }, 0);
        Ok(true)
    }
}
