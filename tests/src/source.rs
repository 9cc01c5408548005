//! The repository's own files, taken apart just far enough to judge them.

use std::path::{Path, PathBuf};

/// The top of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// A file of the repository.
#[derive(Clone, Debug)]
pub struct File {
    /// Its path from the top.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// The files below a folder whose names end so, sorted; build output and hidden files are passed over.
pub fn files(folder: &str, end: &str) -> Vec<File> {
    let mut paths = Vec::new();
    collect(&root().join(folder), end, &mut paths);
    paths.sort();
    let file = |path: PathBuf| {
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let path = path.strip_prefix(root()).unwrap_or(&path).to_string_lossy().into_owned();
        File { path, text }
    };
    paths.into_iter().map(file).collect()
}

fn collect(folder: &Path, end: &str, paths: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || matches!(&*name, "target" | "node_modules") {
            continue;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(&entry.path(), end, paths),
            _ if name.ends_with(end) => paths.push(entry.path()),
            _ => {}
        }
    }
}

impl File {
    /// What stands before the tests at its end; nothing if all of it is tests.
    pub fn before_tests(&self) -> &str {
        if self.is_test() {
            return "";
        }
        let inline = |at: &usize| self.text[*at..].lines().nth(2).is_some_and(|line| line.ends_with('{'));
        let mut attributes = self.text.match_indices("\n#[cfg(test)]\n").map(|(at, _)| at);
        attributes.find(inline).map_or(&self.text, |at| &self.text[..at])
    }

    /// Whether the module above takes it in for tests only.
    fn is_test(&self) -> bool {
        let path = Path::new(&self.path);
        let (Some(folder), Some(stem)) = (path.parent(), path.file_stem()) else { return false };
        let stem = stem.to_string_lossy();
        let parents = [folder.join("mod.rs"), folder.join("lib.rs"), folder.with_extension("rs")];
        let mut texts = parents.iter().filter_map(|parent| std::fs::read_to_string(root().join(parent)).ok());
        let declares = |text: String| {
            let lines: Vec<&str> = text.lines().map(|line| line.trim_start_matches("pub ")).collect();
            lines.windows(2).any(|pair| pair[0] == "#[cfg(test)]" && pair[1] == format!("mod {stem};"))
        };
        texts.any(declares)
    }

    /// [`before_tests`](Self::before_tests) without comments and the contents of strings.
    pub fn code(&self) -> String {
        code(self.before_tests())
    }
}

/// Rust without comments and without the contents of strings and characters, which are blanks: every line and
/// column stays where it is.
pub fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => find(bytes, at, b"\n"),
            b'/' if bytes[at..].starts_with(b"/*") => comment_end(bytes, at),
            b'"' => string_end(bytes, at),
            b'r' if !is_word(bytes, at.wrapping_sub(1)) || is_prefix(bytes, at) => raw_string_end(bytes, at),
            b'\'' => char_end(text, at),
            _ => at,
        };
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn find(bytes: &[u8], from: usize, what: &[u8]) -> usize {
    let found = bytes[from..].windows(what.len()).position(|window| window == what);
    found.map_or(bytes.len(), |at| from + at)
}

fn is_word(bytes: &[u8], at: usize) -> bool {
    bytes.get(at).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

/// Whether the letter before is the `b` or `c` of `br"…"`.
fn is_prefix(bytes: &[u8], at: usize) -> bool {
    at > 0 && matches!(bytes[at - 1], b'b' | b'c') && !is_word(bytes, at.wrapping_sub(2))
}

fn comment_end(bytes: &[u8], start: usize) -> usize {
    let (mut depth, mut at) = (0, start);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if bytes[at..].starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
        } else {
            at += 1;
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// The end of `r#"…"#`, or `start` if it is none.
fn raw_string_end(bytes: &[u8], start: usize) -> usize {
    let hashes = bytes[start + 1..].iter().take_while(|byte| **byte == b'#').count();
    if bytes.get(start + 1 + hashes) != Some(&b'"') {
        return start;
    }
    let end = [&b"\""[..], &vec![b'#'; hashes]].concat();
    (find(bytes, start + 2 + hashes, &end) + end.len()).min(bytes.len())
}

/// The end of a character, or `start` if the quote begins a lifetime.
fn char_end(text: &str, start: usize) -> usize {
    let mut chars = text[start + 1..].char_indices();
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((_, _))) => find(text.as_bytes(), start + 3, b"'") + 1,
        (Some(_), Some((next, '\''))) => start + 1 + next + 1,
        _ => start,
    }
}

/// A function in [`code`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Its first line, from 1.
    pub line: usize,
    /// Its lines, from `fn` to the brace that ends it.
    pub lines: usize,
}

/// The functions of some [`code`] that have a body.
pub fn functions(code: &str) -> Vec<Function> {
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let name: String = code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if is_word(bytes, at.wrapping_sub(1)) || name.is_empty() {
            continue;
        }
        let Some(open) = body(bytes, at) else { continue };
        let end = closing(bytes, open);
        let line = |at: usize| code[..at].matches('\n').count();
        found.push(Function { name, line: line(at) + 1, lines: line(end) - line(at) + 1 });
    }
    found
}

/// The brace that opens the body of the function declared at `at`, if it has one.
fn body(bytes: &[u8], at: usize) -> Option<usize> {
    let mut depth = 0;
    for (index, byte) in bytes.iter().enumerate().skip(at) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b';' if depth == 0 => return None,
            b'{' if depth == 0 => return Some(index),
            _ => {}
        }
    }
    None
}

fn closing(bytes: &[u8], open: usize) -> usize {
    let mut depth = 0;
    for (index, byte) in bytes.iter().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return index;
        }
    }
    bytes.len()
}

/// The lines of some [`code`], from 1, that hold a word.
pub fn lines_with(code: &str, word: &str) -> Vec<usize> {
    let holds = |line: &str| {
        line.match_indices(word).any(|(at, _)| {
            let bytes = line.as_bytes();
            !is_word(bytes, at.wrapping_sub(1)) && !is_word(bytes, at + word.len())
        })
    };
    code.lines().zip(1..).filter(|(line, _)| holds(line)).map(|(_, number)| number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_blank() {
        for (text, expected) in [
            ("a // unsafe\nb", "a          \nb"),
            ("a /* x /* y */ z */ b", "a                   b"),
            (r#"a("{ \" }", b)"#, "a(        , b)"),
            (r##"a(r#"x"y"#, b)"##, "a(        , b)"),
            (r#"a(b"x", br"\", c)"#, "a(b   , b    , c)"),
            (r"a('{', '\'', '\u{7b}', b'}')", "a(   ,     ,         , b   )"),
            ("fn a<'a>(b: &'a str) {}", "fn a<'a>(b: &'a str) {}"),
            ("for r in \"x\" {}", "for r in     {}"),
            ("\"a\nb\"", "  \n  "),
            ("'é' }", "     }"),
        ] {
            assert_eq!(code(text), expected, "{text}");
        }
    }

    #[test]
    fn functions_are_measured() {
        let text = "fn a() {}\nimpl X {\n    pub fn b(x: [u8; 3]) -> Y\n    where\n        Z: W,\n    {\n        if c {\n        }\n    }\n}\n\
                    trait T {\n    fn c();\n}\ntype F = fn (u8);\nfn d() {\n    fn e() {\n    }\n}\n";
        let found: Vec<_> = functions(&code(text)).into_iter().map(|f| (f.name, f.line, f.lines)).collect();
        let expected = [("a", 1, 1), ("b", 3, 7), ("d", 15, 4), ("e", 16, 2)];
        assert_eq!(found, expected.map(|(name, line, lines)| (name.to_owned(), line, lines)));
    }

    #[test]
    fn words_are_whole() {
        assert_eq!(lines_with("unsafe {\nunsafe_code\nan_unsafe\n(unsafe)", "unsafe"), [1, 4]);
    }
}
