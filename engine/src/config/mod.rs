//! The configuration: every setting with its type, its default, its range and its reason, in one table.
//!
//! `source` merges file, environment and flags into a tree that knows where each value came from; `section` reads
//! the table below out of it; `units` and `values` are the types of values. Everything but [`Config::load`] and
//! [`Config::secret`] is pure: text in, configuration or [`ConfigError`] out.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::dialect::{self, DialectId, DialectSet};
use protocol::topic::Filter;

pub(crate) mod section;
pub(crate) mod source;
pub(crate) mod units;
pub(crate) mod values;

pub use source::{ConfigError, Flag, PREFIX, Place, Problem};
pub use units::{Size, duration};
pub use values::{Bind, Durability, MAX_SHARDS, MIN_SECRET_BYTES, Origin, RingChoice, SHARD, Secret, Shards};

pub(crate) use values::wipe;

use section::{Section, sections};
use source::Node;

sections! {
    /// Shards, and how the server ends.
    Server {
        /// Number of shards, 1 to 128; "auto" is one for each CPU that this process may use.
        shards: Shards = "auto",
        /// How shards talk to the kernel: "uring", "epoll", or "auto": io_uring unless it is refused.
        ring: RingChoice = "auto",
        /// How long a drain may take before what is left is cut off.
        drain_timeout: Duration = "10s" ["0ms" to "10m"],
    }

    /// An address, and what is offered there.
    Listener {
        /// `0.0.0.0:8000`, `[::]:8000` or `unix:/run/wellhead/http-{shard}.sock`: one socket for each shard, so
        /// with several shards the path must hold {shard}.
        bind: Bind,
        /// The systems it speaks for. Two that claim the same path can't share a listener.
        dialects: DialectSet,
        /// Whether metrics and the admin endpoints are served here to everybody who can connect.
        admin: bool = "false",
    }

    /// Who may connect.
    Auth {
        /// Signs and checks tokens (HS256); at least 32 bytes. Better kept in a file of its own.
        secret: Option<Secret>,
        /// The file that holds the secret; a newline at its end is not part of it.
        secret_file: Option<PathBuf>,
        /// Names and password hashes, as `wellhead user add` writes them. Without it nobody can log in.
        users_file: Option<PathBuf>,
        /// How long a token lives that a login or a refresh gives.
        token_ttl: Duration = "1h" ["1s" to "365d"],
        /// Tokens must name it in `aud`.
        audience: Option<String>,
        /// Tokens must name it in `iss`, and ours do.
        issuer: Option<String>,
    }

    /// The embedded store.
    Store {
        /// Its directory.
        path: PathBuf = "/var/lib/wellhead",
        /// When a publication is acknowledged: once it is on the disk ("fsync"), once the operating system has it
        /// ("os"), or at once ("memory").
        durability: Durability = "fsync",
        /// Topics whose publications are delivered only once they are stored; all others are delivered at once.
        deliver_after_durable: Vec<Filter>,
        /// Publications older than this are removed.
        history_age: Duration = "7d" ["1s" to "3650d"],
    }

    /// What topics keep in memory for those that resume; what is older comes from the store.
    Replay {
        /// Publications of one topic.
        publications: usize = "1000" ["1" to "1000000"],
        /// Publications of all topics of one shard.
        bytes_per_shard: Size = "256MiB" ["4KiB" to "1024GiB"],
    }

    /// How one system is spoken for.
    DialectSettings {
        /// A stream that has nothing to say says so this often, so that proxies and clients know it lives.
        heartbeat: Duration = "30s" ["100ms" to "10m"],
        /// The platform's name in messages to people.
        platform: String = "wellhead",
        /// Pages of these origins may use it from a browser; pages of the server's own origin always may.
        allowed_origins: Vec<Origin>,
    }

    /// Bounds. Whatever is cut off by one of them is counted.
    Limits {
        /// Connections open at once, in the whole process: each costs memory and a descriptor.
        connections: usize = "1000000" ["1" to "16000000"],
        /// Bytes that a connection may be behind before it is sent only the newest: bounds what a slow reader costs.
        pending_bytes_per_connection: Size = "1MiB" ["4KiB" to "1GiB"],
        /// Time that a connection may be behind before it is closed: ends readers that have stopped.
        pending_age: Duration = "30s" ["100ms" to "1h"],
        /// Bytes of a request's line and fields: what a client can make us hold before we know who it is.
        header_bytes: Size = "16KiB" ["1KiB" to "1MiB"],
        /// Time for a whole request, head and body, not per byte: ends clients that dribble.
        request_timeout: Duration = "10s" ["100ms" to "1h"],
        /// Time that a connection may wait for its next request.
        keep_alive_timeout: Duration = "75s" ["100ms" to "1h"],
        /// Bytes of a request's body: the largest batch of readings.
        body_bytes: Size = "8MiB" ["1KiB" to "1GiB"],
        /// Topics of one shard: each costs memory while the server runs.
        topics: usize = "100000" ["1" to "16000000"],
        /// Readers of one shard that are being sent history at once: the others wait their turn.
        replays_in_progress: usize = "64" ["1" to "65536"],
        /// Bytes of the lane between two shards, a power of two: what one may be ahead of the other.
        lane_bytes: Size = "1MiB" ["1MiB" to "256MiB"],
        /// Passwords checked at once: each takes a CPU for tens of milliseconds, and 19 MiB.
        login_attempts: usize = "2" ["1" to "64"],
        /// Logins that wait for that; one more is told to come back later.
        login_queue: usize = "64" ["1" to "65536"],
    }
}

/// The whole configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[server]`
    pub server: Server,
    /// `[[listener]]`; at least one.
    pub listeners: Vec<Listener>,
    /// `[auth]`
    pub auth: Auth,
    /// `[store]`
    pub store: Store,
    /// `[store.replay]`
    pub replay: Replay,
    /// `[dialect.NAME]`, in the order of the table of dialects.
    dialects: Vec<DialectSettings>,
    /// `[limits]`
    pub limits: Limits,
    /// Where everything was given; the values themselves are forgotten.
    given: Node,
}

impl Config {
    /// Reads the file, the environment of this process and the flags. Without a file, there are only the others.
    ///
    /// # Errors
    /// If the file can't be read, or something in it, in a variable or in a flag is wrong.
    pub fn load(file: Option<&Path>, flags: &[Flag]) -> Result<Self, ConfigError> {
        let tree = match file {
            None => Node::empty(),
            Some(path) => {
                let text = fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
                Node::parse(&path.to_string_lossy(), &text)?
            }
        };
        Self::merge(tree, environment()?, flags)
    }

    /// The configuration that a file of this text, these variables (name and value; those that don't start with
    /// [`PREFIX`] are passed over) and these flags give. `file` is how errors call the file.
    ///
    /// # Errors
    /// If something in them is wrong: the first thing found.
    pub fn from_text(
        file: &str,
        text: &str,
        variables: impl IntoIterator<Item = (String, String)>,
        flags: &[Flag],
    ) -> Result<Self, ConfigError> {
        Self::merge(Node::parse(file, text)?, variables, flags)
    }

    /// What `wellhead demo` runs with: the defaults, on the loopback address, keeping everything in `directory`,
    /// which holds the users as `users.toml`.
    ///
    /// # Errors
    /// If the secret is too short, or a flag is wrong.
    pub fn demo(port: u16, directory: &Path, secret: &str, flags: &[Flag]) -> Result<Self, ConfigError> {
        let mut tree = Node::empty();
        let users = demo_users_file(directory);
        for (key, value) in [
            ("listener.0.bind", format!("127.0.0.1:{port}")),
            ("listener.0.dialects.0", DialectId::ALL[0].name().into()),
            ("auth.secret", secret.into()),
            ("auth.users_file", users.to_string_lossy().into_owned()),
            ("store.path", directory.join("store").to_string_lossy().into_owned()),
        ] {
            tree.lay(key, &value, Place::Default)?;
        }
        Self::merge(tree, [], flags)
    }

    /// The settings of a dialect.
    pub fn dialect(&self, dialect: DialectId) -> &DialectSettings {
        &self.dialects[dialect as usize]
    }

    /// The secret that signs tokens, read from its file if it is in one.
    ///
    /// # Errors
    /// If there is none, it is too short, or its file can't be read.
    pub fn secret(&self) -> Result<Secret, ConfigError> {
        if let Some(secret) = &self.auth.secret {
            return Ok(secret.clone());
        }
        let key = "auth.secret_file";
        let Some(path) = &self.auth.secret_file else {
            return Err(self.error(key, Problem::Missing(
                "Tokens are signed with a secret. Make one with `wellhead secret > /etc/wellhead/secret`, \
                 readable by the server only, and name it below [auth]: \
                 secret_file = \"/etc/wellhead/secret\"",
            )));
        };
        let mut bytes = fs::read(path).map_err(|error| {
            self.error(key, Problem::File(format!("can't read {}: {error}", path.display())))
        })?;
        let end = bytes.len() - bytes.iter().rev().take_while(|byte| b"\r\n".contains(byte)).count();
        let secret = Secret::new(&bytes[..end]);
        wipe(&mut bytes);
        secret.ok_or_else(|| {
            self.error(
                key,
                Problem::Refused(format!(
                    "{} holds {end} bytes; a secret has at least {MIN_SECRET_BYTES}. \
                 Make one with `wellhead secret`",
                    path.display(),
                )),
            )
        })
    }

    /// The configuration as a file that gives the same, with every key, its reason, its default and its range.
    /// Secrets are left out.
    pub fn print(&self) -> String {
        let mut out = String::new();
        self.server.entries().print("[server]", &mut out);
        for listener in &self.listeners {
            listener.entries().print("[[listener]]", &mut out);
        }
        self.auth.entries().print("[auth]", &mut out);
        self.store.entries().print("[store]", &mut out);
        self.replay.entries().print("[store.replay]", &mut out);
        for (dialect, settings) in DialectId::ALL.iter().zip(&self.dialects) {
            settings.entries().print(&format!("[dialect.{}]", dialect.name()), &mut out);
        }
        self.limits.entries().print("[limits]", &mut out);
        out
    }

    /// The error that something is wrong with a key, or with the file it names.
    pub fn error(&self, key: &str, problem: Problem) -> ConfigError {
        ConfigError { place: self.given.place_of(key).clone(), key: key.into(), problem }
    }

    fn merge(
        mut tree: Node,
        variables: impl IntoIterator<Item = (String, String)>,
        flags: &[Flag],
    ) -> Result<Self, ConfigError> {
        if !tree.has("listener") {
            // The first dialect; the environment may replace parts of it.
            tree.lay("listener.0.bind", "0.0.0.0:8000", Place::Default)?;
            tree.lay("listener.0.dialects.0", DialectId::ALL[0].name(), Place::Default)?;
        }
        tree.lay_environment(variables)?;
        for flag in flags {
            tree.lay(flag.key, &flag.value, Place::Flag(flag.name))?;
        }
        Self::read(tree)
    }

    fn read(given: Node) -> Result<Self, ConfigError> {
        let mut root = Section::root(&given)?;
        let server = Server::read(root.section("server")?)?;
        let listeners = root.sections("listener")?.into_iter().map(Listener::read);
        let listeners = listeners.collect::<Result<_, _>>()?;
        let auth = Auth::read(root.section("auth")?)?;
        let mut store = root.section("store")?;
        let replay = Replay::read(store.section("replay")?)?;
        let store = Store::read(store)?;
        let mut section = root.section("dialect")?;
        let dialects = DialectId::ALL.iter();
        let dialects = dialects.map(|id| DialectSettings::read(section.section(id.name())?));
        let dialects = dialects.collect::<Result<_, _>>()?;
        section.finish()?;
        let limits = Limits::read(root.section("limits")?)?;
        root.finish()?;
        let mut config = Self { server, listeners, auth, store, replay, dialects, limits, given };
        config.given.forget();
        config.choose_secret()?;
        config.check_listeners()?;
        config.check_lanes()?;
        Ok(config)
    }

    /// Of two secrets the one from the higher layer counts.
    fn choose_secret(&mut self) -> Result<(), ConfigError> {
        if self.auth.secret.is_none() || self.auth.secret_file.is_none() {
            return Ok(());
        }
        let layer = |key| self.given.place_of(key).layer();
        match layer("auth.secret").cmp(&layer("auth.secret_file")) {
            std::cmp::Ordering::Less => self.auth.secret = None,
            std::cmp::Ordering::Greater => self.auth.secret_file = None,
            std::cmp::Ordering::Equal => {
                let why = "give either `secret` or `secret_file`, not both";
                return Err(self.error("auth.secret", Problem::Refused(why.into())));
            }
        }
        Ok(())
    }

    fn check_listeners(&self) -> Result<(), ConfigError> {
        if self.listeners.is_empty() {
            let why = "the list is empty; leave it out for the default listener";
            return Err(self.error("listener", Problem::Refused(why.into())));
        }
        for (index, listener) in self.listeners.iter().enumerate() {
            if let Some((key, why)) = self.objection(index, listener) {
                let key = format!("listener.{index}.{key}");
                return Err(self.error(&key, Problem::Refused(why)));
            }
        }
        Ok(())
    }

    /// What is wrong with a listener, and with which key of it.
    fn objection(&self, index: usize, listener: &Listener) -> Option<(&'static str, String)> {
        let bind = &listener.bind;
        if let Bind::Unix(path) = bind
            && self.server.shards != Shards::Count(1)
            && !path.contains(SHARD)
        {
            let why =
                format!("the path must hold {SHARD} unless server.shards is 1: each shard has a socket");
            return Some(("bind", why));
        }
        // Port 0 is another port each time.
        let is_any = matches!(bind, Bind::Tcp(address) if address.port() == 0);
        if !is_any && self.listeners[..index].iter().any(|other| other.bind == *bind) {
            return Some(("bind", format!("another listener has {bind} already")));
        }
        if listener.dialects.is_empty() && !listener.admin {
            let names: Vec<_> = DialectId::ALL.iter().map(|dialect| dialect.name()).collect();
            let why =
                format!("nothing is offered here: name some of {}, or say admin = true", names.join(", "));
            return Some(("dialects", why));
        }
        let (a, b, path) = dialect::conflicts(listener.dialects)?;
        let why =
            format!("{} and {} both claim {path}; give them listeners of their own", a.name(), b.name());
        Some(("dialects", why))
    }

    fn check_lanes(&self) -> Result<(), ConfigError> {
        if self.limits.lane_bytes.0.is_power_of_two() {
            return Ok(());
        }
        let why = format!("{} is not a power of two", self.limits.lane_bytes);
        Err(self.error("limits.lane_bytes", Problem::Refused(why)))
    }
}

/// Where the demo keeps its users.
pub(crate) fn demo_users_file(directory: &Path) -> PathBuf {
    directory.join("users.toml")
}

/// The error that a file can't be read.
pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> ConfigError {
    let problem = Problem::File(format!("can't read {}: {error}", path.display()));
    ConfigError { place: Place::Default, key: String::new(), problem }
}

/// The variables of this process that set a key.
fn environment() -> Result<Vec<(String, String)>, ConfigError> {
    let ours = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.starts_with(PREFIX));
    ours.map(|(name, value)| match value.into_string() {
        Ok(value) => Ok((name, value)),
        Err(_) => Err(ConfigError {
            place: Place::Variable(name),
            key: String::new(),
            problem: Problem::Refused("its value is not UTF-8".into()),
        }),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn from(text: &str, variables: &[(&str, &str)], flags: &[Flag]) -> Result<Config, ConfigError> {
        let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        Config::from_text("w.toml", text, variables, flags)
    }

    fn good(text: &str) -> Config {
        from(text, &[], &[]).unwrap()
    }

    fn flag(name: &'static str, key: &'static str, value: &str) -> Flag {
        Flag { name, key, value: value.into() }
    }

    #[test]
    fn nothing_given_gives_the_defaults() {
        let config = good("");
        assert_eq!(config.server.shards, Shards::Auto);
        assert_eq!(config.server.ring, RingChoice::Auto);
        assert_eq!(config.server.drain_timeout, Duration::from_secs(10));
        let [listener] = &config.listeners[..] else { panic!("{:?}", config.listeners) };
        assert_eq!(listener.bind.to_string(), "0.0.0.0:8000");
        assert!(listener.dialects.iter().eq([DialectId::Esp]) && !listener.admin);
        assert_eq!(config.auth.token_ttl, Duration::from_secs(3600));
        assert_eq!(config.store.durability, Durability::Fsync);
        assert_eq!(config.store.history_age, Duration::from_secs(7 * 86_400));
        assert_eq!((config.replay.publications, config.replay.bytes_per_shard), (1000, Size(256 << 20)));
        let esp = config.dialect(DialectId::Esp);
        assert_eq!((esp.heartbeat, esp.platform.as_str()), (Duration::from_secs(30), "wellhead"));
        assert!(esp.allowed_origins.is_empty());
        assert_eq!((config.limits.connections, config.limits.header_bytes), (1_000_000, Size(16 << 10)));
    }

    #[test]
    fn what_is_given_counts() {
        let config = good(
            r#"
            [server]
            shards = 4
            ring = "epoll"
            [[listener]]
            bind = "[::]:8000"
            dialects = ["esp"]
            [[listener]]
            bind = "unix:/run/wellhead/http-{shard}.sock"
            dialects = ["test"]
            [[listener]]
            bind = "127.0.0.1:9000"
            admin = true
            [store]
            path = "/data"
            durability = "os"
            deliver_after_durable = ["wells/+"]
            replay = { publications = 10, bytes_per_shard = "1MB" }
            [dialect.esp]
            platform = "Plant"
            allowed_origins = ["https://Dashboard.example", "http://localhost:3000"]
            "#,
        );
        assert_eq!(config.server.shards, Shards::Count(4));
        assert_eq!(config.listeners.len(), 3);
        let socket = config.listeners[1].bind.of_shard(3);
        assert_eq!(socket, Bind::Unix("/run/wellhead/http-3.sock".into()));
        assert_eq!(config.listeners[0].bind.of_shard(3), config.listeners[0].bind);
        assert!(config.listeners[2].admin && config.listeners[2].dialects.is_empty());
        assert_eq!((config.replay.publications, config.replay.bytes_per_shard), (10, Size(1_000_000)));
        assert_eq!(config.store.deliver_after_durable[0].as_str(), "wells/+");
        let esp = config.dialect(DialectId::Esp);
        let origins: Vec<_> = esp.allowed_origins.iter().map(Origin::as_str).collect();
        assert_eq!(origins, ["https://dashboard.example", "http://localhost:3000"]);
        assert_eq!(config.dialect(DialectId::Test).platform, "wellhead");
    }

    /// Each text fails with an error that starts with its message.
    fn fail(rows: &[(&str, &str)]) {
        for (text, message) in rows {
            let error = from(text, &[], &[]).expect_err(text).to_string();
            assert!(error.starts_with(message), "{text}\n{error}\n{message}");
        }
    }

    #[test]
    fn bad_files_and_server_keys_are_pointed_at() {
        fail(&[
            ("[server\n", "w.toml:1: not TOML: "),
            ("[server]\nring = \"auto\"\nring = \"auto\"\n", "w.toml:3: not TOML: duplicate key"),
            ("x = 1", "w.toml:1: x: unknown key; there are server, listener, auth, store, dialect, limits"),
            ("\n[redis]\nurl = \"x\"", "w.toml:2: redis: unknown key; there are server, listener"),
            (
                "\n[server]\n\nshard = 1",
                "w.toml:4: server.shard: unknown key; there are shards, ring, drain_timeout",
            ),
            ("server = 1", "w.toml:1: server: expected a table, found 1"),
            (
                "[server]\nshards = 0",
                "w.toml:2: server.shards: expected \"auto\" or a number from 1 to 128, found 0",
            ),
            (
                "[server]\nshards = 129",
                "w.toml:2: server.shards: expected \"auto\" or a number from 1 to 128, found 129",
            ),
            (
                "[server]\nshards = \"many\"",
                "w.toml:2: server.shards: expected \"auto\" or a number from 1 to 128, found \"many\"",
            ),
            (
                "[server]\nshards = 1.5",
                "w.toml:2: server.shards: expected \"auto\" or a number from 1 to 128, found a number with a fraction",
            ),
            (
                "[server]\nring = true",
                "w.toml:2: server.ring: expected \"auto\", \"uring\" or \"epoll\", found true",
            ),
            (
                "[server]\ndrain_timeout = 10",
                "w.toml:2: server.drain_timeout: expected a duration with its unit (ms, s, m, h, d), \
                 such as \"10s\", found 10",
            ),
            (
                "[server]\ndrain_timeout = \"1h\"",
                "w.toml:2: server.drain_timeout: expected 0ms to 10m, found \"1h\"",
            ),
        ]);
    }

    #[test]
    fn bad_listeners_are_pointed_at() {
        fail(&[
            ("[[listener]]\nadmin = true", "w.toml:1: listener.0.bind: missing. It has no default: give one"),
            ("listener = []", "w.toml:1: listener: the list is empty; leave it out"),
            (
                "[listener]\nbind = \"\"",
                "w.toml:1: listener: expected a list of tables: [[listener]], found a table",
            ),
            (
                "[[listener]]\nbind = \"localhost:80\"",
                "w.toml:2: listener.0.bind: expected an address and a port such as \"0.0.0.0:8000\"",
            ),
            ("[[listener]]\nbind = \"unix:run/x\"", "w.toml:2: listener.0.bind: expected an address"),
            (
                "[[listener]]\nbind = \"0.0.0.0:1\"",
                "w.toml:1: listener.0.dialects: nothing is offered here: name some of esp, test",
            ),
            (
                "[[listener]]\nbind = \"0.0.0.0:1\"\ndialects = [\"esp\",\n\"iris\"]",
                "w.toml:4: listener.0.dialects.1: expected the name of a dialect, found \"iris\"",
            ),
            (
                "[[listener]]\nbind = \"0.0.0.0:1\"\ndialects = \"esp\"",
                "w.toml:3: listener.0.dialects: expected a list, found \"esp\"",
            ),
            (
                "[[listener]]\nbind = \"0.0.0.0:1\"\nadmin = true\n[[listener]]\nbind = \"0.0.0.0:1\"\nadmin = true",
                "w.toml:5: listener.1.bind: another listener has 0.0.0.0:1 already",
            ),
            (
                "[[listener]]\nbind = \"unix:/run/x.sock\"\nadmin = true",
                "w.toml:2: listener.0.bind: the path must hold {shard} unless server.shards is 1",
            ),
            (
                "[[listener]]\nbind = \"0.0.0.0:1\"\nmqtt = true",
                "w.toml:3: listener.0.mqtt: unknown key; there are bind, dialects, admin",
            ),
        ]);
    }

    #[test]
    fn bad_auth_keys_are_pointed_at() {
        fail(&[
            (
                "[auth]\nsecret = \"0123456789abcdef0123456789abcde\"",
                "w.toml:2: auth.secret: expected at least 32 bytes, as `wellhead secret` prints them, \
                 found something else (not shown)",
            ),
            ("[auth]\nsecret = 123456789", "w.toml:2: auth.secret: expected at least 32 bytes"),
            (
                "[auth]\naudience = \"\"",
                "w.toml:2: auth.audience: expected a text that is not empty, found \"\"",
            ),
            ("[auth]\nissuer = 5", "w.toml:2: auth.issuer: expected a text that is not empty, found 5"),
            ("[auth]\ntoken_ttl = \"1ms\"", "w.toml:2: auth.token_ttl: expected 1s to 365d, found \"1ms\""),
        ]);
    }

    #[test]
    fn bad_values_are_pointed_at() {
        fail(&[
            (
                "[store]\nreplay = { rows = 1 }",
                "w.toml:2: store.replay.rows: unknown key; there are publications, bytes_per_shard",
            ),
            (
                "[store.replay]\npublications = 0",
                "w.toml:2: store.replay.publications: expected 1 to 1000000, found 0",
            ),
            (
                "[store.replay]\npublications = \"5\"",
                "w.toml:2: store.replay.publications: expected a whole number, found \"5\"",
            ),
            (
                "[store.replay]\npublications = -1",
                "w.toml:2: store.replay.publications: expected a whole number, found -1",
            ),
            (
                "[store]\ndeliver_after_durable = [\"a/#/b\"]",
                "w.toml:2: store.deliver_after_durable.0: expected a topic filter",
            ),
            (
                "[dialect.iris]\nheartbeat = \"1s\"",
                "w.toml:1: dialect.iris: unknown key; there are esp, test",
            ),
            (
                "[dialect.esp]\nheartbeat = \"0s\"",
                "w.toml:2: dialect.esp.heartbeat: expected 100ms to 10m, found \"0s\"",
            ),
            (
                "[dialect.esp]\nallowed_origins = [\"*\"]",
                "w.toml:2: dialect.esp.allowed_origins.0: expected an origin",
            ),
            (
                "[dialect.esp]\nallowed_origins = [\"https://a/b\"]",
                "w.toml:2: dialect.esp.allowed_origins.0: expected an origin",
            ),
            (
                "[dialect.esp]\nallowed_origins = [5]",
                "w.toml:2: dialect.esp.allowed_origins.0: expected an origin",
            ),
            (
                "[limits]\nheader_bytes = 16384",
                "w.toml:2: limits.header_bytes: expected a size with its unit (B, KB, MB, GB, KiB, MiB, GiB), \
                 such as \"16KiB\", found 16384",
            ),
            (
                "[limits]\nheader_bytes = \"1B\"",
                "w.toml:2: limits.header_bytes: expected 1KiB to 1MiB, found \"1B\"",
            ),
            ("[limits]\nlogin_attempts = 65", "w.toml:2: limits.login_attempts: expected 1 to 64, found 65"),
            ("[limits]\nlane_bytes = \"3MiB\"", "w.toml:2: limits.lane_bytes: 3MiB is not a power of two"),
            (
                "[limits]\nconnections = 2026-01-01",
                "w.toml:2: limits.connections: expected a whole number, found a date",
            ),
        ]);
    }

    #[test]
    fn one_shard_needs_no_number_in_a_path() {
        let listener = "[[listener]]\nbind = \"unix:/run/x.sock\"\nadmin = true";
        good(&format!("server.shards = 1\n{listener}"));
        let error = from(listener, &[], &[flag("--shards", "server.shards", "2")]).unwrap_err();
        assert!(error.to_string().contains("the path must hold {shard}"), "{error}");
        from(listener, &[], &[flag("--shards", "server.shards", "1")]).unwrap();
        let any = "[[listener]]\nbind = \"127.0.0.1:0\"\nadmin = true\n";
        good(&any.repeat(2));
    }

    #[test]
    fn variables_set_keys() {
        let config = from(
            "[dialect.esp]\nallowed_origins = [\"http://a\", \"http://b\"]",
            &[
                ("WELLHEAD__SERVER__SHARDS", "3"),
                ("WELLHEAD__SERVER__DRAIN_TIMEOUT", "2s"),
                ("WELLHEAD__LISTENER__0__BIND", "127.0.0.1:9000"),
                ("WELLHEAD__LISTENER__1__DIALECTS__0", "test"),
                ("WELLHEAD__LISTENER__1__BIND", "127.0.0.1:9001"),
                ("WELLHEAD__STORE__REPLAY__PUBLICATIONS", "7"),
                ("WELLHEAD__DIALECT__ESP__ALLOWED_ORIGINS__1", "http://c"),
                ("WELLHEAD__DIALECT__ESP__ALLOWED_ORIGINS__2", "http://d"),
                ("WELLHEAD__LISTENER__1__ADMIN", "true"),
                ("WELLHEAD__AUTH__SECRET_FILE", "/run/secrets/wellhead"),
                ("WELLHEAD_LOG", "debug"),
                ("PATH", "/bin"),
            ],
            &[],
        )
        .unwrap();
        assert_eq!(config.server.shards, Shards::Count(3));
        assert_eq!(config.server.drain_timeout, Duration::from_secs(2));
        assert_eq!(config.listeners[0].bind.to_string(), "127.0.0.1:9000");
        assert!(config.listeners[0].dialects.iter().eq([DialectId::Esp]), "the default's");
        assert!(config.listeners[1].dialects.iter().eq([DialectId::Test]) && config.listeners[1].admin);
        assert_eq!(config.replay.publications, 7);
        let origins = &config.dialect(DialectId::Esp).allowed_origins;
        assert!(origins.iter().map(Origin::as_str).eq(["http://a", "http://c", "http://d"]));
        assert_eq!(config.auth.secret_file.as_deref(), Some(Path::new("/run/secrets/wellhead")));
    }

    #[test]
    fn variables_that_make_no_sense_are_named() {
        for (name, value, message) in [
            ("WELLHEAD__SERVER__SHARD", "1", "server.shard: unknown key; there are shards"),
            ("WELLHEAD__REDIS__URL", "x", "redis: unknown key; there are server"),
            ("WELLHEAD__SERVER", "x", "server: expected a table, found \"x\""),
            (
                "WELLHEAD__SERVER__SHARDS__X",
                "1",
                "server.shards: expected \"auto\" or a number from 1 to 128, found a table",
            ),
            (
                "WELLHEAD__SERVER__SHARDS__0",
                "1",
                "server.shards: expected \"auto\" or a number from 1 to 128, found a list",
            ),
            (
                "WELLHEAD__SERVER__SHARDS",
                "",
                "server.shards: expected \"auto\" or a number from 1 to 128, found \"\"",
            ),
            ("WELLHEAD__SERVER__0", "1", "server.0: unknown key; there are shards"),
            (
                "WELLHEAD__LIMITS__LOGIN_ATTEMPTS",
                "1k",
                "limits.login_attempts: expected a whole number, found \"1k\"",
            ),
            ("WELLHEAD__LIMITS__LOGIN_ATTEMPTS", "0", "limits.login_attempts: expected 1 to 64, found \"0\""),
            ("WELLHEAD__LISTENER__2__BIND", "0.0.0.0:1", "listener.2.bind: the next index of this list is 1"),
            (
                "WELLHEAD__LISTENER__0__ADMIN",
                "yes",
                "listener.0.admin: expected true or false, found \"yes\"",
            ),
            ("WELLHEAD__AUTH__SECRET", "short", "auth.secret: expected at least 32 bytes"),
            ("WELLHEAD__", "1", "names are WELLHEAD__SECTION__KEY"),
            ("WELLHEAD__SERVER____SHARDS", "1", "names are WELLHEAD__SECTION__KEY"),
            ("WELLHEAD__server__shards", "1", "names are WELLHEAD__SECTION__KEY"),
        ] {
            let error = from("[server]\nshards = 2", &[(name, value)], &[]).expect_err(name).to_string();
            assert!(error.starts_with(&format!("environment variable {name}: {message}")), "{error}");
            assert!(!error.contains("short"), "{error}");
        }
    }

    #[test]
    fn flag_before_environment_before_file_before_default() {
        let file = "[server]\nshards = 1";
        let variable = [("WELLHEAD__SERVER__SHARDS", "2")];
        let flags = [flag("--shards", "server.shards", "3")];
        for (text, variables, flags, shards) in [
            ("", &[][..], &[][..], Shards::Auto),
            (file, &[], &[], Shards::Count(1)),
            (file, &variable, &[], Shards::Count(2)),
            ("", &variable, &[], Shards::Count(2)),
            (file, &variable, &flags, Shards::Count(3)),
            (file, &[], &flags, Shards::Count(3)),
            ("", &[], &flags, Shards::Count(3)),
        ] {
            assert_eq!(from(text, variables, flags).unwrap().server.shards, shards);
        }
        let error = from(file, &variable, &[flag("--shards", "server.shards", "x")]).unwrap_err();
        assert!(error.to_string().starts_with("--shards: server.shards: expected"), "{error}");
    }

    #[test]
    fn of_two_secrets_the_higher_layer_counts() {
        let inline = format!("[auth]\nsecret = \"{SECRET}\"\n");
        let file = "[auth]\nsecret_file = \"/nowhere\"\n";
        let config = from(file, &[("WELLHEAD__AUTH__SECRET", SECRET)], &[]).unwrap();
        assert_eq!(config.secret().unwrap().bytes(), SECRET.as_bytes());
        let config = from(&inline, &[("WELLHEAD__AUTH__SECRET_FILE", "/nowhere")], &[]).unwrap();
        let error = config.secret().unwrap_err().to_string();
        let place =
            "environment variable WELLHEAD__AUTH__SECRET_FILE: auth.secret_file: can't read /nowhere: ";
        assert!(error.starts_with(place), "{error}");
        let both = format!("{inline}secret_file = \"/nowhere\"\n");
        let error = from(&both, &[], &[]).unwrap_err().to_string();
        assert_eq!(error, "w.toml:2: auth.secret: give either `secret` or `secret_file`, not both");
    }

    #[test]
    fn secrets_are_read_without_their_newline() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let config = good(&format!("[auth]\nsecret_file = {:?}", path.to_string_lossy()));
        for (contents, secret) in [
            (format!("{SECRET}\n"), Some(SECRET)),
            (format!("{SECRET}\r\n"), Some(SECRET)),
            (SECRET.into(), Some(SECRET)),
            (format!("{}\n\n\n", &SECRET[1..]), None),
            (String::new(), None),
        ] {
            fs::write(&path, &contents).unwrap();
            let read = config.secret();
            assert_eq!(read.as_ref().ok().map(Secret::bytes), secret.map(str::as_bytes));
            let message = read.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(secret.is_some() || message.contains("a secret has at least 32"), "{message}");
        }
        let error = good("").secret().unwrap_err().to_string();
        assert!(error.contains("wellhead secret > /etc/wellhead/secret"), "{error}");
        assert!(error.contains("secret_file = \"/etc/wellhead/secret\""), "{error}");
    }

    #[test]
    fn secrets_are_not_shown() {
        let config = good(&format!("[auth]\nsecret = \"{SECRET}\""));
        assert!(!config.print().contains(SECRET));
        assert!(config.print().contains("# secret is set, and not shown"));
        assert_eq!(format!("{:?}", config.secret().unwrap()), "Secret(redacted)");
        assert!(!format!("{config:?}").contains(SECRET));
        let config = from("", &[("WELLHEAD__AUTH__SECRET", SECRET)], &[]).unwrap();
        assert!(!format!("{config:?}").contains(SECRET));
    }

    #[test]
    fn every_key_is_printed_with_its_reason() {
        let printed = good("").print();
        for line in [
            "[server]",
            "shards = \"auto\"",
            "[[listener]]",
            "bind = \"0.0.0.0:8000\"",
            "dialects = [\"esp\"]",
            "[auth]",
            "# secret_file is not set",
            "token_ttl = \"1h\"",
            "[store.replay]",
            "bytes_per_shard = \"256MiB\"",
            "[dialect.esp]",
            "allowed_origins = []",
            "[limits]",
            "# Default: 16KiB; 1KiB to 1MiB.",
            "header_bytes = \"16KiB\"",
            "login_queue = 64",
        ] {
            assert!(printed.lines().any(|other| other == line), "{line}\n{printed}");
        }
        let lines: Vec<_> = printed.lines().collect();
        for pair in lines.windows(2) {
            let is_key = pair[1].contains(" = ") && !pair[1].starts_with('#');
            assert!(!is_key || pair[0].starts_with("# "), "no reason above {}", pair[1]);
        }
    }

    #[test]
    fn the_demo_is_the_defaults_at_home() {
        let directory = Path::new("/tmp/demo");
        let flags = [flag("--shards", "server.shards", "2")];
        let config = Config::demo(8123, directory, SECRET, &flags).unwrap();
        assert_eq!(config.listeners[0].bind.to_string(), "127.0.0.1:8123");
        assert!(config.listeners[0].dialects.iter().eq([DialectId::Esp]));
        assert_eq!(config.server.shards, Shards::Count(2));
        assert_eq!(config.secret().unwrap().bytes(), SECRET.as_bytes());
        assert_eq!(config.store.path, directory.join("store"));
        assert_eq!(config.auth.users_file, Some(directory.join("users.toml")));
        assert!(Config::demo(1, directory, "short", &[]).is_err());
        let flags = [flag("--ring", "server.ring", "x")];
        assert!(Config::demo(1, directory, SECRET, &flags).is_err());
    }

    proptest! {
        #[test]
        fn what_is_printed_gives_the_same(
            shards in 0usize..=128,
            drain in 0u64..600_000,
            header in 1024usize..=1 << 20,
            platform in ".{1,20}",
            port in 1u16..,
            wells in prop::collection::vec("[a-z]{1,5}/[a-z+]", 0..3),
        ) {
            let shards = if shards == 0 { "auto".into() } else { shards.to_string() };
            let mut variables = vec![
                ("WELLHEAD__SERVER__SHARDS".into(), shards),
                ("WELLHEAD__SERVER__DRAIN_TIMEOUT".into(), format!("{drain}ms")),
                ("WELLHEAD__LIMITS__HEADER_BYTES".into(), format!("{header}B")),
                ("WELLHEAD__DIALECT__ESP__PLATFORM".into(), platform),
                ("WELLHEAD__LISTENER__0__BIND".into(), format!("[::1]:{port}")),
                ("WELLHEAD__AUTH__USERS_FILE".into(), "/a b\\c".into()),
            ];
            for (index, filter) in wells.into_iter().enumerate() {
                variables.push((format!("WELLHEAD__STORE__DELIVER_AFTER_DURABLE__{index}"), filter));
            }
            let printed = Config::from_text("", "", variables.clone(), &[]).unwrap().print();
            variables.reverse();
            prop_assert_eq!(&Config::from_text("", "", variables, &[]).unwrap().print(), &printed);
            prop_assert_eq!(good(&printed).print(), printed);
        }

        #[test]
        fn no_text_is_too_odd(
            text in "[\\[\\]a-z.= \"\\n0-9{},#]{0,200}",
            name in "[A-Z0-9_]{0,30}",
            value in ".{0,10}",
        ) {
            let variable = (format!("{PREFIX}{name}"), value);
            if let Ok(config) = Config::from_text("w.toml", &text, [variable], &[]) {
                prop_assert!(!config.listeners.is_empty());
            }
        }
    }
}
