//! All that counts up while a run goes on, read at its beginning and at its end.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::process::{self, SoftirqThreads};
use crate::report::{Latency, ServerCost, Traffic};
use crate::run::{Load, Options};
use crate::subscribers::Board;
use crate::{scrape, sys};

/// The server's count of sends of stream bytes.
const SENDS: &str = "wellhead_stream_sends_total";

/// Memory of the server and of the kernel.
#[derive(Clone, Copy)]
pub struct Memory {
    /// Resident bytes of the server.
    pub resident: u64,
    /// Bytes of the kernel's object caches.
    pub slab: Option<u64>,
}

impl Memory {
    /// Reads both; `None` if the server's process is not known.
    ///
    /// # Errors
    /// If it is gone.
    pub fn read(options: &Options) -> Result<Option<Self>, String> {
        let Some(pid) = options.server_pid else {
            return Ok(None);
        };
        let resident = process::usage(pid)?.resident_bytes;
        let slab = process::slab_bytes();
        Ok(Some(Self { resident, slab }))
    }
}

/// All that counts up, at one moment.
pub struct Snapshot {
    at_ns: u64,
    publications: u64,
    verified_bytes: u64,
    drained_bytes: u64,
    own_cpu_ns: u64,
    server: Option<process::Usage>,
    softirq_ns: Option<u64>,
    machine_cpu_ns: Option<u64>,
    sends: Option<u64>,
}

impl Snapshot {
    /// Reads all of them.
    ///
    /// # Errors
    /// If the server's process is gone.
    pub fn take(options: &Options, boards: &[Board], softirq: &SoftirqThreads) -> Result<Self, String> {
        Ok(Self {
            at_ns: sys::now_ns(),
            publications: sum(boards, |board| &board.publications),
            verified_bytes: sum(boards, |board| &board.verified_bytes),
            drained_bytes: sum(boards, |board| &board.drained_bytes),
            own_cpu_ns: sys::process_cpu_ns(),
            server: options.server_pid.map(process::usage).transpose()?,
            softirq_ns: softirq.cpu_ns(),
            machine_cpu_ns: process::machine_cpu_ns(),
            // Last: a busy server takes its time to answer.
            sends: match options.load {
                Load::Publish { .. } => scrape::counter(options.target.address, &options.target.host, SENDS),
                Load::Watch | Load::Idle => None,
            },
        })
    }

    /// What went on since `first`. The latency is not known here.
    pub fn since(&self, first: &Self, options: &Options) -> Traffic {
        let elapsed_s = (self.at_ns - first.at_ns) as f64 / 1e9;
        let verified_deliveries = self.publications - first.publications;
        let verified_bytes = self.verified_bytes - first.verified_bytes;
        let drained_bytes = self.drained_bytes - first.drained_bytes;
        let bytes_per_delivery = verified_bytes as f64 / verified_deliveries.max(1) as f64;
        let drained_deliveries = match verified_deliveries {
            0 => 0,
            _ => (drained_bytes as f64 / bytes_per_delivery).round() as u64,
        };
        let seconds = |to: u64, from: u64| to.saturating_sub(from) as f64 / 1e9;
        let between = |to: Option<u64>, from: Option<u64>| Some(seconds(to?, from?));
        let own_cpu_s = seconds(self.own_cpu_ns, first.own_cpu_ns);
        let softirq_cpu_s = between(self.softirq_ns, first.softirq_ns);
        let server = self.server.zip(first.server).map(|(last, first)| ServerCost {
            cpu_s: seconds(last.cpu_ns, first.cpu_ns),
            resident_bytes: last.resident_bytes,
        });
        let other_cpus =
            server.zip(between(self.machine_cpu_ns, first.machine_cpu_ns)).map(|(server, all)| {
                let known = own_cpu_s + server.cpu_s + softirq_cpu_s.unwrap_or(0.0);
                (all - known).max(0.0) / elapsed_s
            });
        Traffic {
            elapsed_s,
            deliveries: verified_deliveries + drained_deliveries,
            verified_deliveries,
            bytes: verified_bytes + drained_bytes,
            bytes_per_delivery,
            latency: Latency::default(),
            own_cpus: own_cpu_s / elapsed_s,
            own_cpus_allowed: match options.pin.len() {
                0 => options.cores,
                pinned => pinned,
            },
            server,
            softirq_cpu_s,
            other_cpus,
            sends: self.sends.zip(first.sends).map(|(last, first)| last.saturating_sub(first)),
        }
    }
}

/// A counter, all threads together.
pub fn sum(boards: &[Board], counter: fn(&Board) -> &AtomicU64) -> u64 {
    boards.iter().map(|board| counter(board).load(Relaxed)).sum()
}
