//! A shard's connections: one small struct each, in a table whose places are let again.

use protocol::dialect::DialectId;
use protocol::message::{Batch, Kind};

use crate::mail::{Failure, Item};
use crate::ring::{Fd, Key};
use crate::session::Session;

/// No deadline.
pub const NEVER: u64 = u64::MAX;

/// What the shard keeps of one client.
pub struct Connection {
    /// Its descriptor.
    pub fd: Fd,
    /// Generation of its place in the table.
    pub generation: u32,
    /// Bytes of the send in flight; 0: none is.
    pub sending: u32,
    /// A `Writable` was asked for and has not come.
    pub awaits_room: bool,
    /// It was told to close; only `Closed` is still to come.
    pub closing: bool,
    /// It closes once its outbox is empty.
    pub closes_when_sent: bool,
    /// It was refused while it was still sending: what it sends is thrown away until it has read why, or time is over.
    pub lingers: bool,
    /// There may be input that was not read because the session was not reading.
    pub unread: bool,
    /// The client.
    pub session: Session,
    /// The stream's last frame, for when the send in flight has ended.
    pub last_frame: Option<Box<Vec<u8>>>,
    /// Bytes for this client alone that its socket had no room for.
    pub outbox: Option<Box<Outbox>>,
    /// The request in progress.
    pub pending: Option<Box<Pending>>,
    /// The stream it carries.
    pub stream: Option<Stream>,
    /// Since when its oldest unsent byte waits, ms; 0: nothing does.
    pub stalled: u64,
    /// When something is to be done about it unless it moves, ms.
    pub deadline: u64,
    /// For when the wheel has an entry, ms.
    pub armed: u64,
}

// An idle, authenticated, subscribed connection costs this, 16 bytes in its group, 32 in the timer wheel and 4 to 8 in
// the ring, and nothing on the heap: the promise is 512 in all.
const _: () = assert!(size_of::<Connection>() <= 256);

/// Private bytes on their way out: replies, and replays before a stream joins its group.
#[derive(Default)]
pub struct Outbox {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// How many of them the socket has taken.
    pub sent: usize,
}

/// A stream of one topic.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// The shard's view of the topic.
    pub view: u32,
    /// Who spells its events.
    pub dialect: DialectId,
    /// Where it stands.
    pub stage: Stage,
    /// Offset up to which everything has been written for it. Meaningless once live.
    pub after: u64,
    /// When the token ends, ms on the monotonic clock.
    pub expires: u64,
}

/// Where a stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Waits for the owner to say where the topic is.
    Opening {
        /// Where the client wants to resume.
        after: Option<u64>,
        /// Whether it wants the newest telemetry first.
        snapshot: bool,
    },
    /// Waits for the newest telemetry.
    Snapshot,
    /// Waits for its turn to be replayed to, or for its socket to take the last part.
    Behind {
        /// Whether it is so because it was too slow.
        conflate: bool,
    },
    /// A part of a replay was asked for.
    Replaying {
        /// As in `Behind`.
        conflate: bool,
        /// Publications of this part so far.
        rows: u32,
    },
    /// A member of a group.
    Live {
        /// Which group.
        group: u32,
        /// Its place in the group.
        member: u32,
    },
}

/// A request whose answer is being collected.
pub enum Pending {
    /// Rows are being published.
    Publish(Publishing),
    /// Rows are being read.
    Read(Reading),
    /// A password is being checked.
    Login,
}

/// Rows being published.
pub struct Publishing {
    /// Offsets so far, in the order of the rows.
    pub offsets: Vec<u64>,
    /// Rows still unanswered.
    pub left: usize,
    /// The first failure.
    pub failure: Option<Failure>,
    /// When the request was whole, ns on the monotonic clock.
    pub began: u64,
}

impl Publishing {
    /// All rows of `batch` unanswered at `now`.
    pub fn new(batch: &Batch, now: u64) -> Self {
        Self { offsets: vec![0; batch.len()], left: batch.len(), failure: None, began: now }
    }
}

/// Rows being read.
pub struct Reading {
    /// Of which topic; empty for a listing.
    pub topic: String,
    /// Whether one row is the answer.
    pub latest: bool,
    /// The publications so far.
    pub rows: Vec<OwnedItem>,
    /// The topics so far, of those the principal may see.
    pub topics: Vec<protocol::message::TopicInfo>,
}

/// A publication's fields, kept.
pub struct OwnedItem {
    /// As in [`Item`].
    pub offset: u64,
    /// As in [`Item`].
    pub id: u64,
    /// As in [`Item`].
    pub kind: Kind,
    /// As in [`Item`].
    pub time: u64,
    /// As in [`Item`].
    pub body: Box<[u8]>,
}

impl From<Item<'_>> for OwnedItem {
    fn from(item: Item<'_>) -> Self {
        let Item { offset, id, kind, time, body } = item;
        Self { offset, id, kind, time, body: body.into() }
    }
}

impl Connection {
    /// A client that has just connected.
    pub fn new(fd: Fd, session: Session) -> Self {
        Self {
            fd,
            generation: 0,
            sending: 0,
            awaits_room: false,
            closing: false,
            closes_when_sent: false,
            lingers: false,
            unread: false,
            session,
            last_frame: None,
            outbox: None,
            pending: None,
            stream: None,
            stalled: 0,
            deadline: NEVER,
            armed: NEVER,
        }
    }

    /// Its place in a group, if it is a member of one.
    pub fn membership(&self) -> Option<(u32, u32)> {
        match self.stream.as_ref()?.stage {
            Stage::Live { group, member } => Some((group, member)),
            _ => None,
        }
    }
}

/// Places allocated together. The table grows by so many and never moves: no copy, and no memory held twice.
const PAGE: usize = 128;

/// The table. A place is let again only after the ring has said `Closed` for its tenant.
#[derive(Default)]
pub struct Connections {
    pages: Vec<Box<[Place]>>,
    free: Vec<u32>,
    len: usize,
}

enum Place {
    Let(Connection),
    Free(u32),
}

impl Connections {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Lets a place.
    pub fn insert(&mut self, mut connection: Connection) -> Key {
        self.len += 1;
        let index = self.free.pop().unwrap_or_else(|| self.grow());
        let place = &mut self.pages[index as usize / PAGE][index as usize % PAGE];
        if let Place::Free(generation) = *place {
            connection.generation = generation;
        }
        let key = Key { index, generation: connection.generation };
        *place = Place::Let(connection);
        key
    }

    /// The connection of this key, unless it is gone.
    pub fn get(&mut self, key: Key) -> Option<&mut Connection> {
        self.at(key.index).filter(|(found, _)| *found == key).map(|(_, connection)| connection)
    }

    /// The connection at this place, and its key.
    pub fn at(&mut self, index: u32) -> Option<(Key, &mut Connection)> {
        match &mut self.pages.get_mut(index as usize / PAGE)?[index as usize % PAGE] {
            Place::Let(connection) => Some((Key { index, generation: connection.generation }, connection)),
            Place::Free(_) => None,
        }
    }

    /// Frees the place.
    pub fn remove(&mut self, key: Key) -> Option<Connection> {
        self.get(key)?;
        let next = (key.generation + 1) & Key::GENERATION_MASK;
        let place = &mut self.pages[key.index as usize / PAGE][key.index as usize % PAGE];
        let gone = std::mem::replace(place, Place::Free(next));
        self.free.push(key.index);
        self.len -= 1;
        match gone {
            Place::Let(connection) => Some(connection),
            Place::Free(_) => None,
        }
    }

    /// The keys of all.
    pub fn keys(&self) -> Vec<Key> {
        let keys = self.pages.iter().flatten().enumerate().filter_map(|(index, place)| match place {
            Place::Let(connection) => Some(Key { index: index as u32, generation: connection.generation }),
            Place::Free(_) => None,
        });
        keys.collect()
    }

    /// Adds a page; gives one of its places, the others become free, the lowest next.
    fn grow(&mut self) -> u32 {
        let first = (self.pages.len() * PAGE) as u32;
        self.pages.push((0..PAGE).map(|_| Place::Free(0)).collect());
        self.free.extend((first + 1..first + PAGE as u32).rev());
        first
    }
}

/// A key as the tag or ticket of a question, and back.
pub fn tag_of(key: Key) -> u64 {
    u64::from(key.generation) << 32 | u64::from(key.index)
}

/// The key that a tag stands for.
pub fn key_of(tag: u64) -> Key {
    Key { index: tag as u32, generation: (tag >> 32) as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_let_again_does_not_answer_to_the_old_key() {
        let mut table = Connections::default();
        let old = table.insert(Connection::new(3, Session::new(0, true)));
        assert_eq!(key_of(tag_of(old)), old);
        assert_eq!(table.remove(old).map(|gone| gone.fd), Some(3));
        let new = table.insert(Connection::new(4, Session::new(0, true)));
        assert_eq!(new.index, old.index);
        assert!(table.get(old).is_none() && table.remove(old).is_none());
        assert_eq!(table.get(new).map(|found| found.fd), Some(4));
        assert_eq!(table.keys(), [new]);
    }
}
