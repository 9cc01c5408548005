//! The ledger: which offsets and ids may be used, which were lost, over runs and crashes.
//!
//! An offset or id is used only below a ceiling that is on the disk already; so whatever a crash loses, everything
//! that may have been used is at or below the ceiling found afterwards, and the next run begins above it.
//!
//! A topic found with a ceiling above its last stored offset by a *later run* than the one that raised it was not
//! closed: what lies between is a hole. The same found by the *same run* is nothing lost: it is this run's own
//! reservation, and the topic only goes on above it. The column `run` tells the two apart, and is raised with the
//! hole's row in one transaction, so that a hole is recorded once however often the topic is opened.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::schema::{self, signed, unsigned};
use super::{PARTITIONS, Start};

/// Topics whose place in the tables is kept in memory: about 150 bytes each. Beyond that all are forgotten and looked
/// up again as they come.
const KNOWN_TOPICS: usize = 1 << 18;

/// Counts the run, and reserves the ids it begins with. One transaction, synced.
pub(super) fn begin_run(db: &Connection, id_step: u64) -> rusqlite::Result<(i64, Start)> {
    let transaction = db.unchecked_transaction()?;
    let run =
        transaction.query_row("UPDATE run SET number = number + 1 RETURNING number", [], |row| row.get(0))?;
    let mut start = Start { id_next: [0; PARTITIONS], id_ceilings: [0; PARTITIONS] };
    for partition in 0..PARTITIONS {
        let old = ids_ceiling(&transaction, partition as u8)?;
        start.id_next[partition] = old.saturating_add(1);
        start.id_ceilings[partition] = raise_ids(&transaction, partition as u8, old.saturating_add(id_step))?;
    }
    transaction.commit()?;
    Ok((run, start))
}

/// A partition's ceiling.
pub(super) fn ids_ceiling(db: &Connection, partition: u8) -> rusqlite::Result<u64> {
    db.prepare_cached("SELECT ceiling FROM ids WHERE partition = ?1")?
        .query_row([partition], |row| unsigned(row, 0))
}

/// Raises a partition's ceiling; it never sinks. Returns what it is then.
pub(super) fn raise_ids(db: &Connection, partition: u8, ceiling: u64) -> rusqlite::Result<u64> {
    db.prepare_cached("UPDATE ids SET ceiling = max(ceiling, ?2) WHERE partition = ?1 RETURNING ceiling")?
        .query_row(params![partition, signed(ceiling)], |row| unsigned(row, 0))
}

/// A topic's row.
pub(super) struct Topic {
    pub id: i64,
    run: i64,
    ceiling: u64,
    pub trimmed: u64,
    pub trimmed_time: u64,
}

impl Topic {
    /// From the columns `id, run, ceiling, trimmed, trimmed_time`.
    pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            run: row.get(1)?,
            ceiling: unsigned(row, 2)?,
            trimmed: unsigned(row, 3)?,
            trimmed_time: unsigned(row, 4)?,
        })
    }
}

/// The topic of that name.
pub(super) fn find(db: &Connection, name: &str) -> rusqlite::Result<Option<Topic>> {
    db.prepare_cached("SELECT id, run, ceiling, trimmed, trimmed_time FROM topic WHERE name = ?1")?
        .query_row([name], Topic::from_row)
        .optional()
}

/// Offset and time of the newest publication a topic has ever stored; zeros if none. Retention deletes the oldest
/// first, so once all are gone that was the last one trimmed.
pub(super) fn newest(db: &Connection, topic: &Topic) -> rusqlite::Result<(u64, u64)> {
    let found = db
        .prepare_cached(&schema::NEWEST)?
        .query_row([topic.id], |row| Ok((unsigned(row, 0)?, unsigned(row, 1)?)))
        .optional()?;
    Ok(found.unwrap_or((topic.trimmed, topic.trimmed_time)))
}

/// How a topic stands, as `Mail::Opened` tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// Newest offset that may have been used.
    pub head: u64,
    /// Highest offset that may be used from now on.
    pub ceiling: u64,
    /// What is between this and `head` was lost, or never used.
    pub stored: u64,
}

/// What appending needs to know of a topic.
#[derive(Clone, Copy)]
struct Known {
    id: i64,
    /// Newest offset stored, and its time.
    head: u64,
    time: u64,
}

/// A topic's key for an append.
pub(super) enum Place {
    /// Write it, under this topic.
    New(i64),
    /// It is there already.
    Stored,
}

/// The topics, as this run sees them. Its methods belong inside the caller's transaction; after one that was rolled
/// back, [`Ledger::forget`].
pub(super) struct Ledger {
    run: i64,
    step: u64,
    known: HashMap<Box<str>, Known>,
}

impl Ledger {
    pub(super) fn new(run: i64, offset_step: u64) -> Self {
        Self { run, step: offset_step, known: HashMap::new() }
    }

    /// Drops what is known in memory.
    pub(super) fn forget(&mut self) {
        self.known.clear();
    }

    /// Opens a topic: records what a crash lost of it, and reserves offsets if `create`.
    ///
    /// What this run has reserved before counts as used, since nobody knows: the topic goes on above it.
    pub(super) fn open(&mut self, db: &Connection, name: &str, create: bool) -> rusqlite::Result<Standing> {
        let Some(topic) = find(db, name)? else {
            if !create {
                return Ok(Standing::default());
            }
            self.make(db, name, self.step)?;
            return Ok(Standing { head: 0, ceiling: self.step, stored: 0 });
        };
        let mut standing = self.stand(db, &topic)?;
        if topic.run != self.run {
            if standing.stored < standing.head {
                db.prepare_cached(
                    "INSERT INTO hole VALUES (?1, ?2, ?3)
                     ON CONFLICT (topic, first) DO UPDATE SET last = max(last, excluded.last)",
                )?
                .execute(params![
                    topic.id,
                    signed(standing.stored + 1),
                    signed(standing.head)
                ])?;
            }
            db.prepare_cached("UPDATE topic SET run = ?2 WHERE id = ?1")?
                .execute(params![topic.id, self.run])?;
        }
        if create {
            standing.ceiling = self.reserve(db, name, standing.head.saturating_add(self.step))?;
        }
        Ok(standing)
    }

    /// How a topic stands, without changing anything: nothing is reserved.
    pub(super) fn look(&self, db: &Connection, name: &str) -> rusqlite::Result<Standing> {
        match find(db, name)? {
            Some(topic) => self.stand(db, &topic),
            None => Ok(Standing::default()),
        }
    }

    fn stand(&self, db: &Connection, topic: &Topic) -> rusqlite::Result<Standing> {
        let (stored, _) = newest(db, topic)?;
        let head = topic.ceiling.max(stored);
        let lost = topic.run != self.run
            || db
                .prepare_cached("SELECT 1 FROM hole WHERE topic = ?1 AND first = ?2")?
                .exists(params![topic.id, signed(stored.saturating_add(1))])?;
        Ok(Standing { head, ceiling: head, stored: if lost { stored } else { head } })
    }

    /// Raises a topic's ceiling; it never sinks. Returns what it is then.
    pub(super) fn reserve(&mut self, db: &Connection, name: &str, ceiling: u64) -> rusqlite::Result<u64> {
        let raised = db
            .prepare_cached("UPDATE topic SET ceiling = max(ceiling, ?2) WHERE name = ?1 RETURNING ceiling")?
            .query_row(params![name, signed(ceiling)], |row| unsigned(row, 0))
            .optional()?;
        if let Some(raised) = raised {
            return Ok(raised);
        }
        self.make(db, name, ceiling)?;
        Ok(ceiling)
    }

    /// Lowers a topic's ceiling to the last offset used.
    pub(super) fn close(&self, db: &Connection, name: &str, head: u64) -> rusqlite::Result<()> {
        db.prepare_cached("UPDATE topic SET ceiling = ?2 WHERE name = ?1")?
            .execute(params![name, signed(head)])?;
        Ok(())
    }

    /// Where an append of this offset and time goes. A topic nobody has opened is made: its owner is mistaken, the
    /// publication is good.
    pub(super) fn place(
        &mut self,
        db: &Connection,
        name: &str,
        offset: u64,
        time: u64,
    ) -> rusqlite::Result<Place> {
        let known = match self.known(db, name)? {
            Some(known) => known,
            None => {
                self.make(db, name, 0)?;
                let Some(known) = self.known(db, name)? else {
                    return Err(rusqlite::Error::QueryReturnedNoRows);
                };
                known
            }
        };
        let id = known.id;
        if offset > known.head {
            let backwards = time < known.time;
            (known.head, known.time) = (offset, time);
            if backwards {
                mark_step(db, id, offset)?;
            }
            return Ok(Place::New(id));
        }
        if db.prepare_cached(&schema::EXISTS)?.exists(params![id, signed(offset)])? {
            return Ok(Place::Stored);
        }
        mark_step(db, id, offset)?;
        mark_step(db, id, offset.saturating_add(1))?;
        Ok(Place::New(id))
    }

    /// The topic's row number, if it is known at all.
    pub(super) fn id(&mut self, db: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
        Ok(self.known(db, name)?.map(|known| known.id))
    }

    fn known(&mut self, db: &Connection, name: &str) -> rusqlite::Result<Option<&mut Known>> {
        if !self.known.contains_key(name) {
            let Some(topic) = find(db, name)? else { return Ok(None) };
            let (head, time) = newest(db, &topic)?;
            if self.known.len() >= KNOWN_TOPICS {
                self.known.clear();
            }
            self.known.insert(name.into(), Known { id: topic.id, head, time });
        }
        Ok(self.known.get_mut(name))
    }

    fn make(&self, db: &Connection, name: &str, ceiling: u64) -> rusqlite::Result<()> {
        db.prepare_cached("INSERT INTO topic (name, run, ceiling) VALUES (?1, ?2, ?3)")?.execute(params![
            name,
            self.run,
            signed(ceiling)
        ])?;
        Ok(())
    }
}

/// Notes that time may run backwards between this offset and the one before.
fn mark_step(db: &Connection, topic: i64, offset: u64) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT INTO step VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
        .execute(params![topic, signed(offset)])?;
    Ok(())
}
