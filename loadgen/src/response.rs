//! HTTP/1.1 responses, as far as a load generator has to understand them (RFC 9112).

/// Longest head, bytes, of status line and fields.
pub const MAX_HEAD_BYTES: usize = 16 << 10;
/// Longest body that is waited for, bytes: answers to publishers and `/metrics`.
pub const MAX_BODY_BYTES: usize = 16 << 20;

/// What a response's head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The status.
    pub status: u16,
    /// Bytes of the head: what follows is the body.
    pub bytes: usize,
    /// Content-Length; none: the body ends with the connection.
    pub content_length: Option<usize>,
}

/// Why bytes are no response that can be read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseError {
    /// No HTTP/1 status line, a field without colon, a length that is no number.
    Malformed,
    /// The head is longer than [`MAX_HEAD_BYTES`], or the body than [`MAX_BODY_BYTES`].
    TooLong,
    /// Transfer-Encoding, which is not understood.
    Chunked,
    /// On a connection that stays open: no length, so no end.
    Unbounded,
}

impl std::fmt::Display for ResponseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Malformed => "the answer is no HTTP/1 response",
            Self::TooLong => "the response is too long",
            Self::Chunked => "the response is chunked, which gusher can't read",
            Self::Unbounded => "the response has no Content-Length",
        })
    }
}

impl std::error::Error for ResponseError {}

/// Reads a head; `None` if it is not whole yet.
///
/// # Errors
/// If it is none.
pub fn head(bytes: &[u8]) -> Result<Option<Head>, ResponseError> {
    let searched = &bytes[..bytes.len().min(MAX_HEAD_BYTES)];
    let Some(end) = searched.windows(4).position(|window| window == b"\r\n\r\n") else {
        return match bytes.len() >= MAX_HEAD_BYTES {
            true => Err(ResponseError::TooLong),
            false => Ok(None),
        };
    };
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| ResponseError::Malformed)?;
    let mut lines = text.split("\r\n");
    let status = status(lines.next().unwrap_or_default()).ok_or(ResponseError::Malformed)?;
    let mut content_length = None;
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(ResponseError::Malformed)?;
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(ResponseError::Chunked);
        } else if name.eq_ignore_ascii_case("content-length") {
            let length = value.trim().parse().map_err(|_| ResponseError::Malformed)?;
            content_length = Some(length);
        }
    }
    Ok(Some(Head { status, bytes: end + 4, content_length }))
}

fn status(line: &str) -> Option<u16> {
    let rest = line.strip_prefix("HTTP/1.")?.get(1..)?;
    rest.strip_prefix(' ')?.get(..3)?.parse().ok()
}

/// The responses of one connection that stays open, one after the other.
#[derive(Debug, Default)]
pub struct Responses {
    buffer: Vec<u8>,
    /// How much of the buffer has been given out.
    taken: usize,
}

impl Responses {
    /// Adds bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The status and body of the next whole response.
    ///
    /// # Errors
    /// If what came is none.
    pub fn next_whole(&mut self) -> Result<Option<(u16, &[u8])>, ResponseError> {
        let rest = &self.buffer[self.taken..];
        let Some(head) = head(rest)? else {
            return Ok(None);
        };
        let length = head.content_length.ok_or(ResponseError::Unbounded)?;
        if length > MAX_BODY_BYTES {
            return Err(ResponseError::TooLong);
        }
        match rest.get(head.bytes..head.bytes + length) {
            None => Ok(None),
            Some(body) => {
                self.taken += head.bytes + length;
                Ok(Some((head.status, body)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn heads_are_read() {
        let head_of = |status, bytes, content_length| Ok(Some(Head { status, bytes, content_length }));
        for (text, expected) in [
            ("HTTP/1.1 200 OK\r\n\r\nrest", head_of(200, 19, None)),
            ("HTTP/1.0 404\r\nContent-Length: 5\r\n\r\n", head_of(404, 35, Some(5))),
            ("HTTP/1.1 200 OK\r\ncontent-length:0\r\nX: y:z\r\n\r\n", head_of(200, 45, Some(0))),
            ("HTTP/1.1 200 OK\r\n", Ok(None)),
            ("", Ok(None)),
            ("HTTP/2 200\r\n\r\n", Err(ResponseError::Malformed)),
            ("HTTP/1.1 OK\r\n\r\n", Err(ResponseError::Malformed)),
            ("HTTP/1.\u{e9} 200\r\n\r\n", Err(ResponseError::Malformed)),
            ("HTTP/1.1 200 OK\r\nnothing\r\n\r\n", Err(ResponseError::Malformed)),
            ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", Err(ResponseError::Malformed)),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Err(ResponseError::Chunked)),
        ] {
            assert_eq!(head(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(head(&vec![b'x'; MAX_HEAD_BYTES]), Err(ResponseError::TooLong));
    }

    #[test]
    fn endless_responses_are_refused() {
        for (text, error) in [
            ("HTTP/1.1 200 OK\r\n\r\n", ResponseError::Unbounded),
            ("HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", ResponseError::TooLong),
        ] {
            let mut responses = Responses::default();
            responses.push(text.as_bytes());
            assert_eq!(responses.next_whole(), Err(error), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn pipelined_responses_come_out_however_they_are_cut(
            sent in prop::collection::vec((200_u16..600, "[a-z\r\n]{0,20}"), 1..6),
            size in 1_usize..80,
        ) {
            let bytes: String = sent.iter()
                .map(|(status, body)| format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
                .collect();
            let mut responses = Responses::default();
            let mut received = Vec::new();
            for piece in bytes.as_bytes().chunks(size) {
                responses.push(piece);
                while let Some((status, body)) = responses.next_whole().unwrap() {
                    received.push((status, String::from_utf8(body.to_vec()).unwrap()));
                }
            }
            prop_assert_eq!(received, sent);
        }
    }
}
