//! When requests are due: fixed before the run begins, so that a slow server can't slow its own load down.
//!
//! Latency is measured from the due time and not from the time of sending. A generator that waits for the
//! server, and measures from when it got round to sending, leaves out exactly the waits that matter
//! ("coordinated omission").

const NANOS: u128 = 1_000_000_000;

/// Evenly spaced requests of `batch` publications each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// When the first request is due, ns.
    pub start_ns: u64,
    /// Publications per second, at least 1.
    pub rate: u64,
    /// Publications per request, at least 1. All of a request are due together.
    pub batch: u64,
}

impl Schedule {
    /// When request number `index`, from 0, is due, ns. Computed from the start each time: no error adds up.
    pub fn due(&self, index: u64) -> u64 {
        let after = u128::from(index) * u128::from(self.batch) * NANOS / u128::from(self.rate);
        u64::try_from(u128::from(self.start_ns) + after).unwrap_or(u64::MAX)
    }

    /// How many requests are due before `now_ns`.
    pub fn due_before(&self, now_ns: u64) -> u64 {
        let Some(after) = now_ns.checked_sub(self.start_ns) else {
            return 0;
        };
        let scaled = u128::from(after) * u128::from(self.rate);
        let count = scaled.div_ceil(u128::from(self.batch) * NANOS);
        u64::try_from(count).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_evenly_spaced() {
        for (rate, batch, index, due) in [
            (1000, 1, 0, 5),
            (1000, 1, 1, 1_000_005),
            (1000, 10, 1, 10_000_005),
            (3, 1, 1, 333_333_338),
            (3, 1, 3, 1_000_000_005),
            (2000, 100, 400, 20_000_000_005),
        ] {
            let schedule = Schedule { start_ns: 5, rate, batch };
            assert_eq!(schedule.due(index), due, "{rate}/s by {batch}, number {index}");
        }
    }

    #[test]
    fn nothing_is_due_before_the_start() {
        let schedule = Schedule { start_ns: 100, rate: 1_000_000_000, batch: 1 };
        for (now, count) in [(0, 0), (99, 0), (100, 0), (101, 1), (103, 3)] {
            assert_eq!(schedule.due_before(now), count, "at {now}");
        }
    }

    proptest! {
        #[test]
        fn counting_and_dating_agree(
            start_ns in 0_u64..1 << 50,
            rate in 1_u64..10_000_000,
            batch in 1_u64..10_000,
            index in 0_u64..1_000_000,
        ) {
            let schedule = Schedule { start_ns, rate, batch };
            let due = schedule.due(index);
            prop_assert!(due <= schedule.due(index + 1));
            // Of those due at one nanosecond all or none are due before a time.
            prop_assert!(schedule.due_before(due) <= index);
            prop_assert!(schedule.due_before(due + 1) > index);
        }

        #[test]
        fn a_second_holds_the_rate(rate in 1_u64..1_000_000, batch in 1_u64..100) {
            let schedule = Schedule { start_ns: 7, rate, batch };
            prop_assert_eq!(schedule.due_before(7 + 1_000_000_000), rate.div_ceil(batch));
        }
    }
}
