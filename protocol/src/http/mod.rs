//! HTTP/1.1, server side (RFC 9112): bytes to requests, and responses to bytes.
//!
//! A connection's bytes are a sequence of messages: a head (request line, fields, an empty line), then a body
//! whose end only the head can tell. Whoever reads that end differently from a proxy in front of us lets one
//! client speak in another's name, so nothing here is repaired: a message that is not exactly what the grammar
//! says is refused with an [`HttpError`], and the connection must be closed after the refusal.
//!
//! 1. [`parse_head`] finds the end of the head, holds it against [`Limits`], and reads it.
//! 2. [`BodyDecoder`] takes the body off the wire, whatever its [`Framing`].
//! 3. [`Response`] and [`stream_head`] write the answer.
//!
//! Any split of the same bytes gives the same requests, or the same refusal.

mod body;
mod head;
mod response;

pub use body::{BodyDecoder, CHUNK_LINE_BYTES, CHUNK_OVERHEAD_BYTES, Progress};
pub use head::{EMPTY_LINES, Head, HeadScan, parse_head};
pub use response::{CONTINUE, Response, reason_phrase, stream_head};

/// Most fields in one head. Browsers behind two proxies send about forty.
pub const MAX_HEADERS: usize = 100;

/// What one request may cost, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest head, from its first byte to its empty line; also the longest trailer section. 16 KiB: twice
    /// what proxies pass on by default. Beyond it: 431.
    pub head_bytes: usize,
    /// Longest request line without its line end. 8 KiB: RFC 9112 section 3 recommends 8000 at least.
    /// Beyond it: 414.
    pub target_bytes: usize,
    /// Longest decoded body. 8 MiB: a day of one device's readings in one batch. Beyond it: 413.
    pub body_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head_bytes: 16 * 1024, target_bytes: 8 * 1024, body_bytes: 8 * 1024 * 1024 }
    }
}

/// A request method (RFC 9110 section 9). Method names are case-sensitive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// GET
    Get,
    /// HEAD
    Head,
    /// POST
    Post,
    /// PUT
    Put,
    /// PATCH
    Patch,
    /// DELETE
    Delete,
    /// OPTIONS
    Options,
    /// Any other token.
    Other,
}

/// How the body is delimited (RFC 9112 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// Content-Length, above 0.
    Length(u64),
    /// Transfer-Encoding: chunked.
    Chunked,
}

/// Why bytes are not a request that this server takes. The end of the next request is unknown after any of
/// them: answer, then close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HttpError {
    /// A bare CR, a bare LF, NUL or another control byte in the head (RFC 9112 section 2.2).
    ControlByte,
    /// The request line is not `method SP target SP HTTP/x.y` (RFC 9112 section 3), or more than
    /// [`EMPTY_LINES`] empty lines stand before it.
    RequestLine,
    /// The target has none of the forms taken here (RFC 9112 section 3.2).
    Target,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    Version,
    /// A line is not `name ":" value` (RFC 9112 section 5).
    Field,
    /// Host is missing, repeated or not a host (RFC 9112 section 3.2).
    Host,
    /// Content-Length is repeated or not a number (RFC 9112 section 6.3).
    ContentLength,
    /// Both Content-Length and Transfer-Encoding (RFC 9112 section 6.3).
    BothFramings,
    /// Transfer-Encoding is not exactly one `chunked`, or comes from HTTP/1.0 (RFC 9112 section 6.1).
    TransferEncoding,
    /// A transfer coding other than `chunked` (RFC 9112 section 6.1).
    UnknownCoding,
    /// An expectation other than `100-continue` (RFC 9110 section 10.1.1).
    Expectation,
    /// The request line is longer than [`Limits::target_bytes`].
    TargetTooLong,
    /// The head or the trailer section is longer than [`Limits::head_bytes`].
    HeadTooLarge,
    /// More than [`MAX_HEADERS`] fields.
    TooManyFields,
    /// The body is longer than [`Limits::body_bytes`].
    BodyTooLarge,
    /// More than [`CHUNK_OVERHEAD_BYTES`] of chunked framing on top of the longest body.
    ChunkOverhead,
    /// The chunked coding is broken (RFC 9112 section 7.1).
    Chunk,
    /// A line of the trailer section is not `name ":" value` (RFC 9112 section 7.1.2).
    Trailer,
}

impl HttpError {
    /// The status that refuses it (RFC 9110 section 15).
    pub fn status(self) -> u16 {
        match self {
            Self::ControlByte
            | Self::RequestLine
            | Self::Target
            | Self::Field
            | Self::Host
            | Self::ContentLength
            | Self::BothFramings
            | Self::TransferEncoding
            | Self::Chunk
            | Self::Trailer => 400,
            Self::BodyTooLarge | Self::ChunkOverhead => 413,
            Self::TargetTooLong => 414,
            Self::Expectation => 417,
            Self::HeadTooLarge | Self::TooManyFields => 431,
            Self::UnknownCoding => 501,
            Self::Version => 505,
        }
    }

    /// What was wrong, for the client: one short sentence without its full stop.
    pub fn explain(self) -> &'static str {
        match self {
            Self::ControlByte => "lines must end in CRLF and hold no control bytes",
            Self::RequestLine => "the request line must be: method, space, target, space, HTTP/1.1",
            Self::Target => "the request target must be an absolute path or an http URL",
            Self::Version => "only HTTP/1.1 and HTTP/1.0 are spoken here",
            Self::Field => "a header field must be: name, colon, value, on one line",
            Self::Host => "exactly one valid Host field is required",
            Self::ContentLength => "Content-Length must be given once, as a decimal number",
            Self::BothFramings => "Content-Length and Transfer-Encoding exclude each other",
            Self::TransferEncoding => "Transfer-Encoding must be given once, as: chunked",
            Self::UnknownCoding => "the only transfer coding taken is: chunked",
            Self::Expectation => "the only expectation taken is: 100-continue",
            Self::TargetTooLong => "the request line is too long",
            Self::HeadTooLarge => "the header or trailer section is too large",
            Self::TooManyFields => "there are too many header fields",
            Self::BodyTooLarge => "the body is too large",
            Self::ChunkOverhead => "there is too much chunk framing for so little body; send larger chunks",
            Self::Chunk => "the chunked body is malformed",
            Self::Trailer => "a trailer field must be: name, colon, value, on one line",
        }
    }
}

/// A byte of a token (RFC 9110 section 5.6.2).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A byte that neither a line's text nor a field value may hold (RFC 9110 section 5.5), DEL apart: that one is
/// no line end, and leaving it out keeps the search for line ends at one comparison.
fn is_control(byte: u8) -> bool {
    byte < b' ' && byte != b'\t'
}

/// A byte of a field value (RFC 9110 section 5.5).
fn is_value_byte(byte: u8) -> bool {
    !is_control(byte) && byte != 0x7f
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_a_status_and_a_text() {
        use HttpError::*;
        let rows = [
            (ControlByte, 400),
            (RequestLine, 400),
            (Target, 400),
            (Version, 505),
            (Field, 400),
            (Host, 400),
            (ContentLength, 400),
            (BothFramings, 400),
            (TransferEncoding, 400),
            (UnknownCoding, 501),
            (Expectation, 417),
            (TargetTooLong, 414),
            (HeadTooLarge, 431),
            (TooManyFields, 431),
            (BodyTooLarge, 413),
            (ChunkOverhead, 413),
            (Chunk, 400),
            (Trailer, 400),
        ];
        for (error, status) in rows {
            assert_eq!(error.status(), status, "{error:?}");
            assert_ne!(reason_phrase(status), "", "{error:?}");
            assert!(!error.explain().is_empty(), "{error:?}");
        }
    }

    /// What a connection does, over several requests at once and in any pieces.
    #[test]
    fn requests_follow_one_another() {
        let input = b"HEAD /a HTTP/1.1\r\nHost: a\r\n\r\n\
            POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}\r\n\
            POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n\
            OPTIONS * HTTP/1.0\r\n\r\n";
        let expected = [
            (Method::Head, "/a", ""),
            (Method::Post, "/b", "{}"),
            (Method::Post, "/c", "x"),
            (Method::Options, "*", ""),
        ]
        .map(|(method, path, body)| (method, path.to_owned(), body.as_bytes().to_vec()));
        for step in 1..=input.len() {
            assert_eq!(requests(input, step), expected, "{step} bytes at a time");
        }
    }

    fn requests(input: &[u8], step: usize) -> Vec<(Method, String, Vec<u8>)> {
        let limits = Limits::default();
        let mut requests = Vec::new();
        let mut scan = HeadScan::default();
        let mut decoder = None;
        let mut pending = Vec::new();
        for piece in input.chunks(step) {
            pending.extend_from_slice(piece);
            loop {
                if decoder.is_none() {
                    let Some(head) = parse_head(&pending, &mut scan, &limits).unwrap() else {
                        break;
                    };
                    requests.push((head.method, head.path.to_owned(), Vec::new()));
                    decoder = Some(BodyDecoder::new(head.framing, &limits).unwrap());
                    let len = head.len;
                    pending.drain(..len);
                }
                let (Some(body), Some((_, _, content))) = (&mut decoder, requests.last_mut()) else {
                    break;
                };
                let progress = body.advance(&pending, content).unwrap();
                pending.drain(..progress.consumed);
                if !progress.done {
                    break;
                }
                decoder = None;
            }
        }
        assert!(pending.is_empty() && decoder.is_none());
        requests
    }
}
