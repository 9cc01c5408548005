//! Every subscriber gets every publication of its topic exactly once, in order.

use std::collections::BTreeMap;
use std::io::Read;
use std::thread;

use tests::client::{Address, Client, Events};
use tests::on;
use tests::reading::{Choices, INGEST, Mark, Publisher, SHAPES, Seen, long_reading, offsets, reading};
use tests::server::{Case, Server, Setup, eventually};

on! {
    everybody_gets_everything: uring_1 uring_2 uring_8 epoll_1 epoll_2 epoll_8;
    every_kind_of_publication_has_its_event: uring_2 epoll_2;
    a_bad_row_keeps_the_whole_request_out: uring_2 epoll_1;
    small_windows_change_no_byte: uring_1 epoll_1 uring_2 epoll_2;
    silence_is_broken_by_heartbeats: uring_2 epoll_1;
}

const WELLS: [&str; 3] = ["WELL-001", "WELL-002", "بئر 3/#+"];
const PUBLISHERS: u64 = 2;
/// Readings of one publisher.
const READINGS: u64 = 120;

/// The path level that names a well.
fn level(well: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    well.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// Sockets of every family, and with AF_UNIX of every shard.
fn addresses(server: &Server, case: Case) -> Vec<Address> {
    let [v4, v6, unix] = server.listeners() else { panic!("three listeners are configured") };
    let sockets = (0..case.shards).map(|shard| unix.of_shard(shard));
    sockets.chain([v4.clone(), v6.clone()]).collect()
}

fn everybody_gets_everything(case: Case) {
    let server = Setup::new(case)
        .listen("127.0.0.1:0", "\"esp\"")
        .listen("[::1]:0", "\"esp\"")
        .listen("unix:{dir}/http-{shard}.sock", "\"esp\"")
        .start();
    let addresses = addresses(&server, case);
    thread::scope(|scope| {
        for (index, well) in WELLS.iter().enumerate() {
            let (server, addresses) = (&server, &addresses);
            scope.spawn(move || serve_one_well(server, addresses, well, index as u64));
        }
    });
}

fn serve_one_well(server: &Server, addresses: &[Address], well: &str, seed: u64) {
    let open = |index: usize| server.stream_at(&addresses[index % addresses.len()], &level(well), &[], "");
    // They are there before the first publication...
    let early: Vec<(Events, Seen)> = (0..8).map(|index| (open(index), Seen::default())).collect();
    let (published, mut seen) = thread::scope(|scope| {
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| {
                let address = &addresses[(publisher + seed) as usize % addresses.len()];
                scope.spawn(move || publish(server, address, well, publisher))
            })
            .collect();
        // ... they join while it goes on, and stay ...
        let late = (0..4).map(|index| join(open(index)));
        let stay: Vec<_> = early.into_iter().chain(late).collect();
        // ... and they come and go.
        scope.spawn(move || {
            let mut choices = Choices::new(seed);
            for index in 0..16 {
                let (mut events, mut seen) = join(open(index));
                for _ in 0..choices.below(12) {
                    if events.socket().set_guard(std::time::Duration::from_millis(50)).is_ok()
                        && let Ok(Some(event)) = events.try_next()
                    {
                        seen.take(&event);
                    }
                }
            }
        });
        let published: BTreeMap<u64, Mark> =
            publishers.into_iter().flat_map(|publisher| publisher.join().expect("it publishes")).collect();
        (published, stay)
    });
    assert_eq!(published.len() as u64, PUBLISHERS * READINGS);
    let last = *published.keys().next_back().expect("something is published");
    for (events, seen) in &mut seen {
        let start = seen.last;
        seen.read_to(events, last);
        seen.must_be(&published.range(start + 1..).map(|(&offset, &mark)| (offset, mark)).collect());
    }
}

/// A stream, and where it starts.
fn join(mut events: Events) -> (Events, Seen) {
    let start = events.expect("connected").offset();
    (events, Seen::after(start))
}

fn publish(server: &Server, address: &Address, well: &str, publisher: u64) -> BTreeMap<u64, Mark> {
    let client = Client::connect(address).with_token(&server.token("ingest"));
    let mut publisher = Publisher::over(client, well, publisher);
    for (shape, count) in SHAPES.iter().cycle().zip([1, 7, 12].iter().cycle()) {
        if publisher.sent == READINGS {
            break;
        }
        publisher.publish(*count, *shape);
    }
    publisher.acked
}

fn every_kind_of_publication_has_its_event(case: Case) {
    let server = Setup::new(case).set("dialect.esp.platform = \"Alkhorayef ESP IoT Platform\"").start();
    let mut events = server.stream("WELL-001", &[], "");
    let connected = events.expect("connected");
    assert_eq!(connected.offset(), 0);
    let greeting = connected.json();
    assert_eq!(greeting["message"], "Connected to Alkhorayef ESP IoT Platform SSE stream");
    assert_eq!(greeting["well_id"], "WELL-001");
    assert_is_time(&greeting["timestamp"]);

    let mut client = server.connect_as("ingest");
    for (path, body, name, member, fields) in [
        (
            INGEST,
            r#"{"well_id":"WELL-001","flow_rate":1000.50,"big":123456789012345678901234567890,"e":1e400}"#,
            "telemetry_update",
            "data",
            r#""flow_rate":1000.50,"big":123456789012345678901234567890,"e":1e400"#,
        ),
        (
            "/api/v1/alerts",
            r#"{"well_id":"WELL-001","type":"high_vibration","severity":"critical","value":5.20}"#,
            "alert",
            "alert",
            r#""type":"high_vibration","severity":"critical","value":5.20"#,
        ),
        (
            "/api/v1/diagnostics",
            r#"{"well_id":"WELL-001","cpu":0.50}"#,
            "diagnostic_update",
            "diagnostic",
            r#""cpu":0.50"#,
        ),
    ] {
        let offset = offsets(&client.post(path, body), 1)[0];
        let event = events.expect(name);
        assert_eq!(event.offset(), offset);
        assert!(event.data.contains(fields), "{event:?}");
        // `1e400` is good JSON, and no number of ours to judge.
        let data: serde_json::Value =
            serde_json::from_str(&event.data.replace("1e400", "0")).expect("an event is JSON");
        assert_eq!((&data["event"], &data["well_id"]), (&name.into(), &"WELL-001".into()));
        assert_is_time(&data["timestamp"]);
        assert!(data[member].is_object(), "{event:?}");
        if name == "telemetry_update" {
            assert!(data["data"]["telemetry_id"].is_u64(), "{event:?}");
            assert_is_time(&data["data"]["timestamp"]);
        }
    }
}

/// RFC 3339 in UTC, ending in `Z`.
fn assert_is_time(time: &serde_json::Value) {
    let text = time.as_str().unwrap_or_default();
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert!(shape.starts_with("0000-00-00T00:00:00") && shape.ends_with('Z'), "{time}");
}

fn a_bad_row_keeps_the_whole_request_out(case: Case) {
    let server = Setup::new(case).start();
    let mut events = server.stream("A", &[], "");
    events.expect("connected");
    let mut client = server.connect_as("ingest");
    let good = reading("A", 1, 1);
    for (body, status, row) in [
        (format!("[{good},{good},{{\"flow_rate\":1}}]"), 422, Some(2)),
        (format!("{good}\n{{\"well_id\":7}}\n{good}"), 422, Some(1)),
        (format!("{good}\n{good}\n{{\"well_id\":"), 400, Some(2)),
        (format!("[{good},{good}"), 400, Some(2)),
        ("{\"well_id\":\"\"}".into(), 422, Some(0)),
        ("[]".into(), 400, None),
        (String::new(), 400, None),
    ] {
        let response = client.post(INGEST, &body);
        assert_eq!(response.status, status, "{body}: {}", response.text());
        let refusal = response.json();
        assert_eq!(refusal["error"], "ValidationError", "{body}");
        assert!(refusal["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
        assert_eq!(refusal["row"].as_u64(), row, "{body}: {refusal}");
    }
    let offset = offsets(&client.post(INGEST, &reading("A", 1, 2)), 1)[0];
    let event = events.expect("telemetry_update");
    assert_eq!((event.offset(), offset), (1, 1), "a row of a refused request was kept");
}

fn small_windows_change_no_byte(case: Case) {
    const READINGS: u64 = 60;
    let server = Setup::new(case)
        .set("limits.pending_bytes_per_connection = \"64MiB\"")
        .set("limits.pending_age = \"10m\"")
        .start();
    let open = |buffer: usize| {
        let mut client = Client::try_connect(server.address(), Some(buffer)).expect("it connects");
        let target = format!("/api/v1/sse/stream/A?token={}", server.token("viewer"));
        client.send_request("GET", &target, &[], b"").expect("it sends");
        assert_eq!(client.response(false).expect("it answers").status, 200);
        client
    };
    // The first window takes all, the others less than one reading; so every send to them is short.
    let clients: Vec<Client> = [4 << 20, 8 << 10, 16 << 10, 30_000].into_iter().map(open).collect();
    let streams: Vec<Vec<u8>> = thread::scope(|scope| {
        let readers: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(index, client)| scope.spawn(move || read_bytes(client, READINGS, index as u64)))
            .collect();
        let mut client = server.connect_as("ingest");
        let mut choices = Choices::new(35);
        for number in 0..READINGS {
            let body = long_reading("A", 1, number, choices.below(100_000) as usize);
            offsets(&client.post(INGEST, &body), 1);
        }
        readers.into_iter().map(|reader| reader.join().expect("it reads")).collect()
    });
    assert!(streams[0].len() > 1 << 20);
    for stream in &streams[1..] {
        let differs = stream.iter().zip(&streams[0]).position(|(ours, theirs)| ours != theirs);
        assert_eq!((stream.len(), differs), (streams[0].len(), None));
    }
}

/// Everything after the event `connected`, up to the end of event number `readings`; heartbeats don't come so soon.
fn read_bytes(mut client: Client, readings: u64, seed: u64) -> Vec<u8> {
    let end = format!("\nid: {readings}\n").into_bytes();
    let mut choices = Choices::new(seed);
    let mut bytes = client.take_buffered();
    let (mut looked, mut found) = (0, false);
    loop {
        let from = looked;
        found = found || bytes[from..].windows(end.len()).any(|window| window == end);
        looked = bytes.len().saturating_sub(end.len());
        if found && bytes.ends_with(b"\n\n") {
            break;
        }
        let mut piece = vec![0; 1 + choices.below(20_000) as usize];
        let read = client.socket.read(&mut piece).expect("the stream goes on");
        assert!(read > 0, "the stream ends");
        bytes.extend_from_slice(&piece[..read]);
    }
    let start = bytes.windows(2).position(|window| window == b"\n\n").expect("an event ends") + 2;
    bytes.split_off(start)
}

fn silence_is_broken_by_heartbeats(case: Case) {
    let server = Setup::new(case).set("dialect.esp.heartbeat = \"1s\"").start();
    let mut publisher = Publisher::new(&server, "A", 1);
    publisher.publish(3, SHAPES[1]);
    let mut resumed = server.stream("A", &["Last-Event-ID: 1"], "");
    let mut fresh = server.stream("A", &[], "");
    for events in [&mut resumed, &mut fresh] {
        let mut event = events.event();
        while event.name != "heartbeat" {
            event = events.event();
        }
        assert_eq!(event.offset(), 3);
        assert_is_time(&event.json()["timestamp"]);
    }
    publisher.publish(1, SHAPES[0]);
    eventually("a heartbeat carries the newest offset", || {
        let event = fresh.event();
        event.name == "heartbeat" && event.offset() == 4
    });
}
