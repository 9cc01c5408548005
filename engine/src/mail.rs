//! Mail: everything that crosses a lane of the mesh, and its bytes.
//!
//! Records never leave the process, so the encoding is little-endian fields one after the other, with no version.
//! What a field means to a sender's own bookkeeping (`tag`, `ticket`) comes back untouched in the answer.

use protocol::message::{GapReason, Kind};

/// A publication's fields as they cross a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// Place in its topic.
    pub offset: u64,
    /// Unique id.
    pub id: u64,
    /// What it is.
    pub kind: Kind,
    /// Milliseconds since the epoch.
    pub time: u64,
    /// One JSON object.
    pub body: &'a [u8],
}

/// Offsets `from..=to` that a reader will not get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// First.
    pub from: u64,
    /// Last.
    pub to: u64,
    /// Why.
    pub reason: GapReason,
}

/// Why a publication is not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A bounded queue is full. It was not published.
    Busy,
    /// The disk is full. It was published, but is not durable.
    Full,
    /// The store failed. It was published, but is not durable.
    Store,
    /// Too many topics. It was not published.
    Topics,
}

/// How the answer to a read ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadEnd {
    /// That was all.
    Done,
    /// The reader failed.
    Failed,
}

trait Field<'a>: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn get(input: &mut &'a [u8]) -> Option<Self>;
}

macro_rules! mail {
    ($($(#[$doc:meta])* $name:ident = $code:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        /// One record.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mail<'a> {
            $($(#[$doc])* $name { $($(#[$field_doc])* $field: $type,)* },)*
        }

        impl<'a> Mail<'a> {
            /// Replaces the contents of `out` by the record's bytes.
            pub fn encode(&self, out: &mut Vec<u8>) {
                out.clear();
                match self {
                    $(Self::$name { $($field,)* } => { out.push($code); $(Field::put($field, out);)* })*
                }
            }

            /// The record; `None` if these bytes are none.
            pub fn decode(mut input: &'a [u8]) -> Option<Self> {
                let input = &mut input;
                match u8::get(input)? {
                    $($code => Some(Self::$name { $($field: Field::get(input)?,)* }),)*
                    _ => None,
                }
            }
        }
    };
}

mail! {
    /// To a topic's owner: give this row an offset, publish and store it.
    Publish = 1 {
        /// The request at the sender.
        ticket: u64,
        /// Its row.
        row: u32,
        /// Kind.
        kind: Kind,
        /// Topic.
        topic: &'a str,
        /// Body.
        body: &'a [u8],
    }
    /// From the owner: the row is durable.
    Acked = 2 {
        /// As in `Publish`.
        ticket: u64,
        /// As in `Publish`.
        row: u32,
        /// Its offset.
        offset: u64,
    }
    /// From the owner: the row is not acknowledged.
    Refused = 3 {
        /// As in `Publish`.
        ticket: u64,
        /// As in `Publish`.
        row: u32,
        /// Why.
        failure: Failure,
    }
    /// To the owner: send this shard the topic's publications from now on, under this name.
    Watch = 4 {
        /// The sender's name for its view of the topic.
        view: u64,
        /// Topic.
        topic: &'a str,
    }
    /// From the owner: from here on `Live` follows, starting after offset `head`.
    Watching = 5 {
        /// As in `Watch`.
        view: u64,
        /// Newest offset before the first `Live`; 0 on a fresh topic.
        head: u64,
    }
    /// To the owner: no more.
    Unwatch = 6 {
        /// As in `Watch`.
        view: u64,
        /// Topic.
        topic: &'a str,
    }
    /// From the owner: the topic's next publication.
    Live = 7 {
        /// As in `Watch`.
        view: u64,
        /// The publication.
        item: Item<'a>,
    }
    /// From the owner: it can't be watched, there are too many topics.
    Unwatchable = 13 {
        /// As in `Watch`.
        view: u64,
    }
    /// From the owner: in place of `Live`, when this shard was so slow that the log has moved on.
    Missed = 14 {
        /// As in `Watch`.
        view: u64,
        /// What will not come.
        gap: Gap,
    }
    /// To the owner: send what is retained after `after`, up to what this shard was sent live; or the newest
    /// telemetry only.
    Replay = 8 {
        /// The sender's name for the reader.
        tag: u64,
        /// Topic.
        topic: &'a str,
        /// Offset after which to start.
        after: u64,
        /// Leave out telemetry but the newest.
        conflate: bool,
    }
    /// From the owner or the store: one publication of a replay, a history, or a latest value.
    Replayed = 9 {
        /// As in the question.
        tag: u64,
        /// The publication.
        item: Item<'a>,
    }
    /// From the owner or the store: this much of a replay.
    ReplayEnd = 10 {
        /// As in `Replay`.
        tag: u64,
        /// Everything up to here was sent or is in the gap.
        upto: u64,
        /// Whether the live tail follows at once, in this lane; if not, ask again after `upto`.
        live: bool,
        /// What is missing before the first publication of this part.
        gap: Option<Gap>,
    }
    /// To the owner: the newest telemetry, please.
    Latest = 11 {
        /// The sender's name for the reader.
        tag: u64,
        /// Topic.
        topic: &'a str,
    }
    /// From the owner: there is no newest telemetry in memory.
    NoLatest = 12 {
        /// As in `Latest`.
        tag: u64,
    }
    /// To the store: what do you know of this topic? Reserve `ceiling` offsets beyond its last if `create`.
    Open = 20 {
        /// Topic.
        topic: &'a str,
        /// Whether to make it, with a first ceiling.
        create: bool,
    }
    /// From the store: the topic as it stands. All zero if it is unknown and was not made.
    Opened = 21 {
        /// Topic.
        topic: &'a str,
        /// Newest offset that may have been used before this start; the next one is above it.
        head: u64,
        /// Highest offset that may be used; synced.
        ceiling: u64,
        /// Offsets after this and up to `head` were lost by a crash, or never used; `head` if none.
        stored: u64,
        /// The newest telemetry, if there is any.
        latest: Option<Item<'a>>,
    }
    /// To the store: let offsets of this topic go up to `ceiling`.
    Reserve = 22 {
        /// Topic.
        topic: &'a str,
        /// New ceiling.
        ceiling: u64,
    }
    /// From the store: synced.
    Reserved = 23 {
        /// Topic.
        topic: &'a str,
        /// New ceiling.
        ceiling: u64,
    }
    /// To the store: let ids of this partition go up to `ceiling`.
    ReserveIds = 24 {
        /// Partition.
        partition: u8,
        /// New ceiling, counted in the partition.
        ceiling: u64,
    }
    /// From the store: synced.
    ReservedIds = 25 {
        /// Partition.
        partition: u8,
        /// New ceiling.
        ceiling: u64,
    }
    /// To the store: keep this.
    Append = 26 {
        /// Topic.
        topic: &'a str,
        /// The publication.
        item: Item<'a>,
    }
    /// From the store: the first `count` of all this shard's appends are durable by the configured rule.
    Stored = 27 {
        /// How many, since the start.
        count: u64,
    }
    /// From the store: like `Stored`, but those since the last answer are lost.
    Unstored = 28 {
        /// How many, since the start.
        count: u64,
        /// Why.
        failure: Failure,
    }
    /// To the store at a drain: the topic's offsets end here.
    Close = 29 {
        /// Topic.
        topic: &'a str,
        /// Newest offset used.
        head: u64,
    }
    /// To the store's reader: publications of a topic with offsets after `after` and below `before`, oldest first, up to
    /// `max_bytes`; ends with `ReplayEnd`, sent to `node`.
    ReadRange = 40 {
        /// Whom to answer.
        node: u8,
        /// The asker's name for the question.
        tag: u64,
        /// Topic.
        topic: &'a str,
        /// Offset after which to start.
        after: u64,
        /// Offset at which to end, exclusive.
        before: u64,
        /// Bytes of bodies at most.
        max_bytes: u32,
        /// Leave out telemetry.
        conflate: bool,
    }
    /// To the store's reader: the newest `limit` telemetry publications of an interval; `Replayed`… then `ReadDone`.
    ReadHistory = 41 {
        /// The asker's name for the question.
        tag: u64,
        /// Topic.
        topic: &'a str,
        /// Milliseconds since the epoch, inclusive.
        from: u64,
        /// Milliseconds since the epoch, inclusive.
        to: u64,
        /// Rows at most.
        limit: u32,
    }
    /// To the store's reader: the topics below a prefix; `TopicRow`… then `ReadDone`.
    ReadTopics = 42 {
        /// The asker's name for the question.
        tag: u64,
        /// Prefix with its slash.
        prefix: &'a str,
    }
    /// From the store's reader: one topic.
    TopicRow = 43 {
        /// As in the question.
        tag: u64,
        /// Topic.
        topic: &'a str,
        /// Newest stored offset.
        offset: u64,
        /// Its time, milliseconds since the epoch.
        time: u64,
    }
    /// From the store's reader: the end of a history or a listing.
    ReadDone = 44 {
        /// As in the question.
        tag: u64,
        /// How it ended.
        end: ReadEnd,
    }
    /// To the accounts: is this the password?
    CheckPassword = 50 {
        /// The asker's name for the question.
        tag: u64,
        /// Name.
        username: &'a str,
        /// Password.
        password: &'a str,
    }
    /// From the accounts: it is, and here is a token. Empty: it is not.
    PasswordChecked = 51 {
        /// As in the question.
        tag: u64,
        /// The signed token, or empty.
        token: &'a str,
        /// Whether there were too many attempts at once, so that it was not even checked.
        busy: bool,
    }
}

impl Field<'_> for u8 {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(*self);
    }
    fn get(input: &mut &[u8]) -> Option<Self> {
        let (&first, rest) = input.split_first()?;
        *input = rest;
        Some(first)
    }
}

macro_rules! integers {
    ($($type:ty)*) => {$(
        impl Field<'_> for $type {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn get(input: &mut &[u8]) -> Option<Self> {
                let (bytes, rest) = input.split_first_chunk()?;
                *input = rest;
                Some(Self::from_le_bytes(*bytes))
            }
        }
    )*};
}
integers!(u32 u64);

impl Field<'_> for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn get(input: &mut &[u8]) -> Option<Self> {
        u8::get(input).map(|byte| byte == 1)
    }
}

impl<'a> Field<'a> for &'a [u8] {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        out.extend_from_slice(self);
    }
    fn get(input: &mut &'a [u8]) -> Option<Self> {
        let len = u32::get(input)? as usize;
        let (bytes, rest) = input.split_at_checked(len)?;
        *input = rest;
        Some(bytes)
    }
}

impl<'a> Field<'a> for &'a str {
    fn put(&self, out: &mut Vec<u8>) {
        self.as_bytes().put(out);
    }
    fn get(input: &mut &'a [u8]) -> Option<Self> {
        std::str::from_utf8(<&[u8]>::get(input)?).ok()
    }
}

impl Field<'_> for Kind {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(*self as u8);
    }
    fn get(input: &mut &[u8]) -> Option<Self> {
        Kind::from_byte(u8::get(input)?)
    }
}

impl<'a> Field<'a> for Item<'a> {
    fn put(&self, out: &mut Vec<u8>) {
        self.offset.put(out);
        self.id.put(out);
        self.kind.put(out);
        self.time.put(out);
        self.body.put(out);
    }
    fn get(input: &mut &'a [u8]) -> Option<Self> {
        Some(Self {
            offset: Field::get(input)?,
            id: Field::get(input)?,
            kind: Field::get(input)?,
            time: Field::get(input)?,
            body: Field::get(input)?,
        })
    }
}

impl<'a, T: Field<'a>> Field<'a> for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn get(input: &mut &'a [u8]) -> Option<Self> {
        Some(if bool::get(input)? { Some(T::get(input)?) } else { None })
    }
}

impl Field<'_> for Gap {
    fn put(&self, out: &mut Vec<u8>) {
        self.from.put(out);
        self.to.put(out);
        out.push(self.reason as u8);
    }
    fn get(input: &mut &[u8]) -> Option<Self> {
        let (from, to) = (Field::get(input)?, Field::get(input)?);
        let reason = pick(
            u8::get(input)?,
            &[GapReason::Retention, GapReason::Crash, GapReason::UnknownPosition, GapReason::SlowConsumer],
        )?;
        Some(Self { from, to, reason })
    }
}

impl Field<'_> for Failure {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(*self as u8);
    }
    fn get(input: &mut &[u8]) -> Option<Self> {
        pick(u8::get(input)?, &[Self::Busy, Self::Full, Self::Store, Self::Topics])
    }
}

impl Field<'_> for ReadEnd {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(*self as u8);
    }
    fn get(input: &mut &[u8]) -> Option<Self> {
        pick(u8::get(input)?, &[Self::Done, Self::Failed])
    }
}

/// The variant with this number; `all` lists them in order.
fn pick<T: Copy>(number: u8, all: &[T]) -> Option<T> {
    all.get(usize::from(number)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_type_comes_back_as_it_went_in() {
        let item = Item { offset: 7, id: 1 << 40, kind: Kind::Alert, time: 3, body: b"{}" };
        let reasons =
            [GapReason::Retention, GapReason::Crash, GapReason::UnknownPosition, GapReason::SlowConsumer];
        let failures = [Failure::Busy, Failure::Full, Failure::Store, Failure::Topics];
        let mut mails = vec![
            Mail::Publish { ticket: 1, row: 2, kind: Kind::Diagnostic, topic: "wells/a", body: b"x" },
            Mail::Live { view: 9, item },
            Mail::Opened { topic: "t", head: 1, ceiling: 2, stored: 1, latest: Some(item) },
            Mail::Opened { topic: "t", head: 0, ceiling: 0, stored: 0, latest: None },
            Mail::ReservedIds { partition: 255, ceiling: u64::MAX },
            Mail::ReadDone { tag: 1, end: ReadEnd::Failed },
            Mail::ReplayEnd { tag: 1, upto: 2, live: true, gap: None },
        ];
        mails.extend(reasons.map(|reason| Mail::ReplayEnd {
            tag: 1,
            upto: 2,
            live: false,
            gap: Some(Gap { from: 1, to: 2, reason }),
        }));
        mails.extend(failures.map(|failure| Mail::Refused { ticket: 1, row: 0, failure }));
        let mut bytes = Vec::new();
        for mail in mails {
            mail.encode(&mut bytes);
            assert_eq!(Mail::decode(&bytes), Some(mail));
            for cut in 0..bytes.len() {
                assert_ne!(Mail::decode(&bytes[..cut]), Some(mail), "cut at {cut}");
            }
        }
    }

    #[test]
    fn what_is_no_record_is_none() {
        assert_eq!(Mail::decode(b""), None);
        assert_eq!(Mail::decode(&[200, 1, 2, 3]), None);
    }
}
