//! Server-sent events (WHATWG HTML, section 9.2), the writing side, and the one field that comes back.
//!
//! A stream is UTF-8 lines `field: value`; an empty line ends an event. A client dispatches an event if it
//! had a `data` line, keeps the last `id` it saw, and sends that as `Last-Event-ID` when it reconnects.
//! A line that begins with a colon is a comment.

use crate::json::write_u64;

/// Appends one event.
///
/// CR, LF and CRLF in `data` begin a new `data:` line each, which the client joins by LF. `event` loses any
/// CR, LF and NUL, and if nothing is left there is no such line, so that it cannot forge a field.
pub fn event(out: &mut Vec<u8>, id: Option<u64>, event: &str, data: &[u8]) {
    if let Some(id) = id {
        out.extend_from_slice(b"id: ");
        write_u64(id, out);
        out.push(b'\n');
    }
    let mut name = event.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n' | 0)).peekable();
    if name.peek().is_some() {
        out.extend_from_slice(b"event: ");
        out.extend(name);
        out.push(b'\n');
    }
    let mut rest = Some(data);
    while let Some(text) = rest {
        let (line, more) = split_line(text);
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.push(b'\n');
        rest = more;
    }
    out.push(b'\n');
}

/// Appends how long a client shall wait before it reconnects, in milliseconds.
pub fn retry(out: &mut Vec<u8>, ms: u64) {
    out.extend_from_slice(b"retry: ");
    write_u64(ms, out);
    out.extend_from_slice(b"\n\n");
}

/// Appends a comment, which clients skip: a sign of life, or padding. CR and LF begin a new one each.
pub fn comment(out: &mut Vec<u8>, text: &str) {
    let mut rest = Some(text.as_bytes());
    while let Some(text) = rest {
        let (line, more) = split_line(text);
        out.extend_from_slice(b": ");
        out.extend_from_slice(line);
        out.push(b'\n');
        rest = more;
    }
    out.push(b'\n');
}

/// The offset that a `Last-Event-ID` field or parameter names: digits only, at most 20, at most `u64::MAX`.
/// Anything else is no position of ours.
pub fn last_event_id(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 20 {
        return None;
    }
    value.iter().try_fold(0_u64, |id, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        id.checked_mul(10)?.checked_add(digit)
    })
}

/// The first line of `text`, and what follows its end, if it has one.
fn split_line(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|&byte| byte == b'\n' || byte == b'\r') {
        None => (text, None),
        Some(at) => {
            let end = if text[at..].starts_with(b"\r\n") { 2 } else { 1 };
            (&text[..at], Some(&text[at + end..]))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(id: Option<u64>, name: &str, data: &[u8]) -> String {
        let mut out = Vec::new();
        event(&mut out, id, name, data);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn events_are_framed() {
        for (id, name, data, framed) in [
            (Some(5), "heartbeat", "{\"a\":1}", "id: 5\nevent: heartbeat\ndata: {\"a\":1}\n\n"),
            (Some(0), "connected", "{}", "id: 0\nevent: connected\ndata: {}\n\n"),
            (None, "error", "{}", "event: error\ndata: {}\n\n"),
            (Some(u64::MAX), "", "x", "id: 18446744073709551615\ndata: x\n\n"),
            (None, "a", "", "event: a\ndata: \n\n"),
            (None, "a", "1\n2", "event: a\ndata: 1\ndata: 2\n\n"),
            (None, "a", "1\r\n2\r3\n", "event: a\ndata: 1\ndata: 2\ndata: 3\ndata: \n\n"),
            (None, "a", "\n\r", "event: a\ndata: \ndata: \ndata: \n\n"),
            (None, "a\ndata: x\r\n\r\nid: 9\0", "y", "event: adata: xid: 9\ndata: y\n\n"),
            (None, "\r\n\0", "y", "data: y\n\n"),
        ] {
            assert_eq!(written(id, name, data.as_bytes()), framed);
        }
    }

    #[test]
    fn retry_and_comment_are_framed() {
        let mut out = Vec::new();
        retry(&mut out, 3000);
        comment(&mut out, "alive");
        comment(&mut out, "a\ndata: b");
        assert_eq!(out, b"retry: 3000\n\n: alive\n\n: a\n: data: b\n\n");
        assert_eq!(parse(&out), []);
    }

    #[test]
    fn last_event_ids_are_plain_offsets_or_nothing() {
        for (value, id) in [
            ("0", Some(0)),
            ("42", Some(42)),
            ("00000000000000000042", Some(42)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("99999999999999999999", None),
            ("000000000000000000042", None),
            ("", None),
            ("-1", None),
            ("+1", None),
            (" 1", None),
            ("1 ", None),
            ("1.0", None),
            ("0x1", None),
            ("1\0", None),
            ("\u{661}", None),
            ("evil\nid: 1", None),
        ] {
            assert_eq!(last_event_id(value.as_bytes()), id, "{value:?}");
        }
        assert_eq!(last_event_id(&vec![b'1'; 10 << 20]), None);
        assert_eq!(last_event_id(b"\xff\xfe"), None);
    }

    #[derive(Debug, Default, PartialEq)]
    struct Event {
        id: Option<Vec<u8>>,
        name: Vec<u8>,
        data: Vec<u8>,
    }

    /// The client's side, as the standard words it ("interpreting an event stream"), over bytes.
    fn parse(stream: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        let mut event = Event::default();
        let mut rest = stream;
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            let Some(end) = end else { break };
            let line = &rest[..end];
            let both = rest[end] == b'\r' && rest.get(end + 1) == Some(&b'\n');
            rest = &rest[end + if both { 2 } else { 1 }..];
            if line.is_empty() {
                let id = event.id.clone();
                let mut done = std::mem::replace(&mut event, Event { id, ..Event::default() });
                if done.data.pop().is_some() {
                    events.push(done);
                }
                continue;
            }
            let colon = line.iter().position(|&byte| byte == b':').unwrap_or(line.len());
            let value = line.get(colon + 1..).unwrap_or_default();
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match &line[..colon] {
                b"" | b"retry" => {}
                b"event" => event.name = value.to_vec(),
                b"data" => {
                    event.data.extend_from_slice(value);
                    event.data.push(b'\n');
                }
                b"id" if !value.contains(&0) => event.id = Some(value.to_vec()),
                field => panic!("a field of no kind: {}", field.escape_ascii()),
            }
        }
        assert!(rest.is_empty() && event.data.is_empty(), "unfinished");
        events
    }

    /// Bytes with many line ends, colons and fields among them.
    fn data() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            any::<u8>().prop_map(|byte| vec![byte]),
            prop::sample::select(vec![
                "\n", "\r", "\r\n", "\n\n", ":", " ", "data: ", "id: 7", "event: x", "\0"
            ])
            .prop_map(|text| text.as_bytes().to_vec()),
        ];
        proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_data_is_one_event(id: Option<u64>, name in any::<String>(), data in data(), after in data()) {
            let mut out = Vec::new();
            event(&mut out, id, &name, &data);
            event(&mut out, None, "after", &after);
            let name: String = name.chars().filter(|c| !"\r\n\0".contains(*c)).collect();
            let lines = |data: &[u8]| {
                let mut text = Vec::new();
                for (at, &byte) in data.iter().enumerate() {
                    match byte {
                        b'\n' if at > 0 && data[at - 1] == b'\r' => {}
                        b'\r' => text.push(b'\n'),
                        _ => text.push(byte),
                    }
                }
                text
            };
            let id = id.map(|id| id.to_string().into_bytes());
            prop_assert_eq!(parse(&out), [
                Event { id: id.clone(), name: name.into_bytes(), data: lines(&data) },
                Event { id, name: b"after".to_vec(), data: lines(&after) },
            ]);
        }
    }
}
