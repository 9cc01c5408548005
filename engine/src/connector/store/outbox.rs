//! The outbox: the records of one slice of an answer, until the lane has taken them.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::StoreMetrics;
use crate::mail::Mail;
use crate::mesh::Port;

/// Records of one slice, on their way.
pub(super) struct Outbox {
    bytes: Vec<u8>,
    /// End of each record, and the offset reached once it is sent.
    ends: Vec<(usize, u64)>,
    /// How many have been sent.
    gone: usize,
    /// The offset reached by what was put, and by what was sent, of this question.
    reached: Option<u64>,
    sent: Option<u64>,
    scratch: Vec<u8>,
    max_record: usize,
    metrics: Arc<StoreMetrics>,
}

impl Outbox {
    pub(super) fn new(max_record: usize, metrics: Arc<StoreMetrics>) -> Self {
        Self {
            bytes: Vec::new(),
            ends: Vec::new(),
            gone: 0,
            reached: None,
            sent: None,
            scratch: Vec::new(),
            max_record,
            metrics,
        }
    }

    /// Makes room for another question's answer.
    pub(super) fn begin(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.gone = 0;
        (self.reached, self.sent) = (None, None);
    }

    /// Whether all is sent.
    pub(super) fn is_empty(&self) -> bool {
        self.gone == self.ends.len()
    }

    /// The offset reached by what was put; `None` before the first.
    pub(super) fn reached(&self) -> Option<u64> {
        self.reached
    }

    /// The offset reached by what was sent; `None` before the first.
    pub(super) fn sent(&self) -> Option<u64> {
        self.sent
    }

    fn record(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before].0);
        &self.bytes[start..self.ends[index].0]
    }

    /// Adds a record: once it is sent, everything up to offset `reached` is.
    pub(super) fn put(&mut self, mail: Mail<'_>, reached: u64) {
        mail.encode(&mut self.scratch);
        self.reached = Some(reached);
        if self.scratch.len() > self.max_record {
            // It came over a wider lane, in an earlier run.
            self.metrics.oversized.fetch_add(1, Relaxed);
            return;
        }
        self.bytes.extend_from_slice(&self.scratch);
        self.ends.push((self.bytes.len(), reached));
    }

    /// Sends what the lane takes; returns how many records that was.
    pub(super) fn send(&mut self, to: usize, port: &mut Port) -> usize {
        let before = self.gone;
        while self.gone < self.ends.len() && port.try_send(to, self.record(self.gone)) {
            self.sent = Some(self.ends[self.gone].1);
            self.gone += 1;
        }
        let sent = self.gone - before;
        if self.is_empty() {
            self.bytes.clear();
            self.ends.clear();
            self.gone = 0;
        }
        sent
    }
}
