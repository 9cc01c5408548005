//! The embedded store: SQLite on two threads of its own, which meet the shards on the mesh only.
//!
//! The path of a publication: a shard's [`Mail::Append`](crate::mail::Mail) → [`writer`] (one transaction for
//! everything that waits on the lanes: group commit) → a *fresh* table in order of arrival → [`upkeep`] moves a full
//! fresh table, sorted by topic, to the *settled* one, and deletes what is older than the history → [`reader`]
//! answers from all of them.
//!
//! | file | holds |
//! |---|---|
//! | [`schema`] | the tables, how a connection is set up, the statements that look in every place |
//! | [`ledger`] | which offsets and ids may be used, which were lost, over runs and crashes |
//! | [`writer`] | lanes → transaction → answers; what a failure means |
//! | [`upkeep`] | settling, retention, checkpoints: whatever nobody waits for |
//! | [`reader`] | questions, one at a time, sliced so that no turn is long; answers through lanes that may be full |
//! | [`question`] | what one question reads and what its answer says |
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
    /// Seven days of history, synced; 4,096 offsets and 65,536 ids at a time, so that a reservation is one commit in
    /// thousands, and a crash a day for a century skips less than a millionth of all ids.
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
    if !directory.is_dir() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|error| StoreError::Io(directory.into(), error))?;
        if let Some(parent) = directory.parent() {
            sync_directory(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?;
        }
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
