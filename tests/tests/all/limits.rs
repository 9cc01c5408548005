//! Slow, greedy and too many clients: they harm themselves, and nobody else.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tests::client::{Client, Events, GUARD};
use tests::on;
use tests::reading::{INGEST, Publisher, Seen, Shape, long_reading, offsets};
use tests::server::{Case, Finally, Server, Setup, alone, eventually};

on! {
    a_slow_reader_is_told_what_it_misses: uring_1 uring_2 epoll_1 epoll_2;
    a_reader_that_has_stopped_is_closed: uring_1 uring_2 epoll_1 epoll_2;
    dribbled_requests_end_in_time: uring_2 epoll_1;
    large_requests_are_refused_at_once: uring_1 epoll_2;
    accepting_rests_without_descriptors: uring_1 epoll_1;
    connections_are_counted: uring_2 epoll_1;
    idle_streams_cost_next_to_nothing: uring_2 epoll_2;
}

/// Bytes of a long reading, nearly.
const LONG: usize = 60_000;
const ALERT: &str = r#"{"well_id":"A","type":"high_vibration","severity":"critical"}"#;

/// What a run of publications was: how many, and the alerts among them.
struct Published {
    last: u64,
    alerts: BTreeMap<u64, String>,
}

/// Publishes that many long readings, and an alert after every fortieth.
fn publish_long(client: &mut Client, count: u64) -> Published {
    let mut published = Published { last: 0, alerts: BTreeMap::new() };
    for number in 0..count {
        published.last = offsets(&client.post(INGEST, &long_reading("A", 1, number, LONG)), 1)[0];
        if number % 40 == 39 {
            published.last = offsets(&client.post("/api/v1/alerts", ALERT), 1)[0];
            published.alerts.insert(published.last, "high_vibration".into());
        }
    }
    published
}

/// A stream with a tiny window, of which only the greeting has been read.
fn slow_stream(server: &Server) -> (Events, Seen) {
    let client = Client::try_connect(server.address(), Some(4096)).expect("it connects");
    let target = format!("/api/v1/sse/stream/A?token={}", server.token("viewer"));
    let mut events = Events::open(client, &target, &[]);
    let start = events.expect("connected").offset();
    (events, Seen::after(start))
}

/// Follows well A in a thread until `stop`; gives what it has seen.
fn follow<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    server: &Server,
    stop: &'scope AtomicBool,
) -> thread::ScopedJoinHandle<'scope, Seen> {
    let mut events = server.stream("A", &[], "");
    let start = events.expect("connected").offset();
    events.socket().set_guard(Duration::from_millis(100)).expect("it can be set");
    scope.spawn(move || {
        let mut seen = Seen::after(start);
        loop {
            match events.try_next() {
                Ok(Some(event)) => seen.take(&event),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if stop.load(Ordering::Acquire) {
                        return seen;
                    }
                }
                end => panic!("the stream ends: {end:?}"),
            }
        }
    })
}

fn a_slow_reader_is_told_what_it_misses(case: Case) {
    const READINGS: u64 = 900;
    let _alone = alone();
    let server = Setup::new(case)
        .set("limits.pending_bytes_per_connection = \"64KiB\"")
        .set("limits.pending_age = \"10m\"")
        .set("store.replay = { publications = 20, bytes_per_shard = \"1MiB\" }")
        .start();
    let stop = AtomicBool::new(false);
    let mut client = server.connect_as("ingest");
    thread::scope(|scope| {
        let _stop = Finally(|| stop.store(true, Ordering::Release));
        let fast: Vec<_> = (0..3).map(|_| follow(scope, &server, &stop)).collect();
        // What as many publications cost without a slow reader (the store's cache fills) is not its cost.
        publish_long(&mut client, 40);
        let memory = [server.resident_bytes(), {
            publish_long(&mut client, READINGS);
            server.resident_bytes()
        }];
        let (mut slow, mut seen) = slow_stream(&server);
        let start = seen.last;
        let published = publish_long(&mut client, READINGS);
        let cost = (server.resident_bytes() + memory[0]).saturating_sub(2 * memory[1]);
        assert!(cost < LONG as u64 * READINGS / 2, "a slow reader costs {cost} bytes");

        seen.read_to(&mut slow, published.last);
        assert!(seen.gaps.iter().any(|(_, _, reason)| reason == "slow_consumer"), "{:?}", seen.gaps);
        assert!(seen.gaps.iter().all(|(_, _, reason)| reason == "slow_consumer"), "{:?}", seen.gaps);
        for offset in start + 1..=published.last {
            let came = seen.readings.contains_key(&offset) || seen.alerts.contains_key(&offset);
            assert!(came || seen.was_told_of(offset), "{offset} is missing, and no gap says so");
        }
        assert_eq!(seen.alerts, published.alerts, "alerts are never conflated away");
        assert!((seen.readings.len() as u64) < READINGS, "nothing was skipped: this test tests nothing");
        // It is one of them again.
        let last = publish_long(&mut client, 1).last;
        seen.read_to(&mut slow, last);
        assert!(seen.readings.contains_key(&last));

        stop.store(true, Ordering::Release);
        for reader in fast {
            let seen = reader.join().expect("it follows");
            assert_eq!((seen.last, seen.gaps.len()), (last, 0));
            assert_eq!((seen.readings.len() + seen.alerts.len()) as u64, last);
        }
    });
}

fn a_reader_that_has_stopped_is_closed(case: Case) {
    let server = Setup::new(case).set("limits.pending_age = \"2s\"").start();
    let stop = AtomicBool::new(false);
    let mut client = server.connect_as("ingest");
    thread::scope(|scope| {
        let _stop = Finally(|| stop.store(true, Ordering::Release));
        let fast = follow(scope, &server, &stop);
        let (mut slow, _) = slow_stream(&server);
        assert_eq!(server.metric("sse_connections"), 2.0);
        let published = publish_long(&mut client, 150).last;
        eventually("the reader is closed", || server.metric("sse_connections") == 1.0);
        assert!(server.metric("wellhead_slow_consumers_closed_total") >= 1.0);
        let end = loop {
            match slow.try_next() {
                Ok(Some(event)) => assert_ne!(event.offset(), published, "it was never behind"),
                end => break end.map_err(|error| error.kind()),
            }
        };
        assert!(matches!(end, Ok(None) | Err(ErrorKind::ConnectionReset)), "{end:?}");
        let last = publish_long(&mut client, 1).last;
        stop.store(true, Ordering::Release);
        let seen = fast.join().expect("it follows");
        assert_eq!(
            (seen.last, seen.gaps.len(), (seen.readings.len() + seen.alerts.len()) as u64),
            (last, 0, last)
        );
    });
}

fn dribbled_requests_end_in_time(case: Case) {
    let server = Setup::new(case)
        .set("limits.request_timeout = \"1s\"")
        .set("limits.keep_alive_timeout = \"1s\"")
        .start();
    let mut events = server.stream("A", &[], "");
    events.expect("connected");
    let token = server.token("ingest");
    let post = format!(
        "POST {INGEST} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    );
    let starts = [
        String::new(),
        "G".into(),
        "GET /version HTTP/1.1\r\nHost: a\r\nX: ".into(),
        format!("{post}X: "),
        format!("{post}Content-Length: 100000\r\n\r\n"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\nfffff\r\n"),
        // A request that was answered is no excuse for the next.
        "GET /version HTTP/1.1\r\nHost: a\r\n\r\nGET /version HTTP/1.1\r\nHost: a\r\nX: ".into(),
    ];
    thread::scope(|scope| {
        for (start, _) in starts.iter().zip(0..).cycle().take(21) {
            let server = &server;
            scope.spawn(move || dribble(server, start));
        }
        // Nobody else notices.
        for offset in 1..=20 {
            Publisher::new(&server, "A", offset).publish(1, Shape::Single);
            assert_eq!(events.expect("telemetry_update").offset(), offset);
        }
    });
    assert!(server.metric("wellhead_request_timeouts_total") >= 18.0);
}

/// Sends `start`, then a byte again and again, until the server has enough: 408 and an end, or just an end.
fn dribble(server: &Server, start: &str) {
    let mut client = server.connect();
    client.send(start.as_bytes()).expect("it sends");
    client.socket.set_guard(Duration::from_millis(50)).expect("it can be set");
    // Longer than any deadline in all; a deadline per byte would never come.
    for _ in 0..GUARD.as_millis() / 50 {
        match client.response(false) {
            Ok(response) if response.status == 200 => {}
            Ok(response) => {
                assert_eq!((response.status, start.is_empty()), (408, false), "{start:?}");
                client.socket.set_guard(GUARD).expect("it can be set");
                return assert!(client.is_closed(), "{start:?}");
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if !start.is_empty() {
                    let _ = client.send(b"x");
                }
            }
            Err(_) => return,
        }
    }
    panic!("{start:?} and then byte after byte: it goes on");
}

fn large_requests_are_refused_at_once(case: Case) {
    let server = Setup::new(case).set("limits.body_bytes = \"1KiB\"").start();
    let token = server.token("ingest");
    let long = "x".repeat(17 << 10);
    let post = format!("POST {INGEST} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n");
    // None of them is whole: whoever waits for the end waits for ever.
    let requests = [
        ("a long field", 431, format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}")),
        ("a long name", 431, format!("GET / HTTP/1.1\r\nHost: a\r\n{long}")),
        ("many fields", 431, format!("GET / HTTP/1.1\r\nHost: a\r\n{}", "X: y\r\n".repeat(101))),
        ("very many fields", 431, format!("GET / HTTP/1.1\r\nHost: a\r\n{}", "X:\r\n".repeat(4000))),
        ("a long target", 414, format!("GET /{}", &long[..9000])),
        ("a long method", 414, long[..9000].into()),
        ("a large body", 413, format!("{post}Content-Length: 1025\r\n\r\n")),
        ("a very large body", 413, format!("{post}Content-Length: 18446744073709551615\r\n\r\n")),
        ("a large chunk", 413, format!("{post}Transfer-Encoding: chunked\r\n\r\n401\r\n")),
        (
            "many chunks",
            413,
            format!("{post}Transfer-Encoding: chunked\r\n\r\n{}", "1\r\nx\r\n".repeat(1025)),
        ),
        ("a long trailer", 431, format!("{post}Transfer-Encoding: chunked\r\n\r\n0\r\nX: {long}")),
    ];
    thread::scope(|scope| {
        for (name, status, request) in &requests {
            let server = &server;
            scope.spawn(move || {
                let mut client = server.connect();
                client.send(request.as_bytes()).expect("it sends");
                let response = client.response(false).unwrap_or_else(|error| panic!("{name}: {error}"));
                assert_eq!(
                    (response.status, response.field("connection")),
                    (*status, Some("close")),
                    "{name}"
                );
                assert!(client.is_closed(), "{name}");
            });
        }
    });
    let fields = vec!["X: y"; 90];
    assert_eq!(server.connect().request("GET", "/version", &fields, b"").status, 200);
}

fn accepting_rests_without_descriptors(case: Case) {
    let server = Setup::new(case).descriptors(100).start();
    let mut admin = server.connect_as("admin");
    let mut publisher = Publisher::new(&server, "A", 1);
    let mut watcher = server.stream("A", &[], "");
    watcher.expect("connected");
    let target = format!("/api/v1/sse/stream/A?token={}", server.token("viewer"));
    let mut crowd: Vec<Client> = (0..200)
        .map(|_| {
            let mut client = server.connect();
            client.send_request("GET", &target, &[], b"").expect("it sends");
            client
        })
        .collect();
    let mut failures = || {
        let text = admin.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix("wellhead_accept_failures_total "));
        line.and_then(|value| value.parse::<u64>().ok()).expect("the metric is there")
    };
    eventually("accepting fails", || failures() > 0);
    let before = server.cpu_time();
    thread::sleep(Duration::from_secs(1));
    let used = server.cpu_time() - before;
    assert!(used < Duration::from_millis(300), "it spins: {used:?} of CPU in a second");
    // Those inside don't notice.
    for offset in 1..=5 {
        publisher.publish(1, Shape::Single);
        assert_eq!(watcher.expect("telemetry_update").offset(), offset);
    }
    let mut served = 0;
    while !crowd.is_empty() {
        // Those who were let in leave, and make room for the next.
        let waiting = crowd.len();
        crowd.retain_mut(|client| {
            client.socket.set_guard(Duration::from_millis(20)).expect("it can be set");
            match client.response(false) {
                Ok(response) => {
                    assert_eq!(response.status, 200);
                    false
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock, "who waits is not turned away: {error}");
                    true
                }
            }
        });
        served += 1;
        assert!(served < 500, "{waiting} are never let in");
    }
    assert!(served > 1, "all were let in at once: this test tests nothing");
    publisher.publish(1, Shape::Single);
    assert_eq!(watcher.expect("telemetry_update").offset(), 6);
}

fn connections_are_counted(case: Case) {
    let server = Setup::new(case).set("limits.connections = 5").start();
    let mut inside: Vec<Client> = (0..5)
        .map(|_| {
            let mut client = server.connect();
            assert_eq!(client.get("/version").status, 200);
            client
        })
        .collect();
    for _ in 0..3 {
        let answer = server.connect().try_request("GET", "/version", &[], b"");
        assert!(answer.as_ref().map_or(true, |response| response.status == 503), "{answer:?}");
    }
    let metrics = inside[0].get("/metrics").text();
    assert!(metrics.contains("\nwellhead_connections 5\n"), "{metrics}");
    assert!(metrics.contains("\nwellhead_connections_refused_total 3\n"), "{metrics}");
    inside.pop();
    eventually("there is room again", || {
        let answer = server.connect().try_request("GET", "/version", &[], b"");
        answer.is_ok_and(|response| response.status == 200)
    });
}

/// Raises the descriptor limit of these tests as far as it goes, and says how many connections one of them may open.
fn descriptors() -> usize {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("the soft limit can be raised");
    // The other tests need some as well.
    maximum.map_or(15_000, |maximum| maximum.saturating_sub(3000).min(15_000)) as usize
}

fn idle_streams_cost_next_to_nothing(case: Case) {
    let _alone = alone();
    let count = descriptors();
    assert!(count >= 1000, "raise the descriptor limit (ulimit -Hn) to 4000 at least");
    let server = Setup::new(case).start();
    let open = |index: usize| {
        let mut events = server.stream(&format!("WELL-{:03}", index % 100), &[], "");
        events.expect("connected");
        events
    };
    // What the first ones cost once is not what each costs.
    let warm: Vec<Events> = (0..500).map(open).collect();
    let before = server.resident_bytes();
    let streams: Vec<Events> = (0..count).map(open).collect();
    let each = || server.resident_bytes().saturating_sub(before) as f64 / count as f64;
    // An allocator gives back what it has copied from a little later.
    for _ in 0..50 {
        if each() <= 512.0 {
            break;
        }
        thread::sleep(Duration::from_millis(100));
        server.connect().get("/healthz");
    }
    let each = each();
    assert_eq!(server.metric("sse_connections"), (warm.len() + streams.len()) as f64);
    assert!(each <= 512.0, "an idle stream costs {each:.0} bytes");
}
