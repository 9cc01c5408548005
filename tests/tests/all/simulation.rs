//! Thousands of whole servers on a simulated network, one per seed. A seed that does not hold is named, and replays with
//! `cargo run -p tests -- simulate SEED 1`.

use tests::sim::{Report, run};

const SEEDS: u64 = 1000;

fn thousand(first: u64) -> Report {
    let mut sum = Report::default();
    for seed in first..first + SEEDS {
        sum.add(&run(seed));
    }
    // Runs in which nothing happens would hold as well.
    assert!(sum.published > 10_000 && sum.delivered > 10_000, "{sum:?}");
    assert!(sum.lagging > 50 && sum.gaps > 50 && sum.crashes > 50 && sum.replays > 1000, "{sum:?}");
    sum
}

#[test]
fn seeds_0_to_999_hold() {
    thousand(0);
}

#[test]
fn seeds_1000_to_1999_hold() {
    thousand(1000);
}

#[test]
fn seeds_2000_to_2999_hold() {
    thousand(2000);
}

#[test]
fn seeds_3000_to_3999_hold() {
    thousand(3000);
}

#[test]
fn a_seed_replays() {
    for seed in 0..20 {
        assert_eq!(format!("{:?}", run(seed)), format!("{:?}", run(seed)), "seed {seed}");
    }
}
