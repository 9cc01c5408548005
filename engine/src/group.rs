//! Groups: the subscribers of one topic in one encoding on one shard, and the wire log they share.
//!
//! A member is a cursor. Appending a publication does not touch the members; a flush walks them once per loop turn,
//! whatever the number of publications since.

use crate::wire_log::{Slice, WireLog};

/// Why a member is passed by in a walk, if it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// May be sent to.
    Ready,
    /// A send of its bytes is in flight.
    Sending,
    /// Its socket has no room, or something of its own has to go out first.
    Blocked,
}

/// One subscriber.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Position in the wire log of the first byte not yet taken by its socket.
    pub cursor: u64,
    /// Its connection's place in the shard's table.
    pub connection: u32,
    /// Whether it may be sent to.
    pub standing: Standing,
}

// 5,000 members are walked per flush: four of them share a cache line.
const _: () = assert!(size_of::<Member>() == 16);

/// What a walk found to do for a member.
#[derive(Debug)]
pub enum Step {
    /// Send it this.
    Send {
        /// Which member.
        member: u32,
        /// Its connection.
        connection: u32,
        /// What.
        slice: Slice,
    },
    /// It is too far behind to stay in the group.
    Lagging {
        /// Which member.
        member: u32,
        /// Its connection.
        connection: u32,
    },
}

/// Members of one query in one encoding.
pub struct Group {
    log: WireLog,
    members: Vec<Member>,
    /// Members whose cursor is not at the head.
    behind: usize,
    /// Place of the next member of the walk in progress.
    walk: usize,
    /// Whether something was appended since the last walk began.
    dirty: bool,
}

impl Group {
    /// An empty group whose next publication follows `offset`.
    pub fn new(offset: u64) -> Self {
        Self { log: WireLog::new(offset), members: Vec::new(), behind: 0, walk: 0, dirty: false }
    }

    /// The members' shared bytes.
    pub fn log(&self) -> &WireLog {
        &self.log
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The member at this place.
    pub fn member(&self, member: u32) -> &Member {
        &self.members[member as usize]
    }

    /// Adds a member that has everything up to the head. Gives its place.
    pub fn join(&mut self, connection: u32, standing: Standing) -> u32 {
        self.members.push(Member { cursor: self.log.head(), connection, standing });
        (self.members.len() - 1) as u32
    }

    /// Removes a member. Gives the connection that has taken its place, if one has.
    pub fn leave(&mut self, member: u32) -> Option<u32> {
        let gone = self.members.swap_remove(member as usize);
        self.behind -= usize::from(gone.cursor < self.log.head());
        // The member moved here from the end may not have been walked yet: the walk is begun again.
        self.dirty |= self.walk > 0;
        self.release_if_sent();
        self.members.get(member as usize).map(|moved| moved.connection)
    }

    /// Appends one frame for all members; see [`WireLog::append`].
    pub fn append(&mut self, pool: &std::rc::Rc<crate::wire_log::Pool>, frame: &[u8], offset: u64, now: u64) {
        if self.members.is_empty() {
            self.log.pass_over(offset);
            return;
        }
        self.log.append(pool, frame, offset, now);
        self.behind = self.members.len();
        self.dirty = true;
    }

    /// Whether this walk or one that is due will still come to a member.
    pub fn will_visit(&self, member: u32) -> bool {
        self.dirty || self.walk > 0 && member as usize >= self.walk
    }

    /// Whether a walk has anything to do.
    pub fn wants_walk(&self) -> bool {
        self.dirty || self.walk > 0
    }

    /// The next step of the walk; `None` once every member has been looked at. A send carries at most `max_send` bytes; a
    /// member with more than `max_behind` bytes unsent that can't be sent to is lagging.
    pub fn next_step(&mut self, max_send: usize, max_behind: u64) -> Option<Step> {
        if self.walk == 0 {
            self.dirty = false;
        }
        let head = self.log.head();
        while let Some(member) = self.members.get_mut(self.walk) {
            let place = self.walk as u32;
            self.walk += 1;
            if member.cursor == head {
                continue;
            }
            let connection = member.connection;
            if member.standing == Standing::Ready {
                let Some(slice) = self.log.slice(member.cursor, max_send) else { continue };
                member.standing = Standing::Sending;
                return Some(Step::Send { member: place, connection, slice });
            }
            if member.standing == Standing::Blocked && head - member.cursor > max_behind {
                return Some(Step::Lagging { member: place, connection });
            }
        }
        self.walk = 0;
        self.release_read();
        None
    }

    /// Notes the end of a member's send: `sent` bytes were taken. True if it has everything.
    pub fn sent(&mut self, member: u32, sent: usize, standing: Standing) -> bool {
        let member = &mut self.members[member as usize];
        member.cursor += sent as u64;
        member.standing = standing;
        let done = member.cursor == self.log.head();
        if done && sent > 0 {
            self.behind -= 1;
            self.release_if_sent();
        }
        done
    }

    /// Changes whether a member may be sent to; if it is ready and behind, here is what to send it next.
    pub fn stand(&mut self, member: u32, standing: Standing, max_send: usize) -> Option<Slice> {
        let place = &mut self.members[member as usize];
        place.standing = standing;
        if standing != Standing::Ready {
            return None;
        }
        let slice = self.log.slice(place.cursor, max_send)?;
        place.standing = Standing::Sending;
        Some(slice)
    }

    fn release_if_sent(&mut self) {
        if self.behind == 0 {
            self.log.release(self.log.head());
        }
    }

    fn release_read(&mut self) {
        if self.behind > 0 {
            let head = self.log.head();
            let slowest = self.members.iter().map(|member| member.cursor).min();
            self.log.release(slowest.unwrap_or(head));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire_log::{LARGE_CHUNK, Pool};

    fn steps(group: &mut Group) -> Vec<(u32, Vec<u8>)> {
        std::iter::from_fn(|| group.next_step(LARGE_CHUNK, 100))
            .map(|step| match step {
                Step::Send { connection, slice, .. } => (connection, slice.bytes().to_vec()),
                Step::Lagging { connection, .. } => (connection, b"lagging".to_vec()),
            })
            .collect()
    }

    #[test]
    fn publications_of_a_turn_are_joined_into_one_send_per_member() {
        let (pool, mut group) = (Pool::new(1 << 20), Group::new(0));
        let (a, b) = (group.join(10, Standing::Ready), group.join(11, Standing::Ready));
        group.append(&pool, b"one", 1, 0);
        group.append(&pool, b"two", 2, 0);
        assert_eq!(steps(&mut group), [(10, b"onetwo".to_vec()), (11, b"onetwo".to_vec())]);
        assert!(!group.wants_walk());
        assert!(group.sent(a, 6, Standing::Ready));
        assert_eq!(pool.used_bytes(), crate::wire_log::SMALL_CHUNK, "b still needs it");
        assert!(!group.sent(b, 2, Standing::Blocked));
        assert_eq!(group.stand(b, Standing::Ready, 100).unwrap().bytes(), b"etwo");
        assert!(group.sent(b, 4, Standing::Ready));
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn a_member_far_behind_is_told_of_and_holds_nothing_once_it_has_left() {
        let (pool, mut group) = (Pool::new(1 << 20), Group::new(0));
        let slow = group.join(7, Standing::Blocked);
        group.append(&pool, &[b'x'; 101], 1, 0);
        assert_eq!(steps(&mut group), [(7, b"lagging".to_vec())]);
        assert_eq!(group.leave(slow), None);
        assert_eq!(pool.used_bytes(), 0);
        group.append(&pool, b"nobody", 2, 0);
        assert_eq!(pool.used_bytes(), 0, "nothing is kept for nobody");
        assert_eq!(group.log().newest_offset(), 2);
    }

    #[test]
    fn a_member_whose_slice_ended_with_a_chunk_is_not_left_to_a_walk_that_has_passed_it() {
        let (pool, mut group) = (Pool::new(1 << 20), Group::new(0));
        let (a, b) = (group.join(0, Standing::Ready), group.join(1, Standing::Ready));
        group.append(&pool, &[b'x'; 10], 1, 0);
        let Some(Step::Send { slice, .. }) = group.next_step(4, 100) else { panic!("nothing to send") };
        assert!(!group.sent(a, slice.len(), Standing::Ready));
        assert!(!group.will_visit(a) && group.will_visit(b));
        assert_eq!(group.stand(a, Standing::Ready, 100).map(|rest| rest.len()), Some(6));
    }

    #[test]
    fn a_member_moved_by_a_leave_is_still_walked() {
        let (pool, mut group) = (Pool::new(1 << 20), Group::new(0));
        for connection in 0..3 {
            group.join(connection, Standing::Ready);
        }
        group.append(&pool, b"x", 1, 0);
        assert!(matches!(group.next_step(100, 100), Some(Step::Send { connection: 0, .. })));
        assert_eq!(group.leave(0), Some(2));
        let mut rest = steps(&mut group);
        rest.extend(steps(&mut group));
        let mut connections: Vec<u32> = rest.iter().map(|step| step.0).collect();
        connections.sort_unstable();
        assert_eq!(connections, [1, 2]);
    }
}
