//! The reader: takes one question at a time, reads a slice of its answer, and sends it as the lane allows.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use rusqlite::Connection;

use super::outbox::Outbox;
use super::question::Question;
use super::writer::Trouble;
use super::{Options, StoreMetrics};
use crate::mail::Mail;
use crate::mesh::{Inbox, Port};

/// Longest sleep of an idle reader, so that a stop is seen.
const IDLE: Duration = Duration::from_millis(100);
/// Sleep while a lane is full, or the database is held by somebody.
const STALLED: Duration = Duration::from_millis(1);
/// Sleeps in a row, without a record sent, after which a question is given up: 5 s of our own running time, so that a
/// process that was stopped and goes on gives nothing up.
const PATIENCE: u32 = 5000;

/// The reading half of the store.
pub struct Reader {
    pub(super) db: Connection,
    shards: usize,
    /// The lane to look at first.
    next: usize,
    question: Option<Question>,
    /// All of the answer is in `outbox`.
    answered: bool,
    outbox: Outbox,
    /// The last reading failed: the next failure need not be logged.
    failing: bool,
    inbox: Inbox,
    metrics: Arc<StoreMetrics>,
    _lock: Option<Arc<File>>,
}

impl Reader {
    pub(super) fn new(
        db: Connection,
        options: &Options,
        metrics: Arc<StoreMetrics>,
        lock: Option<Arc<File>>,
    ) -> Self {
        Self {
            db,
            shards: options.shards,
            next: 0,
            question: None,
            answered: false,
            outbox: Outbox::new(options.max_record, Arc::clone(&metrics)),
            failing: false,
            inbox: Inbox::default(),
            metrics,
            _lock: lock,
        }
    }

    /// The store's counters.
    pub fn metrics(&self) -> Arc<StoreMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Whether a question is in progress: a turn that did nothing then waits for a lane, or the database.
    pub fn is_busy(&self) -> bool {
        self.question.is_some()
    }

    /// Sends what is left of a slice, and reads the next one if that went through. Never sleeps, and holds no
    /// transaction when it returns. Returns how much it did: records taken and sent, and slices read.
    pub fn turn(&mut self, port: &mut Port) -> usize {
        let mut done = self.send(port);
        if self.outbox.is_empty() {
            done += self.take(port);
            done += self.read();
            done += self.send(port);
        }
        port.flush();
        done
    }

    /// The reader's thread: turns until `stop`. What is being answered then is given up.
    pub fn run(mut self, mut port: Port, stop: Arc<AtomicBool>) {
        let mut stalled = 0;
        while !stop.load(Relaxed) {
            if self.turn(&mut port) > 0 {
                stalled = 0;
            } else if self.is_busy() {
                thread::sleep(STALLED);
                stalled += 1;
                if stalled >= PATIENCE {
                    self.give_up(&mut port);
                    stalled = 0;
                }
            } else {
                port.wait(Some(IDLE));
            }
        }
        if self.is_busy() {
            self.give_up(&mut port);
        }
    }

    fn take(&mut self, port: &mut Port) -> usize {
        if self.question.is_some() {
            return 0;
        }
        self.inbox.clear();
        for turn in 0..self.shards {
            let lane = (self.next + turn) % self.shards;
            port.receive(lane, 1, &mut self.inbox);
            if !self.inbox.is_empty() {
                self.next = lane + 1;
                break;
            }
        }
        let Some((from, record)) = self.inbox.records().next() else { return 0 };
        let question = Mail::decode(record).and_then(|mail| Question::new(from, mail));
        match question.filter(|question| question.node < self.shards) {
            Some(question) => {
                self.outbox.begin();
                self.question = Some(question);
                self.answered = false;
            }
            None => _ = self.metrics.malformed.fetch_add(1, Relaxed),
        }
        1
    }

    fn read(&mut self) -> usize {
        let Some(question) = self.question.as_mut().filter(|_| !self.answered) else { return 0 };
        match question.advance(&self.db, &mut self.outbox) {
            Ok(answered) => {
                self.answered = answered;
                self.failing = false;
            }
            Err(error) if Trouble::of(&error) == Trouble::Passing => return 0,
            Err(error) => {
                self.metrics.read_failures.fetch_add(1, Relaxed);
                if !self.failing {
                    tracing::error!(%error, "the store can't be read");
                }
                self.failing = true;
                let end = question.failed(self.outbox.reached());
                self.outbox.put(end, 0);
                self.answered = true;
            }
        }
        1
    }

    fn send(&mut self, port: &mut Port) -> usize {
        let Some(question) = &self.question else { return 0 };
        let sent = self.outbox.send(question.node, port);
        if self.answered && self.outbox.is_empty() {
            self.question = None;
            self.metrics.questions.fetch_add(1, Relaxed);
        }
        sent
    }

    /// Drops the rest of an answer. Its end is sent if that needs no more than one record kept for that lane.
    pub(super) fn give_up(&mut self, port: &mut Port) {
        let Some(question) = self.question.take() else { return };
        self.metrics.abandoned.fetch_add(1, Relaxed);
        tracing::warn!(node = question.node, "a question to the store is given up: no one takes the answer");
        if !port.is_congested(question.node) {
            let mut end = Vec::new();
            question.failed(self.outbox.sent()).encode(&mut end);
            port.send(question.node, &end);
        }
        self.outbox.begin();
        port.flush();
    }
}
