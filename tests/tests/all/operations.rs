//! Starting, watching, and ending a server.

use std::os::unix::net::UnixDatagram;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::client::{Address, Client, Event, Events};
use tests::on;
use tests::prometheus;
use tests::reading::{INGEST, Publisher, Seen, Shape, offsets, reading};
use tests::server::{Case, Finally, Server, Setup, eventually};

on! {
    pages_say_how_it_is: uring_1 uring_2 epoll_1 epoll_2;
    metrics_are_well_formed_and_right: uring_1 uring_2 epoll_1 epoll_2;
    metrics_are_not_for_everybody: uring_1 epoll_2;
    a_drain_under_load_loses_nothing: uring_1 uring_2 uring_8 epoll_1 epoll_2 epoll_8;
    a_drain_answers_requests_in_progress: uring_1 uring_2 epoll_1 epoll_2;
    a_drain_has_an_end: uring_2 epoll_1;
    a_second_signal_hurries: uring_2 epoll_2;
    a_taken_address_is_named: uring_2 epoll_1;
    a_taken_store_is_named: uring_2 epoll_1;
    without_io_uring_epoll_serves_and_says_why: uring_1 uring_2;
    systemd_is_told: uring_2 epoll_1;
}

fn pages_say_how_it_is(case: Case) {
    let server = Setup::new(case).start();
    let mut client = server.connect();
    for (path, content_type, text) in [
        ("/healthz", "text/plain", "ok"),
        ("/livez", "text/plain", "ok"),
        ("/readyz", "text/plain", "ready"),
        ("/health", "application/json", "\"status\":\"ok\""),
        ("/version", "application/json", concat!("\"version\":\"", env!("CARGO_PKG_VERSION"), "\"")),
        ("/", "text/html", "<"),
        ("/metrics", "text/plain; version=0.0.4", "wellhead_connections 1"),
    ] {
        let page = client.get(path);
        assert_eq!(page.status, 200, "{path}: {}", page.text());
        assert!(
            page.field("content-type").is_some_and(|have| have.starts_with(content_type)),
            "{path}: {page:?}"
        );
        assert!(page.text().contains(text), "{path}: {}", page.text());
        let head = client.request("HEAD", path, &[], b"");
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
    }
}

fn metrics_are_well_formed_and_right(case: Case) {
    let server = Setup::new(case).start();
    let mut streams: Vec<Events> = (0..5).map(|index| server.stream(&format!("W{index}"), &[], "")).collect();
    streams.iter_mut().for_each(|events| drop(events.expect("connected")));
    let mut publisher = Publisher::new(&server, "W0", 1);
    publisher.publish(3, Shape::Single);
    publisher.publish(10, Shape::Array);
    drop(streams.pop());
    eventually("a stream that has left is not counted", || server.metric("sse_connections") == 4.0);
    let text = server.connect().get("/metrics").text();
    let families = prometheus::parse(&text).unwrap_or_else(|error| panic!("{error}, in\n{text}"));
    for (name, kind, value) in [
        ("websocket_connections", "gauge", 0.0),
        ("sse_connections", "gauge", 4.0),
        ("websocket_messages_total", "counter", 0.0),
        ("websocket_errors_total", "counter", 0.0),
        ("realtime_publishes_total", "counter", 13.0),
    ] {
        let family = families.get(name).unwrap_or_else(|| panic!("{name} is not in\n{text}"));
        assert_eq!((&*family.kind, family.samples[name][0].1), (kind, value), "{name}");
    }
    let durations = &families["realtime_publish_duration_seconds"];
    assert_eq!(durations.kind, "histogram");
    assert_eq!(durations.samples["realtime_publish_duration_seconds_count"][0].1, 4.0);
    let ring = if case.ring == "uring" { "io_uring" } else { "epoll" };
    assert!(text.contains(&format!("wellhead_ring_info{{backend=\"{ring}\"}} 1\n")), "{text}");
    let resident = server.metric("process_resident_memory_bytes");
    assert!(resident > 1e6, "{resident} bytes");
}

fn metrics_are_not_for_everybody(case: Case) {
    let server = Setup::new(case).start();
    let ask = |mut client: Client, fields: &[&str]| client.request("GET", "/metrics", fields, b"");
    assert_eq!(ask(server.connect(), &[]).status, 200, "this machine itself");
    for field in
        ["X-Forwarded-For: 127.0.0.1", "x-forwarded-for: 192.0.2.1, 127.0.0.1", "Forwarded: for=127.0.0.1"]
    {
        assert_eq!(ask(server.connect(), &[field]).status, 401, "{field}");
        for role in ["viewer", "operator", "ingest"] {
            assert_eq!(ask(server.connect_as(role), &[field]).status, 403, "{field}, {role}");
        }
        let page = ask(server.connect_as("admin"), &[field]);
        assert!(page.status == 200 && page.text().contains("sse_connections"), "{field}");
    }
}

/// Reads a stream to its end: what it has seen, and its last event.
fn read_to_the_end(mut events: Events) -> (Seen, Event) {
    let mut seen = Seen::default();
    let mut last = Event::default();
    while let Some(event) = events.try_next().expect("it ends with FIN, not RST") {
        if event.name.is_empty() && event.data.is_empty() {
            last = event;
        } else {
            seen.take(&event);
            last.clone_from(&event);
        }
    }
    (seen, last)
}

fn a_drain_under_load_loses_nothing(case: Case) {
    const DRAIN: Duration = Duration::from_secs(30);
    let mut server = Setup::new(case).set("server.drain_timeout = \"30s\"").start();
    let mut publishers: Vec<Publisher> =
        (0..4).map(|index| Publisher::new(&server, ["A", "B"][index as usize % 2], index)).collect();
    let streams: Vec<Events> = (0..10).map(|index| server.stream(["A", "B"][index % 2], &[], "")).collect();
    let begun = thread::scope(|scope| {
        let readers: Vec<_> =
            streams.into_iter().map(|events| scope.spawn(move || read_to_the_end(events))).collect();
        for publisher in &mut publishers {
            scope.spawn(|| while publisher.try_publish(2, Shape::Lines).is_ok() {});
        }
        let begun = {
            let _end = Finally(|| server.signal(Signal::TERM));
            eventually("there is load", || server.metric("realtime_publishes_total") > 200.0);
            Instant::now()
        };
        for reader in readers {
            let (seen, last) = reader.join().expect("it reads");
            assert!(seen.last > 0 && seen.gaps.is_empty());
            assert!(last.retry.is_some(), "the stream ends without `retry`: {last:?}");
        }
        begun
    });
    assert_eq!(server.wait().code(), Some(0));
    assert!(begun.elapsed() < DRAIN, "the drain took {:?}", begun.elapsed());
    server.restart();
    for (well, pair) in [("A", [0, 2]), ("B", [1, 3])] {
        let acked: std::collections::BTreeMap<_, _> =
            pair.iter().flat_map(|&index| publishers[index].acked.clone()).collect();
        let (&last, _) = acked.iter().next_back().expect("something is acknowledged");
        let mut seen = Seen::default();
        seen.read_to(&mut server.stream(well, &["Last-Event-ID: 0"], ""), last);
        let missing: Vec<_> =
            acked.iter().filter(|(offset, mark)| seen.readings.get(offset) != Some(mark)).collect();
        assert!(missing.is_empty() && seen.gaps.is_empty(), "{missing:?} {:?}", seen.gaps);
    }
}

/// Sends SIGTERM, and waits until the drain has begun: this stream is ended.
fn begin_drain(server: &Server, events: Events) {
    server.signal(Signal::TERM);
    read_to_the_end(events);
}

fn a_drain_answers_requests_in_progress(case: Case) {
    let mut server = Setup::new(case).set("server.drain_timeout = \"1m\"").start();
    let events = server.stream("A", &[], "");
    let body = reading("A", 1, 1);
    let token = server.token("ingest");
    let mut upload = server.connect();
    let head = format!(
        "POST {INGEST} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{}",
        body.len(),
        &body[..10]
    );
    upload.send(head.as_bytes()).expect("it sends");
    let mut probe = server.connect();
    probe.send(b"GET /readyz HTTP/1.1\r\nHost: a\r\n").expect("it sends");
    let mut idle = server.connect();
    assert_eq!(idle.get("/readyz").status, 200);
    // Both must have arrived, or they are no requests in progress.
    thread::sleep(Duration::from_millis(200));
    begin_drain(&server, events);
    assert!(idle.is_closed());
    // A shard that has not turned yet may still take one, and the accept queue is served.
    eventually("new clients are refused", || {
        let client = Client::try_connect(server.address(), None);
        client.and_then(|mut client| client.try_request("GET", "/", &[], b"")).is_err()
    });
    probe.send(b"\r\n").expect("it sends");
    let answer = probe.response(false).expect("it answers");
    assert_eq!((answer.status, answer.field("connection")), (503, Some("close")), "{}", answer.text());
    upload.send(&body.as_bytes()[10..]).expect("it sends");
    assert_eq!(offsets(&upload.response(false).expect("it answers"), 1), [1]);
    assert!(upload.is_closed());
    assert_eq!(server.wait().code(), Some(0));
    server.restart();
    assert_eq!(server.connect_as("viewer").get("/api/v1/wells/A/latest").json()["offset"], 1);
}

/// A request that never arrives whole.
fn unfinished(server: &Server) -> Client {
    let mut client = server.connect();
    client.send(b"GET /readyz HTTP/1.1\r\nHost: a\r\n").expect("it sends");
    thread::sleep(Duration::from_millis(200));
    client
}

fn a_drain_has_an_end(case: Case) {
    let mut server =
        Setup::new(case).set("server.drain_timeout = \"1s\"").set("limits.request_timeout = \"10m\"").start();
    let _client = unfinished(&server);
    assert_eq!(server.terminate().code(), Some(0));
}

fn a_second_signal_hurries(case: Case) {
    let mut server = Setup::new(case)
        .set("server.drain_timeout = \"10m\"")
        .set("limits.request_timeout = \"10m\"")
        .start();
    let mut publisher = Publisher::new(&server, "A", 1);
    publisher.publish(5, Shape::Single);
    let _client = unfinished(&server);
    begin_drain(&server, server.stream("B", &[], ""));
    assert_eq!(server.terminate().code(), Some(0));
    server.restart();
    assert_eq!(server.connect_as("viewer").get("/api/v1/wells/A/latest").json()["offset"], 5);
}

fn a_taken_address_is_named(case: Case) {
    let server = Setup::new(case).start();
    let Address::Tcp(address) = server.address() else { panic!("it listens on TCP") };
    let refused =
        Setup::new(case).listen(&address.to_string(), "\"esp\"").try_start().expect_err("it is taken");
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert!(refused.said.contains(&address.to_string()), "{refused:?}");
    assert!(refused.said.contains("listen"), "{refused:?}");
    assert_eq!(server.connect().get("/healthz").status, 200, "the first one serves on");
}

fn a_taken_store_is_named(case: Case) {
    let server = Setup::new(case).start();
    let store = server.directory().join("store");
    let refused = Setup::new(case).store(&store).try_start().expect_err("it is taken");
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert!(refused.said.contains(&*store.to_string_lossy()), "{refused:?}");
    Publisher::new(&server, "A", 1).publish(1, Shape::Single);
}

fn without_io_uring_epoll_serves_and_says_why(case: Case) {
    let server = Setup::new(case).any_ring().without_uring().start();
    let said = server.hear("seccomp");
    assert!(said.contains("epoll") && said.contains("io_uring_setup"), "no remedy: {said}");
    let page = server.connect().get("/metrics").text();
    assert!(page.contains("wellhead_ring_info{backend=\"epoll\"} 1"), "{page}");
    let mut events = server.stream("A", &[], "");
    events.expect("connected");
    Publisher::new(&server, "A", 1).publish(1, Shape::Single);
    assert_eq!(events.expect("telemetry_update").offset(), 1);

    let refused = Setup::new(case).without_uring().try_start().expect_err("io_uring was asked for");
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert!(refused.said.contains("seccomp") && refused.said.contains("io_uring_setup"), "{refused:?}");
    // Where nothing is refused, it is what serves.
    let free = Setup::new(case).any_ring().start();
    assert!(free.connect().get("/metrics").text().contains("wellhead_ring_info{backend=\"io_uring\"} 1"));
}

fn systemd_is_told(case: Case) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("it binds");
    socket.set_read_timeout(Some(tests::client::GUARD)).expect("it can be set");
    let _server = Setup::new(case).variable("NOTIFY_SOCKET", &path.to_string_lossy()).start();
    let mut bytes = [0; 1000];
    let read = socket.recv(&mut bytes).expect("systemd is told");
    let text = String::from_utf8_lossy(&bytes[..read]).into_owned();
    assert!(text.lines().any(|line| line == "READY=1"), "{text:?}");
}
