//! `esp`: telemetry of oil wells.
//!
//! Readings, alerts and diagnostics belong to the well that their `well_id` names, topic `wells/<well_id>`. What
//! is stored is the object without what names its place, and every event, history row and latest value is
//! spliced around that.

mod ingest;

use std::borrow::Cow;

use self::ingest::ingest;
use super::{Dialect, Door};
use crate::http::{Head, Method};
use crate::json::{self, JsonError, write_escaped, write_string, write_u64};
use crate::message::{
    Access, Command, Kind, Notice, Password, Publication, Refusal, Reply, Request, TopicInfo, Verb,
};
use crate::time::{self, write_rfc3339};
use crate::topic::{self, TopicError};
use crate::{percent, sse};

/// The dialect `esp`.
pub struct Esp;

/// What stands before a well's id in its topic.
const WELLS: &str = "wells/";
/// Longest `well_id`, in bytes as the client means it, not encoded. (Encoded, the topic's own limit holds.)
const MAX_WELL_ID_BYTES: usize = 128;
/// Longest user name or password, in bytes; bounds what a password check has to hash.
const MAX_CREDENTIAL_BYTES: usize = 1024;
/// Rows of a history answer where the client names no limit.
const DEFAULT_HISTORY_ROWS: u32 = 100;
/// Most rows of a history answer.
const MAX_HISTORY_ROWS: u32 = 10_000;

impl Dialect for Esp {
    const NAME: &'static str = "esp";
    const DOORS: &'static [Door] = &[
        Door::new(
            Method::Post,
            "/api/v1/telemetry/ingest",
            Access::Publisher,
            Verb::Publish(Kind::Telemetry),
        ),
        Door::new(Method::Get, "/api/v1/sse/stream/{well_id}", Access::Reader, Verb::Stream),
        Door::new(Method::Post, "/api/v1/alerts", Access::Publisher, Verb::Publish(Kind::Alert)),
        Door::new(Method::Post, "/api/v1/diagnostics", Access::Publisher, Verb::Publish(Kind::Diagnostic)),
        Door::new(Method::Get, "/api/v1/wells", Access::Reader, Verb::Topics),
        Door::new(Method::Get, "/api/v1/wells/{well_id}/telemetry", Access::Reader, Verb::History),
        Door::new(Method::Get, "/api/v1/wells/{well_id}/latest", Access::Reader, Verb::Latest),
        Door::new(Method::Get, "/api/v1/wells/{well_id}/telemetry/latest", Access::Reader, Verb::Latest),
        Door::new(Method::Post, "/api/v1/auth/login", Access::Open, Verb::Login),
        Door::new(Method::Post, "/auth/login", Access::Open, Verb::Login),
        Door::new(Method::Post, "/api/v1/auth/refresh", Access::Reader, Verb::Refresh),
    ];

    fn command(verb: Verb, param: &str, request: &Request<'_>, now: u64) -> Result<Command, Refusal> {
        match verb {
            Verb::Login => login(request.body),
            Verb::Refresh => Ok(Command::Refresh),
            Verb::Publish(kind) => ingest(kind, request, now).map(Command::Publish),
            Verb::Stream => stream(param, request.head),
            Verb::Topics => Ok(Command::Topics { prefix: WELLS }),
            Verb::History => history(param, request.head),
            Verb::Latest => Ok(Command::Latest { topic: topic_of(param)? }),
            Verb::Health => Ok(Command::Health),
            Verb::Echo => Ok(Command::Echo),
        }
    }

    fn reply(reply: &Reply<'_>, out: &mut Vec<u8>) {
        match *reply {
            Reply::Token { access_token, expires_in } => {
                put(out, "{\"access_token\":");
                write_string(access_token, out);
                put(out, ",\"token_type\":\"Bearer\",\"expires_in\":");
                write_u64(expires_in, out);
                put(out, "}");
            }
            Reply::Accepted { offsets } => {
                put(out, "{\"accepted\":");
                write_u64(offsets.len() as u64, out);
                put(out, ",\"offsets\":[");
                write_list(offsets, out, |&offset, out| write_u64(offset, out));
                put(out, "]}");
            }
            Reply::Topics(topics) => {
                put(out, "{\"wells\":[");
                write_list(topics, out, write_topic);
                put(out, "],\"count\":");
                write_u64(topics.len() as u64, out);
                put(out, "}");
            }
            Reply::History { topic, publications } => {
                put(out, "{\"well_id\":");
                write_string(&topic::id(topic), out);
                put(out, ",\"telemetry\":[");
                write_list(publications, out, |publication, out| {
                    put(out, "{");
                    write_placed(publication, out);
                });
                put(out, "],\"count\":");
                write_u64(publications.len() as u64, out);
                put(out, "}");
            }
            Reply::Latest(publication) => {
                put(out, "{\"well_id\":");
                write_string(&topic::id(publication.topic), out);
                put(out, ",");
                write_placed(&publication, out);
            }
            Reply::Health { time } => {
                put(out, "{\"status\":\"ok\",\"timestamp\":");
                write_time(time, out);
                put(out, "}");
            }
        }
    }

    fn refusal(refusal: &Refusal, out: &mut Vec<u8>) {
        let (error, message) = wording(refusal);
        put(out, "{\"error\":\"");
        put(out, error);
        put(out, "\",\"message\":");
        write_string(&message, out);
        if let Refusal::InvalidRow { row, .. } = *refusal {
            put(out, ",\"row\":");
            write_u64(row as u64, out);
        }
        put(out, "}");
    }

    fn event(publication: &Publication<'_>, out: &mut Vec<u8>) -> &'static str {
        let (event, member) = match publication.kind {
            Kind::Telemetry => ("telemetry_update", "data"),
            Kind::Alert => ("alert", "alert"),
            Kind::Diagnostic => ("diagnostic_update", "diagnostic"),
        };
        put(out, "{\"event\":\"");
        put(out, event);
        put(out, "\",\"timestamp\":");
        write_time(publication.time, out);
        put(out, ",\"well_id\":");
        write_string(&topic::id(publication.topic), out);
        put(out, ",\"");
        put(out, member);
        put(out, "\":");
        if publication.kind == Kind::Telemetry {
            put(out, "{");
            write_reading(publication, out);
        } else {
            out.extend_from_slice(publication.body);
        }
        put(out, "}");
        event
    }

    fn notice(notice: &Notice<'_>, out: &mut Vec<u8>) -> &'static str {
        let (event, time) = match *notice {
            Notice::Connected { platform, topic, time } => {
                put(out, "{\"message\":\"Connected to ");
                write_escaped(platform, out);
                put(out, " SSE stream\",\"well_id\":");
                write_string(&topic::id(topic), out);
                put(out, ",");
                ("connected", time)
            }
            Notice::Heartbeat { time } => {
                put(out, "{");
                ("heartbeat", time)
            }
            Notice::Gap { topic, from, to, reason, time } => {
                put(out, "{\"well_id\":");
                write_string(&topic::id(topic), out);
                put(out, ",\"from\":");
                write_u64(from, out);
                put(out, ",\"to\":");
                write_u64(to, out);
                put(out, ",\"reason\":\"");
                put(out, reason.as_str());
                put(out, "\",");
                ("gap", time)
            }
            Notice::Error(refusal) => {
                Self::refusal(refusal, out);
                return "error";
            }
        };
        put(out, "\"timestamp\":");
        write_time(time, out);
        put(out, "}");
        event
    }
}

fn login(body: &[u8]) -> Result<Command, Refusal> {
    let invalid = |what: &str| Refusal::Invalid(what.into());
    let broken = |error: JsonError| Refusal::Invalid(format!("{} at byte {}", error.what, error.at));
    let (mut username, mut password) = (None, None);
    for member in json::object(body).map_err(broken)? {
        let member = member.map_err(broken)?;
        let slot = if member.is("username") {
            &mut username
        } else if member.is("password") {
            &mut password
        } else {
            continue;
        };
        let text = json::string(member.value.raw).ok_or_else(|| invalid("a credential must be a string"))?;
        if text.len() > MAX_CREDENTIAL_BYTES {
            return Err(invalid("a credential is longer than 1024 bytes"));
        }
        if slot.replace(text.into_owned()).is_some() {
            return Err(invalid("a credential is given twice"));
        }
    }
    match (username, password) {
        (Some(username), Some(password)) if !username.is_empty() && !password.is_empty() => {
            let password = Password(password);
            Ok(Command::Login { username, password })
        }
        _ => Err(invalid("username and password are required")),
    }
}

fn stream(well_id: &str, head: &Head<'_>) -> Result<Command, Refusal> {
    let value = |name| percent::query_value(head.query, name)?.ok();
    let field = head.header("last-event-id").and_then(sse::last_event_id);
    Ok(Command::Stream {
        topic: topic_of(well_id)?,
        snapshot: matches!(value("snapshot").as_deref(), Some("true" | "1")),
        after: field.or_else(|| sse::last_event_id(value("last_event_id")?.as_bytes())),
    })
}

fn history(well_id: &str, head: &Head<'_>) -> Result<Command, Refusal> {
    let topic = topic_of(well_id)?;
    let from = moment(head.query, "from")?.unwrap_or(0);
    let to = moment(head.query, "to")?.unwrap_or(time::MAX_MS);
    if from > to {
        return Err(Refusal::Invalid("from is later than to".into()));
    }
    let limit = match parameter(head.query, "limit")? {
        None => DEFAULT_HISTORY_ROWS,
        Some(text) => digits(&text)
            .and_then(|limit| u32::try_from(limit).ok())
            .filter(|limit| (1..=MAX_HISTORY_ROWS).contains(limit))
            .ok_or_else(|| Refusal::Invalid(format!("limit must be 1 to {MAX_HISTORY_ROWS}")))?,
    };
    Ok(Command::History { topic, from, to, limit })
}

/// A moment of the query: RFC 3339, or milliseconds since the epoch (what is later than any text is cut to that).
fn moment(query: &str, name: &str) -> Result<Option<u64>, Refusal> {
    let Some(text) = parameter(query, name)? else {
        return Ok(None);
    };
    // An offset's `+` means a space in a query, and clients forget to encode it; no timestamp has spaces.
    let read = digits(&text).or_else(|| time::parse_rfc3339(&text.replace(' ', "+")));
    match read {
        Some(ms) => Ok(Some(ms.min(time::MAX_MS))),
        None => {
            Err(Refusal::Invalid(format!("{name} must be an RFC 3339 timestamp or milliseconds since 1970")))
        }
    }
}

fn parameter<'a>(query: &'a str, name: &str) -> Result<Option<Cow<'a, str>>, Refusal> {
    percent::query_value(query, name)
        .transpose()
        .map_err(|_| Refusal::Invalid(format!("{name} is not percent-encoded text")))
}

/// Plain digits, no sign.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The topic of the well that a path names.
fn topic_of(well_id: &str) -> Result<String, Refusal> {
    let mut topic = Vec::new();
    check_well_id(well_id, &mut topic).map_err(|message| Refusal::Invalid(message.into()))?;
    String::from_utf8(topic).map_err(|_| Refusal::Invalid("well_id is not text".into()))
}

/// Appends the topic of a well, or says what is wrong with its id.
fn check_well_id(well_id: &str, topic: &mut Vec<u8>) -> Result<(), &'static str> {
    if well_id.len() > MAX_WELL_ID_BYTES {
        return Err("well_id is longer than 128 bytes");
    }
    topic::key(WELLS, well_id, topic).map_err(|error| match error {
        TopicError::Empty => "well_id is required",
        TopicError::TooLong => "well_id is longer than 249 bytes, percent-encoded",
        _ => "well_id must not contain NUL",
    })
}

/// Appends a stored reading's place, time and members (apart, so that no name of theirs can clash), and the
/// closing brace.
fn write_placed(publication: &Publication<'_>, out: &mut Vec<u8>) {
    put(out, "\"offset\":");
    write_u64(publication.offset, out);
    put(out, ",\"timestamp\":");
    write_time(publication.time, out);
    put(out, ",\"data\":{");
    write_reading(publication, out);
    put(out, "}");
}

/// Appends a reading's members, its `telemetry_id` first, and the closing brace.
fn write_reading(publication: &Publication<'_>, out: &mut Vec<u8>) {
    put(out, "\"telemetry_id\":");
    write_u64(publication.id, out);
    put(out, ",");
    out.extend_from_slice(publication.body.strip_prefix(b"{").unwrap_or(b"}"));
}

fn write_topic(topic: &TopicInfo, out: &mut Vec<u8>) {
    put(out, "{\"well_id\":");
    write_string(&topic::id(&topic.topic), out);
    put(out, ",\"last_offset\":");
    write_u64(topic.offset, out);
    put(out, ",\"last_seen\":");
    write_time(topic.time, out);
    put(out, "}");
}

/// A refusal's name and text.
fn wording(refusal: &Refusal) -> (&'static str, Cow<'static, str>) {
    let again = |what, seconds: u32| Cow::from(format!("{what}; try again in {seconds} s"));
    match refusal {
        Refusal::Unauthenticated => ("AuthenticationError", "Invalid or expired authentication token".into()),
        Refusal::WrongPassword => ("AuthenticationError", "Invalid username or password".into()),
        Refusal::Forbidden(why) => ("AuthorizationError", (*why).into()),
        Refusal::ForeignOrigin => ("AuthorizationError", "Origin not allowed".into()),
        Refusal::NotFound(what) => ("NotFound", (*what).into()),
        Refusal::MethodNotAllowed(allow) => ("MethodNotAllowed", format!("allowed here: {allow}").into()),
        Refusal::Invalid(what) => ("ValidationError", what.clone().into()),
        Refusal::InvalidRow { row, message, .. } => {
            ("ValidationError", format!("row {row}: {message}").into())
        }
        Refusal::TooLarge(limit) => ("PayloadTooLarge", (*limit).into()),
        Refusal::RateLimited { retry_after } => {
            ("RateLimitExceeded", again("Too many requests", *retry_after))
        }
        Refusal::Busy { retry_after } => ("ServiceUnavailable", again("The server is busy", *retry_after)),
        Refusal::StoreFull => {
            ("InsufficientStorage", "The store is full; nothing is stored until there is room".into())
        }
        Refusal::StoreFailed => ("StorageError", "The store failed; nothing was acknowledged".into()),
    }
}

fn put(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

fn write_time(ms: u64, out: &mut Vec<u8>) {
    put(out, "\"");
    write_rfc3339(ms, out);
    put(out, "\"");
}

fn write_list<T>(items: &[T], out: &mut Vec<u8>, mut write: impl FnMut(&T, &mut Vec<u8>)) {
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            put(out, ",");
        }
        write(item, out);
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::with_head;
    use super::*;
    use crate::message::GapReason;

    /// 2025-11-20T10:30:00Z
    const NOW: u64 = 1_763_634_600_000;

    fn command(verb: Verb, param: &str, query: &str, fields: &str, body: &[u8]) -> Result<Command, Refusal> {
        let text = format!("POST /x?{query} HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        with_head(&text, |head| Esp::command(verb, param, &Request { head, body }, NOW))
    }

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        serde_json::from_slice::<serde_json::Value>(&out).unwrap();
        assert!(!out.contains(&b'\n') && !out.contains(&b'\r'));
        String::from_utf8(out).unwrap()
    }

    fn publication(kind: Kind, body: &str) -> Publication<'_> {
        Publication { topic: "wells/WELL-001", offset: 10, id: 12345, kind, time: NOW, body: body.as_bytes() }
    }

    #[test]
    fn logins_need_both_strings() {
        let login = |body: &str| command(Verb::Login, "", "", "", body.as_bytes());
        assert_eq!(
            login(r#" {"password":"p\u00e4ss","x":[1],"username":"admin"} "#),
            Ok(Command::Login { username: "admin".into(), password: Password("päss".into()) })
        );
        let long = format!(r#"{{"username":"a","password":"{}"}}"#, "x".repeat(MAX_CREDENTIAL_BYTES + 1));
        for (body, message) in [
            ("", "expected an object at byte 0"),
            ("[]", "expected an object at byte 0"),
            (r#"{"username":"a""#, "expected a comma or } at byte 15"),
            (r#"{"username":"a","password":"b"} x"#, "bytes after the end of the value at byte 32"),
            ("{}", "username and password are required"),
            (r#"{"username":"a"}"#, "username and password are required"),
            (r#"{"username":"","password":"b"}"#, "username and password are required"),
            (r#"{"username":"a","password":""}"#, "username and password are required"),
            (r#"{"username":"a","password":5}"#, "a credential must be a string"),
            (r#"{"username":null,"password":"b"}"#, "a credential must be a string"),
            (r#"{"username":"a","username":"b","password":"c"}"#, "a credential is given twice"),
            (&long, "a credential is longer than 1024 bytes"),
        ] {
            assert_eq!(login(body), Err(Refusal::Invalid(message.into())), "{body}");
        }
    }

    #[test]
    fn streams_start_where_the_client_says() {
        for (query, fields, snapshot, after) in [
            ("", "", false, None),
            ("last_event_id=7", "", false, Some(7)),
            ("last_event_id=7", "Last-Event-ID: 9\r\n", false, Some(9)),
            ("", "last-event-id: 0\r\n", false, Some(0)),
            ("last_event_id=7", "Last-Event-ID: evil\r\n", false, Some(7)),
            ("last_event_id=7", "Last-Event-ID: -1\r\n", false, Some(7)),
            ("last_event_id=7", "Last-Event-ID:\r\n", false, Some(7)),
            ("last_event_id=-1", "", false, None),
            ("last_event_id=", "", false, None),
            ("last_event_id=%zz", "", false, None),
            ("last_event_id=%00", "", false, None),
            ("last_event_id=99999999999999999999", "", false, None),
            ("snapshot=true", "", true, None),
            ("snapshot=1&token=x", "", true, None),
            ("snapshot=false", "", false, None),
            ("snapshot=yes", "", false, None),
            ("snapshot", "", false, None),
        ] {
            let topic = "wells/WELL-1".to_owned();
            assert_eq!(
                command(Verb::Stream, "WELL-1", query, fields, b""),
                Ok(Command::Stream { topic, snapshot, after }),
                "{query} {fields}"
            );
        }
    }

    #[test]
    fn wells_in_paths_become_topics() {
        for (well, expected) in [
            ("WELL-1", Ok("wells/WELL-1")),
            ("a/b +#", Ok("wells/a%2Fb%20%2B%23")),
            (&"w".repeat(129), Err("well_id is longer than 128 bytes")),
            (&"/".repeat(84), Err("well_id is longer than 249 bytes, percent-encoded")),
            ("", Err("well_id is required")),
            ("a\0", Err("well_id must not contain NUL")),
        ] {
            for verb in [Verb::Stream, Verb::History, Verb::Latest] {
                let topic = command(verb, well, "", "", b"").map(|command| match command {
                    Command::Stream { topic, .. }
                    | Command::History { topic, .. }
                    | Command::Latest { topic } => topic,
                    other => panic!("{other:?}"),
                });
                let expected = expected.map(str::to_owned).map_err(|what| Refusal::Invalid(what.into()));
                assert_eq!(topic, expected);
            }
        }
    }

    #[test]
    fn history_has_an_interval_and_a_limit() {
        for (query, from, to, limit) in [
            ("", 0, time::MAX_MS, 100),
            ("from=5&to=9&limit=1", 5, 9, 1),
            ("from=9&to=9&limit=10000", 9, 9, 10_000),
            ("from=2025-11-20T10:30:00Z", NOW, time::MAX_MS, 100),
            ("from=2025-11-20T10%3A30%3A00.001Z", NOW + 1, time::MAX_MS, 100),
            ("to=2025-11-20T13:30:00%2B03:00", 0, NOW, 100),
            ("to=2025-11-20T13:30:00+03:00", 0, NOW, 100),
            ("to=18446744073709551615", 0, time::MAX_MS, 100),
        ] {
            let topic = "wells/A".to_owned();
            assert_eq!(
                command(Verb::History, "A", query, "", b""),
                Ok(Command::History { topic, from, to, limit }),
                "{query}"
            );
        }
        for (query, message) in [
            ("from=9&to=8", "from is later than to"),
            ("from=", "from must be an RFC 3339 timestamp or milliseconds since 1970"),
            ("from=-1", "from must be an RFC 3339 timestamp or milliseconds since 1970"),
            ("to=yesterday", "to must be an RFC 3339 timestamp or milliseconds since 1970"),
            ("to=99999999999999999999", "to must be an RFC 3339 timestamp or milliseconds since 1970"),
            ("to=%zz", "to is not percent-encoded text"),
            ("limit=0", "limit must be 1 to 10000"),
            ("limit=10001", "limit must be 1 to 10000"),
            ("limit=-1", "limit must be 1 to 10000"),
            ("limit=", "limit must be 1 to 10000"),
            ("limit=99999999999999999999", "limit must be 1 to 10000"),
        ] {
            let refusal = Refusal::Invalid(message.into());
            assert_eq!(command(Verb::History, "A", query, "", b""), Err(refusal), "{query}");
        }
    }

    #[test]
    fn other_verbs_carry_nothing() {
        for (verb, expected) in [
            (Verb::Refresh, Command::Refresh),
            (Verb::Topics, Command::Topics { prefix: "wells/" }),
            (Verb::Health, Command::Health),
            (Verb::Echo, Command::Echo),
        ] {
            assert_eq!(command(verb, "", "", "", b""), Ok(expected));
        }
    }

    #[test]
    fn replies_are_spelled() {
        let reply = |reply: Reply<'_>| text(|out| Esp::reply(&reply, out));
        let reading = publication(Kind::Telemetry, r#"{"timestamp":"2025-11-20T10:29:59Z","pip":2000.0}"#);
        let topics = [
            TopicInfo { topic: "wells/WELL-001".into(), offset: 10, time: NOW },
            TopicInfo { topic: "wells/a%2F%22b".into(), offset: 1, time: NOW + 1 },
        ];
        for (written, expected) in [
            (
                reply(Reply::Token { access_token: "a.b.c", expires_in: 3600 }),
                r#"{"access_token":"a.b.c","token_type":"Bearer","expires_in":3600}"#,
            ),
            (reply(Reply::Accepted { offsets: &[] }), r#"{"accepted":0,"offsets":[]}"#),
            (reply(Reply::Accepted { offsets: &[7, 9, 8] }), r#"{"accepted":3,"offsets":[7,9,8]}"#),
            (reply(Reply::Topics(&[])), r#"{"wells":[],"count":0}"#),
            (
                reply(Reply::Topics(&topics)),
                r#"{"wells":[{"well_id":"WELL-001","last_offset":10,"last_seen":"2025-11-20T10:30:00Z"},{"well_id":"a/\"b","last_offset":1,"last_seen":"2025-11-20T10:30:00.001Z"}],"count":2}"#,
            ),
            (
                reply(Reply::History { topic: "wells/A", publications: &[] }),
                r#"{"well_id":"A","telemetry":[],"count":0}"#,
            ),
            (
                reply(Reply::History { topic: "wells/WELL-001", publications: &[reading, reading] }),
                r#"{"well_id":"WELL-001","telemetry":[{"offset":10,"timestamp":"2025-11-20T10:30:00Z","data":{"telemetry_id":12345,"timestamp":"2025-11-20T10:29:59Z","pip":2000.0}},{"offset":10,"timestamp":"2025-11-20T10:30:00Z","data":{"telemetry_id":12345,"timestamp":"2025-11-20T10:29:59Z","pip":2000.0}}],"count":2}"#,
            ),
            (
                reply(Reply::Latest(reading)),
                r#"{"well_id":"WELL-001","offset":10,"timestamp":"2025-11-20T10:30:00Z","data":{"telemetry_id":12345,"timestamp":"2025-11-20T10:29:59Z","pip":2000.0}}"#,
            ),
            (reply(Reply::Health { time: NOW }), r#"{"status":"ok","timestamp":"2025-11-20T10:30:00Z"}"#),
        ] {
            assert_eq!(written, expected);
        }
    }

    #[test]
    fn refusals_are_spelled() {
        for (refusal, expected) in [
            (
                Refusal::Unauthenticated,
                r#"{"error":"AuthenticationError","message":"Invalid or expired authentication token"}"#,
            ),
            (
                Refusal::WrongPassword,
                r#"{"error":"AuthenticationError","message":"Invalid username or password"}"#,
            ),
            (Refusal::Forbidden("not yours"), r#"{"error":"AuthorizationError","message":"not yours"}"#),
            (Refusal::ForeignOrigin, r#"{"error":"AuthorizationError","message":"Origin not allowed"}"#),
            (Refusal::NotFound("no such path"), r#"{"error":"NotFound","message":"no such path"}"#),
            (
                Refusal::MethodNotAllowed("GET, HEAD"),
                r#"{"error":"MethodNotAllowed","message":"allowed here: GET, HEAD"}"#,
            ),
            (
                Refusal::Invalid("bad \"x\"\n".into()),
                r#"{"error":"ValidationError","message":"bad \"x\"\n"}"#,
            ),
            (
                Refusal::InvalidRow { row: 3, syntax: false, message: "well_id is required" },
                r#"{"error":"ValidationError","message":"row 3: well_id is required","row":3}"#,
            ),
            (
                Refusal::InvalidRow { row: 0, syntax: true, message: "expected a value" },
                r#"{"error":"ValidationError","message":"row 0: expected a value","row":0}"#,
            ),
            (Refusal::TooLarge("at most 1"), r#"{"error":"PayloadTooLarge","message":"at most 1"}"#),
            (
                Refusal::RateLimited { retry_after: 2 },
                r#"{"error":"RateLimitExceeded","message":"Too many requests; try again in 2 s"}"#,
            ),
            (
                Refusal::Busy { retry_after: 1 },
                r#"{"error":"ServiceUnavailable","message":"The server is busy; try again in 1 s"}"#,
            ),
            (
                Refusal::StoreFull,
                r#"{"error":"InsufficientStorage","message":"The store is full; nothing is stored until there is room"}"#,
            ),
            (
                Refusal::StoreFailed,
                r#"{"error":"StorageError","message":"The store failed; nothing was acknowledged"}"#,
            ),
        ] {
            assert_eq!(text(|out| Esp::refusal(&refusal, out)), expected);
        }
    }

    #[test]
    fn events_are_spelled() {
        for (kind, topic, body, event, expected) in [
            (
                Kind::Telemetry,
                "wells/WELL-001",
                r#"{"timestamp":"2025-11-20T10:30:00Z","flow_rate":1000.5,"pip":2000.0}"#,
                "telemetry_update",
                r#"{"event":"telemetry_update","timestamp":"2025-11-20T10:30:00Z","well_id":"WELL-001","data":{"telemetry_id":12345,"timestamp":"2025-11-20T10:30:00Z","flow_rate":1000.5,"pip":2000.0}}"#,
            ),
            (
                Kind::Alert,
                "wells/WELL-001",
                r#"{"type":"high_vibration","severity":"critical"}"#,
                "alert",
                r#"{"event":"alert","timestamp":"2025-11-20T10:30:00Z","well_id":"WELL-001","alert":{"type":"high_vibration","severity":"critical"}}"#,
            ),
            (
                Kind::Diagnostic,
                "wells/a%2F%22%0A%C3%A9",
                r#"{"cpu":0.5}"#,
                "diagnostic_update",
                r#"{"event":"diagnostic_update","timestamp":"2025-11-20T10:30:00Z","well_id":"a/\"\né","diagnostic":{"cpu":0.5}}"#,
            ),
        ] {
            let publication = Publication { topic, ..publication(kind, body) };
            let mut name = "";
            assert_eq!(text(|out| name = Esp::event(&publication, out)), expected);
            assert_eq!(name, event);
        }
    }

    #[test]
    fn notices_are_spelled() {
        let topic = "wells/WELL-001";
        for (notice, event, expected) in [
            (
                Notice::Connected { platform: "Alkhorayef ESP IoT Platform", topic, time: NOW },
                "connected",
                r#"{"message":"Connected to Alkhorayef ESP IoT Platform SSE stream","well_id":"WELL-001","timestamp":"2025-11-20T10:30:00Z"}"#,
            ),
            (
                Notice::Connected { platform: "\"x\"", topic, time: NOW },
                "connected",
                r#"{"message":"Connected to \"x\" SSE stream","well_id":"WELL-001","timestamp":"2025-11-20T10:30:00Z"}"#,
            ),
            (
                Notice::Heartbeat { time: NOW + 60_000 },
                "heartbeat",
                r#"{"timestamp":"2025-11-20T10:31:00Z"}"#,
            ),
            (
                Notice::Gap { topic, from: 3, to: 9, reason: GapReason::Retention, time: NOW },
                "gap",
                r#"{"well_id":"WELL-001","from":3,"to":9,"reason":"retention","timestamp":"2025-11-20T10:30:00Z"}"#,
            ),
            (
                Notice::Error(&Refusal::Unauthenticated),
                "error",
                r#"{"error":"AuthenticationError","message":"Invalid or expired authentication token"}"#,
            ),
        ] {
            let mut name = "";
            assert_eq!(text(|out| name = Esp::notice(&notice, out)), expected);
            assert_eq!(name, event);
        }
    }
}
