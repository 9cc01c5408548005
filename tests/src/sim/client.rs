//! What a client sees: responses, and the events of a stream.

/// A response with a length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status.
    pub status: u16,
    /// Status line and fields.
    pub head: String,
    /// Content.
    pub body: Vec<u8>,
}

impl Response {
    /// Takes the first whole response off `bytes`.
    pub fn take(bytes: &mut Vec<u8>) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.trim().parse().ok());
        let whole = end + length.unwrap_or(0);
        if bytes.len() < whole {
            return None;
        }
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let body = bytes[end..whole].to_vec();
        bytes.drain(..whole);
        Some(Self { status, head, body })
    }
}

/// One event of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Its `id:`, if it has one.
    pub id: Option<u64>,
    /// Its `event:`.
    pub event: String,
    /// Its `data:`.
    pub data: String,
}

/// Takes a stream apart: the head of its response, then events.
#[derive(Default)]
pub struct Frames {
    buffer: Vec<u8>,
    /// The head of the response, once it is whole.
    pub head: Option<String>,
}

impl Frames {
    /// Takes bytes as they come; gives the events that are whole.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Frame> {
        self.buffer.extend_from_slice(bytes);
        if self.head.is_none() {
            let Some(end) = find(&self.buffer, b"\r\n\r\n") else { return Vec::new() };
            self.head = Some(String::from_utf8_lossy(&self.buffer[..end]).into_owned());
            self.buffer.drain(..end + 4);
        }
        let mut frames = Vec::new();
        while let Some(end) = find(&self.buffer, b"\n\n") {
            let text = String::from_utf8(self.buffer[..end].to_vec()).expect("UTF-8");
            self.buffer.drain(..end + 2);
            let mut frame = Frame::default();
            for line in text.lines() {
                match line.split_once(": ").expect("a field") {
                    ("id", id) => frame.id = Some(id.parse().expect("a number")),
                    ("event", event) => frame.event = event.into(),
                    ("data", data) => frame.data.push_str(data),
                    ("retry", _) => {}
                    other => panic!("an unknown field {other:?}"),
                }
            }
            frames.push(frame);
        }
        frames
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
