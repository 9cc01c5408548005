//! Timer wheel: many deadlines, few of which are ever reached.
//!
//! Two rings of slots: the first counts ticks, the second whole turns of the first. Setting a timer and letting
//! one go by are constant work whatever their number. Nothing is ever cancelled: whoever is told that a deadline
//! is over looks whether it still means anything.

/// Length of a tick, milliseconds. A timer is told of at most this much late, and never early.
pub const TICK: u64 = 50;

const SLOTS: usize = 512;
const WORDS: usize = SLOTS / 64;

/// Deadlines with something to remember each.
pub struct Wheel<T> {
    /// Tick up to which all timers have been told of.
    tick: u64,
    near: Vec<Vec<(u64, T)>>,
    far: Vec<Vec<(u64, T)>>,
    occupied: [u64; WORDS],
    len: usize,
}

impl<T: Copy> Wheel<T> {
    /// An empty wheel at `now`, in milliseconds.
    pub fn new(now: u64) -> Self {
        Self {
            tick: now / TICK,
            near: (0..SLOTS).map(|_| Vec::new()).collect(),
            far: (0..SLOTS).map(|_| Vec::new()).collect(),
            occupied: [0; WORDS],
            len: 0,
        }
    }

    /// How many timers are set.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Remembers `item` until `deadline`, in milliseconds.
    pub fn set(&mut self, deadline: u64, item: T) {
        let due = deadline.div_ceil(TICK).max(self.tick + 1);
        self.len += 1;
        self.place(due, item);
    }

    /// Appends to `due` what is due at `now`, in milliseconds.
    pub fn advance(&mut self, now: u64, due: &mut Vec<T>) {
        let target = now / TICK;
        if self.len == 0 {
            self.tick = self.tick.max(target);
            return;
        }
        while self.tick < target {
            self.tick += 1;
            let slot = self.tick as usize % SLOTS;
            if slot == 0 {
                let turn = (self.tick as usize / SLOTS) % SLOTS;
                for (at, item) in std::mem::take(&mut self.far[turn]) {
                    self.place(at.max(self.tick), item);
                }
            }
            if self.occupied[slot / 64] & (1 << (slot % 64)) != 0 {
                self.occupied[slot / 64] &= !(1 << (slot % 64));
                self.len -= self.near[slot].len();
                due.extend(self.near[slot].drain(..).map(|(_, item)| item));
                self.near[slot].shrink_to(8);
            }
        }
    }

    /// When there is something to do next, in milliseconds; it may turn out to be nothing but a move between slots.
    pub fn next(&self) -> Option<u64> {
        if self.len == 0 {
            return None;
        }
        let turn_ends = (self.tick as usize / SLOTS + 1) * SLOTS;
        let near = (self.tick as usize + 1..turn_ends)
            .find(|tick| self.occupied[tick % SLOTS / 64] & (1 << (tick % SLOTS % 64)) != 0);
        Some(near.unwrap_or(turn_ends) as u64 * TICK)
    }

    fn place(&mut self, due: u64, item: T) {
        let turn = due as usize / SLOTS;
        if turn == self.tick as usize / SLOTS {
            let slot = due as usize % SLOTS;
            self.near[slot].push((due, item));
            self.occupied[slot / 64] |= 1 << (slot % 64);
        } else {
            // A deadline beyond the second ring is looked at once per turn of it, and put back.
            let last = self.tick as usize / SLOTS + SLOTS - 1;
            self.far[turn.min(last) % SLOTS].push((due, item));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a sorted list: everything is told of once, never early, and at most a tick late.
        #[test]
        fn told_once_and_in_time(
            delays in prop::collection::vec(0u64..40_000_000, 1..60),
            steps in prop::collection::vec(1u64..2_000_000, 1..60),
        ) {
            let mut wheel = Wheel::new(1000);
            for (index, delay) in delays.iter().enumerate() {
                wheel.set(1000 + delay, index);
            }
            let (mut now, mut told, mut due) = (1000, vec![false; delays.len()], Vec::new());
            for step in steps.into_iter().chain([50_000_000]) {
                now += step;
                wheel.advance(now, &mut due);
                for index in due.drain(..) {
                    prop_assert!(!told[index] && 1000 + delays[index] <= now);
                    told[index] = true;
                }
                for (index, delay) in delays.iter().enumerate() {
                    prop_assert!(told[index] || 1000 + delay + 2 * TICK > now, "{index} is late");
                }
                if let Some(next) = wheel.next() {
                    prop_assert!(next + TICK > now);
                }
            }
            prop_assert!(wheel.is_empty());
        }
    }

    #[test]
    fn next_is_never_after_the_first_deadline() {
        let mut wheel = Wheel::new(0);
        assert_eq!(wheel.next(), None);
        wheel.set(10_000_000, 'b');
        let mut due = Vec::new();
        let mut turns = 0;
        while due.is_empty() {
            let next = wheel.next().unwrap();
            assert!(next <= 10_000_000 + TICK);
            wheel.advance(next, &mut due);
            turns += 1;
        }
        assert!(turns < 1000, "{turns} wakings for one timer");
    }
}
