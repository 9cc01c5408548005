//! Prints the tables of a fan-out run as Markdown: `fanout-summary DIRECTORY`, with the raw JSON results in it.

use std::path::PathBuf;
use std::process::ExitCode;

use bench::summary;
use clap::Parser;

/// Prints the tables of a fan-out run as Markdown.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Where the raw results are
    directory: PathBuf,
}

fn main() -> ExitCode {
    match summary::load(&Cli::parse().directory) {
        Ok(results) => {
            print!("{}", results.markdown());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("fanout-summary: {error}");
            ExitCode::FAILURE
        }
    }
}
