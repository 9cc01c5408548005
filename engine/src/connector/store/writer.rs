//! The writer: takes what is on the shards' lanes, commits it at once, then answers.
//!
//! Group commit needs no timer: while one batch is being synced the next gathers on the lanes. Nothing is answered
//! before its transaction is on the disk (or where the durability says). What a failure means:
//!
//! | SQLite says | answered | then |
//! |---|---|---|
//! | full | `Unstored { Full }`; ceilings are tried again without the publications | the next batch is tried |
//! | busy, locked, out of memory | `Unstored { Store }` | the next batch is tried |
//! | anything else, a failed sync above all | `Unstored { Store }` | read-only until the restart: after a failed sync the kernel has dropped what it could not write, and a second one that succeeds proves nothing |
//!
//! `Open`, `Reserve` and `ReserveIds` have no answer for failures: they are answered by the ceiling as it is. Whoever
//! gets no more than he had has got nothing.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Relaxed},
};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ErrorCode, OptionalExtension, ffi, params};

use super::ledger::{self, Ledger, Place, Standing};
use super::schema::{self, FRESH, signed};
use super::upkeep::Upkeep;
use super::{Durability, Options, StoreMetrics};
use crate::mail::{Failure, Item, Mail};
use crate::mesh::{Inbox, Port};

/// Records taken off one lane for one transaction: bounds how long a commit takes, and what its answers need.
const BATCH: usize = 8192;
/// Longest sleep of an idle writer, so that retention goes on and a stop is seen.
const IDLE: Duration = Duration::from_millis(100);
/// Sleep while a shard's lane is too full for its answers.
const CONGESTED: Duration = Duration::from_millis(1);

/// The writing half of the store.
pub struct Writer {
    pub(super) db: Connection,
    ledger: Ledger,
    pub(super) upkeep: Upkeep,
    durability: Durability,
    max_record: usize,
    /// Appends of each shard since the start.
    appends: Vec<u64>,
    state: State,
    synced: bool,
    inbox: Inbox,
    scratch: Vec<u8>,
    metrics: Arc<StoreMetrics>,
    _lock: Option<Arc<File>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Good,
    /// The last write found no room.
    Full,
    /// Read-only until the restart.
    Broken,
}

/// What an SQLite error means for what comes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// No room.
    Full,
    /// Not now.
    Passing,
    /// Never again.
    Broken,
}

impl Trouble {
    pub(super) fn of(error: &rusqlite::Error) -> Self {
        if error.sqlite_extended_error_code() == Some(ffi::SQLITE_IOERR_SHMSIZE) {
            // The index of the write-ahead log finds no room.
            return Self::Full;
        }
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::OutOfMemory) => {
                Self::Passing
            }
            _ => Self::Broken,
        }
    }
}

impl Writer {
    pub(super) fn new(
        db: Connection,
        run: i64,
        options: &Options,
        metrics: Arc<StoreMetrics>,
        lock: Option<Arc<File>>,
    ) -> rusqlite::Result<Self> {
        let upkeep = Upkeep::new(&db, options.history_age)?;
        Ok(Self {
            db,
            ledger: Ledger::new(run, options.offset_step),
            upkeep,
            durability: options.durability,
            max_record: options.max_record,
            appends: vec![0; options.shards],
            state: State::Good,
            synced: true,
            inbox: Inbox::default(),
            scratch: Vec::new(),
            metrics,
            _lock: lock,
        })
    }

    /// The store's counters.
    pub fn metrics(&self) -> Arc<StoreMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Takes what is on the lanes, commits and answers it, then does a slice of upkeep. `now` is the wall clock,
    /// milliseconds since the epoch. Never sleeps. Returns how much it did: records and rows; at 0 there is nothing to
    /// do before more mail or a later `now`.
    pub fn turn(&mut self, port: &mut Port, now: u64) -> usize {
        self.step(port, now, false)
    }

    /// The writer's thread: turns until `stop`, then stores what is still on the lanes, empties the write-ahead log
    /// into the database, and closes it. `stop` is set, with `Release`, once the shards have ended.
    pub fn run(mut self, mut port: Port, stop: Arc<AtomicBool>) {
        while !stop.load(Acquire) {
            if self.turn(&mut port, wall_clock()) > 0 {
                continue;
            }
            if port.waiting() > 0 {
                thread::sleep(CONGESTED);
            } else {
                port.wait(Some(IDLE));
            }
        }
        while self.step(&mut port, wall_clock(), true) > 0 {}
        self.finish();
    }

    /// `draining`: nobody takes answers any more, so those that wait don't hold up what is on the lanes.
    fn step(&mut self, port: &mut Port, now: u64, draining: bool) -> usize {
        let mut inbox = std::mem::take(&mut self.inbox);
        inbox.clear();
        for shard in 0..self.appends.len() {
            // A shard that does not take its answers gets no more of them: they would pile up.
            if draining || !port.is_congested(shard) {
                port.receive(shard, BATCH, &mut inbox);
            }
        }
        let mut done = 0;
        if !inbox.is_empty() {
            let mails = self.decode(&inbox);
            self.store(&mails, port);
            done += inbox.records().count();
        }
        self.inbox = inbox;
        if self.state != State::Broken && !draining {
            done += self.keep_up(now, done);
        }
        port.flush();
        done
    }

    fn decode<'a>(&self, inbox: &'a Inbox) -> Vec<(usize, Mail<'a>)> {
        let mut mails = Vec::with_capacity(inbox.records().count());
        for (from, record) in inbox.records() {
            match Mail::decode(record) {
                Some(mail) if is_for_the_writer(&mail) => mails.push((from, mail)),
                _ => _ = self.metrics.malformed.fetch_add(1, Relaxed),
            }
        }
        mails
    }

    fn store(&mut self, mails: &[(usize, Mail<'_>)], port: &mut Port) {
        if self.state == State::Broken {
            self.answer_as_it_is(mails, port);
            return self.acknowledge(mails, Some(Failure::Store), port);
        }
        let error = match self.commit(mails, true) {
            Ok((answers, wrote)) => {
                if self.state == State::Full && wrote.rows > 0 {
                    tracing::info!("the store's disk has room again");
                    self.state = State::Good;
                }
                self.answer(answers, port);
                return self.acknowledge(mails, None, port);
            }
            Err(error) => error,
        };
        let failure = self.fail("commit", &error);
        // Ceilings need next to no room, and without them memory topics would stop as well.
        let ceilings = (failure == Failure::Full).then(|| self.commit(mails, false));
        match ceilings {
            Some(Ok((answers, _))) => self.answer(answers, port),
            Some(Err(error)) => {
                self.fail("commit of ceilings", &error);
                self.answer_as_it_is(mails, port);
            }
            None => self.answer_as_it_is(mails, port),
        }
        self.acknowledge(mails, Some(failure), port);
    }

    /// One transaction; the answers to send once it is durable. Rolled back whole on an error.
    fn commit<'a>(
        &mut self,
        mails: &[(usize, Mail<'a>)],
        publications: bool,
    ) -> rusqlite::Result<(Answers<'a>, Wrote)> {
        let raises = |(_, mail): &(usize, Mail<'_>)| {
            matches!(mail, Mail::Open { create: true, .. } | Mail::Reserve { .. } | Mail::ReserveIds { .. })
        };
        self.sync_commits(self.durability == Durability::Fsync || mails.iter().any(raises))?;
        let written = self.write(mails, publications);
        if written.is_err() {
            self.roll_back();
        }
        let (answers, wrote) = written?;
        self.upkeep.wrote(wrote.rows, wrote.bytes);
        self.metrics.rows.fetch_add(wrote.rows, Relaxed);
        self.metrics.bytes.fetch_add(wrote.bytes, Relaxed);
        self.metrics.duplicates.fetch_add(wrote.duplicates, Relaxed);
        Ok((answers, wrote))
    }

    fn write<'a>(
        &mut self,
        mails: &[(usize, Mail<'a>)],
        publications: bool,
    ) -> rusqlite::Result<(Answers<'a>, Wrote)> {
        let (db, ledger) = (&self.db, &mut self.ledger);
        let (mut answers, mut wrote) = (Vec::new(), Wrote::default());
        db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let mut insert = db.prepare_cached(INSERT[self.upkeep.active()])?;
        for &(from, mail) in mails {
            match mail {
                Mail::Append { topic, item } if publications => {
                    match ledger.place(db, topic, item.offset, item.time)? {
                        Place::New(id) => {
                            insert.execute(params![
                                id,
                                item.kind.conflates(),
                                signed(item.offset),
                                signed(item.id),
                                item.kind as u8,
                                signed(item.time),
                                item.body,
                            ])?;
                            wrote.rows += 1;
                            wrote.bytes += item.body.len() as u64;
                        }
                        Place::Stored => wrote.duplicates += 1,
                    }
                }
                Mail::Open { topic, create } => {
                    answers.push((from, opened(topic, ledger.open(db, topic, create)?)));
                }
                Mail::Reserve { topic, ceiling } => {
                    let ceiling = ledger.reserve(db, topic, ceiling)?;
                    answers.push((from, Mail::Reserved { topic, ceiling }));
                }
                Mail::ReserveIds { partition, ceiling } => {
                    let ceiling = ledger::raise_ids(db, partition, ceiling)?;
                    answers.push((from, Mail::ReservedIds { partition, ceiling }));
                }
                Mail::Close { topic, head } => ledger.close(db, topic, head)?,
                _ => {}
            }
        }
        drop(insert);
        let start = Instant::now();
        db.prepare_cached("COMMIT")?.execute([])?;
        let took = start.elapsed().as_nanos() as u64;
        self.metrics.commits.fetch_add(1, Relaxed);
        self.metrics.commit_nanos.fetch_add(took, Relaxed);
        self.metrics.last_commit_nanos.store(took, Relaxed);
        Ok((answers, wrote))
    }

    fn answer(&mut self, answers: Answers<'_>, port: &mut Port) {
        for (to, mail) in answers {
            let Mail::Opened { topic, head, ceiling, stored, latest: None } = mail else {
                self.post(to, mail, port);
                continue;
            };
            let (db, ledger, scratch) = (&self.db, &mut self.ledger, &mut self.scratch);
            let found = with_latest(db, ledger, topic, |latest| {
                Mail::Opened { topic, head, ceiling, stored, latest: Some(latest) }.encode(scratch);
            });
            match found {
                Ok(true) if self.scratch.len() <= self.max_record => port.send(to, &self.scratch),
                Ok(found) => {
                    self.metrics.oversized.fetch_add(u64::from(found), Relaxed);
                    self.post(to, mail, port);
                }
                Err(error) => {
                    self.metrics.read_failures.fetch_add(1, Relaxed);
                    tracing::error!(%error, topic, "the newest publication can't be read");
                    self.post(to, mail, port);
                }
            }
        }
    }

    /// Answers what asks for ceilings by what they are.
    fn answer_as_it_is(&mut self, mails: &[(usize, Mail<'_>)], port: &mut Port) {
        let mut answers = Vec::new();
        for &(from, mail) in mails {
            answers.push((
                from,
                match mail {
                    Mail::Open { topic, .. } => opened(topic, self.look(topic)),
                    Mail::Reserve { topic, .. } => {
                        Mail::Reserved { topic, ceiling: self.look(topic).ceiling }
                    }
                    Mail::ReserveIds { partition, .. } => {
                        let ceiling = ledger::ids_ceiling(&self.db, partition);
                        let ceiling = ceiling.unwrap_or_else(|error| self.unreadable(&error));
                        Mail::ReservedIds { partition, ceiling }
                    }
                    _ => continue,
                },
            ));
        }
        self.answer(answers, port);
    }

    fn look(&mut self, topic: &str) -> Standing {
        let standing = self.ledger.look(&self.db, topic);
        standing.unwrap_or_else(|error| self.unreadable(&error))
    }

    /// What can't even be read is answered by zeros. No run may ever be granted more after that, since it would take
    /// them for what the topic has: so this is the end of writing, whatever the error.
    fn unreadable<T: Default>(&mut self, error: &rusqlite::Error) -> T {
        self.state = State::Broken;
        self.metrics.read_only.store(1, Relaxed);
        tracing::error!(%error, "THE STORE CAN'T BE READ: no offsets or ids until the restart");
        T::default()
    }

    /// One `Stored` or `Unstored` to every shard that appended something.
    fn acknowledge(&mut self, mails: &[(usize, Mail<'_>)], failure: Option<Failure>, port: &mut Port) {
        let mut appended = vec![false; self.appends.len()];
        for (from, mail) in mails {
            if matches!(mail, Mail::Append { .. }) {
                self.appends[*from] += 1;
                appended[*from] = true;
            }
        }
        for shard in (0..appended.len()).filter(|shard| appended[*shard]) {
            let count = self.appends[shard];
            let mail = match failure {
                None => Mail::Stored { count },
                Some(failure) => Mail::Unstored { count, failure },
            };
            self.post(shard, mail, port);
        }
    }

    fn post(&mut self, to: usize, mail: Mail<'_>, port: &mut Port) {
        mail.encode(&mut self.scratch);
        if self.scratch.len() <= self.max_record {
            port.send(to, &self.scratch);
        } else {
            self.metrics.oversized.fetch_add(1, Relaxed);
        }
    }

    /// Upkeep after a turn of `batch` records: a slice of each kind that is due.
    fn keep_up(&mut self, now: u64, batch: usize) -> usize {
        let mut done = 0;
        let kept = self.upkeep.due(&self.db, now, batch, self.state == State::Full);
        let kept = kept.and_then(|due| {
            for work in due.into_iter().flatten() {
                // Upkeep only copies and removes: a power cut that undoes it loses nothing. Checkpoints sync anyway.
                self.sync_commits(false)?;
                done += self.upkeep.perform(&self.db, work, &self.metrics)?;
            }
            Ok(())
        });
        if let Err(error) = kept {
            self.upkeep.rest(now);
            self.roll_back();
            if Trouble::of(&error) == Trouble::Broken {
                self.fail("upkeep", &error);
            } else {
                self.metrics.failures.fetch_add(1, Relaxed);
                tracing::warn!(%error, "the store's upkeep waits");
            }
        }
        done
    }

    /// Sets whether commits sync the write-ahead log. SQLite refuses inside a transaction; outside it holds from the
    /// next commit on, which then syncs the earlier ones too, as they are in the same file.
    fn sync_commits(&mut self, synced: bool) -> rusqlite::Result<()> {
        if self.synced != synced {
            let level = if synced { "FULL" } else { "NORMAL" };
            self.db.pragma_update(None, "synchronous", level)?;
            self.synced = synced;
        }
        Ok(())
    }

    fn roll_back(&mut self) {
        self.ledger.forget();
        // SQLite rolls back by itself after some errors.
        if !self.db.is_autocommit()
            && let Err(error) = self.db.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "the store can't roll back");
        }
    }

    /// Takes note of a failure: what to tell the shards.
    fn fail(&mut self, what: &'static str, error: &rusqlite::Error) -> Failure {
        self.metrics.failures.fetch_add(1, Relaxed);
        match Trouble::of(error) {
            Trouble::Full => {
                if self.state == State::Good {
                    tracing::error!(%error, what, "the store's disk is full: nothing is acknowledged until there is room");
                    self.state = State::Full;
                }
                Failure::Full
            }
            Trouble::Passing => {
                tracing::error!(%error, what, "the store failed for now");
                Failure::Store
            }
            Trouble::Broken => {
                tracing::error!(%error, what, "THE STORE IS READ-ONLY until the restart: nothing more is acknowledged");
                self.state = State::Broken;
                self.metrics.read_only.store(1, Relaxed);
                Failure::Store
            }
        }
    }

    /// The end of a run: everything into the database file.
    fn finish(self) {
        if self.state != State::Broken
            && let Err(error) = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        {
            tracing::error!(%error, "the store's last checkpoint failed; its log is read at the next start");
        }
        if let Err((_, error)) = self.db.close() {
            tracing::error!(%error, "the store can't be closed");
        }
    }
}

/// Records to send once their transaction is durable, and to whom.
type Answers<'a> = Vec<(usize, Mail<'a>)>;

/// What a transaction wrote.
#[derive(Default)]
struct Wrote {
    rows: u64,
    bytes: u64,
    duplicates: u64,
}

const INSERT: [&str; FRESH.len()] = [
    "INSERT INTO fresh0 (topic, conflates, offset, id, kind, time, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    "INSERT INTO fresh1 (topic, conflates, offset, id, kind, time, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
];

fn is_for_the_writer(mail: &Mail<'_>) -> bool {
    matches!(
        mail,
        Mail::Append { .. }
            | Mail::Open { .. }
            | Mail::Reserve { .. }
            | Mail::ReserveIds { .. }
            | Mail::Close { .. }
    )
}

fn opened<'a>(topic: &'a str, standing: Standing) -> Mail<'a> {
    let Standing { head, ceiling, stored } = standing;
    Mail::Opened { topic, head, ceiling, stored, latest: None }
}

/// Hands over the topic's newest telemetry; false if there is none.
fn with_latest(
    db: &Connection,
    ledger: &mut Ledger,
    topic: &str,
    take: impl FnOnce(Item<'_>),
) -> rusqlite::Result<bool> {
    let Some(id) = ledger.id(db, topic)? else { return Ok(false) };
    let taken = db
        .prepare_cached(&schema::LATEST)?
        .query_row([id], |row| {
            take(schema::item(row)?);
            Ok(())
        })
        .optional()?;
    Ok(taken.is_some())
}

fn wall_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
