//! What keys can be that have names of their own.

use std::fmt;
use std::hint::black_box;
use std::net::SocketAddr;
use std::str::FromStr;

use protocol::dialect::{DialectId, DialectSet};
use protocol::topic::Filter;

use super::section::{Setting, Written};
use super::source::{ConfigError, Node};
use super::units::{Text, texts};

/// Most shards of one process. A mesh has a lane for each pair of nodes.
pub const MAX_SHARDS: usize = 128;
/// Fewest bytes of a secret that signs tokens: as many as its hash has (RFC 7518 section 3.2).
pub const MIN_SECRET_BYTES: usize = 32;
/// Stands for the shard's number in the path of an AF_UNIX listener.
pub const SHARD: &str = "{shard}";
/// Longest path of an AF_UNIX socket, in bytes (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// How many shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shards {
    /// One for each CPU that this process may use.
    Auto,
    /// So many: 1 to [`MAX_SHARDS`].
    Count(usize),
}

/// How shards talk to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingChoice {
    /// io_uring, or epoll where the kernel refuses it.
    Auto,
    /// io_uring, or no start.
    Uring,
    /// epoll.
    Epoll,
}

/// When a publication counts as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When it is on the disk: it survives a power cut.
    Fsync,
    /// When the operating system has it: it survives a crash of this process.
    Os,
    /// At once: it is stored later, and a crash may lose it.
    Memory,
}

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of an AF_UNIX socket, with [`SHARD`] for the shard's number where there are several.
    Unix(String),
}

impl Bind {
    /// Where this shard listens.
    pub fn of_shard(&self, shard: usize) -> Self {
        match self {
            Self::Tcp(address) => Self::Tcp(*address),
            Self::Unix(path) => Self::Unix(path.replace(SHARD, &shard.to_string())),
        }
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

/// An origin (RFC 6454 section 6.2) as browsers send it: scheme, host, and the port if it is not the scheme's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(String);

impl Origin {
    /// The origin.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A secret. Its `Debug` doesn't show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// A secret of these bytes; `None` if they are fewer than [`MIN_SECRET_BYTES`].
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= MIN_SECRET_BYTES).then(|| Self(bytes.to_vec()))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// Overwrites a secret, as far as the compiler can be kept from seeing that nobody reads it afterwards.
pub(crate) fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    black_box(bytes);
}

texts!(Shards, RingChoice, Durability, Bind, Origin, Secret, Filter);

impl Text for Shards {
    const EXPECTED: &'static str = r#""auto" or a number from 1 to 128"#;
    const DIGITS: bool = true;

    fn from_text(text: &str) -> Option<Self> {
        if text == "auto" {
            return Some(Self::Auto);
        }
        text.parse().ok().filter(|count| (1..=MAX_SHARDS).contains(count)).map(Self::Count)
    }
    fn to_text(&self) -> String {
        match self {
            Self::Auto => "auto".into(),
            Self::Count(count) => count.to_string(),
        }
    }
}

impl Text for RingChoice {
    const EXPECTED: &'static str = r#""auto", "uring" or "epoll""#;

    fn from_text(text: &str) -> Option<Self> {
        [Self::Auto, Self::Uring, Self::Epoll].into_iter().find(|choice| choice.to_text() == text)
    }
    fn to_text(&self) -> String {
        match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        }
        .into()
    }
}

impl Text for Durability {
    const EXPECTED: &'static str = r#""fsync", "os" or "memory""#;

    fn from_text(text: &str) -> Option<Self> {
        [Self::Fsync, Self::Os, Self::Memory].into_iter().find(|rule| rule.to_text() == text)
    }
    fn to_text(&self) -> String {
        match self {
            Self::Fsync => "fsync",
            Self::Os => "os",
            Self::Memory => "memory",
        }
        .into()
    }
}

impl Text for Bind {
    const EXPECTED: &'static str =
        r#"an address and a port such as "0.0.0.0:8000" or "[::]:8000", or "unix:/path.sock""#;

    fn from_text(text: &str) -> Option<Self> {
        let Some(path) = text.strip_prefix("unix:") else {
            return SocketAddr::from_str(text).ok().map(Self::Tcp);
        };
        let longest = path.replace(SHARD, &(MAX_SHARDS - 1).to_string());
        let fits = longest.len() <= MAX_SOCKET_PATH && !longest.contains('\0');
        (path.starts_with('/') && fits).then(|| Self::Unix(path.into()))
    }
    fn to_text(&self) -> String {
        self.to_string()
    }
}

impl Text for Origin {
    const EXPECTED: &'static str = r#"an origin such as "https://dashboard.example", without a path"#;

    fn from_text(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"))?;
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
        (!host.is_empty() && host.bytes().all(is_host)).then_some(Self(text))
    }
    fn to_text(&self) -> String {
        self.0.clone()
    }
}

impl Text for Secret {
    const EXPECTED: &'static str = "at least 32 bytes, as `wellhead secret` prints them";
    const SECRET: bool = true;

    fn from_text(text: &str) -> Option<Self> {
        Self::new(text.as_bytes())
    }
    fn to_text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl Text for Filter {
    const EXPECTED: &'static str = r#"a topic filter such as "wells/+" or "WELL-001""#;

    fn from_text(text: &str) -> Option<Self> {
        Self::parse(text).ok()
    }
    fn to_text(&self) -> String {
        self.as_str().into()
    }
}

/// A dialect, by its name.
struct Name(DialectId);

impl Text for Name {
    const EXPECTED: &'static str = "the name of a dialect";

    fn from_text(text: &str) -> Option<Self> {
        DialectId::from_name(text).map(Self)
    }
    fn to_text(&self) -> String {
        self.0.name().into()
    }
}

impl Setting for DialectSet {
    fn read(node: &Node, key: &str) -> Result<Self, ConfigError> {
        let names: Vec<Name> = Setting::read(node, key)?;
        Ok(names.into_iter().map(|name| name.0).collect())
    }
    fn write(&self) -> Written {
        self.iter().map(Name).collect::<Vec<_>>().write()
    }
    fn absent() -> Option<Self> {
        Some(Self::default())
    }
}
