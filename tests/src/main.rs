//! `cargo run -p tests -- simulate [FIRST] [COUNT]`: runs simulated servers, one per seed, and stops at the first that does
//! not hold.

use std::process::ExitCode;
use std::time::Instant;

use tests::sim;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| match arguments.get(at) {
        None => Some(default),
        Some(text) => text.parse().ok(),
    };
    let (Some("simulate"), Some(first), Some(count)) =
        (arguments.first().map(String::as_str), number(1, 0), number(2, 1000))
    else {
        eprintln!("usage: cargo run -p tests -- simulate [FIRST SEED] [SEEDS]");
        return ExitCode::from(2);
    };
    let began = Instant::now();
    let mut sum = sim::Report::default();
    for seed in first..first + count {
        // A run that does not hold panics, and names its seed.
        sum.add(&sim::run(seed));
        if (seed + 1 - first).is_multiple_of(1000) {
            eprintln!(
                "{} seeds, {:.0} a second",
                seed + 1 - first,
                (seed + 1 - first) as f64 / began.elapsed().as_secs_f64()
            );
        }
    }
    println!("seeds {first} to {}: all hold\n{sum:#?}", first + count - 1);
    ExitCode::SUCCESS
}
