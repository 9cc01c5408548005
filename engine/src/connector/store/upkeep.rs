//! Upkeep: what has to be done in the end, but nobody waits for. One slice after each turn of the writer.
//!
//! * **Settling**: a full fresh table is copied to the settled one in the order of the key, slice by slice, while the
//!   other fresh table takes what arrives; at the end it is emptied at once, which is cheaper than deleting rows. Until
//!   then its publications stand in two places, and readers skip the second. A crash in between repeats
//!   the copying, which changes nothing.
//! * **Retention**: topics are looked at one after the other, oldest publication first, and what is older than the
//!   history goes. Freed pages are used again; the file stays at its largest and is never vacuumed, because that would
//!   move every page of it to save what the next days need again.
//! * **Checkpoints**: the write-ahead log goes into the database once it is large enough to be worth a sync.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::StoreMetrics;
use super::schema::{self, FRESH, signed, unsigned};

/// A fresh table is full at so many rows: enough for a thousand topics to fill whole pages each when it settles.
const FRESH_ROWS: u64 = 1 << 17;
/// Or at so many bytes of bodies.
const FRESH_BYTES: u64 = 40 << 20;
/// Rows moved or deleted in a turn, besides a quarter more than it took: upkeep never falls behind, and what waits on
/// the lanes meanwhile waits a few milliseconds.
const SLICE: usize = 256;
/// Topics looked at for retention in a turn: each costs six look-ups.
const SLICE_TOPICS: usize = 256;
/// Pages of the write-ahead log worth a checkpoint: 16 MiB, written back in some 40 ms. A longer log was no faster, and
/// acknowledgements waited longer for each checkpoint.
const LOG_PAGES: i64 = 4096;
/// Retention looks at all topics so often while a publication ages, within the limits below.
const SWEEPS_PER_AGE: u32 = 16;
const SHORTEST_SWEEP: Duration = Duration::from_secs(1);
const LONGEST_SWEEP: Duration = Duration::from_secs(60);
/// Rest after a failure, milliseconds.
const REST: u64 = 1000;

/// A publication's key: topic, whether it conflates, offset.
type Key = (i64, i64, i64);
/// Before all keys: topics count from 1.
const FIRST_KEY: Key = (0, 0, 0);

/// What is under way.
pub(super) struct Upkeep {
    /// Which fresh table is appended to, and what was appended to it.
    active: usize,
    rows: u64,
    bytes: u64,
    /// The other one is being copied: the last key that was.
    settling: Option<Key>,
    history_age: u64,
    sweep_every: u64,
    /// When the last sweep began, and the last topic it has looked at; `None` once it is through.
    swept: Option<u64>,
    sweeping: Option<i64>,
    resting_since: Option<u64>,
}

/// One slice.
#[derive(Clone, Copy)]
pub(super) enum Work {
    /// Put the write-ahead log into the database.
    Checkpoint,
    /// Copy so many rows after this key.
    Settle(Key, usize),
    /// Delete up to so many rows older than this, of topics after this one.
    Sweep { after: i64, rows: usize, cutoff: u64 },
}

impl Upkeep {
    pub(super) fn new(db: &Connection, history_age: Duration) -> rusqlite::Result<Self> {
        let mut held = [(0, 0); 2];
        for (table, held) in FRESH.iter().zip(&mut held) {
            let sql = format!("SELECT count(*), coalesce(sum(length(body)), 0) FROM {table}");
            *held = db.query_row(&sql, [], |row| Ok((unsigned(row, 0)?, unsigned(row, 1)?)))?;
        }
        // Both hold something if one was being copied. Which one does not matter: begin with the fuller.
        let both = held[0].0 > 0 && held[1].0 > 0;
        let active = usize::from(if both { held[0] > held[1] } else { held[1].0 > 0 });
        let sweep_every = (history_age / SWEEPS_PER_AGE).clamp(SHORTEST_SWEEP, LONGEST_SWEEP);
        Ok(Self {
            active,
            rows: held[active].0,
            bytes: held[active].1,
            settling: both.then_some(FIRST_KEY),
            history_age: history_age.as_millis() as u64,
            sweep_every: sweep_every.as_millis() as u64,
            swept: None,
            sweeping: None,
            resting_since: None,
        })
    }

    /// Which fresh table is appended to.
    pub(super) fn active(&self) -> usize {
        self.active
    }

    /// Counts what was appended.
    pub(super) fn wrote(&mut self, rows: u64, bytes: u64) {
        self.rows += rows;
        self.bytes += bytes;
    }

    /// Does nothing for a while.
    pub(super) fn rest(&mut self, now: u64) {
        self.resting_since = Some(now);
    }

    /// What is due at `now` (milliseconds since the epoch) after a turn of `batch` records. `full`: the disk is, so
    /// that only a checkpoint may help, which lets the write-ahead log begin again at its start.
    pub(super) fn due(
        &mut self,
        db: &Connection,
        now: u64,
        batch: usize,
        full: bool,
    ) -> rusqlite::Result<[Option<Work>; 3]> {
        if self.resting_since.is_some_and(|since| now.abs_diff(since) < REST) {
            return Ok([None; 3]);
        }
        self.resting_since = None;
        if self.settling.is_none() && (self.rows >= FRESH_ROWS || self.bytes >= FRESH_BYTES) {
            self.settling = Some(FIRST_KEY);
            self.active = 1 - self.active;
            (self.rows, self.bytes) = (0, 0);
        }
        if self.swept.is_none_or(|swept| now.abs_diff(swept) >= self.sweep_every) {
            self.swept = Some(now);
            self.sweeping = self.sweeping.or(Some(0));
        }
        let rows = SLICE + batch + batch / 4;
        let cutoff = now.saturating_sub(self.history_age);
        let log = pages_to_checkpoint(db)?;
        Ok([
            (log > if full { 0 } else { LOG_PAGES }).then_some(Work::Checkpoint),
            self.settling.filter(|_| !full).map(|key| Work::Settle(key, rows)),
            self.sweeping.map(|after| Work::Sweep { after, rows, cutoff }),
        ])
    }

    /// Does it. Returns how much that was. After an error the caller rolls back.
    pub(super) fn perform(
        &mut self,
        db: &Connection,
        work: Work,
        metrics: &StoreMetrics,
    ) -> rusqlite::Result<usize> {
        match work {
            Work::Checkpoint => {
                // Not waiting for a reader in the middle of its turn: what it still needs stays in the log.
                db.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")?.query_row([], |_| Ok(()))?;
                Ok(0)
            }
            Work::Settle(after, rows) => {
                let transaction = db.unchecked_transaction()?;
                let (count, last) = settle(&transaction, FRESH[1 - self.active], after, rows)?;
                transaction.commit()?;
                self.settling = last;
                metrics.settled.fetch_add(count as u64, Relaxed);
                Ok(count.max(1))
            }
            Work::Sweep { after, rows, cutoff } => {
                let transaction = db.unchecked_transaction()?;
                let swept = sweep(&transaction, after, rows, cutoff)?;
                transaction.commit()?;
                self.sweeping = swept.next;
                metrics.trimmed.fetch_add(swept.rows as u64, Relaxed);
                Ok(swept.rows + swept.topics)
            }
        }
    }
}

/// Pages in the write-ahead log that are not in the database yet; none of an in-memory one.
fn pages_to_checkpoint(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached("PRAGMA wal_checkpoint(NOOP)")?
        .query_row([], |row| Ok(row.get::<_, i64>(1)? - row.get::<_, i64>(2)?))
}

/// Copies up to `rows` rows after a key; returns how many, and the last one's key, or `None` once all are copied and
/// the table is empty.
fn settle(db: &Connection, table: &str, after: Key, rows: usize) -> rusqlite::Result<(usize, Option<Key>)> {
    let beyond =
        format!("FROM {table} INDEXED BY {table}_key WHERE (topic, conflates, offset) > (?1, ?2, ?3)");
    let last: Option<Key> = db
        .prepare_cached(&format!(
            "SELECT topic, conflates, offset {beyond} ORDER BY topic, conflates, offset LIMIT 1 OFFSET ?4"
        ))?
        .query_row(params![after.0, after.1, after.2, rows as i64 - 1], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    let upto = last.unwrap_or((i64::MAX, i64::MAX, i64::MAX));
    let copied = db
        .prepare_cached(&format!(
            "INSERT INTO settled SELECT topic, conflates, offset, id, kind, time, body {beyond}
             AND (topic, conflates, offset) <= (?4, ?5, ?6) ORDER BY topic, conflates, offset
             ON CONFLICT DO NOTHING"
        ))?
        .execute(params![after.0, after.1, after.2, upto.0, upto.1, upto.2])?;
    if last.is_none() {
        db.prepare_cached(&format!("DELETE FROM {table}"))?.execute([])?;
    }
    Ok((copied, last))
}

/// What a slice of a sweep did, and the topic after which the next one goes on.
struct Swept {
    topics: usize,
    rows: usize,
    next: Option<i64>,
}

fn sweep(db: &Connection, after: i64, rows: usize, cutoff: u64) -> rusqlite::Result<Swept> {
    let topics: Vec<i64> = db
        .prepare_cached("SELECT id FROM topic WHERE id > ?1 ORDER BY id LIMIT ?2")?
        .query_map(params![after, SLICE_TOPICS as i64], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut swept = Swept { topics: 0, rows: 0, next: Some(after) };
    for &topic in &topics {
        let left = rows.saturating_sub(swept.rows);
        let (deleted, more) = trim(db, topic, left, cutoff)?;
        swept.rows += deleted;
        if more {
            return Ok(swept);
        }
        swept.topics += 1;
        swept.next = Some(topic);
    }
    if topics.len() < SLICE_TOPICS {
        swept.next = None;
    }
    Ok(swept)
}

/// Deletes a topic's oldest publications, as long as they are older than `cutoff`, looking at up to `limit` rows:
/// always the ones with the lowest offsets, so that what is left has no gaps. Returns how many, and whether there may
/// be more.
fn trim(db: &Connection, topic: i64, limit: usize, cutoff: u64) -> rusqlite::Result<(usize, bool)> {
    let mut oldest = db.prepare_cached(&schema::OLDEST)?;
    let mut found = oldest.query(params![topic, limit as i64])?;
    let (mut looked_at, mut count, mut last) = (0, 0, (0, 0));
    while let Some(row) = found.next()? {
        let (offset, time) = (unsigned(row, 0)?, unsigned(row, 1)?);
        if time >= cutoff {
            break;
        }
        looked_at += 1;
        // One that is in two places counts once.
        count += usize::from(offset != last.0);
        last = (offset, time);
    }
    drop(found);
    if count == 0 {
        return Ok((0, limit == 0));
    }
    let upto = signed(last.0);
    for sql in schema::TRIM.iter() {
        db.prepare_cached(sql)?.execute(params![topic, upto])?;
    }
    db.prepare_cached("UPDATE topic SET trimmed = ?2, trimmed_time = ?3 WHERE id = ?1")?.execute(params![
        topic,
        upto,
        signed(last.1)
    ])?;
    // Behind `trimmed` neither says anything any more.
    db.prepare_cached("DELETE FROM hole WHERE topic = ?1 AND last <= ?2")?.execute(params![topic, upto])?;
    db.prepare_cached("DELETE FROM step WHERE topic = ?1 AND offset <= ?2")?.execute(params![topic, upto])?;
    Ok((count, looked_at == limit))
}
