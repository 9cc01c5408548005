//! What publishers of `esp` send: one object, an array of them, or one to a line (NDJSON).

use std::borrow::Cow;

use super::super::{MAX_ROW_BYTES, MAX_ROWS};
use super::{check_well_id, put, write_list, write_time};
use crate::http::Head;
use crate::json::{self, Cursor, JsonError, Member, Type, Value};
use crate::message::{Batch, Kind, Refusal, Request};
use crate::time;

/// Reads all rows, or refuses all. A body that begins with `[` is an array, unless its type says NDJSON;
/// any other is one row, or several with a line end between each and the next. Space does not matter, so
/// that one object may span lines.
pub fn ingest(kind: Kind, request: &Request<'_>, now: u64) -> Result<Batch, Refusal> {
    let mut arrival = Vec::new();
    write_time(now, &mut arrival);
    let mut rows = Rows {
        kind,
        arrival,
        cursor: Cursor::new(request.body),
        members: Vec::new(),
        topic: Vec::new(),
        batch: Batch::default(),
    };
    match rows.cursor.peek() {
        None => return Err(Refusal::Invalid("the body is empty".into())),
        Some(b'[') if !is_ndjson(request.head) => rows.read_array()?,
        Some(_) => rows.read_lines(request.body)?,
    }
    Ok(rows.batch)
}

fn is_ndjson(head: &Head<'_>) -> bool {
    head.header("content-type").is_some_and(|value| {
        let essence = value.split(|&byte| byte == b';').next().unwrap_or_default();
        essence.trim_ascii().eq_ignore_ascii_case(b"application/x-ndjson")
    })
}

/// The rows of one request, as they are read. What one row needs is reused for the next.
struct Rows<'a> {
    kind: Kind,
    /// When the request came, as a JSON string.
    arrival: Vec<u8>,
    cursor: Cursor<'a>,
    members: Vec<Member<'a>>,
    topic: Vec<u8>,
    batch: Batch,
}

impl<'a> Rows<'a> {
    fn read_array(&mut self) -> Result<(), Refusal> {
        self.cursor.enter(Type::Array).map_err(|error| self.broken(error))?;
        while self.cursor.more(Type::Array, self.batch.is_empty()).map_err(|error| self.broken(error))? {
            self.read_row()?;
        }
        if self.batch.is_empty() {
            return Err(Refusal::Invalid("the array is empty".into()));
        }
        self.cursor.end().map_err(|_| Refusal::Invalid("bytes after the end of the array".into()))
    }

    fn read_lines(&mut self, body: &[u8]) -> Result<(), Refusal> {
        loop {
            self.read_row()?;
            let end = self.cursor.at();
            if self.cursor.peek().is_none() {
                return Ok(());
            }
            if !body[end..self.cursor.at()].contains(&b'\n') {
                let what = "a line end must separate it from the row before";
                return Err(self.broken(JsonError { at: end, what }));
            }
        }
    }

    fn read_row(&mut self) -> Result<(), Refusal> {
        if self.batch.len() == MAX_ROWS {
            return Err(Refusal::TooLarge("a request may have at most 100000 rows"));
        }
        if self.cursor.peek() != Some(b'{') {
            self.cursor.value().map_err(|error| self.broken(error))?;
            return Err(self.wrong("a row must be an object"));
        }
        self.read_members()?;
        let place = place(&self.members).map_err(|message| self.wrong(message))?;
        self.topic.clear();
        check_well_id(&place.well_id, &mut self.topic).map_err(|message| self.wrong(message))?;
        let timestamp = place.timestamp;
        self.unwrap_or_strip()?;
        if self.kind == Kind::Alert {
            check_alert(&self.members).map_err(|message| self.wrong(message))?;
        }
        // A reading says when it was made; another body needs a member, whatever it is.
        let needs_time = self.kind == Kind::Telemetry || self.members.is_empty();
        let time = needs_time.then(|| timestamp.unwrap_or(&self.arrival));
        if body_length(time, &self.members) > MAX_ROW_BYTES {
            return Err(TOO_LONG_A_ROW);
        }
        self.batch.push(
            self.kind,
            |out| out.extend_from_slice(&self.topic),
            |out| write_body(time, &self.members, out),
        );
        Ok(())
    }

    fn read_members(&mut self) -> Result<(), Refusal> {
        self.members.clear();
        let mut length = 0;
        self.cursor.enter(Type::Object).map_err(|error| self.broken(error))?;
        while self.cursor.more(Type::Object, self.members.is_empty()).map_err(|error| self.broken(error))? {
            let member = self.cursor.member().map_err(|error| self.broken(error))?;
            // Here already, so that a row of a million tiny members does not fill the memory with slices.
            length += member.raw.len();
            if length > MAX_ROW_BYTES {
                return Err(TOO_LONG_A_ROW);
            }
            self.members.push(member);
        }
        Ok(())
    }

    /// Leaves the members of the body: those of the object in the envelope if the row is one (see
    /// [`enveloped`]), or else the row's own, without those that say where it goes, and without what only we
    /// may say. A reading's timestamp goes first and so is left out here.
    fn unwrap_or_strip(&mut self) -> Result<(), Refusal> {
        if let Some(inner) = enveloped(self.kind, &self.members) {
            let inner =
                json::object(inner.raw).and_then(Iterator::collect).map_err(|error| self.broken(error))?;
            self.members = inner;
        } else if self.kind == Kind::Telemetry {
            self.members.retain(|member| {
                !member.is("well_id") && !member.is("timestamp") && !member.is("telemetry_id")
            });
        } else {
            self.members.retain(|member| !member.is("well_id"));
        }
        Ok(())
    }

    fn broken(&self, error: JsonError) -> Refusal {
        Refusal::InvalidRow { row: self.batch.len(), syntax: true, message: error.what }
    }

    fn wrong(&self, message: &'static str) -> Refusal {
        Refusal::InvalidRow { row: self.batch.len(), syntax: false, message }
    }
}

const TOO_LONG_A_ROW: Refusal = Refusal::TooLarge("a row may have at most 131072 bytes");

/// Where a row goes, and when it is from.
struct Place<'a> {
    well_id: Cow<'a, str>,
    /// The client's timestamp as sent, quotes included.
    timestamp: Option<&'a [u8]>,
}

fn place<'a>(members: &[Member<'a>]) -> Result<Place<'a>, &'static str> {
    let (mut well_id, mut timestamp) = (None, None);
    for member in members {
        if member.is("well_id") && well_id.replace(member.value.raw).is_some() {
            return Err("well_id is given twice");
        }
        if member.is("timestamp") && timestamp.replace(member.value.raw).is_some() {
            return Err("timestamp is given twice");
        }
    }
    let well_id = json::string(well_id.ok_or("well_id is required")?).ok_or("well_id must be a string")?;
    let is_moment = |raw| json::string(raw).is_some_and(|text| time::parse_rfc3339(&text).is_some());
    if timestamp.is_some_and(|raw| !is_moment(raw)) {
        return Err("timestamp must be an RFC 3339 string");
    }
    Ok(Place { well_id, timestamp })
}

/// The object in an alert or diagnostic that has the shape of the event that announces it: `alert` (or
/// `diagnostic`), an object, and beside it nothing but `well_id`, `timestamp` and `event`. With anything else
/// beside it, it is a member like any other, so that nothing is lost.
fn enveloped<'a>(kind: Kind, members: &[Member<'a>]) -> Option<Value<'a>> {
    let name = match kind {
        Kind::Telemetry => return None,
        Kind::Alert => "alert",
        Kind::Diagnostic => "diagnostic",
    };
    let mut inner = None;
    for member in members {
        if member.is(name) {
            if member.value.kind != Type::Object || inner.replace(member.value).is_some() {
                return None;
            }
        } else if !member.is("well_id") && !member.is("timestamp") && !member.is("event") {
            return None;
        }
    }
    inner
}

fn check_alert(members: &[Member<'_>]) -> Result<(), &'static str> {
    let mut types = members.iter().filter(|member| member.is("type")).peekable();
    if types.peek().is_none() {
        return Err("type is required");
    }
    if types.any(|member| member.value.kind != Type::String) {
        return Err("type must be a string");
    }
    Ok(())
}

/// The bytes that [`write_body`] will append. (Every member is followed by a comma or the closing brace.)
fn body_length(time: Option<&[u8]>, members: &[Member<'_>]) -> usize {
    let time = time.map_or(0, |time| "\"timestamp\":,".len() + time.len());
    1 + time + members.iter().map(|member| member.raw.len() + 1).sum::<usize>()
}

/// Appends a body on one line. There is a time or a member.
fn write_body(time: Option<&[u8]>, members: &[Member<'_>], out: &mut Vec<u8>) {
    put(out, "{");
    if let Some(time) = time {
        put(out, "\"timestamp\":");
        out.extend_from_slice(time);
        put(out, if members.is_empty() { "" } else { "," });
    }
    write_list(members, out, |member, out| json::write_line(member.raw, out));
    put(out, "}");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::super::Esp;
    use super::*;
    use crate::dialect::Dialect;
    use crate::dialect::fixture::with_head;
    use crate::message::{Publication, Row};
    use crate::topic;

    /// 2025-11-20T10:30:00Z
    const NOW: u64 = 1_763_634_600_000;

    fn batch(kind: Kind, fields: &str, body: &[u8]) -> Result<Batch, Refusal> {
        let text = format!("POST /x HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        with_head(&text, |head| ingest(kind, &Request { head, body }, NOW))
    }

    /// The rows of a body as `topic body`, or the refusal.
    fn rows(kind: Kind, body: &str) -> Result<Vec<String>, Refusal> {
        let batch = batch(kind, "", body.as_bytes())?;
        let show = |row: Row<'_>| {
            assert_eq!(row.kind, kind);
            format!("{} {}", row.topic, std::str::from_utf8(row.body).unwrap())
        };
        Ok(batch.rows().map(show).collect())
    }

    fn wrong(row: usize, message: &'static str) -> Refusal {
        Refusal::InvalidRow { row, syntax: false, message }
    }

    fn broken(row: usize, message: &'static str) -> Refusal {
        Refusal::InvalidRow { row, syntax: true, message }
    }

    #[test]
    fn readings_are_taken_one_by_one_in_arrays_and_in_lines() {
        let a = r#"wells/A {"timestamp":"2025-11-20T10:30:00Z","x":1}"#;
        let b = r#"wells/B {"timestamp":"2025-11-20T10:30:00Z","x":2}"#;
        for (body, expected) in [
            (r#"{"well_id":"A","x":1}"#, &[a][..]),
            (" \r\n{\r\n  \"well_id\": \"A\",\r\n  \"x\":1\r\n}\r\n", &[a]),
            (r#"[{"well_id":"A","x":1}]"#, &[a]),
            (r#" [ {"well_id":"A","x":1} , {"x":2,"well_id":"B"} ] "#, &[a, b]),
            ("{\"well_id\":\"A\",\"x\":1}\n{\"well_id\":\"B\",\"x\":2}", &[a, b]),
            ("\n\n{\"well_id\":\"A\",\"x\":1}\r\n \r\n\t{\"well_id\":\"B\",\"x\":2}\r\n\n", &[a, b]),
            ("{\"well_id\":\"A\",\n\"x\":1}\n{\n\"well_id\":\"B\",\"x\":2}", &[a, b]),
        ] {
            assert_eq!(rows(Kind::Telemetry, body).unwrap(), expected, "{body}");
        }
        let lines = b"{\"well_id\":\"A\",\"x\":1}\n{\"well_id\":\"B\",\"x\":2}\n";
        let array = b"[{\"well_id\":\"A\"}]";
        for (kind, lines_only) in [
            ("application/x-ndjson", true),
            ("Application/X-NDJSON ; charset=utf-8", true),
            ("application/json", false),
            ("text/plain", false),
        ] {
            let field = format!("Content-Type: {kind}\r\n");
            assert_eq!(batch(Kind::Telemetry, &field, lines).unwrap().len(), 2, "{kind}");
            let array = batch(Kind::Telemetry, &field, array).map(|batch| batch.len());
            let expected = if lines_only { Err(wrong(0, "a row must be an object")) } else { Ok(1) };
            assert_eq!(array, expected, "{kind}");
        }
    }

    #[test]
    fn a_readings_body_is_its_time_and_its_other_members_as_sent() {
        for (reading, body) in [
            (
                r#"{"well_id":"A","timestamp":"2025-11-20T13:30:00.1234567+03:00","x":1}"#,
                r#"wells/A {"timestamp":"2025-11-20T13:30:00.1234567+03:00","x":1}"#,
            ),
            (
                r#"{"x":1,"timestamp":"2025-11-20T10:30:01Z","well_id":"A"}"#,
                r#"wells/A {"timestamp":"2025-11-20T10:30:01Z","x":1}"#,
            ),
            (
                r#"{"timestamp":"2025-11-20T10\u003a30:01Z","well_id":"A"}"#,
                r#"wells/A {"timestamp":"2025-11-20T10\u003a30:01Z"}"#,
            ),
            (r#"{"well_id":"A"}"#, r#"wells/A {"timestamp":"2025-11-20T10:30:00Z"}"#),
            (
                r#"{"well_id":"A","telemetry_id":7,"x":1,"telemetry_id":8}"#,
                r#"wells/A {"timestamp":"2025-11-20T10:30:00Z","x":1}"#,
            ),
            (
                r#"{"well_id":"A","a":1.50,"b":1e400,"c":-0.0,"d":123456789012345678901234567890,"e":"\u00e9é"}"#,
                r#"wells/A {"timestamp":"2025-11-20T10:30:00Z","a":1.50,"b":1e400,"c":-0.0,"d":123456789012345678901234567890,"e":"\u00e9é"}"#,
            ),
            (
                "{\"well_id\":\"A\" , \"gas\" : {\r\n \"ch4\":\t[1,\n2] } }",
                "wells/A {\"timestamp\":\"2025-11-20T10:30:00Z\",\"gas\" : {   \"ch4\":\t[1, 2] }}",
            ),
            (
                r#"{"well_id":"A","x":1,"x":2,"nested":{"well_id":"B","timestamp":5,"telemetry_id":1}}"#,
                r#"wells/A {"timestamp":"2025-11-20T10:30:00Z","x":1,"x":2,"nested":{"well_id":"B","timestamp":5,"telemetry_id":1}}"#,
            ),
            (r#"{"well\u005fid":"\u0041"}"#, r#"wells/A {"timestamp":"2025-11-20T10:30:00Z"}"#),
            (r#"{"well_id":"a/+#%"}"#, r#"wells/a%2F%2B%23%25 {"timestamp":"2025-11-20T10:30:00Z"}"#),
            (r#"{"well_id":"بئر"}"#, r#"wells/%D8%A8%D8%A6%D8%B1 {"timestamp":"2025-11-20T10:30:00Z"}"#),
        ] {
            assert_eq!(rows(Kind::Telemetry, reading).unwrap(), [body]);
        }
    }

    #[test]
    fn bad_rows_are_named() {
        let good = r#"{"well_id":"A"}"#;
        for (body, refusal) in [
            ("{}".into(), wrong(0, "well_id is required")),
            (r#"{"x":1}"#.into(), wrong(0, "well_id is required")),
            (r#"{"well_id":""}"#.into(), wrong(0, "well_id is required")),
            (r#"{"well_id":null}"#.into(), wrong(0, "well_id must be a string")),
            (r#"{"well_id":7}"#.into(), wrong(0, "well_id must be a string")),
            (r#"{"well_id":"A\u0000"}"#.into(), wrong(0, "well_id must not contain NUL")),
            (r#"{"well_id":["A"]}"#.into(), wrong(0, "well_id must be a string")),
            (r#"{"well_id":"A","well_id":"A"}"#.into(), wrong(0, "well_id is given twice")),
            (r#"{"well_id":"A","well\u005fid":"B"}"#.into(), wrong(0, "well_id is given twice")),
            (
                r#"{"well_id":"A","timestamp":1763634600}"#.into(),
                wrong(0, "timestamp must be an RFC 3339 string"),
            ),
            (r#"{"well_id":"A","timestamp":null}"#.into(), wrong(0, "timestamp must be an RFC 3339 string")),
            (r#"{"well_id":"A","timestamp":"now"}"#.into(), wrong(0, "timestamp must be an RFC 3339 string")),
            (
                r#"{"well_id":"A","timestamp":"2025-11-20T10:30:00"}"#.into(),
                wrong(0, "timestamp must be an RFC 3339 string"),
            ),
            (
                r#"{"well_id":"A","timestamp":"2025-11-20T10:30:00Z","timestamp":"2025-11-20T10:30:00Z"}"#
                    .into(),
                wrong(0, "timestamp is given twice"),
            ),
            ("7".into(), wrong(0, "a row must be an object")),
            ("\"A\"".into(), wrong(0, "a row must be an object")),
            (format!("[{good},{good},[]]"), wrong(2, "a row must be an object")),
            (format!("[{good},{{}}]"), wrong(1, "well_id is required")),
            (format!("{good}\n\n{{}}\n"), wrong(1, "well_id is required")),
            (format!("{good}\nnull"), wrong(1, "a row must be an object")),
            (format!("{good}\n{good}\n[{good}]"), wrong(2, "a row must be an object")),
            ("nonsense".into(), broken(0, "expected a value")),
            ("{".into(), broken(0, "expected a member's name")),
            (r#"{"well_id":"A",}"#.into(), broken(0, "expected a member's name")),
            (r#"{"well_id":"A","x":01}"#.into(), broken(0, "expected a comma or }")),
            (r#"{"x":1,"y":NaN}"#.into(), broken(0, "expected a value")),
            ("[".into(), broken(0, "expected a value")),
            ("[tru]".into(), broken(0, "expected a value")),
            (format!("[{good}"), broken(1, "expected a comma or ]")),
            (format!("[{good},]"), broken(1, "expected a value")),
            (format!("[{good} {good}]"), broken(1, "expected a comma or ]")),
            (format!("{good}\n{{\"well_id\""), broken(1, "expected a colon")),
            (format!("{good}{good}"), broken(1, "a line end must separate it from the row before")),
            (format!("{good} {good}"), broken(1, "a line end must separate it from the row before")),
            (format!("{good},\n{good}"), broken(1, "a line end must separate it from the row before")),
            (format!("{good}\n,{good}"), broken(1, "expected a value")),
            ("".into(), Refusal::Invalid("the body is empty".into())),
            (" \r\n\t".into(), Refusal::Invalid("the body is empty".into())),
            ("[]".into(), Refusal::Invalid("the array is empty".into())),
            (format!("[{good}] {good}"), Refusal::Invalid("bytes after the end of the array".into())),
        ] {
            assert_eq!(rows(Kind::Telemetry, &body), Err(refusal), "{body}");
        }
        assert_eq!(batch(Kind::Telemetry, "", b"{\"well_id\":\"\xff\"}"), Err(broken(0, "not UTF-8")),);
    }

    #[test]
    fn rows_have_limits() {
        let reading =
            |well: &str, fill: usize| format!(r#"{{"well_id":"{well}","x":"{}"}}"#, "y".repeat(fill));
        assert!(rows(Kind::Telemetry, &reading(&"w".repeat(128), 0)).is_ok());
        assert_eq!(
            rows(Kind::Telemetry, &reading(&"w".repeat(129), 0)),
            Err(wrong(0, "well_id is longer than 128 bytes"))
        );
        assert!(rows(Kind::Telemetry, &reading(&"/".repeat(83), 0)).is_ok());
        assert_eq!(
            rows(Kind::Telemetry, &reading(&"/".repeat(84), 0)),
            Err(wrong(0, "well_id is longer than 249 bytes, percent-encoded"))
        );

        let around = r#"{"timestamp":"2025-11-20T10:30:00Z","x":""}"#.len();
        let longest = batch(Kind::Telemetry, "", reading("A", MAX_ROW_BYTES - around).as_bytes()).unwrap();
        assert_eq!(longest.rows().next().unwrap().body.len(), MAX_ROW_BYTES);
        for body in [
            reading("A", MAX_ROW_BYTES - around + 1),
            reading("A", 10 * MAX_ROW_BYTES),
            format!("{{\"well_id\":\"A\"{}}}", ",\"\":0".repeat(MAX_ROW_BYTES)),
            format!("{{\"well_id\":\"A\",\"telemetry_id\":\"{}\"}}", "y".repeat(MAX_ROW_BYTES)),
        ] {
            assert_eq!(rows(Kind::Telemetry, &body), Err(TOO_LONG_A_ROW));
        }

        let many = r#"{"well_id":"A"},"#.repeat(MAX_ROWS - 1);
        let most = format!("[{many}{{\"well_id\":\"A\"}}]");
        assert_eq!(batch(Kind::Telemetry, "", most.as_bytes()).unwrap().len(), MAX_ROWS);
        let more = format!("[{many}{many}{{\"well_id\":\"A\"}}]");
        assert_eq!(
            batch(Kind::Telemetry, "", more.as_bytes()),
            Err(Refusal::TooLarge("a request may have at most 100000 rows"))
        );
        assert_eq!(batch(Kind::Telemetry, "", &[b'['; 1 << 20]), Err(broken(0, "nested too deeply")));
    }

    #[test]
    fn alerts_are_taken_flat_or_as_their_own_event() {
        let body = r#"wells/A {"type":"hot","value":5.20}"#;
        for (alert, expected) in [
            (r#"{"well_id":"A","type":"hot","value":5.20}"#, Ok(body)),
            (r#"{"type":"hot","well_id":"A","value":5.20}"#, Ok(body)),
            (r#"{"well_id":"A","alert":{"type":"hot","value":5.20}}"#, Ok(body)),
            (
                r#"{"event":"alert","timestamp":"2025-11-20T10:30:00Z","well_id":"A","alert":{"type":"hot","value":5.20}}"#,
                Ok(body),
            ),
            (
                r#"{"well_id":"A","type":"hot","alert":{"x":1}}"#,
                Ok(r#"wells/A {"type":"hot","alert":{"x":1}}"#),
            ),
            (r#"{"well_id":"A","type":"hot","alert":true}"#, Ok(r#"wells/A {"type":"hot","alert":true}"#)),
            (
                r#"{"well_id":"A","timestamp":"2025-11-20T10:00:00Z","type":"hot","telemetry_id":3}"#,
                Ok(r#"wells/A {"timestamp":"2025-11-20T10:00:00Z","type":"hot","telemetry_id":3}"#),
            ),
            (r#"{"well_id":"A"}"#, Err(wrong(0, "type is required"))),
            (r#"{"well_id":"A","alert":{}}"#, Err(wrong(0, "type is required"))),
            (r#"{"well_id":"A","alert":{"x":1}}"#, Err(wrong(0, "type is required"))),
            (r#"{"well_id":"A","type":5}"#, Err(wrong(0, "type must be a string"))),
            (r#"{"well_id":"A","type":"hot","type":5}"#, Err(wrong(0, "type must be a string"))),
            (r#"{"alert":{"well_id":"A","type":"hot"}}"#, Err(wrong(0, "well_id is required"))),
            (
                r#"{"well_id":"A","type":"hot","timestamp":5}"#,
                Err(wrong(0, "timestamp must be an RFC 3339 string")),
            ),
        ] {
            assert_eq!(rows(Kind::Alert, alert), expected.map(|row| vec![row.to_owned()]), "{alert}");
        }
        let two = "{\"well_id\":\"A\",\"type\":\"hot\",\"value\":5.20}\n{\"well_id\":\"A\"}";
        assert_eq!(rows(Kind::Alert, two), Err(wrong(1, "type is required")));
    }

    #[test]
    fn diagnostics_are_any_object() {
        for (diagnostic, body) in [
            (r#"{"well_id":"A","cpu":0.50}"#, r#"wells/A {"cpu":0.50}"#),
            (r#"{"well_id":"A","diagnostic":{"cpu":0.50}}"#, r#"wells/A {"cpu":0.50}"#),
            (
                r#"{"well_id":"A","x":1,"diagnostic":{"cpu":0.50}}"#,
                r#"wells/A {"x":1,"diagnostic":{"cpu":0.50}}"#,
            ),
            (r#"{"well_id":"A"}"#, r#"wells/A {"timestamp":"2025-11-20T10:30:00Z"}"#),
            (r#"{"well_id":"A","diagnostic":{}}"#, r#"wells/A {"timestamp":"2025-11-20T10:30:00Z"}"#),
            (
                r#"{"well_id":"A","timestamp":"2025-11-20T10:00:00Z","diagnostic":{}}"#,
                r#"wells/A {"timestamp":"2025-11-20T10:00:00Z"}"#,
            ),
            (
                r#"{"well_id":"A","timestamp":"2025-11-20T10:00:00Z"}"#,
                r#"wells/A {"timestamp":"2025-11-20T10:00:00Z"}"#,
            ),
        ] {
            assert_eq!(rows(Kind::Diagnostic, diagnostic).unwrap(), [body]);
        }
    }

    /// Texts of numbers that a float round trip would change, and of anything else.
    fn value() -> impl Strategy<Value = String> {
        prop_oneof![
            "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?",
            any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
            prop::sample::select(vec!["null", "true", "[ ]", "{\"well_id\": [1, {}]}", "[1,\n\r\n2]"])
                .prop_map(str::to_owned),
        ]
    }

    fn fields() -> impl Strategy<Value = BTreeMap<String, String>> {
        let name = prop_oneof!["[a-z_]{1,8}", any::<String>()];
        let ours = |name: &String| !["well_id", "timestamp", "telemetry_id"].contains(&name.as_str());
        prop::collection::btree_map(name.prop_filter("names of ours", ours), value(), 0..8)
    }

    fn well() -> impl Strategy<Value = String> {
        prop_oneof![
            "[A-Z]{1,4}-[0-9]{1,4}",
            prop::collection::vec(proptest::char::range('\u{1}', char::MAX), 1..12)
                .prop_map(String::from_iter)
        ]
    }

    type Raw = BTreeMap<String, Box<RawValue>>;

    fn raw(json: &[u8]) -> Raw {
        serde_json::from_slice(json).unwrap()
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            readings in prop::collection::vec((well(), fields(), any::<prop::sample::Index>()), 1..4),
            shape in 0..3,
            space in prop::sample::select(vec!["", " ", "\n", "\r\n\t"]),
        ) {
            let texts: Vec<String> = readings.iter().map(|(well, fields, place)| {
                let name = |name: &str| serde_json::to_string(name).unwrap();
                let mut members: Vec<_> =
                    fields.iter().map(|(key, value)| format!("{}{space}:{space}{value}", name(key))).collect();
                members.insert(place.index(members.len() + 1), format!("\"well_id\":{}", name(well)));
                format!("{{{space}{}{space}}}", members.join(&format!("{space},")))
            }).collect();
            let body = match shape {
                0 => format!("[{}]", texts.join(",")),
                1 => texts.join("\n"),
                _ => format!("\r\n{}\r\n \n", texts.join("\r\n\r\n")),
            };
            let batch = batch(Kind::Telemetry, "", body.as_bytes()).unwrap();
            prop_assert_eq!(batch.len(), readings.len());
            for (row, (well, fields, _)) in batch.rows().zip(&readings) {
                let publication =
                    Publication { topic: row.topic, offset: 1, id: 77, kind: row.kind, time: NOW, body: row.body };
                let mut out = Vec::new();
                prop_assert_eq!(Esp::event(&publication, &mut out), "telemetry_update");
                prop_assert!(!out.contains(&b'\n') && !out.contains(&b'\r'));
                let event = raw(&out);
                prop_assert_eq!(event.len(), 4);
                prop_assert_eq!(&serde_json::from_str::<String>(event["well_id"].get()).unwrap(), well);
                let mut data = raw(event["data"].get().as_bytes());
                for (name, value) in [("telemetry_id", "77"), ("timestamp", "\"2025-11-20T10:30:00Z\"")] {
                    let ours = data.remove(name).unwrap();
                    prop_assert_eq!(ours.get(), value);
                }
                let data: BTreeMap<_, _> = data.iter().map(|(key, value)| (key.as_str(), value.get())).collect();
                let fields: BTreeMap<_, _> =
                    fields.iter().map(|(key, value)| (key.as_str(), value.replace(['\r', '\n'], " "))).collect();
                prop_assert!(data.iter().map(|(key, value)| (*key, *value)).eq(
                    fields.iter().map(|(key, value)| (*key, value.as_str()))));
            }
        }

        #[test]
        fn any_body_is_refused_or_gives_objects_on_one_line(
            kind in prop::sample::select(vec![Kind::Telemetry, Kind::Alert, Kind::Diagnostic]),
            pieces in prop::collection::vec(prop::sample::select(vec![
                "{", "}", "[", "]", ",", ":", "\n", "\r\n", " ", "\"well_id\"", "\"A\"", "\"type\"", "1", "null",
                "\"alert\"", "\"timestamp\"", "{\"well_id\":\"A\",\"type\":\"x\"}", "\"2025-11-20T10:30:00Z\"", "\\",
            ]), 0..16),
        ) {
            if let Ok(batch) = batch(kind, "", pieces.concat().as_bytes()) {
                prop_assert!(!batch.is_empty());
                for row in batch.rows() {
                    prop_assert!(!raw(row.body).is_empty());
                    prop_assert_eq!(row.body.first(), Some(&b'{'));
                    prop_assert!(!row.body.contains(&b'\n') && !row.body.contains(&b'\r'));
                    prop_assert_eq!(topic::check(row.topic), Ok(()));
                }
            }
        }
    }
}
