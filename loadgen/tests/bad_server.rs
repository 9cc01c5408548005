//! A server that does one thing wrong at a time, and whether exactly that is found.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use loadgen::check::Faults;
use loadgen::report::Report;
use loadgen::run::{self, Load, Options};

/// Publications per run, of one second.
const COUNT: u64 = 400;
const STREAMS: usize = 4;
const VERIFIED: u64 = 2;

/// What is done with the publication of this index on every stream.
type Deliver = fn(u64, &[u8], &mut Stream<'_>);

/// One subscriber's end, and what is held back from it.
struct Stream<'a> {
    out: &'a mut Vec<u8>,
    next_id: &'a mut u64,
    held: &'a mut Vec<u8>,
}

impl Stream<'_> {
    fn send(&mut self, body: &[u8]) {
        *self.next_id += 1;
        protocol::sse::event(self.out, Some(*self.next_id), "telemetry_update", body);
    }
}

struct Subscriber {
    socket: TcpStream,
    next_id: u64,
    held: Vec<u8>,
}

/// Serves on a port of its own until the process ends. `answer` gives a publication's status.
fn serve(deliver: Deliver, answer: fn(u64) -> u16) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let subscribers: Arc<Mutex<Vec<Subscriber>>> = Arc::default();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let (socket, subscribers) = (socket.unwrap(), Arc::clone(&subscribers));
            std::thread::spawn(move || converse(socket, &subscribers, deliver, answer));
        }
    });
    url
}

fn converse(
    mut socket: TcpStream,
    subscribers: &Mutex<Vec<Subscriber>>,
    deliver: Deliver,
    answer: fn(u64) -> u16,
) {
    let mut index = 0;
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            match socket.read(&mut chunk) {
                Ok(read) if read > 0 => bytes.extend_from_slice(&chunk[..read]),
                _ => return,
            }
            continue;
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        if head.starts_with("GET /api/v1/sse/stream/WELL-001?token=secret ") {
            let mut out = Vec::new();
            protocol::http::stream_head([], &mut out);
            protocol::sse::event(&mut out, Some(0), "connected", b"{}");
            socket.write_all(&out).unwrap();
            subscribers.lock().unwrap().push(Subscriber { socket, next_id: 0, held: Vec::new() });
            return;
        }
        if !head.starts_with("POST /api/v1/telemetry/ingest ")
            || !head.contains("Authorization: Bearer secret")
        {
            let response = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno";
            socket.write_all(response.as_bytes()).unwrap();
            return;
        }
        let length: usize = head.split("Content-Length: ").nth(1).unwrap().parse().unwrap();
        while bytes.len() < end + 4 + length {
            let read = socket.read(&mut chunk).unwrap();
            bytes.extend_from_slice(&chunk[..read]);
        }
        let body = bytes[end + 4..end + 4 + length].to_vec();
        bytes.drain(..end + 4 + length);
        let status = answer(index);
        if status == 202 {
            publish(index, body.trim_ascii_end(), &mut subscribers.lock().unwrap(), deliver);
        }
        index += 1;
        let response = format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n{{}}");
        socket.write_all(response.as_bytes()).unwrap();
    }
}

fn publish(index: u64, body: &[u8], subscribers: &mut [Subscriber], deliver: Deliver) {
    for subscriber in subscribers {
        let mut out = Vec::new();
        let Subscriber { socket, next_id, held } = subscriber;
        deliver(index, body, &mut Stream { out: &mut out, next_id, held });
        // Cut where it hurts.
        let (start, end) = out.split_at(out.len() / 2);
        let _ = socket.write_all(start).and_then(|()| socket.write_all(end));
    }
}

fn run(url: &str, load: Load, warmup: u64) -> Result<Report, String> {
    let options = Options {
        target: url.parse().unwrap(),
        token: Some("secret".into()),
        well: "WELL-001".into(),
        connections: STREAMS,
        verify: VERIFIED as usize,
        load,
        warmup,
        seconds: 1,
        cores: 1,
        pin: vec![],
        server_pid: None,
    };
    run::run(&options, |_| {})
}

const PUBLISH: Load = Load::Publish { rate: COUNT, batch: 1, publishers: 1 };

fn judge(deliver: Deliver) -> Report {
    run(&serve(deliver, |_| 202), PUBLISH, 0).unwrap()
}

fn good(_: u64, body: &[u8], stream: &mut Stream<'_>) {
    stream.send(body);
}

#[test]
fn a_good_server_has_no_faults() {
    let report = run(&serve(good, |_| 202), PUBLISH, 1).unwrap();
    assert_eq!(report.streams.faults, Faults::default());
    let streams = &report.streams;
    assert_eq!((streams.opened, streams.connect_failures, streams.disconnects), (4, 0, 0));
    let publishing = report.publishing.as_ref().unwrap();
    assert_eq!((publishing.sent, publishing.accepted), (2 * COUNT, 2 * COUNT));
    let traffic = report.traffic.as_ref().unwrap();
    // Those are timed that were due in the measured time, whenever they came; not those of the warm-up.
    assert_eq!(traffic.latency.count, COUNT * VERIFIED);
    assert!(traffic.deliveries > traffic.verified_deliveries);
    // Drained streams get the same bytes as verified ones.
    let per_stream = traffic.deliveries as f64 / STREAMS as f64;
    let verified = traffic.verified_deliveries as f64 / VERIFIED as f64;
    assert!((per_stream / verified - 1.0).abs() < 0.2, "{per_stream} and {verified}");
}

#[test]
fn what_is_dropped_is_missing() {
    let report = judge(|index, body, stream| {
        if index % 100 != 50 && index != COUNT - 1 {
            stream.send(body);
        }
    });
    let missing = VERIFIED * 5;
    assert_eq!(report.streams.faults, Faults { missing, ..Faults::default() });
}

#[test]
fn what_comes_twice_is_repeated() {
    let report = judge(|index, body, stream| {
        stream.send(body);
        if index % 100 == 0 {
            stream.send(body);
        }
    });
    let repeated = VERIFIED * 4;
    assert_eq!(report.streams.faults, Faults { repeated, ..Faults::default() });
}

#[test]
fn what_comes_late_is_reordered() {
    let report = judge(|index, body, stream| {
        if index % 100 == 10 {
            stream.held.extend_from_slice(body);
            return;
        }
        stream.send(body);
        if index % 100 == 12 {
            let held = std::mem::take(stream.held);
            stream.send(&held);
        }
    });
    let reordered = VERIFIED * 4;
    assert_eq!(report.streams.faults, Faults { reordered, ..Faults::default() });
}

#[test]
fn ids_that_go_back_are_bad() {
    let report = judge(|index, body, stream| {
        if index == 7 {
            *stream.next_id -= 1;
        }
        stream.send(body);
    });
    let bad_ids = VERIFIED;
    assert_eq!(report.streams.faults, Faults { bad_ids, ..Faults::default() });
}

#[test]
fn refused_publications_are_the_publishers_trouble_and_not_missing() {
    let url = serve(good, |index| if index % 10 == 3 { 503 } else { 202 });
    let report = run(&url, PUBLISH, 0).unwrap();
    assert_eq!(report.streams.faults, Faults::default());
    let publishing = report.publishing.unwrap();
    let statuses: Vec<_> = publishing.statuses.into_iter().collect();
    assert_eq!(statuses, [(202, COUNT / 10 * 9), (503, COUNT / 10)]);
    assert!(publishing.trouble.unwrap().contains("503"));
}

#[test]
fn streams_that_end_and_streams_that_are_refused_are_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for (number, socket) in listener.incoming().enumerate() {
            let mut socket = socket.unwrap();
            std::thread::spawn(move || {
                let _ = socket.read(&mut [0; 4096]);
                let mut out = Vec::new();
                match number % STREAMS {
                    0 => out.extend_from_slice(b"HTTP/1.1 429 Too Many\r\nContent-Length: 4\r\n\r\nfull"),
                    1 => out.extend_from_slice(b"what?\r\n\r\n"),
                    _ => drop(protocol::http::stream_head([], &mut out)),
                }
                let _ = socket.write_all(&out);
                let rest = if number % STREAMS == 2 { 700 } else { 60_000 };
                std::thread::sleep(Duration::from_millis(rest));
            });
        }
    });
    let report = run(&url, Load::Idle, 0).unwrap();
    let streams = report.streams;
    assert_eq!((streams.opened, streams.connect_failures, streams.disconnects), (2, 2, 1));
    let troubles: Vec<_> = streams.troubles.into_iter().collect();
    let [(malformed, 1), (refused, 1), (closed, 1)] = &troubles[..] else { panic!("{troubles:?}") };
    assert!(malformed.contains("no HTTP/1 response"), "{malformed}");
    assert!(closed.contains("closed"), "{closed}");
    assert!(refused.contains("429") && refused.contains("full"), "{refused}");
}

#[test]
fn errors_say_what_to_do() {
    let url = serve(good, |_| 202);
    let options = |url: &str, token: &str| Options {
        target: url.parse().unwrap(),
        token: Some(token.into()),
        well: "WELL-001".into(),
        connections: 3,
        verify: 1,
        load: PUBLISH,
        warmup: 0,
        seconds: 1,
        cores: 2,
        pin: vec![],
        server_pid: None,
    };
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (url, token, hint) in
        [(&*url, "wrong", "--token"), (&*format!("http://{closed}"), "secret", "start the server")]
    {
        let error = run::run(&options(url, token), |_| {}).unwrap_err();
        assert!(error.contains(hint), "{error}");
        assert!(!error.contains(token), "{error}");
    }
}
