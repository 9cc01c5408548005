//! The users file: names, roles and password hashes.
//!
//! ```toml
//! [[user]]
//! name = "ann"
//! password = "$argon2id$v=19$m=19456,t=2,p=1$…"
//! role = "viewer"
//! wells = ["wells/+"]
//! ```

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use argon2::password_hash::{self, phc};
use argon2::{ARGON2ID_IDENT, Argon2, Params, PasswordHasher, PasswordVerifier};
use protocol::topic::Filter;

use super::{MAX_FILTERS, Role};
use crate::config::section::{Section, Setting, Written, sections};
use crate::config::source::{Node, Value};
use crate::config::{Config, ConfigError, Place, Problem, unreadable};

/// Longest name, in bytes.
pub const MAX_NAME: usize = 64;
/// Longest password, in bytes.
pub const MAX_PASSWORD: usize = 1024;
/// Most memory that checking one password may take, in KiB.
const MAX_MEMORY: u32 = 256 << 10;
/// Most passes over it.
const MAX_PASSES: u32 = 16;
/// Checked where the name is unknown, so that nobody can tell by the time it takes: the hash of no password, of the
/// cost that [`hash`] has.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

sections! {
    /// Somebody who can log in.
    User {
        /// The name, which is the subject of the tokens as well.
        name: String,
        /// The hash of the password.
        password: Hash,
        /// What the user may do.
        role: Role,
        /// The topics that the user may read and publish to; absent for all.
        wells: Option<Vec<Filter>>,
    }
}

/// A password's hash: argon2id, as a PHC string.
#[derive(Clone)]
pub struct Hash(phc::PasswordHash);

impl Hash {
    /// Reads a PHC string; `None` if it is none, not of argon2id, or so costly that checking it is an attack.
    pub fn parse(text: &str) -> Option<Self> {
        let hash = phc::PasswordHash::new(text).ok()?;
        let cost = Params::try_from(&hash).ok()?;
        let bounded = cost.m_cost() <= MAX_MEMORY && cost.t_cost() <= MAX_PASSES;
        let whole = hash.algorithm == ARGON2ID_IDENT && hash.salt.is_some() && hash.hash.is_some();
        (bounded && whole).then_some(Self(hash))
    }

    /// Memory times passes.
    fn cost(&self) -> u64 {
        let cost = Params::try_from(&self.0).unwrap_or_default();
        u64::from(cost.m_cost()) * u64::from(cost.t_cost())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hash(redacted)")
    }
}

impl Setting for Hash {
    fn read(node: &Node, key: &str) -> Result<Self, ConfigError> {
        let hash = match &node.value {
            Value::Text(text) => Self::parse(text),
            _ => None,
        };
        // What stands there may be the password itself.
        hash.ok_or_else(|| ConfigError {
            place: node.place.clone(),
            key: key.into(),
            problem: Problem::Expected {
                expected: "an argon2id hash, as `wellhead user add` writes it".into(),
                found: "something else (not shown)".into(),
            },
        })
    }
    fn write(&self) -> Written {
        Written::Value(toml::Value::String(self.0.to_string()).to_string())
    }
}

/// Hashes a password with argon2id (RFC 9106) of the default cost: 19 MiB, two passes. The salt must be random.
///
/// # Errors
/// If there is no memory for it.
pub fn hash(password: &[u8], salt: [u8; 16]) -> Result<Hash, CheckFailed> {
    hash_at_cost(Params::DEFAULT, password, salt)
}

fn hash_at_cost(cost: Params, password: &[u8], salt: [u8; 16]) -> Result<Hash, CheckFailed> {
    let hash: phc::PasswordHash =
        Argon2::from(cost).hash_password_with_salt(password, &salt).map_err(|_| CheckFailed)?;
    Ok(Hash(hash))
}

/// A password could not be hashed or checked: there is no memory for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckFailed;

impl fmt::Display for CheckFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there is no memory to hash a password")
    }
}

impl std::error::Error for CheckFailed {}

/// All users.
#[derive(Debug)]
pub struct Users {
    users: HashMap<String, User>,
    /// Checked where the name is unknown.
    nobody: Option<Hash>,
}

impl Users {
    /// The users of a file of this text; `file` is how errors call it.
    ///
    /// # Errors
    /// If something in it is wrong: the first thing found.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        let tree = Node::parse(file, text)?;
        let mut root = Section::root(&tree)?;
        let Self { mut users, mut nobody } = Self::default();
        for (index, section) in root.sections("user")?.into_iter().enumerate() {
            let user = User::read(section)?;
            let refuse = |key, why: String| {
                let key = format!("user.{index}.{key}");
                ConfigError { place: tree.place_of(&key).clone(), key, problem: Problem::Refused(why) }
            };
            check_name(&user.name).map_err(|why| refuse("name", why.into()))?;
            if user.wells.as_ref().is_some_and(|wells| wells.len() > MAX_FILTERS) {
                return Err(refuse("wells", format!("more than {MAX_FILTERS} filters")));
            }
            // The costliest, so that an unknown name never takes less time than a known one.
            if index == 0 || nobody.as_ref().is_none_or(|hash| hash.cost() < user.password.cost()) {
                nobody = Some(user.password.clone());
            }
            match users.entry(user.name.clone()) {
                Entry::Vacant(place) => place.insert(user),
                Entry::Occupied(_) => return Err(refuse("name", "a user above has this name".into())),
            };
        }
        root.finish()?;
        Ok(Self { users, nobody })
    }

    /// Reads the file.
    ///
    /// # Errors
    /// If it can't be read, or something in it is wrong.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(file).map_err(|error| unreadable(file, &error))?;
        Self::parse(&file.to_string_lossy(), &text)
    }

    /// Reads the file that the configuration names; nobody, if it names none.
    ///
    /// # Errors
    /// As [`Users::load`]; where the file can't be read, the key that names it is pointed at.
    pub fn configured(config: &Config) -> Result<Self, ConfigError> {
        let Some(file) = &config.auth.users_file else { return Ok(Self::default()) };
        Self::load(file).map_err(|error| match error.place {
            Place::Default => config.error("auth.users_file", error.problem),
            _ => error,
        })
    }

    /// The user of that name, if this is the password. An unknown name takes as long as a wrong password.
    ///
    /// # Errors
    /// If it could not be checked.
    pub fn check(&self, name: &str, password: &[u8]) -> Result<Option<&User>, CheckFailed> {
        let user = self.users.get(name);
        let hash = user.map(|user| &user.password).or(self.nobody.as_ref()).ok_or(CheckFailed)?;
        match Argon2::default().verify_password(password, &hash.0) {
            Ok(()) => Ok(user),
            Err(password_hash::Error::PasswordInvalid) => Ok(None),
            Err(_) => Err(CheckFailed),
        }
    }
}

impl Default for Users {
    /// Nobody.
    fn default() -> Self {
        Self { users: HashMap::new(), nobody: Hash::parse(NOBODY) }
    }
}

/// Adds a user to a file, which is made if there is none. The file is replaced at once or not at all, stays with its
/// owner, and only the owner can read it.
///
/// # Errors
/// If something in the file is wrong, the name is taken or malformed, or the file can't be written.
pub fn add(file: &Path, user: &User) -> Result<(), ConfigError> {
    let refuse = |key: &str, problem| ConfigError { place: Place::Default, key: key.into(), problem };
    check_name(&user.name).map_err(|why| refuse("name", Problem::Refused(why.into())))?;
    let failed =
        |error: io::Error| refuse("", Problem::File(format!("can't write {}: {error}", file.display())));
    let draft = Draft::create(file).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => refuse(
            "",
            Problem::File(format!(
                "{} exists: another `wellhead user add` is at work. If none is, remove it",
                draft_path(file).display(),
            )),
        ),
        _ => failed(error),
    })?;
    let mut text = match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read.map_err(|error| unreadable(file, &error))?,
    };
    let name = file.to_string_lossy();
    if Users::parse(&name, &text)?.users.contains_key(&user.name) {
        let why = format!(
            "{} has a user {:?} already. Take another name, or remove that [[user]] first",
            file.display(),
            user.name,
        );
        return Err(refuse("name", Problem::Refused(why)));
    }
    if !text.is_empty() {
        text.push_str(if text.ends_with('\n') { "\n" } else { "\n\n" });
    }
    user.entries().append("[[user]]", &mut text);
    Users::parse(&name, &text)?;
    draft.commit(&text).map_err(failed)
}

fn check_name(name: &str) -> Result<(), &'static str> {
    match name {
        _ if name.is_empty() || name.len() > MAX_NAME => Err("a name has 1 to 64 bytes"),
        _ if name.chars().any(char::is_control) => Err("a name has no control characters"),
        _ => Ok(()),
    }
}

/// The file's next contents, beside it. There is one at a time, which keeps two writers apart.
struct Draft<'a> {
    file: &'a Path,
    path: PathBuf,
    draft: File,
    is_pending: bool,
}

impl<'a> Draft<'a> {
    fn create(file: &'a Path) -> io::Result<Self> {
        let path = draft_path(file);
        let draft = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { file, path, draft, is_pending: true })
    }

    /// Puts the draft in the file's place, on the disk.
    fn commit(mut self, text: &str) -> io::Result<()> {
        self.draft.write_all(text.as_bytes())?;
        if let Ok(old) = fs::metadata(self.file) {
            let new = self.draft.metadata()?;
            if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
                // The server, which reads it, may be another user than the one who writes it.
                std::os::unix::fs::fchown(&self.draft, Some(old.uid()), Some(old.gid()))?;
            }
        }
        self.draft.sync_all()?;
        fs::rename(&self.path, self.file)?;
        // From here on what stands at the path is another writer's.
        self.is_pending = false;
        let directory = self.file.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if self.is_pending {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn draft_path(file: &Path) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push(".new");
    path.into()
}

/// A PHC string that is cheap to check.
#[cfg(test)]
pub(crate) fn cheap_hash(password: &str) -> String {
    let cost = Params::new(8, 1, 1, None).unwrap();
    hash_at_cost(cost, password.as_bytes(), [7; 16]).unwrap().0.to_string()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn cheap(password: &str) -> Hash {
        Hash::parse(&cheap_hash(password)).unwrap()
    }

    fn user(name: &str, password: &str, wells: Option<&[&str]>) -> User {
        User {
            name: name.into(),
            password: cheap(password),
            role: Role::Operator,
            wells: wells.map(|all| all.iter().map(|text| Filter::parse(text).unwrap()).collect()),
        }
    }

    fn entry(user: &User) -> String {
        let mut text = String::new();
        user.entries().append("[[user]]", &mut text);
        text
    }

    #[test]
    fn users_are_known_by_their_passwords() {
        let text = entry(&user("ann", "sesame", Some(&["wells/+", "A 1"]))) + &entry(&user("bob", "", None));
        let users = Users::parse("users.toml", &text).unwrap();
        for (name, password, known) in [
            ("ann", "sesame", true),
            ("ann", "Sesame", false),
            ("ann", "", false),
            ("Ann", "sesame", false),
            ("bob", "", true),
            ("bob", "sesame", false),
            ("eve", "sesame", false),
            ("", "", false),
        ] {
            let user = users.check(name, password.as_bytes()).unwrap();
            assert_eq!(user.map(|user| user.name.as_str()), known.then_some(name), "{name} {password}");
        }
        let ann = users.check("ann", b"sesame").unwrap().unwrap();
        assert_eq!(ann.role, Role::Operator);
        let wells: Vec<_> = ann.wells.iter().flatten().map(Filter::as_str).collect();
        assert_eq!(wells, ["wells/+", "A%201"]);
        assert!(users.check("bob", b"").unwrap().unwrap().wells.is_none());
    }

    #[test]
    fn nobody_is_somebody() {
        assert!(Hash::parse(NOBODY).is_some());
        let users = Users::parse("users.toml", "").unwrap();
        assert!(users.check("eve", b"").unwrap().is_none());
        let costly = Hash::parse(NOBODY).unwrap();
        let both = [user("a", "x", None), User { password: costly, ..user("b", "x", None) }];
        for order in [[0, 1], [1, 0]] {
            let text = order.map(|index: usize| entry(&both[index])).concat();
            let nobody = Users::parse("users.toml", &text).unwrap().nobody.unwrap();
            assert_eq!(nobody.cost(), 19456 * 2, "the costliest");
        }
    }

    #[test]
    fn the_default_cost_is_that_of_nobody() {
        let hash = hash(b"sesame", [1; 16]).unwrap();
        assert_eq!(hash.cost(), Hash::parse(NOBODY).unwrap().cost());
        assert!(hash.0.to_string().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
    }

    #[test]
    fn what_is_wrong_is_pointed_at() {
        let hash = cheap("x").0.to_string();
        let good = format!("[[user]]\nname = \"ann\"\npassword = \"{hash}\"\nrole = \"viewer\"\n");
        let many = vec!["\"a\""; MAX_FILTERS + 1].join(",");
        let name = "x".repeat(MAX_NAME + 1);
        for (text, message) in [
            ("[[user]\n".into(), "u.toml:1: not TOML: "),
            ("[[users]]\n".into(), "u.toml:1: users: unknown key; there are user"),
            ("user = 1\n".into(), "u.toml:1: user: expected a list of tables: [[user]], found 1"),
            ("[[user]]\nname = \"ann\"\n".into(), "u.toml:1: user.0.password: missing. "),
            (
                format!("{good}pasword = 1\n"),
                "u.toml:5: user.0.pasword: unknown key; there are name, password",
            ),
            (format!("{good}\n{good}"), "u.toml:7: user.1.name: a user above has this name"),
            (good.replace("viewer", "root"), "u.toml:4: user.0.role: expected a role: admin, operator"),
            (good.replace("\"ann\"", "\"\""), "u.toml:2: user.0.name: expected a text that is not empty"),
            (good.replace("ann", "a\\u0007"), "u.toml:2: user.0.name: a name has no control characters"),
            (good.replace("ann", &name), "u.toml:2: user.0.name: a name has 1 to 64 bytes"),
            (format!("{good}wells = \"a\""), "u.toml:5: user.0.wells: expected a list, found \"a\""),
            (
                format!("{good}wells = [\n\"a\",\n\"#/a\"]"),
                "u.toml:7: user.0.wells.1: expected a topic filter",
            ),
            (format!("{good}wells = [{many}]"), "u.toml:5: user.0.wells: more than 64 filters"),
        ] {
            let error = Users::parse("u.toml", &text).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn what_is_no_hash_is_refused_and_not_shown() {
        let good = cheap("x").0.to_string();
        assert!(Hash::parse(&good).is_some());
        for text in [
            "sesame",
            "",
            "$2b$12$abcdefghijklmnopqrstuv",
            "$argon2id$v=19$m=8,t=1,p=1",
            "$argon2id$v=19$m=8,t=1,p=1$BwcHBwcHBwcHBwcHBwcHBw",
            &good.replace("argon2id", "argon2i"),
            &good.replace("m=8,", "m=262145,"),
            &good.replace("t=1,", "t=17,"),
            &good.replace("m=8,", "m=1,"),
        ] {
            assert!(Hash::parse(text).is_none(), "{text}");
            let file = format!("[[user]]\nname = \"a\"\nrole = \"viewer\"\npassword = \"{text}\"");
            let error = Users::parse("u.toml", &file).unwrap_err();
            assert_eq!(
                error.to_string(),
                "u.toml:4: user.0.password: expected an argon2id hash, as `wellhead user add` writes it, \
                 found something else (not shown)"
            );
        }
        assert!(!format!("{:?}", user("a", "x", None)).contains("argon2id"));
    }

    #[test]
    fn adding_keeps_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("users.toml");
        add(&file, &user("ann", "sesame", Some(&["A"]))).unwrap();
        fs::write(&file, format!("# ours{}", fs::read_to_string(&file).unwrap().trim_end())).unwrap();
        fs::write(&file, fs::read_to_string(&file).unwrap().replacen("# ours", "# ours\n", 1)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        add(&file, &user("b\"ob", "x", Some(&[]))).unwrap();
        let users = Users::load(&file).unwrap();
        assert!(users.check("ann", b"sesame").unwrap().is_some());
        assert_eq!(users.check("b\"ob", b"x").unwrap().unwrap().wells.as_deref(), Some(&[][..]));
        assert!(fs::read_to_string(&file).unwrap().starts_with("# ours\n"));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

        let before = fs::read_to_string(&file).unwrap();
        let error = add(&file, &user("ann", "y", None)).unwrap_err().to_string();
        assert!(error.contains("has a user \"ann\" already. Take another name"), "{error}");
        assert!(add(&file, &user("", "y", None)).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), before);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn two_writers_are_kept_apart() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("users.toml");
        let draft = Draft::create(&file).unwrap();
        let error = add(&file, &user("ann", "x", None)).unwrap_err().to_string();
        assert!(error.contains("another `wellhead user add` is at work"), "{error}");
        drop(draft);
        add(&file, &user("ann", "x", None)).unwrap();
    }

    #[test]
    fn a_file_that_is_wrong_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("users.toml");
        fs::write(&file, "[[user]]\nname = 5\n").unwrap();
        let error = add(&file, &user("ann", "x", None)).unwrap_err().to_string();
        assert!(
            error.ends_with("users.toml:2: user.0.name: expected a text that is not empty, found 5"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&file).unwrap(), "[[user]]\nname = 5\n");
        let missing = Users::load(&directory.path().join("nowhere")).unwrap_err().to_string();
        assert!(missing.starts_with("can't read "), "{missing}");
    }
}
