//! Whether a stream brings every publication, once and in order.
//!
//! Publications of one source are numbered from 0 without holes. A number above the expected one leaves a hole;
//! one that fills a hole later came out of order; one that was there before is a repeat. Holes that are left at
//! the end are missing.

use std::ops::{AddAssign, Range};

use serde::{Deserialize, Serialize};

use crate::reading::{self, Marks};
use crate::stream::Event;

/// Most sources whose order is kept apart.
pub const MAX_SOURCES: u32 = 1024;

/// What was wrong, counted over one stream or several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    /// Publications that never came.
    pub missing: u64,
    /// Publications that came again.
    pub repeated: u64,
    /// Publications that came after a later one of the same source.
    pub reordered: u64,
    /// Publications whose event had no id, or one that was not above that of the publication before.
    pub bad_ids: u64,
    /// `gap` events: the server says itself that something was left out. What was is among the missing.
    pub announced_gaps: u64,
}

impl Faults {
    /// Whether nothing was wrong.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl AddAssign for Faults {
    fn add_assign(&mut self, other: Self) {
        self.missing += other.missing;
        self.repeated += other.repeated;
        self.reordered += other.reordered;
        self.bad_ids += other.bad_ids;
        self.announced_gaps += other.announced_gaps;
    }
}

/// Where a stream's sources begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With number 0: the stream was open before anything was published.
    Zero,
    /// With whatever comes first: somebody else publishes.
    FirstSeen,
}

/// Checks the events of one stream.
#[derive(Debug)]
pub struct Checker {
    start: Start,
    last_id: Option<u64>,
    sources: Vec<Source>,
    faults: Faults,
}

#[derive(Clone, Debug, Default)]
struct Source {
    /// The number expected next.
    next: u64,
    seen: bool,
    /// Numbers below `next` that have not come, ascending.
    holes: Vec<Range<u64>>,
}

/// What became of one source's publications, at the publisher's end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// How many were sent: the numbers below this.
    pub count: u64,
    /// Those of them that the server did not accept, ascending: it owes them to nobody.
    pub not_accepted: Vec<Range<u64>>,
}

impl Checker {
    /// For a stream that begins at `start`.
    pub fn new(start: Start) -> Self {
        Self { start, last_id: None, sources: Vec::new(), faults: Faults::default() }
    }

    /// Takes the next event. Returns the marks of a publication that came for the first time; `None` for a
    /// repeat, and for an event that is no publication.
    pub fn event(&mut self, event: &Event<'_>) -> Option<Marks> {
        let Some(marks) = reading::find(event.data).filter(|marks| marks.source < MAX_SOURCES) else {
            self.faults.announced_gaps += u64::from(event.name == b"gap");
            return None;
        };
        if event.id.is_none() || event.id <= self.last_id {
            self.faults.bad_ids += 1;
        }
        self.last_id = self.last_id.max(event.id);
        let index = marks.source as usize;
        if index >= self.sources.len() {
            self.sources.resize(index + 1, Source::default());
        }
        let source = &mut self.sources[index];
        if !source.seen && self.start == Start::FirstSeen {
            source.next = marks.seq;
        }
        source.seen = true;
        match source.take(marks.seq) {
            Arrival::InOrder => {}
            Arrival::Late => self.faults.reordered += 1,
            Arrival::Again => {
                self.faults.repeated += 1;
                return None;
            }
        }
        Some(marks)
    }

    /// The faults, once the stream has ended or nothing more is expected.
    ///
    /// `sent` has an entry per source; `None` if that is not known, and then only holes are missing, not an end.
    pub fn finish(mut self, sent: Option<&[Sent]>) -> Faults {
        let Some(sent) = sent else {
            let holes = self.sources.iter().flat_map(|source| &source.holes);
            self.faults.missing = holes.map(length).sum();
            return self.faults;
        };
        self.sources.resize(self.sources.len().max(sent.len()), Source::default());
        for (source, sent) in self.sources.iter_mut().zip(sent) {
            if source.next < sent.count {
                source.holes.push(source.next..sent.count);
            }
            let holes: u64 = source.holes.iter().map(length).sum();
            self.faults.missing += holes - overlap(&source.holes, &sent.not_accepted);
        }
        self.faults
    }
}

enum Arrival {
    InOrder,
    Late,
    Again,
}

impl Source {
    fn take(&mut self, seq: u64) -> Arrival {
        if seq >= self.next {
            if seq > self.next {
                self.holes.push(self.next..seq);
            }
            self.next = seq.saturating_add(1);
            return Arrival::InOrder;
        }
        let at = self.holes.partition_point(|hole| hole.end <= seq);
        let Some(hole) = self.holes.get(at).filter(|hole| hole.contains(&seq)).cloned() else {
            return Arrival::Again;
        };
        let rest = [hole.start..seq, seq + 1..hole.end];
        self.holes.splice(at..=at, rest.into_iter().filter(|range| !Range::is_empty(range)));
        Arrival::Late
    }
}

fn length(range: &Range<u64>) -> u64 {
    range.end - range.start
}

/// How many numbers are in both; each is ascending.
fn overlap(a: &[Range<u64>], b: &[Range<u64>]) -> u64 {
    let (mut i, mut j, mut count) = (0, 0, 0);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        let (start, end) = (x.start.max(y.start), x.end.min(y.end));
        count += end.saturating_sub(start);
        if x.end <= y.end {
            i += 1;
        } else {
            j += 1;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// An event as the server would send it.
    fn give(checker: &mut Checker, id: Option<u64>, source: u32, seq: u64) -> bool {
        let mut data = b"{\"data\":{".to_vec();
        let due_ns = 5;
        reading::write_fields(Marks { source, seq, due_ns }, &mut data);
        data.extend_from_slice(b"}}");
        let name = b"telemetry_update";
        checker.event(&Event { id, name, data: &data }).is_some()
    }

    fn faults(missing: u64, repeated: u64, reordered: u64, bad_ids: u64) -> Faults {
        Faults { missing, repeated, reordered, bad_ids, announced_gaps: 0 }
    }

    #[test]
    fn each_fault_is_told_from_the_others() {
        for (what, events, sent, expected) in [
            ("nothing", &[(1, 0), (2, 1), (9, 2)][..], 3, faults(0, 0, 0, 0)),
            ("a hole", &[(1, 0), (3, 2)], 3, faults(1, 0, 0, 0)),
            ("the first", &[(2, 1)], 2, faults(1, 0, 0, 0)),
            ("the last", &[(1, 0)], 3, faults(2, 0, 0, 0)),
            ("all", &[], 3, faults(3, 0, 0, 0)),
            ("a repeat", &[(1, 0), (1, 0), (2, 1)], 2, faults(0, 1, 0, 1)),
            ("a repeat with a new id", &[(1, 0), (2, 0)], 1, faults(0, 1, 0, 0)),
            ("a swap", &[(2, 1), (1, 0), (3, 2)], 3, faults(0, 0, 1, 1)),
            ("a swap with new ids", &[(1, 1), (2, 0)], 2, faults(0, 0, 1, 0)),
            ("late, then again", &[(1, 4), (2, 2), (3, 2)], 5, faults(3, 1, 1, 0)),
            ("ids that stand still", &[(7, 0), (7, 1)], 2, faults(0, 0, 0, 1)),
            ("ids that go back", &[(7, 0), (3, 1), (8, 2)], 3, faults(0, 0, 0, 1)),
        ] {
            let mut checker = Checker::new(Start::Zero);
            for &(id, seq) in events {
                give(&mut checker, Some(id), 0, seq);
            }
            let sent = [Sent { count: sent, not_accepted: vec![] }];
            assert_eq!(checker.finish(Some(&sent)), expected, "{what}");
        }
    }

    #[test]
    fn events_that_are_no_publications() {
        let mut checker = Checker::new(Start::Zero);
        for (name, data) in [("connected", "{}"), ("heartbeat", "{}"), ("gap", "{\"from\":1,\"to\":2}")] {
            let (id, name) = (Some(5), name.as_bytes());
            let event = Event { id, name, data: data.as_bytes() };
            assert_eq!(checker.event(&event), None);
        }
        // Their ids are those of publications before them, and don't count.
        assert!(give(&mut checker, Some(5), 0, 0));
        assert!(!give(&mut checker, None, MAX_SOURCES, 0));
        assert!(give(&mut checker, None, 0, 1));
        let sent = [Sent { count: 2, not_accepted: vec![] }];
        assert_eq!(
            checker.finish(Some(&sent)),
            Faults { bad_ids: 1, announced_gaps: 1, ..Faults::default() }
        );
    }

    #[test]
    fn sources_are_counted_apart_and_refused_publications_are_not_owed() {
        let mut checker = Checker::new(Start::Zero);
        for (id, source, seq) in [(1, 0, 0), (2, 1, 0), (3, 0, 3), (4, 1, 1)] {
            give(&mut checker, Some(id), source, seq);
        }
        let sent = |count, not_accepted| Sent { count, not_accepted };
        let sent = [sent(6, vec![1..2, 3..5]), sent(2, vec![]), sent(4, vec![0..1, 1..3])];
        // Of source 0: 1, 2, 4 and 5 did not come, and 1 and 4 need not. Of source 2: only 3 was owed.
        assert_eq!(checker.finish(Some(&sent)), faults(3, 0, 0, 0));
    }

    #[test]
    fn a_foreign_publisher_may_have_begun_before() {
        let mut checker = Checker::new(Start::FirstSeen);
        for seq in [100, 101, 103] {
            give(&mut checker, Some(seq), 0, seq);
        }
        assert_eq!(checker.finish(None), faults(1, 0, 0, 0));
    }

    proptest! {
        /// Against a model that remembers everything.
        #[test]
        fn any_order_is_judged_as_by_a_list(
            numbers in prop::collection::vec(0_u64..20, 0..40),
            count in 20_u64..25,
            refused in prop::collection::btree_set(0_u64..25, 0..10),
        ) {
            let mut checker = Checker::new(Start::Zero);
            let mut seen = BTreeSet::new();
            let mut expected = Faults::default();
            for (id, &seq) in numbers.iter().enumerate() {
                let is_late = seen.last().is_some_and(|last| seq < *last);
                let is_new = seen.insert(seq);
                expected.repeated += u64::from(!is_new);
                expected.reordered += u64::from(is_new && is_late);
                prop_assert_eq!(give(&mut checker, Some(id as u64), 0, seq), is_new);
            }
            expected.missing = (0..count).filter(|n| !seen.contains(n) && !refused.contains(n)).count() as u64;
            let not_accepted = refused.iter().map(|n| *n..n + 1).collect();
            prop_assert_eq!(checker.finish(Some(&[Sent { count, not_accepted }])), expected);
        }
    }
}
