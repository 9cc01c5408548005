//! What is HTTP and what is not: nothing is repaired, and nothing after a bad request is taken for one.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use tests::client::{Address, Client, Response};
use tests::on;
use tests::reading::{INGEST, reading};
use tests::server::{Case, Server, Setup, eventually, run};

on! {
    nothing_is_smuggled: uring_1 epoll_2;
    what_nginx_refuses_is_refused: epoll_1;
    connections_are_kept_as_asked: uring_1 epoll_2;
    pipelined_requests_are_answered_in_order: uring_1 uring_2 epoll_1 epoll_2;
    every_method_is_answered_by_its_rules: uring_2 epoll_1;
    every_method_echoes_its_body: uring_1 epoll_1;
    curl_uploads_and_waits_for_its_100: uring_1 epoll_2;
    bodies_come_in_any_pieces: uring_2 epoll_1;
    foreign_origins_are_refused: uring_2 epoll_1;
}

const BOTH: &str = "\"esp\", \"test\"";

/// Requests that are refused with 400: between the request line and the body's end. `|` ends a line with CR LF.
const BAD: &[(&str, &str)] = &[
    ("both framings", "POST /body HTTP/1.1|Host: a|Content-Length: 5|Transfer-Encoding: chunked||0||"),
    ("both, the other way", "POST /body HTTP/1.1|Host: a|Transfer-Encoding: chunked|Content-Length: 5||0||"),
    ("two equal lengths", "POST /body HTTP/1.1|Host: a|Content-Length: 5|Content-Length: 5||hello"),
    ("two lengths", "POST /body HTTP/1.1|Host: a|Content-Length: 5|Content-Length: 0||hello"),
    ("a list of lengths", "POST /body HTTP/1.1|Host: a|Content-Length: 5, 5||hello"),
    ("a length with a sign", "POST /body HTTP/1.1|Host: a|Content-Length: +5||hello"),
    ("a negative length", "POST /body HTTP/1.1|Host: a|Content-Length: -5||hello"),
    ("a length in hex", "POST /body HTTP/1.1|Host: a|Content-Length: 0x5||hello"),
    ("a length with a space in it", "POST /body HTTP/1.1|Host: a|Content-Length: 5 0||hello"),
    ("an empty length", "POST /body HTTP/1.1|Host: a|Content-Length:||hello"),
    ("an overflowing length", "POST /body HTTP/1.1|Host: a|Content-Length: 18446744073709551621||hello"),
    ("chunked twice", "POST /body HTTP/1.1|Host: a|Transfer-Encoding: chunked, chunked||0||"),
    (
        "chunked in two fields",
        "POST /body HTTP/1.1|Host: a|Transfer-Encoding: chunked|Transfer-Encoding: chunked||0||",
    ),
    ("chunked not last", "POST /body HTTP/1.1|Host: a|Transfer-Encoding: chunked, identity||0||"),
    ("chunked in 1.0", "POST /body HTTP/1.0|Host: a|Transfer-Encoding: chunked||0||"),
    ("a control byte before chunked", "POST /body HTTP/1.1|Host: a|Transfer-Encoding: \x0bchunked||0||"),
    ("a space before the colon", "POST /body HTTP/1.1|Host: a|Transfer-Encoding : chunked||0||"),
    ("a tab before the colon", "POST /body HTTP/1.1|Host: a|Content-Length\t: 5||hello"),
    ("a folded line", "POST /body HTTP/1.1|Host: a|X: y| Transfer-Encoding: chunked||0||"),
    ("a folded length", "POST /body HTTP/1.1|Host: a|Content-Length:| 5||hello"),
    ("a fold before the first field", "POST /body HTTP/1.1| Host: a|Content-Length: 5||hello"),
    ("bare LF", "POST /body HTTP/1.1\nHost: a\nContent-Length: 5\n\nhello"),
    ("one bare LF", "POST /body HTTP/1.1|Host: a\nContent-Length: 5||hello"),
    ("bare LF in a value", "POST /body HTTP/1.1|Host: a|X: y\nContent-Length: 5||hello"),
    ("bare CR in a value", "POST /body HTTP/1.1|Host: a|X: y\rTransfer-Encoding: chunked||0||"),
    ("bare CR as a line end", "POST /body HTTP/1.1\rHost: a|Content-Length: 5||hello"),
    ("NUL in a value", "POST /body HTTP/1.1|Host: a|X: y\0|Content-Length: 5||hello"),
    ("NUL in a name", "POST /body HTTP/1.1|Host: a|X\0: y||"),
    ("no name", "POST /body HTTP/1.1|Host: a|: y|Content-Length: 5||hello"),
    ("no colon", "POST /body HTTP/1.1|Host: a|Content-Length 5||hello"),
    ("a name in brackets", "POST /body HTTP/1.1|Host: a|(X): y||"),
    ("no host", "GET /body HTTP/1.1|X: y||"),
    ("two hosts", "GET /body HTTP/1.1|Host: a|Host: a||"),
    ("a host with a path", "GET /body HTTP/1.1|Host: a/b||"),
    ("two spaces in the line", "GET  /body HTTP/1.1|Host: a||"),
    ("a tab in the line", "GET\t/body HTTP/1.1|Host: a||"),
    ("a space after the line", "GET /body HTTP/1.1 |Host: a||"),
    ("no version", "GET /body|Host: a||"),
    ("a lower-case version", "GET /body http/1.1|Host: a||"),
    ("a space before the method", " GET /body HTTP/1.1|Host: a||"),
    ("a space in the target", "GET /bo dy HTTP/1.1|Host: a||"),
    ("a fragment", "GET /body#a HTTP/1.1|Host: a||"),
    ("a control byte in the target", "GET /bo\x01dy HTTP/1.1|Host: a||"),
    ("a chunk size in 0x", "POST /body HTTP/1.1|Host: a|Transfer-Encoding: chunked||0x5|hello|0||"),
    ("a chunk size with a sign", "POST /body HTTP/1.1|Host: a|Transfer-Encoding: chunked||+5|hello|0||"),
    ("a space before the chunk size", "POST /body HTTP/1.1|Host: a|Transfer-Encoding: chunked|| 5|hello|0||"),
    ("an empty chunk size", "POST /body HTTP/1.1|Host: a|Transfer-Encoding: chunked|||hello|0||"),
    (
        "an overflowing chunk size",
        "POST /body HTTP/1.1|Host: a|Transfer-Encoding: chunked||10000000000000005|hello|0||",
    ),
    ("a chunk longer than its size", "POST /body HTTP/1.1|Host: a|Transfer-Encoding: chunked||4|hello|0||"),
    ("a chunk size with bare LF", "POST /body HTTP/1.1|Host: a|Transfer-Encoding: chunked||5\nhello|0||"),
    (
        "a chunk that ends with bare LF",
        "POST /body HTTP/1.1|Host: a|Transfer-Encoding: chunked||5|hello\n0||",
    ),
    (
        "a chunk extension with bare LF",
        "POST /body HTTP/1.1|Host: a|Transfer-Encoding: chunked||5;a=b\nhello|0||",
    ),
    (
        "a chunk extension with bare CR",
        "POST /body HTTP/1.1|Host: a|Transfer-Encoding: chunked||5;a=\rb|hello|0||",
    ),
    (
        "a chunk extension with NUL",
        "POST /body HTTP/1.1|Host: a|Transfer-Encoding: chunked||5;a=\0|hello|0||",
    ),
    ("a trailer without a colon", "POST /body HTTP/1.1|Host: a|Transfer-Encoding: chunked||0|trailer||"),
    ("a trailer with bare LF", "POST /body HTTP/1.1|Host: a|Transfer-Encoding: chunked||0|a: b\n||"),
];

/// Requests that are refused with another status than 400.
const REFUSED: &[(&str, u16, &str)] = &[
    ("an unknown coding", 501, "POST /body HTTP/1.1|Host: a|Transfer-Encoding: gzip||hello"),
    ("an unknown version", 505, "GET /body HTTP/2.0|Host: a||"),
    ("an unknown expectation", 417, "POST /body HTTP/1.1|Host: a|Content-Length: 5|Expect: 200-ok||hello"),
];

fn nothing_is_smuggled(case: Case) {
    let server = Setup::new(case).listen("127.0.0.1:0", BOTH).start();
    let token = server.token("ingest");
    let body = reading("SMUGGLED", 1, 1);
    let length = body.len();
    let hidden = format!(
        "POST {INGEST} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    let refuse = |name: &str, status: u16, request: &str| {
        let mut client = server.connect();
        let request = request.replace('|', "\r\n");
        client.send(format!("{request}{hidden}").as_bytes()).expect("it sends");
        let response = client.response(false).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(response.status, status, "{name}: {response:?}");
        assert_eq!(response.field("connection"), Some("close"), "{name}");
        assert!(client.is_closed(), "{name}: more is answered");
    };
    // All at once: after a refusal a server may wait a little for the client to go.
    thread::scope(|scope| {
        let refuse = &refuse;
        for (name, request) in BAD {
            scope.spawn(move || refuse(name, 400, request));
        }
        for (name, status, request) in REFUSED {
            scope.spawn(move || refuse(name, *status, request));
        }
    });
    let smuggled = server.connect_as("viewer").get("/api/v1/wells/SMUGGLED/latest");
    assert_eq!(smuggled.status, 404, "{}", smuggled.text());
    // What stands hidden above is a good request by itself.
    let mut client = server.connect();
    client.send(hidden.as_bytes()).expect("it sends");
    assert_eq!(client.response(false).expect("it answers").status, 202);
}

/// nginx before a server, on a socket file.
struct Nginx {
    process: Child,
    address: Address,
}

impl Nginx {
    fn start(directory: &Path, upstream: &Address) -> Self {
        let directory = directory.to_string_lossy();
        let Address::Unix(upstream) = upstream else { panic!("the upstream is a socket file") };
        let config = format!(
            "daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/nginx.log;
             events {{ worker_connections 256; }}
             http {{
                 access_log off;
                 client_body_temp_path {directory}/nginx-body; proxy_temp_path {directory}/nginx-proxy;
                 server {{
                     listen unix:{directory}/nginx.sock;
                     location / {{
                         proxy_pass http://unix:{upstream}:;
                         proxy_http_version 1.1;
                         proxy_ignore_client_abort on;
                     }}
                 }}
             }}"
        );
        let file = format!("{directory}/nginx.conf");
        std::fs::write(&file, config).expect("the directory can be written to");
        let process = Command::new("nginx")
            .args(["-c", &file, "-e", &format!("{directory}/nginx.log")])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("this test compares with nginx, which must be installed: {error}")
            });
        let address = Address::Unix(format!("{directory}/nginx.sock"));
        eventually("nginx listens", || Client::try_connect(&address, None).is_ok());
        Self { process, address }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The bodies of the good answers to these bytes, after which the client ends its half.
fn echoes(address: &Address, request: &[u8]) -> Vec<Vec<u8>> {
    let mut client = Client::connect(address);
    // Whoever refuses the head may close before the body is sent.
    let _ = client.send(request).and_then(|()| client.socket.end_sending());
    let mut bodies = Vec::new();
    while let Ok(Response { status: 200, body, .. }) = client.response(request.starts_with(b"HEAD")) {
        bodies.push(body);
    }
    bodies
}

fn what_nginx_refuses_is_refused(case: Case) {
    let server = Setup::new(case).listen("unix:{dir}/http-{shard}.sock", "\"test\"").start();
    let ours = server.address().of_shard(0);
    let nginx = Nginx::start(server.directory(), &ours);
    let plain = b"POST /body HTTP/1.1\r\nHost: a\r\nX: y\r\nContent-Length: 5\r\n\r\nhello".to_vec();
    let chunked =
        b"POST /body HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nT: u\r\n\r\n"
            .to_vec();
    let bad = BAD.iter().map(|(_, request)| *request).chain(REFUSED.iter().map(|(_, _, request)| *request));
    let mut requests: Vec<Vec<u8>> = bad.map(|request| request.replace('|', "\r\n").into_bytes()).collect();
    for good in [plain, chunked] {
        assert_eq!(echoes(&nginx.address, &good), [b"hello"], "nginx serves");
        assert_eq!(echoes(&ours, &good), [b"hello"], "we serve");
        for at in 0..good.len() {
            for byte in *b"\0\t\n\r ,5:;x\x0b\x7f\x80" {
                let mut changed = good.clone();
                changed[at] = byte;
                requests.push(changed);
                let mut longer = good.clone();
                longer.insert(at, byte);
                requests.push(longer);
            }
            requests.push([&good[..at], &good[at + 1..]].concat());
        }
    }
    let (mut refused, mut differ) = (0, Vec::new());
    for request in &requests {
        let (theirs, ours) = (echoes(&nginx.address, request), echoes(&ours, request));
        // Where both take it, both must see the same body.
        if ours.len() > theirs.len() || ours != theirs[..ours.len()] {
            let text = String::from_utf8_lossy(request);
            differ.push(format!("nginx answers {theirs:?}, we answer {ours:?} to {text:?}"));
        }
        refused += u32::from(theirs.is_empty());
    }
    assert!(differ.is_empty(), "\n{}\n", differ.join("\n"));
    assert!(refused > 500, "nginx refuses {refused} of {}", requests.len());
}

fn connections_are_kept_as_asked(case: Case) {
    let server = Setup::new(case).listen("127.0.0.1:0", BOTH).start();
    let mut client = server.connect();
    for _ in 0..3 {
        let response = client.get("/version");
        assert_eq!(
            (response.status, response.field("connection").unwrap_or("keep-alive")),
            (200, "keep-alive")
        );
    }
    assert_eq!(client.request("GET", "/nowhere", &[], b"").status, 404);
    assert_eq!(client.get("/version").status, 200, "a refusal of a good request ends nothing");
    let last = client.request("GET", "/version", &["Connection: close"], b"");
    assert_eq!((last.status, last.field("connection")), (200, Some("close")));
    assert!(client.is_closed());

    for (head, kept) in [
        ("GET /version HTTP/1.0\r\n\r\n", false),
        ("GET /version HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
        ("GET /version HTTP/1.1\r\nHost: a\r\nConnection: x, CLOSE\r\n\r\n", false),
        ("\r\nGET http://a/version HTTP/1.1\r\nHost: a\r\n\r\n", true),
    ] {
        let mut client = server.connect();
        client.send(head.as_bytes()).expect("it sends");
        assert_eq!(client.response(false).expect("it answers").status, 200, "{head:?}");
        match kept {
            true => assert_eq!(client.get("/version").status, 200, "{head:?}"),
            false => assert!(client.is_closed(), "{head:?}"),
        }
    }
}

fn pipelined_requests_are_answered_in_order(case: Case) {
    let server = Setup::new(case).listen("127.0.0.1:0", BOTH).start();
    let token = server.token("admin");
    let mut requests = String::new();
    for number in 0..50 {
        let body = format!("echo {number}");
        requests += &format!("PUT /body HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        // Answers that other threads and shards have to give stand between those that are there at once.
        let row = reading(&format!("W{}", number % 5), 1, number);
        requests += &format!(
            "POST {INGEST} HTTP/1.1\r\nHost: a\r\nAuthorization: bearer {token}\r\nContent-Length: {}\r\n\r\n{row}",
            row.len()
        );
        requests +=
            &format!("GET /api/v1/wells/W{}/latest?token={token} HTTP/1.1\r\nHost: a\r\n\r\n", number % 5);
    }
    let mut client = server.connect();
    client.send(requests.as_bytes()).expect("it sends");
    for number in 0..50 {
        let echo = client.response(false).expect("it answers");
        assert_eq!((echo.status, echo.text()), (200, format!("echo {number}")));
        let published = client.response(false).expect("it answers").json();
        assert_eq!(published["offsets"][0], number / 5 + 1, "{published}");
        let latest = client.response(false).expect("it answers").json();
        assert_eq!(latest["data"]["number"], number, "{latest}");
    }
}

fn every_method_is_answered_by_its_rules(case: Case) {
    let server = Setup::new(case).start();
    let mut client = server.connect_as("admin");
    let get = client.get("/version");
    let head = client.request("HEAD", "/version", &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.field("content-length"), get.field("content-length"));
    for (method, target, status, allow) in [
        ("POST", "/version", 405, Some("GET, HEAD")),
        ("GET", INGEST, 405, Some("POST")),
        ("DELETE", "/api/v1/wells", 405, Some("GET, HEAD")),
        ("PATCH", "/api/v1/sse/stream/A", 405, Some("GET, HEAD")),
        ("BREW", "/api/v1/wells", 405, Some("GET, HEAD")),
        ("GET", "/nowhere", 404, None),
        ("POST", "/api/v1/telemetry/ingest/", 404, None),
        ("GET", "/api/v1/wells/", 404, None),
        ("GET", "/api/v1/wells/A/B/latest", 404, None),
        ("GET", "/api/v1/../../etc/passwd", 404, None),
        ("GET", "/api/v1/wells/%ff/latest", 400, None),
        ("OPTIONS", "/api/v1/wells", 204, Some("GET, HEAD, OPTIONS")),
        ("OPTIONS", INGEST, 204, Some("POST, OPTIONS")),
        ("OPTIONS", "/nowhere", 404, None),
        ("OPTIONS", "*", 204, Some("GET, HEAD, POST, OPTIONS")),
    ] {
        let response = client.request(method, target, &[], b"");
        assert_eq!((response.status, response.field("allow")), (status, allow), "{method} {target}");
    }
    let stream = client.request("HEAD", "/api/v1/sse/stream/A", &[], b"");
    assert_eq!((stream.status, stream.field("content-type")), (200, Some("text/event-stream")));
}

fn every_method_echoes_its_body(case: Case) {
    let server = Setup::new(case).listen("127.0.0.1:0", BOTH).start();
    let warns = server.said().lines().any(|line| line.contains("WARN") && line.contains("test"));
    assert!(warns, "start-up does not warn of the test surfaces");
    let mut client = server.connect();
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
        for body in [&b""[..], b"\0\r\n\r\n\xff", &[b'x'; 100_000]] {
            let response = client.request(method, "/body", &["Content-Type: a/b"], body);
            assert_eq!((response.status, &response.body[..]), (200, body), "{method}");
            assert_eq!(response.field("content-type"), Some("a/b"), "{method}");
        }
    }
}

/// Runs curl and gives what it writes.
fn curl(server: &Server, arguments: &[&str], path: &str) -> Vec<u8> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--fail", "--max-time", "60"]).args(arguments);
    command.arg(format!("{}{path}", server.address().url()));
    let found = Command::new("curl").arg("--version").output();
    assert!(found.is_ok(), "this test uploads with curl, which must be installed: {found:?}");
    let output = run(command, "");
    assert!(output.status.success(), "curl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn curl_uploads_and_waits_for_its_100(case: Case) {
    let server = Setup::new(case).listen("127.0.0.1:0", BOTH).start();
    let upload: Vec<u8> =
        (0..1_000_000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let file = server.directory().join("upload");
    std::fs::File::create(&file).and_then(|mut file| file.write_all(&upload)).expect("it can be written");
    let data = format!("@{}", file.display());
    // Without an answer to `Expect` curl would wait for longer than it may take in all.
    let patient = ["--expect100-timeout", "600", "--header", "Expect: 100-continue", "--data-binary", &data];
    assert!(curl(&server, &patient, "/body") == upload);
    let chunked = [&patient[..], &["--header", "Transfer-Encoding: chunked"]].concat();
    assert!(curl(&server, &chunked, "/body") == upload);
    assert!(curl(&server, &["--header", "Expect:", "--data-binary", &data], "/body") == upload);

    // Who may not send it is told before the body comes.
    let mut client = server.connect();
    let head = format!(
        "POST {INGEST} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n"
    );
    client.send(head.as_bytes()).expect("it sends");
    assert_eq!(client.response(false).expect("it answers").status, 401);
    let mut client = server.connect();
    client.send(head.replace("1000000", "99999999999").as_bytes()).expect("it sends");
    assert_eq!(client.response(false).expect("it answers").status, 413);
}

fn bodies_come_in_any_pieces(case: Case) {
    let server = Setup::new(case).listen("127.0.0.1:0", BOTH).start();
    let request = b"POST /body HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                    2\r\nhe\r\n003;a=\"b\"\r\nllo\r\n0\r\nTrailer: x\r\n\r\n";
    let mut client = server.connect();
    for step in [1, 2, 7] {
        for piece in request.chunks(step) {
            client.send(piece).expect("it sends");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(client.response(false).expect("it answers").body, b"hello", "in pieces of {step}");
    }
}

fn foreign_origins_are_refused(case: Case) {
    let server = Setup::new(case).set("dialect.esp.allowed_origins = [\"https://ops.example\"]").start();
    let mut client = server.connect_as("admin");
    let row = reading("A", 1, 1);
    for origin in [
        "https://evil.example",
        "http://ops.example",
        "https://ops.example.evil",
        "null",
        "https://ops.example:8443",
    ] {
        let field = format!("Origin: {origin}");
        for (method, target, body) in [("GET", "/api/v1/wells", ""), ("POST", INGEST, &*row)] {
            let response = client.request(method, target, &[&field], body.as_bytes());
            assert_eq!(response.status, 403, "{origin} {target}: {}", response.text());
            assert_eq!(response.field("access-control-allow-origin"), None, "{origin}");
        }
        let asked = ["Access-Control-Request-Method: POST", &field];
        let preflight = client.request("OPTIONS", INGEST, &asked, b"");
        assert_eq!(preflight.field("access-control-allow-origin"), None, "{origin}: {preflight:?}");
    }
    let listed = "Origin: https://ops.example";
    let response = client.request("GET", "/api/v1/wells", &[listed], b"");
    assert_eq!(response.status, 200);
    assert_eq!(response.json()["count"], 0, "a refused request published");
    assert_eq!(response.field("access-control-allow-origin"), Some("https://ops.example"));
    assert_eq!(response.field("vary"), Some("Origin"));
    let asked =
        ["Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization", listed];
    let preflight = client.request("OPTIONS", INGEST, &asked, b"");
    assert!(matches!(preflight.status, 200 | 204), "{preflight:?}");
    assert_eq!(preflight.field("access-control-allow-origin"), Some("https://ops.example"));
    let holds = |field: &str, what: &str| {
        preflight.field(field).is_some_and(|value| value.to_lowercase().contains(what))
    };
    assert!(holds("access-control-allow-methods", "post"), "{preflight:?}");
    assert!(holds("access-control-allow-headers", "authorization"), "{preflight:?}");
    // The stream's head carries it as well; the server's own pages and what is no browser need none.
    let mut stream = server.connect_as("viewer");
    stream.send_request("GET", "/api/v1/sse/stream/A", &[listed], b"").expect("it sends");
    let head = stream.response(false).expect("it answers");
    assert_eq!((head.status, head.field("access-control-allow-origin")), (200, Some("https://ops.example")));
    for field in ["Origin: http://wellhead.test", "X: y"] {
        assert_eq!(client.request("GET", "/api/v1/wells", &[field], b"").status, 200, "{field}");
    }
}
