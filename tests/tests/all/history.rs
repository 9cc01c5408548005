//! Reading back what was stored.

use tests::on;
use tests::reading::{INGEST, Publisher, Shape, offsets};
use tests::server::{Case, Setup};

on! {
    wells_are_listed_with_their_newest: uring_2 epoll_1;
    telemetry_is_read_back_as_it_was_sent: uring_2 epoll_1;
    intervals_and_limits_hold: uring_2 epoll_1;
}

fn wells_are_listed_with_their_newest(case: Case) {
    let server = Setup::new(case).start();
    for (well, count) in [("A", 3), ("B", 1), ("C", 2)] {
        Publisher::new(&server, well, 1).publish(count, Shape::Array);
    }
    let listing = server.connect_as("viewer").get("/api/v1/wells");
    assert_eq!((listing.status, listing.field("content-type")), (200, Some("application/json")));
    let listing = listing.json();
    assert_eq!(listing["count"], 3);
    let mut wells: Vec<(&str, u64)> = listing["wells"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|well| Some((well["well_id"].as_str()?, well["last_offset"].as_u64()?)))
        .collect();
    wells.sort_unstable();
    assert_eq!(wells, [("A", 3), ("B", 1), ("C", 2)]);
}

fn telemetry_is_read_back_as_it_was_sent(case: Case) {
    let server = Setup::new(case).start();
    let mut client = server.connect_as("ingest");
    let fields = r#""timestamp":"2025-11-20T10:30:00+02:00","flow_rate":1000.50,"big":123456789012345678901234567890,"tag":"\u00e9é\u2028","nested":{"well_id":[1.0]}"#;
    let body = format!("{{\"well_id\":\"A/1\",{fields}}}");
    assert_eq!(offsets(&client.post(INGEST, &body), 1), [1]);
    let mut viewer = server.connect_as("viewer");
    for path in ["telemetry", "latest", "telemetry/latest"] {
        let answer = viewer.get(&format!("/api/v1/wells/A%2F1/{path}"));
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert!(answer.text().contains(fields), "{path}: {}", answer.text());
        assert_eq!(answer.json()["well_id"], "A/1", "{path}");
    }
    // Alerts are no telemetry: they don't take the newest reading's place.
    assert_eq!(offsets(&client.post("/api/v1/alerts", r#"{"well_id":"A/1","type":"hot"}"#), 1), [2]);
    let latest = viewer.get("/api/v1/wells/A%2F1/latest").json();
    assert_eq!(latest["offset"], 1, "{latest}");
    for path in ["nobody/latest", "nobody/telemetry/latest"] {
        let answer = viewer.get(&format!("/api/v1/wells/{path}"));
        assert_eq!((answer.status, answer.json()["error"].as_str()), (404, Some("NotFound")), "{path}");
    }
}

fn intervals_and_limits_hold(case: Case) {
    let server = Setup::new(case).start();
    let mut publisher = Publisher::new(&server, "A", 1);
    publisher.publish(10, Shape::Lines);
    let mut client = server.connect_as("viewer");
    let mut ask = |query: &str| client.get(&format!("/api/v1/wells/A/telemetry{query}"));
    let everything = ask("").json();
    let rows = everything["telemetry"].as_array().cloned().unwrap_or_default();
    assert_eq!(rows.len(), 10, "{everything}");
    let time = |row: usize| rows[row]["timestamp"].as_str().unwrap_or_default().to_owned();
    for (query, offsets) in [
        ("?limit=3".to_owned(), Some(8..=10)),
        ("?from=2000-01-01T00:00:00Z&to=2100-01-01T00:00:00Z".into(), Some(1..=10)),
        (format!("?from={}&to={}", time(0), time(9)), Some(1..=10)),
        ("?to=2000-01-01T00:00:00Z".into(), None),
        ("?from=2100-01-01T00:00:00Z".into(), None),
    ] {
        let answer = ask(&query).json();
        let found = answer["telemetry"].as_array().cloned().unwrap_or_default();
        let found: Vec<u64> = found.iter().filter_map(|row| row["offset"].as_u64()).collect();
        assert_eq!(found, offsets.into_iter().flatten().collect::<Vec<u64>>(), "{query}");
    }
    for query in ["?limit=0", "?limit=x", "?limit=-1", "?limit=99999999", "?from=yesterday", "?from=2&to=1"] {
        let answer = ask(query);
        assert_eq!(
            (answer.status, answer.json()["error"].as_str()),
            (400, Some("ValidationError")),
            "{query}"
        );
    }
}
