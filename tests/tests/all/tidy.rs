//! The repository's own rules, held against its own files.

use std::collections::BTreeSet;

use protocol::dialect::DialectId;
use tests::source::{File, code, files, functions, lines_with, root};

/// The only files that may hold `unsafe`, each for the reason it gives at its top.
const UNSAFE: &[&str] = &[
    "engine/src/mesh.rs",
    "engine/src/ring/epoll.rs",
    "engine/src/ring/uring.rs",
    "engine/src/sys.rs",
    "engine/src/wire_log.rs",
    "loadgen/src/sys.rs",
    "tests/src/seccomp.rs",
];
/// Lines of a file before its tests.
const MAX_FILE: usize = 600;
/// Lines of a function.
const MAX_FUNCTION: usize = 70;
/// The folders with Rust in them.
const CRATES: &[&str] = &["protocol", "engine", "loadgen", "bench", "tests"];
/// Who may know a dialect by its name: settings, what is made from them, and the demo.
const NAMING: &[&str] =
    &["engine/src/config/", "engine/src/server.rs", "engine/src/demo.rs", "engine/src/cli.rs"];

fn rust() -> Vec<File> {
    let all: Vec<File> = CRATES.iter().flat_map(|folder| files(folder, ".rs")).collect();
    assert!(all.len() > 50, "only {} files: is this the repository?", all.len());
    all
}

/// Panics with what is wrong, if anything is.
fn report(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn unsafe_stands_where_it_may() {
    let mut wrong = Vec::new();
    for file in rust() {
        // Its tests too: a whole file is judged.
        let code = code(&file.text);
        if !UNSAFE.contains(&&*file.path) {
            wrong.extend(
                lines_with(&code, "unsafe").iter().map(|line| format!("{}:{line}: unsafe", file.path)),
            );
        }
    }
    report(wrong);
}

#[test]
fn files_and_functions_are_short() {
    let mut wrong = Vec::new();
    for file in rust() {
        let lines = file.before_tests().lines().count();
        if lines > MAX_FILE {
            wrong.push(format!("{}: {lines} lines before its tests", file.path));
        }
        for function in functions(&file.code()).iter().filter(|function| function.lines > MAX_FUNCTION) {
            let (name, line, lines) = (&function.name, function.line, function.lines);
            wrong.push(format!("{}:{line}: {name} has {lines} lines", file.path));
        }
    }
    report(wrong);
}

#[test]
fn nothing_is_left_undone() {
    let in_text = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];
    let in_code =
        [concat!("to", "do!"), concat!("unimple", "mented!"), concat!("db", "g!"), concat!("#[ig", "nore")];
    let mut wrong = Vec::new();
    for file in rust() {
        for word in in_text {
            let lines = lines_with(&file.text, word);
            wrong.extend(lines.iter().map(|line| format!("{}:{line}: {word}", file.path)));
        }
        for word in in_code.iter().filter(|word| code(&file.text).contains(**word)) {
            wrong.push(format!("{}: {word}", file.path));
        }
    }
    report(wrong);
}

#[test]
fn silenced_lints_say_why() {
    let mut wrong = Vec::new();
    for file in rust() {
        let lines: Vec<&str> = file.text.lines().collect();
        let code = code(&file.text);
        for (index, line) in code.lines().enumerate() {
            let line = line.trim();
            let names = ["#[allow(", "#![allow(", "#[expect(", "#![expect("];
            let Some(lints) = names.iter().find_map(|name| line.strip_prefix(name)) else { continue };
            let about_unsafe = lints.starts_with("unsafe_code)") && is_about_unsafe(&file.path, &code, index);
            let is_commented = lines[index].contains("// ")
                || index > 0 && lines[index - 1].trim().starts_with("// ")
                || line.contains("reason =");
            let may_be = if lints.contains("unsafe_code") { about_unsafe } else { is_commented };
            if !may_be {
                wrong.push(format!("{}:{}: {}", file.path, index + 1, lines[index].trim()));
            }
        }
    }
    report(wrong);
}

/// Whether an attribute stands in a file that may hold `unsafe`, or on the line that makes such a file a module.
fn is_about_unsafe(path: &str, code: &str, index: usize) -> bool {
    let next = code.lines().nth(index + 1).unwrap_or_default().trim();
    let module = next.trim_start_matches("pub ").strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';'));
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let makes_one = module.is_some_and(|module| UNSAFE.contains(&&*format!("{folder}/{module}.rs")));
    UNSAFE.contains(&path) || makes_one
}

#[test]
fn no_dialect_is_known_by_name_in_the_core() {
    let mut wrong = Vec::new();
    for file in files("engine/src", ".rs") {
        if NAMING.iter().any(|start| file.path.starts_with(start)) {
            continue;
        }
        let code = file.code();
        for dialect in DialectId::ALL {
            let word = format!("DialectId::{dialect:?}");
            wrong.extend(lines_with(&code, &word).iter().map(|line| format!("{}:{line}: {word}", file.path)));
            let literal = format!("\"{}\"", dialect.name());
            for (line, number) in file.before_tests().lines().zip(1..) {
                if line.contains(&literal) && !line.trim_start().starts_with("//") {
                    wrong.push(format!("{}:{number}: {literal}", file.path));
                }
            }
        }
    }
    report(wrong);
}

#[test]
fn what_is_pure_touches_nothing() {
    let mut wrong = Vec::new();
    let outside = [
        "std::net",
        "std::fs",
        "std::thread",
        "std::env",
        "std::process",
        "Instant",
        "SystemTime",
        "println",
        "eprintln",
    ];
    for (folder, words) in [
        ("protocol/src", &outside[..]),
        ("engine/src/session", &outside),
        ("engine/src/topic", &[&outside[..], &["DialectId", "Session", "sse"]].concat()),
        ("engine/src/ring", &["session", "topic", "protocol", "DialectId", "shard"]),
        ("engine/src/connector", &["session", "wire_log", "DialectId"]),
    ] {
        for file in files(folder, ".rs") {
            // Uses and paths, but not what is merely called so.
            let code = file.code();
            for word in words {
                let is_path = |line: &str| {
                    let path = if word.contains("::") || word.starts_with(char::is_uppercase) {
                        (*word).to_owned()
                    } else {
                        format!("{word}::")
                    };
                    line.contains(&path) || line.contains(&format!("{word}!"))
                };
                let lines = code.lines().zip(1..).filter(|(line, _)| is_path(line));
                wrong.extend(lines.map(|(_, number)| format!("{}:{number}: {word}", file.path)));
            }
        }
    }
    for (crate_, others) in [
        ("protocol", &["engine", "loadgen"][..]),
        ("engine", &["loadgen"]),
        ("loadgen", &["engine"]),
        ("bench", &["engine"]),
    ] {
        let Ok(manifest) = std::fs::read_to_string(root().join(crate_).join("Cargo.toml")) else { continue };
        let depends = |other: &&&str| manifest.lines().any(|line| line.starts_with(**other));
        wrong.extend(others.iter().filter(depends).map(|other| format!("{crate_} depends on {other}")));
    }
    report(wrong);
}

#[test]
fn the_top_level_is_what_it_was_meant_to_be() {
    let expected: BTreeSet<&str> = [
        "Cargo.toml",
        "Cargo.lock",
        "README.md",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "protocol",
        "engine",
        "loadgen",
        "bench",
        "tests",
        "docs",
    ]
    .into();
    let entries = std::fs::read_dir(root()).expect("it can be read").flatten();
    let names: BTreeSet<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let mut wrong: Vec<String> = expected
        .iter()
        .filter(|name| !names.contains(**name))
        .map(|name| format!("{name} is missing"))
        .collect();
    let known =
        |name: &&String| name.starts_with('.') || &**name == "target" || expected.contains(name.as_str());
    wrong
        .extend(names.iter().filter(|name| !known(name)).map(|name| format!("{name} does not belong there")));
    report(wrong);
}

#[test]
fn every_dialect_has_its_transcripts() {
    let folder = |dialect: &&DialectId| root().join("tests/golden").join(dialect.name());
    let is_empty = |dialect: &&DialectId| {
        std::fs::read_dir(folder(dialect)).map_or(true, |mut entries| entries.next().is_none())
    };
    report(
        DialectId::ALL
            .iter()
            .filter(is_empty)
            .map(|dialect| format!("tests/golden/{}", dialect.name()))
            .collect(),
    );
}

/// The paths of this repository that a text names, in backticks or as links.
fn paths_in(text: &str) -> Vec<String> {
    let quoted = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).map(str::to_owned);
    let named = quoted.filter(|word| {
        let first = word.split('/').next().unwrap_or_default();
        let is_ours = CRATES.contains(&first) || matches!(first, "docs" | ".ci");
        is_ours && word.contains('/') && !word.contains([' ', '<', '*', '{', '…'])
    });
    let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).map(str::to_owned);
    let local = links.filter(|link| !link.contains("://") && !link.starts_with(['#', '<']));
    named.map(|word| format!("/{word}")).chain(local).collect()
}

#[test]
fn docs_name_what_exists() {
    assert_eq!(
        paths_in("`engine/src/a.rs`, `a/b`, `cd engine`\n[x](y.md#z) [w](https://v)"),
        ["/engine/src/a.rs", "y.md#z"]
    );
    let mut wrong = Vec::new();
    let mut texts = files("docs", ".md");
    texts.extend(files("", ".md").into_iter().filter(|file| !file.path.contains('/')));
    assert!(!texts.is_empty(), "there are no docs");
    for file in &texts {
        let folder = root().join(&file.path).parent().map(std::path::Path::to_path_buf).unwrap_or_default();
        for path in paths_in(&file.text) {
            let bare = path.split(['#', ':']).next().unwrap_or_default();
            let full = match bare.strip_prefix('/') {
                Some(from_top) => root().join(from_top),
                None => folder.join(bare),
            };
            if !full.exists() {
                wrong.push(format!("{}: {path}", file.path));
            }
        }
    }
    report(wrong);
}
