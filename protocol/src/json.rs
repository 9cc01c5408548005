//! A JSON scanner (RFC 8259) that checks and cuts, and never builds a tree.
//!
//! Publishers' bodies are spliced, not re-serialised: numbers keep their digits, unknown members their bytes.
//! So all that is needed is to know that a text is JSON, and where its members stand in it. One pass does
//! both; it allocates nothing and does not recurse.
//!
//! What is accepted is RFC 8259 to the letter: no byte order mark, no comments, no trailing commas. Strings
//! must be UTF-8, and a lone surrogate (`"\ud800"`), which the RFC's grammar allows but section 8.2 calls
//! unpredictable, is refused: decoders and databases further down disagree about it. Containers nest at most
//! [`MAX_DEPTH`] deep. Names given twice are passed on; what they mean is the caller's to say.

use std::borrow::Cow;

/// How deep containers may nest; the outermost is 1. Bounds what a reader of our output must bear.
pub const MAX_DEPTH: u32 = 128;

/// Where a text stops being JSON, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JsonError {
    /// Bytes from the beginning of the input.
    pub at: usize,
    /// What is wrong there.
    pub what: &'static str,
}

/// What a value is, as its first byte tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// `{…}`
    Object,
    /// `[…]`
    Array,
    /// `"…"`
    String,
    /// A number, of any size and precision.
    Number,
    /// `true` or `false`
    Bool,
    /// `null`
    Null,
}

/// A value, as sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value<'a> {
    /// Its bytes, without space around them; a string's include the quotes.
    pub raw: &'a [u8],
    /// What it is.
    pub kind: Type,
}

/// A member of an object, as sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// The whole of it: name, colon and value.
    pub raw: &'a [u8],
    /// The name, with its quotes and escapes.
    pub key: &'a [u8],
    /// The value.
    pub value: Value<'a>,
}

impl Member<'_> {
    /// Whether the name is `name`, however it is escaped.
    pub fn is(&self, name: &str) -> bool {
        let inner = &self.key[1..self.key.len() - 1];
        inner == name.as_bytes() || (inner.contains(&b'\\') && string(self.key).as_deref() == Some(name))
    }
}

/// The members of the one object that `input` is; space may stand around it.
///
/// The text is checked as the iterator goes, up to and including what follows the object: it is JSON when
/// the iterator has ended without an error. After an error it ends.
///
/// # Errors
/// If `input` does not begin with an object.
pub fn object(input: &[u8]) -> Result<Members<'_>, JsonError> {
    let mut cursor = Cursor::new(input);
    cursor.enter(Type::Object)?;
    Ok(Members(Walk { cursor, first: true, over: false }))
}

/// The elements of the one array that `input` is; checked like [`object`].
///
/// # Errors
/// If `input` does not begin with an array.
pub fn array(input: &[u8]) -> Result<Elements<'_>, JsonError> {
    let mut cursor = Cursor::new(input);
    cursor.enter(Type::Array)?;
    Ok(Elements(Walk { cursor, first: true, over: false }))
}

/// Iterator over an object's members; see [`object`].
#[derive(Clone, Debug)]
pub struct Members<'a>(Walk<'a>);

/// Iterator over an array's elements; see [`array()`].
#[derive(Clone, Debug)]
pub struct Elements<'a>(Walk<'a>);

#[derive(Clone, Debug)]
struct Walk<'a> {
    cursor: Cursor<'a>,
    first: bool,
    over: bool,
}

impl<'a> Walk<'a> {
    fn next<T>(
        &mut self,
        container: Type,
        item: impl FnOnce(&mut Cursor<'a>) -> Result<T, JsonError>,
    ) -> Option<Result<T, JsonError>> {
        if self.over {
            return None;
        }
        let first = std::mem::replace(&mut self.first, false);
        let next = match self.cursor.more(container, first) {
            Ok(true) => item(&mut self.cursor).map(Some),
            Ok(false) => self.cursor.end().map(|()| None),
            Err(error) => Err(error),
        };
        self.over = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = Result<Member<'a>, JsonError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next(Type::Object, Cursor::member)
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<Value<'a>, JsonError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next(Type::Array, Cursor::value)
    }
}

/// A place in a text, for callers that read several values, or one piece by piece.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    input: &'a [u8],
    at: usize,
    depth: u32,
}

impl<'a> Cursor<'a> {
    /// At the beginning of `input`.
    pub fn new(input: &'a [u8]) -> Self {
        Self { input, at: 0, depth: 0 }
    }

    /// Bytes from the beginning of the input.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Skips space; the byte after it, which stays unread, or nothing at the end of the input.
    pub fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.input.get(self.at) {
            self.at += 1;
        }
        self.input.get(self.at).copied()
    }

    /// Reads the opening bracket of a container, to walk it with [`Self::more`].
    ///
    /// # Errors
    /// If there is none of that type, or it would be deeper than [`MAX_DEPTH`].
    pub fn enter(&mut self, container: Type) -> Result<(), JsonError> {
        let (open, what) = match container {
            Type::Object => (b'{', "expected an object"),
            _ => (b'[', "expected an array"),
        };
        if self.peek() != Some(open) {
            return Err(self.error(what));
        }
        if self.depth == MAX_DEPTH {
            return Err(self.error("nested too deeply"));
        }
        self.depth += 1;
        self.at += 1;
        Ok(())
    }

    /// Reads up to the next member or element of the container that was entered last, or its end. `first`
    /// is true for the call that follows [`Self::enter`].
    ///
    /// # Errors
    /// If neither a comma nor the closing bracket stands there.
    pub fn more(&mut self, container: Type, first: bool) -> Result<bool, JsonError> {
        let (close, what) = match container {
            Type::Object => (b'}', "expected a comma or }"),
            _ => (b']', "expected a comma or ]"),
        };
        match self.peek() {
            Some(byte) if byte == close => {
                self.depth -= 1;
                self.at += 1;
                Ok(false)
            }
            _ if first => Ok(true),
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            _ => Err(self.error(what)),
        }
    }

    /// Reads a member: a name, a colon and a value.
    ///
    /// # Errors
    /// If it is not one.
    pub fn member(&mut self) -> Result<Member<'a>, JsonError> {
        self.peek();
        let start = self.at;
        let key = self.key()?;
        let value = self.value()?;
        Ok(Member { raw: &self.input[start..self.at], key, value })
    }

    /// Reads a value, whatever it is, with all that it contains.
    ///
    /// # Errors
    /// If it is not one.
    pub fn value(&mut self) -> Result<Value<'a>, JsonError> {
        let kind = match self.peek() {
            Some(b'{') => Type::Object,
            Some(b'[') => Type::Array,
            Some(b'"') => Type::String,
            Some(b't' | b'f') => Type::Bool,
            Some(b'n') => Type::Null,
            _ => Type::Number,
        };
        let start = self.at;
        self.nested()?;
        Ok(Value { raw: &self.input[start..self.at], kind })
    }

    /// Checks that nothing but space is left.
    ///
    /// # Errors
    /// If there is something.
    pub fn end(&mut self) -> Result<(), JsonError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.error("bytes after the end of the value")),
        }
    }

    /// Skips a value: descends with a bit per level, set where it is an object, instead of recursion.
    fn nested(&mut self) -> Result<(), JsonError> {
        let base = self.depth;
        let mut objects = 0_u128;
        loop {
            let mut first = true;
            match self.peek() {
                Some(b'{') => {
                    self.enter(Type::Object)?;
                    objects = objects << 1 | 1;
                }
                Some(b'[') => {
                    self.enter(Type::Array)?;
                    objects <<= 1;
                }
                _ => {
                    self.scalar()?;
                    first = false;
                }
            }
            while self.depth > base {
                let container = if objects & 1 == 1 { Type::Object } else { Type::Array };
                if self.more(container, first)? {
                    if container == Type::Object {
                        self.peek();
                        self.key()?;
                    }
                    break;
                }
                objects >>= 1;
                first = false;
            }
            if self.depth == base {
                return Ok(());
            }
        }
    }

    fn key(&mut self) -> Result<&'a [u8], JsonError> {
        let start = self.at;
        if self.input.get(start) != Some(&b'"') {
            return Err(self.error("expected a member's name"));
        }
        self.string()?;
        let key = &self.input[start..self.at];
        if self.peek() != Some(b':') {
            return Err(self.error("expected a colon"));
        }
        self.at += 1;
        Ok(key)
    }

    fn scalar(&mut self) -> Result<(), JsonError> {
        match self.input.get(self.at) {
            Some(b'"') => self.string(),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            _ => Err(self.error("expected a value")),
        }
    }

    fn word(&mut self, word: &[u8]) -> Result<(), JsonError> {
        if !self.input[self.at..].starts_with(word) {
            return Err(self.error("expected a value"));
        }
        self.at += word.len();
        Ok(())
    }

    /// RFC 8259 section 6. What follows the number is the caller's to check: `01` is 0 and then a stray 1.
    fn number(&mut self) -> Result<(), JsonError> {
        self.at += usize::from(self.input[self.at] == b'-');
        if self.input.get(self.at) == Some(&b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.input.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.input.get(self.at) {
            self.at += 1;
            self.at += usize::from(matches!(self.input.get(self.at), Some(b'+' | b'-')));
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while self.input.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        if self.at == start {
            return Err(self.error("expected a digit"));
        }
        Ok(())
    }

    /// RFC 8259 section 7, at the opening quote.
    fn string(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        let mut ascii = true;
        self.at += 1;
        loop {
            self.at += plain_run(&self.input[self.at..]);
            match self.input.get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => self.escape()?,
                Some(0x80..) => {
                    ascii = false;
                    self.at += 1;
                }
                Some(_) => return Err(self.error("raw control character in a string")),
                None => return Err(self.error("unfinished string")),
            }
        }
        self.at += 1;
        if !ascii && let Err(error) = std::str::from_utf8(&self.input[start..self.at]) {
            return Err(JsonError { at: start + error.valid_up_to(), what: "not UTF-8" });
        }
        Ok(())
    }

    fn escape(&mut self) -> Result<(), JsonError> {
        let rest = &self.input[self.at..];
        match escaped(rest) {
            Some((_, length)) => {
                self.at += length;
                Ok(())
            }
            None => Err(self.error("bad escape in a string")),
        }
    }

    fn error(&self, what: &'static str) -> JsonError {
        JsonError { at: self.at, what }
    }
}

/// What the string token `raw`, quotes included, says; nothing if it is no string token. Copies only where
/// there are escapes.
pub fn string(raw: &[u8]) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    let text = std::str::from_utf8(inner).ok()?;
    if inner.iter().any(|&byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        return unescape(text).map(Cow::Owned);
    }
    Some(Cow::Borrowed(text))
}

/// Appends `text` as a JSON string, with its quotes.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    write_escaped(text, out);
    out.push(b'"');
}

/// Appends `text` as the inside of a JSON string.
pub fn write_escaped(text: &str, out: &mut Vec<u8>) {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|&byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            byte => {
                let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte & 15)]);
            }
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

/// Appends `n` in decimal digits.
pub fn write_u64(mut n: u64, out: &mut Vec<u8>) {
    // The longest, 18446744073709551615, has 20.
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends `raw`, a piece of checked JSON, on one line: CR and LF, which JSON has only between tokens, become
/// spaces.
pub fn write_line(raw: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(raw);
    for byte in &mut out[start..] {
        if *byte == b'\n' || *byte == b'\r' {
            *byte = b' ';
        }
    }
}

/// How many bytes at the beginning of `bytes` are ASCII that a string holds as it is. Eight at a time.
fn plain_run(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    let mut run = 0;
    for chunk in bytes.chunks_exact(8) {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        let word = u64::from_le_bytes(word);
        // A lane's high bit rises where it is below the subtrahend; a borrow can only raise lanes above it,
        // so the lowest one risen is right.
        let below = |mask: u64, limit: u64| mask.wrapping_sub(ONES * limit);
        let quote = below(word ^ (ONES * u64::from(b'"')), 1);
        let slash = below(word ^ (ONES * u64::from(b'\\')), 1);
        let special = (word | quote | slash | below(word, 0x20)) & HIGH;
        if special != 0 {
            return run + special.trailing_zeros() as usize / 8;
        }
        run += 8;
    }
    let plain = |byte: &&u8| matches!(byte, 0x20..0x80) && **byte != b'"' && **byte != b'\\';
    run + bytes[run..].iter().take_while(plain).count()
}

/// The character that the escape at the beginning of `bytes` stands for, and the escape's length. Nothing if
/// it is no escape, or half a surrogate pair.
fn escaped(bytes: &[u8]) -> Option<(char, usize)> {
    let character = match bytes.get(1)? {
        b'"' => '"',
        b'\\' => '\\',
        b'/' => '/',
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => {
            let high = hex4(bytes.get(2..6)?)?;
            if !(0xd800..0xdc00).contains(&high) {
                return Some((char::from_u32(high)?, 6));
            }
            let low = hex4(bytes.get(6..12)?.strip_prefix(b"\\u")?)?;
            if !(0xdc00..0xe000).contains(&low) {
                return None;
            }
            return Some((char::from_u32(0x10000 + ((high & 0x3ff) << 10 | (low & 0x3ff)))?, 12));
        }
        _ => return None,
    };
    Some((character, 2))
}

fn hex4(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |value, &digit| Some(value << 4 | char::from(digit).to_digit(16)?))
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c < ' ' || c == '"' || c == '\\') {
        out.push_str(&rest[..at]);
        if rest.as_bytes()[at] != b'\\' {
            return None;
        }
        let (character, length) = escaped(&rest.as_bytes()[at..])?;
        out.push(character);
        rest = &rest[at + length..];
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(input: &[u8]) -> Result<(), JsonError> {
        let mut cursor = Cursor::new(input);
        cursor.value()?;
        cursor.end()
    }

    fn members(input: &str) -> Vec<(&str, &str, Type)> {
        object(input.as_bytes())
            .unwrap()
            .map(|member| {
                let Member { key, value, .. } = member.unwrap();
                let text = |raw| std::str::from_utf8(raw).unwrap();
                (text(key), text(value.raw), value.kind)
            })
            .collect()
    }

    #[test]
    fn texts_that_are_json() {
        for text in [
            "{}",
            "[]",
            " \t\r\n{ } \n",
            "0",
            "-0",
            "-0.0e-0",
            "10",
            "1E+400",
            "123456789012345678901234567890.5",
            "true",
            "false",
            "null",
            r#""""#,
            r#""\"\\\/\b\f\n\r\t\u00e9""#,
            r#""\ud83d\ude00""#,
            r#""\uDBFF\uDFFF""#,
            r#""é ☃ 😀""#,
            "\"\u{7f}\"",
            r#"{"a":[1,{"b":[]},[[]]],"c":{}}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"":0}"#,
        ] {
            assert_eq!(check(text.as_bytes()), Ok(()), "{text}");
        }
    }

    #[test]
    fn texts_that_are_not_and_where() {
        let table: &[(&[u8], usize, &str)] = &[
            (b"", 0, "expected a value"),
            (b"  ", 2, "expected a value"),
            (b"nul", 0, "expected a value"),
            (b"True", 0, "expected a value"),
            (b"nullx", 4, "bytes after the end of the value"),
            (b"{} {}", 3, "bytes after the end of the value"),
            (b"01", 1, "bytes after the end of the value"),
            (b"+1", 0, "expected a value"),
            (b".5", 0, "expected a value"),
            (b"-", 1, "expected a digit"),
            (b"-x", 1, "expected a digit"),
            (b"1.", 2, "expected a digit"),
            (b"1.e5", 2, "expected a digit"),
            (b"1e", 2, "expected a digit"),
            (b"1e+", 3, "expected a digit"),
            (b"NaN", 0, "expected a value"),
            (b"[1,]", 3, "expected a value"),
            (b"[,1]", 1, "expected a value"),
            (b"[1 2]", 3, "expected a comma or ]"),
            (b"[1}", 2, "expected a comma or ]"),
            (b"[", 1, "expected a value"),
            (b"{\"a\":1,}", 7, "expected a member's name"),
            (b"{a:1}", 1, "expected a member's name"),
            (b"{1:1}", 1, "expected a member's name"),
            (b"{\"a\" 1}", 5, "expected a colon"),
            (b"{\"a\":1 \"b\":2}", 7, "expected a comma or }"),
            (b"{\"a\":1]", 6, "expected a comma or }"),
            (b"{\"a\":}", 5, "expected a value"),
            (b"\"abc", 4, "unfinished string"),
            (b"\"a\nb\"", 2, "raw control character in a string"),
            (b"\"a\0b\"", 2, "raw control character in a string"),
            (b"\"\\x\"", 1, "bad escape in a string"),
            (b"\"\\u12g4\"", 1, "bad escape in a string"),
            (b"\"\\u+123\"", 1, "bad escape in a string"),
            (b"\"\\u12\"", 1, "bad escape in a string"),
            (b"\"\\", 1, "bad escape in a string"),
            (b"\"\\ud800\"", 1, "bad escape in a string"),
            (b"\"\\udc00\"", 1, "bad escape in a string"),
            (b"\"\\ud800\\u0041\"", 1, "bad escape in a string"),
            (b"\"\\ud800\\ue000\"", 1, "bad escape in a string"),
            (b"\"\\ud800\\ud800\"", 1, "bad escape in a string"),
            (b"\"ab\xff\"", 3, "not UTF-8"),
            (b"\"\xed\xa0\x80\"", 1, "not UTF-8"),
            (b"\"\xc0\xaf\"", 1, "not UTF-8"),
            (b"\xef\xbb\xbf{}", 0, "expected a value"),
            (b"{}\xc2\xa0", 2, "bytes after the end of the value"),
            (b"// x\n1", 0, "expected a value"),
            (b"'a'", 0, "expected a value"),
        ];
        for &(text, at, what) in table {
            assert_eq!(check(text), Err(JsonError { at, what }), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn depth_ends_at_the_limit() {
        let arrays = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let mixed = |pairs| format!("{}0{}", r#"[{"a":"#.repeat(pairs), "}]".repeat(pairs));
        let limit = MAX_DEPTH as usize;
        assert_eq!(check(arrays(limit).as_bytes()), Ok(()));
        assert_eq!(check(mixed(limit / 2).as_bytes()), Ok(()));
        let deeper = arrays(limit + 1);
        assert_eq!(check(deeper.as_bytes()), Err(JsonError { at: limit, what: "nested too deeply" }));
        assert!(check(mixed(limit / 2 + 1).as_bytes()).is_err());
        assert_eq!(check(&[b'['; 1_000_000]).unwrap_err().what, "nested too deeply");
        let wide = format!("[{}0]", "[[]],".repeat(1000));
        assert_eq!(check(wide.as_bytes()), Ok(()), "siblings do not add up");
    }

    #[test]
    fn an_object_is_cut_into_members() {
        use Type::{Array, Bool, Null, Number, Object, String};
        assert_eq!(
            members(
                "\n{ \"a\" : 1.50 , \"b\\u0063\":\"x\\\"y\",\"c\":[1,{}],\"d\":{\"e\":null},\"f\":true,\"g\":null} "
            ),
            [
                ("\"a\"", "1.50", Number),
                ("\"b\\u0063\"", "\"x\\\"y\"", String),
                ("\"c\"", "[1,{}]", Array),
                ("\"d\"", "{\"e\":null}", Object),
                ("\"f\"", "true", Bool),
                ("\"g\"", "null", Null),
            ]
        );
        assert_eq!(members("{}"), []);
        let raw: Vec<_> =
            object(b"{ \"a\" :\t1 ,\"b\":2}").unwrap().map(|member| member.unwrap().raw).collect();
        assert_eq!(raw, [&b"\"a\" :\t1"[..], b"\"b\":2"]);
    }

    #[test]
    fn an_array_is_cut_into_elements() {
        let elements: Vec<_> =
            array(b"[1, [2,3] ,\"]\",{}]").unwrap().map(|element| element.unwrap().raw).collect();
        assert_eq!(elements, [&b"1"[..], b"[2,3]", b"\"]\"", b"{}"]);
        assert_eq!(array(b" [ ] ").unwrap().count(), 0);
    }

    #[test]
    fn iterators_report_one_error_and_end() {
        for (text, items) in [("{\"a\":1,\"b\"}", 1), ("{\"a\":1} x", 1), ("{\"a\":1", 1), ("{x", 0)] {
            let all: Vec<_> = object(text.as_bytes()).unwrap().collect();
            assert_eq!(all.len(), items + 1, "{text}");
            assert!(all[items].is_err(), "{text}");
        }
        let all: Vec<_> = array(b"[1,2 3,4]").unwrap().collect();
        assert_eq!((all.len(), all[2]), (3, Err(JsonError { at: 5, what: "expected a comma or ]" })));
        assert_eq!(object(b"[]").unwrap_err().what, "expected an object");
        assert_eq!(array(b"{}").unwrap_err().what, "expected an array");
    }

    #[test]
    fn names_compare_unescaped() {
        for (text, same) in [
            (r#"{"well_id":1}"#, true),
            (r#"{"well\u005fid":1}"#, true),
            (r#"{"\u0077ell_id":1}"#, true),
            (r#"{"well_idx":1}"#, false),
            (r#"{"well\\u005fid":1}"#, false),
            (r#"{"WELL_ID":1}"#, false),
        ] {
            let member = object(text.as_bytes()).unwrap().next().unwrap().unwrap();
            assert_eq!(member.is("well_id"), same, "{text}");
        }
    }

    #[test]
    fn strings_unescape_or_are_none() {
        for (raw, text) in [
            (r#""""#, Some("")),
            (r#""abc""#, Some("abc")),
            (r#""a\n\"\\\/b""#, Some("a\n\"\\/b")),
            (r#""\u0000\u00e9\ud83d\ude00é""#, Some("\0é😀é")),
            (r#""\ud83d""#, None),
            (r#""a"b""#, None),
            ("\"a\nb\"", None),
            ("\"a", None),
            ("\"", None),
            ("", None),
            ("12", None),
        ] {
            assert_eq!(string(raw.as_bytes()).as_deref(), text, "{raw}");
        }
        assert_eq!(string(b"\"\xff\""), None);
        assert!(matches!(string(b"\"abc\""), Some(Cow::Borrowed("abc"))));
    }

    #[test]
    fn integers_are_written() {
        for n in [0, 9, 10, 99, 100, 12345, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut out = b"x".to_vec();
            write_u64(n, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), format!("x{n}"));
        }
    }

    #[test]
    fn line_ends_become_spaces() {
        let mut out = b"a\n".to_vec();
        write_line(b"{\r\n\t\"a\":\"\\n\"\n}", &mut out);
        assert_eq!(out, b"a\n{  \t\"a\":\"\\n\" }");
    }

    #[test]
    fn plain_runs_end_at_every_special_byte_and_place() {
        for byte in 0..=255_u8 {
            let special = !(0x20..0x80).contains(&byte) || byte == b'"' || byte == b'\\';
            for place in 0..20 {
                for fill in [b' ', b'!', b'#', b'[', b']', b'~', 0x7f] {
                    let mut bytes = [fill; 20];
                    bytes[place] = byte;
                    assert_eq!(plain_run(&bytes), if special { place } else { 20 }, "{byte} at {place}");
                }
            }
        }
    }

    fn text() -> impl Strategy<Value = String> {
        proptest::collection::vec(
            prop_oneof![any::<char>(), proptest::char::range('\0', '\u{7f}'), Just('"'), Just('\\')],
            0..24,
        )
        .prop_map(String::from_iter)
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::Value;
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            text().prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 48, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::vec((text(), inner), 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    /// Changes of a text that keep it near JSON.
    fn mutate(mut bytes: Vec<u8>, changes: &[(usize, usize, u8)]) -> Vec<u8> {
        const BYTES: &[u8] = b"{}[]\",:\\u/0123456789aebtfn+-. \t\r\n\0\x1f\x7f\x80\xc3\xed\xa0\xff";
        for &(how, place, byte) in changes {
            let byte = BYTES[usize::from(byte) % BYTES.len()];
            let place = place % (bytes.len() + 1);
            match how % 4 {
                0 => bytes.insert(place, byte),
                1 if place < bytes.len() => bytes[place] = byte,
                2 if place < bytes.len() => drop(bytes.remove(place)),
                _ => bytes.truncate(place),
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn serde_json_writes_what_we_accept_and_cut_alike(value in json(), pretty: bool) {
            let bytes =
                if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.unwrap();
            prop_assert_eq!(check(&bytes), Ok(()));
            // What serde_json reads, not what it wrote: it does not read every float back exactly.
            let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            if let serde_json::Value::Object(map) = &value {
                let mut ours = serde_json::Map::new();
                for member in object(&bytes).unwrap() {
                    let member = member.unwrap();
                    let key = string(member.key).unwrap();
                    prop_assert!(member.is(&key));
                    ours.insert(key.into_owned(), serde_json::from_slice(member.value.raw).unwrap());
                }
                prop_assert_eq!(&ours, map);
            }
            let mut line = Vec::new();
            write_line(&bytes, &mut line);
            prop_assert!(!line.contains(&b'\n') && !line.contains(&b'\r'));
            prop_assert_eq!(serde_json::from_slice::<serde_json::Value>(&line).unwrap(), value);
        }

        /// The one known difference: serde_json refuses numbers beyond an f64. (And it nests one level less
        /// deeply, which these texts do not reach.)
        #[test]
        fn serde_json_agrees_on_what_is_nearly_json(
            value in json(),
            changes in proptest::collection::vec((any::<usize>(), any::<usize>(), any::<u8>()), 1..5),
        ) {
            let bytes = mutate(serde_json::to_vec(&value).unwrap(), &changes);
            let ours = check(&bytes);
            match serde_json::from_slice::<serde_json::Value>(&bytes) {
                Ok(_) => prop_assert_eq!(ours, Ok(())),
                Err(error) if error.to_string().starts_with("number out of range") => {}
                Err(error) => prop_assert!(ours.is_err(), "{error}"),
            }
        }

        #[test]
        fn any_bytes_end_in_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let serde = serde_json::from_slice::<serde_json::Value>(&bytes).is_ok();
            prop_assert_eq!(check(&bytes).is_ok(), serde);
        }

        #[test]
        fn strings_come_back(text in text()) {
            let mut out = Vec::new();
            write_string(&text, &mut out);
            prop_assert_eq!(check(&out), Ok(()));
            let decoded = string(&out);
            prop_assert_eq!(decoded.as_deref(), Some(text.as_str()));
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }
}
