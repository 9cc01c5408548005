//! Clients as strict as a server deserves: blocking HTTP/1.1 and server-sent events, on TCP and AF_UNIX.
//!
//! Every read has a guard against hanging, far longer than anything here takes.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, sockopt};

/// How long a read may take before the test is given up.
pub const GUARD: Duration = Duration::from_secs(60);

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// AF_UNIX; `{shard}` in the path stands for a shard's number.
    Unix(String),
}

impl Address {
    /// Reads one as the server writes it on its `ready` line.
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("unix:") {
            Some(path) => Some(Self::Unix(path.into())),
            None => text.parse().ok().map(Self::Tcp),
        }
    }

    /// The socket of one shard; TCP addresses are the same for all.
    pub fn of_shard(&self, shard: usize) -> Self {
        match self {
            Self::Tcp(address) => Self::Tcp(*address),
            Self::Unix(path) => Self::Unix(path.replace("{shard}", &shard.to_string())),
        }
    }

    /// What a URL of it begins with. A socket file has none.
    pub fn url(&self) -> String {
        match self {
            Self::Tcp(address) => format!("http://{address}"),
            Self::Unix(path) => format!("http+unix://{path}"),
        }
    }
}

/// A connected socket.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// AF_UNIX.
    Unix(UnixStream),
}

impl Socket {
    /// Connects. `receive_buffer`: the socket's, in bytes, set before connecting so that the window never grows.
    ///
    /// # Errors
    /// As `connect(2)`.
    pub fn connect(address: &Address, receive_buffer: Option<usize>) -> io::Result<Self> {
        let socket = match (address, receive_buffer) {
            (Address::Unix(path), _) => Self::Unix(UnixStream::connect(PathBuf::from(path))?),
            (Address::Tcp(address), None) => Self::Tcp(TcpStream::connect(address)?),
            (Address::Tcp(address), Some(bytes)) => {
                let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
                let socket = rustix::net::socket(family, SocketType::STREAM, None)?;
                sockopt::set_socket_recv_buffer_size(&socket, bytes)?;
                rustix::net::connect(&socket, address)?;
                Self::Tcp(TcpStream::from(socket))
            }
        };
        socket.set_guard(GUARD)?;
        if let Self::Tcp(stream) = &socket {
            stream.set_nodelay(true)?;
        }
        Ok(socket)
    }

    /// How long a read or write may take.
    ///
    /// # Errors
    /// As `setsockopt(2)`.
    pub fn set_guard(&self, guard: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(guard)).and_then(|()| stream.set_write_timeout(Some(guard)))
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(guard)).and_then(|()| stream.set_write_timeout(Some(guard)))
            }
        }
    }

    /// Ends the sending half.
    ///
    /// # Errors
    /// As `shutdown(2)`.
    pub fn end_sending(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(std::net::Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(std::net::Shutdown::Write),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(bytes),
            Self::Unix(stream) => stream.read(bytes),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An HTTP response.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Fields as sent, in order.
    pub fields: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Response {
    /// The value of a field, its name in any case; panics if it is there twice.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut found = self.fields.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} is there twice: {self:?}");
        value
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; panics if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?} {}", self.text()))
    }
}

/// A connection that speaks HTTP/1.1, kept for as many requests as the server allows.
#[derive(Debug)]
pub struct Client {
    /// The socket.
    pub socket: Socket,
    buffer: Vec<u8>,
    token: Option<String>,
}

impl Client {
    /// Connects; panics if that fails.
    pub fn connect(address: &Address) -> Self {
        Self::try_connect(address, None).unwrap_or_else(|error| panic!("connecting to {address:?}: {error}"))
    }

    /// Connects, with a receive buffer of that many bytes.
    ///
    /// # Errors
    /// As `connect(2)`.
    pub fn try_connect(address: &Address, receive_buffer: Option<usize>) -> io::Result<Self> {
        Ok(Self { socket: Socket::connect(address, receive_buffer)?, buffer: Vec::new(), token: None })
    }

    /// Sends this token as `Authorization: Bearer` from now on.
    pub fn with_token(mut self, token: &str) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// As `send(2)`.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// Sends a request; fields are `name: value`.
    ///
    /// # Errors
    /// As `send(2)`.
    pub fn send_request(
        &mut self,
        method: &str,
        target: &str,
        fields: &[&str],
        body: &[u8],
    ) -> io::Result<()> {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: wellhead.test\r\n");
        if let Some(token) = &self.token {
            let _ = write!(head, "Authorization: Bearer {token}\r\n");
        }
        for field in fields {
            let _ = write!(head, "{field}\r\n");
        }
        if !body.is_empty() || matches!(method, "POST" | "PUT" | "PATCH") {
            let _ = write!(head, "Content-Length: {}\r\n", body.len());
        }
        head.push_str("\r\n");
        self.send(&[head.as_bytes(), body].concat())
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// As the socket; `InvalidData` if the answer is not HTTP.
    pub fn try_request(
        &mut self,
        method: &str,
        target: &str,
        fields: &[&str],
        body: &[u8],
    ) -> io::Result<Response> {
        self.send_request(method, target, fields, body)?;
        self.response(method == "HEAD")
    }

    /// Asks, and waits for the answer; panics if there is none.
    pub fn request(&mut self, method: &str, target: &str, fields: &[&str], body: &[u8]) -> Response {
        self.try_request(method, target, fields, body)
            .unwrap_or_else(|error| panic!("{method} {target}: {error}"))
    }

    /// GET.
    pub fn get(&mut self, target: &str) -> Response {
        self.request("GET", target, &[], b"")
    }

    /// POST of JSON.
    pub fn post(&mut self, target: &str, body: &str) -> Response {
        self.request("POST", target, &["Content-Type: application/json"], body.as_bytes())
    }

    /// Reads a response; `head_only` if it answers HEAD. A body without a length ends with the connection, but
    /// that of a stream that has begun (200) is left unread.
    ///
    /// # Errors
    /// As the socket; `InvalidData` if it is not HTTP, `UnexpectedEof` if it ends early.
    pub fn response(&mut self, head_only: bool) -> io::Result<Response> {
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
            self.fill()?;
        };
        let head: Vec<u8> = self.buffer.drain(..end).collect();
        let mut response = parse_head(&head)?;
        let streams = response.status == 200
            && response.field("content-type").is_some_and(|value| value.starts_with("text/event-stream"));
        let length = response.field("content-length").map(str::parse::<usize>);
        match length {
            _ if head_only || response.status < 200 || matches!(response.status, 204 | 304) => {}
            Some(Ok(length)) => {
                while self.buffer.len() < length {
                    self.fill()?;
                }
                response.body = self.buffer.drain(..length).collect();
            }
            None if streams => {}
            None if response.field("transfer-encoding").is_none() => response.body = self.rest()?,
            _ => return Err(invalid(format!("framing of {response:?}"))),
        }
        Ok(response)
    }

    /// Everything until the server closes.
    ///
    /// # Errors
    /// As the socket.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        loop {
            match self.fill() {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    return Ok(std::mem::take(&mut self.buffer));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// What has been read beyond the last response.
    pub fn take_buffered(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }

    /// Whether the server closes, by FIN or RST, without another byte. Panics if it neither closes nor speaks.
    pub fn is_closed(&mut self) -> bool {
        self.buffer.is_empty()
            && match self.fill() {
                Ok(()) => false,
                Err(error)
                    if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) =>
                {
                    true
                }
                Err(error) => panic!("the connection stays open: {error}"),
            }
    }

    /// Reads some more.
    fn fill(&mut self) -> io::Result<()> {
        let mut bytes = [0; 64 << 10];
        match self.socket.read(&mut bytes)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            read => {
                self.buffer.extend_from_slice(&bytes[..read]);
                Ok(())
            }
        }
    }
}

fn parse_head(head: &[u8]) -> io::Result<Response> {
    let text = std::str::from_utf8(head).map_err(|_| invalid("a head that is not text".into()))?;
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok());
    let status = status.ok_or_else(|| invalid(format!("status line of {text:?}")))?;
    let fields = lines.map(|line| {
        let (name, value) = line.split_once(':').ok_or_else(|| invalid(format!("field {line:?}")))?;
        let is_token = !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control());
        let is_clean = !value.contains(|c: char| c.is_control() && c != '\t');
        match is_token && is_clean {
            true => Ok((name.into(), value.trim().into())),
            false => Err(invalid(format!("field {line:?}"))),
        }
    });
    Ok(Response { status, fields: fields.collect::<io::Result<_>>()?, body: Vec::new() })
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn invalid(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

/// One block of an event stream (HTML Living Standard, section 9.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// `id:`, if it has one.
    pub id: Option<String>,
    /// `event:`; empty if it has none.
    pub name: String,
    /// `data:`, its lines joined.
    pub data: String,
    /// `retry:`, ms.
    pub retry: Option<u64>,
}

impl Event {
    /// The offset its id names; panics if it names none.
    pub fn offset(&self) -> u64 {
        let id = self.id.as_deref().and_then(|id| id.parse().ok());
        id.unwrap_or_else(|| panic!("no offset in {self:?}"))
    }

    /// Its data as JSON; panics if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Takes an event stream apart, however it is cut. A line that is no field of the standard is an error.
#[derive(Debug, Default)]
pub struct EventParser {
    rest: Vec<u8>,
}

impl EventParser {
    /// Takes more bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
    }

    /// The next whole event. Comments are passed over.
    ///
    /// # Errors
    /// `InvalidData` if it is not an event stream.
    pub fn event(&mut self) -> io::Result<Option<Event>> {
        while let Some(end) = find(&self.rest, b"\n\n") {
            let block: Vec<u8> = self.rest.drain(..end + 2).collect();
            let text = String::from_utf8(block).map_err(|_| invalid("an event that is not UTF-8".into()))?;
            if let Some(event) = parse_event(text.trim_end_matches('\n'))? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }
}

fn parse_event(block: &str) -> io::Result<Option<Event>> {
    let mut event = Event::default();
    let mut data: Vec<&str> = Vec::new();
    let mut is_empty = true;
    // A CR ends a line as well, whoever slipped it in.
    for line in block.split(['\n', '\r']) {
        let (name, value) =
            line.split_once(':').ok_or_else(|| invalid(format!("line {line:?} in {block:?}")))?;
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "" => continue,
            "id" if event.id.is_none() && !value.contains('\0') => event.id = Some(value.into()),
            "event" if event.name.is_empty() => event.name = value.into(),
            "data" => data.push(value),
            "retry" => {
                let retry = value.parse().map_err(|_| invalid(format!("retry {value:?}")))?;
                event.retry = Some(retry);
            }
            _ => return Err(invalid(format!("line {line:?} in {block:?}"))),
        }
        is_empty = false;
    }
    event.data = data.join("\n");
    Ok((!is_empty).then_some(event))
}

/// A stream of events that is being read.
#[derive(Debug)]
pub struct Events {
    client: Client,
    parser: EventParser,
    /// The id a browser would send to resume: that of the last event with data and an id.
    pub last_id: Option<String>,
}

impl Events {
    /// Opens a stream, or gives the response that refuses it.
    ///
    /// # Errors
    /// As the socket.
    pub fn try_open(mut client: Client, target: &str, fields: &[&str]) -> io::Result<Result<Self, Response>> {
        client.send_request("GET", target, &[&["Accept: text/event-stream"], fields].concat(), b"")?;
        let response = client.response(false)?;
        let content_type = response.field("content-type").unwrap_or_default();
        if response.status != 200 || !content_type.starts_with("text/event-stream") {
            return Ok(Err(response));
        }
        let mut parser = EventParser::default();
        parser.feed(&std::mem::take(&mut client.buffer));
        Ok(Ok(Self { client, parser, last_id: None }))
    }

    /// Opens a stream; panics if it is refused.
    pub fn open(client: Client, target: &str, fields: &[&str]) -> Self {
        match Self::try_open(client, target, fields) {
            Ok(Ok(events)) => events,
            Ok(Err(response)) => panic!("{target} is refused: {response:?} {}", response.text()),
            Err(error) => panic!("{target}: {error}"),
        }
    }

    /// The next event; `None` where the stream ends.
    ///
    /// # Errors
    /// As the socket; `WouldBlock` if nothing comes, `InvalidData` if it is no event stream.
    pub fn try_next(&mut self) -> io::Result<Option<Event>> {
        loop {
            if let Some(event) = self.parsed()? {
                return Ok(Some(event));
            }
            if !self.read_some(64 << 10)? {
                return Ok(None);
            }
        }
    }

    /// The next event of what has been read already.
    ///
    /// # Errors
    /// `InvalidData` if it is no event stream.
    pub fn parsed(&mut self) -> io::Result<Option<Event>> {
        let event = self.parser.event()?;
        if let Some(Event { id: Some(id), data, .. }) = &event
            && !data.is_empty()
        {
            self.last_id = Some(id.clone());
        }
        Ok(event)
    }

    /// The next event; panics if the stream ends or nothing comes.
    pub fn event(&mut self) -> Event {
        match self.try_next() {
            Ok(Some(event)) => event,
            end => panic!("the stream ends after {:?}: {end:?}", self.last_id),
        }
    }

    /// The next event that is not a heartbeat.
    pub fn event_of_interest(&mut self) -> Event {
        loop {
            let event = self.event();
            if event.name != "heartbeat" {
                return event;
            }
        }
    }

    /// The next event, which must be of that name; heartbeats are passed over.
    pub fn expect(&mut self, name: &str) -> Event {
        let event = self.event_of_interest();
        assert_eq!(event.name, name, "{event:?}");
        event
    }

    /// Reads at most `limit` bytes into the parser; false if the stream has ended.
    ///
    /// # Errors
    /// As the socket.
    pub fn read_some(&mut self, limit: usize) -> io::Result<bool> {
        let mut bytes = vec![0; limit];
        let read = self.client.socket.read(&mut bytes)?;
        self.parser.feed(&bytes[..read]);
        Ok(read > 0)
    }

    /// The socket beneath, to set its guard.
    pub fn socket(&self) -> &Socket {
        &self.client.socket
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_however_they_are_cut() {
        let text = ": hello\n\nid: 7\nevent: a\ndata: {}\n\nretry: 50\n\ndata: x\ndata: y\n\nid: 8\ndata";
        for step in 1..text.len() {
            let mut parser = EventParser::default();
            let mut events = Vec::new();
            for piece in text.as_bytes().chunks(step) {
                parser.feed(piece);
                while let Some(event) = parser.event().unwrap() {
                    events.push(event);
                }
            }
            assert_eq!(events.len(), 3);
            assert_eq!((events[0].offset(), &*events[0].name, &*events[0].data), (7, "a", "{}"));
            assert_eq!((events[1].retry, &*events[1].data), (Some(50), ""));
            assert_eq!((&events[2].id, &*events[2].data), (&None, "x\ny"));
        }
    }

    #[test]
    fn what_is_slipped_in_is_an_error() {
        for text in [
            "id: 1\rid: 2\n\n",
            "event: a\nevent: b\n\n",
            "data: x\rnonsense\n\n",
            "ID: 5\n\n",
            "id: \0\n\n",
            "data: \u{0}x\rowner: me\n\n",
        ] {
            let mut parser = EventParser::default();
            parser.feed(text.as_bytes());
            assert!(parser.event().is_err(), "{text:?}");
        }
    }

    #[test]
    fn heads_are_taken_apart() {
        let response = parse_head(b"HTTP/1.1 202 Accepted\r\nA: b\r\nContent-Length: 5\r\n\r\n").unwrap();
        assert_eq!((response.status, response.field("CONTENT-length")), (202, Some("5")));
        for head in
            ["HTTP/1.1 2\r\n\r\n", "HTTP/1.1 200 OK\r\nA\r\n\r\n", "HTTP/1.1 200 OK\r\nA: b\rC: d\r\n\r\n"]
        {
            assert!(parse_head(head.as_bytes()).is_err(), "{head:?}");
        }
    }
}
