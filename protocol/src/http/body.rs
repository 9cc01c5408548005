//! The body of a request, taken off the wire as it arrives.

use super::{Framing, HttpError, Limits, is_token_byte, is_value_byte};

/// Longest chunk-size line, extensions included, line end not. Sixteen digits and then something nobody reads.
pub const CHUNK_LINE_BYTES: u16 = 256;

/// Bytes of chunked framing (size lines, line ends, trailers) on top of [`Limits::body_bytes`] that a body may
/// cost on the wire. 256 KiB: what 8 MiB in chunks of 256 bytes need. Without it a body of one-byte chunks with
/// long extensions would cost hundreds of times its size.
pub const CHUNK_OVERHEAD_BYTES: usize = 256 * 1024;

/// How far one call of [`BodyDecoder::advance`] has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the input that belong to the body: all of it, unless the body is whole.
    pub consumed: usize,
    /// Whether the body is whole. What follows is the next request.
    pub done: bool,
}

/// Decodes one body. Keeps no bytes: everything given is consumed, and what is content is appended.
#[derive(Clone, Debug)]
pub struct BodyDecoder {
    /// Bytes still to come of the content or chunk; in a size line, the size read so far.
    remaining: u64,
    /// Bytes of content that further chunks may still bring.
    body_left: usize,
    /// Bytes of any kind that may still be consumed.
    raw_left: usize,
    /// Bytes of trailer section that may still be consumed.
    trailer_left: u32,
    /// Bytes of the size line so far.
    line: u16,
    state: State,
}

// Every connection with a request under way holds one.
const _: () = assert!(size_of::<BodyDecoder>() <= 32);

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Length,
    Size,
    ExtensionName,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    Done,
}

impl BodyDecoder {
    /// A decoder for the body that `framing` announces.
    ///
    /// # Errors
    /// [`HttpError::BodyTooLarge`] if the length announced is above [`Limits::body_bytes`].
    pub fn new(framing: Framing, limits: &Limits) -> Result<Self, HttpError> {
        let (state, remaining, raw_left) = match framing {
            Framing::None | Framing::Length(0) => (State::Done, 0, 0),
            Framing::Length(length) => match usize::try_from(length) {
                Ok(raw) if raw <= limits.body_bytes => (State::Length, length, raw),
                _ => return Err(HttpError::BodyTooLarge),
            },
            Framing::Chunked => {
                let raw = limits.body_bytes.saturating_add(CHUNK_OVERHEAD_BYTES);
                (State::Size, 0, raw)
            }
        };
        Ok(Self {
            remaining,
            body_left: limits.body_bytes,
            raw_left,
            trailer_left: u32::try_from(limits.head_bytes).unwrap_or(u32::MAX),
            line: 0,
            state,
        })
    }

    /// Consumes `input` up to the end of the body and appends the content in it to `body`. Trailer fields are
    /// checked and discarded (RFC 9110 section 6.5.1).
    ///
    /// # Errors
    /// [`HttpError::Chunk`], [`HttpError::Trailer`], [`HttpError::HeadTooLarge`] (trailers),
    /// [`HttpError::BodyTooLarge`] (at the size line that exceeds it), [`HttpError::ChunkOverhead`]. The decoder
    /// and `body` are of no use afterwards.
    pub fn advance(&mut self, input: &[u8], body: &mut Vec<u8>) -> Result<Progress, HttpError> {
        let window = &input[..input.len().min(self.raw_left)];
        let mut consumed = 0;
        while consumed < window.len() && self.state != State::Done {
            if matches!(self.state, State::Length | State::Data) {
                consumed += self.copy(&window[consumed..], body);
            } else {
                self.step(window[consumed])?;
                consumed += 1;
            }
        }
        self.raw_left -= consumed;
        let done = self.state == State::Done;
        if !done && self.raw_left == 0 {
            return Err(HttpError::ChunkOverhead);
        }
        Ok(Progress { consumed, done })
    }

    fn copy(&mut self, input: &[u8], body: &mut Vec<u8>) -> usize {
        let remaining = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        let count = input.len().min(remaining);
        body.extend_from_slice(&input[..count]);
        self.remaining -= count as u64;
        if self.remaining == 0 {
            self.state = match self.state {
                State::Data => State::DataCr,
                _ => State::Done,
            };
        }
        count
    }

    fn step(&mut self, byte: u8) -> Result<(), HttpError> {
        self.state = match (self.state, byte) {
            (State::Size | State::ExtensionName | State::Extension, _) => self.size_line(byte)?,
            (State::SizeLf, b'\n') => self.open_chunk()?,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => {
                self.line = 0;
                State::Size
            }
            (State::SizeLf | State::DataCr | State::DataLf, _) => return Err(HttpError::Chunk),
            _ => self.trailer(byte)?,
        };
        Ok(())
    }

    fn size_line(&mut self, byte: u8) -> Result<State, HttpError> {
        if byte == b'\r' {
            return match self.state {
                State::Size if self.line > 0 => Ok(State::SizeLf),
                State::Extension => Ok(State::SizeLf),
                _ => Err(HttpError::Chunk),
            };
        }
        self.line += 1;
        if self.line > CHUNK_LINE_BYTES {
            return Err(HttpError::Chunk);
        }
        match self.state {
            // Sixteen digits fill the 64 bits exactly.
            State::Size if byte.is_ascii_hexdigit() && self.line <= 16 => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.remaining = self.remaining << 4 | u64::from(digit);
                Ok(State::Size)
            }
            State::Size if byte == b';' && self.line > 1 => Ok(State::ExtensionName),
            State::ExtensionName if matches!(byte, b' ' | b'\t') => Ok(State::ExtensionName),
            State::ExtensionName if is_token_byte(byte) => Ok(State::Extension),
            State::Extension if matches!(byte, b'\t' | b' '..=b'~') => Ok(State::Extension),
            _ => Err(HttpError::Chunk),
        }
    }

    fn open_chunk(&mut self) -> Result<State, HttpError> {
        if self.remaining == 0 {
            return Ok(State::TrailerStart);
        }
        self.body_left = usize::try_from(self.remaining)
            .ok()
            .and_then(|size| self.body_left.checked_sub(size))
            .ok_or(HttpError::BodyTooLarge)?;
        Ok(State::Data)
    }

    fn trailer(&mut self, byte: u8) -> Result<State, HttpError> {
        self.trailer_left = self.trailer_left.checked_sub(1).ok_or(HttpError::HeadTooLarge)?;
        match (self.state, byte) {
            (State::TrailerStart, b'\r') => Ok(State::EndLf),
            (State::EndLf, b'\n') => Ok(State::Done),
            (State::TrailerStart | State::TrailerName, _) if is_token_byte(byte) => Ok(State::TrailerName),
            (State::TrailerName, b':') => Ok(State::TrailerValue),
            (State::TrailerValue, b'\r') => Ok(State::TrailerLf),
            (State::TrailerValue, _) if is_value_byte(byte) => Ok(State::TrailerValue),
            (State::TrailerLf, b'\n') => Ok(State::TrailerStart),
            _ => Err(HttpError::Trailer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes consumed, whether whole, and the content.
    type Outcome = Result<(usize, bool, Vec<u8>), HttpError>;

    /// Feeds `input` cut at `cuts`, as a connection would: what is not consumed is not given again.
    fn decode_in_pieces(
        framing: Framing,
        input: &[u8],
        cuts: impl IntoIterator<Item = usize>,
        limits: &Limits,
    ) -> Outcome {
        let mut decoder = BodyDecoder::new(framing, limits)?;
        let mut body = Vec::new();
        let mut consumed = 0;
        let mut done = false;
        for cut in cuts.into_iter().chain([input.len()]) {
            let cut = cut.min(input.len());
            if cut < consumed || done {
                continue;
            }
            let progress = decoder.advance(&input[consumed..cut], &mut body)?;
            assert!(progress.done || consumed + progress.consumed == cut);
            consumed += progress.consumed;
            done = progress.done;
        }
        Ok((consumed, done, body))
    }

    fn decode(framing: Framing, input: &[u8], limits: &Limits) -> Outcome {
        decode_in_pieces(framing, input, [], limits)
    }

    const LOW: Limits = Limits { head_bytes: 32, target_bytes: 32, body_bytes: 16 };

    #[test]
    fn decodes_bodies() {
        use Framing::*;
        let rows: &[(&str, Framing, &str, &str, usize)] = &[
            ("none", None, "GET /", "", 0),
            ("length 0", Length(0), "GET /", "", 0),
            ("length", Length(5), "helloGET /", "hello", 5),
            ("length at the limit", Length(16), "0123456789abcdefGET /", "0123456789abcdef", 16),
            ("no chunk", Chunked, "0\r\n\r\nGET /", "", 5),
            ("one chunk", Chunked, "5\r\nhello\r\n0\r\n\r\nGET /", "hello", 15),
            ("two chunks", Chunked, "3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", "hello", 20),
            ("hex in both cases", Chunked, "a\r\n0123456789\r\n00\r\n\r\n", "0123456789", 21),
            ("at the limit", Chunked, "8\r\n01234567\r\n8\r\n89abcdef\r\n0\r\n\r\n", "0123456789abcdef", 31),
            ("leading zeros", Chunked, "0000000000000005\r\nhello\r\n0\r\n\r\n", "hello", 30),
            ("content like framing", Chunked, "5\r\n\r\n0\r\n\r\n0\r\n\r\n", "\r\n0\r\n", 15),
            ("extension", Chunked, "5;a=\"b c\"\r\nhello\r\n0; \tz\r\n\r\n", "hello", 27),
            ("trailer", Chunked, "0\r\nA: b\r\nC:\t\r\n\r\nGET /", "", 16),
        ];
        for (name, framing, input, body, consumed) in rows {
            let expected = Ok((*consumed, true, body.as_bytes().to_vec()));
            let input = input.as_bytes();
            assert_eq!(decode(*framing, input, &LOW), expected, "{name}");
            let pieces = decode_in_pieces(*framing, input, 0..input.len(), &LOW);
            assert_eq!(pieces, expected, "{name}, byte by byte");
        }
        let upper = decode(Framing::Chunked, b"A\r\n0123456789\r\n0\r\n\r\n", &LOW);
        assert_eq!(upper, Ok((20, true, b"0123456789".to_vec())));
    }

    #[test]
    fn refuses_bad_chunks() {
        use HttpError::*;
        let rows: &[(&str, &[u8], HttpError)] = &[
            ("no size", b"\r\nhello", Chunk),
            ("not hex", b"g\r\n", Chunk),
            ("plus", b"+5\r\nhello", Chunk),
            ("minus", b"-5\r\nhello", Chunk),
            ("0x", b"0x5\r\nhello", Chunk),
            ("underscore", b"0_5\r\nhello", Chunk),
            ("space before", b" 5\r\nhello", Chunk),
            ("space after", b"5 \r\nhello", Chunk),
            ("space before extension", b"5 ;a\r\nhello", Chunk),
            ("17 digits", b"00000000000000005\r\nhello", Chunk),
            ("2^64", b"10000000000000000\r\n", Chunk),
            ("2^64 - 1", b"ffffffffffffffff\r\n", BodyTooLarge),
            ("bare LF after size", b"5\nhello\r\n", Chunk),
            ("bare CR after size", b"5\rhello\r\n", Chunk),
            ("CR CR LF after size", b"5\r\r\nhello", Chunk),
            ("other byte for the LF of the size", b"5\rXhello\r\n0\r\n\r\n", Chunk),
            ("other byte for the CR after content", b"5\r\nhelloX\n0\r\n\r\n", Chunk),
            ("other byte for the LF after content", b"5\r\nhello\rX0\r\n\r\n", Chunk),
            ("NUL after size", b"5\0\r\nhello", Chunk),
            ("extension only", b";a\r\n", Chunk),
            ("extension without name", b"5;\r\nhello", Chunk),
            ("extension of blanks", b"5; \r\nhello", Chunk),
            ("bare LF in extension", b"5;a\nhello\r\n", Chunk),
            ("bare LF for the name", b"5;\nhello\r\n", Chunk),
            ("bare CR in extension", b"5;a\rb\r\nhello", Chunk),
            ("NUL in extension", b"5;a=\0\r\nhello", Chunk),
            ("DEL in extension", b"5;a=\x7f\r\nhello", Chunk),
            ("not ASCII in extension", b"5;a=\xe4\r\nhello", Chunk),
            ("content longer", b"5\r\nhelloo\r\n", Chunk),
            ("content shorter", b"5\r\nhell\r\n0\r\n\r\n", Chunk),
            ("bare LF after content", b"5\r\nhello\n0\r\n\r\n", Chunk),
            ("bare CR after content", b"5\r\nhello\r0\r\n\r\n", Chunk),
            ("nothing after content", b"5\r\nhello0\r\n\r\n", Chunk),
            ("bare LF at the end", b"0\r\n\n", Trailer),
            ("bare CR at the end", b"0\r\n\rG", Trailer),
            ("no end", b"0\r\n0\r\n", Trailer),
            ("trailer without name", b"0\r\n: b\r\n\r\n", Trailer),
            ("trailer without colon", b"0\r\nA\r\n\r\n", Trailer),
            ("trailer, space before colon", b"0\r\nA : b\r\n\r\n", Trailer),
            ("trailer folded", b"0\r\nA: b\r\n c\r\n\r\n", Trailer),
            ("trailer, fold first", b"0\r\n A: b\r\n\r\n", Trailer),
            ("trailer, bare LF", b"0\r\nA: b\n\r\n", Trailer),
            ("trailer, bare CR", b"0\r\nA: b\rc\r\n\r\n", Trailer),
            ("trailer, NUL", b"0\r\nA: \0\r\n\r\n", Trailer),
            ("trailer, DEL", b"0\r\nA: \x7f\r\n\r\n", Trailer),
            ("trailers above the limit", b"0\r\nA: 0123456789\r\nB: 0123456789a\r\n\r\n", HeadTooLarge),
            ("chunk above the limit", b"11\r\n", BodyTooLarge),
            ("chunks above the limit", b"8\r\n01234567\r\n9\r\n", BodyTooLarge),
        ];
        for (name, input, expected) in rows {
            assert_eq!(decode(Framing::Chunked, input, &LOW), Err(*expected), "{name}");
            let pieces = decode_in_pieces(Framing::Chunked, input, 0..input.len(), &LOW);
            assert_eq!(pieces, Err(*expected), "{name}, byte by byte");
        }
    }

    #[test]
    fn refuses_a_length_above_the_limit_at_once() {
        for length in [17, u64::from(u32::MAX) + 1, u64::MAX] {
            let decoder = BodyDecoder::new(Framing::Length(length), &LOW);
            assert_eq!(decoder.err(), Some(HttpError::BodyTooLarge), "{length}");
        }
    }

    #[test]
    fn bounds_the_size_line_and_the_trailers_exactly() {
        let line = |length: usize| format!("0;{}\r\n\r\n", "a".repeat(length - 2));
        let most = usize::from(CHUNK_LINE_BYTES);
        let limits = Limits::default();
        let whole = decode(Framing::Chunked, line(most).as_bytes(), &limits);
        assert_eq!(whole, Ok((most + 4, true, vec![])));
        let above = decode(Framing::Chunked, line(most + 1).as_bytes(), &limits);
        assert_eq!(above, Err(HttpError::Chunk));

        let trailers = |length: usize| format!("0\r\nA: {}\r\n\r\n", "a".repeat(length - 7));
        let whole = decode(Framing::Chunked, trailers(32).as_bytes(), &LOW);
        assert_eq!(whole, Ok((35, true, vec![])));
        let above = decode(Framing::Chunked, trailers(33).as_bytes(), &LOW);
        assert_eq!(above, Err(HttpError::HeadTooLarge));
    }

    #[test]
    fn bounds_the_overhead() {
        let limits = Limits { body_bytes: 4096, ..Limits::default() };
        let chunk = format!("1;{}\r\nx\r\n", "a".repeat(250));
        let mut decoder = BodyDecoder::new(Framing::Chunked, &limits).unwrap();
        let mut body = Vec::new();
        let most = limits.body_bytes + CHUNK_OVERHEAD_BYTES;
        let mut raw = 0;
        let error =
            (0..=most / chunk.len()).find_map(|_| match decoder.advance(chunk.as_bytes(), &mut body) {
                Ok(progress) => {
                    raw += progress.consumed;
                    None
                }
                Err(error) => Some(error),
            });
        assert_eq!(error, Some(HttpError::ChunkOverhead));
        assert!(raw < most && raw + chunk.len() >= most, "{raw}");
        assert_eq!(decoder.advance(b"0", &mut body), Err(HttpError::ChunkOverhead));
    }

    #[test]
    fn takes_the_longest_body_in_chunks_of_256() {
        let limits = Limits::default();
        let chunk = [&b"100\r\n"[..], &[b'x'; 256], b"\r\n"].concat();
        let mut decoder = BodyDecoder::new(Framing::Chunked, &limits).unwrap();
        let mut body = Vec::new();
        for _ in 0..limits.body_bytes / 256 {
            let progress = decoder.advance(&chunk, &mut body).unwrap();
            assert!(!progress.done);
        }
        assert!(decoder.advance(b"0\r\n\r\n", &mut body).unwrap().done);
        assert_eq!(body.len(), limits.body_bytes);
    }

    /// Chunked bodies that are nearly good.
    fn bodies() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop::sample::select(vec![
            "1\r\nx\r\n",
            "5\r\nhello\r\n",
            "5;a=b\r\nhello\r\n",
            "0A\r\n0123456789\r\n",
            "0\r\n\r\n",
            "0\r\nA: b\r\n\r\n",
            "5\nhello\r\n",
            ";\r\n",
        ]);
        let change = (any::<prop::sample::Index>(), any::<u8>());
        let changes = prop::collection::vec(change, 0..2);
        (prop::collection::vec(piece, 0..6), changes).prop_map(|(pieces, changes)| {
            let mut bytes = format!("{}0\r\n\r\nnext", pieces.concat()).into_bytes();
            for (index, byte) in changes {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        })
    }

    fn framings() -> impl Strategy<Value = Framing> {
        prop_oneof![Just(Framing::None), (0_u64..20).prop_map(Framing::Length), Just(Framing::Chunked),]
    }

    proptest! {
        #[test]
        fn any_split_of_a_body_is_the_same(input in bodies(), mut cuts in prop::collection::vec(0_usize..100, 0..8)) {
            cuts.sort_unstable();
            let pieces = decode_in_pieces(Framing::Chunked, &input, cuts, &LOW);
            prop_assert_eq!(pieces, decode(Framing::Chunked, &input, &LOW));
        }

        #[test]
        fn any_split_of_anything_is_the_same(
            framing in framings(),
            input in prop::collection::vec(any::<u8>(), 0..100),
            mut cuts in prop::collection::vec(0_usize..100, 0..8),
        ) {
            cuts.sort_unstable();
            let pieces = decode_in_pieces(framing, &input, cuts, &LOW);
            prop_assert_eq!(pieces, decode(framing, &input, &LOW));
        }

        #[test]
        fn chunks_add_up_to_the_body(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..8)) {
            let mut input = Vec::new();
            for chunk in &chunks {
                input.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                input.extend_from_slice(chunk);
                input.extend_from_slice(b"\r\n");
            }
            input.extend_from_slice(b"0\r\n\r\n");
            let whole = input.len();
            input.extend_from_slice(b"GET / HTTP/1.1\r\n");
            let outcome = decode(Framing::Chunked, &input, &Limits::default());
            prop_assert_eq!(outcome, Ok((whole, true, chunks.concat())));
        }
    }
}
