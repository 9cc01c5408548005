//! What the server says of itself.

use std::sync::atomic::Ordering;

use super::{Phase, Shard};
use crate::metrics::{self, Counter, Facts};
use crate::ring::{Key, Ring};
use crate::session::Page;

/// The page at `/`: the wells, live.
const INDEX: &[u8] = include_bytes!("../../web/index.html");
/// A shard that has not turned for this long is stuck, ms.
const STUCK: u64 = 5000;

impl<R: Ring> Shard<R> {
    pub(super) fn page(&mut self, key: Key, page: Page) {
        let (status, content_type, body) = match page {
            Page::Index => (200, "text/html; charset=utf-8", INDEX.to_vec()),
            Page::Metrics => (200, "text/plain; version=0.0.4; charset=utf-8", self.exposition()),
            Page::Healthz => self.healthz(),
            Page::Readyz => self.readyz(),
            Page::Health => {
                let mut body = b"{\"status\":\"ok\",\"timestamp\":\"".to_vec();
                protocol::time::write_rfc3339(self.now.wall, &mut body);
                body.extend_from_slice(b"\"}");
                (200, "application/json", body)
            }
            Page::Version => {
                let version = env!("CARGO_PKG_VERSION");
                let ring = self.ring.name();
                let body = format!("{{\"name\":\"wellhead\",\"version\":\"{version}\",\"ring\":\"{ring}\"}}");
                (200, "application/json", body.into_bytes())
            }
        };
        let Some(connection) = self.connections.get(key) else { return };
        let mut out = Vec::new();
        let cx = Self::context(&self.site, &self.metrics, self.now, self.phase);
        let goes_on = connection.session.answer_page(status, content_type, &body, &cx, &mut out);
        self.answered(key, &out, goes_on);
    }

    fn exposition(&self) -> Vec<u8> {
        let facts = Facts { ring: self.ring.name(), resident_bytes: resident_bytes() };
        let mut text = metrics::exposition(&self.all_metrics, &facts);
        metrics::store_exposition(&self.store_metrics, &mut text);
        text.into_bytes()
    }

    /// Alive: every shard's loop turns.
    fn healthz(&self) -> (u16, &'static str, Vec<u8>) {
        let now = self.now.millis();
        let stuck = self.state.turns.iter().position(|turn| {
            let turn = turn.load(Ordering::Relaxed);
            turn > 0 && turn + STUCK < now
        });
        match stuck {
            None => (200, "text/plain", b"ok\n".to_vec()),
            Some(shard) => (503, "text/plain", format!("shard {shard} is stuck\n").into_bytes()),
        }
    }

    /// Ready: new clients are welcome.
    fn readyz(&self) -> (u16, &'static str, Vec<u8>) {
        let failures: u64 = self.all_metrics.iter().map(|shard| shard.get(Counter::PublishFailed)).sum();
        match self.state.phase() {
            Phase::Serving => {
                let ring = self.ring.name();
                let body = format!("ready\nring {ring}\npublications not stored {failures}\n");
                (200, "text/plain", body.into_bytes())
            }
            _ => (503, "text/plain", b"draining\n".to_vec()),
        }
    }
}

/// Resident memory of this process, bytes; 0 if `/proc` does not say.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
