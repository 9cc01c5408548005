//! `floor`: what the kernel's sends alone cost, and what the least of servers makes of them.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bench::{sends, wirelog};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;

/// Measures what a fan-out costs the kernel: a tight loop of sends to all connections, a reader draining them.
#[derive(Parser)]
#[command(name = "floor", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    sends: Sends,
}

const EXAMPLES: &str = "\
Examples:
  floor --connections 5000 --bytes 350 --joined 1,8,32,128 --seconds 5
  floor --unix

  # The least of servers, judged by the load generator
  floor wirelog --port 9000 --connections 5000 --rate 500 &
  gusher sse --url http://127.0.0.1:9000 --no-publish --connections 5000 --server-pid $! --pin 1";

#[derive(Subcommand)]
enum Command {
    /// Serves one topic to so many subscribers from a shared log, with the publisher inside
    Wirelog(Wirelog),
}

#[derive(Args)]
struct Sends {
    /// Connections; each needs two file descriptors
    #[arg(long, default_value_t = 5000, value_parser = at_least_one)]
    connections: usize,
    /// Bytes of a message
    #[arg(long, default_value_t = 350, value_parser = at_least_one)]
    bytes: usize,
    /// Messages in one send, a row for each
    #[arg(long, default_value = "1,8,32,128", value_delimiter = ',', value_parser = at_least_one)]
    joined: Vec<usize>,
    /// Seconds per row
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// AF_UNIX instead of TCP over loopback
    #[arg(long)]
    unix: bool,
    /// CPU of the sender
    #[arg(long, default_value_t = 0)]
    sender_cpu: usize,
    /// CPU of the reader
    #[arg(long, default_value_t = 1)]
    reader_cpu: usize,
    /// Write the result here, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct Wirelog {
    /// Port on 127.0.0.1
    #[arg(long, default_value_t = 9000)]
    port: u16,
    /// Subscribers to wait for before publishing
    #[arg(long, default_value_t = 5000, value_parser = at_least_one)]
    connections: usize,
    /// Publications per second
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rate: u64,
    /// Seconds to publish; it ends sooner when a subscriber leaves
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// CPU to stay on
    #[arg(long, default_value_t = 0)]
    cpu: usize,
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
    let cli = Cli::parse();
    let done = match cli.command {
        None => measure_sends(cli.sends),
        Some(Command::Wirelog(wirelog)) => serve_wirelog(&wirelog),
    };
    match done {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("floor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure_sends(args: Sends) -> Result<String, String> {
    let floor = sends::run(&sends::Options {
        connections: args.connections,
        bytes: args.bytes,
        joined: args.joined,
        seconds: args.seconds,
        unix: args.unix,
        sender_cpu: args.sender_cpu,
        reader_cpu: args.reader_cpu,
    })?;
    write_json(&floor, args.json.as_deref())?;
    Ok(floor.table())
}

fn serve_wirelog(args: &Wirelog) -> Result<String, String> {
    loadgen::sys::pin(&[args.cpu])?;
    let listener = TcpListener::bind(("127.0.0.1", args.port))
        .map_err(|error| format!("can't listen on port {}: {error}", args.port))?;
    eprintln!("ready 127.0.0.1:{}", args.port);
    let result = wirelog::serve(
        &listener,
        &wirelog::Options { connections: args.connections, rate: args.rate, seconds: args.seconds },
    )?;
    write_json(&result, args.json.as_deref())?;
    Ok(result.line())
}

fn write_json(result: &impl Serialize, path: Option<&Path>) -> Result<(), String> {
    let Some(path) = path else {
        return Ok(());
    };
    let text = serde_json::to_string_pretty(result).map_err(|error| error.to_string())?;
    std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))
}
