//! What a run has found: for people, and as JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::check::Faults;

/// Above this share of its CPUs the generator may be what is measured.
pub const BUSY: f64 = 0.9;
/// Above this many CPUs others disturb what is measured.
pub const DISTURBED: f64 = 0.1;
/// A higher p99 than this, ms, is no delivery in real time, however complete.
pub const SLOW_MS: f64 = 1000.0;

/// All of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// What was asked for.
    pub setup: Setup,
    /// Kernel and CPUs.
    pub machine: String,
    /// The streams.
    pub streams: Streams,
    /// Publishing; none if somebody else did.
    pub publishing: Option<Publishing>,
    /// What was delivered in the measured time; none if the streams were only held.
    pub traffic: Option<Traffic>,
    /// What holding the streams costs; none if something was published, or no server process is known.
    pub idle: Option<Idle>,
}

/// What was asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    /// Of the generator.
    pub version: String,
    /// The server.
    pub url: String,
    /// The well that is published to and subscribed to.
    pub well: String,
    /// Streams.
    pub connections: u64,
    /// Of these, verified.
    pub verify: u64,
    /// Publications per second; 0: nothing is published.
    pub rate: u64,
    /// Publications per request.
    pub batch: u64,
    /// Connections that publish.
    pub publishers: u32,
    /// Before the measured time, s.
    pub warmup_s: u64,
    /// The measured time, s.
    pub seconds: u64,
    /// Threads that receive.
    pub cores: usize,
    /// CPUs that may be used; empty: all.
    pub pin: Vec<usize>,
}

/// What became of the streams.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Streams {
    /// Opened: answered 200.
    pub opened: u64,
    /// Not opened.
    pub connect_failures: u64,
    /// Ended before the run did.
    pub disconnects: u64,
    /// Opened per second.
    pub opened_per_second: f64,
    /// Why the latter two, and how often.
    pub troubles: BTreeMap<String, u64>,
    /// What was wrong on the verified streams, over the whole run.
    pub faults: Faults,
}

/// What became of the publications, over the whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Publishing {
    /// Sent.
    pub sent: u64,
    /// Answered 202.
    pub accepted: u64,
    /// Due, but not sent: behind at the end.
    pub unsent: u64,
    /// Requests by the status of the answer.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests without answer.
    pub unanswered: u64,
    /// How far behind its due time a request was sent at worst, ms.
    pub behind_ms: f64,
    /// From due to 202.
    pub acknowledged: Latency,
    /// The first thing that went wrong.
    pub trouble: Option<String>,
}

/// What was delivered in the measured time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Traffic {
    /// How long was measured.
    pub elapsed_s: f64,
    /// Publications received, all streams.
    pub deliveries: u64,
    /// Of these, on verified streams: counted. The others are computed: bytes / `bytes_per_delivery`.
    pub verified_deliveries: u64,
    /// Bytes on all streams.
    pub bytes: u64,
    /// Bytes per publication on verified streams, all events shared out.
    pub bytes_per_delivery: f64,
    /// From due to received, of the publications due in this time, verified streams.
    pub latency: Latency,
    /// CPU time per second of this process.
    pub own_cpus: f64,
    /// CPUs it may use.
    pub own_cpus_allowed: usize,
    /// What the server's process has used; none if it is not known.
    pub server: Option<ServerCost>,
    /// CPU time of the kernel's own threads for network work, s; none if they can't be seen.
    pub softirq_cpu_s: Option<f64>,
    /// CPUs that were used by neither of these nor by the generator; none if the server is not known.
    pub other_cpus: Option<f64>,
    /// Sends the server has made, by its own count.
    pub sends: Option<u64>,
}

/// What the server's process has used.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ServerCost {
    /// CPU time, s.
    pub cpu_s: f64,
    /// Resident bytes at the end.
    pub resident_bytes: u64,
}

/// What holding streams costs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Idle {
    /// Resident bytes of the server before the first stream.
    pub resident_before: u64,
    /// ... when all were open.
    pub resident_open: u64,
    /// ... after they had been held.
    pub resident_held: u64,
    /// Growth of the kernel's object caches, bytes: both ends of all streams, and whatever else went on.
    pub slab_growth: Option<i64>,
}

/// Percentiles, ms.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Samples.
    pub count: u64,
    /// Their mean.
    pub mean_ms: f64,
    /// Half are at most this.
    pub p50_ms: f64,
    /// 90 % are at most this.
    pub p90_ms: f64,
    /// 99 % are at most this.
    pub p99_ms: f64,
    /// 99.9 % are at most this.
    pub p99_9_ms: f64,
    /// 99.99 % are at most this.
    pub p99_99_ms: f64,
    /// All are at most this.
    pub max_ms: f64,
}

impl Latency {
    /// Of a histogram of microseconds.
    pub fn of(micros: &Histogram<u64>) -> Self {
        let at = |quantile| micros.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            count: micros.len(),
            mean_ms: micros.mean() / 1e3,
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p99_9_ms: at(0.999),
            p99_99_ms: at(0.9999),
            max_ms: micros.max() as f64 / 1e3,
        }
    }
}

impl Traffic {
    /// Publications received per second, all streams.
    pub fn deliveries_per_second(&self) -> f64 {
        self.deliveries as f64 / self.elapsed_s
    }

    /// CPU time of the server, and of the kernel's threads if they can be seen, per delivery, µs.
    pub fn cpu_us_per_delivery(&self) -> Option<f64> {
        let cpu_s = self.server?.cpu_s + self.softirq_cpu_s.unwrap_or(0.0);
        (self.deliveries > 0).then(|| cpu_s * 1e6 / self.deliveries as f64)
    }

    /// Publications per send.
    pub fn joined(&self) -> Option<f64> {
        let sends = self.sends.filter(|sends| *sends > 0)?;
        Some(self.deliveries as f64 / sends as f64)
    }
}

impl Report {
    /// What keeps the result from being a good one; empty if the server has kept up.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut report = |count: u64, what: &str| {
            if count > 0 {
                problems.push(format!("{count} {what}"));
            }
        };
        let faults = self.streams.faults;
        report(self.streams.connect_failures, "streams not opened");
        report(self.streams.disconnects, "streams ended early");
        report(faults.missing, "publications missing");
        report(faults.repeated, "publications repeated");
        report(faults.reordered, "publications out of order");
        report(faults.bad_ids, "ids missing or not increasing");
        report(faults.announced_gaps, "gaps announced");
        for (trouble, count) in &self.streams.troubles {
            problems.push(format!("{count} x {trouble}"));
        }
        if let Some(publishing) = &self.publishing {
            publishing.problems(&mut problems);
        }
        if let Some(traffic) = &self.traffic {
            traffic.problems(&mut problems);
        }
        problems
    }

    /// What may have spoilt the measuring itself.
    pub fn warnings(&self) -> Vec<String> {
        self.traffic.as_ref().map_or_else(Vec::new, Traffic::warnings)
    }

    /// The table for people; below it the problems, marked `!`, and the warnings, marked `?`.
    pub fn table(&self) -> String {
        let mut rows = Rows::default();
        let setup = &self.setup;
        let (opened, failed) = (self.streams.opened, self.streams.connect_failures);
        let per_second = self.streams.opened_per_second;
        rows.add(
            "streams",
            format!(
                "{opened} opened ({per_second:.0}/s), {failed} failed, {} ended early",
                self.streams.disconnects
            ),
        );
        if let Some(publishing) = &self.publishing {
            publishing.rows(setup, &mut rows);
        }
        if let Some(traffic) = &self.traffic {
            traffic.rows(&mut rows);
            let faults = self.streams.faults;
            rows.add(
                "faults",
                format!(
                    "{} missing, {} repeated, {} reordered, {} bad ids, {} gaps announced ({} streams verified)",
                    faults.missing,
                    faults.repeated,
                    faults.reordered,
                    faults.bad_ids,
                    faults.announced_gaps,
                    setup.verify
                ),
            );
        }
        if let Some(idle) = &self.idle {
            idle.rows(opened, &mut rows);
        }
        let mut text = rows.text();
        for problem in self.problems() {
            let _ = writeln!(text, "! {problem}");
        }
        for warning in self.warnings() {
            let _ = writeln!(text, "? {warning}");
        }
        text
    }
}

impl Publishing {
    fn problems(&self, problems: &mut Vec<String>) {
        for (status, count) in self.statuses.iter().filter(|(status, _)| **status != 202) {
            problems.push(format!("{count} requests answered {status}"));
        }
        if self.unanswered > 0 {
            problems.push(format!("{} requests not answered", self.unanswered));
        }
        if self.unsent > 0 {
            problems.push(format!(
                "publisher behind: {} publications due were not sent; the server answers too slowly for this rate \
                 on so few connections (--publishers, --batch)",
                self.unsent
            ));
        }
        problems.extend(self.trouble.clone());
    }

    fn rows(&self, setup: &Setup, rows: &mut Rows) {
        rows.add(
            "published",
            format!(
                "{} at {}/s (by {} on {}), {} accepted",
                self.sent, setup.rate, setup.batch, setup.publishers, self.accepted
            ),
        );
        rows.add("publisher behind by", format!("{:.2} ms", self.behind_ms));
        rows.add("acknowledged after", latency_text(&self.acknowledged));
    }
}

impl Traffic {
    fn problems(&self, problems: &mut Vec<String>) {
        if self.deliveries == 0 {
            problems.push("nothing was delivered in the measured time".into());
        }
        if self.latency.p99_ms > SLOW_MS {
            problems.push(format!("p99 is above {SLOW_MS:.0} ms: the server does not keep up"));
        }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.own_cpus > BUSY * self.own_cpus_allowed as f64 {
            warnings.push(format!(
                "the generator used {:.2} of its {} CPUs and may be what was measured: give it more (--cores, --pin)",
                self.own_cpus, self.own_cpus_allowed
            ));
        }
        if let Some(others) = self.other_cpus.filter(|others| *others > DISTURBED) {
            warnings.push(format!(
                "others used {others:.2} CPUs of this machine meanwhile: the figures are disturbed"
            ));
        }
        warnings
    }

    fn rows(&self, rows: &mut Rows) {
        rows.add(
            "delivered",
            format!(
                "{:.0}/s in {:.1} s (drained streams: bytes / {:.1})",
                self.deliveries_per_second(),
                self.elapsed_s,
                self.bytes_per_delivery
            ),
        );
        rows.add("latency", latency_text(&self.latency));
        if let Some(server) = self.server {
            let per_delivery = self.cpu_us_per_delivery().map_or_else(|| "?".into(), |us| format!("{us:.3}"));
            let softirq = match self.softirq_cpu_s {
                Some(seconds) => format!("{:.2}", seconds / self.elapsed_s),
                None => "unknown".into(),
            };
            rows.add(
                "server",
                format!(
                    "{:.2} CPUs (ksoftirqd {softirq}), {per_delivery} us/delivery, RSS {:.1} MiB",
                    server.cpu_s / self.elapsed_s,
                    mib(server.resident_bytes)
                ),
            );
        }
        if let (Some(sends), Some(joined)) = (self.sends, self.joined()) {
            rows.add("joined", format!("{joined:.1} publications per send ({sends} sends)"));
        }
        rows.add("generator", format!("{:.2} of {} CPUs", self.own_cpus, self.own_cpus_allowed));
    }
}

impl Idle {
    /// User memory of the server per stream, bytes, once all are open.
    pub fn bytes_per_stream(&self, streams: u64) -> f64 {
        (self.resident_held as f64 - self.resident_before as f64) / streams.max(1) as f64
    }

    fn rows(&self, streams: u64, rows: &mut Rows) {
        rows.add(
            "server RSS",
            format!(
                "{:.1} MiB before, {:.1} open, {:.1} after holding",
                mib(self.resident_before),
                mib(self.resident_open),
                mib(self.resident_held)
            ),
        );
        rows.add("user memory per stream", format!("{:.0} B", self.bytes_per_stream(streams)));
        if let Some(growth) = self.slab_growth {
            let per_stream = growth as f64 / streams.max(1) as f64;
            rows.add(
                "kernel memory per stream",
                format!("{per_stream:.0} B (slab growth of the machine: both ends)"),
            );
        }
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn latency_text(latency: &Latency) -> String {
    if latency.count == 0 {
        return "no samples".into();
    }
    format!(
        "p50 {:.2}  p90 {:.2}  p99 {:.2}  p99.9 {:.2}  p99.99 {:.2}  max {:.2} ms ({} samples)",
        latency.p50_ms,
        latency.p90_ms,
        latency.p99_ms,
        latency.p99_9_ms,
        latency.p99_99_ms,
        latency.max_ms,
        latency.count
    )
}

/// Names and values, aligned.
#[derive(Default)]
struct Rows(Vec<(&'static str, String)>);

impl Rows {
    fn add(&mut self, name: &'static str, value: String) {
        self.0.push((name, value));
    }

    fn text(&self) -> String {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        self.0.iter().fold(String::new(), |mut text, (name, value)| {
            let _ = writeln!(text, "{name:width$}  {value}");
            text
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let latency = Latency { count: 9, p99_ms: 40.0, ..Latency::default() };
        Report {
            setup: Setup {
                version: "1".into(),
                url: "http://x".into(),
                well: "W".into(),
                connections: 100,
                verify: 10,
                rate: 500,
                batch: 1,
                publishers: 1,
                warmup_s: 1,
                seconds: 2,
                cores: 1,
                pin: vec![1],
            },
            machine: "2 x".into(),
            streams: Streams { opened: 100, ..Streams::default() },
            publishing: Some(Publishing {
                sent: 1000,
                accepted: 1000,
                unsent: 0,
                statuses: BTreeMap::from([(202, 1000)]),
                unanswered: 0,
                behind_ms: 0.2,
                acknowledged: latency,
                trouble: None,
            }),
            traffic: Some(Traffic {
                elapsed_s: 2.0,
                deliveries: 100_000,
                verified_deliveries: 10_000,
                bytes: 35_000_000,
                bytes_per_delivery: 350.0,
                latency,
                own_cpus: 0.5,
                own_cpus_allowed: 1,
                server: Some(ServerCost { cpu_s: 0.4, resident_bytes: 5 << 20 }),
                softirq_cpu_s: Some(0.1),
                other_cpus: Some(0.05),
                sends: Some(20_000),
            }),
            idle: None,
        }
    }

    #[test]
    fn rates_are_per_delivery_and_second() {
        let traffic = report().traffic.unwrap();
        assert_eq!(traffic.deliveries_per_second(), 50_000.0);
        assert_eq!(traffic.cpu_us_per_delivery(), Some(5.0));
        assert_eq!(traffic.joined(), Some(5.0));
        let blind = Traffic { server: None, sends: Some(0), ..traffic };
        assert_eq!((blind.cpu_us_per_delivery(), blind.joined()), (None, None));
    }

    #[test]
    fn a_good_run_has_no_problems_and_each_problem_is_told() {
        assert_eq!(report().problems(), Vec::<String>::new());
        type Spoil = fn(&mut Report);
        let cases: [(&str, Spoil); 11] = [
            ("3 streams not opened", |r| r.streams.connect_failures = 3),
            ("1 streams ended early", |r| r.streams.disconnects = 1),
            ("2 publications missing", |r| r.streams.faults.missing = 2),
            ("2 publications repeated", |r| r.streams.faults.repeated = 2),
            ("2 publications out of order", |r| r.streams.faults.reordered = 2),
            ("2 ids missing or not increasing", |r| r.streams.faults.bad_ids = 2),
            ("1 gaps announced", |r| r.streams.faults.announced_gaps = 1),
            ("4 requests answered 503", |r| {
                r.publishing.as_mut().unwrap().statuses.insert(503, 4);
            }),
            ("5 requests not answered", |r| r.publishing.as_mut().unwrap().unanswered = 5),
            ("publisher behind: 7", |r| r.publishing.as_mut().unwrap().unsent = 7),
            ("p99 is above 1000 ms", |r| r.traffic.as_mut().unwrap().latency.p99_ms = 1001.0),
        ];
        for (problem, spoil) in cases {
            let mut report = report();
            spoil(&mut report);
            let [found] = report.problems().try_into().unwrap();
            assert!(found.starts_with(problem), "{found}");
            assert!(report.table().ends_with(&format!("! {found}\n")));
        }
    }

    #[test]
    fn what_spoils_the_measuring_is_a_warning_and_no_problem() {
        for (own_cpus, others, warning) in [
            (0.9, 0.1, None),
            (0.91, 0.1, Some("? the generator used 0.91 of its 1 CPUs")),
            (0.9, 0.11, Some("? others used 0.11 CPUs")),
        ] {
            let mut report = report();
            let traffic = report.traffic.as_mut().unwrap();
            (traffic.own_cpus, traffic.other_cpus) = (own_cpus, Some(others));
            assert_eq!(report.problems(), Vec::<String>::new());
            let table = report.table();
            let told: Vec<&str> = table.lines().filter(|line| line.starts_with('?')).collect();
            assert_eq!(told.len(), usize::from(warning.is_some()), "{told:?}");
            assert!(told.iter().all(|told| told.starts_with(warning.unwrap())));
        }
    }

    #[test]
    fn json_comes_back() {
        let json = serde_json::to_value(report()).unwrap();
        let back: Report = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(back).unwrap(), json);
    }

    #[test]
    fn percentiles_are_milliseconds() {
        let mut micros = crate::subscribers::histogram();
        for value in 1..=10_000 {
            micros.record(value * 10).unwrap();
        }
        let latency = Latency::of(&micros);
        assert_eq!(latency.count, 10_000);
        for (got, expected) in [
            (latency.p50_ms, 50.0),
            (latency.p99_ms, 99.0),
            (latency.p99_9_ms, 99.9),
            (latency.p99_99_ms, 99.99),
            (latency.max_ms, 100.0),
        ] {
            assert!((got / expected - 1.0).abs() < 2e-3, "{got} instead of {expected}");
        }
    }

    #[test]
    fn idle_memory_is_shared_out_among_the_streams() {
        let idle = Idle {
            resident_before: 10_000,
            resident_open: 30_000,
            resident_held: 25_000,
            slab_growth: Some(-5),
        };
        assert_eq!(idle.bytes_per_stream(100), 150.0);
        let mut rows = Rows::default();
        idle.rows(100, &mut rows);
        assert!(rows.text().contains("user memory per stream    150 B"), "{}", rows.text());
    }
}
