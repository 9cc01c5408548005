//! `gusher`: the command line of the load generator.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use loadgen::report::Report;
use loadgen::run::{self, Load, Options, Step, Target};

/// An open-loop load generator that checks what it receives.
#[derive(Parser)]
#[command(name = "gusher", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Opens many event streams of one well, publishes to it, and checks what comes out.
    #[command(after_help = EXAMPLES)]
    Sse(Sse),
}

const EXAMPLES: &str = "\
Examples:
  # 5,000 subscribers of one well, 500 publications a second, 50 streams checked event by event
  gusher sse --token-file admin.token --connections 5000 --verify 50 --rate 500 --seconds 20 \\
      --server-pid $(pgrep -x wellhead) --pin 1 --json result.json

  # The same rate in requests of 10 on 4 connections
  gusher sse --token-file admin.token --rate 500 --batch 10 --publishers 4

  # What 15,000 streams cost that receive nothing
  gusher sse --token-file admin.token --connections 15000 --idle --server-pid $(pgrep -x wellhead)

Latency is measured from the time a publication was due, on verified streams. The other streams are drained:
only their bytes are counted, and deliveries computed from the size of verified ones.
The exit status is 0 if everything arrived, once, in order, within a second (p99), and 1 if not.";

#[derive(Args)]
struct Sse {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    url: Target,
    /// Access token; others on this machine can see it in the list of processes
    #[arg(long, conflicts_with = "token_file")]
    token: Option<String>,
    /// File that holds the access token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Well to publish to and subscribe to
    #[arg(long, default_value = "WELL-001")]
    well: String,
    /// Streams to open
    #[arg(long, default_value_t = 5000, value_parser = at_least_one)]
    connections: usize,
    /// Of these, how many are checked event by event
    #[arg(long, default_value_t = 50, value_parser = at_least_one)]
    verify: usize,
    /// Publications per second
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rate: u64,
    /// Seconds to measure (with --idle: to hold)
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Seconds of load before measuring
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(0..=3600))]
    warmup: u64,
    /// Connections to publish on
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    publishers: u32,
    /// Publications per request
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    batch: u64,
    /// Threads that receive
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    cores: usize,
    /// CPUs to stay on, e.g. 1 or 2,3
    #[arg(long, value_name = "CPU", value_delimiter = ',')]
    pin: Vec<usize>,
    /// The server's process on this machine, to read its CPU time and memory
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// Publish nothing: hold the streams, and say what memory they cost
    #[arg(long, conflicts_with_all = ["rate", "batch", "publishers", "no_publish", "verify"])]
    idle: bool,
    /// Publish nothing: somebody else does, with the same marks
    #[arg(long, conflicts_with_all = ["rate", "batch", "publishers"])]
    no_publish: bool,
    /// Write the result here, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a number of at least 1 is needed".into()),
        Ok(number) => Ok(number),
    }
}

fn main() -> ExitCode {
    let Command::Sse(sse) = Cli::parse().command;
    match measure(&sse) {
        Ok(report) => {
            print!("{}", report.table());
            ExitCode::from(u8::from(!report.problems().is_empty()))
        }
        Err(error) => {
            eprintln!("gusher: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(sse: &Sse) -> Result<Report, String> {
    let options = options(sse)?;
    // Draws on a terminal only.
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("{msg:>9} {wide_bar} {pos}/{len}").map_err(|error| error.to_string())?,
    );
    let report = run::run(&options, |step| {
        let (message, done, all) = match step {
            Step::Opening(done, all) => ("streams", done, all),
            Step::Running(done, all) => ("seconds", done / 1000, all / 1000),
        };
        bar.set_message(message);
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let report = report?;
    if let Some(path) = &sse.json {
        write_json(&report, path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(report)
}

fn options(sse: &Sse) -> Result<Options, String> {
    let load = match (sse.idle, sse.no_publish) {
        (true, _) => Load::Idle,
        (_, true) => Load::Watch,
        _ => Load::Publish { rate: sse.rate, batch: sse.batch, publishers: sse.publishers },
    };
    Ok(Options {
        target: sse.url.clone(),
        token: token(sse)?,
        well: sse.well.clone(),
        connections: sse.connections,
        verify: match sse.idle {
            true => 0,
            false => sse.verify.min(sse.connections),
        },
        load,
        warmup: sse.warmup,
        seconds: sse.seconds,
        cores: sse.cores.min(sse.connections),
        pin: sse.pin.clone(),
        server_pid: sse.server_pid,
    })
}

fn token(sse: &Sse) -> Result<Option<String>, String> {
    let token = match (&sse.token, &sse.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(path)) => std::fs::read_to_string(path)
            .map_err(|error| format!("{}: {error}", path.display()))?
            .trim()
            .to_owned(),
        (None, None) => return Ok(None),
    };
    match token.bytes().all(|byte| byte.is_ascii_graphic()) && !token.is_empty() {
        true => Ok(Some(token)),
        false => Err("the token is empty or holds what no token may".into()),
    }
}

fn write_json(report: &Report, path: &Path) -> std::io::Result<()> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    std::fs::write(path, text)
}
