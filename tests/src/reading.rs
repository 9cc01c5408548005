//! What publishers send, and what must arrive of it: every reading names its publisher and its number.

use std::collections::BTreeMap;
use std::io;

use crate::client::{Client, Event, Events, Response};
use crate::server::Server;

/// Where readings go.
pub const INGEST: &str = "/api/v1/telemetry/ingest";

/// How the readings of one request stand in its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One object; as many requests as readings.
    Single,
    /// A JSON array.
    Array,
    /// One object per line.
    Lines,
}

/// The three.
pub const SHAPES: [Shape; 3] = [Shape::Single, Shape::Array, Shape::Lines];

/// One reading as JSON. The numbers are spelled as no float is printed: they must pass through untouched.
pub fn reading(well: &str, publisher: u64, number: u64) -> String {
    format!(
        "{{\"well_id\":\"{well}\",\"publisher\":{publisher},\"number\":{number},\"flow_rate\":1000.50,\"pip\":2.0e3}}"
    )
}

/// As [`reading`], as long as `bytes` more.
pub fn long_reading(well: &str, publisher: u64, number: u64, bytes: usize) -> String {
    let short = reading(well, publisher, number);
    format!("{},\"fill\":\"{}\"}}", &short[..short.len() - 1], "x".repeat(bytes))
}

/// Which reading an event or a history row carries: publisher and number.
pub type Mark = (u64, u64);

/// The reading that `data` is, if it is one of ours.
pub fn mark(data: &serde_json::Value) -> Option<Mark> {
    Some((data["publisher"].as_u64()?, data["number"].as_u64()?))
}

/// Somebody who publishes to one well, over one connection at a time.
#[derive(Debug)]
pub struct Publisher {
    client: Client,
    /// The well.
    pub well: String,
    /// Who.
    pub publisher: u64,
    /// How many it has tried to publish; the next reading has this number.
    pub sent: u64,
    /// What was acknowledged, by offset.
    pub acked: BTreeMap<u64, Mark>,
}

impl Publisher {
    /// Connects.
    pub fn new(server: &Server, well: &str, publisher: u64) -> Self {
        Self::over(server.connect_as("ingest"), well, publisher)
    }

    /// Publishes over this connection.
    pub fn over(client: Client, well: &str, publisher: u64) -> Self {
        Self { client, well: well.into(), publisher, sent: 0, acked: BTreeMap::new() }
    }

    /// Connects to a server that has been started again, and goes on.
    pub fn reconnect(&mut self, server: &Server) {
        self.client = server.connect_as("ingest");
    }

    /// Publishes `count` readings; panics unless they are acknowledged.
    pub fn publish(&mut self, count: u64, shape: Shape) {
        let published = self.try_publish(count, shape);
        published.unwrap_or_else(|error| panic!("publisher {}: {error}", self.publisher));
    }

    /// As [`publish`](Self::publish).
    ///
    /// # Errors
    /// As the socket, or if the server is busy (503). The readings may have been published or not.
    pub fn try_publish(&mut self, count: u64, shape: Shape) -> io::Result<()> {
        if shape == Shape::Single && count > 1 {
            return (0..count).try_for_each(|_| self.try_publish(1, shape));
        }
        let numbers = self.sent..self.sent + count;
        self.sent += count;
        let rows: Vec<String> =
            numbers.clone().map(|number| reading(&self.well, self.publisher, number)).collect();
        let (content_type, body) = match shape {
            Shape::Single => ("application/json", rows.concat()),
            Shape::Array => ("application/json", format!("[{}]", rows.join(","))),
            Shape::Lines => ("application/x-ndjson", rows.join("\n")),
        };
        let content_type = format!("Content-Type: {content_type}");
        let response = self.client.try_request("POST", INGEST, &[&content_type], body.as_bytes())?;
        if response.status == 503 {
            return Err(io::Error::other("the server is busy"));
        }
        for (offset, number) in offsets(&response, count).into_iter().zip(numbers) {
            let before = self.acked.insert(offset, (self.publisher, number));
            assert_eq!(before, None, "offset {offset} was given twice");
        }
        Ok(())
    }
}

/// The offsets a 202 names; panics if it is none, or not for `count` readings.
pub fn offsets(response: &Response, count: u64) -> Vec<u64> {
    assert_eq!(response.status, 202, "{response:?} {}", response.text());
    let body = response.json();
    assert_eq!(body["accepted"].as_u64(), Some(count), "{body}");
    let offsets: Option<Vec<u64>> = body["offsets"]
        .as_array()
        .map(|offsets| offsets.iter().filter_map(serde_json::Value::as_u64).collect());
    let offsets = offsets.unwrap_or_else(|| panic!("no offsets in {body}"));
    assert_eq!(offsets.len() as u64, count, "{body}");
    offsets
}

/// What a subscriber has been sent: offsets and what they carry, and holds it to the rules.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Readings by offset.
    pub readings: BTreeMap<u64, Mark>,
    /// Alerts by offset: their `type`.
    pub alerts: BTreeMap<u64, String>,
    /// What gaps have said: from, to, reason.
    pub gaps: Vec<(u64, u64, String)>,
    /// The newest offset.
    pub last: u64,
}

impl Seen {
    /// Nothing yet, of a stream that begins after `offset`.
    pub fn after(offset: u64) -> Self {
        Self { last: offset, ..Self::default() }
    }

    /// Takes an event: offsets only grow, and nothing comes twice.
    pub fn take(&mut self, event: &Event) {
        match &*event.name {
            "telemetry_update" | "alert" => {
                let offset = event.offset();
                assert!(offset > self.last, "{offset} comes after {}: {event:?}", self.last);
                self.last = offset;
                let data = event.json();
                if event.name == "alert" {
                    let kind = data["alert"]["type"].as_str().unwrap_or_default().to_owned();
                    self.alerts.insert(offset, kind);
                } else {
                    let mark = mark(&data["data"]).unwrap_or_else(|| panic!("no mark in {event:?}"));
                    assert!(
                        event.data.contains("\"flow_rate\":1000.50,\"pip\":2.0e3"),
                        "numbers were written anew: {event:?}"
                    );
                    self.readings.insert(offset, mark);
                }
            }
            "gap" => {
                let gap = event.json();
                let reason = gap["reason"].as_str().unwrap_or_default().to_owned();
                match (gap["from"].as_u64(), gap["to"].as_u64()) {
                    (Some(from), Some(to)) if from <= to => self.gaps.push((from, to, reason)),
                    _ => panic!("a gap without bounds: {event:?}"),
                }
            }
            "connected" => assert!(event.offset() <= self.last, "{event:?} is ahead of {}", self.last),
            "heartbeat" => assert_eq!(event.offset(), self.last, "{event:?}"),
            _ => panic!("what is that? {event:?}"),
        }
    }

    /// Reads on until `offset` has come.
    pub fn read_to(&mut self, events: &mut Events, offset: u64) {
        while self.last < offset {
            self.take(&events.event());
        }
    }

    /// Whether a gap covers the offset.
    pub fn was_told_of(&self, offset: u64) -> bool {
        self.gaps.iter().any(|&(from, to, _)| (from..=to).contains(&offset))
    }

    /// Panics unless it is exactly `published`, without a gap, and in each publisher's order.
    pub fn must_be(&self, published: &BTreeMap<u64, Mark>) {
        assert!(self.gaps.is_empty(), "{:?}", self.gaps);
        let missing: Vec<_> =
            published.iter().filter(|(offset, _)| !self.readings.contains_key(offset)).collect();
        assert!(missing.is_empty(), "{} of {} are missing: {missing:?}", missing.len(), published.len());
        assert_eq!(&self.readings, published);
        assert_in_order(published);
    }
}

/// Panics unless each publisher's numbers grow with the offsets.
pub fn assert_in_order(readings: &BTreeMap<u64, Mark>) {
    let mut newest: BTreeMap<u64, u64> = BTreeMap::new();
    for (offset, &(publisher, number)) in readings {
        if let Some(before) = newest.insert(publisher, number) {
            assert!(number > before, "publisher {publisher}: {number} after {before} at offset {offset}");
        }
    }
}

/// A generator of test choices: the same seed, the same choices (xorshift64*).
#[derive(Clone, Debug)]
pub struct Choices(u64);

impl Choices {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: u64, name: &str, data: &str) -> Event {
        Event { id: Some(id.to_string()), name: name.into(), data: data.into(), retry: None }
    }

    fn update(id: u64, number: u64) -> Event {
        event(id, "telemetry_update", &format!("{{\"data\":{}}}", reading("A", 1, number)))
    }

    #[test]
    fn what_is_in_order_and_whole_passes() {
        let mut seen = Seen::after(4);
        seen.take(&event(4, "connected", "{}"));
        for (offset, number) in [(5, 0), (6, 1), (9, 2)] {
            seen.take(&update(offset, number));
        }
        seen.must_be(&BTreeMap::from([(5, (1, 0)), (6, (1, 1)), (9, (1, 2))]));
    }

    #[test]
    fn what_is_not_does_not() {
        let fails = |act: &dyn Fn(&mut Seen)| {
            let mut seen = Seen::after(4);
            seen.take(&update(5, 0));
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(&mut seen))).is_err()
        };
        assert!(fails(&|seen| seen.take(&update(5, 1))));
        assert!(fails(&|seen| seen.take(&update(4, 1))));
        assert!(fails(&|seen| seen.take(&event(9, "heartbeat", "{}"))));
        assert!(fails(&|seen| seen.take(&event(6, "connected", "{}"))));
        assert!(fails(&|seen| seen.must_be(&BTreeMap::from([(5, (1, 0)), (6, (1, 1))]))));
        assert!(fails(&|seen| seen.must_be(&BTreeMap::from([(5, (1, 1))]))));
        assert!(fails(&|seen| seen.must_be(&BTreeMap::new())));
        assert!(fails(&|_| assert_in_order(&BTreeMap::from([(1, (1, 1)), (2, (2, 0)), (3, (1, 0))]))));
        assert!(!fails(&|seen| seen.take(&update(6, 1))));
    }
}
