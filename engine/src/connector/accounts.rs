//! Accounts: the node that checks passwords, off the shards' loops.
//!
//! Checking one takes tens of milliseconds of a CPU and 19 MiB, on purpose. So few are checked at once, a few more
//! wait, and whoever comes then is told at once that there are too many.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded, unbounded};

use crate::auth::{Keys, Principal, Users};
use crate::config::wipe;
use crate::mail::Mail;
use crate::mesh::{Inbox, Port};
use crate::sys;

/// Records taken off one lane at a time.
const BATCH: usize = 64;
/// How soon an answer that found its lane full is tried again.
const RETRY: Duration = Duration::from_millis(1);

/// How the accounts work.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Passwords checked at once.
    pub attempts: usize,
    /// Questions that wait for that.
    pub queue: usize,
    /// How long a token lives.
    pub token_ttl: Duration,
}

/// The node.
pub struct Accounts {
    desk: Desk,
    options: Options,
    inbox: Inbox,
    record: Vec<u8>,
}

/// What it takes to answer a question. Workers share it.
#[derive(Clone)]
struct Desk {
    users: Arc<Users>,
    keys: Arc<Keys>,
    /// Seconds.
    token_ttl: u64,
}

struct Question {
    from: usize,
    tag: u64,
    username: String,
    password: Password,
}

struct Password(Vec<u8>);

impl Drop for Password {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

struct Answer {
    to: usize,
    tag: u64,
    verdict: Verdict,
}

enum Verdict {
    Token(String),
    Wrong,
    /// Not checked.
    Busy,
}

impl Accounts {
    /// Accounts of these users, whose tokens are signed with these keys.
    pub fn new(users: Users, keys: Keys, options: Options) -> Self {
        let desk =
            Desk { users: Arc::new(users), keys: Arc::new(keys), token_ttl: options.token_ttl.as_secs() };
        Self { desk, options, inbox: Inbox::default(), record: Vec::new() }
    }

    /// Answers everything that has arrived, in this thread, one after the other. `port` is the last node's: those
    /// before it may ask. `now` is in seconds since the epoch.
    pub fn turn(&mut self, port: &mut Port, now: u64) {
        for question in self.receive(port) {
            let answer = self.desk.answer(question, now);
            self.reply(port, &answer);
        }
        port.flush();
    }

    /// Answers with workers of its own until `stop` is set and the node's bell is rung; what is not being checked by
    /// then stays unanswered. `port` is the last node's: those before it may ask. Its mesh has bells.
    pub fn run(mut self, mut port: Port, stop: Arc<AtomicBool>) {
        let (to_workers, questions) = bounded(self.options.queue);
        let (to_node, answers) = unbounded();
        thread::scope(|scope| {
            for _ in 0..self.options.attempts {
                let worker = Worker {
                    desk: self.desk.clone(),
                    questions: questions.clone(),
                    answers: to_node.clone(),
                    bell: port.bell(),
                    stop: &stop,
                };
                scope.spawn(move || worker.run());
            }
            drop((questions, to_node));
            while !stop.load(Ordering::Acquire) {
                self.pass(&mut port, &to_workers, &answers);
                sleep(&port, &stop);
            }
            drop(to_workers);
        });
        port.flush();
    }

    /// Hands questions to the workers and their answers to the shards.
    fn pass(&mut self, port: &mut Port, to_workers: &Sender<Question>, answers: &Receiver<Answer>) {
        while let Ok(answer) = answers.try_recv() {
            self.reply(port, &answer);
        }
        for question in self.receive(port) {
            let refused = match to_workers.try_send(question) {
                Ok(()) => continue,
                Err(TrySendError::Full(question) | TrySendError::Disconnected(question)) => question,
            };
            let answer = Answer { to: refused.from, tag: refused.tag, verdict: Verdict::Busy };
            self.reply(port, &answer);
        }
        port.flush();
    }

    fn receive(&mut self, port: &mut Port) -> Vec<Question> {
        let mut questions = Vec::new();
        for from in 0..port.node() {
            port.receive(from, BATCH, &mut self.inbox);
        }
        for (from, record) in self.inbox.records() {
            if let Some(Mail::CheckPassword { tag, username, password }) = Mail::decode(record) {
                let password = Password(password.as_bytes().to_vec());
                questions.push(Question { from, tag, username: username.into(), password });
            }
        }
        self.inbox.clear();
        questions
    }

    fn reply(&mut self, port: &mut Port, answer: &Answer) {
        let (token, busy) = match &answer.verdict {
            Verdict::Token(token) => (token.as_str(), false),
            Verdict::Wrong => ("", false),
            Verdict::Busy => ("", true),
        };
        Mail::PasswordChecked { tag: answer.tag, token, busy }.encode(&mut self.record);
        // One for each login in progress, which the shards bound.
        port.send(answer.to, &self.record);
    }
}

/// Sleeps until a shard, a worker or whoever sets `stop` rings.
fn sleep(port: &Port, stop: &AtomicBool) {
    // A shard rings only from `may_sleep` on, and so does whoever sets `stop`: it is looked at after that.
    let may_sleep = port.may_sleep() && !stop.load(Ordering::Acquire);
    if let Some(bell) = port.bell().filter(|_| may_sleep) {
        // Answers that wait for room in a lane are tried again.
        let wait = (port.waiting() > 0).then_some(RETRY);
        sys::wait_bell(bell, wait);
    }
    port.awake();
}

impl Desk {
    fn answer(&self, question: Question, now: u64) -> Answer {
        let verdict = match self.users.check(&question.username, &question.password.0) {
            Ok(None) => Verdict::Wrong,
            Ok(Some(user)) => {
                let principal = Principal {
                    subject: user.name.clone(),
                    username: user.name.clone(),
                    role: user.role,
                    wells: user.wells.clone(),
                    expires: 0,
                };
                self.keys.issue(&principal, self.token_ttl, now).map_or_else(
                    |error| {
                        tracing::error!(user = user.name, %error, "no token for a user of the users file");
                        Verdict::Busy
                    },
                    Verdict::Token,
                )
            }
            Err(error) => {
                tracing::error!(%error, "a password could not be checked");
                Verdict::Busy
            }
        };
        Answer { to: question.from, tag: question.tag, verdict }
    }
}

/// A thread that checks one password at a time.
struct Worker<'a> {
    desk: Desk,
    questions: Receiver<Question>,
    answers: Sender<Answer>,
    /// The node's.
    bell: Option<i32>,
    stop: &'a AtomicBool,
}

impl Worker<'_> {
    fn run(self) {
        for question in &self.questions {
            if self.stop.load(Ordering::Acquire) {
                break;
            }
            let answer = self.desk.answer(question, seconds());
            if self.answers.send(answer).is_err() {
                break;
            }
            if let Some(bell) = self.bell {
                // Rung whether the node sleeps or not, a bell is heard at the next sleep at the latest.
                sys::ring_bell(bell);
            }
        }
    }
}

/// Seconds since the epoch.
fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::auth::Role;
    use crate::mesh::Mesh;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    const NOW: u64 = 1_800_000_000;
    /// The hash of `sesame` at the lowest cost there is.
    const USERS: &str = r#"
        [[user]]
        name = "ann"
        password = "HASH"
        role = "ingest"
        wells = ["wells/+"]
    "#;

    fn keys() -> Keys {
        Keys::hs256(SECRET, None, None)
    }

    fn accounts(queue: usize) -> Accounts {
        let hash = crate::auth::users::cheap_hash("sesame");
        let users = Users::parse("users.toml", &USERS.replace("HASH", &hash)).unwrap();
        let token_ttl = Duration::from_secs(60);
        Accounts::new(users, keys(), Options { attempts: 2, queue, token_ttl })
    }

    fn ask(port: &mut Port, to: usize, tag: u64, username: &str, password: &str) {
        let mut record = Vec::new();
        Mail::CheckPassword { tag, username, password }.encode(&mut record);
        assert!(port.try_send(to, &record));
        port.flush();
    }

    /// The answers that have arrived at a shard: tag, token, busy.
    fn answers(port: &mut Port, from: usize) -> Vec<(u64, String, bool)> {
        let mut inbox = Inbox::default();
        port.receive(from, usize::MAX, &mut inbox);
        let answer = |(_, record)| match Mail::decode(record) {
            Some(Mail::PasswordChecked { tag, token, busy }) => (tag, token.to_owned(), busy),
            other => panic!("{other:?}"),
        };
        inbox.records().map(answer).collect()
    }

    #[test]
    fn each_shard_gets_its_own_answers() {
        let mesh = Mesh::new(4, 1 << 16, false).unwrap();
        let (mut a, mut b, mut port) = (mesh.port(0), mesh.port(1), mesh.port(3));
        let mut accounts = accounts(1);
        ask(&mut a, 3, 7, "ann", "sesame");
        ask(&mut b, 3, 7, "ann", "Sesame");
        ask(&mut a, 3, 8, "eve", "sesame");
        ask(&mut a, 3, 9, "", "");
        accounts.turn(&mut port, NOW);
        let got = answers(&mut a, 3);
        let tags: Vec<_> = got.iter().map(|(tag, token, busy)| (*tag, token.is_empty(), *busy)).collect();
        assert_eq!(tags, [(7, false, false), (8, true, false), (9, true, false)]);
        assert_eq!(answers(&mut b, 3), [(7, String::new(), false)]);
        let principal = keys().verify(&got[0].1, NOW + 59).unwrap();
        assert_eq!((principal.subject.as_str(), principal.username.as_str()), ("ann", "ann"));
        assert_eq!((principal.role, principal.expires), (Role::Ingest, NOW + 60));
        assert!(principal.may_see("wells/a") && !principal.may_see("devices/a"));
        accounts.turn(&mut port, NOW);
        assert!(answers(&mut a, 3).is_empty());
    }

    #[test]
    fn what_is_no_question_is_passed_over() {
        let mesh = Mesh::new(2, 1 << 16, false).unwrap();
        let (mut shard, mut port) = (mesh.port(0), mesh.port(1));
        let mut record = Vec::new();
        Mail::NoLatest { tag: 1 }.encode(&mut record);
        assert!(shard.try_send(1, &record) && shard.try_send(1, b"\xff"));
        ask(&mut shard, 1, 2, "eve", "");
        accounts(1).turn(&mut port, NOW);
        assert_eq!(answers(&mut shard, 1), [(2, String::new(), false)]);
    }

    #[test]
    fn a_full_queue_is_said_at_once() {
        let mesh = Mesh::new(2, 1 << 16, false).unwrap();
        let (mut shard, mut port) = (mesh.port(0), mesh.port(1));
        let mut accounts = accounts(2);
        // No worker takes anything out.
        let (to_workers, questions) = bounded(2);
        let (to_node, from_workers) = unbounded();
        for tag in 0..5 {
            ask(&mut shard, 1, tag, "ann", "sesame");
        }
        accounts.pass(&mut port, &to_workers, &from_workers);
        let busy: Vec<_> = answers(&mut shard, 1).into_iter().map(|(tag, _, busy)| (tag, busy)).collect();
        assert_eq!(busy, [(2, true), (3, true), (4, true)]);
        let question = questions.try_recv().unwrap();
        to_node.send(accounts.desk.answer(question, NOW)).unwrap();
        ask(&mut shard, 1, 5, "ann", "sesame");
        ask(&mut shard, 1, 6, "ann", "sesame");
        accounts.pass(&mut port, &to_workers, &from_workers);
        let got: Vec<_> = answers(&mut shard, 1).into_iter().map(|(tag, _, busy)| (tag, busy)).collect();
        assert_eq!(got, [(0, false), (6, true)], "there was room for one");
    }

    #[test]
    fn workers_answer_everything_and_end_when_told() {
        let mesh = Mesh::new(3, 1 << 16, true).unwrap();
        let mut shards = [mesh.port(0), mesh.port(1)];
        let port = mesh.port(2);
        let stop = Arc::new(AtomicBool::new(false));
        let (accounts, stopped) = (accounts(64), Arc::clone(&stop));
        let node = thread::spawn(move || accounts.run(port, stopped));
        let mut got = [0, 0];
        let deadline = Instant::now() + Duration::from_secs(60);
        for round in 0..20 {
            for (number, shard) in shards.iter_mut().enumerate() {
                let password = if number == 0 { "sesame" } else { "wrong" };
                ask(shard, 2, round, "ann", password);
                while answers(shard, 2).into_iter().all(|(tag, token, busy)| {
                    assert_eq!((tag, token.is_empty(), busy), (round, number == 1, false));
                    got[number] += 1;
                    false
                }) {
                    assert!(Instant::now() < deadline, "no answer");
                    shard.wait(Some(Duration::from_millis(100)));
                }
            }
        }
        assert_eq!(got, [20, 20]);
        stop.store(true, Ordering::Release);
        mesh.ring(2);
        node.join().unwrap();
    }
}
