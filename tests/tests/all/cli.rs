//! The command line: what it prints, and how it ends.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::process::{Pid, Signal, kill_process};
use tests::on;
use tests::server::{SECRET, run, wellhead};

on! {
    the_demo_shows_telemetry_at_once: uring_1 uring_2 epoll_1 epoll_2;
}

/// Runs `wellhead` with these arguments.
fn ask<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    run(wellhead(arguments), "")
}

/// What a command that ends well has printed.
fn said(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("it prints text")
}

/// A directory with a secret and this configuration, and the configuration's path.
fn configured(text: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("it can be written");
        path.to_string_lossy().into_owned()
    };
    write("secret", SECRET);
    write("short", &SECRET[..31]);
    let file = write("wellhead.toml", &text.replace("{dir}", &directory.path().to_string_lossy()));
    (directory, file)
}

const GOOD: &str = "auth.secret_file = \"{dir}/secret\"\nstore.path = \"{dir}/store\"\n\
                    listener = [{ bind = \"127.0.0.1:0\", dialects = [\"esp\"] }]\n";

#[test]
fn secrets_are_long_and_never_the_same() {
    let secrets: Vec<String> = (0..3).map(|_| said(ask(["secret"]))).collect();
    for secret in &secrets {
        assert_eq!(secret.lines().count(), 1);
        assert!(secret.trim_end().len() >= 32, "{secret}");
    }
    assert!(secrets[0] != secrets[1] && secrets[1] != secrets[2]);
    // What it prints is what `serve` takes.
    let (directory, file) = configured(GOOD);
    std::fs::write(directory.path().join("secret"), &secrets[0]).expect("it can be written");
    said(ask(["check-config", "--config", &file]));
}

#[test]
fn a_token_is_one_line_and_nothing_else() {
    let (_directory, file) = configured(GOOD);
    let start = ["token", "--config", &file, "--sub", "fleet-7"];
    for (arguments, role, wells) in [
        (&[][..], "viewer", serde_json::Value::Null),
        (&["--role", "ingest", "--ttl", "1h"], "ingest", serde_json::Value::Null),
        (
            &["--wells", "wells/A", "--wells", "wells/+/x"],
            "viewer",
            serde_json::json!(["wells/A", "wells/+/x"]),
        ),
    ] {
        let output = ask(start.iter().chain(arguments));
        assert!(output.stderr.is_empty(), "{output:?}");
        let text = said(output);
        assert_eq!(text.lines().count(), 1, "{text}");
        let parts: Vec<Vec<u8>> =
            text.trim_end().split('.').map(|part| URL_SAFE_NO_PAD.decode(part).expect("base64url")).collect();
        assert_eq!(parts.len(), 3, "{text}");
        let claims: serde_json::Value = serde_json::from_slice(&parts[1]).expect("JSON");
        assert_eq!(
            (&claims["sub"], &claims["role"], &claims["wells"]),
            (&"fleet-7".into(), &role.into(), &wells)
        );
        let life = claims["exp"].as_u64().zip(claims["iat"].as_u64()).map(|(exp, iat)| exp - iat);
        assert_eq!(life, Some(3600), "{claims}");
    }
    for arguments in [&["--ttl", "1"][..], &["--role", "root"], &["--wells", "wells/#/A"]] {
        let output = ask(start.iter().chain(arguments));
        assert!(output.status.code() == Some(2) && output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn the_version_is_said() {
    let version = said(ask(["version"]));
    assert!(version.starts_with(concat!("wellhead ", env!("CARGO_PKG_VERSION"))), "{version}");
    assert!(said(ask(["--help"])).contains("serve"));
}

#[test]
fn what_print_config_prints_check_config_takes() {
    let (directory, file) =
        configured(&format!("{GOOD}limits.pending_age = \"7s\"\nstore.replay.publications = 3\n"));
    let printed = said(ask(["print-config", "--config", &file]));
    for line in
        ["pending_age = \"7s\"", "publications = 3", "dialects = [\"esp\"]", "drain_timeout = \"10s\""]
    {
        assert!(printed.lines().any(|have| have == line), "{line} is not in\n{printed}");
    }
    assert!(!printed.contains(SECRET));
    let copy = directory.path().join("printed.toml").to_string_lossy().into_owned();
    std::fs::write(&copy, &printed).expect("it can be written");
    said(ask(["check-config", "--config", &copy]));
    assert_eq!(said(ask(["print-config", "--config", &copy])), printed);
}

#[test]
fn the_environment_goes_before_the_file() {
    let (_directory, file) = configured(&format!("{GOOD}limits.pending_age = \"7s\"\n"));
    let mut command = wellhead(["print-config", "--config", &file]);
    command.env("WELLHEAD__LIMITS__PENDING_AGE", "8s").env("WELLHEAD__LISTENER__0__BIND", "127.0.0.1:1234");
    let printed = said(run(command, ""));
    assert!(
        printed.contains("pending_age = \"8s\"") && printed.contains("bind = \"127.0.0.1:1234\""),
        "{printed}"
    );
    let mut command = wellhead(["check-config", "--config", &file]);
    command.env("WELLHEAD__LIMITS__PENDING_AGES", "8s");
    let output = run(command, "");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("WELLHEAD__LIMITS__PENDING_AGES"), "{error}");
}

/// Bad configurations: the line at fault, and what the message names beside it.
const BAD: &[(&str, u32, &[&str])] = &[
    ("server.shard = 2", 4, &["server.shard", "shards"]),
    ("limits.pending_ages = \"2s\"", 4, &["limits.pending_ages"]),
    ("dialect.esq.heartbeat = \"2s\"", 4, &["esq"]),
    ("nonsense = 1", 4, &["nonsense"]),
    ("limits.pending_age = 2", 4, &["limits.pending_age", "unit"]),
    ("limits.pending_age = \"2 parsecs\"", 4, &["limits.pending_age"]),
    ("server.shards = 0", 4, &["server.shards"]),
    ("server.ring = \"kqueue\"", 4, &["server.ring", "epoll"]),
    ("store.durability = \"maybe\"", 4, &["store.durability", "fsync"]),
    ("server.shards = ", 4, &[]),
    ("dialect.esp.allowed_origins = [\"https://a.example/path\"]", 4, &["allowed_origins"]),
];

#[test]
fn bad_configurations_are_pointed_at() {
    for (line, number, words) in BAD {
        let (_directory, file) = configured(&format!("{GOOD}{line}\n"));
        for command in ["serve", "check-config"] {
            let output = ask([command, "--config", &file]);
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{line}: {error}");
            assert!(error.contains(&format!("{file}:{number}")), "{line}: {error}");
            assert!(words.iter().all(|word| error.contains(word)), "{line}: {error}");
        }
    }
}

#[test]
fn a_secret_is_asked_for_and_measured() {
    for (auth, words) in [
        ("", &["wellhead secret", "secret_file"][..]),
        ("auth.secret_file = \"{dir}/short\"\n", &["32", "auth.secret_file"]),
        ("auth.secret_file = \"{dir}/nothing\"\n", &["auth.secret_file", "/nothing"]),
        ("auth.secret = \"sesame-123\"\n", &["32", "auth.secret"]),
    ] {
        let text = GOOD.replace("auth.secret_file = \"{dir}/secret\"\n", auth);
        let (_directory, file) = configured(&text);
        for command in [&["serve"][..], &["check-config"], &["token", "--sub", "x"]] {
            let output = ask(command.iter().chain(&["--config", &*file]));
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{auth}: {error}");
            assert!(words.iter().all(|word| error.contains(word)), "{auth}: {error}");
            assert!(!error.contains("sesame-123") && !error.contains(&SECRET[..31]), "{error}");
        }
    }
}

#[test]
fn bad_commands_end_with_2_and_missing_files_too() {
    for arguments in [
        &["serv"][..],
        &["serve", "--shard", "2"],
        &["serve", "--config", "/nowhere/wellhead.toml"],
        &["check-config", "--config", "/"],
        &["user", "add", "ann"],
        &["user", "add", "ann", "--role", "root"],
    ] {
        let output = ask(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
    let (_directory, file) = configured(GOOD);
    for (flag, value) in [("--ring", "kqueue"), ("--shards", "none")] {
        let output = ask(["serve", "--config", &file, flag, value]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(flag), "{error}");
    }
}

fn the_demo_shows_telemetry_at_once(case: tests::server::Case) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let shards = case.shards.to_string();
    let mut command = wellhead(["demo", "--port", "0", "--ring", case.ring, "--shards", &shards]);
    command.env("TMPDIR", directory.path()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut demo = command.spawn().expect("the demo starts");
    let mut printed = BufReader::new(demo.stdout.take().expect("it is piped"));
    let mut text = String::new();
    let curl = loop {
        let start = text.len();
        assert!(printed.read_line(&mut text).is_ok_and(|read| read > 0), "it says no curl line:\n{text}");
        if let Some(at) = text[start..].find("curl ") {
            break text[start + at..].trim_end().to_owned();
        }
    };
    let is_token = |word: &str| word.starts_with("eyJ") && word.split('.').count() == 3;
    assert!(text.split([' ', '\n', '=', '\'']).any(is_token), "it says no token:\n{text}");
    see_telemetry(&curl);
    kill_process(Pid::from_child(&demo), Signal::TERM).expect("it can be signalled");
    assert_eq!(demo.wait().expect("it ends").code(), Some(0));
    let kept: Vec<_> = std::fs::read_dir(directory.path()).expect("it is there").collect();
    assert!(kept.is_empty(), "the demo leaves {kept:?}");
}

/// Runs a line as somebody would who has copied it, until it shows telemetry.
fn see_telemetry(line: &str) {
    let mut shell = Command::new("sh")
        .args(["-c", &format!("exec {line} --silent --max-time 60")])
        .stdout(Stdio::piped())
        .spawn()
        .expect("a shell starts");
    let mut shown = String::new();
    let mut output = shell.stdout.take().expect("it is piped");
    let mut bytes = [0; 4096];
    while !shown.contains("event: telemetry_update\ndata: {") {
        let read = output.read(&mut bytes).expect("it can be read");
        assert!(read > 0, "{line} ends with\n{shown}");
        shown.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    let _ = shell.kill();
    let _ = shell.wait();
    assert!(shown.contains("event: connected\n"), "{shown}");
}

#[test]
fn a_user_is_added_once() {
    let (directory, file) = configured(GOOD);
    let users = directory.path().join("users.toml");
    let add = |password: &str| {
        let mut command = wellhead(["user", "add", "ann", "--role", "viewer", "--config", &file]);
        command.arg("--users-file").arg(&users);
        run(command, password)
    };
    said(add("a good password\n"));
    let before = std::fs::read_to_string(&users).expect("it is there");
    let again = add("another password\n");
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    assert!(String::from_utf8_lossy(&again.stderr).contains("ann"), "{again:?}");
    assert_eq!(std::fs::read_to_string(&users).expect("it is there"), before);
    assert_eq!(add("").status.code(), Some(1), "no password");
    assert!(Path::new(&users).exists());
}
