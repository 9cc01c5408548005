//! Thousands of whole servers on a simulated network, one per seed. A seed that does not hold is named, and replays with
//! `cargo run -p tests -- simulate SEED 1`.

use engine::metrics::Counter;
use engine::ring::sim::End;
use tests::sim::{Frames, Report, Response, Setup, World, run};

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

/// What the server answers to one request, after it has had time to.
fn ask(world: &mut World, request: &str) -> (Vec<u8>, End) {
    let client = world.connect();
    world.net.client_write(client, request.as_bytes());
    (0..200).for_each(|_| world.settle());
    (world.net.client_read(client, usize::MAX), world.net.client_state(client).end)
}

fn post(world: &mut World, rows: usize) -> Response {
    let body = vec![r#"{"well_id":"A","mark":"m"}"#; rows].join("\n");
    let (token, length) = (world.token(), body.len());
    let request = format!(
        "POST /api/v1/telemetry/ingest HTTP/1.1\r\nHost: sim\r\nAuthorization: Bearer {token}\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    Response::take(&mut ask(world, &request).0).expect("an answer")
}

#[test]
fn a_replay_the_store_can_not_give_ends_the_stream_and_is_asked_for_once() {
    let mut world = World::new(1, Setup { log_publications: 5, ..Setup::default() });
    assert_eq!(post(&mut world, 20).status, 202);
    world.store.as_mut().expect("a store").unreadable = true;
    let token = world.token();
    let request =
        format!("GET /api/v1/sse/stream/A?token={token} HTTP/1.1\r\nHost: sim\r\nLast-Event-ID: 1\r\n\r\n");
    let (bytes, end) = ask(&mut world, &request);
    let events: Vec<String> = Frames::default().push(&bytes).into_iter().map(|frame| frame.event).collect();
    assert_eq!((events, end), (vec!["connected".into(), "error".into()], End::Finished));
    assert_eq!(world.count(Counter::Replays), 1);
}

#[test]
fn a_store_that_grants_no_offsets_is_told_of_and_used_again_once_it_does() {
    let mut world = World::new(1, Setup::default());
    world.store.as_mut().expect("a store").grants_nothing = true;
    assert_eq!(post(&mut world, 3).status, 500);
    world.store.as_mut().expect("a store").grants_nothing = false;
    assert_eq!(post(&mut world, 3).status, 202);
}
