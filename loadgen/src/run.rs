//! One run: opens the streams, publishes, watches, and makes the report.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use crate::check::{Faults, Sent, Start};
use crate::process::{self, SoftirqThreads};
use crate::publisher::{self, Outcome};
use crate::report::{Idle, Latency, Publishing, Report, Setup, Streams, Traffic};
use crate::schedule::Schedule;
use crate::snapshot::{Memory, Snapshot, sum};
use crate::subscribers::{self, Board, Control, Findings};
use crate::sys;

/// How long opening streams may stand still, ns.
const OPENING_PATIENCE_NS: u64 = 10_000_000_000;
/// How long publications that are still missing at the end are waited for while none comes, ns.
const ARRIVAL_PATIENCE_NS: u64 = 3_000_000_000;
/// From the last stream opened to the first publication, so that the server is at rest.
const SETTLE: Duration = Duration::from_millis(500);
/// How often progress is looked at.
const TICK: Duration = Duration::from_millis(50);
/// Descriptors beside those of streams and publishers.
const OWN_DESCRIPTORS: u64 = 64;
const SECOND_NS: u64 = 1_000_000_000;

/// A server: `http://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where to connect to.
    pub address: SocketAddr,
    /// The Host field.
    pub host: String,
}

/// What is done once the streams are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Publish so many a second, so many to a request, on so many connections.
    Publish {
        /// Publications per second, at least 1.
        rate: u64,
        /// Publications per request, at least 1.
        batch: u64,
        /// Connections, at least 1.
        publishers: u32,
    },
    /// Somebody else publishes.
    Watch,
    /// Nothing is published; the streams are held.
    Idle,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The server.
    pub target: Target,
    /// Its access token.
    pub token: Option<String>,
    /// The well to publish to and subscribe to.
    pub well: String,
    /// Streams, at least 1.
    pub connections: usize,
    /// Of these, verified: at least 1 unless idle, at most all.
    pub verify: usize,
    /// What is done with them.
    pub load: Load,
    /// Before measuring, s.
    pub warmup: u64,
    /// Measuring, or holding, s.
    pub seconds: u64,
    /// Threads that receive, at least 1.
    pub cores: usize,
    /// CPUs to stay on; empty: any.
    pub pin: Vec<usize>,
    /// The server's process, if it is on this machine.
    pub server_pid: Option<u32>,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many of all streams are opened or refused.
    Opening(u64, u64),
    /// So many of all milliseconds are over.
    Running(u64, u64),
}

/// Runs, and tells how far it is from time to time.
///
/// # Errors
/// If nothing could be measured; the text says what to do.
pub fn run(options: &Options, mut on_step: impl FnMut(Step)) -> Result<Report, String> {
    let publishers = match options.load {
        Load::Publish { publishers, .. } => u64::from(publishers),
        Load::Watch | Load::Idle => 0,
    };
    sys::allow_descriptors(options.connections as u64 + publishers + OWN_DESCRIPTORS)?;
    if !options.pin.is_empty() {
        sys::pin(&options.pin)?;
    }
    let before = Memory::read(options)?;
    let control = Control::default();
    let boards: Vec<Board> = (0..options.cores).map(|_| Board::default()).collect();
    std::thread::scope(|scope| {
        let stop = StopOnDrop(&control);
        let plans = plans(options);
        let receivers: Vec<Receiver<'_>> = plans
            .into_iter()
            .zip(&boards)
            .map(|(plan, board)| {
                let control = &control;
                scope.spawn(move || subscribers::run(plan, control, board))
            })
            .collect();
        let mut crew = Crew { options, control: &control, boards: &boards, on_step: &mut on_step };
        let opened_per_second = crew.open(&receivers);
        std::thread::sleep(SETTLE);
        let seen = match (crew.opened(), options.load) {
            (0, _) => Seen::default(),
            (_, Load::Idle) => crew.hold(before)?,
            (_, _) => crew.measure(scope)?,
        };
        drop(stop);
        let findings = receivers
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a receiving thread panicked")?)
            .collect::<Result<Vec<Findings>, String>>()?;
        crew.report(findings, seen, opened_per_second)
    })
}

type Receiver<'scope> = ScopedJoinHandle<'scope, Result<Findings, String>>;

struct StopOnDrop<'a>(&'a Control);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Relaxed);
    }
}

/// What the main thread does while the receivers run.
struct Crew<'a, F> {
    options: &'a Options,
    control: &'a Control,
    boards: &'a [Board],
    on_step: &'a mut F,
}

/// What it has seen.
#[derive(Default)]
struct Seen {
    outcome: Option<Outcome>,
    traffic: Option<Traffic>,
    idle: Option<Idle>,
}

impl<F: FnMut(Step)> Crew<'_, F> {
    /// Waits until all streams are opened or refused, or it goes no further. Returns how many a second.
    fn open(&mut self, receivers: &[Receiver<'_>]) -> f64 {
        let began = sys::now_ns();
        let (mut done, mut moved) = (0, began);
        let all = self.options.connections as u64;
        while done < all && sys::now_ns() < moved + OPENING_PATIENCE_NS {
            if receivers.iter().any(ScopedJoinHandle::is_finished) {
                break;
            }
            std::thread::sleep(TICK.min(Duration::from_millis(5)));
            let now_done = self.opened() + self.sum(|board| &board.refused);
            if now_done > done {
                (done, moved) = (now_done, sys::now_ns());
            }
            (self.on_step)(Step::Opening(done, all));
        }
        self.opened() as f64 * 1e9 / (moved - began).max(1) as f64
    }

    fn hold(&mut self, before: Option<Memory>) -> Result<Seen, String> {
        let open = Memory::read(self.options)?;
        let from = sys::now_ns();
        self.run_until(from, from + self.options.seconds * SECOND_NS);
        let held = Memory::read(self.options)?;
        let idle = (|| {
            let (before, open, held) = (before?, open?, held?);
            Some(Idle {
                resident_before: before.resident,
                resident_open: open.resident,
                resident_held: held.resident,
                slab_growth: before.slab.zip(held.slab).map(|(before, held)| held as i64 - before as i64),
            })
        })();
        Ok(Seen { idle, ..Seen::default() })
    }

    fn measure<'scope>(&mut self, scope: &'scope Scope<'scope, '_>) -> Result<Seen, String> {
        let Options { warmup, seconds, .. } = *self.options;
        let softirq = SoftirqThreads::find();
        let start = sys::now_ns() + 2 * TICK.as_nanos() as u64;
        let from = start + warmup * SECOND_NS;
        let to = from + seconds * SECOND_NS;
        self.control.from_ns.store(from, Relaxed);
        self.control.to_ns.store(to, Relaxed);
        let publisher = match publisher_plan(self.options, start, to) {
            None => None,
            Some(plan) => {
                let streams = publisher::connect(&plan)?;
                Some(scope.spawn(move || publisher::run(&plan, streams)))
            }
        };
        self.run_until(start, from);
        let first = Snapshot::take(self.options, self.boards, &softirq)?;
        self.run_until(start, to);
        let last = Snapshot::take(self.options, self.boards, &softirq)?;
        let outcome =
            publisher.map(|publisher| publisher.join().map_err(|_| "the publisher panicked")).transpose()?;
        if let Some(outcome) = &outcome {
            self.wait_for(outcome.accepted * self.options.verify as u64);
        }
        Ok(Seen { outcome, traffic: Some(last.since(&first, self.options)), idle: None })
    }

    fn run_until(&mut self, start: u64, end: u64) {
        let millis = |ns: u64| ns / 1_000_000;
        let target = match self.options.load {
            Load::Idle => end,
            _ => self.control.to_ns.load(Relaxed),
        };
        loop {
            let now = sys::now_ns();
            if now >= end {
                return;
            }
            (self.on_step)(Step::Running(millis(now.saturating_sub(start)), millis(target - start)));
            std::thread::sleep(TICK.min(Duration::from_nanos(end - now)));
        }
    }

    /// Waits until the verified streams have so many publications, or no more come.
    fn wait_for(&self, expected: u64) {
        let (mut seen, mut moved) = (0, sys::now_ns());
        while seen < expected && sys::now_ns() < moved + ARRIVAL_PATIENCE_NS {
            std::thread::sleep(TICK);
            let now_seen = self.sum(|board| &board.publications);
            if now_seen > seen {
                (seen, moved) = (now_seen, sys::now_ns());
            }
        }
    }

    fn opened(&self) -> u64 {
        self.sum(|board| &board.opened)
    }

    fn sum(&self, counter: fn(&Board) -> &std::sync::atomic::AtomicU64) -> u64 {
        sum(self.boards, counter)
    }

    fn report(&self, findings: Vec<Findings>, seen: Seen, opened_per_second: f64) -> Result<Report, String> {
        let mut latency = subscribers::histogram();
        let mut faults = Faults::default();
        let mut troubles = BTreeMap::new();
        let sent: Option<&[Sent]> = seen.outcome.as_ref().map(|outcome| &*outcome.sent);
        for found in findings {
            latency.add(&found.latency).map_err(|error| error.to_string())?;
            for checker in found.checkers {
                faults += checker.finish(sent);
            }
            for (trouble, count) in found.troubles {
                *troubles.entry(trouble).or_default() += count;
            }
        }
        let opened = self.opened();
        if opened == 0 {
            let first = troubles.into_keys().next();
            return Err(first.unwrap_or_else(|| "the server takes connections, and answers nothing".into()));
        }
        let traffic = seen.traffic.map(|traffic| Traffic { latency: Latency::of(&latency), ..traffic });
        Ok(Report {
            setup: setup(self.options),
            machine: process::machine(),
            streams: Streams {
                opened,
                connect_failures: self.options.connections as u64 - opened,
                disconnects: self.sum(|board| &board.ended),
                opened_per_second,
                troubles,
                faults,
            },
            publishing: seen.outcome.as_ref().map(publishing),
            traffic,
            idle: seen.idle,
        })
    }
}

/// Each receiving thread's share.
fn plans(options: &Options) -> Vec<subscribers::Plan> {
    let share =
        |total: usize, index: usize| total * (index + 1) / options.cores - total * index / options.cores;
    let request = stream_request(options);
    let start = match options.load {
        Load::Publish { .. } => Start::Zero,
        Load::Watch | Load::Idle => Start::FirstSeen,
    };
    let plan = |index| subscribers::Plan {
        address: options.target.address,
        request: request.clone(),
        connections: share(options.connections, index),
        verify: share(options.verify, index),
        start,
    };
    (0..options.cores).map(plan).collect()
}

fn stream_request(options: &Options) -> Vec<u8> {
    let mut request = b"GET /api/v1/sse/stream/".to_vec();
    protocol::percent::encode_level(&options.well, &mut request);
    if let Some(token) = &options.token {
        request.extend_from_slice(b"?token=");
        protocol::percent::encode_level(token, &mut request);
    }
    let fields = format!(" HTTP/1.1\r\nHost: {}\r\nAccept: text/event-stream\r\n\r\n", options.target.host);
    request.extend_from_slice(fields.as_bytes());
    request
}

fn publisher_plan(options: &Options, start_ns: u64, end_ns: u64) -> Option<publisher::Plan> {
    let Load::Publish { rate, batch, publishers } = options.load else {
        return None;
    };
    Some(publisher::Plan {
        address: options.target.address,
        host: options.target.host.clone(),
        token: options.token.clone(),
        well: options.well.clone(),
        connections: publishers,
        schedule: Schedule { start_ns, rate, batch },
        end_ns,
    })
}

fn setup(options: &Options) -> Setup {
    let (rate, batch, publishers) = match options.load {
        Load::Publish { rate, batch, publishers } => (rate, batch, publishers),
        Load::Watch | Load::Idle => (0, 0, 0),
    };
    Setup {
        version: env!("CARGO_PKG_VERSION").into(),
        url: format!("http://{}", options.target.host),
        well: options.well.clone(),
        connections: options.connections as u64,
        verify: options.verify as u64,
        rate,
        batch,
        publishers,
        warmup_s: options.warmup,
        seconds: options.seconds,
        cores: options.cores,
        pin: options.pin.clone(),
    }
}

fn publishing(outcome: &Outcome) -> Publishing {
    Publishing {
        sent: outcome.sent.iter().map(|sent| sent.count).sum(),
        accepted: outcome.accepted,
        unsent: outcome.unsent,
        statuses: outcome.statuses.clone(),
        unanswered: outcome.unanswered,
        behind_ms: outcome.behind_ns as f64 / 1e6,
        acknowledged: Latency::of(&outcome.acknowledged),
        trouble: outcome.trouble.clone(),
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        let host =
            url.strip_prefix("http://").ok_or("a URL like http://127.0.0.1:8000 is needed (no https)")?;
        let host = host.strip_suffix('/').unwrap_or(host);
        if !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte)) {
            return Err("only host and port are needed, no path".into());
        }
        let with_port = match host.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
            _ => format!("{host}:80"),
        };
        let mut addresses = with_port.to_socket_addrs().map_err(|error| format!("{host}: {error}"))?;
        let address = addresses.next().ok_or_else(|| format!("{host} has no address"))?;
        Ok(Self { address, host: host.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(connections: usize, verify: usize, cores: usize) -> Options {
        Options {
            target: "http://127.0.0.1:8000".parse().unwrap(),
            token: Some("a.b-c_d".into()),
            well: "WELL 1".into(),
            connections,
            verify,
            load: Load::Watch,
            warmup: 0,
            seconds: 1,
            cores,
            pin: vec![],
            server_pid: None,
        }
    }

    #[test]
    fn urls_name_a_host_and_a_port() {
        for (url, address) in [
            ("http://127.0.0.1:8000", "127.0.0.1:8000"),
            ("http://127.0.0.1:8000/", "127.0.0.1:8000"),
            ("http://127.0.0.1", "127.0.0.1:80"),
            ("http://[::1]:9", "[::1]:9"),
            ("http://[::1]", "[::1]:80"),
        ] {
            let target: Target = url.parse().unwrap();
            assert_eq!(target.address, address.parse().unwrap(), "{url}");
        }
        for url in ["https://127.0.0.1", "127.0.0.1:80", "http://127.0.0.1/x", "http://a b", "http://"] {
            assert!(url.parse::<Target>().is_err(), "{url}");
        }
    }

    #[test]
    fn threads_share_all_streams() {
        for (connections, verify, cores) in [(5000, 50, 1), (10, 1, 3), (7, 7, 2), (2, 1, 4)] {
            let plans = plans(&options(connections, verify, cores));
            assert_eq!(plans.len(), cores);
            assert_eq!(plans.iter().map(|plan| plan.connections).sum::<usize>(), connections);
            assert_eq!(plans.iter().map(|plan| plan.verify).sum::<usize>(), verify);
            assert!(plans.iter().all(|plan| plan.verify <= plan.connections));
        }
    }

    #[test]
    fn the_request_carries_well_and_token() {
        let request = String::from_utf8(stream_request(&options(1, 1, 1))).unwrap();
        let line = "GET /api/v1/sse/stream/WELL%201?token=a.b-c_d HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n";
        assert!(request.starts_with(line) && request.ends_with("\r\n\r\n"), "{request}");
    }
}
