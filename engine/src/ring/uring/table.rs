//! The io_uring ring's table of connections: their descriptors, what is in flight, the slices the kernel may
//! read.

use crate::ring::{Fd, Key};
use crate::wire_log::Slice;

/// Connections by their key's index, and the slices of their sends in flight.
#[derive(Default)]
pub(super) struct Table {
    slots: Vec<Slot>,
    slices: Vec<Option<Slice>>,
    free: Vec<u32>,
}

/// What the ring knows of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// [`Slot::FREE`] if nobody lives here.
    pub(super) fd: Fd,
    generation: u32,
    /// Place of the slice of the send in flight, or [`Slot::NO_SEND`].
    send: u32,
    /// A multishot poll for input is armed: one more completion is owed for it, at least.
    pub(super) reading: bool,
    /// A poll for room is armed: exactly one more completion is owed for it.
    pub(super) writing: bool,
    pub(super) closing: bool,
}

/// There is one for every connection, idle ones too.
const _: () = assert!(size_of::<Slot>() == 16);

impl Slot {
    const FREE: Fd = -1;
    const NO_SEND: u32 = u32::MAX;

    const fn let_to(fd: Fd, generation: u32) -> Self {
        Self { fd, generation, send: Self::NO_SEND, reading: false, writing: false, closing: false }
    }

    pub(super) fn is_sending(&self) -> bool {
        self.send != Self::NO_SEND
    }

    pub(super) fn in_flight(&self) -> bool {
        self.reading || self.writing || self.is_sending()
    }
}

impl Table {
    /// The connection a shard speaks of; it moves in if the place is free.
    pub(super) fn tenant(&mut self, key: Key, fd: Fd) -> &mut Slot {
        let index = key.index as usize;
        if index >= self.slots.len() {
            self.slots.resize(index + 1, Slot::let_to(Slot::FREE, 0));
        }
        let slot = &mut self.slots[index];
        if slot.fd == Slot::FREE {
            *slot = Slot::let_to(fd, key.generation);
        }
        let right = slot.fd == fd && slot.generation == key.generation;
        debug_assert!(right, "{key:?}: the place is taken");
        debug_assert!(!slot.closing, "{key:?}: used after close");
        slot
    }

    /// The connection a completion speaks of; `None` if it is gone.
    pub(super) fn find(&mut self, key: Key) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(key.index as usize)?;
        (slot.fd != Slot::FREE && slot.generation == key.generation).then_some(slot)
    }

    /// Holds the slice of a send until [`let_go`](Self::let_go).
    ///
    /// # Panics
    /// If one is held already: the kernel may still be reading it.
    pub(super) fn hold(&mut self, key: Key, fd: Fd, slice: Slice) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.slices.push(None);
            (self.slices.len() - 1) as u32
        });
        self.slices[place as usize] = Some(slice);
        let slot = self.tenant(key, fd);
        assert!(!slot.is_sending(), "{key:?}: a send is in flight");
        slot.send = place;
    }

    /// Drops the slice of a send that has ended.
    pub(super) fn let_go(&mut self, key: Key) {
        if let Some(slot) = self.find(key).filter(|slot| slot.is_sending()) {
            let place = std::mem::replace(&mut slot.send, Slot::NO_SEND);
            self.slices[place as usize] = None;
            self.free.push(place);
        }
    }

    /// Gives a connection's place free.
    pub(super) fn move_out(&mut self, key: Key) {
        if let Some(slot) = self.find(key) {
            slot.fd = Slot::FREE;
        }
    }

    /// Descriptors of all connections.
    pub(super) fn fds(&self) -> impl Iterator<Item = Fd> {
        self.slots.iter().map(|slot| slot.fd).filter(|&fd| fd != Slot::FREE)
    }
}
