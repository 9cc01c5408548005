//! The tables, how a connection is set up, and the statements that look in every place a publication can be.

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Row};

use super::{DATABASE, Location, StoreError};
use crate::mail::Item;
use protocol::message::Kind;

/// Version of the tables below, kept in `PRAGMA user_version`.
const VERSION: i64 = 1;
/// The first release without the write-ahead log's reset race.
pub(super) const LEAST_SQLITE: &str = "3.51.3";
const LEAST_SQLITE_NUMBER: i32 = 3_051_003;

/// Page cache of the writer, KiB: most of a full fresh table. SQLite walks it at each commit, so a larger one costs.
const WRITER_CACHE_KIB: i64 = 32 * 1024;
/// Page cache of the reader, KiB.
const READER_CACHE_KIB: i64 = 16 * 1024;
/// How long the writer waits for a foreign process (a backup) that holds the database.
const WRITER_PATIENCE: Duration = Duration::from_secs(1);
/// Prepared statements kept per connection: more than there are.
const STATEMENTS: usize = 64;

/// Publications in order of arrival: one table is appended to while the other settles.
pub(super) const FRESH: [&str; 2] = ["fresh0", "fresh1"];
/// All the places a publication can be: while its table settles, in two at once.
const PLACES: [&str; 3] = ["fresh0", "fresh1", "settled"];

/// `ceiling` is the highest offset of the topic that may have been used, and `run` the run that looked last: while it
/// is an older one, offsets between the last stored and the ceiling are lost. `trimmed` is the highest offset deleted
/// because of its age, `trimmed_time` its time.
///
/// Publications are keyed by topic, whether a newer one makes them superfluous (`Kind::conflates`), and offset: so the
/// newest telemetry, a history of telemetry and the alerts among a million readings are each one range of the key, and
/// no second index is written. `step` names offsets at which a topic's time runs backwards: between two of them times
/// ascend with offsets, so that a time is found by bisection; it costs nothing while the clock behaves.
const TABLES: &str = "
    CREATE TABLE run (number INTEGER NOT NULL);
    INSERT INTO run VALUES (0);
    CREATE TABLE ids (partition INTEGER PRIMARY KEY, ceiling INTEGER NOT NULL);
    CREATE TABLE topic (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        run INTEGER NOT NULL,
        ceiling INTEGER NOT NULL,
        trimmed INTEGER NOT NULL DEFAULT 0,
        trimmed_time INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE hole (topic INTEGER, first INTEGER, last INTEGER NOT NULL, PRIMARY KEY (topic, first)) WITHOUT ROWID;
    CREATE TABLE step (topic INTEGER, offset INTEGER, PRIMARY KEY (topic, offset)) WITHOUT ROWID;
    CREATE TABLE settled (
        topic INTEGER, conflates INTEGER, offset INTEGER,
        id INTEGER NOT NULL, kind INTEGER NOT NULL, time INTEGER NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (topic, conflates, offset)
    ) WITHOUT ROWID;
";

const FRESH_TABLE: &str = "
    CREATE TABLE {place} (
        sequence INTEGER PRIMARY KEY,
        topic INTEGER NOT NULL, conflates INTEGER NOT NULL, offset INTEGER NOT NULL,
        id INTEGER NOT NULL, kind INTEGER NOT NULL, time INTEGER NOT NULL, body BLOB NOT NULL
    );
    CREATE UNIQUE INDEX {place}_key ON {place} (topic, conflates, offset);
";

/// Refuses an SQLite with known faults.
pub(super) fn check_sqlite() -> Result<(), StoreError> {
    if rusqlite::version_number() < LEAST_SQLITE_NUMBER {
        return Err(StoreError::OldSqlite(rusqlite::version()));
    }
    Ok(())
}

/// The writer's connection, its tables made if the database is new.
pub(super) fn open_writer(location: &Location) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let db = connect(location, flags)?;
    db.busy_timeout(WRITER_PATIENCE)?;
    if let Location::Directory(directory) = location {
        let mode: String = db.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        if mode != "wal" {
            return Err(StoreError::NoWal(directory.clone()));
        }
    }
    db.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    db.pragma_update(None, "temp_store", "MEMORY")?;
    // SQLite ignores what goes wrong in its own checkpoints, a failed sync included: `upkeep` makes them.
    db.pragma_update(None, "wal_autocheckpoint", 0)?;
    db.pragma_update(None, "synchronous", "FULL")?;
    match db.pragma_query_one::<i64>(None, "user_version")? {
        0 => create(&db)?,
        VERSION => {}
        found => return Err(StoreError::Newer { found, known: VERSION }),
    }
    Ok(db)
}

/// The reader's connection.
pub(super) fn open_reader(location: &Location) -> Result<Connection, StoreError> {
    let flags = match location {
        Location::Directory(_) => OpenFlags::SQLITE_OPEN_READ_ONLY,
        Location::Memory(_) => OpenFlags::SQLITE_OPEN_READ_WRITE,
    };
    let db = connect(location, flags)?;
    // A turn never waits: it tries again the next time.
    db.busy_timeout(Duration::ZERO)?;
    db.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
    db.pragma_update(None, "query_only", true)?;
    Ok(db)
}

fn connect(location: &Location, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = match location {
        Location::Directory(directory) => {
            Connection::open_with_flags(Path::new(directory).join(DATABASE), flags)?
        }
        Location::Memory(name) => {
            let name: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let uri = format!("file:{name}?mode=memory&cache=shared");
            Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)?
        }
    };
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(db)
}

fn create(db: &Connection) -> rusqlite::Result<()> {
    let transaction = db.unchecked_transaction()?;
    transaction.execute_batch(TABLES)?;
    for place in FRESH {
        transaction.execute_batch(&FRESH_TABLE.replace("{place}", place))?;
    }
    for partition in 0..super::PARTITIONS {
        transaction.execute("INSERT INTO ids VALUES (?1, 0)", [partition as i64])?;
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

/// A figure as SQLite keeps it. All of ours are far below 2^63; one that is not stays at that end.
pub(super) fn signed(figure: u64) -> i64 {
    i64::try_from(figure).unwrap_or(i64::MAX)
}

/// A figure as it was before [`signed`].
pub(super) fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.max(0) as u64)
}

/// A publication from the columns `offset, id, kind, time, body`. An unknown kind is what a newer version may have
/// written; it is never conflated away.
pub(super) fn item<'r>(row: &'r Row<'_>) -> rusqlite::Result<Item<'r>> {
    Ok(Item {
        offset: unsigned(row, 0)?,
        id: unsigned(row, 1)?,
        kind: Kind::from_byte(row.get(2)?).unwrap_or(Kind::Diagnostic),
        time: unsigned(row, 3)?,
        body: row.get_ref(4)?.as_blob()?,
    })
}

/// Which publications a statement is about.
#[derive(Clone, Copy)]
enum Class {
    All,
    /// Those that are never conflated away.
    Kept,
    /// Telemetry.
    Conflating,
}

/// The same question to all places, joined. Ordered by offset it is a merge: each place's answers are in order
/// already, and only as many are read as are taken.
fn everywhere(class: Class, columns: &str, condition: &str, joint: &str, end: &str) -> String {
    let classes: &[u8] = match class {
        Class::All => &[0, 1],
        Class::Kept => &[0],
        Class::Conflating => &[1],
    };
    let arms: Vec<String> = PLACES
        .iter()
        .flat_map(|place| classes.iter().map(move |class| (place, class)))
        .map(|(place, class)| {
            format!("SELECT {columns} FROM {place} WHERE topic = ?1 AND conflates = {class} {condition}")
        })
        .collect();
    format!("{} {end}", arms.join(joint))
}

fn merged(class: Class, columns: &str, condition: &str, end: &str) -> String {
    everywhere(class, columns, condition, " UNION ALL ", &format!("ORDER BY offset {end}"))
}

/// The columns of [`item`].
const ITEM: &str = "offset, id, kind, time, body";

fn range(class: Class) -> String {
    merged(class, ITEM, "AND offset > ?2 AND offset < ?3", "LIMIT ?4")
}

/// `(topic, after, before, limit)` → publications, ascending; twice those that are in two places.
pub(super) static RANGE: LazyLock<String> = LazyLock::new(|| range(Class::All));
/// The same without telemetry.
pub(super) static RANGE_KEPT: LazyLock<String> = LazyLock::new(|| range(Class::Kept));
/// The same of telemetry only.
pub(super) static RANGE_CONFLATING: LazyLock<String> = LazyLock::new(|| range(Class::Conflating));

/// `(topic)` → offset and time of the newest publication.
pub(super) static NEWEST: LazyLock<String> =
    LazyLock::new(|| merged(Class::All, "offset, time", "", "DESC LIMIT 1"));

/// `(topic)` → the newest telemetry.
pub(super) static LATEST: LazyLock<String> =
    LazyLock::new(|| merged(Class::Conflating, ITEM, "", "DESC LIMIT 1"));

/// `(topic, from, before)` → offset and time of the first telemetry in `from..before`.
pub(super) static TELEMETRY_AT: LazyLock<String> = LazyLock::new(|| {
    let condition = "AND offset >= ?2 AND offset < ?3";
    merged(Class::Conflating, "offset, time", condition, "LIMIT 1")
});

/// `(topic, from, before)` → offsets of telemetry in `from..before`, descending, each once.
pub(super) static TELEMETRY_BACKWARDS: LazyLock<String> = LazyLock::new(|| {
    let condition = "AND offset >= ?2 AND offset < ?3";
    everywhere(Class::Conflating, "offset", condition, " UNION ", "ORDER BY offset DESC")
});

/// `(topic, limit)` → offsets and times, ascending; twice those that are in two places.
pub(super) static OLDEST: LazyLock<String> =
    LazyLock::new(|| merged(Class::All, "offset, time", "", "LIMIT ?2"));

/// `(topic, offset)` → a row if it is stored.
pub(super) static EXISTS: LazyLock<String> =
    LazyLock::new(|| everywhere(Class::All, "1", "AND offset = ?2", " UNION ALL ", "LIMIT 1"));

/// Statements that delete `(topic, offset)`: everything up to and including that offset.
pub(super) static TRIM: LazyLock<[String; 3]> = LazyLock::new(|| {
    PLACES
        .map(|place| format!("DELETE FROM {place} WHERE topic = ?1 AND conflates IN (0, 1) AND offset <= ?2"))
});

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(name: &str) -> Connection {
        open_writer(&Location::Memory(name.into())).unwrap()
    }

    #[test]
    fn statements_merge_ranges_of_the_key_and_never_sort_or_scan() {
        let db = memory("plans");
        let statements =
            [&RANGE, &RANGE_KEPT, &RANGE_CONFLATING, &NEWEST, &LATEST, &TELEMETRY_AT, &OLDEST, &EXISTS];
        for sql in statements.into_iter().map(|sql| sql.as_str()).chain(TRIM.iter().map(String::as_str)) {
            let mut plan = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let count = plan.parameter_count();
            let steps: Vec<String> = plan
                .query_map(rusqlite::params_from_iter(vec![1i64; count]), |row| row.get(3))
                .unwrap()
                .map(Result::unwrap)
                .collect();
            for step in &steps {
                assert!(!step.starts_with("SCAN") && !step.contains("TEMP B-TREE"), "{steps:#?}: {sql}");
            }
        }
    }

    #[test]
    fn a_newer_schema_is_refused_with_both_versions() {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::Directory(directory.path().into());
        let db = open_writer(&location).unwrap();
        db.pragma_update(None, "user_version", VERSION + 1).unwrap();
        drop(db);
        let error = open_writer(&location).unwrap_err();
        assert!(matches!(error, StoreError::Newer { found: 2, known: 1 }));
        assert!(error.to_string().contains("newer wellhead (schema 2, this one knows 1)"));
    }

    #[test]
    fn memory_is_shared_by_name_only() {
        let (a, b) = (memory("a&b?c"), memory("other"));
        a.execute("UPDATE run SET number = 7", []).unwrap();
        let number = |db: &Connection| -> i64 {
            db.query_row("SELECT number FROM run", [], |row| row.get(0)).unwrap()
        };
        let again = open_reader(&Location::Memory("a&b?c".into())).unwrap();
        assert_eq!((number(&again), number(&b)), (7, 0));
        assert!(again.execute("UPDATE run SET number = 8", []).is_err());
    }
}
