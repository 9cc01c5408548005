//! The command line: what was asked, and the status it ends with.
//!
//! 0 after a drain or a good answer, 2 for a bad configuration or command line, 1 for everything else. What goes
//! wrong is said on standard error, with what to do next.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, DirBuilder};
use std::io::{self, BufRead, IsTerminal, Write};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Args, Parser, Subcommand};
use protocol::dialect::DialectId;
use protocol::message::{Kind, Verb};
use protocol::topic::Filter;
use rustix::termios::{self, LocalModes, OptionalActions, Termios};

use crate::auth::users::{self, MAX_PASSWORD, User};
use crate::auth::{AuthError, Keys, Principal, Role, Users};
use crate::config::{self, Config, ConfigError, Flag, Place, Problem};
use crate::demo;
use crate::logs::{self, LogError};
use crate::server::{self, StartError};

/// Random bytes in a secret: as many as the hash it keys.
const SECRET_BYTES: usize = 32;
/// Random bytes in the demo's password.
const DEMO_PASSWORD_BYTES: usize = 9;
/// How long the demo's token lives, seconds.
const DEMO_TOKEN_TTL: u64 = 24 * 60 * 60;
/// Who can do everything in the demo.
const DEMO_USER: &str = "admin";

/// Telemetry in, stored, out to very many live connections.
#[derive(Debug, Parser)]
#[command(name = "wellhead", version)]
struct Cli {
    /// What is logged: a level, or target=level, with commas between [default: $WELLHEAD_LOG, or info]
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Try it out: defaults, a simulated fleet, nothing kept
    Demo {
        #[command(flatten)]
        shards: ShardArgs,
        /// Port on 127.0.0.1
        #[arg(long, default_value_t = 8000)]
        port: u16,
    },
    /// Serve until SIGTERM or SIGINT, then drain
    Serve {
        #[command(flatten)]
        file: FileArgs,
        #[command(flatten)]
        shards: ShardArgs,
    },
    /// Print a token, and nothing else
    Token {
        #[command(flatten)]
        file: FileArgs,
        #[command(flatten)]
        token: TokenArgs,
    },
    /// Print a new secret, for [auth] secret_file
    Secret,
    /// Manage the users file
    User {
        #[command(subcommand)]
        command: UserCommand,
    },
    /// Say whether `serve` would accept the configuration
    CheckConfig {
        #[command(flatten)]
        file: FileArgs,
    },
    /// Print every setting with its value, reason, default and range; secrets are left out
    PrintConfig {
        #[command(flatten)]
        file: FileArgs,
    },
    /// Print the version, what it was built for, and its rings
    Version,
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Add a user; the password is asked for, or read from standard input
    Add {
        /// The name to log in with
        name: String,
        /// admin, operator, viewer or ingest
        #[arg(long, value_parser = role)]
        role: Role,
        /// Topics the user may read and publish to; repeat for more [default: all]
        #[arg(long, value_name = "FILTER", value_parser = filter)]
        wells: Vec<Filter>,
        #[command(flatten)]
        file: FileArgs,
        /// The users file [default: auth.users_file of the configuration]
        #[arg(long, value_name = "FILE")]
        users_file: Option<PathBuf>,
        /// Read the password from standard input even if that is a terminal
        #[arg(long)]
        password_stdin: bool,
    },
}

#[derive(Debug, Args)]
struct FileArgs {
    /// The configuration; without it, the environment and the defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ShardArgs {
    /// Number of shards, or auto
    #[arg(long, value_name = "N")]
    shards: Option<String>,
    /// auto, uring or epoll
    #[arg(long)]
    ring: Option<String>,
}

#[derive(Debug, Args)]
struct TokenArgs {
    /// Whose token it is: claim sub
    #[arg(long, value_name = "ID")]
    sub: String,
    /// Claim username [default: the id]
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// admin, operator, viewer or ingest
    #[arg(long, default_value = "viewer", value_parser = role)]
    role: Role,
    /// Topics it may read and publish to; repeat for more [default: all]
    #[arg(long, value_name = "FILTER", value_parser = filter)]
    wells: Vec<Filter>,
    /// How long it lives, such as 30m [default: auth.token_ttl]
    #[arg(long, value_parser = ttl)]
    ttl: Option<Duration>,
}

/// Why a command failed.
#[derive(Debug)]
enum CliError {
    Config(ConfigError),
    /// The user can't be added.
    User(ConfigError),
    Start(StartError),
    Log(LogError),
    Token(AuthError),
    Input(&'static str),
    System(&'static str, io::Error),
}

impl CliError {
    fn status(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Start(StartError::Config(_)) | Self::Log(LogError::Filter(..)) => 2,
            _ => 1,
        }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) | Self::User(error) => write!(f, "{error}"),
            Self::Start(error) => write!(f, "{error}"),
            Self::Log(error) => write!(f, "{error}"),
            Self::Token(error) => write!(f, "{error}: name fewer or shorter wells"),
            Self::Input(what) => f.write_str(what),
            Self::System(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<StartError> for CliError {
    fn from(error: StartError) -> Self {
        Self::Start(error)
    }
}

/// Does what the arguments of this process ask for.
pub fn main() -> ExitCode {
    // Where the command line itself is wrong, this says so and ends with 2.
    let cli = Cli::parse_from(std::env::args_os().collect::<Vec<OsString>>());
    match perform(cli, &mut io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wellhead: {error}");
            ExitCode::from(error.status())
        }
    }
}

fn perform(cli: Cli, out: &mut impl Write) -> Result<(), CliError> {
    match cli.command {
        Command::Demo { shards, port } => {
            logs::start(cli.log.as_deref()).map_err(CliError::Log)?;
            run_demo(port, &shards.flags(), out)
        }
        Command::Serve { file, shards } => {
            logs::start(cli.log.as_deref()).map_err(CliError::Log)?;
            let config = Config::load(file.config.as_deref(), &shards.flags())?;
            check_files(&config)?;
            Ok(server::run(&config, |_| ())?)
        }
        Command::Token { file, token } => {
            print(out, &issue(&Config::load(file.config.as_deref(), &[])?, token)?)
        }
        Command::Secret => print(out, &random_text(SECRET_BYTES)?),
        Command::User { command } => add_user(command, out),
        Command::CheckConfig { file } => {
            check_files(&Config::load(file.config.as_deref(), &[])?)?;
            print(out, "the configuration is good")
        }
        Command::PrintConfig { file } => {
            print(out, Config::load(file.config.as_deref(), &[])?.print().trim_end())
        }
        Command::Version => print(out, &version()),
    }
}

fn print(out: &mut impl Write, text: &str) -> Result<(), CliError> {
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    written.map_err(|error| CliError::System("can't write to standard output", error))
}

impl ShardArgs {
    fn flags(&self) -> Vec<Flag> {
        let flag = |name, key, value: &Option<String>| {
            value.as_ref().map(|value| Flag { name, key, value: value.clone() })
        };
        [flag("--shards", "server.shards", &self.shards), flag("--ring", "server.ring", &self.ring)]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// Finds what is wrong with the files that the configuration names.
fn check_files(config: &Config) -> Result<(), ConfigError> {
    config.secret()?;
    Users::configured(config).map(drop)
}

fn issue(config: &Config, args: TokenArgs) -> Result<String, CliError> {
    let ttl = args.ttl.unwrap_or(config.auth.token_ttl);
    let principal = Principal {
        username: args.username.unwrap_or_else(|| args.sub.clone()),
        subject: args.sub,
        role: args.role,
        wells: (!args.wells.is_empty()).then_some(args.wells),
        expires: 0,
    };
    keys(config)?.issue(&principal, ttl.as_secs(), seconds()).map_err(CliError::Token)
}

fn keys(config: &Config) -> Result<Keys, ConfigError> {
    let (audience, issuer) = (config.auth.audience.as_deref(), config.auth.issuer.as_deref());
    Ok(Keys::hs256(config.secret()?.bytes(), audience, issuer))
}

fn add_user(command: UserCommand, out: &mut impl Write) -> Result<(), CliError> {
    let UserCommand::Add { name, role, wells, file, users_file, password_stdin } = command;
    let path = match users_file {
        Some(path) => path,
        None => {
            let config = Config::load(file.config.as_deref(), &[])?;
            let missing = Problem::Missing("Name the file with --users-file, or in the configuration");
            let error = || config.error("auth.users_file", missing);
            config.auth.users_file.clone().ok_or_else(error)?
        }
    };
    let password = if io::stdin().is_terminal() && !password_stdin {
        ask_password()?
    } else {
        read_line(&mut io::stdin().lock())?
    };
    let wells = (!wells.is_empty()).then_some(wells);
    store_user(&path, &name, role, wells, &password)?;
    print(out, &format!("{name} is added; the server knows of it from its next start on"))
}

fn store_user(
    path: &Path,
    name: &str,
    role: Role,
    wells: Option<Vec<Filter>>,
    password: &str,
) -> Result<(), CliError> {
    if password.is_empty() || password.len() > MAX_PASSWORD {
        return Err(CliError::Input("a password has 1 to 1024 bytes"));
    }
    let mut salt = [0; 16];
    random(&mut salt)?;
    let password = users::hash(password.as_bytes(), salt)
        .map_err(|_| CliError::Input("there is no memory to hash the password"))?;
    users::add(path, &User { name: name.into(), password, role, wells }).map_err(|error| match error.place {
        // Nothing is wrong with a file: the name is taken or malformed, or the file can't be written.
        Place::Default => CliError::User(error),
        _ => CliError::Config(error),
    })
}

/// Asks twice, without showing what is typed.
fn ask_password() -> Result<String, CliError> {
    let failed = |error| CliError::System("can't ask for the password", error);
    let quiet = Quiet::start().map_err(failed)?;
    let mut lines = Vec::new();
    for prompt in ["Password: ", "Once more: "] {
        eprint!("{prompt}");
        let line = read_line(&mut io::stdin().lock());
        eprintln!();
        lines.push(line?);
    }
    drop(quiet);
    if lines[0] != lines[1] {
        return Err(CliError::Input("these are two passwords; try again"));
    }
    Ok(lines.swap_remove(0))
}

/// A line without its end.
fn read_line(input: &mut impl BufRead) -> Result<String, CliError> {
    let mut line = String::new();
    // One more than is good, so that a longer one is seen to be too long.
    let mut bounded = io::Read::take(input, MAX_PASSWORD as u64 + 3);
    bounded.read_line(&mut line).map_err(|error| CliError::System("can't read the password", error))?;
    line.truncate(line.trim_end_matches(['\r', '\n']).len());
    Ok(line)
}

/// A terminal that shows nothing of what is typed, for as long as this lives.
struct Quiet(Termios);

impl Quiet {
    fn start() -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        termios::tcsetattr(io::stdin(), OptionalActions::Flush, &quiet)?;
        Ok(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

fn run_demo(port: u16, flags: &[Flag], out: &mut impl Write) -> Result<(), CliError> {
    let scratch = Scratch::create()?;
    let (secret, password) = (random_text(SECRET_BYTES)?, random_text(DEMO_PASSWORD_BYTES)?);
    let config = Config::demo(port, &scratch.0, &secret, flags)?;
    if let Some(users) = &config.auth.users_file {
        store_user(users, DEMO_USER, Role::Admin, None, &password)?;
    }
    let keys = keys(&config)?;
    let token = |name: &str, role| {
        let principal =
            Principal { subject: name.into(), username: name.into(), role, wells: None, expires: 0 };
        keys.issue(&principal, DEMO_TOKEN_TTL, seconds()).map_err(CliError::Token)
    };
    let (admin, fleet) = (token(DEMO_USER, Role::Admin)?, token("fleet", Role::Ingest)?);
    let mut seed = [0; 8];
    random(&mut seed)?;
    let mut greeted = Ok(());
    server::run(&config, |running| {
        let Some(address) = running.address else { return };
        // Ends with the process, or with the connection it publishes on.
        thread::spawn(move || {
            if let Err(error) = demo::publish(address, &fleet, u64::from_ne_bytes(seed)) {
                tracing::info!(%error, "the fleet has stopped publishing");
            }
        });
        greeted = print(out, &greeting(address, &password, &admin));
    })?;
    greeted
}

/// What to do with a demo that runs.
fn greeting(address: SocketAddr, password: &str, token: &str) -> String {
    let mut text = format!(
        "The demo runs; nothing is kept when it ends (Ctrl-C).\n\n  \
         wells      http://{address}/#token={token}\n  \
         login      {DEMO_USER} {password}\n  \
         token      {token}\n\nPaste one of these into another terminal:\n",
    );
    let well = demo::WELLS[0];
    let doors = DialectId::ALL[0].doors();
    let wanted = [Verb::Stream, Verb::Publish(Kind::Telemetry), Verb::Topics];
    for door in wanted.iter().filter_map(|verb| doors.iter().find(|door| door.verb == *verb)) {
        let before = door.path.split('{').next().unwrap_or(door.path);
        match door.verb {
            Verb::Stream => {
                text.push_str(&format!(
                    "\n# watch\ncurl -N 'http://{address}{before}{well}?token={token}'\n"
                ));
            }
            Verb::Publish(Kind::Telemetry) => text.push_str(&format!(
                "\n# publish\ncurl 'http://{address}{before}' -H 'Authorization: Bearer {token}' \
                 -d '{{\"well_id\":\"{well}\",\"vibration\":3.2}}'\n"
            )),
            Verb::Topics => text.push_str(&format!(
                "\n# list\ncurl 'http://{address}{before}' -H 'Authorization: Bearer {token}'\n"
            )),
            _ => {}
        }
    }
    text
}

/// A directory of this process alone, which goes when this does.
struct Scratch(PathBuf);

impl Scratch {
    fn create() -> Result<Self, CliError> {
        let path = std::env::temp_dir().join(format!("wellhead-demo-{}", random_text(12)?));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| CliError::System("can't make a directory for the demo (TMPDIR)", error))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn version() -> String {
    use std::env::consts::{ARCH, OS};
    let library = if cfg!(target_env = "musl") { "musl" } else { "gnu" };
    let number = env!("CARGO_PKG_VERSION");
    format!("wellhead {number}\ntarget {ARCH}-{OS}-{library}\nrings uring, epoll")
}

/// Random bytes as base64url.
fn random_text(count: usize) -> Result<String, CliError> {
    let mut bytes = vec![0; count];
    random(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

fn random(bytes: &mut [u8]) -> Result<(), CliError> {
    getrandom::fill(bytes)
        .map_err(|error| CliError::System("can't get random bytes", io::Error::other(error)))
}

/// Seconds since the epoch.
fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn role(text: &str) -> Result<Role, &'static str> {
    Role::from_name(text).ok_or("a role is admin, operator, viewer or ingest")
}

fn filter(text: &str) -> Result<Filter, String> {
    Filter::parse(text)
        .map_err(|error| format!("a filter is such as wells/+ or WELL-001, and this is none: {error}"))
}

fn ttl(text: &str) -> Result<Duration, &'static str> {
    let good = config::duration(text).filter(|ttl| ttl.as_secs() > 0);
    good.ok_or("a time is a whole number with its unit (s, m, h, d), and at least a second")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn run(arguments: &[&str]) -> Result<String, CliError> {
        let cli = Cli::try_parse_from([&["wellhead"], arguments].concat()).unwrap();
        let mut out = Vec::new();
        perform(cli, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    /// A configuration file of this text, with a good secret beside it.
    fn configured(text: &str) -> (tempfile::TempDir, String) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("wellhead.toml");
        let secret = directory.path().join("secret");
        fs::write(&secret, format!("{SECRET}\n")).unwrap();
        fs::write(&file, text.replace("SECRET", &format!("{:?}", secret.display().to_string()))).unwrap();
        (directory, file.display().to_string())
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn names_stay() {
        for (line, is_good) in [
            ("demo", true),
            ("demo --shards 2 --ring epoll --port 9000", true),
            ("demo --port 70000", false),
            ("serve --config a.toml", true),
            ("serve --config a.toml --shards auto --ring uring --log debug", true),
            ("serve a.toml", false),
            ("token --config a.toml --sub me", true),
            (
                "token --config a.toml --sub me --role ingest --wells wells/+ --wells A-1 --ttl 30m --username Me",
                true,
            ),
            ("token --config a.toml", false),
            ("token --sub me --role root", false),
            ("token --sub me --wells a/#/b", false),
            ("token --sub me --ttl 30", false),
            ("token --sub me --ttl 500ms", false),
            ("secret", true),
            ("user add ann --role viewer", true),
            ("user add ann --role viewer --wells A --config a.toml --password-stdin", true),
            ("user add ann --role viewer --users-file u.toml", true),
            ("user add ann", false),
            ("user", false),
            ("check-config --config a.toml", true),
            ("print-config", true),
            ("print-config --config a.toml", true),
            ("version", true),
            ("", false),
            ("fly", false),
        ] {
            let arguments = ["wellhead"].into_iter().chain(line.split_whitespace());
            let parsed = Cli::try_parse_from(arguments);
            assert_eq!(parsed.as_ref().is_ok(), is_good, "{line}: {parsed:?}");
            assert!(parsed.err().is_none_or(|error| error.exit_code() == 2), "{line}");
        }
    }

    #[test]
    fn a_token_is_printed_and_nothing_else() {
        let (_directory, file) = configured("[auth]\nsecret_file = SECRET\nissuer = \"plant\"\n");
        let line =
            ["token", "--config", &file, "--sub", "me", "--role", "ingest", "--ttl", "2h", "--wells", "A"];
        let before = seconds();
        let out = run(&line).unwrap();
        let token = out.strip_suffix('\n').unwrap();
        let keys = Keys::hs256(SECRET.as_bytes(), None, Some("plant"));
        let principal = keys.verify(token, before).unwrap();
        assert_eq!((principal.subject.as_str(), principal.username.as_str()), ("me", "me"));
        assert_eq!(principal.role, Role::Ingest);
        assert!(principal.may_see("wells/A") && !principal.may_see("wells/B"));
        assert!(principal.expires >= before + 7200);
        let other = run(&["token", "--config", &file, "--sub", "me", "--username", "Me"]).unwrap();
        let principal = keys.verify(other.trim_end(), before).unwrap();
        assert_eq!((principal.username.as_str(), principal.role), ("Me", Role::Viewer));
        assert!(principal.may_see("wells/B"));
    }

    #[test]
    fn secrets_are_long_enough_and_never_the_same() {
        let (one, two) = (run(&["secret"]).unwrap(), run(&["secret"]).unwrap());
        assert_ne!(one, two);
        assert_eq!(URL_SAFE_NO_PAD.decode(one.trim_end()).unwrap().len(), SECRET_BYTES);
        assert!(config::Secret::new(one.trim_end().as_bytes()).is_some());
    }

    #[test]
    fn a_good_configuration_is_called_good() {
        let (_directory, file) = configured("[auth]\nsecret_file = SECRET\n");
        assert_eq!(run(&["check-config", "--config", &file]).unwrap(), "the configuration is good\n");
        let printed = run(&["print-config", "--config", &file]).unwrap();
        fs::write(&file, &printed).unwrap();
        assert_eq!(run(&["print-config", "--config", &file]).unwrap(), printed);
    }

    #[test]
    fn a_bad_configuration_ends_with_2() {
        for (text, message) in [
            ("[server]\nshard = 1\n", ":2: server.shard: unknown key; there are shards, ring, drain_timeout"),
            ("[auth]\n", ":1: auth.secret_file: missing. Tokens are signed with a secret. Make one with"),
            (
                "[auth]\nsecret_file = \"/nowhere/secret\"\n",
                ":2: auth.secret_file: can't read /nowhere/secret: ",
            ),
            (
                "[auth]\nsecret_file = \"/dev/null\"\n",
                ":2: auth.secret_file: /dev/null holds 0 bytes; a secret has",
            ),
            (
                "[auth]\nsecret_file = SECRET\nusers_file = \"/nowhere/users.toml\"\n",
                ":3: auth.users_file: can't read /nowhere/users.toml: ",
            ),
        ] {
            let (_directory, file) = configured(text);
            let error = run(&["check-config", "--config", &file]).unwrap_err();
            assert_eq!(error.status(), 2, "{error}");
            let error = error.to_string();
            assert!(error.starts_with(&format!("{file}{message}")), "{error}");
        }
        let error = run(&["print-config", "--config", "/nowhere/a.toml"]).unwrap_err();
        assert_eq!(error.status(), 2);
        assert!(error.to_string().starts_with("can't read /nowhere/a.toml: "), "{error}");
    }

    #[test]
    fn flags_go_before_the_file_and_are_pointed_at() {
        let (_directory, file) = configured("[server]\nshards = 3\nring = \"uring\"\n");
        let args = ShardArgs { shards: Some("2".into()), ring: None };
        let config = Config::load(Some(Path::new(&file)), &args.flags()).unwrap();
        assert_eq!(config.server.shards, config::Shards::Count(2));
        assert_eq!(config.server.ring, config::RingChoice::Uring);
        let args = ShardArgs { shards: None, ring: Some("kqueue".into()) };
        let error = Config::load(Some(Path::new(&file)), &args.flags()).unwrap_err().to_string();
        assert!(error.starts_with("--ring: server.ring: expected \"auto\""), "{error}");
    }

    #[test]
    fn a_user_is_added_to_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("users.toml");
        store_user(&file, "ann", Role::Viewer, None, "sesame").unwrap();
        let users = Users::load(&file).unwrap();
        assert!(users.check("ann", b"sesame").unwrap().is_some());
        for password in ["", &"x".repeat(MAX_PASSWORD + 1)] {
            let error = store_user(&file, "bob", Role::Viewer, None, password).unwrap_err();
            assert_eq!(error.to_string(), "a password has 1 to 1024 bytes");
        }
        let (_directory, config) = configured("");
        let error = run(&["user", "add", "ann", "--role", "viewer", "--config", &config]).unwrap_err();
        assert_eq!(error.status(), 2);
        assert!(
            error.to_string().contains("auth.users_file: missing. Name the file with --users-file"),
            "{error}"
        );
    }

    #[test]
    fn passwords_are_lines() {
        for (input, line) in [
            ("sesame\n", "sesame"),
            ("sesame\r\nmore\n", "sesame"),
            ("sesame", "sesame"),
            (" a b \n", " a b "),
            ("", ""),
            ("\n", ""),
        ] {
            assert_eq!(read_line(&mut input.as_bytes()).unwrap(), line);
        }
        let long = "x".repeat(10 * MAX_PASSWORD);
        assert!(read_line(&mut long.as_bytes()).unwrap().len() > MAX_PASSWORD);
        assert!(read_line(&mut &[0xff, b'\n'][..]).is_err());
    }

    #[test]
    fn the_demo_keeps_nothing() {
        let scratch = Scratch::create().unwrap();
        let config = Config::demo(0, &scratch.0, SECRET, &[]).unwrap();
        let users = config.auth.users_file.as_ref().unwrap();
        store_user(users, DEMO_USER, Role::Admin, None, "x").unwrap();
        assert!(check_files(&config).is_ok());
        assert!(users.starts_with(&scratch.0) && config.store.path.starts_with(&scratch.0));
        let path = scratch.0.clone();
        drop(scratch);
        assert!(!path.exists());
    }

    #[test]
    fn the_greeting_says_how_to_use_it() {
        let greeting = greeting(([127, 0, 0, 1], 8000).into(), "sesame", "a.b.c");
        for line in [
            "wells      http://127.0.0.1:8000/#token=a.b.c",
            "login      admin sesame",
            "token      a.b.c",
            "curl -N 'http://127.0.0.1:8000/api/v1/sse/stream/WELL-001?token=a.b.c'",
            "curl 'http://127.0.0.1:8000/api/v1/telemetry/ingest' -H 'Authorization: Bearer a.b.c' \
             -d '{\"well_id\":\"WELL-001\",\"vibration\":3.2}'",
            "curl 'http://127.0.0.1:8000/api/v1/wells' -H 'Authorization: Bearer a.b.c'",
        ] {
            assert!(greeting.lines().any(|other| other.trim() == line), "{greeting}");
        }
    }

    #[test]
    fn the_version_is_that_of_the_package() {
        let version = run(&["version"]).unwrap();
        assert!(
            version.starts_with(concat!("wellhead ", env!("CARGO_PKG_VERSION"), "\ntarget ")),
            "{version}"
        );
        assert!(version.ends_with("\nrings uring, epoll\n"), "{version}");
    }
}
