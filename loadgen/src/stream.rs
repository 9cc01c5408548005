//! Server-sent events, the reading side (WHATWG HTML, section 9.2.6, "interpreting an event stream").
//!
//! Bytes come in pieces that end anywhere. A line ends with LF, CR or CRLF; an empty line ends an event; an
//! event without data is none.

/// Longest event, bytes, with its line in progress. Far above any publication: a stream that exceeds it is broken.
pub const MAX_EVENT_BYTES: usize = 4 << 20;

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The number in this event's own `id` line. (Clients keep an earlier one; who checks wants to see each.)
    pub id: Option<u64>,
    /// Its `event` line; empty if there was none.
    pub name: &'a [u8],
    /// Its `data` lines, joined by LF.
    pub data: &'a [u8],
}

/// An event is longer than [`MAX_EVENT_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// Cuts one stream into events.
#[derive(Debug, Default)]
pub struct Parser {
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    /// Whether the last byte was a CR: an LF that follows belongs to it.
    after_cr: bool,
    id: Option<u64>,
    name: Vec<u8>,
    /// Each `data` line with an LF after it; the last LF is no part of the data.
    data: Vec<u8>,
}

impl Parser {
    /// Takes the next bytes and calls `on_event` for each event they complete.
    ///
    /// # Errors
    /// If an event is too long. The stream can't be read further.
    pub fn feed(&mut self, mut bytes: &[u8], mut on_event: impl FnMut(Event<'_>)) -> Result<(), TooLong> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_cr) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let end = bytes.iter().position(|&byte| byte == b'\n' || byte == b'\r');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            if self.line.len() + self.data.len() + part.len() > MAX_EVENT_BYTES {
                return Err(TooLong);
            }
            let Some(end) = end else {
                self.line.extend_from_slice(part);
                return Ok(());
            };
            if self.line.is_empty() {
                self.take_line(part, &mut on_event);
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(part);
                self.take_line(&line, &mut on_event);
                line.clear();
                self.line = line;
            }
            self.after_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
        }
        Ok(())
    }

    fn take_line(&mut self, line: &[u8], on_event: &mut impl FnMut(Event<'_>)) {
        if line.is_empty() {
            if let [data @ .., b'\n'] = self.data.as_slice() {
                let (id, name) = (self.id, self.name.as_slice());
                on_event(Event { id, name, data });
            }
            self.id = None;
            self.name.clear();
            self.data.clear();
            return;
        }
        let colon = line.iter().position(|&byte| byte == b':');
        let (field, value) = match colon {
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (line, &line[line.len()..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"id" => self.id = protocol::sse::last_event_id(value),
            b"event" => {
                self.name.clear();
                self.name.extend_from_slice(value);
            }
            b"data" => {
                self.data.extend_from_slice(value);
                self.data.push(b'\n');
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Owned = (Option<u64>, String, Vec<u8>);

    fn parse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Owned> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for piece in pieces {
            parser
                .feed(piece, |event| {
                    let name = String::from_utf8_lossy(event.name).into_owned();
                    events.push((event.id, name, event.data.to_vec()));
                })
                .unwrap();
        }
        events
    }

    #[test]
    fn streams_are_cut_as_the_standard_says() {
        let one = |id, name: &str, data: &str| vec![(id, name.into(), data.as_bytes().to_vec())];
        for (stream, events) in [
            ("id: 5\nevent: a\ndata: x\n\n", one(Some(5), "a", "x")),
            ("id:5\nevent:a\ndata:x\n\n", one(Some(5), "a", "x")),
            ("data:  x \n\n", one(None, "", " x ")),
            ("data: 1\r\ndata: 2\rdata\n\r", one(None, "", "1\n2\n")),
            ("data\n\n", one(None, "", "")),
            (": comment\nretry: 3\nfoo: x\ndata: y\n\n", one(None, "", "y")),
            ("id: evil\nevent: a\nevent: b\ndata: x\n\n", one(None, "b", "x")),
            ("id: 1\n\nevent: a\n\ndata: x\n\n", one(None, "", "x")),
            ("\n\r\n\rdata: x\n\n", one(None, "", "x")),
            ("data: x\n", vec![]),
            ("data: x", vec![]),
            ("id: 1\n\n", vec![]),
        ] {
            assert_eq!(parse([stream.as_bytes()]), events, "{stream:?}");
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let long = vec![b'x'; MAX_EVENT_BYTES / 2];
        for between in ["", "\ndata: "] {
            let mut parser = Parser::default();
            parser.feed(b"data: ", |_| panic!()).unwrap();
            parser.feed(&long, |_| panic!()).unwrap();
            parser.feed(between.as_bytes(), |_| panic!()).unwrap();
            assert_eq!(parser.feed(&long, |_| panic!()), Err(TooLong));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_cut(
            written in prop::collection::vec((any::<Option<u64>>(), "[a-z]{0,3}", "[a-z:\n ]{0,9}"), 0..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut stream = Vec::new();
            for (id, name, data) in &written {
                protocol::sse::event(&mut stream, *id, name, data.as_bytes());
                protocol::sse::comment(&mut stream, "alive");
            }
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            ends.extend([0, stream.len()]);
            ends.sort_unstable();
            let written: Vec<Owned> = written.into_iter()
                .map(|(id, name, data)| (id, name, data.into_bytes())).collect();
            prop_assert_eq!(parse(ends.windows(2).map(|pair| &stream[pair[0]..pair[1]])), written);
        }

        #[test]
        fn cuts_change_nothing(
            pieces in prop::collection::vec(prop::sample::select(
                vec!["\n", "\r", "\r\n", "data: x", "id: 1", "event", ":", "data:", " "]), 0..30),
        ) {
            let stream = pieces.concat().into_bytes();
            prop_assert_eq!(parse([stream.as_slice()]), parse(stream.chunks(1)));
        }
    }
}
