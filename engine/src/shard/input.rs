//! From accepted sockets and bytes to requests, and back to their answers.

use std::sync::atomic::Ordering;
use std::time::Duration;

use protocol::message::{Command, Publication, Refusal, Reply, TopicInfo};
use protocol::topic;

use super::connection::{Connection, NEVER, Pending, Publishing, Reading, key_of, tag_of};
use super::{Phase, READ_BYTES, Shard, Timer};
use crate::mail::{Failure, Item, Mail, ReadEnd};
use crate::metrics::Counter;
use crate::ring::{Fd, Key, Ring};
use crate::session::{Activity, Effect, Session};

/// How long accepting rests after it has run out of descriptors or memory, ms.
const ACCEPT_REST: u64 = 50;
/// Bytes read from one socket per turn, so that an uploader starves nobody.
const READ_PER_TURN: usize = 4 * READ_BYTES;
/// How long a refused client has to read why, ms.
const LINGER: u64 = 1000;
/// How long the store, the accounts or another shard may owe an answer, ms. Longer than connections idle by default, so
/// that asking does not bring a timer nearer.
const ANSWER_TIMEOUT: u64 = 90_000;
/// Time between two lines in the log about accepting, ms.
const ACCEPT_WARNINGS: u64 = 10_000;
/// What a client is told to wait when a bounded queue is full, seconds.
const RETRY_AFTER: u32 = 1;

impl<R: Ring> Shard<R> {
    pub(super) fn accept(&mut self, listener: u16, fd: Fd) {
        let open = self.state.connections.fetch_add(1, Ordering::AcqRel);
        if open >= self.bounds.connections || self.phase == Phase::Ending {
            self.state.connections.fetch_sub(1, Ordering::AcqRel);
            self.metrics.count(Counter::Refused);
            return self.ring.refuse(fd);
        }
        self.metrics.count(Counter::Accepted);
        self.metrics.add(Counter::Connections, 1);
        let local = self.ring.peer(fd).is_none_or(|peer| peer.ip().to_canonical().is_loopback());
        let key = self.connections.insert(Connection::new(fd, Session::new(listener, local)));
        self.ring.register(key, fd);
        let timeout = match self.phase {
            // It came with the last of the accept queue: it is served, but not kept.
            Phase::Serving => self.bounds.keep_alive_timeout,
            _ => self.bounds.request_timeout.min(1000),
        };
        self.set_deadline(key, self.now.millis() + timeout);
    }

    pub(super) fn accept_failed(&mut self, listener: u16, errno: i32) {
        self.metrics.count(Counter::AcceptFailures);
        let now = self.now.millis();
        if self.accept_warned.is_none_or(|at| at + ACCEPT_WARNINGS <= now) {
            self.accept_warned = Some(now);
            let error = std::io::Error::from_raw_os_error(errno);
            tracing::warn!(listener, "can't accept clients for now: {error}");
        }
        self.wheel.set(now + ACCEPT_REST, Timer::Accept(listener));
    }

    /// Reads what there is, as long as the session takes it.
    pub(super) fn read(&mut self, key: Key) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut taken = 0;
        while let Some(connection) = self.connections.get(key) {
            if connection.closing || connection.closes_when_sent {
                break;
            }
            let streaming = connection.lingers || connection.session.activity() == Activity::Streaming;
            if !connection.session.is_reading() && !streaming || connection.outbox.is_some() {
                connection.unread = true;
                break;
            }
            if taken >= READ_PER_TURN {
                connection.unread = true;
                self.to_read.push(key);
                break;
            }
            connection.unread = false;
            match self.ring.recv(connection.fd, &mut buffer) {
                Ok(0) => {
                    self.close(key, false);
                    break;
                }
                // What a client says after it has asked for a stream is nothing one could answer.
                Ok(read) if streaming && taken + read >= READ_BYTES && !connection.lingers => {
                    self.close(key, false);
                    break;
                }
                Ok(read) => {
                    taken += read;
                    if !streaming {
                        self.receive(key, &buffer[..read]);
                    }
                    if read < buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.close(key, true);
                    break;
                }
            }
        }
        self.buffer = buffer;
    }

    /// Gives the session bytes, and does what it asks for.
    pub(super) fn receive(&mut self, key: Key, bytes: &[u8]) {
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        let Some(connection) = self.connections.get(key) else { return };
        let cx = Self::context(&self.site, &self.metrics, self.now, self.phase);
        let effect = connection.session.receive(bytes, &cx, &mut out);
        self.write(key, &out);
        self.scratch = out;
        match effect {
            Effect::None => {}
            Effect::Close => return self.close_when_sent(key),
            Effect::Refuse => return self.linger(key),
            Effect::Page(page) => self.page(key, page),
            Effect::Login { username, password } => self.login(key, &username, &password.0),
            Effect::Publish(batch) => self.publish(key, &batch),
            Effect::Read(command) => self.read_back(key, command),
            Effect::Stream(request) => self.open_stream(key, request),
        }
        self.follow_activity(key);
    }

    /// Closing at once would reset the connection, and the client would never see the refusal.
    fn linger(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        connection.lingers = true;
        connection.deadline = NEVER;
        self.set_deadline(key, self.now.millis() + LINGER);
    }

    /// Sets the deadline that belongs to what the session is in the middle of.
    fn follow_activity(&mut self, key: Key) {
        let now = self.now.millis();
        let Some(connection) = self.connections.get(key) else { return };
        let deadline = match connection.session.activity() {
            Activity::Idle => now + self.bounds.keep_alive_timeout,
            Activity::Arriving(began) => began + self.bounds.request_timeout,
            Activity::Waiting => now + ANSWER_TIMEOUT,
            Activity::Streaming => return,
        };
        self.set_deadline(key, deadline);
    }

    fn login(&mut self, key: Key, username: &str, password: &str) {
        let Some(connection) = self.connections.get(key) else { return };
        connection.pending = Some(Box::new(Pending::Login));
        self.post(self.nodes.accounts, Mail::CheckPassword { tag: tag_of(key), username, password });
    }

    pub(super) fn password_checked(&mut self, tag: u64, token: &str, busy: bool) {
        let expires_in = self.site.token_ttl;
        if busy {
            self.answer(key_of(tag), Err(&Refusal::Busy { retry_after: RETRY_AFTER }));
        } else if token.is_empty() {
            self.metrics.count(Counter::Unauthenticated);
            self.answer(key_of(tag), Err(&Refusal::WrongPassword));
        } else {
            self.answer(key_of(tag), Ok(Reply::Token { access_token: token, expires_in }));
        }
    }

    fn publish(&mut self, key: Key, batch: &protocol::message::Batch) {
        let too_large =
            batch.rows().any(|row| row.topic.len() + row.body.len() + 64 > self.port.max_record());
        if too_large {
            return self.answer(key, Err(&Refusal::TooLarge("one publication is larger than a lane takes")));
        }
        if self.port.waiting_bytes() > self.bounds.waiting_bytes {
            self.metrics.add(Counter::PublishRefused, batch.len() as u64);
            return self.answer(key, Err(&Refusal::Busy { retry_after: RETRY_AFTER }));
        }
        let Some(connection) = self.connections.get(key) else { return };
        connection.pending = Some(Box::new(Pending::Publish(Publishing::new(batch, self.now.mono))));
        for (index, row) in batch.rows().enumerate() {
            let mail = Mail::Publish {
                ticket: tag_of(key),
                row: index as u32,
                kind: row.kind,
                topic: row.topic,
                body: row.body,
            };
            self.post(self.owner_of(row.topic), mail);
        }
    }

    pub(super) fn acked(&mut self, ticket: u64, row: u32, outcome: Result<u64, Failure>) {
        let key = key_of(ticket);
        let Some(connection) = self.connections.get(key) else { return };
        let Some(Pending::Publish(publishing)) = connection.pending.as_deref_mut() else { return };
        match outcome {
            Ok(offset) => publishing.offsets[row as usize] = offset,
            Err(failure) => publishing.failure = publishing.failure.or(Some(failure)),
        }
        publishing.left -= 1;
        if publishing.left > 0 {
            return;
        }
        let (offsets, failure) = (std::mem::take(&mut publishing.offsets), publishing.failure);
        let took = self.now.mono.saturating_sub(publishing.began);
        match failure {
            None => {
                self.metrics.published(Duration::from_nanos(took));
                self.answer(key, Ok(Reply::Accepted { offsets: &offsets }));
            }
            Some(failure) => self.answer(key, Err(&refusal_of(failure))),
        }
    }

    fn read_back(&mut self, key: Key, command: Command) {
        let tag = tag_of(key);
        let (topic, latest) = match &command {
            Command::History { topic, .. } => (topic.clone(), false),
            Command::Latest { topic } => (topic.clone(), true),
            _ => (String::new(), false),
        };
        let Some(connection) = self.connections.get(key) else { return };
        let reading = Reading { topic, latest, rows: Vec::new(), topics: Vec::new() };
        connection.pending = Some(Box::new(Pending::Read(reading)));
        match command {
            Command::Topics { prefix } => self.post(self.nodes.reader, Mail::ReadTopics { tag, prefix }),
            Command::History { topic, from, to, limit } => {
                let mail = Mail::ReadHistory { tag, topic: &topic, from, to, limit };
                self.post(self.nodes.reader, mail);
            }
            Command::Latest { topic } => {
                self.post(self.owner_of(&topic), Mail::Latest { tag, topic: &topic });
            }
            _ => {}
        }
    }

    /// A row of what is being read back; false if this key reads nothing.
    pub(super) fn collect(&mut self, key: Key, item: Item<'_>) -> bool {
        let Some(connection) = self.connections.get(key) else { return false };
        let Some(Pending::Read(reading)) = connection.pending.as_deref_mut() else { return false };
        if reading.latest {
            let topic = std::mem::take(&mut reading.topic);
            self.answer(key, Ok(Reply::Latest(publication_of(&topic, item))));
        } else {
            reading.rows.push(item.into());
        }
        true
    }

    pub(super) fn nothing_latest(&mut self, key: Key) {
        self.answer(key, Err(&Refusal::NotFound("no telemetry is stored for this well")));
    }

    pub(super) fn topic_row(&mut self, tag: u64, topic: &str, offset: u64, time: u64) {
        let Some(connection) = self.connections.get(key_of(tag)) else { return };
        let may_see = connection.session.may_see(topic);
        let Some(Pending::Read(reading)) = connection.pending.as_deref_mut() else { return };
        if may_see {
            reading.topics.push(TopicInfo { topic: topic.into(), offset, time });
        }
    }

    pub(super) fn read_done(&mut self, tag: u64, end: ReadEnd) {
        let key = key_of(tag);
        let Some(connection) = self.connections.get(key) else { return };
        let Some(Pending::Read(reading)) = connection.pending.as_deref_mut() else { return };
        let Reading { topic, rows, topics, .. } = std::mem::replace(
            reading,
            Reading { topic: String::new(), latest: false, rows: Vec::new(), topics: Vec::new() },
        );
        if end == ReadEnd::Failed {
            return self.answer(key, Err(&Refusal::StoreFailed));
        }
        if topic.is_empty() {
            return self.answer(key, Ok(Reply::Topics(&topics)));
        }
        let publications: Vec<Publication<'_>> = rows
            .iter()
            .map(|row| Publication {
                topic: &topic,
                offset: row.offset,
                id: row.id,
                kind: row.kind,
                time: row.time,
                body: &row.body,
            })
            .collect();
        self.answer(key, Ok(Reply::History { topic: &topic, publications: &publications }));
    }

    /// Answers the request in progress, and goes on with what the client has pipelined.
    pub(super) fn answer(&mut self, key: Key, answer: Result<Reply<'_>, &Refusal>) {
        let Some(connection) = self.connections.get(key) else { return };
        connection.pending = None;
        let mut out = Vec::new();
        let cx = Self::context(&self.site, &self.metrics, self.now, self.phase);
        let goes_on = connection.session.answer(answer, &cx, &mut out);
        self.answered(key, &out, goes_on);
    }

    pub(super) fn answered(&mut self, key: Key, out: &[u8], goes_on: bool) {
        self.write(key, out);
        if !goes_on {
            return self.close_when_sent(key);
        }
        self.follow_activity(key);
        // Through the list and not by a call: a client may have pipelined thousands of requests.
        self.to_read.push(key);
    }

    /// Goes on with a connection that has become able to read again.
    pub(super) fn read_on(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        if connection.session.is_reading() && connection.outbox.is_none() {
            self.receive(key, &[]);
        }
        if self.connections.get(key).is_some_and(|connection| connection.unread) {
            self.read(key);
        }
    }

    pub(super) fn deadline_over(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        if connection.closing {
            return;
        }
        if connection.lingers {
            return self.close(key, false);
        }
        if connection.stalled > 0 || connection.closes_when_sent || connection.stream.is_some() {
            return self.stream_deadline_over(key);
        }
        if connection.session.activity() == Activity::Waiting {
            self.answer(key, Err(&Refusal::Busy { retry_after: RETRY_AFTER }));
            return self.close_when_sent(key);
        }
        let mut out = Vec::new();
        let cx = Self::context(&self.site, &self.metrics, self.now, self.phase);
        connection.session.time_out(&cx, &mut out);
        self.write(key, &out);
        self.close_when_sent(key);
    }

    pub(super) fn owner_of(&self, topic: &str) -> usize {
        usize::from(topic::partition(topic)) % self.nodes.shards
    }

    /// Sends a record whose number is bounded by requests and streams in progress.
    pub(super) fn post(&mut self, to: usize, mail: Mail<'_>) {
        mail.encode(&mut self.frame);
        self.port.send(to, &self.frame);
    }
}

/// A publication from its fields on a lane.
pub(super) fn publication_of<'a>(topic: &'a str, item: Item<'a>) -> Publication<'a> {
    let Item { offset, id, kind, time, body } = item;
    Publication { topic, offset, id, kind, time, body }
}

fn refusal_of(failure: Failure) -> Refusal {
    match failure {
        Failure::Busy => Refusal::Busy { retry_after: RETRY_AFTER },
        Failure::Full => Refusal::StoreFull,
        Failure::Store => Refusal::StoreFailed,
        Failure::Topics => Refusal::TooLarge("too many topics; the limit is limits.topics"),
    }
}
