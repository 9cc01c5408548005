//! The core's whole vocabulary: what a client can ask, what it is answered, what is published.
//!
//! A dialect turns bytes into a [`Command`] and a [`Reply`] or [`Refusal`] into bytes. The engine sees
//! only these words, never a dialect's spelling.

use std::fmt;

use crate::http::Head;

/// What a publication is, whatever the dialect that spells it. One byte on lanes and in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A reading. The newest one of a topic stands for the older ones when a slow consumer is conflated.
    Telemetry = 0,
    /// An alert. Never conflated away.
    Alert = 1,
    /// A diagnostic of the device itself. Never conflated away.
    Diagnostic = 2,
}

impl Kind {
    /// The kind that `byte` stands for, if any.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Telemetry),
            1 => Some(Self::Alert),
            2 => Some(Self::Diagnostic),
            _ => None,
        }
    }

    /// Whether a newer publication of this kind makes an older one of the same topic superfluous.
    pub fn conflates(self) -> bool {
        self == Self::Telemetry
    }
}

/// One item of a topic, with its place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publication<'a> {
    /// The topic, e.g. `wells/WELL-001`; every level percent-encoded (see [`crate::topic`]).
    pub topic: &'a str,
    /// Place in the topic: 1, 2, 3, … ascending, never reused, holes allowed.
    pub offset: u64,
    /// Unique over all topics of this server (the `telemetry_id` of the `esp` dialect). Below 2^53.
    pub id: u64,
    /// What it is.
    pub kind: Kind,
    /// When the owner shard gave it its offset, milliseconds since the Unix epoch.
    pub time: u64,
    /// One JSON object, never empty of members, on one line: spliced from the publisher's bytes.
    pub body: &'a [u8],
}

/// Publications asked for in one request, not yet published: one arena, no allocation per row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    bytes: Vec<u8>,
    rows: Vec<RowSpan>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RowSpan {
    kind: Kind,
    start: u32,
    topic_end: u32,
    body_end: u32,
}

/// One row of a [`Batch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// Where it goes.
    pub topic: &'a str,
    /// What it is.
    pub kind: Kind,
    /// One JSON object on one line.
    pub body: &'a [u8],
}

impl Batch {
    /// Adds a row. The two closures append the topic and the body to the arena.
    pub fn push(&mut self, kind: Kind, topic: impl FnOnce(&mut Vec<u8>), body: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len() as u32;
        topic(&mut self.bytes);
        let topic_end = self.bytes.len() as u32;
        debug_assert!(std::str::from_utf8(&self.bytes[start as usize..]).is_ok());
        body(&mut self.bytes);
        let body_end = self.bytes.len() as u32;
        self.rows.push(RowSpan { kind, start, topic_end, body_end });
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows, in the order of the request.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = Row<'_>> {
        self.rows.iter().map(|span| {
            let (start, topic_end, body_end) =
                (span.start as usize, span.topic_end as usize, span.body_end as usize);
            Row {
                // Topics are percent-encoded ASCII; anything else would have been refused above.
                topic: std::str::from_utf8(&self.bytes[start..topic_end]).unwrap_or(""),
                kind: span.kind,
                body: &self.bytes[topic_end..body_end],
            }
        })
    }
}

/// A whole HTTP request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Request line and fields.
    pub head: &'a Head<'a>,
    /// The decoded body.
    pub body: &'a [u8],
}

/// What a door leads to: the verbs of the core. A new verb is a core change, on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Exchange a name and a password for a token.
    Login,
    /// Exchange a valid token for a younger one.
    Refresh,
    /// Publish readings, alerts or diagnostics.
    Publish(Kind),
    /// Open a stream of a topic's publications.
    Stream,
    /// List the topics.
    Topics,
    /// Read stored publications of a topic back.
    History,
    /// Read the newest publication of a topic.
    Latest,
    /// Say that the server is alive.
    Health,
    /// Answer with the request's own body.
    Echo,
}

/// Who may pass a door. The topics of the command are checked besides, against the token's filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Open,
    /// Anybody with a valid token.
    Reader,
    /// Roles `ingest` and `admin`.
    Publisher,
}

/// A password. Its `Debug` does not show it, so that no log can.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Password(…)")
    }
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Check a password and issue a token.
    Login {
        /// Name in the users file.
        username: String,
        /// Password, as sent.
        password: Password,
    },
    /// Issue a younger token for the principal of this request.
    Refresh,
    /// Publish all rows or none; answered once durable.
    Publish(Batch),
    /// Stream `topic`, from after offset `after` or from now.
    Stream {
        /// The topic.
        topic: String,
        /// Send the newest telemetry first (only where `after` is absent).
        snapshot: bool,
        /// Resume after this offset.
        after: Option<u64>,
    },
    /// List the topics below a prefix such as `wells/`.
    Topics {
        /// The prefix, with its slash.
        prefix: &'static str,
    },
    /// Read telemetry back, oldest first.
    History {
        /// The topic.
        topic: String,
        /// Earliest publication time, milliseconds since the epoch, inclusive.
        from: u64,
        /// Latest publication time, milliseconds since the epoch, inclusive.
        to: u64,
        /// At most this many rows: the newest of the interval.
        limit: u32,
    },
    /// The newest telemetry of a topic.
    Latest {
        /// The topic.
        topic: String,
    },
    /// Say that the server is alive.
    Health,
    /// Answer with the request's own body.
    Echo,
}

/// One topic in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// The topic.
    pub topic: String,
    /// Newest stored offset.
    pub offset: u64,
    /// Time of the newest stored publication, milliseconds since the epoch.
    pub time: u64,
}

/// A good answer. The dialect writes its body; the engine sets status and fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// A token.
    Token {
        /// The signed token.
        access_token: &'a str,
        /// Seconds until it expires.
        expires_in: u64,
    },
    /// All rows are published and durable; their offsets, in the order of the rows.
    Accepted {
        /// One offset per row.
        offsets: &'a [u64],
    },
    /// The topics asked for that the principal may see.
    Topics(&'a [TopicInfo]),
    /// Stored publications, oldest first.
    History {
        /// The topic.
        topic: &'a str,
        /// The publications.
        publications: &'a [Publication<'a>],
    },
    /// The newest telemetry.
    Latest(Publication<'a>),
    /// Alive.
    Health {
        /// Now, milliseconds since the epoch.
        time: u64,
    },
}

/// Why a client's request is not done. Every one has a status and a text that says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No token, or one that is not valid (any more).
    Unauthenticated,
    /// Name or password is wrong.
    WrongPassword,
    /// The principal's role or topic filters do not allow it.
    Forbidden(&'static str),
    /// The browser's page comes from an origin that is not listed.
    ForeignOrigin,
    /// No such path, or nothing stored under it.
    NotFound(&'static str),
    /// The path exists, but not for this method; the `Allow` field's value.
    MethodNotAllowed(&'static str),
    /// A malformed request.
    Invalid(String),
    /// Row `row` (counted from 0) of an ingest is malformed: not JSON (`syntax`), or JSON that is not a reading.
    InvalidRow {
        /// Which row, counted from 0.
        row: usize,
        /// Whether it is not even JSON (400), rather than JSON of the wrong shape (422).
        syntax: bool,
        /// What is wrong with it.
        message: &'static str,
    },
    /// More than the limit, which the text names.
    TooLarge(&'static str),
    /// Too much at once; try again after so many seconds.
    RateLimited {
        /// Seconds.
        retry_after: u32,
    },
    /// A bounded queue is full, or the server is draining; try again after so many seconds.
    Busy {
        /// Seconds.
        retry_after: u32,
    },
    /// The store's disk is full: not durable, not acknowledged.
    StoreFull,
    /// The store failed: not durable, not acknowledged.
    StoreFailed,
}

impl Refusal {
    /// The HTTP status (RFC 9110 section 15) that says it.
    pub fn status(&self) -> u16 {
        match self {
            Self::Unauthenticated | Self::WrongPassword => 401,
            Self::Forbidden(_) | Self::ForeignOrigin => 403,
            Self::NotFound(_) => 404,
            Self::MethodNotAllowed(_) => 405,
            Self::Invalid(_) => 400,
            Self::InvalidRow { syntax: true, .. } => 400,
            Self::InvalidRow { syntax: false, .. } => 422,
            Self::TooLarge(_) => 413,
            Self::RateLimited { .. } => 429,
            Self::Busy { .. } => 503,
            Self::StoreFull => 507,
            Self::StoreFailed => 500,
        }
    }
}

/// Why offsets are missing from a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// Retention has removed them.
    Retention,
    /// The server ended without having stored them.
    Crash,
    /// The resume position is ahead of the topic: it is not from here.
    UnknownPosition,
    /// The client read too slowly: telemetry was conflated.
    SlowConsumer,
}

impl GapReason {
    /// The word that goes over the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::Crash => "crash",
            Self::UnknownPosition => "unknown_position",
            Self::SlowConsumer => "slow_consumer",
        }
    }
}

/// What a stream says of itself, between publications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice<'a> {
    /// The stream is open.
    Connected {
        /// Name of the platform, for the text.
        platform: &'a str,
        /// The topic.
        topic: &'a str,
        /// Now, milliseconds since the epoch.
        time: u64,
    },
    /// Still alive.
    Heartbeat {
        /// Now, milliseconds since the epoch.
        time: u64,
    },
    /// Offsets `from..=to` will not come, save those that follow this notice.
    Gap {
        /// The topic.
        topic: &'a str,
        /// First offset missing.
        from: u64,
        /// Last offset missing.
        to: u64,
        /// Why.
        reason: GapReason,
        /// Now, milliseconds since the epoch.
        time: u64,
    },
    /// The stream ends: why.
    Error(&'a Refusal),
}
