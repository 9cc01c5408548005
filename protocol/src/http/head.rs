//! The head of a request: where it ends, and what it says.

use std::fmt;
use std::mem::{self, MaybeUninit};

use super::{Framing, HttpError, Limits, MAX_HEADERS, Method, is_control, is_token_byte};

/// Most empty lines before a request line. Old clients send one after a body (RFC 9112 section 2.2).
pub const EMPTY_LINES: usize = 4;

/// Head of a request, read and found well-formed. Borrows the bytes it was read from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Head<'a> {
    /// Method.
    pub method: Method,
    /// Path as sent, still percent-encoded, without the query: starts with `/`, or is the `*` of OPTIONS.
    pub path: &'a str,
    /// Query as sent, without the `?`; empty if absent.
    pub query: &'a str,
    /// 1 for HTTP/1.1, 0 for HTTP/1.0.
    pub minor: u8,
    /// How the body that follows is delimited.
    pub framing: Framing,
    /// Whether the client lets the connection live on after the response (RFC 9112 section 9.3).
    pub keep_alive: bool,
    /// Whether the client holds its body back until it sees [`CONTINUE`](super::CONTINUE). Only for HTTP/1.1
    /// and only if there is a body (RFC 9110 section 10.1.1).
    pub expect_continue: bool,
    /// Bytes of the head, empty lines before it and the one that ends it included.
    pub len: usize,
    /// The field lines, each `name ":" OWS value OWS CRLF`: what httparse has accepted, so walking them again
    /// needs no checks, and a head is a hundred bytes instead of an array of a hundred fields.
    lines: &'a [u8],
}

impl<'a> Head<'a> {
    /// The value of the first field called `name`, in any case, without the white space around it.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.fields().find(|(field, _)| field.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
    }

    /// All fields, names as sent, in the order sent.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        // A name is a token, and tokens are ASCII.
        self.fields().map(|(name, value)| (str::from_utf8(name).unwrap_or_default(), value))
    }

    fn fields(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let mut rest = self.lines;
        std::iter::from_fn(move || {
            let line;
            (line, rest) = rest.split_at_checked(find_control(rest, 0))?;
            rest = rest.get(2..)?;
            let colon = line.iter().position(|byte| *byte == b':')?;
            Some((&line[..colon], line[colon + 1..].trim_ascii()))
        })
    }
}

impl fmt::Debug for Head<'_> {
    /// Leaves out query and fields: credentials travel there, and must not reach a log.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Head")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("minor", &self.minor)
            .field("framing", &self.framing)
            .field("keep_alive", &self.keep_alive)
            .field("expect_continue", &self.expect_continue)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// How far the search for the end of a head has come, so that no byte is searched twice however slowly they
/// arrive. One per connection; [`parse_head`] resets it with every head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadScan {
    /// Bytes searched.
    at: usize,
    /// Where the line being searched starts.
    line: usize,
    /// Where the request line starts: after the empty lines before it.
    start: usize,
    /// Lines seen whole from the request line on.
    lines: usize,
}

/// Reads the head at the start of `input`, or `None` if it is not whole yet.
///
/// Call it again with the same bytes and more behind them, and with the same `scan`. Line ends, control bytes
/// and limits are checked as bytes arrive, everything else once the head is whole; `input` of
/// [`Limits::head_bytes`] or more is never answered `None`.
///
/// # Errors
/// Any [`HttpError`] but those of bodies; the same one for any split of the same bytes.
pub fn parse_head<'a>(
    input: &'a [u8],
    scan: &mut HeadScan,
    limits: &Limits,
) -> Result<Option<Head<'a>>, HttpError> {
    let Some(end) = find_end(input, scan, limits)? else {
        return Ok(None);
    };
    let start = mem::take(scan).start;
    let head = read(&input[start..end])?;
    Ok(Some(Head { len: end, ..head }))
}

fn find_end(input: &[u8], scan: &mut HeadScan, limits: &Limits) -> Result<Option<usize>, HttpError> {
    let window = &input[..input.len().min(limits.head_bytes)];
    if window.len() < scan.at {
        // Other bytes than last time: only a caller's mistake leads here, and it must not lead to a panic.
        *scan = HeadScan::default();
    }
    loop {
        let stop = find_control(window, scan.at);
        if scan.lines == 0 && stop - scan.start > limits.target_bytes {
            return Err(HttpError::TargetTooLong);
        }
        scan.at = stop;
        match window[stop..] {
            [] | [b'\r'] if input.len() >= limits.head_bytes => {
                return Err(HttpError::HeadTooLarge);
            }
            [] | [b'\r'] => return Ok(None),
            [b'\r', b'\n', ..] => {}
            _ => return Err(HttpError::ControlByte),
        }
        let empty = stop == scan.line;
        scan.at = stop + 2;
        scan.line = scan.at;
        if !empty {
            scan.lines += 1;
            if scan.lines > 1 + MAX_HEADERS {
                return Err(HttpError::TooManyFields);
            }
        } else if scan.lines > 0 {
            return Ok(Some(scan.at));
        } else {
            scan.start = scan.at;
            if scan.start > EMPTY_LINES * 2 {
                return Err(HttpError::RequestLine);
            }
        }
    }
}

/// Position of the first control byte from `from` on, or the length of `bytes`. Blocks of sixteen first: their
/// test has no branch per byte.
fn find_control(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while let Some(block) = bytes[at..].first_chunk::<16>() {
        if block.iter().fold(false, |hit, byte| hit | is_control(*byte)) {
            break;
        }
        at += block.len();
    }
    let tail = &bytes[at..];
    at + tail.iter().position(|byte| is_control(*byte)).unwrap_or(tail.len())
}

/// Whether a tab stands before or after a field's value. It is allowed there (RFC 9110 section 5.6.3), but servers in front
/// take it for part of the value; two that read a field differently is what request smuggling needs.
fn has_tab_around_value(line: &[u8]) -> bool {
    let value = line.iter().position(|byte| *byte == b':').map_or(&[][..], |colon| &line[colon + 1..]);
    let value = value.strip_suffix(b"\r").unwrap_or(value);
    let is_space = |byte: &u8| *byte == b' ';
    let first = value.iter().find(|byte| !is_space(byte));
    let last = value.iter().rev().find(|byte| !is_space(byte));
    first == Some(&b'\t') || last == Some(&b'\t')
}

/// Reads a whole head; `len` is that of `bytes`.
fn read(bytes: &[u8]) -> Result<Head<'_>, HttpError> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete(len)) if len == bytes.len() => {}
        Err(httparse::Error::Version) => return Err(version_error(bytes)),
        Err(httparse::Error::HeaderName | httparse::Error::HeaderValue) => {
            return Err(HttpError::Field);
        }
        Err(httparse::Error::TooManyHeaders) => return Err(HttpError::TooManyFields),
        Err(_) | Ok(_) => return Err(HttpError::RequestLine),
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(HttpError::RequestLine);
    };
    let method = method_named(method);
    let (path, query) = split_target(method, target)?;
    let mut facts = Facts::default();
    for field in request.headers.iter() {
        facts.learn(field.name, field.value)?;
    }
    let lines = &bytes[find_control(bytes, 0) + 2..bytes.len() - 2];
    if lines.contains(&b'\t') && lines.split(|byte| *byte == b'\n').any(has_tab_around_value) {
        return Err(HttpError::Field);
    }
    let framing = facts.framing(minor)?;
    if facts.hosts != 1 && (minor == 1 || facts.hosts > 0) {
        return Err(HttpError::Host);
    }
    Ok(Head {
        method,
        path,
        query,
        minor,
        framing,
        keep_alive: !facts.close && (minor == 1 || facts.keep_alive),
        expect_continue: facts.expect_continue && minor == 1 && framing != Framing::None,
        len: bytes.len(),
        lines,
    })
}

/// Tells a version that is not ours, e.g. the `HTTP/2.0` of a prior-knowledge preface, from one that is none.
fn version_error(bytes: &[u8]) -> HttpError {
    let line = &bytes[..find_control(bytes, 0)];
    let mut words = line.split(|b| *b == b' ');
    match (words.nth(2), words.next()) {
        (Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor]), None)
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            HttpError::Version
        }
        _ => HttpError::RequestLine,
    }
}

fn method_named(name: &str) -> Method {
    match name {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "PATCH" => Method::Patch,
        "DELETE" => Method::Delete,
        "OPTIONS" => Method::Options,
        _ => Method::Other,
    }
}

/// Path and query of a target in origin-form, absolute-form, or (OPTIONS only) asterisk-form.
fn split_target(method: Method, target: &str) -> Result<(&str, &str), HttpError> {
    if !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Err(HttpError::Target);
    }
    if target == "*" && method == Method::Options {
        return Ok((target, ""));
    }
    let origin = match target.split_once("://") {
        _ if target.starts_with('/') => target,
        Some((scheme, rest)) if is_http(scheme) => {
            let (authority, origin) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            if !is_authority(authority.as_bytes()) {
                return Err(HttpError::Target);
            }
            origin
        }
        _ => return Err(HttpError::Target),
    };
    let (path, query) = origin.split_once('?').unwrap_or((origin, ""));
    // An URL without a path means the root (RFC 9110 section 4.2.3).
    Ok((if path.is_empty() { "/" } else { path }, query))
}

fn is_http(scheme: &str) -> bool {
    scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")
}

/// `host [":" port]` (RFC 3986 section 3.2), without user info, not empty (RFC 9110 section 4.2.1), and
/// without the comma the grammar allows: only the joined values of two Host fields would have one.
fn is_authority(bytes: &[u8]) -> bool {
    let (host, port, marks): (_, _, &[u8]) = match bytes {
        [b'[', literal @ ..] => match literal.iter().position(|b| *b == b']') {
            Some(end) => (&literal[..end], &literal[end + 1..], b":."),
            None => return false,
        },
        _ => {
            let colon = bytes.iter().position(|b| *b == b':');
            let (host, port) = bytes.split_at(colon.unwrap_or(bytes.len()));
            (host, port, b"-._~%!$&'()*+;=")
        }
    };
    let port_is_good = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    let host_is_good = host.iter().all(|b| b.is_ascii_alphanumeric() || marks.contains(b));
    !host.is_empty() && host_is_good && port_is_good
}

/// What the fields say that the connection must know.
#[derive(Default)]
struct Facts<'a> {
    hosts: usize,
    content_length: Option<u64>,
    coding: Option<&'a [u8]>,
    close: bool,
    keep_alive: bool,
    expect_continue: bool,
}

impl<'a> Facts<'a> {
    fn learn(&mut self, name: &str, value: &'a [u8]) -> Result<(), HttpError> {
        if name.eq_ignore_ascii_case("host") {
            self.hosts += 1;
            if !is_authority(value) {
                return Err(HttpError::Host);
            }
        } else if name.eq_ignore_ascii_case("content-length") {
            let length = decimal(value).ok_or(HttpError::ContentLength)?;
            if self.content_length.replace(length).is_some() {
                return Err(HttpError::ContentLength);
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if self.coding.replace(value).is_some() {
                return Err(HttpError::TransferEncoding);
            }
        } else if name.eq_ignore_ascii_case("connection") {
            for option in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                self.close |= option.eq_ignore_ascii_case(b"close");
                self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        } else if name.eq_ignore_ascii_case("expect") {
            if !value.eq_ignore_ascii_case(b"100-continue") {
                return Err(HttpError::Expectation);
            }
            self.expect_continue = true;
        }
        Ok(())
    }

    fn framing(&self, minor: u8) -> Result<Framing, HttpError> {
        match (self.coding, self.content_length) {
            (Some(_), Some(_)) => Err(HttpError::BothFramings),
            (Some(_), None) if minor == 0 => Err(HttpError::TransferEncoding),
            (Some(coding), None) => check_coding(coding).map(|()| Framing::Chunked),
            (None, None | Some(0)) => Ok(Framing::None),
            (None, Some(length)) => Ok(Framing::Length(length)),
        }
    }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.is_ascii_digit().then_some(u64::from(digit & 0x0f))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// Accepts `chunked` alone. Chunked twice, not last or with parameters can only be an attack or a defect; a
/// list of other codings is something we do not implement.
fn check_coding(value: &[u8]) -> Result<(), HttpError> {
    let mut error = None;
    let mut chunked = false;
    for coding in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
        let name = coding.split(|b| *b == b';').next().unwrap_or_default();
        let name = name.trim_ascii();
        if chunked || name.is_empty() || !name.iter().copied().all(is_token_byte) {
            return Err(HttpError::TransferEncoding);
        }
        chunked = name.eq_ignore_ascii_case(b"chunked");
        if chunked && coding.len() != name.len() {
            return Err(HttpError::TransferEncoding);
        }
        if !chunked {
            error = Some(HttpError::UnknownCoding);
        }
    }
    error.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse<'a>(input: &'a [u8], limits: &Limits) -> Result<Option<Head<'a>>, HttpError> {
        parse_head(input, &mut HeadScan::default(), limits)
    }

    /// Feeds ever longer prefixes; `cuts` are their lengths. The first decision counts.
    fn parse_in_pieces<'a>(
        input: &'a [u8],
        cuts: impl IntoIterator<Item = usize>,
        limits: &Limits,
    ) -> Result<Option<Head<'a>>, HttpError> {
        let mut scan = HeadScan::default();
        for cut in cuts {
            match parse_head(&input[..cut.min(input.len())], &mut scan, limits) {
                Ok(None) => {}
                decision => return decision,
            }
        }
        parse_head(input, &mut scan, limits)
    }

    /// Asserts that `input` gives `expected` whole and byte by byte.
    fn assert_refused(name: &str, input: &[u8], expected: HttpError) {
        let limits = Limits::default();
        assert_eq!(parse(input, &limits), Err(expected), "{name}");
        let pieces = parse_in_pieces(input, 0..=input.len(), &limits);
        assert_eq!(pieces, Err(expected), "{name}, byte by byte");
    }

    fn accepted<'a>(name: &str, input: &'a [u8]) -> Head<'a> {
        let limits = Limits::default();
        let whole = parse(input, &limits);
        let pieces = parse_in_pieces(input, 0..=input.len(), &limits);
        assert_eq!(whole, pieces, "{name}, byte by byte");
        match whole {
            Ok(Some(head)) => head,
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn refuses_malformed_lines() {
        use HttpError::*;
        let rows: &[(&str, &[u8], HttpError)] = &[
            ("bare LF", b"GET / HTTP/1.1\nHost: a\r\n\r\n", ControlByte),
            ("bare LF, field", b"GET / HTTP/1.1\r\nHost: a\n\r\n", ControlByte),
            ("bare LF, end", b"GET / HTTP/1.1\r\nHost: a\r\n\n", ControlByte),
            ("bare LF first", b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", ControlByte),
            ("bare CR, line", b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n", ControlByte),
            ("bare CR, name", b"GET / HTTP/1.1\r\nHo\rst: a\r\n\r\n", ControlByte),
            ("bare CR, value", b"GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", ControlByte),
            ("CR CR LF", b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", ControlByte),
            ("NUL, target", b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", ControlByte),
            ("NUL, name", b"GET / HTTP/1.1\r\nHost: a\r\nA\0: b\r\n\r\n", ControlByte),
            ("NUL, value", b"GET / HTTP/1.1\r\nHost: a\r\nA: \0\r\n\r\n", ControlByte),
            ("control, value", b"GET / HTTP/1.1\r\nHost: a\r\nA: \x0b\r\n\r\n", ControlByte),
            ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", ControlByte),
            ("DEL, value", b"GET / HTTP/1.1\r\nHost: a\r\nA: \x7f\r\n\r\n", Field),
            ("obs-fold", b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n", Field),
            ("obs-fold, tab", b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n\tc\r\n\r\n", Field),
            ("fold before fields", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", Field),
            ("fold, blank", b"GET / HTTP/1.1\r\nHost: a\r\n \r\n\r\n", Field),
            ("space before colon", b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", Field),
            ("tab before a value", b"GET / HTTP/1.1\r\nHost: a\r\nA: \tb\r\n\r\n", Field),
            ("tab after a value", b"GET / HTTP/1.1\r\nHost: a\r\nA: b\t \r\n\r\n", Field),
            ("tab for a value", b"GET / HTTP/1.1\r\nHost: a\r\nA:\t\r\n\r\n", Field),
            ("tab before colon", b"GET / HTTP/1.1\r\nHost\t: a\r\n\r\n", Field),
            ("empty name", b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", Field),
            ("no colon", b"GET / HTTP/1.1\r\nHost: a\r\nA\r\n\r\n", Field),
            ("name not a token", b"GET / HTTP/1.1\r\nHost: a\r\nA(: b\r\n\r\n", Field),
            ("name not ASCII", b"GET / HTTP/1.1\r\nHost: a\r\n\xc3\xa4: b\r\n\r\n", Field),
            ("five empty lines", b"\r\n\r\n\r\n\r\n\r\nGET /", RequestLine),
        ];
        for (name, input, expected) in rows {
            assert_refused(name, input, *expected);
        }
    }

    #[test]
    fn refuses_malformed_request_lines() {
        use HttpError::*;
        let rows: &[(&str, &[u8], HttpError)] = &[
            ("no method", b" / HTTP/1.1", RequestLine),
            ("method not a token", b"G(T / HTTP/1.1", RequestLine),
            ("method and tab", b"GET\t/ HTTP/1.1", RequestLine),
            ("two spaces before target", b"GET  / HTTP/1.1", RequestLine),
            ("two spaces before version", b"GET /  HTTP/1.1", RequestLine),
            ("space in target", b"GET /a b HTTP/1.1", RequestLine),
            ("space after version", b"GET / HTTP/1.1 ", RequestLine),
            ("space before method", b" GET / HTTP/1.1", RequestLine),
            ("HTTP/0.9", b"GET /", RequestLine),
            ("no target", b"GET HTTP/1.1", RequestLine),
            ("version of none", b"GET / HTTPS/1.1", RequestLine),
            ("version in lower case", b"GET / http/1.1", RequestLine),
            ("version of three digits", b"GET / HTTP/1.10", RequestLine),
            ("version without minor", b"GET / HTTP/2", RequestLine),
            ("HTTP/2.0", b"GET / HTTP/2.0", Version),
            ("HTTP/1.2", b"GET / HTTP/1.2", Version),
            ("HTTP/0.9, spelt out", b"GET / HTTP/0.9", Version),
            ("HTTP/2 preface", b"PRI * HTTP/2.0", Version),
            ("target without slash", b"GET a HTTP/1.1", Target),
            ("target is a query", b"GET ?a HTTP/1.1", Target),
            ("asterisk of GET", b"GET * HTTP/1.1", Target),
            ("asterisk and more", b"OPTIONS *a HTTP/1.1", Target),
            ("authority", b"CONNECT a:443 HTTP/1.1", Target),
            ("other scheme", b"GET ftp://a/ HTTP/1.1", Target),
            ("URL without host", b"GET http:///b HTTP/1.1", Target),
            ("URL with only a port", b"GET http://:80/b HTTP/1.1", Target),
            ("URL with user", b"GET http://u@a/b HTTP/1.1", Target),
            ("fragment", b"GET /a#b HTTP/1.1", Target),
            ("fragment in query", b"GET /a?b#c HTTP/1.1", Target),
            ("not ASCII, UTF-8", b"GET /\xc3\xa4 HTTP/1.1", Target),
            ("not ASCII, Latin 1", b"GET /\xe4 HTTP/1.1", RequestLine),
            ("DEL", b"GET /\x7f HTTP/1.1", RequestLine),
        ];
        for (name, line, expected) in rows {
            let input = [*line, b"\r\nHost: a\r\n\r\n"].concat();
            assert_refused(name, &input, *expected);
        }
    }

    #[test]
    fn refuses_malformed_fields() {
        use HttpError::*;
        let rows: &[(&str, &str, HttpError)] = &[
            ("length twice", "Content-Length: 5\r\nContent-Length: 6\r\n", ContentLength),
            ("length twice, equal", "Content-Length: 5\r\ncontent-length: 5\r\n", ContentLength),
            ("length list", "Content-Length: 5, 5\r\n", ContentLength),
            ("length with plus", "Content-Length: +5\r\n", ContentLength),
            ("length with minus", "Content-Length: -5\r\n", ContentLength),
            ("length with space", "Content-Length: 1 2\r\n", ContentLength),
            ("length with underscore", "Content-Length: 1_2\r\n", ContentLength),
            ("length in hex", "Content-Length: 0x5\r\n", ContentLength),
            ("length in letters", "Content-Length: a\r\n", ContentLength),
            ("length with fraction", "Content-Length: 5.0\r\n", ContentLength),
            ("length empty", "Content-Length:\r\n", ContentLength),
            ("length 2^64", "Content-Length: 18446744073709551616\r\n", ContentLength),
            ("length of 21 digits", "Content-Length: 100000000000000000000\r\n", ContentLength),
            ("both", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", BothFramings),
            ("both, length 0", "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", BothFramings),
            ("both, unknown", "Content-Length: 5\r\nTransfer-Encoding: gzip\r\n", BothFramings),
            ("unknown coding", "Transfer-Encoding: gzip\r\n", UnknownCoding),
            ("unknown, then chunked", "Transfer-Encoding: gzip, chunked\r\n", UnknownCoding),
            ("unknown with parameter", "Transfer-Encoding: gzip;q=1\r\n", UnknownCoding),
            ("nearly chunked", "Transfer-Encoding: xchunked\r\n", UnknownCoding),
            ("identity", "Transfer-Encoding: identity\r\n", UnknownCoding),
            ("chunked twice", "Transfer-Encoding: chunked, chunked\r\n", TransferEncoding),
            ("chunked not last", "Transfer-Encoding: chunked, gzip\r\n", TransferEncoding),
            ("chunked with parameter", "Transfer-Encoding: chunked;a=b\r\n", TransferEncoding),
            ("chunked and semicolon", "Transfer-Encoding: chunked ;\r\n", TransferEncoding),
            ("chunked, quoted", "Transfer-Encoding: \"chunked\"\r\n", TransferEncoding),
            ("empty coding", "Transfer-Encoding:\r\n", TransferEncoding),
            ("empty element first", "Transfer-Encoding: , chunked\r\n", TransferEncoding),
            ("empty element last", "Transfer-Encoding: chunked,\r\n", TransferEncoding),
            (
                "two coding fields",
                "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
                TransferEncoding,
            ),
            (
                "two equal coding fields",
                "Transfer-Encoding: chunked\r\ntransfer-encoding: chunked\r\n",
                TransferEncoding,
            ),
            ("second Host", "Host: a\r\n", Host),
            ("other expectation", "Expect: 200-ok\r\n", Expectation),
            ("two expectations", "Expect: 100-continue, a\r\n", Expectation),
            ("empty expectation", "Expect:\r\n", Expectation),
        ];
        for (name, fields, expected) in rows {
            let input = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            assert_refused(name, input.as_bytes(), *expected);
        }
        let rows: &[(&str, &str, HttpError)] = &[
            ("no Host", "GET / HTTP/1.1\r\n\r\n", Host),
            ("two Hosts in 1.0", "GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", Host),
            ("bad Host in 1.0", "GET / HTTP/1.0\r\nHost: a b\r\n\r\n", Host),
            ("chunked in 1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", TransferEncoding),
            ("gzip in 1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: gzip\r\n\r\n", TransferEncoding),
            ("expectation in 1.0", "POST / HTTP/1.0\r\nExpect: a\r\n\r\n", Expectation),
        ];
        for (name, input, expected) in rows {
            assert_refused(name, input.as_bytes(), *expected);
        }
    }

    #[test]
    fn checks_the_host() {
        let rows = [
            ("a", true),
            ("a.example", true),
            ("a.example:8000", true),
            ("a_b-c~d", true),
            ("a:", true),
            ("127.0.0.1:80", true),
            ("[::1]", true),
            ("[::ffff:127.0.0.1]:8000", true),
            ("%41", true),
            ("", false),
            (":80", false),
            ("a:b", false),
            ("a:80:80", false),
            ("a:123456", false),
            ("a:-1", false),
            ("a b", false),
            ("a\tb", false),
            ("a,b", false),
            ("a, a", false),
            ("a/b", false),
            ("a?b", false),
            ("a#b", false),
            ("a@b", false),
            ("a\\b", false),
            ("\"a\"", false),
            ("<a>", false),
            ("http://a", false),
            ("a\u{e4}", false),
            ("[::1", false),
            ("::1", false),
            ("[]", false),
            ("[a b]", false),
            ("[::1]a", false),
            ("[::1]:a", false),
        ];
        for (host, good) in rows {
            let input = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            if good {
                let head = accepted(host, input.as_bytes());
                assert_eq!(head.header("HOST"), Some(host.as_bytes()));
            } else {
                assert_refused(host, input.as_bytes(), HttpError::Host);
            }
        }
    }

    #[test]
    fn reads_methods_and_targets() {
        use Method::*;
        let rows: &[(&str, Method, &str, &str)] = &[
            ("GET / HTTP/1.1", Get, "/", ""),
            ("HEAD /a HTTP/1.1", Head, "/a", ""),
            ("POST /a/b%2Fc HTTP/1.1", Post, "/a/b%2Fc", ""),
            ("PUT /a?b=c HTTP/1.1", Put, "/a", "b=c"),
            ("PATCH /a?b?c HTTP/1.1", Patch, "/a", "b?c"),
            ("DELETE /? HTTP/1.1", Delete, "/", ""),
            ("OPTIONS * HTTP/1.1", Options, "*", ""),
            ("OPTIONS /a HTTP/1.1", Options, "/a", ""),
            ("TRACE / HTTP/1.1", Other, "/", ""),
            ("get / HTTP/1.1", Other, "/", ""),
            ("GET //a/../b HTTP/1.1", Get, "//a/../b", ""),
            ("GET /a?u=http://b/c HTTP/1.1", Get, "/a", "u=http://b/c"),
            ("GET /http://b/c HTTP/1.1", Get, "/http://b/c", ""),
            ("GET http://a/b?c HTTP/1.1", Get, "/b", "c"),
            ("GET HTTPS://a:8000/b HTTP/1.1", Get, "/b", ""),
            ("GET http://[::1]:80/ HTTP/1.1", Get, "/", ""),
            ("GET http://a HTTP/1.1", Get, "/", ""),
            ("GET http://a?b HTTP/1.1", Get, "/", "b"),
        ];
        for (line, method, path, query) in rows {
            let input = format!("{line}\r\nHost: a\r\n\r\n");
            let head = accepted(line, input.as_bytes());
            assert_eq!((head.method, head.path, head.query), (*method, *path, *query), "{line}");
            assert_eq!((head.minor, head.framing, head.len), (1, Framing::None, input.len()));
        }
    }

    #[test]
    fn reads_framing_and_expectation() {
        let rows: &[(&str, Framing, bool)] = &[
            ("", Framing::None, false),
            ("Content-Length: 0\r\n", Framing::None, false),
            ("Content-Length: 0\r\nExpect: 100-continue\r\n", Framing::None, false),
            ("Expect: 100-continue\r\n", Framing::None, false),
            ("content-length:5\r\n", Framing::Length(5), false),
            ("Content-Length:  005  \r\n", Framing::Length(5), false),
            ("Content-Length: 18446744073709551615\r\n", Framing::Length(u64::MAX), false),
            ("Content-Length: 5\r\nExpect: 100-Continue\r\n", Framing::Length(5), true),
            ("Transfer-Encoding: chunked\r\n", Framing::Chunked, false),
            ("TRANSFER-ENCODING:  Chunked \r\n", Framing::Chunked, false),
            ("Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n", Framing::Chunked, true),
        ];
        for (fields, framing, expect_continue) in rows {
            let input = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            let head = accepted(fields, input.as_bytes());
            assert_eq!(head.framing, *framing, "{fields}");
            assert_eq!(head.expect_continue, *expect_continue, "{fields}");
        }
        let old = b"POST / HTTP/1.0\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
        let head = accepted("expectation in 1.0", old);
        assert_eq!((head.minor, head.expect_continue), (0, false));
    }

    #[test]
    fn reads_persistence() {
        let rows = [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "connection: CLOSE\r\n", false),
            ("1.1", "Connection: a, Close ,b\r\n", false),
            ("1.1", "Connection: a\r\nConnection: close\r\n", false),
            ("1.1", "Connection: keep-alive, close\r\n", false),
            ("1.1", "Connection: closed\r\n", true),
            ("1.1", "Connection: keep-alive\r\n", true),
            ("1.1", "Connection: Upgrade\r\n", true),
            ("1.0", "", false),
            ("1.0", "Connection: close\r\n", false),
            ("1.0", "Connection: a,, Keep-Alive\r\n", true),
            ("1.0", "Connection: keep-alive, close\r\n", false),
        ];
        for (version, fields, keep_alive) in rows {
            let input = format!("GET / HTTP/{version}\r\nHost: a\r\n{fields}\r\n");
            let head = accepted(fields, input.as_bytes());
            assert_eq!(head.keep_alive, keep_alive, "{version} {fields}");
        }
    }

    #[test]
    fn gives_the_fields() {
        let input = b"GET / HTTP/1.1\r\nHost: a\r\nX-A:  b\tc  \r\nx-a: d\r\nEmpty:\r\nT: \xe4:\r\n\r\n";
        let head = accepted("fields", input);
        let fields: Vec<_> = head.headers().collect();
        let expected: [(&str, &[u8]); 5] =
            [("Host", b"a"), ("X-A", b"b\tc"), ("x-a", b"d"), ("Empty", b""), ("T", b"\xe4:")];
        assert_eq!(fields, expected);
        assert_eq!(head.header("x-A"), Some(&b"b\tc"[..]));
        assert_eq!(head.header("empty"), Some(&b""[..]));
        assert_eq!(head.header("X"), None);
        let bare = accepted("no fields", b"GET / HTTP/1.0\r\n\r\n");
        assert_eq!(bare.headers().count(), 0);
        assert_eq!(bare.header("Host"), None);
    }

    #[test]
    fn leaves_what_follows_alone() {
        let first = b"\r\n\r\n\r\n\r\nPOST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n";
        let second = b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n";
        let input = [&first[..], b"{}", second, b"\x00garbage"].concat();
        let (mut scan, limits) = (HeadScan::default(), Limits::default());
        let head = parse_head(&input, &mut scan, &limits).unwrap().unwrap();
        assert_eq!((head.path, head.len), ("/a", first.len()));
        assert_eq!(scan, HeadScan::default());
        let rest = &input[first.len() + 2..];
        let head = parse_head(rest, &mut scan, &limits).unwrap().unwrap();
        assert_eq!((head.path, head.len), ("/b", second.len()));
        let rest = &rest[second.len()..];
        assert_eq!(parse_head(rest, &mut scan, &limits), Err(HttpError::ControlByte));
    }

    #[test]
    fn is_not_whole_before_its_last_byte() {
        let input = b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for end in 0..input.len() {
            assert_eq!(parse(&input[..end], &Limits::default()), Ok(None), "{end} bytes");
        }
    }

    #[test]
    fn holds_the_limits_exactly() {
        let limits = Limits { head_bytes: 4096, target_bytes: 64, ..Limits::default() };
        let with_line =
            |length: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(length - 14));
        let with_head =
            |length: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "a".repeat(length - 32));
        let with_fields =
            |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(count - 1));
        let rows = [
            ("line at the limit", with_line(64), None),
            ("line above", with_line(65), Some(HttpError::TargetTooLong)),
            ("line far above", with_line(5000), Some(HttpError::TargetTooLong)),
            ("head at the limit", with_head(4096), None),
            ("head above", with_head(4097), Some(HttpError::HeadTooLarge)),
            ("head far above", with_head(9000), Some(HttpError::HeadTooLarge)),
            ("fields at the limit", with_fields(MAX_HEADERS), None),
            ("fields above", with_fields(MAX_HEADERS + 1), Some(HttpError::TooManyFields)),
        ];
        for (name, input, error) in rows {
            let input = input.as_bytes();
            let whole = parse(input, &limits);
            assert_eq!(whole.err(), error, "{name}");
            assert_eq!(parse_in_pieces(input, 0..=input.len(), &limits), whole, "{name}");
            assert!(whole.is_err() || matches!(whole, Ok(Some(_))), "{name}");
        }
    }

    #[test]
    fn refuses_too_much_at_once() {
        let limits = Limits { head_bytes: 4096, target_bytes: 64, ..Limits::default() };
        let line = "G".repeat(64);
        assert_eq!(parse(line.as_bytes(), &limits), Ok(None));
        assert_eq!(parse(format!("{line}G").as_bytes(), &limits), Err(HttpError::TargetTooLong));
        let head = format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(4096 - 20));
        assert_eq!(parse(head.as_bytes(), &limits), Ok(None));
        assert_eq!(parse(format!("{head}a").as_bytes(), &limits), Err(HttpError::HeadTooLarge));
        let fields = format!("GET / HTTP/1.1\r\n{}", "A: b\r\n".repeat(MAX_HEADERS));
        assert_eq!(parse(fields.as_bytes(), &limits), Ok(None));
        assert_eq!(parse(format!("{fields}A: b\r\n").as_bytes(), &limits), Err(HttpError::TooManyFields));
    }

    #[test]
    fn searches_no_byte_twice() {
        let input = format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "a".repeat(9000));
        let mut scan = HeadScan::default();
        for end in 1..input.len() {
            assert_eq!(parse_head(&input.as_bytes()[..end], &mut scan, &Limits::default()), Ok(None));
            assert!(scan.at + 1 >= end, "at {} of {end}", scan.at);
        }
    }

    #[test]
    fn survives_a_scan_of_other_bytes() {
        let (mut scan, limits) = (HeadScan::default(), Limits::default());
        assert_eq!(parse_head(&[b'G'; 1000], &mut scan, &limits), Ok(None));
        let head = parse_head(b"GET / HTTP/1.0\r\n\r\n", &mut scan, &limits);
        assert!(matches!(head, Ok(Some(_))));
    }

    #[test]
    fn keeps_credentials_out_of_debug() {
        let head = accepted("secret", b"GET /a?token=secret HTTP/1.0\r\nAuthorization: secret\r\n\r\n");
        let text = format!("{head:?}");
        assert!(text.contains("/a") && !text.contains("secret"), "{text}");
        assert!(!text.contains("115, 101, 99"), "{text}");
    }

    /// Heads that are nearly good: pieces of good and bad ones in any order, then a few bytes changed.
    fn heads() -> impl Strategy<Value = Vec<u8>> {
        let line = prop::sample::select(vec![
            "\r\n",
            "GET / HTTP/1.1\r\n",
            "POST /a?b HTTP/1.1\r\n",
            "GET http://a/ HTTP/1.0\r\n",
            "OPTIONS * HTTP/1.1\r\n",
            "GET / HTTP/2.0\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\n",
        ]);
        let field = prop::sample::select(vec![
            "Host: a\r\n",
            "Content-Length: 5\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Connection: close, keep-alive\r\n",
            "Expect: 100-continue\r\n",
            "X:  y\tz  \r\n",
            "Empty:\r\n",
            " fold\r\n",
            "bare: \n",
            "A: a long enough value to fill several blocks of sixteen bytes each\r\n",
        ]);
        let change = (any::<prop::sample::Index>(), any::<u8>());
        (line, prop::collection::vec(field, 0..8), prop::collection::vec(change, 0..3)).prop_map(
            |(line, fields, changes)| {
                let mut bytes = format!("{line}Host: a\r\n{}\r\nnext", fields.concat()).into_bytes();
                for (index, byte) in changes {
                    let at = index.index(bytes.len());
                    bytes[at] = byte;
                }
                bytes
            },
        )
    }

    fn assert_split_invariant(input: &[u8], mut cuts: Vec<usize>) -> Result<(), TestCaseError> {
        // Low limits, so that some inputs meet them.
        let limits = Limits { head_bytes: 200, target_bytes: 40, ..Limits::default() };
        cuts.sort_unstable();
        prop_assert_eq!(parse_in_pieces(input, cuts, &limits), parse(input, &limits));
        Ok(())
    }

    proptest! {
        #[test]
        fn any_split_of_a_head_is_the_same(input in heads(), cuts in prop::collection::vec(0_usize..400, 0..8)) {
            assert_split_invariant(&input, cuts)?;
        }

        #[test]
        fn any_split_of_anything_is_the_same(
            input in prop::collection::vec(any::<u8>(), 0..300),
            cuts in prop::collection::vec(0_usize..300, 0..8),
        ) {
            assert_split_invariant(&input, cuts)?;
        }

        #[test]
        fn a_long_input_is_always_decided(input in prop::collection::vec(b' '..=b'~', 100..200)) {
            let limits = Limits { head_bytes: 100, ..Limits::default() };
            prop_assert!(parse(&input, &limits).is_err());
        }

        #[test]
        fn fields_are_those_of_httparse(input in heads()) {
            if let Ok(Some(head)) = parse(&input, &Limits::default()) {
                let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
                let mut request = httparse::Request::new(&mut fields);
                prop_assert_eq!(request.parse(&input), Ok(httparse::Status::Complete(head.len)));
                let expected: Vec<_> = request.headers.iter().map(|f| (f.name, f.value)).collect();
                prop_assert_eq!(head.headers().collect::<Vec<_>>(), expected);
            }
        }
    }
}
