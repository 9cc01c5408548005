//! Dialects: a trait to write, a table to register, an enum to run.
//!
//! A dialect is one existing system's spelling of the core's [`Command`]s, [`Reply`]s and notices. It is a unit
//! struct with associated functions only and holds no state; it writes bodies, and the transport frames them.
//! A new spelling costs one file, one line in the table below, and one folder of golden transcripts.

use std::borrow::Cow;

use crate::http::{Head, Method};
use crate::message::{Access, Command, Notice, Publication, Refusal, Reply, Request, Verb};
use crate::percent;

mod esp;
mod test;

/// Longest body of a publication, in bytes. Bounds what a lane, a chunk and a consumer must hold at once.
pub const MAX_ROW_BYTES: usize = 128 * 1024;
/// Most rows of one publish request.
pub const MAX_ROWS: usize = 100_000;

/// One path a dialect answers at.
#[derive(Clone, Copy, Debug)]
pub struct Door {
    /// The method; a GET door also answers HEAD.
    pub method: Method,
    /// The path; `{name}` stands for exactly one level.
    pub path: &'static str,
    /// Who may pass.
    pub access: Access,
    /// What it leads to.
    pub verb: Verb,
}

impl Door {
    const fn new(method: Method, path: &'static str, access: Access, verb: Verb) -> Self {
        Self { method, path, access, verb }
    }

    fn answers(&self, method: Method) -> bool {
        self.method == method || (self.method == Method::Get && method == Method::Head)
    }

    /// The level of `path` that stands where the door's `{…}` does (empty if it has none), if they match.
    fn level<'a>(&self, path: &'a str) -> Option<&'a str> {
        let Some((before, rest)) = self.path.split_once('{') else {
            return (self.path == path).then_some("");
        };
        let (_, after) = rest.split_once('}')?;
        let level = path.strip_prefix(before)?.strip_suffix(after)?;
        (!level.is_empty() && !level.contains('/')).then_some(level)
    }

    /// Whether some request would fit both.
    fn overlaps(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.path.split('/'), other.path.split('/'));
        (self.answers(other.method) || other.answers(self.method))
            && ours.clone().count() == theirs.clone().count()
            && ours.zip(theirs).all(|(a, b)| a == b || a.starts_with('{') || b.starts_with('{'))
    }
}

/// Whose spelling it is, and how it spells. Functions of a dialect never see a connection.
trait Dialect {
    /// Name in configuration, lower case.
    const NAME: &'static str;
    /// Where it answers. No two of its doors overlap, and a path has at most one `{…}`.
    const DOORS: &'static [Door];

    /// What `request` at a door asks for. `param` is the decoded `{…}` level of the path, `now` is in
    /// milliseconds since the epoch.
    fn command(verb: Verb, param: &str, request: &Request<'_>, now: u64) -> Result<Command, Refusal>;
    /// Appends the JSON body of a good answer.
    fn reply(reply: &Reply<'_>, out: &mut Vec<u8>);
    /// Appends the JSON body of a refusal.
    fn refusal(refusal: &Refusal, out: &mut Vec<u8>);
    /// Appends a publication's body and gives the event's name.
    fn event(publication: &Publication<'_>, out: &mut Vec<u8>) -> &'static str;
    /// Appends a notice's body and gives the event's name.
    fn notice(notice: &Notice<'_>, out: &mut Vec<u8>) -> &'static str;
}

macro_rules! table {
    ($($(#[$doc:meta])* $id:ident => $dialect:ty,)+) => {
        /// A dialect, in one byte. What it does is dispatched by `match`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DialectId {
            $($(#[$doc])* $id,)+
        }

        impl DialectId {
            /// Every dialect, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$id,)+];

            /// Its name in configuration.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$id => <$dialect>::NAME,)+
                }
            }

            /// Where it answers.
            pub fn doors(self) -> &'static [Door] {
                match self {
                    $(Self::$id => <$dialect>::DOORS,)+
                }
            }

            /// What `request` at one of its doors asks for. `verb` is the door's, `param` the level that
            /// [`find`] gave with it, `now` is in milliseconds since the epoch.
            ///
            /// # Errors
            /// Why the request is not well formed.
            pub fn command(
                self,
                verb: Verb,
                param: &str,
                request: &Request<'_>,
                now: u64,
            ) -> Result<Command, Refusal> {
                match self {
                    $(Self::$id => <$dialect>::command(verb, param, request, now),)+
                }
            }

            /// Appends the JSON body of a good answer.
            pub fn reply(self, reply: &Reply<'_>, out: &mut Vec<u8>) {
                match self {
                    $(Self::$id => <$dialect>::reply(reply, out),)+
                }
            }

            /// Appends the JSON body of a refusal; its status is [`Refusal::status`].
            pub fn refusal(self, refusal: &Refusal, out: &mut Vec<u8>) {
                match self {
                    $(Self::$id => <$dialect>::refusal(refusal, out),)+
                }
            }

            /// Appends the JSON body of a publication, one line, and gives the event's name.
            pub fn event(self, publication: &Publication<'_>, out: &mut Vec<u8>) -> &'static str {
                match self {
                    $(Self::$id => <$dialect>::event(publication, out),)+
                }
            }

            /// Appends the JSON body of a notice, one line, and gives the event's name.
            pub fn notice(self, notice: &Notice<'_>, out: &mut Vec<u8>) -> &'static str {
                match self {
                    $(Self::$id => <$dialect>::notice(notice, out),)+
                }
            }
        }
    };
}

table! {
    /// Oil-well telemetry.
    Esp => esp::Esp,
    /// Surfaces that outside protocol suites need. Not for production.
    Test => test::Test,
}

impl DialectId {
    /// The dialect of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|dialect| dialect.name() == name)
    }
}

/// The dialects of a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DialectSet(u8);

// One bit per dialect.
const _: () = assert!(DialectId::ALL.len() <= u8::BITS as usize);

impl DialectSet {
    /// Adds one.
    pub fn insert(&mut self, dialect: DialectId) {
        self.0 |= 1 << dialect as u8;
    }

    /// Whether it is among them.
    pub fn contains(self, dialect: DialectId) -> bool {
        self.0 & (1 << dialect as u8) != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// They, in the order of the table.
    pub fn iter(self) -> impl Iterator<Item = DialectId> {
        DialectId::ALL.iter().copied().filter(move |&dialect| self.contains(dialect))
    }
}

impl FromIterator<DialectId> for DialectSet {
    fn from_iter<I: IntoIterator<Item = DialectId>>(dialects: I) -> Self {
        let mut set = Self::default();
        dialects.into_iter().for_each(|dialect| set.insert(dialect));
        set
    }
}

/// What stands at a path.
#[derive(Clone, Debug)]
pub enum Found<'a> {
    /// A door that answers the method.
    Door {
        /// Whose it is.
        dialect: DialectId,
        /// The door.
        door: &'static Door,
        /// The path's level where the door has `{…}`, decoded; empty if it has none.
        param: Cow<'a, str>,
    },
    /// Doors for other methods only; the `Allow` field's value (RFC 9110 section 10.2.1).
    WrongMethod(&'static str),
    /// Nothing.
    Nothing,
    /// A door, but the level in its `{…}` does not decode: see [`percent::PercentError`].
    BadPath,
}

/// Finds the door at `path`, which is as sent, without the query: literal levels compare byte by byte, `{…}`
/// takes one level that is not empty, and decodes it. Allocates only to decode.
pub fn find(dialects: DialectSet, method: Method, path: &str) -> Found<'_> {
    let mut others = 0;
    for dialect in dialects.iter() {
        for door in dialect.doors() {
            let Some(level) = door.level(path) else {
                continue;
            };
            if !door.answers(method) {
                others |= methods_of(door);
                continue;
            }
            return match percent::decode(level) {
                Ok(param) => Found::Door { dialect, door, param },
                Err(_) => Found::BadPath,
            };
        }
    }
    match others {
        0 => Found::Nothing,
        _ => Found::WrongMethod(allow(others)),
    }
}

/// Two dialects of a listener that claim the same method and path, and that path, if there are such.
pub fn conflicts(dialects: DialectSet) -> Option<(DialectId, DialectId, &'static str)> {
    let all: Vec<_> = dialects.iter().collect();
    all.iter().enumerate().find_map(|(at, &a)| {
        all[at + 1..].iter().find_map(|&b| clash(a.doors(), b.doors()).map(|path| (a, b, path)))
    })
}

fn clash(ours: &[Door], theirs: &[Door]) -> Option<&'static str> {
    ours.iter().find(|a| theirs.iter().any(|b| a.overlaps(b))).map(|door| door.path)
}

/// The token of a request: of `Authorization: Bearer` (RFC 6750 section 2.1, the scheme in any case), or else,
/// for clients that can't set fields, of the query's `token`. Nothing if it is empty or not text.
pub fn bearer<'a>(head: &Head<'a>) -> Option<Cow<'a, str>> {
    let field = head.header("authorization").and_then(|value| {
        let (scheme, token) = std::str::from_utf8(value).ok()?.trim().split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| Cow::Borrowed(token.trim_start()))
    });
    field.or_else(|| percent::query_value(head.query, "token")?.ok()).filter(|token| !token.is_empty())
}

/// The methods an `Allow` field can name, in its order, a bit each.
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];
/// All of [`METHODS`] with a comma and a space between them.
const MAX_ALLOW_BYTES: usize = 35;

fn methods_of(door: &Door) -> usize {
    match door.method {
        Method::Get => 0b11,
        Method::Head => 0b10,
        Method::Post => 0b100,
        Method::Put => 0b1000,
        Method::Patch => 0b1_0000,
        Method::Delete => 0b10_0000,
        Method::Options | Method::Other => 0,
    }
}

/// The text of a set of methods, from a table made at compile time, so that no refusal allocates.
fn allow(methods: usize) -> &'static str {
    static TABLE: [([u8; MAX_ALLOW_BYTES], usize); 1 << METHODS.len()] = allow_table();
    let (text, length) = &TABLE[methods];
    std::str::from_utf8(&text[..*length]).unwrap_or_default()
}

const fn allow_table() -> [([u8; MAX_ALLOW_BYTES], usize); 1 << METHODS.len()] {
    let mut table = [([0; MAX_ALLOW_BYTES], 0); 1 << METHODS.len()];
    let mut methods = 0;
    while methods < table.len() {
        let mut method = 0;
        while method < METHODS.len() {
            if methods >> method & 1 == 1 {
                if table[methods].1 > 0 {
                    append(&mut table[methods], b", ");
                }
                append(&mut table[methods], METHODS[method].as_bytes());
            }
            method += 1;
        }
        methods += 1;
    }
    table
}

const fn append(text: &mut ([u8; MAX_ALLOW_BYTES], usize), more: &[u8]) {
    let mut at = 0;
    while at < more.len() {
        text.0[text.1] = more[at];
        text.1 += 1;
        at += 1;
    }
}

#[cfg(test)]
mod fixture {
    use crate::http::{Head, HeadScan, Limits, parse_head};

    /// Gives `check` the head that `text` is.
    pub fn with_head<T>(text: &str, check: impl FnOnce(&Head<'_>) -> T) -> T {
        let head = parse_head(text.as_bytes(), &mut HeadScan::default(), &Limits::default());
        check(&head.unwrap().unwrap())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> DialectSet {
        DialectId::ALL.iter().copied().collect()
    }

    /// What is found, in a word: dialect, pattern and parameter, or why not.
    fn found(dialects: DialectSet, method: Method, path: &str) -> String {
        match find(dialects, method, path) {
            Found::Door { dialect, door, param } => format!("{} {} [{param}]", dialect.name(), door.path),
            Found::WrongMethod(allow) => format!("allow {allow}"),
            Found::Nothing => "nothing".into(),
            Found::BadPath => "bad path".into(),
        }
    }

    #[test]
    fn names_come_back() {
        for &dialect in DialectId::ALL {
            assert_eq!(DialectId::from_name(dialect.name()), Some(dialect));
            assert_eq!(dialect.name(), dialect.name().to_lowercase());
        }
        assert_eq!(DialectId::from_name("esp"), Some(DialectId::Esp));
        assert_eq!(DialectId::from_name("test"), Some(DialectId::Test));
        assert_eq!(DialectId::from_name("Esp"), None);
        assert_eq!(DialectId::from_name(""), None);
    }

    #[test]
    fn sets_hold_what_was_put_in() {
        let mut set = DialectSet::default();
        assert!(set.is_empty());
        set.insert(DialectId::Test);
        assert!(!set.is_empty() && set.contains(DialectId::Test) && !set.contains(DialectId::Esp));
        set.insert(DialectId::Esp);
        set.insert(DialectId::Esp);
        assert!(set.iter().eq([DialectId::Esp, DialectId::Test]));
        assert_eq!(set, all());
    }

    #[test]
    fn doors_are_found() {
        use Method::{Get, Head, Post, Put};
        for (method, path, expected) in [
            (Get, "/api/v1/wells", "esp /api/v1/wells []"),
            (Head, "/api/v1/wells", "esp /api/v1/wells []"),
            (Get, "/api/v1/sse/stream/WELL-1", "esp /api/v1/sse/stream/{well_id} [WELL-1]"),
            (Get, "/api/v1/sse/stream/a%2Fb%20c", "esp /api/v1/sse/stream/{well_id} [a/b c]"),
            (Get, "/api/v1/sse/stream/+", "esp /api/v1/sse/stream/{well_id} [+]"),
            (Get, "/api/v1/sse/stream/%C3%A9", "esp /api/v1/sse/stream/{well_id} [é]"),
            (Get, "/api/v1/wells/a/latest", "esp /api/v1/wells/{well_id}/latest [a]"),
            (Get, "/api/v1/wells/latest/latest", "esp /api/v1/wells/{well_id}/latest [latest]"),
            (Get, "/api/v1/wells/a/telemetry", "esp /api/v1/wells/{well_id}/telemetry [a]"),
            (Get, "/api/v1/wells/a/telemetry/latest", "esp /api/v1/wells/{well_id}/telemetry/latest [a]"),
            (Post, "/api/v1/alerts", "esp /api/v1/alerts []"),
            (Put, "/body", "test /body []"),
            (Head, "/body", "test /body []"),
        ] {
            assert_eq!(found(all(), method, path), expected, "{method:?} {path}");
        }
    }

    #[test]
    fn other_methods_and_paths_find_none() {
        use Method::{Delete, Get, Options, Other, Post};
        for (method, path, expected) in [
            (Get, "/api/v1/alerts", "allow POST"),
            (Other, "/api/v1/alerts", "allow POST"),
            (Post, "/api/v1/wells", "allow GET, HEAD"),
            (Delete, "/api/v1/wells/a/latest", "allow GET, HEAD"),
            (Options, "/body", "allow GET, HEAD, POST, PUT, PATCH, DELETE"),
            (Get, "/", "nothing"),
            (Get, "", "nothing"),
            (Get, "*", "nothing"),
            (Get, "/api/v1/wells/", "nothing"),
            (Get, "/api/v1//wells", "nothing"),
            (Get, "/API/v1/wells", "nothing"),
            (Get, "/api/v1/%77ells", "nothing"),
            (Get, "/api/v1/wells/a", "nothing"),
            (Get, "/api/v1/wells//latest", "nothing"),
            (Get, "/api/v1/wells/latest", "nothing"),
            (Get, "/api/v1/wells/a/b/latest", "nothing"),
            (Get, "/api/v1/sse/stream/", "nothing"),
            (Get, "/api/v1/sse/stream/a/", "nothing"),
            (Get, "/api/v1/sse/stream/%", "bad path"),
            (Get, "/api/v1/sse/stream/%2", "bad path"),
            (Get, "/api/v1/sse/stream/%zz", "bad path"),
            (Get, "/api/v1/sse/stream/%FF", "bad path"),
            (Get, "/api/v1/sse/stream/a%00", "bad path"),
            (Get, "/health", "nothing"),
        ] {
            assert_eq!(found(all(), method, path), expected, "{method:?} {path}");
        }
        let only = DialectSet::from_iter([DialectId::Test]);
        assert_eq!(found(only, Get, "/api/v1/wells"), "nothing");
        assert_eq!(found(DialectSet::default(), Get, "/body"), "nothing");
    }

    #[test]
    fn undecoded_parameters_are_borrowed() {
        let Found::Door { param, .. } = find(all(), Method::Get, "/api/v1/sse/stream/WELL-1") else {
            panic!("there is a door");
        };
        assert!(matches!(param, Cow::Borrowed("WELL-1")));
    }

    #[test]
    fn doors_are_well_formed() {
        for dialect in DialectId::ALL {
            let doors = dialect.doors();
            for (at, door) in doors.iter().enumerate() {
                assert!(door.path.starts_with('/'), "{}", door.path);
                assert_ne!(methods_of(door), 0, "{}", door.path);
                let patterns = door.path.split('/').filter(|level| level.contains(['{', '}']));
                let patterns: Vec<_> = patterns.collect();
                assert!(patterns.len() <= 1, "{}", door.path);
                assert!(patterns.iter().all(|level| level.starts_with('{') && level.ends_with('}')));
                for other in &doors[at + 1..] {
                    assert!(!door.overlaps(other), "{} and {}", door.path, other.path);
                }
            }
        }
    }

    #[test]
    fn overlaps_are_seen() {
        use Method::{Get, Head, Post};
        let door = |method, path| Door::new(method, path, Access::Open, Verb::Echo);
        for (a, b, overlap) in [
            ((Get, "/a"), (Get, "/a"), true),
            ((Get, "/a"), (Post, "/a"), false),
            ((Get, "/a"), (Head, "/a"), true),
            ((Head, "/a"), (Get, "/a"), true),
            ((Get, "/a"), (Get, "/b"), false),
            ((Get, "/a"), (Get, "/a/"), false),
            ((Get, "/a/{x}"), (Get, "/a/{y}"), true),
            ((Get, "/a/{x}"), (Get, "/a/b"), true),
            ((Get, "/a/b"), (Get, "/a/{x}"), true),
            ((Get, "/a/{x}"), (Get, "/a"), false),
            ((Get, "/a/{x}"), (Get, "/a/b/c"), false),
            ((Get, "/a/{x}/c"), (Get, "/a/b/{y}"), true),
            ((Get, "/a/{x}/c"), (Get, "/a/{x}/d"), false),
        ] {
            let (a, b) = (door(a.0, a.1), door(b.0, b.1));
            assert_eq!(a.overlaps(&b), overlap, "{a:?} {b:?}");
            assert_eq!(clash(&[door(Post, "/z"), a], &[b]), overlap.then_some(a.path));
        }
        assert_eq!(conflicts(all()), None);
        assert_eq!(conflicts(DialectSet::default()), None);
    }

    #[test]
    fn tokens_are_found() {
        for (fields, query, token) in [
            ("Authorization: Bearer abc.def\r\n", "", Some("abc.def")),
            ("authorization: bEARER abc\r\n", "", Some("abc")),
            ("Authorization: Bearer   abc \r\n", "", Some("abc")),
            ("Authorization: Bearer abc\r\n", "token=other", Some("abc")),
            ("", "token=abc", Some("abc")),
            ("", "a=b&token=a%2Eb&c", Some("a.b")),
            ("Authorization: Basic abc\r\n", "token=other", Some("other")),
            ("Authorization: Basic abc\r\n", "", None),
            ("Authorization: Bearer\r\n", "", None),
            ("Authorization: Bearer \r\n", "", None),
            ("Authorization: Bearerabc\r\n", "", None),
            ("Authorization: Bearer \u{ff}\r\n", "", Some("\u{ff}")),
            ("", "", None),
            ("", "token=", None),
            ("", "token", None),
            ("", "token=%zz", None),
            ("", "Token=abc", None),
        ] {
            let text = format!("GET /?{query} HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
            fixture::with_head(&text, |head| assert_eq!(bearer(head).as_deref(), token, "{fields}{query}"));
        }
    }
}
