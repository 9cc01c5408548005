//! The least that a server of one topic can do, one thread with the publisher inside: each publication is
//! appended to a log once, each subscriber has a cursor, and one send carries all from the cursor to the head.
//!
//! It speaks the same events as the server, so that the same load generator judges both: `gusher sse
//! --no-publish`. What the server costs above it is routing, timers, parsing, and being a server.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use loadgen::reading::{self, Marks};
use loadgen::schedule::Schedule;
use loadgen::sys;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::time::Timespec;
use serde::{Deserialize, Serialize};

/// Bytes of the log. A subscriber that is further behind is dropped and counted.
const LOG_BYTES: usize = 64 << 20;
/// Bytes of one send, at most.
const SEND_BYTES: usize = 256 << 10;
/// Sends between two looks at the clock.
const SLICE: usize = 64;
/// How long the next subscriber may let us wait, s.
const PATIENCE_S: i64 = 60;
/// After the last subscriber has come, until something is published.
const SETTLE: Duration = Duration::from_secs(1);
/// Publishing before measuring begins, ns.
const WARMUP_NS: u64 = 2_000_000_000;
/// Descriptors beside those of the subscribers.
const OWN_DESCRIPTORS: u64 = 64;
const SECOND_NS: u64 = 1_000_000_000;

/// What to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    /// Subscribers to wait for, at least 1.
    pub connections: usize,
    /// Publications per second, at least 1.
    pub rate: u64,
    /// How long to publish after warming up, s, unless a subscriber leaves before that.
    pub seconds: u64,
}

/// What it cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WireLog {
    /// What was asked for.
    pub options: Options,
    /// How long was measured.
    pub elapsed_s: f64,
    /// Publications per second.
    pub publications_per_second: f64,
    /// Publications delivered per second, all subscribers.
    pub deliveries_per_second: f64,
    /// Publications per send.
    pub joined: f64,
    /// CPU time per send, µs.
    pub us_per_send: f64,
    /// CPU time per delivery, µs.
    pub us_per_delivery: f64,
    /// Subscribers dropped because they were further behind than the log is long.
    pub overrun: u64,
}

/// Waits for the subscribers, publishes, and tells what that cost.
///
/// # Errors
/// If the subscribers don't come, or leave before anything is measured.
pub fn serve(listener: &TcpListener, options: &Options) -> Result<WireLog, String> {
    sys::allow_descriptors(options.connections as u64 + OWN_DESCRIPTORS)?;
    let mut sockets = Vec::with_capacity(options.connections);
    while sockets.len() < options.connections {
        let count = sockets.len();
        let socket = admit(listener)
            .map_err(|error| format!("after {count} of {} subscribers: {error}", options.connections))?;
        sockets.push(Some(socket));
    }
    std::thread::sleep(SETTLE);
    Server::new(sockets, options).run()
}

/// Accepts one subscriber, whatever he asks for.
fn admit(listener: &TcpListener) -> std::io::Result<TcpStream> {
    let timeout = Timespec { tv_sec: PATIENCE_S, tv_nsec: 0 };
    if poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&timeout))? == 0 {
        return Err(std::io::Error::other("no more came for a minute"));
    }
    let (mut socket, _) = listener.accept()?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut request = Vec::new();
    let mut chunk = [0; 4096];
    while !request.ends_with(b"\r\n\r\n") {
        match socket.read(&mut chunk)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => request.extend_from_slice(&chunk[..read]),
        }
    }
    let mut head = Vec::new();
    protocol::http::stream_head([], &mut head);
    socket.write_all(&head)?;
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

struct Server<'a> {
    options: &'a Options,
    schedule: Schedule,
    log: Log,
    /// Publications so far.
    published: u64,
    frame: Vec<u8>,
    subscribers: Vec<Subscriber>,
    tally: Tally,
}

struct Subscriber {
    /// None: dropped.
    socket: Option<TcpStream>,
    cursor: u64,
}

/// What counts up.
#[derive(Clone, Copy, Default)]
struct Tally {
    at_ns: u64,
    cpu_ns: u64,
    published: u64,
    log_bytes: u64,
    sends: u64,
    sent_bytes: u64,
    overrun: u64,
}

impl<'a> Server<'a> {
    fn new(sockets: Vec<Option<TcpStream>>, options: &'a Options) -> Self {
        Self {
            options,
            schedule: Schedule { start_ns: sys::now_ns(), rate: options.rate, batch: 1 },
            log: Log::new(LOG_BYTES),
            published: 0,
            frame: Vec::new(),
            subscribers: sockets.into_iter().map(|socket| Subscriber { socket, cursor: 0 }).collect(),
            tally: Tally::default(),
        }
    }

    fn run(mut self) -> Result<WireLog, String> {
        let measured_from = self.schedule.start_ns + WARMUP_NS;
        let end = measured_from + self.options.seconds * SECOND_NS;
        let mut first = None;
        let mut next = 0;
        // Subscribers looked at in a row that had everything already.
        let mut at_rest = 0;
        loop {
            let now = sys::now_ns();
            if now >= measured_from && first.is_none() {
                first = Some(self.tally_at(now));
            }
            if now >= end {
                break;
            }
            at_rest = if self.publish(now) { 0 } else { at_rest };
            if at_rest >= self.subscribers.len() {
                let due = self.schedule.due(self.published).min(end);
                std::thread::sleep(Duration::from_nanos(due.saturating_sub(now)));
                continue;
            }
            match self.flush(&mut next) {
                Ok(true) => at_rest = 0,
                Ok(false) => at_rest += SLICE,
                // The judge has gone: what is measured is measured.
                Err(_) => break,
            }
        }
        let last = self.tally_at(sys::now_ns());
        let first = first.ok_or("a subscriber left before anything was measured")?;
        Ok(self.result(&first, &last))
    }

    /// Appends what is due; whether anything was.
    fn publish(&mut self, now: u64) -> bool {
        let due = self.schedule.due_before(now);
        let any = self.published < due;
        while self.published < due {
            self.frame.clear();
            let due_ns = self.schedule.due(self.published);
            write_frame(self.published, due_ns, &mut self.frame);
            self.log.append(&self.frame);
            self.published += 1;
        }
        any
    }

    /// Sends to the next slice of subscribers; whether there was anything to send.
    fn flush(&mut self, next: &mut usize) -> Result<bool, Errno> {
        let mut any = false;
        for _ in 0..SLICE {
            let subscriber = &mut self.subscribers[*next];
            *next = (*next + 1) % self.options.connections;
            let Some(socket) = &subscriber.socket else {
                continue;
            };
            if self.log.is_lost(subscriber.cursor) {
                subscriber.socket = None;
                self.tally.overrun += 1;
                continue;
            }
            let new = self.log.since(subscriber.cursor, SEND_BYTES);
            if new.is_empty() {
                continue;
            }
            any = true;
            self.tally.sends += 1;
            match rustix::net::send(socket, new, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    subscriber.cursor += sent as u64;
                    self.tally.sent_bytes += sent as u64;
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(any)
    }

    fn tally_at(&self, at_ns: u64) -> Tally {
        Tally {
            at_ns,
            cpu_ns: sys::thread_cpu_ns(),
            published: self.published,
            log_bytes: self.log.head,
            ..self.tally
        }
    }

    fn result(&self, first: &Tally, last: &Tally) -> WireLog {
        let elapsed_s = (last.at_ns - first.at_ns) as f64 / 1e9;
        let published = (last.published - first.published) as f64;
        let frame_bytes = (last.log_bytes - first.log_bytes) as f64 / published;
        let deliveries = (last.sent_bytes - first.sent_bytes) as f64 / frame_bytes;
        let sends = (last.sends - first.sends) as f64;
        let cpu_us = (last.cpu_ns - first.cpu_ns) as f64 / 1e3;
        WireLog {
            options: self.options.clone(),
            elapsed_s,
            publications_per_second: published / elapsed_s,
            deliveries_per_second: deliveries / elapsed_s,
            joined: deliveries / sends,
            us_per_send: cpu_us / sends,
            us_per_delivery: cpu_us / deliveries,
            overrun: last.overrun,
        }
    }
}

/// One publication as the server frames it.
fn write_frame(seq: u64, due_ns: u64, out: &mut Vec<u8>) {
    let mut data = b"{\"event\":\"telemetry_update\",\"timestamp\":\"2025-11-20T10:30:00.000Z\",\
                     \"well_id\":\"WELL-001\",\"data\":{\"telemetry_id\":"
        .to_vec();
    protocol::json::write_u64(seq + 1, &mut data);
    data.extend_from_slice(b",\"timestamp\":\"2025-11-20T10:30:00.000Z\",");
    let source = 0;
    reading::write_fields(Marks { source, seq, due_ns }, &mut data);
    data.extend_from_slice(b"}}");
    protocol::sse::event(out, Some(seq + 1), "telemetry_update", &data);
}

/// The last bytes of an endless stream, in a ring.
struct Log {
    bytes: Vec<u8>,
    /// Bytes ever appended.
    head: u64,
}

impl Log {
    fn new(capacity: usize) -> Self {
        Self { bytes: vec![0; capacity], head: 0 }
    }

    fn append(&mut self, bytes: &[u8]) {
        let at = self.place(self.head);
        let fits = bytes.len().min(self.bytes.len() - at);
        let (first, rest) = bytes.split_at(fits);
        self.bytes[at..at + fits].copy_from_slice(first);
        self.bytes[..rest.len()].copy_from_slice(rest);
        self.head += bytes.len() as u64;
    }

    /// What follows `cursor`: contiguous, so perhaps not all, and at most `max`.
    fn since(&self, cursor: u64, max: usize) -> &[u8] {
        let at = self.place(cursor);
        let length = (self.head - cursor).min(max as u64) as usize;
        &self.bytes[at..(at + length).min(self.bytes.len())]
    }

    /// Whether what follows `cursor` is overwritten.
    fn is_lost(&self, cursor: u64) -> bool {
        self.head - cursor > self.bytes.len() as u64
    }

    fn place(&self, position: u64) -> usize {
        (position % self.bytes.len() as u64) as usize
    }
}

impl WireLog {
    /// The line for people.
    pub fn line(&self) -> String {
        format!(
            "{} publications/s, {} connections: {:.0} deliveries/s, {:.1} joined, {:.2} us/send, {:.3} us/delivery, \
             {} overrun\n",
            self.options.rate,
            self.options.connections,
            self.deliveries_per_second,
            self.joined,
            self.us_per_send,
            self.us_per_delivery,
            self.overrun
        )
    }
}

#[cfg(test)]
mod tests {
    use loadgen::check::Faults;
    use loadgen::run::{self, Load};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_reader_gets_the_stream_or_is_told_it_is_lost(
            steps in prop::collection::vec((0_usize..30, 0_usize..40), 1..50),
        ) {
            let mut log = Log::new(64);
            let mut stream = Vec::new();
            let mut cursor = 0;
            for (appended, max) in steps {
                let bytes: Vec<u8> = (0..appended).map(|n| (stream.len() + n) as u8).collect();
                log.append(&bytes);
                stream.extend(bytes);
                let behind = stream.len() - cursor;
                prop_assert_eq!(log.is_lost(cursor as u64), behind > 64);
                if behind > 64 {
                    cursor = stream.len();
                }
                let new = log.since(cursor as u64, max);
                prop_assert_eq!(new, &stream[cursor..cursor + new.len()]);
                prop_assert!(new.len() <= max);
                prop_assert_eq!(new.is_empty(), cursor == stream.len() || max == 0);
                cursor += new.len();
            }
        }
    }

    #[test]
    fn the_load_generator_finds_nothing_wrong_with_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let options = Options { connections: 20, rate: 500, seconds: 30 };
        let server = std::thread::spawn(move || serve(&listener, &options));
        let report = run::run(
            &run::Options {
                target: url.parse().unwrap(),
                token: None,
                well: "WELL-001".into(),
                connections: 20,
                verify: 5,
                load: Load::Watch,
                warmup: 3,
                seconds: 1,
                cores: 1,
                pin: vec![],
                server_pid: None,
            },
            |_| {},
        )
        .unwrap();
        assert_eq!(report.problems(), Vec::<String>::new());
        assert_eq!(report.streams.faults, Faults::default());
        assert!(report.traffic.unwrap().verified_deliveries > 0);
        let result = server.join().unwrap().unwrap();
        assert!(result.joined >= 1.0 && result.us_per_delivery > 0.0, "{result:?}");
        assert_eq!(result.overrun, 0);
    }
}
