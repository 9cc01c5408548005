//! Starts everything, and ends it again.
//!
//! Order matters: doorbells are made before any shard has a descriptor table of its own, rings and listeners after,
//! in the thread that uses them. At the end the shards go first, so that the store takes their last words.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use protocol::dialect::DialectId;
use protocol::http;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::auth::{Keys, Users};
use crate::config::{Bind, Config, ConfigError, Durability, RingChoice, Shards};
use crate::connector::accounts::{self, Accounts};
use crate::connector::store::{self, Store, StoreError};
use crate::mesh::{Mesh, Port};
use crate::metrics::{Counter, Metrics};
use crate::ring::epoll::Epoll;
use crate::ring::refusal::SetupError;
use crate::ring::uring::Uring;
use crate::ring::{Fd, Ring};
use crate::session::{Manners, Offer, Site};
use crate::shard::{Bounds, Nodes, Parts, Phase, Shard, State};
use crate::sys;
use crate::topic::{IdRange, Rules, StoreNodes, Topics};

/// Connections a listening socket keeps until they are accepted; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: u32 = 65_535;
/// Submission queue entries of a ring: several slices of sends.
const RING_ENTRIES: u32 = 512;
/// Descriptors a shard needs beside its connections.
const OWN_DESCRIPTORS: u64 = 64;
/// Sends of one slice: as many as one submission pays for.
const SLICE: usize = 64;
/// Bytes of records that may wait for full lanes in a shard before it refuses to publish.
const WAITING_BYTES: usize = 64 << 20;

/// Why the server does not start.
#[derive(Debug)]
pub enum StartError {
    /// The configuration.
    Config(ConfigError),
    /// A listener.
    Listen(String, io::Error),
    /// The store.
    Store(StoreError),
    /// The ring that was asked for.
    Ring(SetupError),
    /// The system: threads, descriptors, signals.
    System(&'static str, io::Error),
    /// A shard has ended by itself.
    Shard(usize),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Config(error) => write!(f, "{error}"),
            Self::Listen(bind, error) if error.kind() == io::ErrorKind::AddrInUse => {
                write!(
                    f,
                    "can't listen on {bind}: something listens there already. Stop it, or choose another"
                )
            }
            Self::Listen(bind, error) => write!(f, "can't listen on {bind}: {error}"),
            Self::Store(error) => write!(f, "{error}"),
            Self::Ring(error) => write!(f, "--ring uring: {error}"),
            Self::System(what, error) => write!(f, "{what}: {error}"),
            Self::Shard(shard) => write!(f, "shard {shard} has ended by itself; this is a bug"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<ConfigError> for StartError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

/// A server that serves.
pub struct Running {
    /// Where it listens, one line each, as clients would write it.
    pub listeners: Vec<String>,
    /// The first TCP address.
    pub address: Option<SocketAddr>,
    state: Arc<State>,
    mesh: Arc<Mesh>,
    shards: Vec<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    metrics: Vec<Arc<Metrics>>,
    drain_timeout: Duration,
}

/// Serves until SIGTERM or SIGINT, then drains. `started` is called once everything answers.
///
/// # Errors
/// If it can't start.
pub fn run(config: &Config, started: impl FnOnce(&Running)) -> Result<(), StartError> {
    let system = |error| StartError::System("can't handle signals", error);
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(system)?;
    let (sender, asked) = channel();
    let running = start(config)?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if sender.send(signal).is_err() {
                    return;
                }
            }
        })
        .map_err(|error| StartError::System("can't start a thread", error))?;
    eprintln!("ready {}", running.listeners.join(" "));
    if let Err(error) = sys::sd_notify("READY=1") {
        tracing::warn!(%error, "the service manager was not told that the server is ready");
    }
    started(&running);
    running.wait(&asked)
}

/// Starts everything.
///
/// # Errors
/// If something can't be started; what was is stopped again.
pub fn start(config: &Config) -> Result<Running, StartError> {
    sys::refuse_huge_pages();
    let cpus = sys::allowed_cpus();
    let count = match config.server.shards {
        Shards::Auto => cpus.len().max(1),
        Shards::Count(count) => count,
    };
    say_limits(config, count);
    let secret = config.secret()?;
    let keys = || Keys::hs256(secret.bytes(), config.auth.audience.as_deref(), config.auth.issuer.as_deref());
    let users = Users::configured(config)?;
    let listeners = Listeners::prepare(config, count)?;
    let mesh = Mesh::new(count + 3, config.limits.lane_bytes.0, true)
        .map_err(|error| StartError::System("can't make doorbells", error))?;
    let location = store::Location::Directory(config.store.path.clone());
    let options = store::Options {
        durability: store_durability(config.store.durability),
        history_age: config.store.history_age,
        ..store::Options::new(count, mesh.max_record())
    };
    let (writer, reader, reserved) = Store::open(&location, &options).map_err(StartError::Store)?;
    let nodes = Nodes { shards: count, reader: count + 1, accounts: count + 2 };
    let stop = Arc::new(AtomicBool::new(false));
    let state = Arc::new(State::new(count));
    let metrics: Vec<Arc<Metrics>> = (0..count).map(|_| Arc::default()).collect();
    let seed = Seed {
        bounds: bounds(config),
        rules: rules(config),
        nodes,
        ids: id_ranges(&reserved),
        site: Arc::new(site(config, keys())),
        metrics: metrics.clone(),
        store_metrics: writer.metrics(),
        state: Arc::clone(&state),
        listeners: Arc::clone(&listeners),
        ring: config.server.ring,
        cpus,
    };
    let shards = start_shards(&mesh, seed)?;
    let mut others = Vec::new();
    let (port, stopped) = (mesh.port(count), Arc::clone(&stop));
    others.push(thread("store", move || writer.run(port, stopped))?);
    let (port, stopped) = (mesh.port(count + 1), Arc::clone(&stop));
    others.push(thread("store-reader", move || reader.run(port, stopped))?);
    let (port, stopped) = (mesh.port(count + 2), Arc::clone(&stop));
    let options = accounts::Options {
        attempts: config.limits.login_attempts,
        queue: config.limits.login_queue,
        token_ttl: config.auth.token_ttl,
    };
    let accounts = Accounts::new(users, keys(), options);
    others.push(thread("accounts", move || accounts.run(port, stopped))?);
    Ok(Running {
        listeners: listeners.described(),
        address: listeners.first_address(),
        state,
        mesh,
        shards,
        others,
        stop,
        metrics,
        drain_timeout: config.server.drain_timeout,
    })
}

impl Running {
    /// Waits for a signal, and drains; a second one hurries.
    fn wait(self, asked: &Receiver<i32>) -> Result<(), StartError> {
        loop {
            match asked.recv_timeout(Duration::from_millis(500)) {
                Ok(_) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(shard) = self.shards.iter().position(JoinHandle::is_finished) {
                        return Err(StartError::Shard(shard));
                    }
                }
            }
        }
        tracing::info!("draining: no new clients; a second signal ends at once");
        self.advance(Phase::Draining);
        let deadline = Instant::now() + self.drain_timeout;
        while !self.shards.iter().all(JoinHandle::is_finished) {
            let hurry = asked.try_recv().is_ok() || Instant::now() > deadline;
            if hurry && self.state.phase() != Phase::Ending {
                tracing::warn!("ending with clients still connected");
                self.advance(Phase::Ending);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.finish()
    }

    fn advance(&self, phase: Phase) {
        self.state.advance(phase);
        for node in 0..self.shards.len() {
            self.mesh.ring(node);
        }
    }

    /// The shards have ended: lets the store take what they left, and waits until it is synced.
    fn finish(self) -> Result<(), StartError> {
        for (number, shard) in self.shards.into_iter().enumerate() {
            shard.join().map_err(|_| StartError::Shard(number))?;
        }
        self.stop.store(true, Ordering::Release);
        let shards = self.state.turns.len();
        for node in shards..shards + self.others.len() {
            self.mesh.ring(node);
        }
        for thread in self.others {
            let ended = || StartError::System("a thread has ended by itself", io::Error::other("panic"));
            thread.join().map_err(|_| ended())?;
        }
        match self.metrics.iter().map(|shard| shard.get(Counter::PublishFailed)).sum::<u64>() {
            0 => tracing::info!("ended; everything is stored"),
            failed => {
                tracing::warn!("ended; {failed} publications could not be stored and were not acknowledged")
            }
        }
        Ok(())
    }
}

/// What every shard is grown from.
#[derive(Clone)]
struct Seed {
    bounds: Bounds,
    rules: Rules,
    nodes: Nodes,
    ids: Vec<IdRange>,
    site: Arc<Site>,
    metrics: Vec<Arc<Metrics>>,
    store_metrics: Arc<store::StoreMetrics>,
    state: Arc<State>,
    listeners: Arc<Listeners>,
    ring: RingChoice,
    cpus: Vec<usize>,
}

/// What a shard tells while it starts.
enum Word {
    /// Its ring works, or not.
    Ring(Option<SetupError>),
    /// It listens, or not.
    Listens(Result<(), StartError>),
}

fn start_shards(mesh: &Arc<Mesh>, seed: Seed) -> Result<Vec<JoinHandle<()>>, StartError> {
    let count = seed.nodes.shards;
    let (words, told) = channel();
    let mut shards = Vec::new();
    let mut orders = Vec::new();
    for number in 0..count {
        let (order, obey) = channel();
        let (seed, port, words) = (seed.clone(), mesh.port(number), words.clone());
        orders.push(order);
        shards.push(thread(&format!("shard-{number}"), move || {
            let _guard = EndTogether;
            grow(number, port, &seed, &words, &obey);
        })?);
    }
    let mut use_uring = seed.ring != RingChoice::Epoll;
    for _ in 0..count {
        if let Ok(Word::Ring(Some(error))) = told.recv() {
            if seed.ring == RingChoice::Uring {
                return Err(StartError::Ring(error));
            }
            if std::mem::replace(&mut use_uring, false) {
                tracing::warn!("io_uring can't be used, epoll serves instead (slower): {error}");
            }
        }
    }
    for order in &orders {
        let _ = order.send(use_uring);
    }
    for _ in 0..count {
        if let Ok(Word::Listens(result)) = told.recv() {
            result?;
        }
    }
    // All listen: now they serve.
    for order in &orders {
        let _ = order.send(true);
    }
    seed.listeners.release();
    tracing::info!(shards = count, ring = if use_uring { "io_uring" } else { "epoll" }, "serving");
    Ok(shards)
}

/// A shard's thread, from its own descriptor table to the end.
fn grow(number: usize, port: Port, seed: &Seed, words: &Sender<Word>, orders: &Receiver<bool>) {
    if let Err(error) = sys::unshare_files() {
        tracing::debug!(%error, "shards share one descriptor table");
    }
    if let Some(&cpu) = seed.cpus.get(number % seed.cpus.len().max(1))
        && let Err(error) = sys::pin_to(cpu)
    {
        tracing::debug!(%error, cpu, "a shard is not pinned");
    }
    let bell = port.bell().unwrap_or(-1);
    let mut uring = None;
    let mut refused = None;
    if seed.ring != RingChoice::Epoll {
        match Uring::new(RING_ENTRIES, bell) {
            Ok(ring) => uring = Some(ring),
            Err(error) => refused = Some(error),
        }
    }
    let _ = words.send(Word::Ring(refused));
    let Ok(use_uring) = orders.recv() else { return };
    match uring.filter(|_| use_uring) {
        Some(ring) => serve(ring, number, port, seed, words, orders),
        None => match Epoll::new(bell) {
            Ok(ring) => serve(ring, number, port, seed, words, orders),
            Err(error) => {
                let _ = words.send(Word::Listens(Err(StartError::System("can't make an epoll", error))));
            }
        },
    }
}

fn serve<R: Ring>(
    ring: R,
    number: usize,
    port: Port,
    seed: &Seed,
    words: &Sender<Word>,
    orders: &Receiver<bool>,
) {
    let (listeners, result) = match seed.listeners.open(number) {
        Ok(listeners) => (listeners, Ok(())),
        Err(error) => (Vec::new(), Err(error)),
    };
    let _ = words.send(Word::Listens(result));
    if orders.recv().is_err() {
        return;
    }
    let store = StoreNodes { writer: seed.nodes.shards, reader: seed.nodes.reader };
    let metrics = Arc::clone(&seed.metrics[number]);
    let shard = Shard::new(Parts {
        ring,
        port,
        nodes: seed.nodes,
        topics: Topics::new(seed.rules.clone(), store, seed.ids.clone(), metrics),
        site: Arc::clone(&seed.site),
        bounds: seed.bounds.clone(),
        metrics: seed.metrics.clone(),
        store_metrics: Arc::clone(&seed.store_metrics),
        state: Arc::clone(&seed.state),
        listeners,
    });
    shard.run();
}

/// A server that has lost a shard does not limp on: its topics would be silent without anybody knowing.
struct EndTogether;

impl Drop for EndTogether {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a shard has panicked; the process ends");
            std::process::abort();
        }
    }
}

/// The listeners' addresses, settled before any shard opens its own socket for each.
struct Listeners {
    binds: Vec<(Bind, bool)>,
    /// Sockets that hold a port the system has chosen, until the shards listen on it.
    held: Mutex<Vec<Fd>>,
}

impl Listeners {
    fn prepare(config: &Config, shards: usize) -> Result<Arc<Self>, StartError> {
        let mut binds = Vec::new();
        let mut held = Vec::new();
        let v4_ports: HashSet<u16> = config.listeners.iter().filter_map(v4_port).collect();
        for listener in &config.listeners {
            if listener.dialects.contains(DialectId::Test) {
                tracing::warn!("{} offers the test dialect to everybody: not for production", listener.bind);
            }
            let failed = |error| StartError::Listen(listener.bind.to_string(), error);
            match &listener.bind {
                Bind::Tcp(address) => {
                    let v6_only = address.is_ipv6() && v4_ports.contains(&address.port());
                    // Without SO_REUSEPORT this fails where anybody listens; with it two servers would share clients.
                    sys::close(sys::tcp_listener(*address, false, v6_only, 1).map_err(failed)?);
                    let mut address = *address;
                    if address.port() == 0 {
                        let hold = sys::tcp_holder(address, v6_only).map_err(failed)?;
                        held.push(hold);
                        address = sys::bound_addr(hold).map_err(failed)?;
                    }
                    binds.push((Bind::Tcp(address), v6_only));
                }
                Bind::Unix(path) => {
                    for shard in 0..shards {
                        let path = Bind::Unix(path.clone()).of_shard(shard);
                        make_directory(&path).map_err(failed)?;
                    }
                    binds.push((Bind::Unix(path.clone()), false));
                }
            }
        }
        Ok(Arc::new(Self { binds, held: Mutex::new(held) }))
    }

    /// Opens a shard's own sockets, in its thread.
    fn open(&self, shard: usize) -> Result<Vec<(u16, Fd)>, StartError> {
        let open = |(number, (bind, v6_only)): (usize, &(Bind, bool))| {
            let bind = bind.of_shard(shard);
            let fd = match &bind {
                Bind::Tcp(address) => sys::tcp_listener(*address, true, *v6_only, BACKLOG),
                Bind::Unix(path) => sys::unix_listener(&PathBuf::from(path)),
            };
            let fd = fd.map_err(|error| StartError::Listen(bind.to_string(), error))?;
            Ok((number as u16, fd))
        };
        self.binds.iter().enumerate().map(open).collect()
    }

    fn release(&self) {
        if let Ok(mut held) = self.held.lock() {
            held.drain(..).for_each(sys::close);
        }
    }

    fn described(&self) -> Vec<String> {
        self.binds.iter().map(|(bind, _)| bind.to_string()).collect()
    }

    fn first_address(&self) -> Option<SocketAddr> {
        self.binds.iter().find_map(|(bind, _)| match bind {
            Bind::Tcp(address) => Some(*address),
            Bind::Unix(_) => None,
        })
    }
}

fn v4_port(listener: &crate::config::Listener) -> Option<u16> {
    match &listener.bind {
        Bind::Tcp(address) if address.is_ipv4() => Some(address.port()),
        _ => None,
    }
}

fn make_directory(bind: &Bind) -> io::Result<()> {
    let Bind::Unix(path) = bind else { return Ok(()) };
    match PathBuf::from(path).parent() {
        Some(directory) => std::fs::create_dir_all(directory),
        None => Ok(()),
    }
}

fn thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, StartError> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map_err(|error| StartError::System("can't start a thread", error))
}

/// Says how many connections the limits allow, and what to change if the configuration wants more.
fn say_limits(config: &Config, shards: usize) {
    let (soft, hard) = sys::raise_nofile();
    let possible = soft.saturating_sub(OWN_DESCRIPTORS) * shards as u64;
    let wanted = config.limits.connections as u64;
    tracing::info!(per_shard = soft, possible, limit = wanted, "connections that descriptors allow");
    if possible < wanted && hard < wanted / shards as u64 {
        tracing::info!("for more connections raise the descriptor limit (LimitNOFILE=, ulimit -n) or shards");
    }
}

fn site(config: &Config, keys: Keys) -> Site {
    let offers = config.listeners.iter().map(|listener| Offer {
        dialects: listener.dialects,
        admin: listener.admin,
        origins: listener
            .dialects
            .iter()
            .map(|dialect| {
                let origins = &config.dialect(dialect).allowed_origins;
                (dialect, origins.iter().map(|origin| origin.as_str().to_owned()).collect())
            })
            .collect(),
    });
    Site {
        limits: http::Limits {
            head_bytes: config.limits.header_bytes.0,
            body_bytes: config.limits.body_bytes.0,
            ..http::Limits::default()
        },
        keys,
        token_ttl: config.auth.token_ttl.as_secs(),
        listeners: offers.collect(),
        manners: DialectId::ALL
            .iter()
            .map(|&dialect| {
                let settings = config.dialect(dialect);
                let heartbeat = settings.heartbeat.as_millis() as u64;
                Manners { platform: settings.platform.clone(), heartbeat }
            })
            .collect(),
    }
}

fn bounds(config: &Config) -> Bounds {
    let millis = |duration: Duration| duration.as_millis() as u64;
    Bounds {
        connections: config.limits.connections as u64,
        pending_bytes: config.limits.pending_bytes_per_connection.0 as u64,
        pending_age: millis(config.limits.pending_age),
        request_timeout: millis(config.limits.request_timeout),
        keep_alive_timeout: millis(config.limits.keep_alive_timeout),
        slice: SLICE,
        replays: config.limits.replays_in_progress,
        waiting_bytes: WAITING_BYTES,
        views: config.limits.topics,
    }
}

fn rules(config: &Config) -> Rules {
    Rules {
        log_publications: config.replay.publications,
        log_bytes: config.replay.bytes_per_shard.0,
        max_topics: config.limits.topics,
        ack_when_stored: config.store.durability != Durability::Memory,
        after_durable: config.store.deliver_after_durable.clone(),
    }
}

/// What a start may use: counters from the first unused to the last reserved.
fn id_ranges(reserved: &store::Start) -> Vec<IdRange> {
    let ranges = reserved.id_next.iter().zip(&reserved.id_ceilings);
    ranges.map(|(&next, &last)| IdRange { next, ceiling: last + 1, asked: false }).collect()
}

fn store_durability(durability: Durability) -> store::Durability {
    match durability {
        Durability::Fsync => store::Durability::Fsync,
        Durability::Os => store::Durability::Os,
        Durability::Memory => store::Durability::Memory,
    }
}
