//! The embedded store: SQLite on two threads of its own, which meet the shards on the mesh only.
//!
//! The path of a publication: a shard's [`Mail::Append`](crate::mail::Mail) → `writer` (one transaction for
//! everything that waits on the lanes: group commit) → a *fresh* table in order of arrival → `upkeep` moves a full
//! fresh table, sorted by topic, to the *settled* one, and deletes what is older than the history → `reader`
//! answers from all of them.
//!
//! | file | holds |
//! |---|---|
//! | `schema` | the tables, how a connection is set up, the statements that look in every place |
//! | `ledger` | which offsets and ids may be used, which were lost, over runs and crashes |
//! | `writer` | lanes → transaction → answers; what a failure means |
//! | `upkeep` | settling, retention, checkpoints: whatever nobody waits for |
//! | `reader` | questions, one at a time, sliced so that no turn is long; answers through lanes that may be full |
//! | `question` | what one question reads and what its answer says |
//! | `outbox` | the records of a slice, until the lane has taken them |
//!
//! Why two places: telemetry comes in by time and is read by topic. Written straight into a tree ordered by topic,
//! a commit of 2,000 rows over 1,000 topics touches 1,000 pages; in order of arrival it touches 150, and settling
//! 131,072 rows at once fills whole pages. Measured with bodies of 250 bytes, synced, 2,000 rows a commit: 39,000
//! against 158,000 rows/s over 1,000 topics; with 8,000 rows a commit over 10,000 topics 38,000 against 130,000.

use std::fmt;
use std::fs::{DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

mod ledger;
mod outbox;
mod question;
mod reader;
mod schema;
mod upkeep;
mod writer;

pub use reader::Reader;
pub use writer::Writer;

/// Partitions that topics hash to; each counts its publications' ids by itself.
pub const PARTITIONS: usize = 256;

/// Name of the database in its directory.
const DATABASE: &str = "wellhead.db";
/// Name of the file whose lock says that a process has the store open.
const LOCK: &str = "wellhead.lock";

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A directory, made with mode 0700 if it is missing.
    Directory(PathBuf),
    /// In memory, under a name that all of the process shares. It lives as long as a [`Writer`] or [`Reader`] of it,
    /// is not locked against a second open, and is for threads that take turns: the simulation.
    Memory(String),
}

/// When a publication counts as durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// On the disk: survives a power cut.
    Fsync,
    /// In the operating system's hands: survives the end of the process.
    Os,
    /// In memory: its owner acknowledges it without asking; stored as with [`Durability::Os`].
    Memory,
}

/// How a store behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// When [`Mail::Stored`](crate::mail::Mail) is sent. Ceilings are synced whatever it is.
    pub durability: Durability,
    /// Publications older than this are deleted.
    pub history_age: Duration,
    /// Nodes `0..shards` of the mesh are the shards: whom to listen to and to answer.
    pub shards: usize,
    /// Largest record a lane takes, bytes: [`Mesh::max_record`](crate::mesh::Mesh::max_record).
    pub max_record: usize,
    /// Offsets reserved beyond a topic's last when it is opened to be published to.
    pub offset_step: u64,
    /// Ids reserved in every partition at a start.
    pub id_step: u64,
}

impl Options {
    /// Seven days of history, synced; 4,096 offsets and 65,536 ids at a time: a reservation is one commit in thousands,
    /// and a start a day for a century skips less than a ten-thousandth of all ids below 2^53.
    pub fn new(shards: usize, max_record: usize) -> Self {
        Self {
            durability: Durability::Fsync,
            history_age: Duration::from_secs(7 * 24 * 3600),
            shards,
            max_record,
            offset_step: 4096,
            id_step: 65_536,
        }
    }
}

/// What a start begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// By partition: the first counter that no run has been allowed to use.
    pub id_next: [u64; PARTITIONS],
    /// By partition: the last counter that may be used, until more is reserved. Synced.
    pub id_ceilings: [u64; PARTITIONS],
}

/// What the store counts. Written by its two threads, read by anybody.
#[derive(Debug, Default)]
pub struct StoreMetrics {
    /// Publications written.
    pub rows: AtomicU64,
    /// Appends of a publication that was there already.
    pub duplicates: AtomicU64,
    /// Bytes of bodies written.
    pub bytes: AtomicU64,
    /// Transactions committed for the shards.
    pub commits: AtomicU64,
    /// Nanoseconds spent in those commits, syncing included.
    pub commit_nanos: AtomicU64,
    /// Nanoseconds the last of them took.
    pub last_commit_nanos: AtomicU64,
    /// Writes that failed, and were rolled back.
    pub failures: AtomicU64,
    /// 1 once the store has gone read-only, until the restart.
    pub read_only: AtomicU64,
    /// Publications moved to their final place.
    pub settled: AtomicU64,
    /// Publications deleted because of their age.
    pub trimmed: AtomicU64,
    /// Questions answered by the reader.
    pub questions: AtomicU64,
    /// Questions whose reading failed.
    pub read_failures: AtomicU64,
    /// Questions given up because whoever asked took no more.
    pub abandoned: AtomicU64,
    /// Publications left out of an answer because no lane takes them.
    pub oversized: AtomicU64,
    /// Records that were none, or not for the store.
    pub malformed: AtomicU64,
}

/// Why a store can't be opened.
#[derive(Debug)]
pub enum StoreError {
    /// A file or directory.
    Io(PathBuf, std::io::Error),
    /// Another process, or this one, has it open.
    Locked(PathBuf),
    /// A newer version of wellhead wrote it.
    Newer {
        /// Its version.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// The SQLite linked in has known faults.
    OldSqlite(&'static str),
    /// The file system does not let SQLite keep a write-ahead log.
    NoWal(PathBuf),
    /// SQLite.
    Sqlite(rusqlite::Error),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, error) => write!(f, "store: {}: {error}", path.display()),
            Self::Locked(path) => {
                write!(f, "store: {} is open in another process; one store, one process", path.display())
            }
            Self::Newer { found, known } => {
                write!(f, "store: written by a newer wellhead (schema {found}, this one knows {known})")
            }
            Self::OldSqlite(version) => {
                write!(f, "store: SQLite {version} is linked in; {} is the least", schema::LEAST_SQLITE)
            }
            Self::NoWal(path) => {
                write!(f, "store: no write-ahead log at {}; use a local file system", path.display())
            }
            Self::Sqlite(error) => write!(f, "store: {error}"),
        }
    }
}

impl std::error::Error for StoreError {}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// The store, before its two halves go to their threads.
pub struct Store;

impl Store {
    /// Opens or makes the store, begins a run, and reserves ids for it (synced).
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(location: &Location, options: &Options) -> Result<(Writer, Reader, Start), StoreError> {
        schema::check_sqlite()?;
        let lock = match location {
            Location::Directory(directory) => Some(Arc::new(claim(directory)?)),
            Location::Memory(_) => None,
        };
        let db = schema::open_writer(location)?;
        let (run, start) = ledger::begin_run(&db, options.id_step)?;
        if let Location::Directory(directory) = location {
            sync_directory(directory)?;
        }
        let reader_db = schema::open_reader(location)?;
        let metrics = Arc::new(StoreMetrics::default());
        let writer = Writer::new(db, run, options, Arc::clone(&metrics), lock.clone())?;
        let reader = Reader::new(reader_db, options, metrics, lock);
        Ok((writer, reader, start))
    }
}

/// Makes the directory if need be, and takes its lock for as long as the file stays open.
fn claim(directory: &Path) -> Result<File, StoreError> {
    let missing: Vec<&Path> = directory.ancestors().take_while(|path| !path.is_dir()).collect();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|error| StoreError::Io(directory.into(), error))?;
    for parent in missing.iter().filter_map(|path| path.parent()) {
        let here = parent.as_os_str().is_empty();
        sync_directory(if here { Path::new(".") } else { parent })?;
    }
    let path = directory.join(LOCK);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| StoreError::Io(path.clone(), error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(directory.into())),
        Err(TryLockError::Error(error)) => Err(StoreError::Io(path, error)),
    }
}

/// Syncs a directory's entries: a new file is there after a power cut only if its name is.
fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    let synced = File::open(directory).and_then(|file| file.sync_all());
    synced.map_err(|error| StoreError::Io(directory.into(), error))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::thread;

    use proptest::prelude::*;
    use protocol::message::{GapReason, Kind};
    use tempfile::TempDir;

    use super::*;
    use crate::mail::{Failure, Gap, Item, Mail, ReadEnd};
    use crate::mesh::{Inbox, Mesh, Port};

    const STEP: u64 = 100;
    const ID_STEP: u64 = 10;
    const T: &str = "wells/a";

    /// A store between two shards, node 2 the writer, node 3 the reader, on one thread and a clock of its own.
    struct Rig {
        location: Location,
        options: Options,
        writer: Writer,
        reader: Reader,
        start: Start,
        shards: [Port; 2],
        writer_port: Port,
        reader_port: Port,
        now: u64,
    }

    impl Rig {
        fn open(location: &Location, lane: usize, change: impl Fn(&mut Options)) -> Self {
            let mesh = Mesh::new(4, lane, false).unwrap();
            let mut options = Options::new(2, mesh.max_record());
            (options.offset_step, options.id_step) = (STEP, ID_STEP);
            options.durability = Durability::Os;
            change(&mut options);
            let (writer, reader, start) = Store::open(location, &options).unwrap();
            Self {
                location: location.clone(),
                options,
                writer,
                reader,
                start,
                shards: [mesh.port(0), mesh.port(1)],
                writer_port: mesh.port(2),
                reader_port: mesh.port(3),
                now: 1_000_000,
            }
        }

        fn new(directory: &TempDir) -> Self {
            Self::open(&Location::Directory(directory.path().into()), 1 << 20, |_| ())
        }

        /// Ends as by `kill -9`, as far as one process can: nothing is closed or taken off the lanes any more.
        fn crash(self) -> Self {
            let Self { location, options, now, writer, reader, .. } = self;
            drop((writer, reader));
            Self { now, ..Self::open(&location, 1 << 20, |new| *new = options.clone()) }
        }

        fn write(&mut self, mail: Mail<'_>) {
            self.write_from(0, mail);
        }

        fn write_from(&mut self, shard: usize, mail: Mail<'_>) {
            let mut bytes = Vec::new();
            mail.encode(&mut bytes);
            self.shards[shard].send(2, &bytes);
        }

        fn append(&mut self, offsets: impl IntoIterator<Item = u64>) {
            for offset in offsets {
                let item = item(offset, Kind::Telemetry, self.now);
                self.write(Mail::Append { topic: T, item });
            }
        }

        /// Turns the store until it rests.
        fn turn(&mut self) {
            loop {
                self.shards.iter_mut().for_each(Port::flush);
                let done = self.writer.turn(&mut self.writer_port, self.now)
                    + self.reader.turn(&mut self.reader_port);
                if done == 0 {
                    return;
                }
            }
        }

        /// Turns, and takes what has come for a shard.
        fn answers(&mut self, shard: usize) -> Vec<Vec<u8>> {
            self.turn();
            let mut inbox = Inbox::default();
            for node in [2, 3] {
                self.shards[shard].receive(node, usize::MAX, &mut inbox);
            }
            inbox.records().map(|(_, record)| record.to_vec()).collect()
        }

        /// Turns, and takes what comes, until nothing does.
        fn quiet(&mut self) {
            while !self.answers(0).is_empty() {}
        }

        /// The one answer to a record.
        fn ask<T>(&mut self, mail: Mail<'_>, see: impl FnOnce(Mail<'_>) -> T) -> T {
            self.write(mail);
            let answers = self.answers(0);
            assert_eq!(answers.len(), 1, "{mail:?}");
            see(Mail::decode(&answers[0]).unwrap())
        }

        /// `(head, ceiling, stored)` of an opened topic.
        fn stand(&mut self, create: bool) -> (u64, u64, u64) {
            self.ask(Mail::Open { topic: T, create }, |answer| match answer {
                Mail::Opened { topic: T, head, ceiling, stored, .. } => (head, ceiling, stored),
                other => panic!("{other:?}"),
            })
        }

        /// Appends, and expects them stored.
        fn store(&mut self, offsets: impl IntoIterator<Item = u64>) {
            self.append(offsets);
            let answers = self.answers(0);
            assert!(matches!(decode(&answers)[..], [Mail::Stored { .. }]), "{answers:?}");
        }

        /// What the reader sends to shard 0, while the writer stands still.
        fn question(&mut self, mail: Mail<'_>) -> Vec<Vec<u8>> {
            let (mut bytes, mut inbox) = (Vec::new(), Inbox::default());
            mail.encode(&mut bytes);
            self.shards[0].send(3, &bytes);
            while self.reader.turn(&mut self.reader_port) > 0 {
                self.shards[0].receive(3, usize::MAX, &mut inbox);
            }
            inbox.records().map(|(_, record)| record.to_vec()).collect()
        }

        /// Offsets, `upto` and the gap of a range of `T`.
        fn range(&mut self, after: u64, before: u64) -> (Vec<u64>, u64, Option<Gap>) {
            self.range_of(range(after, before, u32::MAX, false))
        }

        fn range_of(&mut self, question: Mail<'_>) -> (Vec<u64>, u64, Option<Gap>) {
            let answers = self.question(question);
            let (end, items) = answers.split_last().unwrap();
            let Some(Mail::ReplayEnd { tag: 7, upto, live: false, gap }) = Mail::decode(end) else {
                panic!("{:?}", Mail::decode(end));
            };
            (replayed(items), upto, gap)
        }

        fn history(&mut self, from: u64, to: u64, limit: u32) -> Vec<u64> {
            let answers = self.question(Mail::ReadHistory { tag: 7, topic: T, from, to, limit });
            let (end, items) = answers.split_last().unwrap();
            assert_eq!(Mail::decode(end), Some(Mail::ReadDone { tag: 7, end: ReadEnd::Done }));
            replayed(items)
        }

        /// Moves what is in the fresh table to the settled one.
        fn settle(&mut self) {
            self.writer.upkeep.wrote(1 << 40, 0);
            self.turn();
        }

        fn count(&self, table: &str) -> i64 {
            let sql = format!("SELECT count(*) FROM {table}");
            self.writer.db.query_row(&sql, [], |row| row.get(0)).unwrap()
        }
    }

    fn range(after: u64, before: u64, max_bytes: u32, conflate: bool) -> Mail<'static> {
        Mail::ReadRange { node: 0, tag: 7, topic: T, after, before, max_bytes, conflate }
    }

    fn item(offset: u64, kind: Kind, time: u64) -> Item<'static> {
        Item { offset, id: offset << 8, kind, time, body: b"{\"v\":12345}" }
    }

    fn decode(records: &[Vec<u8>]) -> Vec<Mail<'_>> {
        records.iter().map(|record| Mail::decode(record).unwrap()).collect()
    }

    fn replayed(records: &[Vec<u8>]) -> Vec<u64> {
        let offset = |mail| match mail {
            Mail::Replayed { tag: 7, item } => item.offset,
            other => panic!("{other:?}"),
        };
        decode(records).into_iter().map(offset).collect()
    }

    fn crashed(from: u64, to: u64) -> Option<Gap> {
        Some(Gap { from, to, reason: GapReason::Crash })
    }

    #[test]
    fn what_is_appended_is_acknowledged_and_read_back_whole() {
        let directory = tempfile::tempdir().unwrap();
        let memory = Location::Memory("read back".into());
        for location in [Location::Directory(directory.path().join("deep/er")), memory] {
            for durability in [Durability::Fsync, Durability::Os, Durability::Memory] {
                let mut rig = Rig::open(&location, 1 << 20, |new| new.durability = durability);
                let topic = &format!("wells/{durability:?}");
                let unknown = Mail::Opened { topic, head: 0, ceiling: STEP, stored: 0, latest: None };
                rig.ask(Mail::Open { topic, create: true }, |answer| assert_eq!(answer, unknown));
                let items = [
                    Item { offset: 1, id: (1 << 53) - 1, kind: Kind::Telemetry, time: 5, body: b"{\"a\":1}" },
                    Item {
                        offset: 2,
                        id: 9,
                        kind: Kind::Alert,
                        time: 5,
                        body: "{\"ä\":\"\\u0000\"}".as_bytes(),
                    },
                    Item {
                        offset: 4,
                        id: 7,
                        kind: Kind::Diagnostic,
                        time: u64::from(u32::MAX) << 8,
                        body: b"",
                    },
                ];
                rig.now = 5;
                for item in items {
                    rig.write(Mail::Append { topic, item });
                }
                assert_eq!(decode(&rig.answers(0)), [Mail::Stored { count: 3 }]);
                let question = Mail::ReadRange {
                    node: 1,
                    tag: 3,
                    topic,
                    after: 0,
                    before: 9,
                    max_bytes: 99,
                    conflate: false,
                };
                assert_eq!(rig.question(question), Vec::<Vec<u8>>::new(), "node 1 is answered");
                let mut expected: Vec<Mail<'_>> =
                    items.iter().map(|&item| Mail::Replayed { tag: 3, item }).collect();
                expected.push(Mail::ReplayEnd { tag: 3, upto: 8, live: false, gap: None });
                assert_eq!(decode(&rig.answers(1)), expected);
                let latest = Some(items[0]);
                rig.write(Mail::Close { topic, head: 4 });
                let known = Mail::Opened { topic, head: 4, ceiling: 4, stored: 4, latest };
                rig.ask(Mail::Open { topic, create: false }, |answer| assert_eq!(answer, known));
            }
        }
    }

    #[test]
    fn one_commit_answers_each_shard_once_with_its_own_count() {
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Rig::new(&directory);
        for (first, second) in [(3, 1), (0, 2), (5, 0)] {
            let before = rig.writer.metrics().commits.load(Relaxed);
            for (shard, count) in [(0, first), (1, second)] {
                for _ in 0..count {
                    let offset = rig.now;
                    rig.now += 1;
                    let item = item(offset, Kind::Telemetry, 0);
                    rig.write_from(shard, Mail::Append { topic: T, item });
                }
            }
            rig.turn();
            assert_eq!(rig.writer.metrics().commits.load(Relaxed), before + 1);
            let expected = match first {
                3 => [Some(3), Some(1)],
                0 => [None, Some(3)],
                _ => [Some(8), None],
            };
            for (shard, count) in expected.into_iter().enumerate() {
                let expected: Vec<_> = count.map(|count| Mail::Stored { count }).into_iter().collect();
                assert_eq!(decode(&rig.answers(shard)), expected);
            }
        }
        assert_eq!(rig.writer.metrics().rows.load(Relaxed), 11);
    }

    /// What an owner does to a topic.
    enum Do {
        Open,
        Look,
        Append(u64, u64),
        Reserve(u64),
        Close(u64),
        Crash,
    }
    use Do::*;

    /// `(head, ceiling, stored)`.
    type Stand = (u64, u64, u64);

    /// What was done, and how the topic stands when it is opened next, without and with `create`.
    const STANDS: &[(&str, &[Do], Stand, Stand)] = &[
        ("unknown", &[], (0, 0, 0), (0, 100, 0)),
        ("looked at", &[Look, Crash], (0, 0, 0), (0, 100, 0)),
        ("unused, crash", &[Open, Crash], (100, 100, 0), (100, 200, 0)),
        ("used, crash", &[Open, Append(1, 3), Crash], (100, 100, 3), (100, 200, 3)),
        ("reserved more", &[Open, Append(1, 3), Reserve(250), Crash], (250, 250, 3), (250, 350, 3)),
        ("reserved less", &[Open, Reserve(20), Crash], (100, 100, 0), (100, 200, 0)),
        ("closed", &[Open, Append(1, 3), Close(3)], (3, 3, 3), (3, 103, 3)),
        ("closed, next run", &[Open, Append(1, 3), Close(3), Crash], (3, 3, 3), (3, 103, 3)),
        ("closed unused", &[Open, Close(0), Crash], (0, 0, 0), (0, 100, 0)),
        ("closed too low", &[Open, Append(1, 3), Close(1), Crash], (3, 3, 3), (3, 103, 3)),
        ("last never stored", &[Open, Append(1, 3), Close(5), Crash], (5, 5, 3), (5, 105, 3)),
        ("crash, looked at", &[Open, Append(1, 3), Crash, Look], (100, 100, 3), (100, 200, 3)),
        ("two crashes", &[Open, Append(1, 3), Crash, Open, Crash], (200, 200, 3), (200, 300, 3)),
        (
            "crash, used, closed",
            &[Open, Append(1, 3), Crash, Open, Append(101, 102), Close(102), Crash],
            (102, 102, 102),
            (102, 202, 102),
        ),
        (
            "crash, unused, closed",
            &[Open, Append(1, 3), Crash, Open, Close(100), Crash],
            (100, 100, 3),
            (100, 200, 3),
        ),
        ("twice", &[Open, Append(1, 3), Open], (200, 200, 200), (200, 300, 200)),
        ("twice, crash", &[Open, Append(1, 3), Open, Crash], (200, 200, 3), (200, 300, 3)),
        ("crash, twice", &[Open, Append(1, 3), Crash, Open, Open], (300, 300, 3), (300, 400, 3)),
        ("never opened, used", &[Append(1, 3)], (3, 3, 3), (3, 103, 3)),
        ("never opened, reserved", &[Reserve(50), Crash], (50, 50, 0), (50, 150, 0)),
        ("never opened, closed", &[Close(50), Crash], (0, 0, 0), (0, 100, 0)),
    ];

    #[test]
    fn offsets_go_on_above_whatever_may_have_been_used() {
        for &(name, steps, plain, create) in STANDS {
            let directory = tempfile::tempdir().unwrap();
            let mut rig = Rig::new(&directory);
            for step in steps {
                match *step {
                    Open => _ = rig.stand(true),
                    Look => _ = rig.stand(false),
                    Append(first, last) => rig.store(first..=last),
                    Reserve(ceiling) => rig.ask(Mail::Reserve { topic: T, ceiling }, |answer| {
                        let raised = if ceiling < 50 { 100 } else { ceiling };
                        assert_eq!(answer, Mail::Reserved { topic: T, ceiling: raised });
                    }),
                    Close(head) => {
                        rig.write(Mail::Close { topic: T, head });
                        rig.turn();
                    }
                    Crash => rig = rig.crash(),
                }
            }
            assert_eq!(rig.stand(false), plain, "{name}, looking");
            assert_eq!(rig.stand(false), plain, "{name}, looking again");
            assert_eq!(rig.stand(true), create, "{name}, to publish");
        }
    }

    #[test]
    fn a_position_inside_a_crash_hole_is_told_so_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Rig::new(&directory);
        rig.stand(true);
        rig.store(1..=3);
        rig = rig.crash();
        assert_eq!(rig.stand(true), (100, 200, 3));
        rig.store(101..=102);
        for settled in [false, true] {
            if settled {
                rig.settle();
            }
            let rows: [(u64, u64, &[u64], Option<Gap>); 9] = [
                (0, 999, &[1, 2, 3, 101, 102], None),
                (2, 999, &[3, 101, 102], None),
                (3, 999, &[101, 102], None),
                (4, 999, &[101, 102], crashed(5, 100)),
                (4, 50, &[], crashed(5, 49)),
                (4, 5, &[], None),
                (99, 999, &[101, 102], crashed(100, 100)),
                (100, 999, &[101, 102], None),
                (101, 999, &[102], None),
            ];
            for (after, before, offsets, gap) in rows {
                let expected = (offsets.to_vec(), before - 1, gap);
                assert_eq!(rig.range(after, before), expected, "after {after} before {before}");
            }
        }
        assert_eq!(rig.stand(true).0, 200);
        assert_eq!(rig.range(150, 999), (vec![], 998, None), "its own reservation is no hole");
        rig = rig.crash();
        assert_eq!((rig.stand(true), rig.stand(true)), ((300, 400, 102), (400, 500, 102)));
        assert_eq!(rig.range(300, 999), (vec![], 998, None), "not even behind a hole");
        assert_eq!(rig.range(9, 4), (vec![], 9, None), "nothing can be before 4 and after 9");
        assert_eq!(rig.range(102, u64::MAX), (vec![], u64::MAX - 1, None));
    }

    #[test]
    fn ids_are_never_given_twice() {
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Rig::new(&directory);
        assert_eq!((rig.start.id_next, rig.start.id_ceilings), ([1; 256], [ID_STEP; 256]));
        for (ceiling, granted) in [(500, 500), (100, 500)] {
            rig.ask(Mail::ReserveIds { partition: 255, ceiling }, |answer| {
                assert_eq!(answer, Mail::ReservedIds { partition: 255, ceiling: granted });
            });
        }
        rig = rig.crash();
        assert_eq!((rig.start.id_next[0], rig.start.id_ceilings[0]), (11, 20));
        assert_eq!((rig.start.id_next[255], rig.start.id_ceilings[255]), (501, 510));
    }

    #[test]
    fn retention_deletes_the_oldest_and_says_so() {
        let directory = tempfile::tempdir().unwrap();
        for settled in [false, true] {
            let location = Location::Directory(directory.path().join(settled.to_string()));
            let mut rig = Rig::open(&location, 1 << 20, |new| new.history_age = Duration::from_secs(10));
            rig.stand(true);
            rig.store(1..=3);
            if settled {
                rig.settle();
            }
            rig = rig.crash();
            rig.stand(true);
            rig.now += 8_000;
            rig.store(101..=2_000);
            assert_eq!(rig.range(0, 3), (vec![1, 2], 2, None));
            rig.now += 3_000;
            rig.turn();
            assert_eq!(rig.writer.metrics().trimmed.load(Relaxed), 3);
            let retention = |from, to| Some(Gap { from, to, reason: GapReason::Retention });
            assert_eq!(rig.range(0, 103), (vec![101, 102], 102, retention(1, 3)));
            assert_eq!(rig.range(0, 2), (vec![], 1, retention(1, 1)));
            assert_eq!(rig.range(2, 102), (vec![101], 101, retention(3, 3)));
            assert_eq!(rig.range(3, 102), (vec![101], 101, None));
            assert_eq!(rig.range(4, 102), (vec![101], 101, crashed(5, 100)));
            rig.now += 60_000;
            rig.turn();
            assert_eq!(rig.writer.metrics().trimmed.load(Relaxed), 1903);
            for table in ["fresh0", "fresh1", "settled", "hole", "step"] {
                assert_eq!(rig.count(table), 0, "{table}");
            }
            assert_eq!(rig.range(4, 9_999), (vec![], 9_998, retention(5, 2_000)));
            rig.write(Mail::Close { topic: T, head: 2_000 });
            rig = rig.crash();
            assert_eq!(rig.stand(true), (2_000, 2_100, 2_000), "all gone, and still known");
        }
    }

    #[test]
    fn a_replay_that_retention_overtakes_ends_where_the_gap_begins() {
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Rig::open(&Location::Directory(directory.path().into()), 4096, |new| {
            new.history_age = Duration::from_secs(10);
        });
        rig.stand(true);
        rig.append(1..=2_000);
        rig.quiet();
        let mut bytes = Vec::new();
        range(0, 2_001, u32::MAX, false).encode(&mut bytes);
        rig.shards[0].send(3, &bytes);
        let mut first = rig.answers(0);
        assert!(rig.reader.is_busy());
        rig.now += 11_000;
        rig.append([2_001]);
        while rig.reader.is_busy() {
            first.extend(rig.answers(0));
        }
        first.retain(|record| !matches!(Mail::decode(record), Some(Mail::Stored { .. })));
        let (end, items) = first.split_last().unwrap();
        let sent = replayed(items);
        let upto = *sent.last().unwrap();
        assert!(upto < 2_000 && sent == (1..=upto).collect::<Vec<_>>());
        assert_eq!(Mail::decode(end), Some(Mail::ReplayEnd { tag: 7, upto, live: false, gap: None }));
        let gap = Some(Gap { from: upto + 1, to: 2_000, reason: GapReason::Retention });
        assert_eq!(rig.range(upto, 2_002), (vec![2_001], 2_001, gap));
    }

    #[test]
    fn conflated_ranges_leave_telemetry_out_and_sized_ones_are_cut_behind_a_row() {
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Rig::new(&directory);
        rig.stand(true);
        for offset in 1..=2_000 {
            let kind = match offset {
                500 => Kind::Alert,
                1_900 => Kind::Diagnostic,
                _ => Kind::Telemetry,
            };
            rig.write(Mail::Append { topic: T, item: item(offset, kind, rig.now) });
        }
        rig.answers(0);
        let body = item(1, Kind::Alert, 0).body.len() as u32;
        for settled in [false, true] {
            if settled {
                rig.settle();
                assert_eq!((rig.count("settled"), rig.count("fresh0"), rig.count("fresh1")), (2_000, 0, 0));
            }
            let rows = [
                (range(0, 9_999, u32::MAX, true), vec![500, 1_900], 9_998),
                (range(0, 9_999, body, true), vec![500], 500),
                (range(500, 1_900, u32::MAX, true), vec![], 1_899),
                (range(0, 9_999, 0, false), vec![1], 1),
                (range(498, 9_999, 3 * body, false), vec![499, 500, 501], 501),
                (range(498, 9_999, 4 * body - 1, false), vec![499, 500, 501], 501),
                (range(498, 502, 3 * body, false), vec![499, 500, 501], 501),
                (range(0, 9_999, u32::MAX, false), (1..=2_000).collect(), 9_998),
            ];
            for (question, offsets, upto) in rows {
                assert_eq!(rig.range_of(question), (offsets, upto, None), "{question:?}");
            }
        }
    }

    #[test]
    fn answers_larger_than_a_lane_arrive_in_order_and_hold_no_transaction() {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::Directory(directory.path().into());
        let mut rig = Rig::open(&location, 4096, |_| ());
        let body = vec![b'x'; 900];
        for offset in 1..=1_500 {
            let item = Item { body: &body, ..item(offset, Kind::Telemetry, rig.now) };
            rig.write(Mail::Append { topic: T, item });
        }
        rig.quiet();
        let mut bytes = Vec::new();
        range(0, 9_999, u32::MAX, false).encode(&mut bytes);
        rig.shards[0].send(3, &bytes);
        let mut got = rig.answers(0);
        assert!(got.len() < 8 && rig.reader.is_busy());
        assert!(rig.reader.db.is_autocommit(), "no transaction between turns");
        let truncated: i64 =
            rig.writer.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).unwrap();
        assert_eq!(truncated, 0, "nobody stands in a checkpoint's way");
        while rig.reader.is_busy() {
            got.extend(rig.answers(0));
        }
        let (end, items) = got.split_last().unwrap();
        assert_eq!(replayed(items), (1..=1_500).collect::<Vec<_>>());
        assert!(matches!(Mail::decode(end), Some(Mail::ReplayEnd { upto: 9_998, .. })));
    }

    #[test]
    fn a_question_given_up_ends_behind_what_was_sent() {
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Rig::open(&Location::Directory(directory.path().into()), 4096, |_| ());
        for first in [1, 51] {
            rig.store(first..first + 50);
        }
        let mut bytes = Vec::new();
        for question in [
            range(0, 999, u32::MAX, false),
            Mail::ReadHistory { tag: 8, topic: T, from: 0, to: u64::MAX, limit: 500 },
        ] {
            question.encode(&mut bytes);
            rig.shards[0].send(3, &bytes);
            rig.turn();
            assert!(rig.reader.is_busy());
            rig.reader.give_up(&mut rig.reader_port);
            assert!(!rig.reader.is_busy());
        }
        let mut got = rig.answers(0);
        got.extend(rig.answers(0));
        let (end, items) = got.split_last().unwrap();
        let upto = *replayed(items).last().unwrap();
        assert!(upto < 100);
        let end = Mail::decode(end);
        assert_eq!(end, Some(Mail::ReplayEnd { tag: 7, upto, live: false, gap: None }));
        assert_eq!(rig.reader.metrics().abandoned.load(Relaxed), 2, "the second's end found no room");
    }

    #[test]
    fn a_publication_that_is_stored_already_is_acknowledged_and_not_stored_twice() {
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Rig::new(&directory);
        rig.store([1, 2, 5]);
        rig.store([2, 5, 5]);
        rig.settle();
        rig.store([1, 3, 6]);
        rig = rig.crash();
        rig.store([5, 4, 6, 7]);
        assert_eq!(rig.range(0, 99).0, (1..=7).collect::<Vec<_>>());
        rig.settle();
        rig.settle();
        assert_eq!(rig.count("settled"), 7);
        let metrics = rig.writer.metrics();
        assert_eq!((metrics.rows.load(Relaxed), metrics.duplicates.load(Relaxed)), (2, 2));
        assert_eq!(rig.history(0, u64::MAX, 99), (1..=7).collect::<Vec<_>>());
    }

    #[test]
    fn a_publication_that_comes_late_is_found_by_its_time() {
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Rig::new(&directory);
        for (offset, time) in [(1, 10), (5, 50), (3, 90), (6, 60)] {
            let item = item(offset, Kind::Telemetry, time);
            rig.write(Mail::Append { topic: T, item });
        }
        rig.now = 100;
        rig.answers(0);
        let rows: [(u64, u64, &[u64]); 4] =
            [(40, 55, &[5]), (80, 99, &[3]), (55, 70, &[6]), (0, 99, &[1, 3, 5, 6])];
        for (from, to, offsets) in rows {
            assert_eq!(rig.history(from, to, 9), offsets, "{from}..={to}");
        }
    }

    #[test]
    fn histories_are_the_newest_telemetry_of_an_interval_whatever_the_clock_did() {
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Rig::new(&directory);
        // Offsets 1..=1000 at 1000 + offset; then the clock is set back by 500, twice.
        let time = |offset: u64| 1_000 + offset - 500 * ((offset - 1) / 1_000).min(2);
        for offset in 1..=3_000 {
            let kind = if offset % 100 == 0 { Kind::Alert } else { Kind::Telemetry };
            rig.write(Mail::Append { topic: T, item: item(offset, kind, time(offset)) });
        }
        rig.now = 5_000;
        rig.answers(0);
        assert_eq!(rig.count("step"), 2);
        for settled in [false, true] {
            if settled {
                rig.settle();
            }
            let rows: [(u64, u64, u32); 8] = [
                (0, u64::MAX, u32::MAX),
                (0, u64::MAX, 10),
                (1_200, 1_300, u32::MAX),
                (1_700, 1_800, u32::MAX),
                (1_700, 1_800, 150),
                (1_990, 2_010, 5),
                (1_100, 1_100, 1),
                (9_000, 9_999, 10),
            ];
            for (from, to, limit) in rows {
                let all = (1..=3_000).filter(|offset| offset % 100 != 0);
                let wanted: Vec<u64> = all.filter(|&o| (from..=to).contains(&time(o))).collect();
                let newest = wanted[wanted.len().saturating_sub(limit as usize)..].to_vec();
                assert_eq!(rig.history(from, to, limit), newest, "{from}..={to}, {limit}");
            }
            assert!(rig.history(2_000, 1_000, 10).is_empty());
            assert!(rig.history(0, u64::MAX, 0).is_empty());
        }
    }

    #[test]
    fn topics_are_listed_by_name_with_their_newest_publication() {
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Rig::new(&directory);
        let list = |rig: &mut Rig, prefix: &str| {
            let answers = rig.question(Mail::ReadTopics { tag: 7, prefix });
            let mails = decode(&answers);
            let (end, rows) = mails.split_last().unwrap();
            assert_eq!(*end, Mail::ReadDone { tag: 7, end: ReadEnd::Done });
            let row = |mail: &Mail<'_>| match *mail {
                Mail::TopicRow { tag: 7, topic, offset, time } => (topic.to_string(), offset, time),
                other => panic!("{other:?}"),
            };
            rows.iter().map(row).collect::<Vec<_>>()
        };
        assert_eq!(list(&mut rig, "wells/"), []);
        for number in (0..600).rev() {
            let topic = &format!("wells/{number:03}");
            let item = item(number + 1, Kind::Alert, 1_000 + number);
            rig.write(Mail::Append { topic, item });
        }
        for topic in ["wells", "wellt/x", "wells/unused", "wells0"] {
            rig.write(Mail::Open { topic, create: true });
        }
        rig.answers(0);
        let expected: Vec<_> = (0..600).map(|n| (format!("wells/{n:03}"), n + 1, 1_000 + n)).collect();
        assert_eq!(list(&mut rig, "wells/"), expected);
        rig.now = 8 * 24 * 3_600_000;
        rig.turn();
        assert_eq!(rig.writer.metrics().trimmed.load(Relaxed), 600);
        assert_eq!(list(&mut rig, "wells/"), expected, "known even when all is too old");
    }

    #[test]
    fn a_full_disk_refuses_publications_keeps_ceilings_going_and_recovers() {
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Rig::new(&directory);
        rig.stand(true);
        rig.store(1..=3);
        let pages: i64 = rig.writer.db.pragma_query_one(None, "page_count").unwrap();
        let limit = |rig: &Rig, pages: i64| {
            rig.writer.db.pragma_update(None, "max_page_count", pages).unwrap();
        };
        limit(&rig, pages);
        let new = Mail::Append { topic: "wells/new", item: item(1, Kind::Alert, rig.now) };
        rig.write(new);
        rig.append(4..=999);
        rig.write(Mail::Reserve { topic: T, ceiling: 300 });
        rig.write(Mail::ReserveIds { partition: 3, ceiling: 77 });
        let answers = rig.answers(0);
        let expected = [
            Mail::Reserved { topic: T, ceiling: 300 },
            Mail::ReservedIds { partition: 3, ceiling: 77 },
            Mail::Unstored { count: 1_000, failure: Failure::Full },
        ];
        assert_eq!(decode(&answers), expected);
        assert_eq!(rig.range(0, 99).0, [1, 2, 3], "rolled back whole");
        limit(&rig, 1 << 20);
        rig.now += 2_000;
        rig.append(1_001..=1_002);
        rig.write(new);
        assert_eq!(decode(&rig.answers(0)), [Mail::Stored { count: 1_003 }]);
        let new = Mail::Open { topic: "wells/new", create: false };
        rig.ask(new, |answer| assert!(matches!(answer, Mail::Opened { head: 1, .. })));
        assert_eq!(rig.range(0, 9_999).0, [1, 2, 3, 1_001, 1_002]);
        assert_eq!(rig.writer.metrics().read_only.load(Relaxed), 0);
        rig = rig.crash();
        assert_eq!(rig.stand(false), (1_002, 1_002, 1_002));
    }

    #[test]
    fn after_any_other_failure_the_store_is_read_only_until_the_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Rig::new(&directory);
        rig.stand(true);
        rig.store(1..=3);
        // Stands for a failed sync, which one process can't make happen: any error that is not known to pass.
        rig.writer.db.pragma_update(None, "query_only", true).unwrap();
        for round in 0..2 {
            rig.append([4 + round]);
            rig.write(Mail::Open { topic: T, create: true });
            rig.write(Mail::Open { topic: "wells/new", create: true });
            rig.write(Mail::Reserve { topic: T, ceiling: 300 });
            rig.write(Mail::ReserveIds { partition: 3, ceiling: 77 });
            let item = item(3, Kind::Telemetry, rig.now);
            let expected = [
                Mail::Opened { topic: T, head: 100, ceiling: 100, stored: 100, latest: Some(item) },
                Mail::Opened { topic: "wells/new", head: 0, ceiling: 0, stored: 0, latest: None },
                Mail::Reserved { topic: T, ceiling: 100 },
                Mail::ReservedIds { partition: 3, ceiling: ID_STEP },
                Mail::Unstored { count: 4 + round, failure: Failure::Store },
            ];
            assert_eq!(decode(&rig.answers(0)), expected, "round {round}");
            rig.writer.db.pragma_update(None, "query_only", false).unwrap();
        }
        assert_eq!(rig.writer.metrics().read_only.load(Relaxed), 1);
        assert_eq!(rig.range(0, 99).0, [1, 2, 3], "what is stored can be read");
        rig = rig.crash();
        rig.stand(true);
        rig.store([101]);
    }

    #[test]
    fn a_store_is_open_once() {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::Directory(directory.path().join("store"));
        let rig = Rig::open(&location, 4096, |_| ());
        let error = Store::open(&location, &rig.options).err().unwrap();
        assert!(matches!(error, StoreError::Locked(_)));
        assert!(error.to_string().contains("is open in another process"), "{error}");
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(directory.path().join("store")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let Rig { writer, reader, options, .. } = rig;
        drop(writer);
        assert!(Store::open(&location, &options).is_err(), "the reader still has it");
        drop(reader);
        assert!(Store::open(&location, &options).is_ok());
    }

    #[test]
    fn what_is_no_mail_of_ours_is_counted_and_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Rig::new(&directory);
        let mut bytes = Vec::new();
        Mail::Stored { count: 1 }.encode(&mut bytes);
        for record in [&b""[..], b"\x1a", b"\xff\xff", &bytes] {
            rig.shards[1].send(2, record);
            rig.shards[1].send(3, record);
        }
        Mail::ReadRange { node: 2, tag: 7, topic: T, after: 0, before: 9, max_bytes: 9, conflate: false }
            .encode(&mut bytes);
        rig.shards[1].send(3, &bytes);
        assert_eq!(rig.answers(1), Vec::<Vec<u8>>::new());
        assert_eq!(rig.writer.metrics().malformed.load(Relaxed), 9);
        assert_eq!(rig.range(5, 9), (vec![], 8, None), "an unknown topic has nothing");
        assert!(rig.history(0, 9, 9).is_empty());
    }

    #[test]
    fn what_no_lane_takes_any_more_is_left_out_and_counted() {
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Rig::new(&directory);
        let body = vec![b'x'; 3_000];
        for (offset, body) in [(1, &b"{}"[..]), (2, &body), (3, b"{}"), (4, &body)] {
            let item = Item { body, ..item(offset, Kind::Telemetry, rig.now) };
            rig.write(Mail::Append { topic: T, item });
        }
        rig.answers(0);
        rig.options.max_record = 1_024;
        rig = rig.crash();
        rig.ask(Mail::Open { topic: T, create: false }, |answer| {
            assert!(matches!(answer, Mail::Opened { head: 4, latest: None, .. }), "{answer:?}");
        });
        assert_eq!(rig.range(0, 9), (vec![1, 3], 8, None));
        assert_eq!(rig.history(0, u64::MAX, 2), [3]);
        assert_eq!(rig.reader.metrics().oversized.load(Relaxed), 1 + 2 + 1);
    }

    /// A store of 3,001 publications, every second an alert, about two thirds of them in two places.
    fn half_settled(directory: &TempDir) -> Rig {
        let mut rig = Rig::new(directory);
        for offset in 1..=3_000 {
            let kind = if offset % 2 == 0 { Kind::Alert } else { Kind::Telemetry };
            rig.write(Mail::Append { topic: T, item: item(offset, kind, rig.now) });
        }
        rig.answers(0);
        rig.writer.upkeep.wrote(1 << 40, 0);
        rig.writer.turn(&mut rig.writer_port, rig.now);
        rig.append([3_001]);
        rig.shards[0].flush();
        while rig.count("settled") < 2_000 {
            rig.writer.turn(&mut rig.writer_port, rig.now);
        }
        assert!(rig.count("settled") < 2_500);
        rig
    }

    #[test]
    fn what_is_in_two_places_is_read_and_deleted_once() {
        let directory = tempfile::tempdir().unwrap();
        let mut rig = half_settled(&directory);
        assert_eq!((rig.count("fresh0"), rig.count("fresh1")), (3_000, 1));
        let odd: Vec<u64> = (1..=3_001).step_by(2).collect();
        assert_eq!(rig.range(0, 9_999).0, (1..=3_001).collect::<Vec<_>>());
        assert_eq!(rig.history(0, u64::MAX, u32::MAX), odd);
        assert_eq!(rig.history(0, u64::MAX, 1_400), odd[101..]);
        rig.now += 8 * 24 * 3_600_000;
        rig.turn();
        assert_eq!(rig.writer.metrics().trimmed.load(Relaxed), 3_001);
        for table in ["fresh0", "fresh1", "settled"] {
            assert_eq!(rig.count(table), 0, "{table}");
        }
    }

    #[test]
    fn a_table_that_was_being_settled_at_a_crash_is_settled_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut rig = half_settled(&directory).crash();
        assert_eq!((rig.count("fresh0"), rig.count("fresh1")), (3_000, 1));
        rig.turn();
        assert_eq!((rig.count("settled"), rig.count("fresh0"), rig.count("fresh1")), (3_000, 0, 1));
        assert_eq!(rig.range(0, 9_999).0, (1..=3_001).collect::<Vec<_>>());
    }

    #[test]
    fn a_shard_that_takes_no_answers_is_not_listened_to_until_the_drain() {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::Directory(directory.path().into());
        let mut rig = Rig::open(&location, 4096, |_| ());
        for _ in 0..150 {
            rig.write(Mail::Open { topic: T, create: false });
        }
        rig.turn();
        rig.append([1]);
        rig.turn();
        assert_eq!(rig.count("fresh0"), 0);
        let Rig { writer, writer_port, reader, shards, .. } = rig;
        writer.run(writer_port, Arc::new(AtomicBool::new(true)));
        drop((reader, shards));
        assert_eq!(Rig::new(&directory).range(0, 9).0, [1]);
    }

    #[test]
    fn a_stop_stores_what_is_on_the_lanes_and_leaves_no_log_behind() {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::Directory(directory.path().into());
        let mesh = Mesh::new(3, 1 << 16, true).unwrap();
        let options = Options::new(1, mesh.max_record());
        let (writer, reader, _) = Store::open(&location, &options).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (mut shard, writer_port, reader_port) = (mesh.port(0), mesh.port(1), mesh.port(2));
        let reader_stop = Arc::new(AtomicBool::new(false));
        let flags = (Arc::clone(&stop), Arc::clone(&reader_stop));
        let writing = thread::spawn(move || writer.run(writer_port, flags.0));
        let reading = thread::spawn(move || reader.run(reader_port, flags.1));
        let (mut bytes, mut inbox) = (Vec::new(), Inbox::default());
        for offset in 1..=5_000 {
            Mail::Append { topic: T, item: item(offset, Kind::Alert, u64::MAX >> 2) }.encode(&mut bytes);
            while !shard.try_send(1, &bytes) {
                shard.flush();
                shard.receive(1, usize::MAX, &mut inbox);
                thread::yield_now();
            }
        }
        shard.flush();
        stop.store(true, Relaxed);
        mesh.ring(1);
        writing.join().unwrap();
        let log = std::fs::metadata(directory.path().join("wellhead.db-wal")).unwrap();
        assert_eq!(log.len(), 0, "the reader has it open, but nothing is in it");
        reader_stop.store(true, Relaxed);
        mesh.ring(2);
        reading.join().unwrap();
        let mut rig = Rig::new(&directory);
        assert_eq!(rig.range(0, u64::MAX).0, (1..=5_000).collect::<Vec<_>>());
    }

    /// What an owner knows of a topic, and what is true of it.
    #[derive(Default)]
    struct Model {
        /// Next offset and ceiling, while it is open.
        owner: Option<(u64, u64)>,
        used: BTreeSet<u64>,
        stored: Vec<u64>,
        /// Used, and lost by a crash; with the end of the hole it made.
        lost: Vec<(u64, u64)>,
    }

    /// A store, its topics' models, and what was appended since they were last compared.
    struct World {
        rig: Rig,
        models: [Model; 3],
        appended: Vec<(usize, u64)>,
        count: u64,
    }

    #[derive(Clone, Debug)]
    enum Action {
        Open { topic: usize, create: bool },
        Append { topic: usize, count: u64 },
        Reserve { topic: usize, more: u64 },
        Close { topic: usize },
        Forget { topic: usize },
        Settle,
        Crash { arrived: bool },
    }

    fn action() -> impl Strategy<Value = Action> {
        let topic = 0..3usize;
        prop_oneof![
            4 => (topic.clone(), any::<bool>()).prop_map(|(topic, create)| Action::Open { topic, create }),
            6 => (topic.clone(), 1..40u64).prop_map(|(topic, count)| Action::Append { topic, count }),
            2 => (topic.clone(), 1..60u64).prop_map(|(topic, more)| Action::Reserve { topic, more }),
            1 => topic.clone().prop_map(|topic| Action::Close { topic }),
            1 => topic.prop_map(|topic| Action::Forget { topic }),
            1 => Just(Action::Settle),
            2 => any::<bool>().prop_map(|arrived| Action::Crash { arrived }),
        ]
    }

    const NAMES: [&str; 3] = ["wells/a", "wells/b", "streams/c"];

    impl World {
        /// Everything on its way arrives, and is acknowledged.
        fn arrive(&mut self) {
            let answers = self.rig.answers(0);
            self.count += self.appended.len() as u64;
            let stored = [Mail::Stored { count: self.count }];
            assert_eq!(decode(&answers), stored[self.appended.is_empty().into()..]);
            for (topic, offset) in self.appended.drain(..) {
                self.models[topic].stored.push(offset);
            }
        }

        fn open(&mut self, topic: usize, create: bool) -> u64 {
            self.arrive();
            let model = &mut self.models[topic];
            self.rig.ask(Mail::Open { topic: NAMES[topic], create }, |answer| {
                let Mail::Opened { head, ceiling, stored, latest, .. } = answer else { panic!("{answer:?}") };
                assert!(model.used.last().is_none_or(|&last| last <= head));
                assert!(model.stored.last().is_none_or(|&last| last <= stored));
                assert!(stored <= head);
                assert_eq!(ceiling, if create { head + STEP } else { head });
                assert_eq!(latest.map(|item| item.offset), model.stored.last().copied());
                if create {
                    model.owner = Some((head + 1, ceiling));
                }
                head
            })
        }

        fn act(&mut self, action: &Action) {
            match *action {
                Action::Open { topic, create } => _ = self.open(topic, create),
                Action::Append { topic, count } => {
                    let Some((next, ceiling)) = self.models[topic].owner else { return };
                    let last = ceiling.min(next + count - 1);
                    for offset in next..=last {
                        assert!(self.models[topic].used.insert(offset), "{offset} a second time");
                        let item = item(offset, Kind::Telemetry, self.rig.now);
                        self.rig.write(Mail::Append { topic: NAMES[topic], item });
                        self.appended.push((topic, offset));
                    }
                    self.models[topic].owner = Some((last + 1, ceiling));
                }
                Action::Reserve { topic, more } => {
                    self.arrive();
                    let Some((next, ceiling)) = self.models[topic].owner else { return };
                    let ask = Mail::Reserve { topic: NAMES[topic], ceiling: ceiling + more - 30 };
                    let granted = self.rig.ask(ask, |answer| match answer {
                        Mail::Reserved { ceiling, .. } => ceiling,
                        other => panic!("{other:?}"),
                    });
                    assert_eq!(granted, ceiling.max(ceiling + more - 30));
                    self.models[topic].owner = Some((next, granted));
                }
                Action::Close { topic } => {
                    if let Some((next, _)) = self.models[topic].owner.take() {
                        self.rig.write(Mail::Close { topic: NAMES[topic], head: next - 1 });
                    }
                }
                Action::Forget { topic } => self.models[topic].owner = None,
                Action::Settle => {
                    self.arrive();
                    self.rig.settle();
                }
                Action::Crash { arrived } => {
                    if arrived {
                        self.arrive();
                    }
                    self.crash();
                }
            }
        }

        fn crash(&mut self) {
            let lost = std::mem::take(&mut self.appended);
            let ceilings = self.rig.start.id_ceilings;
            let spare = Location::Memory("spare".into());
            let rig = std::mem::replace(&mut self.rig, Rig::open(&spare, 4096, |_| ()));
            self.rig = rig.crash();
            self.count = 0;
            assert!((0..PARTITIONS).all(|p| self.rig.start.id_next[p] > ceilings[p]));
            for topic in 0..NAMES.len() {
                self.models[topic].owner = None;
                let head = self.open(topic, false);
                let lost = lost.iter().filter(|(of, _)| *of == topic);
                self.models[topic].lost.extend(lost.map(|&(_, offset)| (offset, head)));
            }
            self.check();
        }

        /// What is stored is what was acknowledged, and what was lost is announced.
        fn check(&mut self) {
            self.arrive();
            for (model, topic) in self.models.iter().zip(NAMES) {
                let question = |after| Mail::ReadRange {
                    node: 0,
                    tag: 7,
                    topic,
                    after,
                    before: 1 << 40,
                    max_bytes: u32::MAX,
                    conflate: false,
                };
                assert_eq!(self.rig.range_of(question(0)).0, model.stored);
                for &(offset, end) in model.lost.iter().filter(|(offset, end)| offset < end) {
                    let (_, _, gap) = self.rig.range_of(question(offset));
                    let Some(Gap { from, to, reason: GapReason::Crash }) = gap else {
                        panic!("{offset} was lost: {gap:?}");
                    };
                    assert!(from == offset + 1 && to >= end);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn offsets_are_never_repeated_and_all_that_is_acknowledged_is_there(
            actions in prop::collection::vec(action(), 1..40),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let rig = Rig::new(&directory);
            let mut world =
                World { rig, models: Default::default(), appended: Vec::new(), count: 0 };
            for action in &actions {
                world.act(action);
            }
            world.check();
        }
    }
}
