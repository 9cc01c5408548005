//! Golden transcripts: what a client sends and what it is answered, to the byte.
//!
//! A transcript is text. `# …` is a comment; `== NAME` goes on with the connection of that name, which is opened when
//! first named; `> …` is a line sent, `< …` a line expected; `+ 30s` lets time pass; `-- wall …` has no other use than
//! to be read. In lines sent, `{length}` is the number of bytes after the empty line of the same block, and
//! `{admin}`, `{viewer}`, `{ingest}` and `{expired}` are tokens; `{viewer:FILTER}` is one for some wells only. Lines of
//! a head end in CRLF, lines of a body in LF (the last has none).

use std::collections::BTreeMap;
use std::time::Duration;

use engine::auth::{Principal, Role, filters};
use engine::ring::sim::ClientId;

use super::world::{Setup, World};

/// Turns after which a server without faults has done everything there is to do.
const TURNS: usize = 40;

/// Plays a transcript; the error says where it differs, and how.
///
/// # Errors
/// The first block that was answered otherwise than it says.
pub fn play(transcript: &str) -> Result<(), String> {
    let mut stage = Stage {
        world: World::new(1, Setup { shards: 2, ..Setup::default() }),
        clients: BTreeMap::new(),
        now: String::new(),
    };
    stage.enter("main");
    let mut lines = transcript.lines().enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        let mut block = |mark: &str, first: &str| {
            let mut block = vec![first.to_owned()];
            while let Some((_, next)) = lines.peek()
                && let Some(text) = next.strip_prefix(mark)
            {
                block.push(text.strip_prefix(' ').unwrap_or(text).to_owned());
                lines.next();
            }
            block
        };
        match line.split_at(line.len().min(1)) {
            ("" | "#", _) => {}
            ("=", name) => stage.enter(name.trim_start_matches('=').trim()),
            ("+", time) => stage.pass(time.trim()),
            (">", text) => {
                let block = block(">", text.strip_prefix(' ').unwrap_or(text));
                stage.send(&block);
            }
            ("<", text) => {
                let block = block("<", text.strip_prefix(' ').unwrap_or(text));
                stage.expect(&block).map_err(|difference| format!("line {}: {difference}", number + 1))?;
            }
            other => return Err(format!("line {}: {other:?} is no part of a transcript", number + 1)),
        }
    }
    stage.end()
}

struct Stage {
    world: World,
    clients: BTreeMap<String, ClientId>,
    now: String,
}

impl Stage {
    fn enter(&mut self, name: &str) {
        self.now = name.into();
        if !self.clients.contains_key(name) {
            // One after the other, so that transcripts cross shards.
            let client = self.world.net.connect(self.clients.len() % 2, 0);
            self.clients.insert(name.into(), client);
        }
    }

    fn pass(&mut self, time: &str) {
        let seconds: u64 = time.trim_end_matches('s').parse().expect("seconds, as in `+ 30s`");
        self.world.net.advance(Duration::from_secs(seconds));
        self.settle();
    }

    fn settle(&mut self) {
        for _ in 0..TURNS {
            self.world.turn_all();
        }
    }

    fn send(&mut self, block: &[String]) {
        let end = block.iter().position(String::is_empty).unwrap_or(block.len());
        let body = block.get(end + 1..).unwrap_or_default().join("\n");
        let mut text: String = block[..end].iter().map(|line| format!("{line}\r\n")).collect();
        if end < block.len() {
            text.push_str("\r\n");
        }
        text = text.replace("{length}", &body.len().to_string());
        text.push_str(&body);
        while let Some((before, rest)) = text.split_once("{viewer:") {
            let (filter, after) = rest.split_once('}').expect("a closing brace");
            text = format!("{before}{}{after}", self.token(Role::Viewer, Some(filter), 1 << 20));
        }
        for (name, role, ttl) in [
            ("{admin}", Role::Admin, 1 << 20),
            ("{viewer}", Role::Viewer, 1 << 20),
            ("{ingest}", Role::Ingest, 1 << 20),
            ("{expired}", Role::Admin, 0),
            ("{minute}", Role::Viewer, 60),
        ] {
            text = text.replace(name, &self.token(role, None, ttl));
        }
        self.world.net.client_write(self.clients[&self.now], text.as_bytes());
        self.settle();
    }

    fn token(&self, role: Role, filter: Option<&str>, ttl: u64) -> String {
        let principal = Principal {
            subject: "user-123".into(),
            username: "john.doe".into(),
            role,
            wells: filter.map(|filter| filters(&[filter.to_owned()]).expect("a filter")),
            expires: 0,
        };
        self.world.issue(&principal, ttl)
    }

    fn expect(&mut self, block: &[String]) -> Result<(), String> {
        let got = self.received(&self.now.clone());
        let got: Vec<&str> = got.split('\n').map(|line| line.trim_end_matches('\r')).collect();
        let got = got.strip_suffix(&[""]).unwrap_or(&got);
        for at in 0..block.len().max(got.len()) {
            let (wanted, line) = (block.get(at).map(String::as_str), got.get(at).copied());
            let same = match (wanted, line) {
                (Some(wanted), Some(line)) => match wanted.split_once("{…}") {
                    Some((before, after)) => line.starts_with(before) && line.ends_with(after),
                    None => wanted == line,
                },
                _ => false,
            };
            if !same {
                let all = got.join("\n< ");
                return Err(format!("wanted {wanted:?}\n  got {line:?}\n  of\n< {all}"));
            }
        }
        Ok(())
    }

    fn received(&mut self, name: &str) -> String {
        let bytes = self.world.net.client_read(self.clients[name], usize::MAX);
        String::from_utf8(bytes).expect("UTF-8")
    }

    /// Nothing may have come that the transcript does not say.
    fn end(mut self) -> Result<(), String> {
        for name in self.clients.keys().cloned().collect::<Vec<_>>() {
            let rest = self.received(&name);
            if !rest.is_empty() {
                return Err(format!("{name} was sent more than the transcript says: {rest}"));
            }
        }
        Ok(())
    }
}
