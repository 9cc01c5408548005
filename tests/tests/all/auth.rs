//! Who may do what: passwords, tokens, roles and wells.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use tests::client::{Client, Events, Response};
use tests::on;
use tests::reading::{INGEST, Publisher, Shape, reading};
use tests::server::{Case, SECRET, Server, Setup};

on! {
    a_login_gives_a_token: uring_2 epoll_1;
    a_refresh_gives_a_younger_token: uring_2 epoll_1;
    roles_decide_what_one_may_do: uring_2 epoll_1;
    wells_are_filtered_everywhere: uring_2 epoll_2;
    a_stream_without_a_token_says_so_as_a_stream: uring_1 epoll_1;
    forged_tokens_are_refused: uring_1 epoll_2;
    good_tokens_are_taken_where_they_may_stand: uring_1 epoll_2;
    a_stream_ends_with_its_token: uring_1 uring_2 epoll_1 epoll_2;
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is set").as_secs()
}

/// What a refusal says of itself.
fn refusal(response: &Response) -> (u16, String) {
    (response.status, response.json()["error"].as_str().unwrap_or_default().to_owned())
}

/// What a token claims, unverified.
fn claims(token: &str) -> serde_json::Value {
    let payload = token.split('.').nth(1).and_then(|payload| URL_SAFE_NO_PAD.decode(payload).ok());
    payload
        .and_then(|payload| serde_json::from_slice(&payload).ok())
        .unwrap_or_else(|| panic!("claims of {token}"))
}

fn a_login_gives_a_token(case: Case) {
    let server = Setup::new(case)
        .user("ann", "correct horse", "ingest", "")
        .user("bob", "battery staple", "viewer", "wells/B")
        .set("auth.token_ttl = \"30m\"")
        .start();
    let mut client = server.connect();
    for path in ["/api/v1/auth/login", "/auth/login"] {
        let response = client.post(path, r#"{"username":"ann","password":"correct horse"}"#);
        assert_eq!(response.status, 200, "{}", response.text());
        let answer = response.json();
        assert_eq!((&answer["token_type"], &answer["expires_in"]), (&"Bearer".into(), &1800.into()));
        let token = answer["access_token"].as_str().unwrap_or_default();
        let claims = claims(token);
        assert_eq!((&claims["sub"], &claims["role"]), (&"ann".into(), &"ingest".into()), "{claims}");
        let left = claims["exp"].as_u64().unwrap_or(0).saturating_sub(now());
        assert!((1700..=1800).contains(&left), "{claims}");
        let mut ingester = server.connect().with_token(token);
        assert_eq!(ingester.post(INGEST, &reading("A", 1, 1)).status, 202);
    }
    for (body, status) in [
        (r#"{"username":"ann","password":"Correct horse"}"#, 401),
        (r#"{"username":"ann","password":"correct hors"}"#, 401),
        (r#"{"username":"ann","password":"battery staple"}"#, 401),
        (r#"{"username":"nobody","password":"correct horse"}"#, 401),
        (r#"{"username":"ann","password":""}"#, 400),
        (r#"{"username":"ann"}"#, 400),
        (r#"{"username":["ann"],"password":"correct horse"}"#, 400),
        ("username=ann&password=correct+horse", 400),
        ("", 400),
    ] {
        let response = client.post("/api/v1/auth/login", body);
        let error = if status == 401 { "AuthenticationError" } else { "ValidationError" };
        assert_eq!(refusal(&response), (status, error.into()), "{body}");
        assert!(!response.text().contains("access_token"), "{body}");
    }
    let answer =
        client.post("/api/v1/auth/login", r#"{"username":"bob","password":"battery staple"}"#).json();
    assert_eq!(claims(answer["access_token"].as_str().unwrap_or_default())["wells"][0], "wells/B");
}

fn a_refresh_gives_a_younger_token(case: Case) {
    let server = Setup::new(case).start();
    let old = server.token_for("ingest", &["wells/A"], "2m");
    let mut client = server.connect().with_token(&old);
    let answer = client.post("/api/v1/auth/refresh", "").json();
    let young = answer["access_token"].as_str().unwrap_or_default();
    assert_eq!(answer["expires_in"], 3600);
    let (before, after) = (claims(&old), claims(young));
    for claim in ["sub", "role", "wells", "username"] {
        assert_eq!(before[claim], after[claim], "{claim}");
    }
    assert!(after["exp"].as_u64() > before["exp"].as_u64().map(|exp| exp + 3000), "{before} {after}");
    let mut client = server.connect().with_token(young);
    assert_eq!(client.post(INGEST, &reading("A", 1, 1)).status, 202);
    assert_eq!(
        refusal(&server.connect().post("/api/v1/auth/refresh", "")),
        (401, "AuthenticationError".into())
    );
}

fn roles_decide_what_one_may_do(case: Case) {
    let server = Setup::new(case).start();
    for (role, publishes) in [("admin", true), ("ingest", true), ("operator", false), ("viewer", false)] {
        let mut client = server.connect_as(role);
        for (path, body) in [
            (INGEST, reading("A", 1, 1)),
            ("/api/v1/alerts", r#"{"well_id":"A","type":"hot"}"#.into()),
            ("/api/v1/diagnostics", r#"{"well_id":"A","x":1}"#.into()),
        ] {
            let response = client.post(path, &body);
            if publishes {
                assert_eq!(response.status, 202, "{role} {path}: {}", response.text());
            } else {
                assert_eq!(refusal(&response), (403, "AuthorizationError".into()), "{role} {path}");
            }
        }
        assert_eq!(client.get("/api/v1/wells").status, 200, "{role}");
        server.stream("A", &[], "").expect("connected");
    }
    for (method, path) in [("POST", INGEST), ("GET", "/api/v1/wells"), ("GET", "/api/v1/wells/A/latest")] {
        let response = server.connect().request(method, path, &[], b"");
        assert_eq!(refusal(&response), (401, "AuthenticationError".into()), "{path}");
        assert!(
            response.field("www-authenticate").is_some_and(|value| value.starts_with("Bearer")),
            "{path}"
        );
    }
    // A token without a role is a viewer's.
    let token =
        forge(r#"{"alg":"HS256","typ":"JWT"}"#, &format!(r#"{{"sub":"x","exp":{}}}"#, now() + 600), SECRET);
    let mut client = server.connect().with_token(&token);
    assert_eq!(client.get("/api/v1/wells").status, 200);
    assert_eq!(client.post(INGEST, &reading("A", 1, 1)).status, 403);
}

fn wells_are_filtered_everywhere(case: Case) {
    let server = Setup::new(case).start();
    for well in ["A", "B", "C"] {
        Publisher::new(&server, well, 1).publish(1, Shape::Single);
    }
    let token = server.token_for("ingest", &["wells/A", "wells/C"], "1h");
    let mut client = server.connect().with_token(&token);
    for (well, may) in [("A", true), ("B", false), ("C", true), ("D", false), ("%2B", false), ("%23", false)]
    {
        let id = well.replace("%2B", "+").replace("%23", "#");
        let published = client.post(INGEST, &reading(&id, 1, 2));
        assert_eq!(published.status, if may { 202 } else { 403 }, "{well}: {}", published.text());
        for path in ["telemetry", "latest"] {
            let status = client.get(&format!("/api/v1/wells/{well}/{path}")).status;
            assert_eq!(status, if may { 200 } else { 403 }, "{well} {path}");
        }
        let target = format!("/api/v1/sse/stream/{well}?token={token}");
        match Events::try_open(server.connect(), &target, &[]).expect("it answers") {
            Ok(mut events) => assert!(may && events.expect("connected").offset() == 2, "{well}"),
            Err(response) => assert!(!may && response.status == 403, "{well}: {response:?}"),
        }
    }
    // One foreign row keeps the whole request out.
    let mixed = format!("[{},{}]", reading("A", 1, 3), reading("B", 1, 3));
    assert_eq!(refusal(&client.post(INGEST, &mixed)), (403, "AuthorizationError".into()));
    assert_eq!(client.get("/api/v1/wells/A/latest").json()["data"]["number"], 2);
    let listing = client.get("/api/v1/wells").json();
    let wells: Vec<_> =
        listing["wells"].as_array().into_iter().flatten().map(|well| &well["well_id"]).collect();
    assert!(wells.len() == 2 && wells.iter().all(|well| *well == "A" || *well == "C"), "{listing}");
    let none =
        server.connect().with_token(&server.token_for("viewer", &["wells/Z/#"], "1h")).get("/api/v1/wells");
    assert_eq!(none.json()["count"], 0);
}

/// Asks for a stream without a good token, and gives the answer.
fn refused_stream(server: &Server, query: &str) -> Response {
    let target = format!("/api/v1/sse/stream/A{query}");
    match Events::try_open(server.connect(), &target, &[]).expect("it answers") {
        Err(response) => response,
        Ok(_) => panic!("{query}: the stream is open"),
    }
}

fn a_stream_without_a_token_says_so_as_a_stream(case: Case) {
    let server = Setup::new(case).start();
    for query in ["", "?token=", "?token=nonsense", "?token=a.b.c", "?Token=x"] {
        let response = refused_stream(&server, query);
        assert_eq!(response.status, 401, "{query}");
        assert_eq!(response.field("content-type"), Some("text/event-stream"), "{query}");
        assert_eq!(
            response.text(),
            "event: error\ndata: {\"error\":\"AuthenticationError\",\"message\":\"Invalid or expired authentication token\"}\n\n",
            "{query}"
        );
    }
}

/// A token of any header and payload, signed with HMAC-SHA256.
fn forge(header: &str, payload: &str, secret: &str) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let key = EncodingKey::from_secret(secret.as_bytes());
    let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).expect("HMAC signs anything");
    format!("{message}.{signature}")
}

const HS256: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// Headers that a verifier must not follow.
const TRICKS: &[&str] = &[
    r#"{"alg":"none"}"#,
    r#"{"alg":"None","typ":"JWT"}"#,
    r#"{"alg":"RS256","typ":"JWT"}"#,
    r#"{"alg":"ES256","typ":"JWT"}"#,
    r#"{"alg":"HS384","typ":"JWT"}"#,
    r#"{"alg":"HS512","typ":"JWT"}"#,
    r#"{"alg":"hs256","typ":"JWT"}"#,
    r#"{"alg":["HS256"]}"#,
    r#"{"alg":null}"#,
    r#"{"typ":"JWT"}"#,
    "[]",
    "HS256",
    r#"{"alg":"HS256","crit":["exp"],"exp":1}"#,
];

/// Header members that name a key of the forger's own. The key they point at here signs "".
const KEYS: &[&str] = &[
    r#""kid":"../../../../dev/null""#,
    r#""kid":"' UNION SELECT ''--""#,
    r#""kid":"/dev/null\u0000""#,
    r#""jwk":{"kty":"oct","k":""}"#,
    r#""jku":"http://127.0.0.1:1/keys""#,
    r#""x5u":"http://127.0.0.1:1/cert""#,
];

fn forged_tokens_are_refused(case: Case) {
    let server = Setup::new(case).start();
    let future = now() + 600;
    let good = format!(r#"{{"sub":"x","role":"admin","exp":{future}}}"#);
    let mut tokens: Vec<String> = TRICKS.iter().map(|header| forge(header, &good, SECRET)).collect();
    tokens.extend(KEYS.iter().map(|key| forge(&format!(r#"{{"alg":"HS256",{key}}}"#), &good, "")));
    for payload in [
        r#"{"sub":"x","role":"admin"}"#.to_owned(),
        format!(r#"{{"sub":"x","role":"admin","exp":"{future}"}}"#),
        format!(r#"{{"sub":"x","role":"admin","exp":{}}}"#, now() - 600),
        r#"{"sub":"x","role":"admin","exp":null}"#.into(),
        r#"{"sub":"x","role":"admin","exp":-1}"#.into(),
        r#"{"sub":"x","role":"admin","exp":[99999999999]}"#.into(),
        format!(r#"{{"sub":"x","role":"admin","exp":{future},"nbf":{}}}"#, now() + 500),
        format!(r#"{{"sub":"x","role":"admin","exp":{future},"nbf":"soon"}}"#),
        format!(r#"{{"sub":"x","role":"root","exp":{future}}}"#),
        format!(r#"{{"sub":"x","role":["admin"],"exp":{future}}}"#),
        format!(r#"{{"sub":"x","role":"admin","wells":"wells/#","exp":{future}}}"#),
        format!(r#"{{"sub":"x","role":"admin","wells":["wells/#/A"],"exp":{future}}}"#),
        format!(r#"[{good}]"#),
        r#""admin""#.into(),
        "null".into(),
        "{".into(),
        String::new(),
    ] {
        tokens.push(forge(HS256, &payload, SECRET));
    }
    let signed = forge(HS256, &good, SECRET);
    let (message, signature) = signed.rsplit_once('.').expect("a token has three parts");
    tokens.push(forge(HS256, &good, "another-secret-of-enough-bytes-for-hs256"));
    tokens.extend([format!("{message}."), message.into(), format!("{signed}.x"), format!("{signed}=")]);
    tokens.push(format!("{message}.{}", signature.to_lowercase()));
    tokens.push(format!(
        "{}.{}.",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#),
        URL_SAFE_NO_PAD.encode(&good)
    ));
    for token in &tokens {
        let mut client = server.connect().with_token(token);
        for path in ["/api/v1/wells", "/api/v1/wells/A/latest"] {
            let response = client.get(path);
            assert_eq!(refusal(&response), (401, "AuthenticationError".into()), "{token}");
        }
        assert_eq!(refused_stream(&server, &format!("?token={token}")).status, 401, "{token}");
    }
    // A token that fits no header is refused by its size, before anybody looks into it; one in the query, by the target's.
    let long = forge(HS256, &format!(r#"{{"sub":"{}","exp":{future}}}"#, "x".repeat(15_000)), SECRET);
    assert!(long.len() > 20_000);
    assert_eq!(server.connect().with_token(&long).get("/api/v1/wells").status, 431);
    assert_eq!(server.connect().get(&format!("/api/v1/wells?token={long}")).status, 414);
}

fn good_tokens_are_taken_where_they_may_stand(case: Case) {
    let server = Setup::new(case).start();
    let token = forge(HS256, &format!(r#"{{"sub":"x","exp":{},"nbf":{}}}"#, now() + 600, now() - 5), SECRET);
    for (field, query) in [
        (format!("Authorization: Bearer {token}"), String::new()),
        (format!("authorization:  bearer   {token} "), String::new()),
        ("X: y".into(), format!("?token={token}")),
        ("X: y".into(), format!("?a=b&token={}", token.replace('.', "%2E"))),
    ] {
        let response = server.connect().request("GET", &format!("/api/v1/wells{query}"), &[&field], b"");
        assert_eq!(response.status, 200, "{field} {query}");
    }
    for (field, query) in [
        (format!("Authorization: {token}"), String::new()),
        (format!("Authorization: Basic {token}"), String::new()),
        (format!("Cookie: token={token}"), String::new()),
        ("X: y".into(), format!("?access_token={token}")),
        // The field goes before the query, so that nobody's good token lends its rights to a bad one.
        ("Authorization: Bearer nonsense".into(), format!("?token={token}")),
    ] {
        let response = server.connect().request("GET", &format!("/api/v1/wells{query}"), &[&field], b"");
        assert_eq!(response.status, 401, "{field} {query}");
    }
}

fn a_stream_ends_with_its_token(case: Case) {
    let server = Setup::new(case).start();
    let mut publisher = Publisher::new(&server, "A", 1);
    let exp = now() + 3;
    let token = forge(HS256, &format!(r#"{{"sub":"x","role":"viewer","exp":{exp}}}"#), SECRET);
    let target = format!("/api/v1/sse/stream/A?token={token}");
    let mut short: Vec<Events> =
        (0..3).map(|_| Events::open(Client::connect(server.address()), &target, &[])).collect();
    let mut long = server.stream("A", &[], "");
    publisher.publish(2, Shape::Array);
    for events in &mut short {
        events.expect("connected");
        assert_eq!(events.expect("telemetry_update").offset(), 1);
        assert_eq!(events.expect("telemetry_update").offset(), 2);
        let error = events.expect("error");
        assert_eq!(error.json()["error"], "AuthenticationError", "{error:?}");
        assert_eq!(error.id, None, "an error is no position");
        assert_eq!(events.try_next().expect("it closes"), None);
        assert!((exp..=exp + 2).contains(&now()), "it ends at {}, the token at {exp}", now());
    }
    assert_eq!(refused_stream(&server, &format!("?token={token}")).status, 401);
    publisher.publish(1, Shape::Single);
    long.expect("connected");
    (1..=3).for_each(|offset| assert_eq!(long.expect("telemetry_update").offset(), offset));
}
