//! Publishes over HTTP at the times of a [`Schedule`], and hears what became of it.
//!
//! Requests go out when they are due and not when the last one was answered: several may be under way on a
//! connection (pipelining, RFC 9112 section 9.3.2), up to a bound. At the bound, or when the system does not give
//! this thread its time, it falls behind; by how much is part of the result, as what is received late because of
//! it counts as late.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;

use crate::check::Sent;
use crate::reading::{Marks, write_row};
use crate::response::Responses;
use crate::schedule::Schedule;
use crate::subscribers::histogram;
use crate::sys::now_ns;

/// Requests under way on one connection, at most.
pub const WINDOW: usize = 64;
/// How long answers may take after the last request, ns.
const PATIENCE_NS: u64 = 10_000_000_000;
/// How long after the end what was due before it is still sent, ns. More than the system ever keeps a thread from
/// running; what is left then is left because the server was too slow.
const LATE_NS: u64 = 1_000_000_000;
/// The longest rest, when there is nothing to do but wait for answers, ns.
const REST_NS: u64 = 100_000_000;

/// What to publish where.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server.
    pub address: SocketAddr,
    /// The Host field.
    pub host: String,
    /// The bearer token; none: no Authorization field.
    pub token: Option<String>,
    /// The well to publish to.
    pub well: String,
    /// Connections to publish on. Each is a source of its own.
    pub connections: u32,
    /// When what is due.
    pub schedule: Schedule,
    /// When it ends: what is due from here on is not sent, ns.
    pub end_ns: u64,
}

/// What became of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Per source, what was sent, and what of it was not accepted (or not answered).
    pub sent: Vec<Sent>,
    /// Publications that were due and not sent, because the publisher was behind.
    pub unsent: u64,
    /// Publications accepted.
    pub accepted: u64,
    /// Requests by the status of their answer.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests that were never answered.
    pub unanswered: u64,
    /// How far behind the schedule a request was sent, at worst, ns.
    pub behind_ns: u64,
    /// From due to 202, µs.
    pub acknowledged: Histogram<u64>,
    /// The first thing that went wrong.
    pub trouble: Option<String>,
}

/// Connects, before anything is due.
///
/// # Errors
/// If the server does not take the connections; the text says why.
pub fn connect(plan: &Plan) -> Result<Vec<TcpStream>, String> {
    let one = || {
        let stream = TcpStream::connect_timeout(&plan.address, Duration::from_secs(10))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    let streams = (0..plan.connections).map(|_| one());
    streams
        .collect::<std::io::Result<_>>()
        .map_err(|error| format!("can't connect to {} to publish: {error}", plan.address))
}

/// Publishes until the end, then waits for the answers that are due.
pub fn run(plan: &Plan, streams: Vec<TcpStream>) -> Outcome {
    let mut publisher = Publisher {
        plan,
        head: head(plan),
        next: 0,
        total: plan.schedule.due_before(plan.end_ns),
        connections: streams.into_iter().map(Connection::new).collect(),
        outcome: Outcome {
            sent: vec![Sent::default(); plan.connections as usize],
            unsent: 0,
            accepted: 0,
            statuses: BTreeMap::new(),
            unanswered: 0,
            behind_ns: 0,
            acknowledged: histogram(),
            trouble: None,
        },
    };
    if let Err(trouble) = publisher.publish() {
        publisher.outcome.trouble.get_or_insert(trouble);
    }
    publisher.finish()
}

struct Publisher<'a> {
    plan: &'a Plan,
    /// A request's head, up to the value of Content-Length.
    head: Vec<u8>,
    /// The next request's index in the schedule.
    next: u64,
    /// How many requests there are.
    total: u64,
    connections: Vec<Connection>,
    outcome: Outcome,
}

struct Connection {
    stream: TcpStream,
    /// Bytes not yet written, and how many of the first ones are.
    out: Vec<u8>,
    written: usize,
    /// Requests not yet answered: when each was due. Each holds one batch of publications.
    under_way: VecDeque<u64>,
    responses: Responses,
    /// The number of the first publication not yet answered.
    answered: u64,
}

impl Publisher<'_> {
    fn publish(&mut self) -> Result<(), String> {
        let mut chunk = vec![0; 64 << 10];
        loop {
            let now = now_ns();
            if now < self.plan.end_ns + LATE_NS && self.next < self.total {
                self.send_due(now);
            } else if self.is_idle() {
                return Ok(());
            } else if now > self.plan.end_ns + PATIENCE_NS {
                return Err("the server does not answer publishers".into());
            }
            for index in 0..self.connections.len() {
                self.connections[index].write()?;
                self.read(index, &mut chunk)?;
            }
            self.rest();
        }
    }

    fn is_idle(&self) -> bool {
        self.connections.iter().all(|connection| connection.under_way.is_empty())
    }

    /// Writes all requests that are due, as long as their connections take them.
    fn send_due(&mut self, now: u64) {
        while self.next < self.total {
            let due = self.plan.schedule.due(self.next);
            let index = (self.next % self.connections.len() as u64) as usize;
            let connection = &mut self.connections[index];
            if due > now || connection.under_way.len() == WINDOW {
                return;
            }
            let sent = &mut self.outcome.sent[index];
            let mut body = Vec::new();
            for _ in 0..self.plan.schedule.batch {
                let marks = Marks { source: index as u32, seq: sent.count, due_ns: due };
                write_row(&self.plan.well, marks, &mut body);
                body.push(b'\n');
                sent.count += 1;
            }
            connection.out.extend_from_slice(&self.head);
            protocol::json::write_u64(body.len() as u64, &mut connection.out);
            connection.out.extend_from_slice(b"\r\n\r\n");
            connection.out.extend_from_slice(&body);
            connection.under_way.push_back(due);
            self.outcome.behind_ns = self.outcome.behind_ns.max(now - due);
            self.next += 1;
        }
    }

    /// Reads the answers that have come.
    fn read(&mut self, index: usize, chunk: &mut [u8]) -> Result<(), String> {
        let connection = &mut self.connections[index];
        match connection.stream.read(chunk) {
            Ok(0) => return Err("the server has closed a publisher's connection".into()),
            Ok(read) => connection.responses.push(&chunk[..read]),
            Err(error) if is_for_later(&error) => return Ok(()),
            Err(error) => return Err(format!("a publisher's connection is broken: {error}")),
        }
        let (batch, now) = (self.plan.schedule.batch, now_ns());
        while let Some((status, body)) =
            connection.responses.next_whole().map_err(|error| error.to_string())?
        {
            let Some(due) = connection.under_way.pop_front() else {
                return Err("the server answers what was not asked".into());
            };
            *self.outcome.statuses.entry(status).or_default() += 1;
            let rows = connection.answered..connection.answered + batch;
            connection.answered = rows.end;
            if status == 202 {
                self.outcome.accepted += batch;
                let micros = now.saturating_sub(due).div_ceil(1000);
                self.outcome.acknowledged.saturating_record(micros);
            } else {
                let text = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
                let trouble = || format!("the server answers a publisher {status}: {text}");
                self.outcome.trouble.get_or_insert_with(trouble);
                self.outcome.sent[index].not_accepted.push(rows);
            }
        }
        Ok(())
    }

    /// Waits until something is due, or can be read or written.
    fn rest(&self) {
        let index = (self.next % self.connections.len() as u64) as usize;
        let is_full = self.connections[index].under_way.len() == WINDOW;
        let rest_ns = match self.next == self.total || is_full {
            true => REST_NS,
            false => {
                let due = self.plan.schedule.due(self.next);
                due.saturating_sub(now_ns()).min(REST_NS)
            }
        };
        let mut waits: Vec<PollFd<'_>> = self.connections.iter().map(Connection::wait).collect();
        let timeout = Timespec { tv_sec: 0, tv_nsec: rest_ns as i64 };
        match poll(&mut waits, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => std::thread::sleep(Duration::from_nanos(rest_ns)),
        }
    }

    fn finish(mut self) -> Outcome {
        self.outcome.unsent = (self.total - self.next) * self.plan.schedule.batch;
        for (connection, sent) in self.connections.iter().zip(&mut self.outcome.sent) {
            self.outcome.unanswered += connection.under_way.len() as u64;
            if connection.answered < sent.count {
                sent.not_accepted.push(connection.answered..sent.count);
            }
        }
        self.outcome
    }
}

impl Connection {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            out: Vec::new(),
            written: 0,
            under_way: VecDeque::new(),
            responses: Responses::default(),
            answered: 0,
        }
    }

    fn write(&mut self) -> Result<(), String> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(written) => self.written += written,
                Err(error) if is_for_later(&error) => return Ok(()),
                Err(error) => return Err(format!("a publisher's connection is broken: {error}")),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    fn wait(&self) -> PollFd<'_> {
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, !self.out.is_empty());
        PollFd::new(&self.stream, flags)
    }
}

fn is_for_later(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn head(plan: &Plan) -> Vec<u8> {
    let content_type = match plan.schedule.batch {
        1 => "application/json",
        _ => "application/x-ndjson",
    };
    let authorization = match &plan.token {
        Some(token) => format!("Authorization: Bearer {token}\r\n"),
        None => String::new(),
    };
    format!(
        "POST /api/v1/telemetry/ingest HTTP/1.1\r\nHost: {}\r\n{authorization}Content-Type: {content_type}\r\n\
         Content-Length: ",
        plan.host
    )
    .into_bytes()
}
