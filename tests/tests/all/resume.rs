//! Going on where a connection broke: nothing lost, nothing repeated, and told of what is gone.

use std::thread;

use tests::client::{Client, Events};
use tests::on;
use tests::reading::{Choices, Publisher, SHAPES, Seen, Shape};
use tests::server::{Case, Server, Setup};

on! {
    a_client_that_breaks_anywhere_misses_nothing: uring_1 uring_2 uring_8 epoll_1 epoll_2 epoll_8;
    every_position_has_its_rest: uring_2 epoll_2;
    the_header_goes_before_the_parameter: uring_1 epoll_2;
    a_position_ahead_of_the_topic_is_told: uring_2 epoll_2;
    what_has_left_memory_comes_from_the_store: uring_2 epoll_1;
    a_position_that_is_none_is_no_position: uring_1 epoll_2;
    a_snapshot_comes_first_where_it_is_asked_for: uring_2 epoll_1;
}

fn a_client_that_breaks_anywhere_misses_nothing(case: Case) {
    const READINGS: u64 = 400;
    let server = Setup::new(case).start();
    thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            let mut publisher = Publisher::new(&server, "A", 1);
            for shape in SHAPES.iter().cycle() {
                if publisher.sent == READINGS {
                    break;
                }
                publisher.publish(4, *shape);
            }
            publisher.acked
        });
        let followers: Vec<_> = (0..6)
            .map(|seed| {
                scope.spawn({
                    let server = &server;
                    move || follow_with_breaks(server, READINGS, seed)
                })
            })
            .collect();
        let published = publisher.join().expect("it publishes");
        for follower in followers {
            let (seen, breaks) = follower.join().expect("it follows");
            seen.must_be(&published);
            assert!(breaks > 10, "only {breaks} breaks");
        }
    });
}

/// Reads up to offset `last`, breaking off after a random number of bytes again and again, and resuming from the last
/// whole event as a browser does.
fn follow_with_breaks(server: &Server, last: u64, seed: u64) -> (Seen, u64) {
    let mut choices = Choices::new(seed);
    let mut seen = Seen::default();
    let mut position = "0".to_owned();
    let mut breaks = 0;
    while seen.last < last {
        let (header, query) = (format!("Last-Event-ID: {position}"), format!("&last_event_id={position}"));
        let (fields, query) = match breaks % 3 {
            0 => (vec![header.as_str()], ""),
            1 => (vec![], query.as_str()),
            _ => (vec![header.as_str()], "&last_event_id=1"),
        };
        let mut events = server.stream("A", &fields, query);
        let mut budget = 200 + choices.below(4000) as usize;
        // All that has come is looked at, and the rest of an unfinished event is thrown away.
        while budget > 0 && seen.last < last {
            let piece = budget.min(1 + choices.below(700) as usize);
            assert!(events.read_some(piece).expect("the stream goes on"), "the stream ends");
            budget -= piece;
            while let Some(event) = events.parsed().expect("an event stream") {
                seen.take(&event);
            }
        }
        position = events.last_id.unwrap_or(position);
        breaks += 1;
    }
    (seen, breaks)
}

/// Publishes `count` readings to well A and gives who did.
fn publish(server: &Server, count: u64) -> Publisher {
    let mut publisher = Publisher::new(server, "A", 1);
    publisher.publish(count, Shape::Lines);
    publisher
}

fn every_position_has_its_rest(case: Case) {
    let server = Setup::new(case).start();
    let mut publisher = publish(&server, 20);
    let mut streams: Vec<(u64, Events)> = (0..=20)
        .map(|after| (after, server.stream("A", &[&format!("Last-Event-ID: {after}")], "")))
        .collect();
    publisher.publish(1, Shape::Single);
    for (after, events) in &mut streams {
        let connected = events.expect("connected");
        assert_eq!(connected.offset(), *after, "{connected:?}");
        let mut seen = Seen::after(*after);
        seen.read_to(events, 21);
        seen.must_be(&publisher.acked.range(*after + 1..).map(|(&offset, &mark)| (offset, mark)).collect());
    }
    // Without a position a stream is live from where it joined.
    let mut live = server.stream("A", &[], "");
    assert_eq!(live.expect("connected").offset(), 21);
    publisher.publish(1, Shape::Single);
    assert_eq!(live.expect("telemetry_update").offset(), 22);
}

fn the_header_goes_before_the_parameter(case: Case) {
    let server = Setup::new(case).start();
    publish(&server, 10);
    for (fields, query, first) in [
        (&["Last-Event-ID: 7"][..], "&last_event_id=3", 8),
        (&["last-event-id: 3"], "&last_event_id=7", 4),
        (&["Last-Event-ID: 7"], "", 8),
        (&[], "&last_event_id=3", 4),
    ] {
        let mut events = server.stream("A", fields, query);
        assert_eq!(events.expect("connected").offset(), first - 1);
        assert_eq!(events.expect("telemetry_update").offset(), first, "{fields:?} {query}");
    }
}

fn a_position_ahead_of_the_topic_is_told(case: Case) {
    let server = Setup::new(case).start();
    let mut publisher = publish(&server, 5);
    for position in ["6", "1000", "18446744073709551615"] {
        let mut events = server.stream("A", &[&format!("Last-Event-ID: {position}")], "");
        let last = publisher.sent;
        let connected = events.expect("connected");
        assert!(
            connected.offset() <= last,
            "{connected:?} gives the client a position that is not from here"
        );
        let gap = events.expect("gap");
        assert_eq!(gap.json()["reason"], "unknown_position", "{gap:?}");
        assert!(gap.offset() <= last, "{gap:?} gives the client a position that is not from here");
        publisher.publish(1, Shape::Single);
        assert_eq!(events.expect("telemetry_update").offset(), last + 1);
    }
}

fn what_has_left_memory_comes_from_the_store(case: Case) {
    let server = Setup::new(case).set("store.replay.publications = 10").start();
    let mut publisher = Publisher::new(&server, "A", 1);
    for _ in 0..10 {
        publisher.publish(200, Shape::Lines);
    }
    for after in [0, 1000, 1985, 1995] {
        let mut events = server.stream("A", &[&format!("Last-Event-ID: {after}")], "");
        let mut seen = Seen::after(after);
        seen.read_to(&mut events, 2000);
        seen.must_be(&publisher.acked.range(after + 1..).map(|(&offset, &mark)| (offset, mark)).collect());
    }
}

fn a_position_that_is_none_is_no_position(case: Case) {
    let server = Setup::new(case).start();
    let mut publisher = publish(&server, 5);
    let long = "9".repeat(10 << 10);
    for position in
        ["-1", "+3", "3.0", "0x3", "three", "3 3", "3,4", "99999999999999999999", &*long, "\u{663}", "3\t;"]
    {
        let mut events = server.stream("A", &[&format!("Last-Event-ID: {position}")], "");
        let last = publisher.sent;
        assert_eq!(events.expect("connected").offset(), last, "{position:?}");
        publisher.publish(1, Shape::Single);
        assert_eq!(events.expect("telemetry_update").offset(), last + 1, "{position:?}");
    }
    for query in ["%0d%0aid:%201", "%00", "-1", "%F0%9F%92%A9", "3%20", "%ff", ""] {
        let mut events = server.stream("A", &[], &format!("&last_event_id={query}"));
        assert_eq!(events.expect("connected").offset(), publisher.sent, "{query}");
    }
    // A NUL is no part of any header: that is not HTTP at all.
    let mut client = Client::connect(server.address());
    let token = server.token("viewer");
    let head =
        format!("GET /api/v1/sse/stream/A?token={token} HTTP/1.1\r\nHost: a\r\nLast-Event-ID: \0\r\n\r\n");
    client.send(head.as_bytes()).expect("it sends");
    assert_eq!(client.response(false).expect("it answers").status, 400);
    assert!(client.is_closed());
}

fn a_snapshot_comes_first_where_it_is_asked_for(case: Case) {
    let server = Setup::new(case).start();
    let mut publisher = publish(&server, 5);
    let mut events = server.stream("A", &[], "&snapshot=true");
    assert_eq!(events.expect("connected").offset(), 5);
    let newest = events.expect("telemetry_update");
    assert_eq!(tests::reading::mark(&newest.json()["data"]), Some((1, 4)));
    publisher.publish(1, Shape::Single);
    assert_eq!(events.expect("telemetry_update").offset(), 6);
    // A topic that has none goes on with the live ones.
    let mut fresh = server.stream("B", &[], "&snapshot=true");
    assert_eq!(fresh.expect("connected").offset(), 0);
    Publisher::new(&server, "B", 1).publish(1, Shape::Single);
    assert_eq!(fresh.expect("telemetry_update").offset(), 1);
}
