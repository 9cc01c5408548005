//! What is acknowledged survives, and no offset is given twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rustix::process::Signal;
use tests::client::Events;
use tests::on;
use tests::reading::{INGEST, Mark, Publisher, SHAPES, Seen, Shape, assert_in_order, mark, offsets};
use tests::server::{Case, Finally, Server, Setup, eventually};

on! {
    kill_9_loses_nothing_acknowledged: uring_1 uring_2 uring_8 epoll_1 epoll_2 epoll_8;
    the_system_keeps_what_it_was_given: uring_2 epoll_2;
    a_position_in_the_hole_of_a_crash_is_told: uring_2 epoll_2;
    an_end_in_peace_leaves_no_hole: uring_1 uring_2 epoll_1 epoll_2;
    a_request_larger_than_the_lane_to_the_store_is_kept_whole: uring_2 epoll_1;
    topics_survive_another_number_of_shards: uring_2 epoll_1;
}

const WELLS: [&str; 2] = ["WELL-001", "WELL-002"];

fn a_request_larger_than_the_lane_to_the_store_is_kept_whole(case: Case) {
    const ROWS: usize = 20_000;
    let mut server = Setup::new(case).start();
    let filling = "x".repeat(200);
    let lines: Vec<String> =
        (0..ROWS).map(|row| format!(r#"{{"well_id":"BIG","row":{row},"filling":"{filling}"}}"#)).collect();
    let answer = server.connect_as("ingest").post(INGEST, &lines.join("\n"));
    assert_eq!(offsets(&answer, ROWS as u64), (1..=ROWS as u64).collect::<Vec<_>>());
    server.kill_9();
    server.restart_with(case.shards);
    let kept = server.connect_as("viewer").get("/api/v1/wells/BIG/telemetry?limit=10000").json();
    assert_eq!(
        (&kept["count"], &kept["telemetry"][9999]["data"]["row"]),
        (&10_000.into(), &(ROWS - 1).into())
    );
}

fn kill_9_loses_nothing_acknowledged(case: Case) {
    kill_and_look(case, "fsync");
}

fn the_system_keeps_what_it_was_given(case: Case) {
    kill_and_look(case, "os");
}

/// Publishers and a follower per well, a kill in the middle, and a look at what is there afterwards; three times, each
/// with another number of shards.
fn kill_and_look(case: Case, durability: &str) {
    let mut server = Setup::new(case).set(&format!("store.durability = \"{durability}\"")).start();
    let mut wells: Vec<Well> = WELLS.iter().map(|name| Well::new(&server, name)).collect();
    for round in 1..=3 {
        let acked = AtomicU64::new(0);
        thread::scope(|scope| {
            for well in &mut wells {
                for publisher in &mut well.publishers {
                    let acked = &acked;
                    scope.spawn(move || publish_until_it_breaks(publisher, acked));
                }
                scope.spawn(|| well.follower.read_until_it_breaks());
            }
            let _kill = Finally(|| server.signal(Signal::KILL));
            eventually("something is acknowledged", || acked.load(Ordering::Relaxed) >= 150);
        });
        server.wait();
        server.restart_with(1 + (case.shards + round) % 4);
        let mut ids = BTreeSet::new();
        for well in &mut wells {
            well.look(&server, &mut ids);
        }
    }
}

fn publish_until_it_breaks(publisher: &mut Publisher, acked: &AtomicU64) {
    for (shape, count) in SHAPES.iter().cycle().zip([1, 3, 5, 2].iter().cycle()) {
        let before = publisher.acked.len();
        if publisher.try_publish(*count, *shape).is_err() {
            return;
        }
        acked.fetch_add((publisher.acked.len() - before) as u64, Ordering::Relaxed);
    }
}

/// A well, and who publishes to it and follows it through all crashes.
struct Well {
    name: &'static str,
    publishers: Vec<Publisher>,
    follower: Follower,
}

struct Follower {
    events: Events,
    seen: Seen,
}

impl Follower {
    fn read_until_it_breaks(&mut self) {
        while let Ok(Some(event)) = self.events.try_next() {
            self.seen.take(&event);
        }
    }
}

impl Well {
    fn new(server: &Server, name: &'static str) -> Self {
        let follower = Follower { events: server.stream(name, &[], ""), seen: Seen::default() };
        let publishers = (0..2).map(|publisher| Publisher::new(server, name, publisher)).collect();
        Self { name, publishers, follower }
    }

    /// Goes on after a crash, and holds everything against what was acknowledged before it. `ids` holds the
    /// `telemetry_id`s of the wells looked at before.
    fn look(&mut self, server: &Server, ids: &mut BTreeSet<u64>) {
        let ever = self.acked().keys().next_back().copied().max(Some(self.follower.seen.last));
        for publisher in &mut self.publishers {
            publisher.reconnect(server);
        }
        self.publishers[0].publish(1, Shape::Single);
        let acked = self.acked();
        let (&newest, _) = acked.iter().next_back().expect("something is acknowledged");
        assert!(Some(newest) > ever, "offset {newest} is given again: {ever:?} was given before the crash");

        let mut all = Seen::default();
        all.read_to(&mut server.stream(self.name, &["Last-Event-ID: 0"], ""), newest);
        assert!(all.gaps.is_empty(), "offsets never used are no gap: {:?}", all.gaps);
        assert_contains(&all.readings, &acked);
        assert_in_order(&all.readings);
        let once: BTreeSet<Mark> = all.readings.values().copied().collect();
        assert_eq!(once.len(), all.readings.len(), "a reading is there twice");
        assert_eq!(self.history(server, ids), all.readings, "history and stream differ");

        let position = format!("Last-Event-ID: {}", self.follower.seen.last);
        self.follower.events = server.stream(self.name, &[&position], "");
        let follower = &mut self.follower;
        follower.seen.read_to(&mut follower.events, newest);
        assert_contains(&follower.seen.readings, &acked);
        // It may have been sent, live, what was not stored yet, and is told that its position is in the hole.
        assert!(
            follower.seen.gaps.iter().all(|(_, _, reason)| reason == "crash"),
            "{:?}",
            follower.seen.gaps
        );
    }

    fn acked(&self) -> BTreeMap<u64, Mark> {
        self.publishers.iter().flat_map(|publisher| publisher.acked.clone()).collect()
    }

    fn history(&self, server: &Server, ids: &mut BTreeSet<u64>) -> BTreeMap<u64, Mark> {
        let target = format!("/api/v1/wells/{}/telemetry?limit=10000", self.name);
        let answer = server.connect_as("viewer").get(&target).json();
        let rows = answer["telemetry"].as_array().unwrap_or_else(|| panic!("no telemetry in {answer}"));
        rows.iter()
            .map(|row| {
                let id = row["data"]["telemetry_id"].as_u64().unwrap_or_else(|| panic!("no id in {row}"));
                assert!(ids.insert(id), "telemetry_id {id} is there twice");
                let offset = row["offset"].as_u64().unwrap_or_else(|| panic!("no offset in {row}"));
                (offset, mark(&row["data"]).unwrap_or_else(|| panic!("no reading in {row}")))
            })
            .collect()
    }
}

fn assert_contains(readings: &BTreeMap<u64, Mark>, acked: &BTreeMap<u64, Mark>) {
    let missing: Vec<_> = acked.iter().filter(|(offset, mark)| readings.get(offset) != Some(mark)).collect();
    assert!(missing.is_empty(), "{} of {} acknowledged are missing: {missing:?}", missing.len(), acked.len());
}

fn a_position_in_the_hole_of_a_crash_is_told(case: Case) {
    let mut server = Setup::new(case).start();
    let mut publisher = Publisher::new(&server, "A", 1);
    publisher.publish(5, Shape::Array);
    server.kill_9();
    server.restart();
    publisher.reconnect(&server);
    publisher.publish(1, Shape::Single);
    let &after = publisher.acked.keys().next_back().expect("it is acknowledged");
    assert!(after > 6, "a topic goes on from its ceiling after a crash, and not from offset {after}");
    for position in [6, (6 + after) / 2, after - 2] {
        let mut events = server.stream("A", &[&format!("Last-Event-ID: {position}")], "");
        events.expect("connected");
        let gap = events.expect("gap");
        assert_eq!(gap.json()["reason"], "crash", "{gap:?}");
        assert_eq!(events.expect("telemetry_update").offset(), after, "after position {position}");
    }
    // The last one that was stored is a good position: nothing is missing after it.
    let mut events = server.stream("A", &["Last-Event-ID: 5"], "");
    events.expect("connected");
    assert_eq!(events.expect("telemetry_update").offset(), after);
}

fn an_end_in_peace_leaves_no_hole(case: Case) {
    let mut server = Setup::new(case).start();
    let mut publisher = Publisher::new(&server, "A", 1);
    for round in 0..3 {
        publisher.publish(5, Shape::Lines);
        let expected: Vec<u64> = (1..=5 * (round + 1)).collect();
        assert!(publisher.acked.keys().eq(&expected), "{:?}", publisher.acked.keys());
        assert_eq!(server.terminate().code(), Some(0));
        server.restart();
        publisher.reconnect(&server);
    }
    let mut seen = Seen::after(7);
    seen.read_to(&mut server.stream("A", &["Last-Event-ID: 7"], ""), 15);
    seen.must_be(&publisher.acked.range(8..).map(|(&offset, &mark)| (offset, mark)).collect());
}

fn topics_survive_another_number_of_shards(case: Case) {
    let wells: Vec<String> = (0..12).map(|index| format!("W{index}")).collect();
    let mut server = Setup::new(case).start();
    let mut publishers: Vec<Publisher> = wells.iter().map(|well| Publisher::new(&server, well, 1)).collect();
    for shards in [3, 1, 8, case.shards] {
        for publisher in &mut publishers {
            publisher.publish(3, Shape::Array);
        }
        assert_eq!(server.terminate().code(), Some(0));
        server.restart_with(shards);
        for publisher in &mut publishers {
            publisher.reconnect(&server);
            let mut seen = Seen::default();
            seen.read_to(&mut server.stream(&publisher.well, &["Last-Event-ID: 0"], ""), publisher.sent);
            seen.must_be(&publisher.acked);
        }
    }
}
