//! Shards, store and network, and the steps they take.

use std::sync::Arc;
use std::time::Duration;

use engine::auth::{Keys, Principal, Role, Users};
use engine::connector::accounts::{self, Accounts};
use engine::mesh::{Mesh, Port};
use engine::metrics::{Counter, Metrics};
use engine::ring::sim::{ClientId, Faults, SimNet, SimRing};
use engine::session::{Manners, Offer, Site};
use engine::shard::{Bounds, Nodes, Parts, Shard, State};
use engine::topic::{Rules, StoreNodes, Topics};
use protocol::dialect::DialectId;
use protocol::http;
use protocol::topic::Filter;

use super::store::{Disk, Store};

/// 2025-11-20T10:30:00Z
pub const WALL: u64 = 1_763_634_600_000;
const SECRET: &[u8] = b"a secret that only the simulation knows";

/// A small generator of numbers that look random (splitmix64).
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5851_F42D_4C95_7F2D)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.number() % bound.max(1) as u64) as usize
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Shards.
    pub shards: usize,
    /// What goes wrong on the network.
    pub faults: Faults,
    /// Publications a topic log keeps.
    pub log_publications: usize,
    /// Bytes a member may be behind.
    pub pending_bytes: u64,
    /// Bytes of a lane.
    pub lane_bytes: usize,
    /// Sends between two looks at completions.
    pub slice: usize,
    /// When publications are delivered and acknowledged.
    pub rule: Rule,
}

/// When publications are delivered and acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Delivered at once, acknowledged when stored.
    AckStored,
    /// Delivered and acknowledged when stored.
    DeliverStored,
    /// Both at once.
    Memory,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            shards: 2,
            faults: Faults::default(),
            log_publications: 1000,
            pending_bytes: 1 << 20,
            lane_bytes: 1 << 16,
            slice: 64,
            rule: Rule::AckStored,
        }
    }
}

/// A server and its network.
pub struct World {
    /// The network.
    pub net: SimNet,
    /// The store.
    pub store: Option<Store>,
    setup: Setup,
    shards: Vec<Shard<SimRing>>,
    metrics: Vec<Arc<Metrics>>,
    random: Random,
    keys: Keys,
    accounts: Option<(Accounts, Port)>,
    /// Crashes so far.
    pub crashes: usize,
}

impl World {
    /// A server that has just started, with an empty store.
    pub fn new(seed: u64, setup: Setup) -> Self {
        let net = SimNet::new(seed, setup.faults.clone(), WALL);
        let mut world = Self {
            net,
            store: None,
            setup,
            shards: Vec::new(),
            metrics: Vec::new(),
            random: Random::new(seed),
            keys: Keys::hs256(SECRET, None, None),
            accounts: None,
            crashes: 0,
        };
        world.start(Disk::default());
        world
    }

    fn start(&mut self, mut disk: Disk) {
        let count = self.setup.shards;
        let mesh = Mesh::new(count + 3, self.setup.lane_bytes, false).expect("no bells, no errors");
        let ids = disk.start();
        let (nodes, store) = (
            Nodes { shards: count, reader: count + 1, accounts: count + 2 },
            StoreNodes { writer: count, reader: count + 1 },
        );
        let rules = Rules {
            log_publications: self.setup.log_publications,
            log_bytes: 1 << 20,
            max_topics: 1000,
            ack_when_stored: self.setup.rule != Rule::Memory,
            after_durable: match self.setup.rule {
                Rule::DeliverStored => vec![Filter::parse("#").expect("a filter")],
                _ => Vec::new(),
            },
        };
        let site = Arc::new(site());
        let state = Arc::new(State::new(count));
        self.metrics = (0..count).map(|_| Arc::default()).collect();
        self.shards = (0..count)
            .map(|number| {
                Shard::new(Parts {
                    ring: self.net.ring(number),
                    port: mesh.port(number),
                    nodes,
                    topics: Topics::new(rules.clone(), store, ids.clone(), Arc::clone(&self.metrics[number])),
                    site: Arc::clone(&site),
                    bounds: bounds(&self.setup),
                    metrics: self.metrics.clone(),
                    store_metrics: Arc::default(),
                    state: Arc::clone(&state),
                    listeners: vec![(0, 0)],
                })
            })
            .collect();
        self.store = Some(Store::new(disk, mesh.port(count), mesh.port(count + 1), count));
        let options = accounts::Options { attempts: 1, queue: 8, token_ttl: Duration::from_secs(3600) };
        let accounts = Accounts::new(users(), Keys::hs256(SECRET, None, None), options);
        self.accounts = Some((accounts, mesh.port(count + 2)));
    }

    /// The process dies at once, and starts again with what its store had committed. No connection survives.
    pub fn crash(&mut self) {
        self.shards.clear();
        self.crashes += 1;
        let disk = self.store.take().map(|store| store.disk).unwrap_or_default();
        self.net = SimNet::new(self.random.number(), self.setup.faults.clone(), self.net.now().wall + 1000);
        self.start(disk);
    }

    /// A token for everything.
    pub fn token(&self) -> String {
        let principal = Principal {
            subject: "sim".into(),
            username: "sim".into(),
            role: Role::Admin,
            wells: None,
            expires: 0,
        };
        self.issue(&principal, 1 << 30)
    }

    /// A token for this principal, valid for so many seconds.
    pub fn issue(&self, principal: &Principal, ttl: u64) -> String {
        self.keys.issue(principal, ttl, self.net.now().wall / 1000).expect("a token")
    }

    /// A client of a random shard.
    pub fn connect(&mut self) -> ClientId {
        let shard = self.random.below(self.shards.len());
        self.net.connect(shard, 0)
    }

    /// Some shards turn, in some order; the store may; time passes.
    pub fn step(&mut self) {
        for _ in 0..self.shards.len() {
            let shard = self.random.below(self.shards.len());
            self.shards[shard].turn(Duration::ZERO);
        }
        let (writes, reads) = (self.random.one_in(2), self.random.one_in(2));
        let most = 1 + self.random.below(50);
        if let Some(store) = &mut self.store {
            if writes {
                store.write(most);
            }
            if reads {
                store.read(most);
            }
        }
        self.net.advance(Duration::from_micros(10 + self.random.below(2000) as u64));
    }

    /// All shards and the store turn once, and a millisecond passes: the same steps every time.
    pub fn settle(&mut self) {
        self.turn_all();
        self.net.advance(Duration::from_millis(1));
    }

    /// All shards, the store and the accounts turn once; no time passes.
    pub fn turn_all(&mut self) {
        for shard in &mut self.shards {
            shard.turn(Duration::ZERO);
        }
        if let Some(store) = &mut self.store {
            store.write(usize::MAX);
            store.read(usize::MAX);
        }
        let seconds = self.net.now().wall / 1000;
        if let Some((accounts, port)) = &mut self.accounts {
            accounts.turn(port, seconds);
        }
    }

    /// The sum of a counter.
    pub fn count(&self, counter: Counter) -> u64 {
        self.metrics.iter().map(|metrics| metrics.get(counter)).sum()
    }
}

fn site() -> Site {
    Site {
        limits: http::Limits::default(),
        keys: Keys::hs256(SECRET, None, None),
        token_ttl: 3600,
        listeners: vec![Offer {
            dialects: DialectId::ALL.iter().copied().collect(),
            admin: false,
            origins: Vec::new(),
        }],
        manners: DialectId::ALL
            .iter()
            .map(|_| Manners { platform: "Alkhorayef ESP IoT Platform".into(), heartbeat: 30_000 })
            .collect(),
    }
}

/// `admin`, whose password is `your-password`.
fn users() -> Users {
    const HASH: &str =
        "$argon2id$v=19$m=64,t=1,p=1$NIFc9ZoOFR6chkMLuaT9eQ$rG/1iCwJOql5XSftkZMMPWiKjVerIDqDEfpY93A721w";
    let text = format!("[[user]]\nname = \"admin\"\nrole = \"admin\"\npassword = \"{HASH}\"\n");
    Users::parse("users.toml", &text).expect("a users file")
}

fn bounds(setup: &Setup) -> Bounds {
    Bounds {
        connections: 10_000,
        pending_bytes: setup.pending_bytes,
        pending_age: 30_000,
        request_timeout: 10_000,
        keep_alive_timeout: 75_000,
        slice: setup.slice,
        replays: 4,
        waiting_bytes: 1 << 20,
        views: 1000,
    }
}
