//! The built `wellhead` as a child process, with a directory of its own that outlives restarts.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::client::{Address, Client, Events, GUARD};
use crate::seccomp;

/// Signs the tokens of every server here, so that one token fits all.
pub const SECRET: &str = "every-server-of-these-tests-signs-with-this";

/// A ring and a number of shards, as a test's name says them.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// `--ring`.
    pub ring: &'static str,
    /// `--shards`.
    pub shards: usize,
}

impl Case {
    /// Reads `uring_2`, `epoll_8`.
    pub fn named(name: &'static str) -> Self {
        let (ring, shards) = name.split_once('_').expect("a case is named ring_shards");
        Self { ring, shards: shards.parse().expect("a number of shards") }
    }
}

/// Runs tests once per case: `on! { resumes: uring_1 epoll_2; }` makes `resumes::uring_1` and `resumes::epoll_2` out of
/// `fn resumes(case: Case)`.
#[macro_export]
macro_rules! on {
    ($($test:ident: $($case:ident)+;)+) => {$(
        mod $test {$(
            #[test]
            fn $case() {
                super::$test($crate::server::Case::named(stringify!($case)));
            }
        )+}
    )+};
}

/// The binary, built once in the profile and the target directory of the tests.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let tests = std::env::current_exe().expect("the test binary has a path");
        // target/<profile>/deps/all-0123456789abcdef
        let directory = tests.parent().and_then(Path::parent).expect("it lies in a target directory");
        let profile = match directory.file_name().and_then(|name| name.to_str()) {
            Some("debug") => "dev",
            Some(profile) => profile,
            None => panic!("no profile in {}", directory.display()),
        };
        let status = Command::new(env!("CARGO"))
            .args([
                "build",
                "--quiet",
                "-p",
                "engine",
                "--bin",
                "wellhead",
                "--profile",
                profile,
                "--target-dir",
            ])
            .arg(directory.parent().expect("a profile lies in a target directory"))
            .current_dir(crate::source::root())
            .status()
            .expect("cargo runs");
        assert!(status.success(), "the server does not build: {status}");
        directory.join("wellhead")
    })
}

/// The command `wellhead` with these arguments, and nothing of our environment that it would listen to.
pub fn wellhead<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("WELLHEAD") {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs a command to its end, with this on its standard input.
pub fn run(mut command: Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // A command that does not read its input may have gone already.
    let _ = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
    child.wait_with_output().expect("it ends")
}

/// Keeps tests that measure memory or need most descriptors apart from each other.
pub fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Does something when it is dropped, so that threads which wait for it end even if the test has failed.
pub struct Finally<F: Fn()>(pub F);

impl<F: Fn()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Waits until something holds; panics with `what` if it never does.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < GUARD, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What the server's process is denied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Denied {
    #[default]
    Nothing,
    /// More descriptors than these.
    Descriptors(u32),
    /// io_uring, by seccomp.
    Uring,
}

/// A server to start.
#[derive(Clone, Debug)]
pub struct Setup {
    case: Case,
    ring: Option<&'static str>,
    keys: Vec<String>,
    listeners: Vec<(String, String)>,
    users: Vec<[String; 4]>,
    log: Option<&'static str>,
    store: String,
    environment: Vec<(String, String)>,
    denied: Denied,
}

impl Setup {
    /// One that speaks `esp` on a free port of 127.0.0.1.
    pub fn new(case: Case) -> Self {
        Self {
            case,
            ring: Some(case.ring),
            keys: Vec::new(),
            listeners: Vec::new(),
            users: Vec::new(),
            log: None,
            store: "{dir}/store".into(),
            environment: Vec::new(),
            denied: Denied::Nothing,
        }
    }

    /// Sets a key, such as `limits.pending_age = "2s"`. `{dir}` is the server's directory.
    pub fn set(mut self, line: &str) -> Self {
        self.keys.push(line.into());
        self
    }

    /// Listens here (instead of on the free port): an address, and dialects such as `"esp"`, `"esp", "test"`.
    pub fn listen(mut self, bind: &str, dialects: &str) -> Self {
        self.listeners.push((bind.into(), dialects.into()));
        self
    }

    /// Adds a user with the command line. No wells: all of them.
    pub fn user(mut self, name: &str, password: &str, role: &str, wells: &str) -> Self {
        self.users.push([name.into(), password.into(), role.into(), wells.into()]);
        self
    }

    /// Keeps its store here instead of in its own directory.
    pub fn store(mut self, path: &Path) -> Self {
        self.store = path.to_string_lossy().into_owned();
        self
    }

    /// Gives it a variable; `{dir}` is the server's directory.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Logs at this level.
    pub fn log(mut self, filter: &'static str) -> Self {
        self.log = Some(filter);
        self
    }

    /// Leaves the choice of the ring to the server.
    pub fn any_ring(mut self) -> Self {
        self.ring = None;
        self
    }

    /// Denies it io_uring.
    pub fn without_uring(mut self) -> Self {
        self.denied = Denied::Uring;
        self
    }

    /// Denies it more than this many descriptors.
    pub fn descriptors(mut self, count: u32) -> Self {
        self.denied = Denied::Descriptors(count);
        self
    }

    /// Starts it; panics if it refuses.
    pub fn start(self) -> Server {
        self.try_start().unwrap_or_else(|refused| panic!("the server does not start: {refused:?}"))
    }

    /// Starts it.
    ///
    /// # Errors
    /// With what it said, if it ends before it is ready.
    pub fn try_start(self) -> Result<Server, Refused> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("wellhead.toml");
        std::fs::write(directory.path().join("secret"), SECRET).expect("the directory can be written to");
        std::fs::write(&file, self.config(directory.path())).expect("the directory can be written to");
        for [name, password, role, wells] in &self.users {
            let mut command = wellhead(["user", "add", name, "--role", role, "--config"]);
            command.arg(&file);
            if !wells.is_empty() {
                command.args(["--wells", wells]);
            }
            let output = run(command, &format!("{password}\n"));
            assert!(output.status.success(), "user add: {output:?}");
        }
        let said = Arc::new(Said::default());
        let mut server = Server {
            child: None,
            listeners: Vec::new(),
            shards: self.case.shards,
            setup: self,
            directory,
            said,
        };
        server.launch().map(|()| server)
    }

    fn config(&self, directory: &Path) -> String {
        let mut text = format!("auth.secret_file = \"{{dir}}/secret\"\nstore.path = \"{}\"\n", self.store);
        if !self.users.is_empty() {
            text.push_str("auth.users_file = \"{dir}/users.toml\"\n");
        }
        for line in &self.keys {
            let _ = writeln!(text, "{line}");
        }
        let free_port = [("127.0.0.1:0".into(), "\"esp\"".into())];
        let listeners = if self.listeners.is_empty() { &free_port[..] } else { &self.listeners };
        for (bind, dialects) in listeners {
            let _ = writeln!(text, "[[listener]]\nbind = \"{bind}\"\ndialects = [{dialects}]");
        }
        text.replace("{dir}", &directory.to_string_lossy())
    }
}

/// Why a server does not serve.
#[derive(Debug)]
pub struct Refused {
    /// Its exit status; `None` if a signal ended it.
    pub status: Option<i32>,
    /// Its standard error.
    pub said: String,
}

/// What a server writes to standard error, as it comes.
#[derive(Debug, Default)]
struct Said {
    text: Mutex<(String, bool)>,
    more: Condvar,
}

impl Said {
    fn listen(self: Arc<Self>, stderr: ChildStderr) {
        self.with(|said| said.1 = false);
        std::thread::spawn(move || {
            let mut stderr = BufReader::new(stderr);
            let mut line = Vec::new();
            while stderr.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                self.with(|said| said.0.push_str(&String::from_utf8_lossy(&line)));
                line.clear();
            }
            self.with(|said| said.1 = true);
        });
    }

    fn with<T>(&self, act: impl FnOnce(&mut (String, bool)) -> T) -> T {
        let result = act(&mut self.text.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        self.more.notify_all();
        result
    }

    /// Waits for a line that is wanted, from byte `from` on; `None` if the process ends without.
    fn wait(&self, from: usize, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let begun = Instant::now();
        let mut said = self.text.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        loop {
            if let Some(line) = said.0[from..].lines().find(|line| wanted(line)) {
                return Some(line.into());
            }
            if said.1 {
                return None;
            }
            assert!(begun.elapsed() < GUARD, "the server never said it; it said {:?}", said.0);
            let wait = self.more.wait_timeout(said, Duration::from_millis(100));
            said = wait.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }
}

/// A server that serves, until this is dropped.
#[derive(Debug)]
pub struct Server {
    setup: Setup,
    child: Option<Child>,
    listeners: Vec<Address>,
    shards: usize,
    directory: TempDir,
    said: Arc<Said>,
}

impl Server {
    /// Its first listener.
    pub fn address(&self) -> &Address {
        &self.listeners[0]
    }

    /// All its listeners.
    pub fn listeners(&self) -> &[Address] {
        &self.listeners
    }

    /// Its directory: `wellhead.toml`, `secret`, `store`.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its configuration.
    pub fn config(&self) -> PathBuf {
        self.directory().join("wellhead.toml")
    }

    /// A new connection.
    pub fn connect(&self) -> Client {
        Client::connect(self.address())
    }

    /// A new connection that sends a token of this role.
    pub fn connect_as(&self, role: &str) -> Client {
        self.connect().with_token(&self.token(role))
    }

    /// Opens the stream of a well as a viewer, with these further fields and query parameters (`&a=b`).
    pub fn stream(&self, well: &str, fields: &[&str], query: &str) -> Events {
        self.stream_at(self.address(), well, fields, query)
    }

    /// As [`stream`](Self::stream), from another of its addresses.
    pub fn stream_at(&self, address: &Address, well: &str, fields: &[&str], query: &str) -> Events {
        let token = self.token("viewer");
        let target = format!("/api/v1/sse/stream/{well}?token={token}{query}");
        Events::open(Client::connect(address), &target, fields)
    }

    /// A token of this role for all wells, valid for an hour.
    pub fn token(&self, role: &str) -> String {
        self.token_for(role, &[], "1h")
    }

    /// A token from the command line.
    pub fn token_for(&self, role: &str, wells: &[&str], ttl: &str) -> String {
        static TOKENS: Mutex<Option<HashMap<String, String>>> = Mutex::new(None);
        let key = format!("{role} {wells:?}");
        let mut tokens = TOKENS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let tokens = tokens.get_or_insert_default();
        // Short-lived ones are about their end: they are not shared.
        if ttl == "1h"
            && let Some(token) = tokens.get(&key)
        {
            return token.clone();
        }
        let mut command = wellhead(["token", "--sub", "tester", "--role", role, "--ttl", ttl, "--config"]);
        command.arg(self.config());
        for well in wells {
            command.args(["--wells", well]);
        }
        let output = run(command, "");
        assert!(output.status.success(), "token: {output:?}");
        let token = String::from_utf8(output.stdout).expect("a token is text").trim_end().to_owned();
        tokens.insert(key, token.clone());
        token
    }

    /// Everything it has said on standard error, over all its lives.
    pub fn said(&self) -> String {
        self.said.with(|said| said.0.clone())
    }

    /// Waits until it says a line that holds this.
    pub fn hear(&self, what: &str) -> String {
        self.said.wait(0, |line| line.contains(what)).unwrap_or_else(|| panic!("never said: {what}"))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(self.child.as_ref().expect("it runs"));
        kill_process(pid, signal).expect("it can be signalled");
    }

    /// SIGKILL: no last words.
    pub fn kill_9(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// SIGTERM, and its exit status.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("it runs");
        let mut status = None;
        eventually("the server ends", || {
            status = child.try_wait().expect("it is our child");
            status.is_some()
        });
        self.child = None;
        eventually("its last words are here", || self.said.with(|said| said.1));
        status.expect("it has ended")
    }

    /// Starts it again on the same store, after it has ended; its port is another.
    pub fn restart(&mut self) {
        self.restart_with(self.shards);
    }

    /// As [`restart`](Self::restart), with another number of shards.
    pub fn restart_with(&mut self, shards: usize) {
        assert!(self.child.is_none(), "it still runs");
        self.shards = shards;
        self.launch().unwrap_or_else(|refused| panic!("the server does not start again: {refused:?}"));
    }

    /// Its resident memory, bytes.
    pub fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/smaps_rollup", self.pid());
        let text = std::fs::read_to_string(path).expect("the server runs");
        let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).expect("it has resident memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// CPU time it has used, user and system.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the server runs");
        let (_, fields) = stat.rsplit_once(") ").expect("the name stands in brackets");
        // utime and stime, the 14th and 15th of proc(5); USER_HZ is 100.
        let ticks: u64 =
            fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap_or(0)).sum();
        Duration::from_millis(ticks * 10)
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.connect().get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} is not in\n{text}"))
    }

    fn launch(&mut self) -> Result<(), Refused> {
        let from = self.said().len();
        let mut child = self.command().spawn().expect("the server can be started");
        Arc::clone(&self.said).listen(child.stderr.take().expect("it is piped"));
        let ready = self.said.wait(from, |line| line.starts_with("ready"));
        self.child = Some(child);
        let Some(ready) = ready else {
            let status = self.wait().code();
            return Err(Refused { status, said: self.said()[from..].to_owned() });
        };
        let listeners = ready.split(' ').skip(1).map(Address::parse);
        self.listeners = listeners.collect::<Option<_>>().unwrap_or_else(|| panic!("listeners in {ready:?}"));
        Ok(())
    }

    fn command(&self) -> Command {
        let mut arguments: Vec<String> =
            vec!["serve".into(), "--config".into(), self.config().to_string_lossy().into_owned()];
        arguments.extend(["--shards".into(), self.shards.to_string()]);
        if let Some(ring) = self.setup.ring {
            arguments.extend(["--ring".into(), ring.into()]);
        }
        if let Some(filter) = self.setup.log {
            arguments.extend(["--log".into(), filter.into()]);
        }
        let mut command = wellhead(&arguments);
        match self.setup.denied {
            Denied::Nothing => {}
            Denied::Uring => seccomp::refuse_io_uring(&mut command),
            Denied::Descriptors(count) => {
                let script = format!("ulimit -n {count}; exec \"$0\" \"$@\"");
                let mut shell = Command::new("sh");
                shell.args(["-c", &script]).arg(binary()).args(&arguments).stdin(Stdio::null());
                command = shell;
            }
        }
        for (name, value) in &self.setup.environment {
            command.env(name, value.replace("{dir}", &self.directory().to_string_lossy()));
        }
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the server said:\n{}---", self.said());
        }
    }
}
