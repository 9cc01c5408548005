//! Responses, written straight into the bytes to send.

use super::{is_token_byte, is_value_byte};

/// The interim response that a client waits for which sent `Expect: 100-continue` (RFC 9110 section 15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A response that is whole: its length is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// Status, 200 to 599.
    pub status: u16,
    /// Value of Content-Type; empty: no such field.
    pub content_type: &'a str,
    /// The content, whatever the method: that of a HEAD request is the one a GET would be sent.
    pub body: &'a [u8],
    /// Whether the request is HEAD: fields as for GET, but no content (RFC 9110 section 9.3.2).
    pub head_only: bool,
    /// Minor version of the request, 0 or 1: HTTP/1.0 must be told that the connection stays.
    pub minor: u8,
    /// Whether the connection stays open after this response.
    pub keep_alive: bool,
}

impl Response<'_> {
    /// Appends the response to `out`: status line, Content-Type, Content-Length, Connection, then `fields`, and
    /// the content. 204 and 304 have no content, nor fields about it (RFC 9110 sections 15.3.5 and 15.4.5).
    ///
    /// `fields` must not name those three again; Date is the caller's, who has the clock. A field whose name is
    /// not a token, or whose value holds CR, LF, NUL or another control byte, is dropped whole: a value mended
    /// would say something nobody meant. Returns how many were dropped, to be counted.
    pub fn write<'f>(
        &self,
        fields: impl IntoIterator<Item = (&'f str, &'f str)>,
        out: &mut Vec<u8>,
    ) -> usize {
        let mut dropped = 0;
        let has_content = !matches!(self.status, 204 | 304);
        status_line(self.status, out);
        if has_content {
            if !self.content_type.is_empty() {
                dropped += write_field("Content-Type", self.content_type, out);
            }
            out.extend_from_slice(b"Content-Length: ");
            decimal(self.body.len(), out);
            out.extend_from_slice(b"\r\n");
        }
        if !self.keep_alive {
            out.extend_from_slice(b"Connection: close\r\n");
        } else if self.minor == 0 {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        dropped += write_fields(fields, out);
        if has_content && !self.head_only {
            out.extend_from_slice(self.body);
        }
        dropped
    }
}

/// Appends the head of a stream of server-sent events, which ends with the connection: no Content-Length, no
/// chunks (RFC 9112 section 6.3, last case). Proxies are told not to store, transform or hold back any of it.
///
/// `fields` as in [`Response::write`], and the same is returned.
pub fn stream_head<'f>(fields: impl IntoIterator<Item = (&'f str, &'f str)>, out: &mut Vec<u8>) -> usize {
    status_line(200, out);
    out.extend_from_slice(
        b"Content-Type: text/event-stream\r\n\
          Cache-Control: no-cache, no-transform\r\n\
          X-Accel-Buffering: no\r\n\
          Connection: close\r\n",
    );
    write_fields(fields, out)
}

/// The phrase that goes with a status (RFC 9110 section 15; RFC 6585); empty for one not used here.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => "",
    }
}

fn status_line(status: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    decimal(usize::from(status), out);
    out.push(b' ');
    out.extend_from_slice(reason_phrase(status).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Appends `fields` and the empty line; returns how many were dropped.
fn write_fields<'f>(fields: impl IntoIterator<Item = (&'f str, &'f str)>, out: &mut Vec<u8>) -> usize {
    let dropped = fields.into_iter().map(|(name, value)| write_field(name, value, out)).sum();
    out.extend_from_slice(b"\r\n");
    dropped
}

/// Appends one field, or drops it if it could be read as anything else; returns how many were dropped.
fn write_field(name: &str, value: &str, out: &mut Vec<u8>) -> usize {
    if name.is_empty() || !name.bytes().all(is_token_byte) || !value.bytes().all(is_value_byte) {
        return 1;
    }
    for part in [name, ": ", value, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    0
}

fn decimal(mut number: usize, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OK: Response<'_> = Response {
        status: 200,
        content_type: "application/json",
        body: b"{}",
        head_only: false,
        minor: 1,
        keep_alive: true,
    };

    fn written(response: Response<'_>, fields: &[(&str, &str)]) -> (String, usize) {
        let mut out = Vec::new();
        let dropped = response.write(fields.iter().copied(), &mut out);
        (String::from_utf8(out).unwrap(), dropped)
    }

    #[test]
    fn writes_responses() {
        let rows = [
            (
                "keep-alive",
                OK,
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
            ),
            (
                "close",
                Response { status: 404, keep_alive: false, ..OK },
                "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\
                 Connection: close\r\n\r\n{}",
            ),
            (
                "HTTP/1.0 that stays",
                Response { minor: 0, ..OK },
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\
                 Connection: keep-alive\r\n\r\n{}",
            ),
            (
                "HTTP/1.0 that does not",
                Response { minor: 0, keep_alive: false, ..OK },
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\
                 Connection: close\r\n\r\n{}",
            ),
            (
                "HEAD",
                Response { head_only: true, ..OK },
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n",
            ),
            (
                "empty",
                Response { body: b"", content_type: "", ..OK },
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            ),
            ("204", Response { status: 204, ..OK }, "HTTP/1.1 204 No Content\r\n\r\n"),
            (
                "304",
                Response { status: 304, keep_alive: false, ..OK },
                "HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n",
            ),
            (
                "status without phrase",
                Response { status: 599, body: b"", content_type: "", ..OK },
                "HTTP/1.1 599 \r\nContent-Length: 0\r\n\r\n",
            ),
        ];
        for (name, response, expected) in rows {
            assert_eq!(written(response, &[]), (expected.to_owned(), 0), "{name}");
        }
    }

    #[test]
    fn drops_fields_that_are_not_one_field() {
        let rows = [
            ("plain", "Allow", "GET, POST", 0),
            ("empty value", "A", "", 0),
            ("tab and UTF-8", "A", "b\tc \u{e4}", 0),
            ("CR LF", "A", "b\r\nSet-Cookie: c", 1),
            ("CR", "A", "b\rc", 1),
            ("LF", "A", "b\nc", 1),
            ("NUL", "A", "b\0c", 1),
            ("DEL", "A", "b\u{7f}c", 1),
            ("CR LF in the name", "A: b\r\nC", "d", 1),
            ("colon in the name", "A:", "b", 1),
            ("space in the name", "A ", "b", 1),
            ("no name", "", "b", 1),
        ];
        let (plain, _) = written(Response { body: b"", ..OK }, &[("Z", "z")]);
        for (case, name, value, dropped) in rows {
            let fields = [(name, value), ("Z", "z")];
            let expected = match dropped {
                0 => plain.replace("Z: z", &format!("{name}: {value}\r\nZ: z")),
                _ => plain.clone(),
            };
            let response = Response { body: b"", ..OK };
            assert_eq!(written(response, &fields), (expected, dropped), "{case}");
        }
        let (text, dropped) = written(Response { content_type: "a\r\nb: c", ..OK }, &[]);
        assert_eq!((text.contains("b: c"), dropped), (false, 1));
    }

    #[test]
    fn writes_the_head_of_a_stream() {
        let mut out = b"before".to_vec();
        assert_eq!(stream_head([("Vary", "Origin"), ("A", "\n")], &mut out), 1);
        let expected = "beforeHTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
            Cache-Control: no-cache, no-transform\r\nX-Accel-Buffering: no\r\nConnection: close\r\n\
            Vary: Origin\r\n\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn every_refusal_has_a_phrase() {
        for status in [400, 401, 403, 404, 405, 413, 414, 417, 422, 429, 431, 500, 501, 503, 505, 507] {
            assert_ne!(reason_phrase(status), "", "{status}");
        }
        assert_eq!(reason_phrase(299), "");
        assert_eq!(CONTINUE, format!("HTTP/1.1 100 {}\r\n\r\n", reason_phrase(100)).as_bytes());
    }

    proptest! {
        /// Read back by somebody else's parser, a response is the one meant, whatever the fields hold.
        #[test]
        fn nothing_but_the_fields_meant_gets_out(
            fields in prop::collection::vec(("[A-Za-z\r\n: -]{0,4}", "[a-z\r\n\0\t :\u{e4}]{0,8}"), 0..8),
            body in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut out = Vec::new();
            let response = Response { body: &body, content_type: "", ..OK };
            let pairs = fields.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            let dropped = response.write(pairs, &mut out);
            let mut read = [httparse::EMPTY_HEADER; 16];
            let mut parsed = httparse::Response::new(&mut read);
            let length = parsed.parse(&out).unwrap().unwrap();
            prop_assert_eq!(&out[length..], &body);
            prop_assert_eq!(parsed.headers.len(), 1 + fields.len() - dropped);
            let length = body.len().to_string();
            prop_assert_eq!(parsed.headers[0].value, length.as_bytes());
        }
    }
}
