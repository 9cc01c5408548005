//! What is secret stays so: in logs, metrics, answers, errors and files.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use tests::client::{Client, Events};
use tests::on;
use tests::reading::{INGEST, reading};
use tests::server::{Case, SECRET, Setup};

on! {
    nothing_secret_is_ever_said: uring_2 epoll_1;
    nothing_is_slipped_into_a_stream: uring_2 epoll_1;
}

const PASSWORD: &str = "xyzzy-is-the-password";
const WRONG: &str = "plugh-is-not-the-password";

fn nothing_secret_is_ever_said(case: Case) {
    let mut server = Setup::new(case).user("ann", PASSWORD, "admin", "").log("trace").start();
    let token = server.token("admin");
    let viewer = server.token("viewer");
    let bad = format!("{viewer}x");
    let mut heard = Vec::new();
    let mut hear =
        |client: &mut Client, method: &str, target: &str, fields: &[&str], body: &str| {
            let response = client.try_request(method, target, fields, body.as_bytes());
            heard.push(response.map_or_else(
                |error| error.to_string(),
                |response| format!("{response:?}{}", response.text()),
            ));
        };
    for token in [&token, &viewer, &bad] {
        let field = format!("Authorization: Bearer {token}");
        for (method, target, body) in requests(token) {
            hear(&mut server.connect(), method, &target, &[&field], &body);
            hear(&mut server.connect(), method, &target, &[], &body);
        }
        let target = format!("/api/v1/sse/stream/A?token={token}");
        if let Ok(mut events) = Events::try_open(server.connect(), &target, &[]).expect("it answers") {
            events.expect("connected");
        }
        let broken = format!("GET /?token={token} HTTP/1.1\r\n{field}\r\nHost : a\r\n\r\n");
        let mut client = server.connect();
        client.send(broken.as_bytes()).expect("it sends");
        assert_eq!(client.response(false).expect("it answers").status, 400);
    }
    for password in [PASSWORD, WRONG] {
        for username in ["ann", "nobody", password] {
            let body = format!("{{\"username\":\"{username}\",\"password\":\"{password}\"}}");
            let response = server.connect().post("/api/v1/auth/login", &body);
            // A good answer holds a new token, and must; it holds no password.
            assert!(!response.text().contains(password), "{}", response.text());
        }
        hear(
            &mut server.connect(),
            "POST",
            "/api/v1/auth/login",
            &[],
            &format!("{{\"password\":\"{password}"),
        );
    }
    heard.push(server.connect_as("admin").get("/metrics").text());
    assert_eq!(server.terminate().code(), Some(0));
    heard.push(server.said());
    assert!(server.said().contains("\"level\":"), "it logs nothing: {}", server.said());
    let secrets = [SECRET, PASSWORD, WRONG, last_part(&token), last_part(&viewer), last_part(&bad)];
    for (secret, text) in secrets.iter().flat_map(|secret| heard.iter().map(move |text| (secret, text))) {
        assert!(!text.contains(secret), "{secret} is said in\n{text}");
    }
    let users = server.directory().join("users.toml");
    let text = std::fs::read_to_string(&users).expect("it is there");
    assert!(!text.contains(PASSWORD) && text.contains("$argon2id$"), "{text}");
    assert_eq!(
        std::fs::metadata(&users).expect("it is there").permissions().mode() & 0o077,
        0,
        "others can read it"
    );
}

/// Requests that hold a token where it belongs, and where it does not.
fn requests(token: &str) -> [(&'static str, String, String); 9] {
    [
        ("GET", "/api/v1/wells".to_owned(), String::new()),
        ("GET", format!("/api/v1/wells?token={token}"), String::new()),
        ("GET", format!("/api/v1/wells/{token}/latest"), String::new()),
        ("GET", format!("/{token}"), String::new()),
        ("BREW", format!("/api/v1/wells?token={token}"), String::new()),
        ("POST", INGEST.into(), reading("A", 1, 1)),
        ("POST", INGEST.into(), format!("{{\"well_id\":7,\"token\":\"{token}\"}}")),
        ("POST", INGEST.into(), format!("{{\"{token}")),
        ("GET", format!("/api/v1/wells/A/telemetry?limit={token}"), String::new()),
    ]
}

/// A token's signature: the rest of it is no secret by itself.
fn last_part(token: &str) -> &str {
    token.rsplit('.').next().unwrap_or(token)
}

/// Readings whose texts would end a line, an event or a frame if anything wrote them as they are.
fn evil() -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        (
            "A\\r\\nevent: error\\r\\ndata: x",
            "\"v\":\"\\n\\nid: 99\\nevent: alert\\ndata: owned\\n\\n\"".into(),
        ),
        ("\\u2028B\\u2029", "\"v\":\"\u{2028}\u{2029}\\u0085\u{85}\\u0000\"".into()),
        ("C\\u000aid: 5", "\"\\r\\n\\r\\nid: 7\":\"\\u000d\\u000a\"".into()),
        ("D\\\" onload=\\\"", "\"v\":\"</script><script>\\u003c\"".into()),
        ("E", "\"v\":[\r\n\r\n1,\r\n2\r]".into()),
        ("F", "\"v\":{\n\n\"id\"\n:\n\"data: x\"\n}".into()),
    ])
}

fn nothing_is_slipped_into_a_stream(case: Case) {
    let server = Setup::new(case).start();
    let mut client = server.connect_as("admin");
    for (well, fields) in evil() {
        let id: String = serde_json::from_str(&format!("\"{well}\"")).expect("JSON");
        let level: String = id.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let mut events = server.stream(&level, &[], "");
        assert_eq!(events.expect("connected").json()["well_id"], *id, "{well}");
        let body = format!("[{{\"well_id\":\"{well}\",{fields}}}]");
        let response = client.post(INGEST, &body);
        assert_eq!(response.status, 202, "{body}: {}", response.text());
        assert_eq!(
            client
                .post("/api/v1/alerts", &format!("{{\"well_id\":\"{well}\",\"type\":\"t\",{fields}}}"))
                .status,
            202
        );
        // The parser of these tests takes no line that is not a field, and no field twice.
        let sent: serde_json::Value = serde_json::from_str(&format!("{{{fields}}}")).expect("JSON");
        for (name, member) in [("telemetry_update", "data"), ("alert", "alert")] {
            let event = events.expect(name);
            let data = event.json();
            assert_eq!(data["well_id"], *id, "{event:?}");
            for (name, value) in sent.as_object().into_iter().flatten() {
                assert_eq!(&data[member][name], value, "{event:?}");
            }
            assert_eq!(event.data.lines().count(), 1, "{event:?}");
        }
        let latest = client.get(&format!("/api/v1/wells/{level}/latest"));
        assert_eq!((latest.status, &latest.json()["well_id"]), (200, &id.into()));
    }
    for (well, status) in [("A\\u0000", 422), ("", 422), (&*"x".repeat(4000), 422)] {
        let response = client.post(INGEST, &format!("{{\"well_id\":\"{well}\",\"v\":1}}"));
        assert_eq!(response.status, status, "{well}: {}", response.text());
    }
    for level in ["%00", "A%00B", "%ff", "%C0%80"] {
        let response = client.get(&format!("/api/v1/wells/{level}/latest"));
        assert_eq!(response.status, 400, "{level}: {}", response.text());
    }
}
