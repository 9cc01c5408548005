//! Counters: one set per shard, written by that shard alone and read by whoever answers `/metrics`.
//!
//! A counter is a plain load and store of a word on the shard's own cache lines, never an atomic addition. The text
//! follows the Prometheus exposition format 0.0.4.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::connector::store::StoreMetrics;

macro_rules! counters {
    ($($variant:ident $kind:literal $name:literal $help:literal;)*) => {
        /// A counter or gauge of a shard.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Counter {
            $(#[doc = $help] $variant,)*
        }

        /// Name, type and help of each, in the order of the enum.
        const TABLE: &[(&str, &str, &str)] = &[$(($name, $kind, $help),)*];
    };
}

counters! {
    WebSocketConnections "gauge" "websocket_connections" "Active WebSocket connections.";
    SseConnections "gauge" "sse_connections" "Active server-sent event streams.";
    WebSocketMessages "counter" "websocket_messages_total" "WebSocket messages handed to the kernel.";
    WebSocketErrors "counter" "websocket_errors_total" "WebSocket protocol errors.";
    Publishes "counter" "realtime_publishes_total" "Publications that were given an offset.";
    Connections "gauge" "wellhead_connections" "Open connections.";
    Accepted "counter" "wellhead_connections_accepted_total" "Connections accepted.";
    Refused "counter" "wellhead_connections_refused_total" "Connections refused: the limit is reached, or the server is draining.";
    AcceptFailures "counter" "wellhead_accept_failures_total" "Times accepting ended for want of descriptors or memory.";
    Requests "counter" "wellhead_http_requests_total" "HTTP requests answered or turned into streams.";
    BadRequests "counter" "wellhead_http_bad_requests_total" "Connections closed for a malformed HTTP request.";
    Timeouts "counter" "wellhead_request_timeouts_total" "Connections closed because a request did not arrive in time.";
    Unauthenticated "counter" "wellhead_unauthenticated_total" "Requests refused for their token or password.";
    Deliveries "counter" "wellhead_stream_sends_total" "Sends of stream bytes; each carries everything since the last.";
    DeliveredBytes "counter" "wellhead_stream_bytes_total" "Bytes of streams taken by the kernel.";
    ShortSends "counter" "wellhead_short_sends_total" "Sends that found a socket full.";
    Encoded "counter" "wellhead_frames_encoded_total" "Frames encoded, each once for all members of a group.";
    Lagging "counter" "wellhead_slow_consumers_total" "Times a subscriber left its group for being too far behind.";
    SlowClosed "counter" "wellhead_slow_consumers_closed_total" "Connections closed for not reading.";
    Gaps "counter" "wellhead_gaps_total" "Gaps announced to subscribers.";
    Replays "counter" "wellhead_replays_total" "Parts of topic logs replayed to subscribers.";
    Views "gauge" "wellhead_views" "Topics this node's subscribers watch.";
    Topics "gauge" "wellhead_topics" "Topics in memory.";
    LogBytes "gauge" "wellhead_topic_log_bytes" "Bytes of publications kept in memory for replay.";
    WireBytes "gauge" "wellhead_wire_log_bytes" "Bytes of encoded frames not yet sent to everybody.";
    LaneFull "counter" "wellhead_lane_full_total" "Publications a full lane kept back, to be fetched from the topic log.";
    Unstored "counter" "wellhead_unstored_total" "Publications delivered but not stored, under durability memory.";
    PublishRefused "counter" "wellhead_publish_refused_total" "Rows refused because a bounded queue was full.";
    PublishFailed "counter" "wellhead_publish_failed_total" "Rows published but not acknowledged: the store failed.";
    Turns "counter" "wellhead_loop_turns_total" "Turns of the shard's loop.";
    Enters "counter" "wellhead_ring_enters_total" "System calls to submit to or wait for the ring.";
    Overflows "counter" "wellhead_ring_overflows_total" "Completion queue overflows.";
    Rearms "counter" "wellhead_ring_rearms_total" "Multishot operations armed again.";
}

/// Upper bounds of the publish duration's buckets, microseconds.
const BUCKETS: [u64; 12] =
    [100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 500_000, 2_500_000];

/// One shard's counters.
pub struct Metrics {
    values: [AtomicU64; TABLE.len()],
    /// How long publications took from arrival to acknowledgement: a count per bucket, and one above.
    durations: [AtomicU64; BUCKETS.len() + 1],
    duration_micros: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            values: [const { AtomicU64::new(0) }; TABLE.len()],
            durations: [const { AtomicU64::new(0) }; BUCKETS.len() + 1],
            duration_micros: AtomicU64::new(0),
        }
    }
}

impl Metrics {
    /// Adds to a counter. Only by the shard that owns it.
    pub fn add(&self, counter: Counter, amount: u64) {
        bump(&self.values[counter as usize], amount);
    }

    /// Counts one.
    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Takes from a gauge. Only by the shard that owns it.
    pub fn subtract(&self, counter: Counter, amount: u64) {
        let value = &self.values[counter as usize];
        value.store(value.load(Ordering::Relaxed).wrapping_sub(amount), Ordering::Relaxed);
    }

    /// Sets a gauge. Only by the shard that owns it.
    pub fn set(&self, counter: Counter, value: u64) {
        self.values[counter as usize].store(value, Ordering::Relaxed);
    }

    /// Reads a counter, from any thread.
    pub fn get(&self, counter: Counter) -> u64 {
        self.values[counter as usize].load(Ordering::Relaxed)
    }

    /// Notes how long an ingest request took from its arrival to its acknowledgement.
    pub fn published(&self, took: Duration) {
        let micros = took.as_micros() as u64;
        let bucket = BUCKETS.partition_point(|bound| *bound < micros);
        bump(&self.durations[bucket], 1);
        bump(&self.duration_micros, micros);
    }
}

fn bump(value: &AtomicU64, amount: u64) {
    value.store(value.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

/// Facts that stand beside the counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// The ring's name: `io_uring`, `epoll`.
    pub ring: &'static str,
    /// Resident bytes of the process.
    pub resident_bytes: u64,
}

/// The text of `/metrics`: the sums over all shards.
pub fn exposition(shards: &[std::sync::Arc<Metrics>], facts: &Facts) -> String {
    let mut text = String::with_capacity(8 << 10);
    for (index, (name, kind, help)) in TABLE.iter().enumerate() {
        let sum = shards
            .iter()
            .fold(0u64, |sum, shard| sum.wrapping_add(shard.values[index].load(Ordering::Relaxed)));
        family(&mut text, name, kind, help);
        let _ = writeln!(text, "{name} {sum}");
    }
    durations(&mut text, shards);
    family(&mut text, "wellhead_ring_info", "gauge", "The I/O backend in use.");
    let _ = writeln!(text, "wellhead_ring_info{{backend=\"{}\"}} 1", facts.ring);
    family(&mut text, "wellhead_build_info", "gauge", "The version.");
    let _ = writeln!(text, "wellhead_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    family(&mut text, "wellhead_shards", "gauge", "Shards.");
    let _ = writeln!(text, "wellhead_shards {}", shards.len());
    family(&mut text, "process_resident_memory_bytes", "gauge", "Resident memory.");
    let _ = writeln!(text, "process_resident_memory_bytes {}", facts.resident_bytes);
    text
}

/// Appends the store's counters to the text of `/metrics`.
pub fn store_exposition(store: &StoreMetrics, text: &mut String) {
    let seconds = |nanos: &AtomicU64| nanos.load(Ordering::Relaxed) as f64 / 1e9;
    let count = |value: &AtomicU64| value.load(Ordering::Relaxed) as f64;
    for (name, kind, help, value) in [
        ("wellhead_store_rows_total", "counter", "Publications written to the store.", count(&store.rows)),
        (
            "wellhead_store_bytes_total",
            "counter",
            "Bytes of bodies written to the store.",
            count(&store.bytes),
        ),
        ("wellhead_store_commits_total", "counter", "Transactions committed.", count(&store.commits)),
        (
            "wellhead_store_commit_seconds_total",
            "counter",
            "Time spent committing, syncing included.",
            seconds(&store.commit_nanos),
        ),
        ("wellhead_store_failures_total", "counter", "Writes rolled back.", count(&store.failures)),
        (
            "wellhead_store_read_only",
            "gauge",
            "1 after an I/O error, until the restart: nothing is stored or acknowledged.",
            count(&store.read_only),
        ),
        (
            "wellhead_store_trimmed_total",
            "counter",
            "Publications removed for their age.",
            count(&store.trimmed),
        ),
        ("wellhead_store_questions_total", "counter", "Reads answered.", count(&store.questions)),
        ("wellhead_store_read_failures_total", "counter", "Reads that failed.", count(&store.read_failures)),
    ] {
        family(text, name, kind, help);
        let _ = writeln!(text, "{name} {value}");
    }
}

/// Appends the two comment lines of a metric family.
pub fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn durations(text: &mut String, shards: &[std::sync::Arc<Metrics>]) {
    const NAME: &str = "realtime_publish_duration_seconds";
    family(text, NAME, "histogram", "Time from an ingest request's arrival to its acknowledgement.");
    let sum = |pick: &dyn Fn(&Metrics) -> &AtomicU64| -> u64 {
        shards.iter().map(|shard| pick(shard).load(Ordering::Relaxed)).sum()
    };
    let mut below = 0;
    for (bucket, bound) in BUCKETS.iter().enumerate() {
        below += sum(&|shard| &shard.durations[bucket]);
        let _ = writeln!(text, "{NAME}_bucket{{le=\"{}\"}} {below}", *bound as f64 / 1e6);
    }
    let all = below + sum(&|shard| &shard.durations[BUCKETS.len()]);
    let _ = writeln!(text, "{NAME}_bucket{{le=\"+Inf\"}} {all}");
    let _ = writeln!(text, "{NAME}_sum {}", sum(&|shard| &shard.duration_micros) as f64 / 1e6);
    let _ = writeln!(text, "{NAME}_count {all}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn the_text_sums_shards_and_names_each_family_once() {
        let shards = [Arc::new(Metrics::default()), Arc::new(Metrics::default())];
        shards[0].add(Counter::Publishes, 2);
        shards[1].add(Counter::Publishes, 3);
        shards[0].count(Counter::SseConnections);
        shards[1].count(Counter::SseConnections);
        shards[1].subtract(Counter::SseConnections, 1);
        shards[0].published(Duration::from_micros(300));
        shards[1].published(Duration::from_secs(9));
        let text = exposition(&shards, &Facts { ring: "epoll", ..Facts::default() });
        for line in [
            "realtime_publishes_total 5",
            "sse_connections 1",
            "realtime_publish_duration_seconds_bucket{le=\"0.00025\"} 0",
            "realtime_publish_duration_seconds_bucket{le=\"0.0005\"} 1",
            "realtime_publish_duration_seconds_bucket{le=\"+Inf\"} 2",
            "realtime_publish_duration_seconds_count 2",
            "wellhead_ring_info{backend=\"epoll\"} 1",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
        }
        let mut families: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let count = families.len();
        families.dedup();
        assert_eq!(families.len(), count);
    }
}
