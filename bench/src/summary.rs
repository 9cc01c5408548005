//! The table of a fan-out run, from its raw results.
//!
//! Files are named by what they hold: `wellhead-r<rate>-<repetition>.json` and `wirelog-r<rate>-<repetition>.json`
//! are the load generator's reports, `wirelog-r<rate>-<repetition>.server.json` is what the wire log itself counted,
//! `floor-<repetition>.json` the kernel's floor, `idle-<repetition>.json` a report of held streams.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use loadgen::report::{Latency, Report, Traffic};

use crate::sends::Floor;
use crate::wirelog::WireLog;

/// All results of a run. Repetitions stand in their order.
#[derive(Default)]
pub struct Results {
    /// By rate and repetition.
    pub wellhead: BTreeMap<(u64, u32), Report>,
    /// By rate and repetition.
    pub wirelog: BTreeMap<(u64, u32), Report>,
    /// By rate and repetition.
    pub wirelog_itself: BTreeMap<(u64, u32), WireLog>,
    /// By repetition.
    pub floor: BTreeMap<u32, Floor>,
    /// By repetition.
    pub idle: BTreeMap<u32, Report>,
}

/// What a file name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Wellhead(u64, u32),
    Wirelog(u64, u32),
    WirelogItself(u64, u32),
    Floor(u32),
    Idle(u32),
}

/// Reads all results in a directory; other files are passed over.
///
/// # Errors
/// If a result can't be read; the text names its file.
pub fn load(directory: &Path) -> Result<Results, String> {
    let mut results = Results::default();
    let failed = |path: &Path, error: String| format!("{}: {error}", path.display());
    let entries = std::fs::read_dir(directory).map_err(|error| failed(directory, error.to_string()))?;
    for entry in entries {
        let path = entry.map_err(|error| failed(directory, error.to_string()))?.path();
        let Some(kind) = path.file_name().and_then(|name| name.to_str()).and_then(kind) else {
            continue;
        };
        let text = std::fs::read_to_string(&path).map_err(|error| failed(&path, error.to_string()))?;
        results.insert(kind, &text).map_err(|error| failed(&path, error.to_string()))?;
    }
    Ok(results)
}

impl Results {
    fn insert(&mut self, kind: Kind, text: &str) -> serde_json::Result<()> {
        match kind {
            Kind::Wellhead(rate, repetition) => {
                self.wellhead.insert((rate, repetition), serde_json::from_str(text)?);
            }
            Kind::Wirelog(rate, repetition) => {
                self.wirelog.insert((rate, repetition), serde_json::from_str(text)?);
            }
            Kind::WirelogItself(rate, repetition) => {
                self.wirelog_itself.insert((rate, repetition), serde_json::from_str(text)?);
            }
            Kind::Floor(repetition) => {
                self.floor.insert(repetition, serde_json::from_str(text)?);
            }
            Kind::Idle(repetition) => {
                self.idle.insert(repetition, serde_json::from_str(text)?);
            }
        }
        Ok(())
    }

    /// The tables, as Markdown. Each figure is the median of the repetitions.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        self.write_fan_out(&mut out);
        self.write_floor(&mut out);
        self.write_idle(&mut out);
        self.write_problems(&mut out);
        out
    }

    fn write_fan_out(&self, out: &mut String) {
        out.push_str(
            "| | publications/s | deliveries/s | joined | CPU µs/delivery | of the wire log's | p50 / p99 / p99.9 ms \
             | good runs |\n|---|---|---|---|---|---|---|---|\n",
        );
        let mut rates: Vec<u64> = self.wellhead.keys().chain(self.wirelog.keys()).map(|key| key.0).collect();
        rates.sort_unstable();
        rates.dedup();
        for rate in rates {
            for (name, reports) in [("wellhead", &self.wellhead), ("wire log", &self.wirelog)] {
                let reports: Vec<(u32, &Report)> = reports
                    .iter()
                    .filter(|(key, _)| key.0 == rate)
                    .map(|(key, report)| (key.1, report))
                    .collect();
                if !reports.is_empty() {
                    self.write_row(name, rate, &reports, out);
                }
            }
        }
    }

    fn write_row(&self, name: &str, rate: u64, reports: &[(u32, &Report)], out: &mut String) {
        let is_wirelog = name == "wire log";
        let traffic = |figure: &dyn Fn(&Traffic) -> Option<f64>| {
            median(reports.iter().filter_map(|(_, report)| figure(report.traffic.as_ref()?)))
        };
        let joined = match is_wirelog {
            true => median(
                self.wirelog_itself
                    .iter()
                    .filter(|(key, _)| key.0 == rate)
                    .map(|(_, wirelog)| wirelog.joined),
            ),
            false => traffic(&Traffic::joined),
        };
        let ratio = match is_wirelog {
            true => None,
            false => median(reports.iter().filter_map(|(repetition, report)| {
                let beside = self.wirelog.get(&(rate, *repetition))?;
                Some(cpu(report)? / cpu(beside)?)
            })),
        };
        let percentile = |pick: fn(&Latency) -> f64| {
            let latency =
                |traffic: &Traffic| Some(&traffic.latency).filter(|latency| latency.count > 0).map(pick);
            text(traffic(&latency), 1)
        };
        let percentiles = [
            percentile(|latency| latency.p50_ms),
            percentile(|latency| latency.p99_ms),
            percentile(|latency| latency.p99_9_ms),
        ]
        .join(" / ");
        let good = reports.iter().filter(|(_, report)| report.problems().is_empty()).count();
        let _ = writeln!(
            out,
            "| {name} | {rate} | {} | {} | {} | {} | {percentiles} | {good} of {} |",
            text(traffic(&|traffic| Some(traffic.deliveries_per_second())), 0),
            text(joined, 1),
            text(traffic(&Traffic::cpu_us_per_delivery), 3),
            text(ratio, 2),
            reports.len()
        );
    }

    fn write_floor(&self, out: &mut String) {
        let Some(first) = self.floor.values().next() else {
            return;
        };
        let options = &first.options;
        let _ = writeln!(
            out,
            "\nThe kernel's floor: {} connections, {} B a message.\n\n\
             | joined | µs/send | µs/message | messages/s |\n|---|---|---|---|",
            options.connections, options.bytes
        );
        for row in &first.rows {
            let rows = || {
                let floors = self.floor.values().flat_map(|floor| &floor.rows);
                floors.filter(|other| other.joined == row.joined)
            };
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} |",
                row.joined,
                text(median(rows().map(|row| row.us_per_send)), 2),
                text(median(rows().map(|row| row.us_per_message)), 3),
                text(median(rows().map(|row| row.messages_per_second)), 0)
            );
        }
    }

    fn write_idle(&self, out: &mut String) {
        for report in self.idle.values() {
            let streams = report.streams.opened;
            let Some(idle) = &report.idle else { continue };
            let kernel = idle.slab_growth.map(|growth| growth as f64 / streams.max(1) as f64);
            let _ = writeln!(
                out,
                "\n{streams} idle streams: {:.0} B of user memory each (RSS), {} B of the kernel's for both ends \
                 (slab), {:.0} opened/s.",
                idle.bytes_per_stream(streams),
                text(kernel, 0),
                report.streams.opened_per_second
            );
        }
    }

    fn write_problems(&self, out: &mut String) {
        let wellhead = self.wellhead.iter().map(|(key, report)| (key, "wellhead", report));
        let wirelog = self.wirelog.iter().map(|(key, report)| (key, "wire log", report));
        for ((rate, repetition), name, report) in wellhead.chain(wirelog) {
            for line in report.problems().iter().chain(&report.warnings()) {
                let _ = writeln!(out, "\n* {name} at {rate}/s, repetition {repetition}: {line}");
            }
        }
    }
}

fn cpu(report: &Report) -> Option<f64> {
    report.traffic.as_ref()?.cpu_us_per_delivery()
}

fn kind(name: &str) -> Option<Kind> {
    let name = name.strip_suffix(".json")?;
    let rated = |rest: &str| {
        let (rate, repetition) = rest.strip_prefix("-r")?.split_once('-')?;
        Some((rate.parse().ok()?, repetition.parse().ok()?))
    };
    if let Some(rest) = name.strip_prefix("wellhead") {
        let (rate, repetition) = rated(rest)?;
        Some(Kind::Wellhead(rate, repetition))
    } else if let Some(rest) = name.strip_prefix("wirelog") {
        match rest.strip_suffix(".server") {
            Some(rest) => rated(rest).map(|(rate, repetition)| Kind::WirelogItself(rate, repetition)),
            None => rated(rest).map(|(rate, repetition)| Kind::Wirelog(rate, repetition)),
        }
    } else if let Some(repetition) = name.strip_prefix("floor-") {
        Some(Kind::Floor(repetition.parse().ok()?))
    } else {
        Some(Kind::Idle(name.strip_prefix("idle-")?.parse().ok()?))
    }
}

/// The middle one, or the mean of the two in the middle.
fn median(figures: impl Iterator<Item = f64>) -> Option<f64> {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    let upper = *figures.get(figures.len() / 2)?;
    match figures.len() % 2 {
        0 => Some((upper + figures[figures.len() / 2 - 1]) / 2.0),
        _ => Some(upper),
    }
}

fn text(figure: Option<f64>, digits: usize) -> String {
    figure.map_or_else(|| "–".into(), |figure| format!("{figure:.digits$}"))
}

#[cfg(test)]
mod tests {
    use loadgen::report::{ServerCost, Setup, Streams};

    use super::*;

    fn report(cpu_s: f64, missing: u64) -> Report {
        let mut streams = Streams { opened: 10, ..Streams::default() };
        streams.faults.missing = missing;
        Report {
            setup: Setup {
                version: "1".into(),
                url: "http://x".into(),
                well: "W".into(),
                connections: 10,
                verify: 1,
                rate: 500,
                batch: 1,
                publishers: 1,
                warmup_s: 0,
                seconds: 1,
                cores: 1,
                pin: vec![],
            },
            machine: String::new(),
            streams,
            publishing: None,
            traffic: Some(Traffic {
                elapsed_s: 1.0,
                deliveries: 1_000_000,
                verified_deliveries: 1,
                bytes: 1,
                bytes_per_delivery: 1.0,
                latency: Latency { count: 1, p99_ms: 12.34, ..Latency::default() },
                own_cpus: 0.1,
                own_cpus_allowed: 1,
                server: Some(ServerCost { cpu_s, resident_bytes: 1 }),
                softirq_cpu_s: None,
                other_cpus: None,
                sends: Some(50_000),
            }),
            idle: None,
        }
    }

    #[test]
    fn names_say_what_files_hold() {
        for (name, expected) in [
            ("wellhead-r500-1.json", Some(Kind::Wellhead(500, 1))),
            ("wirelog-r2000-3.json", Some(Kind::Wirelog(2000, 3))),
            ("wirelog-r350-2.server.json", Some(Kind::WirelogItself(350, 2))),
            ("floor-1.json", Some(Kind::Floor(1))),
            ("idle-1.json", Some(Kind::Idle(1))),
            ("wellhead-r500-1.log", None),
            ("wellhead-500-1.json", None),
            ("wellhead-r500.json", None),
            ("floor.json", None),
            ("README.md", None),
        ] {
            assert_eq!(kind(name), expected, "{name}");
        }
    }

    #[test]
    fn medians_are_in_the_middle() {
        for (figures, expected) in
            [(&[][..], None), (&[3.0], Some(3.0)), (&[9.0, 1.0], Some(5.0)), (&[9.0, 1.0, 2.0], Some(2.0))]
        {
            assert_eq!(median(figures.iter().copied()), expected);
        }
    }

    #[test]
    fn rows_are_medians_and_ratios_are_within_a_repetition() {
        let mut results = Results::default();
        for (repetition, ours, floor) in [(1, 0.3, 0.2), (2, 0.8, 0.4), (3, 0.4, 0.1)] {
            let missing = u64::from(repetition == 2);
            results.wellhead.insert((500, repetition), report(ours, missing));
            results.wirelog.insert((500, repetition), report(floor, 0));
        }
        let markdown = results.markdown();
        let lines: Vec<&str> = markdown.lines().collect();
        assert_eq!(
            lines[2],
            "| wellhead | 500 | 1000000 | 20.0 | 0.400 | 2.00 | 0.0 / 12.3 / 0.0 | 2 of 3 |"
        );
        assert_eq!(lines[3], "| wire log | 500 | 1000000 | – | 0.200 | – | 0.0 / 12.3 / 0.0 | 3 of 3 |");
        assert!(
            markdown.ends_with("* wellhead at 500/s, repetition 2: 1 publications missing\n"),
            "{markdown}"
        );
    }
}
