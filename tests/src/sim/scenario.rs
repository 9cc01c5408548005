//! Publishers publish, subscribers come, go, stall and resume, the network misbehaves, the server may crash. Then it calms
//! down, and every subscriber must have seen every publication of its topic since its start exactly once and in order, or
//! have been told which it would not see.

use std::collections::{BTreeMap, HashSet};

use engine::mail::Failure;
use engine::metrics::Counter;
use engine::ring::sim::{ClientId, End, Faults};

use super::client::{Frame, Frames, Response};
use super::world::{Random, Rule, Setup, World};

/// Steps after which a run that has not come to rest is stuck.
const MOST_STEPS: usize = 60_000;

/// What a run did, so that many runs show that they do enough.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Publications.
    pub published: usize,
    /// Publications seen by subscribers.
    pub delivered: usize,
    /// Streams opened.
    pub streams: usize,
    /// Gaps announced.
    pub gaps: usize,
    /// Times a subscriber was too slow for its group.
    pub lagging: u64,
    /// Crashes.
    pub crashes: usize,
    /// Replays.
    pub replays: u64,
}

impl Report {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        self.published += other.published;
        self.delivered += other.delivered;
        self.streams += other.streams;
        self.gaps += other.gaps;
        self.lagging += other.lagging;
        self.crashes += other.crashes;
        self.replays += other.replays;
    }
}

/// What was published, by well, as far as clients know: offset and mark of what was acknowledged.
type Acknowledged = BTreeMap<String, Vec<(u64, String)>>;

struct Publisher {
    client: Option<(ClientId, usize)>,
    received: Vec<u8>,
    /// Rows (well, mark) of the request in progress.
    asked: Vec<(String, String)>,
    left: usize,
    next: usize,
    name: usize,
}

struct Subscriber {
    well: String,
    client: Option<(ClientId, usize)>,
    frames: Frames,
    /// Where its first stream started.
    start: Option<u64>,
    /// What it would send as Last-Event-ID.
    last: Option<u64>,
    seen: Vec<(u64, String)>,
    /// Offsets it was told it would not see, save what followed.
    gaps: Vec<(u64, u64, String)>,
    stalled: bool,
    streams: usize,
}

/// Runs the scenario of this seed.
///
/// # Panics
/// If something does not hold; the message names the seed.
pub fn run(seed: u64) -> Report {
    let mut random = Random::new(seed);
    let setup = Setup {
        shards: 1 + random.below(4),
        faults: Faults::from_seed(seed),
        log_publications: [1000, 1000, 20][random.below(3)],
        pending_bytes: [1 << 20, 1 << 12][random.below(2)],
        lane_bytes: [1 << 16, 1 << 13][random.below(2)],
        slice: [1, 2, 64][random.below(3)],
        rule: [Rule::AckStored, Rule::AckStored, Rule::DeliverStored, Rule::Memory][random.below(4)],
    };
    let crashes = if random.one_in(3) { 1 + random.below(2) } else { 0 };
    // A store that fails and one that dies at once are judged apart: which of them has lost a row is not to be told.
    let failures = crashes == 0 && random.one_in(4);
    Scenario::new(seed, random, setup, crashes, failures).play()
}

struct Scenario {
    seed: u64,
    random: Random,
    world: World,
    token: String,
    wells: Vec<String>,
    publishers: Vec<Publisher>,
    subscribers: Vec<Subscriber>,
    acknowledged: Acknowledged,
    crashes: usize,
    failures: bool,
    rule: Rule,
    steps: usize,
}

impl Scenario {
    fn new(seed: u64, mut random: Random, setup: Setup, crashes: usize, failures: bool) -> Self {
        let rule = setup.rule;
        let world = World::new(seed, setup);
        let token = world.token();
        let wells: Vec<String> = (0..1 + random.below(3)).map(|well| format!("WELL-{well}")).collect();
        let publishers = (0..1 + random.below(4)).map(|name| Publisher {
            client: None,
            received: Vec::new(),
            asked: Vec::new(),
            left: 3 + name,
            next: 0,
            name,
        });
        let publishers = publishers.collect();
        let count = 1 + random.below(8);
        let subscribers = (0..count).map(|_| Subscriber::new(&wells[random.below(wells.len())])).collect();
        let acknowledged = BTreeMap::new();
        Self {
            seed,
            random,
            world,
            token,
            wells,
            publishers,
            subscribers,
            acknowledged,
            crashes,
            failures,
            rule,
            steps: 0,
        }
    }

    fn play(mut self) -> Report {
        while self.publishers.iter().any(|publisher| publisher.left > 0) {
            self.step();
            if self.crashes > 0 && self.random.one_in(300) {
                self.crashes -= 1;
                self.world.crash();
            }
            if self.failures && self.random.one_in(50) {
                let failing = [None, Some(Failure::Full), Some(Failure::Store)][self.random.below(3)];
                if let Some(store) = &mut self.world.store {
                    store.failing = failing;
                }
            }
        }
        if let Some(store) = &mut self.world.store {
            store.failing = None;
        }
        self.world.net.set_faults(Faults { send_buffer: 1 << 16, ..Faults::default() });
        for subscriber in &mut self.subscribers {
            subscriber.unstall(&self.world);
        }
        let truth = self.truth();
        self.come_to_rest(&truth);
        self.judge(&truth);
        self.report(&truth)
    }

    fn step(&mut self) {
        self.steps += 1;
        assert!(self.steps < MOST_STEPS, "seed {}: stuck", self.seed);
        self.world.step();
        for at in 0..self.publishers.len() {
            self.publisher(at);
        }
        for at in 0..self.subscribers.len() {
            self.subscriber(at, true);
        }
    }

    fn publisher(&mut self, at: usize) {
        let publisher = &mut self.publishers[at];
        let crashes = self.world.crashes;
        let Some((client, life)) = publisher.client.filter(|(_, life)| *life == crashes) else {
            publisher.client = Some((self.world.connect(), crashes));
            // What it had asked for may or may not have been published; it does not ask again for the same.
            publisher.asked.clear();
            publisher.received.clear();
            return;
        };
        debug_assert_eq!(life, crashes);
        publisher.received.extend(self.world.net.client_read(client, 1 << 16));
        if let Some(response) = Response::take(&mut publisher.received) {
            let asked = std::mem::take(&mut publisher.asked);
            match response.status {
                202 => note(&mut self.acknowledged, &asked, &response),
                503 => {}
                500 | 507 if self.failures => {}
                other => panic!("seed {}: {other} {}", self.seed, String::from_utf8_lossy(&response.body)),
            }
        } else if self.world.net.client_state(client).end != End::Open {
            publisher.client = None;
        } else if publisher.asked.is_empty() && publisher.left > 0 && self.random.one_in(8) {
            let request = publisher.request(&mut self.random, &self.wells, &self.token);
            self.world.net.client_write(client, &request);
        }
    }

    fn subscriber(&mut self, at: usize, restless: bool) {
        let (seed, crashes) = (self.seed, self.world.crashes);
        let subscriber = &mut self.subscribers[at];
        let Some((client, _)) = subscriber.client.filter(|(_, life)| *life == crashes) else {
            if restless && self.random.one_in(4) {
                return;
            }
            let client = self.world.connect();
            self.world.net.client_write(client, &subscriber.request(&self.token));
            subscriber.client = Some((client, crashes));
            subscriber.frames = Frames::default();
            subscriber.streams += 1;
            subscriber.stalled = false;
            return;
        };
        if !subscriber.stalled {
            let bytes = self.world.net.client_read(client, 1 + self.random.below(4096));
            for frame in subscriber.frames.push(&bytes) {
                subscriber.see(frame, seed);
            }
        }
        let state = self.world.net.client_state(client);
        if state.end != End::Open && state.unread == 0 {
            subscriber.client = None;
        } else if restless && self.random.one_in(400) {
            self.world.net.client_reset(client);
            subscriber.client = None;
        } else if restless && self.random.one_in(400) {
            self.world.net.client_close(client);
            subscriber.client = None;
        } else if restless && self.random.one_in(100) {
            subscriber.stalled = !subscriber.stalled;
            self.world.net.client_stall(client, subscriber.stalled);
        }
    }

    /// All there is, from the topics themselves.
    fn truth(&mut self) -> BTreeMap<String, Vec<(u64, String)>> {
        let mut readers: Vec<Subscriber> = self.wells.iter().map(|well| Subscriber::new(well)).collect();
        for reader in &mut readers {
            reader.last = Some(0);
        }
        let first = self.subscribers.len();
        self.subscribers.extend(readers);
        // Requests still in progress end, one way or the other.
        for _ in 0..3000 {
            self.world.settle();
            for at in 0..self.publishers.len() {
                self.publisher(at);
            }
            for at in 0..self.subscribers.len() {
                self.subscriber(at, false);
            }
        }
        let readers = self.subscribers.split_off(first);
        readers.into_iter().map(|reader| (reader.well, reader.seen)).collect()
    }

    fn come_to_rest(&mut self, truth: &BTreeMap<String, Vec<(u64, String)>>) {
        for _ in 0..5000 {
            let rests = self.subscribers.iter().all(|subscriber| {
                let newest = truth[&subscriber.well].last().map_or(0, |(offset, _)| *offset);
                subscriber.last.is_some_and(|last| last >= newest)
            });
            if rests {
                return;
            }
            self.world.settle();
            for at in 0..self.subscribers.len() {
                self.subscriber(at, false);
            }
        }
    }

    fn judge(&self, truth: &BTreeMap<String, Vec<(u64, String)>>) {
        let seed = self.seed;
        for (well, published) in truth {
            let marks: HashSet<&String> = published.iter().map(|(_, mark)| mark).collect();
            assert_eq!(marks.len(), published.len(), "seed {seed}: {well} has a publication twice");
            let may_lose = self.rule == Rule::Memory;
            for acknowledged in self.acknowledged.get(well).into_iter().flatten().filter(|_| !may_lose) {
                assert!(published.contains(acknowledged), "seed {seed}: {well} lost {acknowledged:?}");
            }
        }
        for (number, subscriber) in self.subscribers.iter().enumerate() {
            let who = format!("seed {seed}, subscriber {number}");
            let may_vanish = match self.rule {
                Rule::AckStored => self.world.crashes > 0 || self.failures,
                Rule::DeliverStored => false,
                Rule::Memory => true,
            };
            subscriber.judge(&truth[&subscriber.well], may_vanish, &who);
        }
    }

    fn report(&self, truth: &BTreeMap<String, Vec<(u64, String)>>) -> Report {
        Report {
            published: truth.values().map(Vec::len).sum(),
            delivered: self.subscribers.iter().map(|subscriber| subscriber.seen.len()).sum(),
            streams: self.subscribers.iter().map(|subscriber| subscriber.streams).sum(),
            gaps: self.subscribers.iter().map(|subscriber| subscriber.gaps.len()).sum(),
            lagging: self.world.count(Counter::Lagging),
            crashes: self.world.crashes,
            replays: self.world.count(Counter::Replays),
        }
    }
}

impl Publisher {
    /// One reading, an array or lines; now and then alerts.
    fn request(&mut self, random: &mut Random, wells: &[String], token: &str) -> Vec<u8> {
        self.left -= 1;
        let shape = random.below(4);
        let count = if shape == 0 { 1 } else { 1 + random.below(8) };
        let mut rows = Vec::new();
        for _ in 0..count {
            let well = wells[random.below(wells.len())].clone();
            let mark = format!("{}-{}", self.name, self.next);
            self.next += 1;
            let filling = "x".repeat(random.below(600));
            rows.push(format!(r#"{{"well_id":"{well}","mark":"{mark}","type":"t","filling":"{filling}"}}"#));
            self.asked.push((well, mark));
        }
        let path = if shape == 3 { "/api/v1/alerts" } else { "/api/v1/telemetry/ingest" };
        let body = match shape {
            1 => format!("[{}]", rows.join(",")),
            _ => rows.join("\n"),
        };
        let length = body.len();
        format!(
            "POST {path} HTTP/1.1\r\nHost: sim\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

/// Notes what a 202 says.
fn note(acknowledged: &mut Acknowledged, asked: &[(String, String)], response: &Response) {
    let body = String::from_utf8_lossy(&response.body).into_owned();
    let offsets = body.split_once("\"offsets\":[").map_or("", |(_, rest)| rest.trim_end_matches("]}"));
    let offsets: Vec<u64> = offsets.split(',').map(|offset| offset.parse().expect("an offset")).collect();
    assert_eq!(offsets.len(), asked.len(), "{body}");
    for ((well, mark), offset) in asked.iter().zip(offsets) {
        acknowledged.entry(well.clone()).or_default().push((offset, mark.clone()));
    }
}

impl Subscriber {
    fn new(well: &str) -> Self {
        Self {
            well: well.into(),
            client: None,
            frames: Frames::default(),
            start: None,
            last: None,
            seen: Vec::new(),
            gaps: Vec::new(),
            stalled: false,
            streams: 0,
        }
    }

    fn request(&self, token: &str) -> Vec<u8> {
        let last = self.last.map_or(String::new(), |last| format!("Last-Event-ID: {last}\r\n"));
        let well = &self.well;
        format!("GET /api/v1/sse/stream/{well}?token={token} HTTP/1.1\r\nHost: sim\r\n{last}\r\n")
            .into_bytes()
    }

    fn unstall(&mut self, world: &World) {
        if let Some((client, life)) = self.client
            && life == world.crashes
            && std::mem::take(&mut self.stalled)
        {
            world.net.client_stall(client, false);
        }
    }

    fn see(&mut self, frame: Frame, seed: u64) {
        let Frame { id, event, data } = frame;
        let last = self.last;
        match event.as_str() {
            "connected" => {
                if self.start.is_none() {
                    self.start = last.or(id);
                }
                assert!(last.is_none() || id <= last, "seed {seed}: connected at {id:?} after {last:?}");
                self.last = last.or(id);
            }
            "telemetry_update" | "alert" => {
                assert!(id > last, "seed {seed}: {} saw {id:?} after {last:?}", self.well);
                let mark = data.split_once("\"mark\":\"").and_then(|(_, rest)| rest.split_once('"'));
                self.seen.push((id.expect("an id"), mark.expect("a mark").0.into()));
                self.last = id;
            }
            "gap" => {
                let number = |name: &str| -> u64 {
                    let (_, rest) = data.split_once(&format!("\"{name}\":")).expect("a member");
                    rest.split([',', '}']).next().and_then(|number| number.parse().ok()).expect("a number")
                };
                let reason = data.split_once("\"reason\":\"").and_then(|(_, rest)| rest.split_once('"'));
                self.gaps.push((number("from"), number("to"), reason.expect("a reason").0.into()));
                assert!(id >= last, "seed {seed}: a gap at {id:?} after {last:?}");
                self.last = id;
            }
            "heartbeat" => {
                assert!(id >= last, "seed {seed}: heartbeat {id:?} after {last:?}");
                self.last = id;
            }
            other => panic!("seed {seed}: event {other}: {data}"),
        }
    }

    /// Everything after its start, once, in order, but for what it was told of.
    fn judge(&self, published: &[(u64, String)], may_vanish: bool, who: &str) {
        let Some(start) = self.start else { return };
        let newest = published.last().map_or(0, |(offset, _)| *offset);
        assert!(self.last.is_some_and(|last| last >= newest), "{who}: {:?} is not at {newest}", self.last);
        assert!(self.seen.is_sorted_by(|a, b| a.0 < b.0), "{who}: order");
        for seen in &self.seen {
            // What was delivered but never stored may be gone; its offset must stay unused.
            let gone = may_vanish && !published.iter().any(|(offset, _)| *offset == seen.0);
            assert!(gone || published.contains(seen), "{who}: saw {seen:?}, which is not in the topic");
        }
        let seen: HashSet<u64> = self.seen.iter().map(|(offset, _)| *offset).collect();
        for (offset, mark) in published.iter().filter(|(offset, _)| *offset > start) {
            let told = self.gaps.iter().any(|(from, to, _)| (*from..=*to).contains(offset));
            assert!(
                seen.contains(offset) || told,
                "{who}: never saw {offset} ({mark}) of {}; started at {start}, gaps {:?}",
                self.well,
                self.gaps
            );
        }
    }
}
