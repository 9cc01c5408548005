//! Wire logs: contiguous, ready-to-send bytes that all subscribers of a group share.
//!
//! A publication is encoded once per group and appended; a subscriber is a byte position (a *cursor*) in the log.
//! Sending is "the bytes from the cursor to the head". The log holds only what somebody still has to be sent:
//! once all cursors are at the head its chunks are back in the shard's [`Pool`].
//!
//! Unsafe, and why: a chunk is appended to while the kernel (or a socket's send) reads bytes before the append
//! position. Two views of one buffer that never overlap cannot be said in safe Rust without a copy per send;
//! that copy would cost more than all of our own work on a delivery.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

/// Size of the chunk a quiet group takes: one or a few publications.
pub const SMALL_CHUNK: usize = 4 << 10;
/// Size of the chunks of a group in use. One send carries at most this much.
pub const LARGE_CHUNK: usize = 64 << 10;

/// Frames kept in a log's deque capacity while it is empty; beyond this the memory is given back.
const IDLE_CAPACITY: usize = 8;

/// A shard's free chunks. Not shared between threads: memory goes home to the shard that allocated it.
#[derive(Debug)]
pub struct Pool {
    small: RefCell<Vec<Box<[u8]>>>,
    large: RefCell<Vec<Box<[u8]>>>,
    /// Bytes of free chunks kept at most, of each size.
    keep_bytes: usize,
    /// Bytes in chunks that are in use.
    used_bytes: Cell<usize>,
}

impl Pool {
    /// A pool that keeps at most `keep_bytes` of free chunks of each size.
    pub fn new(keep_bytes: usize) -> Rc<Self> {
        Rc::new(Self {
            small: RefCell::default(),
            large: RefCell::default(),
            keep_bytes,
            used_bytes: Cell::new(0),
        })
    }

    /// Bytes in chunks that some log or send still holds.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes.get()
    }

    fn take(self: &Rc<Self>, size: usize) -> Rc<Chunk> {
        let free = match size {
            SMALL_CHUNK => self.small.borrow_mut().pop(),
            LARGE_CHUNK => self.large.borrow_mut().pop(),
            _ => None,
        };
        let bytes = free.unwrap_or_else(|| vec![0; size].into_boxed_slice());
        self.used_bytes.set(self.used_bytes.get() + bytes.len());
        Rc::new(Chunk { bytes: UnsafeCell::new(bytes), filled: Cell::new(0), home: Rc::clone(self) })
    }

    fn give_back(&self, bytes: Box<[u8]>) {
        self.used_bytes.set(self.used_bytes.get() - bytes.len());
        let shelf = match bytes.len() {
            SMALL_CHUNK => &self.small,
            LARGE_CHUNK => &self.large,
            _ => return,
        };
        let mut shelf = shelf.borrow_mut();
        if (shelf.len() + 1) * bytes.len() <= self.keep_bytes {
            shelf.push(bytes);
        }
    }
}

/// A buffer that is appended to; what lies before `filled` never changes again.
struct Chunk {
    bytes: UnsafeCell<Box<[u8]>>,
    filled: Cell<u32>,
    home: Rc<Pool>,
}

impl Chunk {
    fn room(&self) -> usize {
        // SAFETY: reads the length only; the box itself is never replaced while the chunk lives.
        let capacity = unsafe { (&*self.bytes.get()).len() };
        capacity - self.filled.get() as usize
    }

    fn append(&self, frame: &[u8]) {
        assert!(frame.len() <= self.room());
        let filled = self.filled.get() as usize;
        // SAFETY: `filled..filled + len` is inside the buffer (asserted) and no `Slice` covers it, as slices end
        // at or before `filled`. A `Chunk` is `!Sync`, so nobody else appends. The pointer is derived from the
        // cell without making a reference to the bytes that slices may be reading.
        unsafe {
            let base = (*self.bytes.get()).as_mut_ptr();
            std::ptr::copy_nonoverlapping(frame.as_ptr(), base.add(filled), frame.len());
        }
        self.filled.set((filled + frame.len()) as u32);
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.home.give_back(std::mem::take(self.bytes.get_mut()));
    }
}

/// Bytes of a wire log that stay where they are, and stay the same, for as long as the slice lives.
///
/// A ring holds the slice of a send in flight: that is what keeps the kernel's reads valid.
#[derive(Clone)]
pub struct Slice {
    chunk: Rc<Chunk>,
    start: u32,
    len: u32,
}

impl Slice {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `start + len <= filled` when the slice was made and `filled` only grows; bytes before `filled`
        // are never written again; the box is neither moved nor freed while this slice holds its chunk.
        unsafe {
            let base = (*self.chunk.bytes.get()).as_ptr();
            std::slice::from_raw_parts(base.add(self.start as usize), self.len as usize)
        }
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are none. Never the case for what [`WireLog::slice`] gives.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({} bytes)", self.len)
    }
}

/// A boundary between two frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    /// Position of the first byte after the frame.
    end: u64,
    /// Topic offset of the newest publication up to here.
    offset: u64,
    /// When it was appended, milliseconds on the shard's monotonic clock.
    time: u64,
}

struct Piece {
    /// Position of the chunk's first byte.
    base: u64,
    chunk: Rc<Chunk>,
}

impl Piece {
    fn end(&self) -> u64 {
        self.base + u64::from(self.chunk.filled.get())
    }
}

/// The bytes of one group, from the slowest member's cursor to the head.
pub struct WireLog {
    pieces: VecDeque<Piece>,
    frames: VecDeque<Frame>,
    head: u64,
    /// The boundary before the first frame kept.
    tail: Frame,
}

impl WireLog {
    /// An empty log whose next publication follows `offset`.
    pub fn new(offset: u64) -> Self {
        Self {
            pieces: VecDeque::new(),
            frames: VecDeque::new(),
            head: 0,
            tail: Frame { end: 0, offset, time: 0 },
        }
    }

    /// Position after the last byte.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// Bytes held, from the first chunk still needed.
    pub fn held_bytes(&self) -> usize {
        self.pieces.front().map_or(0, |piece| (self.head - piece.base) as usize)
    }

    /// Offset of the newest publication appended or passed over.
    pub fn newest_offset(&self) -> u64 {
        self.frames.back().map_or(self.tail.offset, |frame| frame.offset)
    }

    /// Appends one whole frame; `offset` is the topic's newest offset once the frame is sent, `now` the time in ms.
    pub fn append(&mut self, pool: &Rc<Pool>, frame: &[u8], offset: u64, now: u64) {
        debug_assert!(offset >= self.newest_offset());
        let fits = self.pieces.back().is_some_and(|piece| piece.chunk.room() >= frame.len());
        if !fits {
            let size = match (self.pieces.is_empty(), frame.len()) {
                (true, ..=SMALL_CHUNK) => SMALL_CHUNK,
                (_, ..=LARGE_CHUNK) => LARGE_CHUNK,
                (_, len) => len,
            };
            self.pieces.push_back(Piece { base: self.head, chunk: pool.take(size) });
        }
        if let Some(piece) = self.pieces.back() {
            piece.chunk.append(frame);
        }
        self.head += frame.len() as u64;
        self.frames.push_back(Frame { end: self.head, offset, time: now });
    }

    /// Notes that publications up to `offset` went by while nobody had to be sent anything.
    pub fn pass_over(&mut self, offset: u64) {
        debug_assert!(self.frames.is_empty() && offset >= self.tail.offset);
        self.tail.offset = offset;
    }

    /// At most `max` contiguous bytes from `cursor` on; `None` at the head.
    ///
    /// # Panics
    /// If `cursor` lies before what the log still holds: a cursor that was not counted.
    pub fn slice(&self, cursor: u64, max: usize) -> Option<Slice> {
        if cursor == self.head {
            return None;
        }
        let index = self.pieces.partition_point(|piece| piece.end() <= cursor);
        let piece = &self.pieces[index];
        assert!(piece.base <= cursor, "cursor {cursor} before the log's tail");
        let len = (piece.end() - cursor).min(max as u64);
        Some(Slice { chunk: Rc::clone(&piece.chunk), start: (cursor - piece.base) as u32, len: len as u32 })
    }

    /// The rest of the frame that `cursor` is inside of; empty on a boundary.
    pub fn rest_of_frame(&self, cursor: u64) -> Vec<u8> {
        let Some(frame) = self.frame_at(cursor) else { return Vec::new() };
        let start = frame.checked_sub(1).map_or(self.tail.end, |before| self.frames[before].end);
        if start == cursor {
            return Vec::new();
        }
        // A frame never straddles two chunks, so its rest is one slice.
        let rest = (self.frames[frame].end - cursor) as usize;
        self.slice(cursor, rest).map_or_else(Vec::new, |slice| slice.bytes().to_vec())
    }

    /// Offset of the newest publication that is sent once the frame `cursor` is inside of has been sent.
    pub fn offset_at(&self, cursor: u64) -> u64 {
        match self.frame_at(cursor) {
            None => self.newest_offset(),
            Some(frame) => {
                let before = frame.checked_sub(1).map_or(self.tail, |before| self.frames[before]);
                if before.end == cursor { before.offset } else { self.frames[frame].offset }
            }
        }
    }

    /// When the oldest frame that `cursor` has not wholly sent was appended, in ms; `None` at the head.
    pub fn unsent_since(&self, cursor: u64) -> Option<u64> {
        self.frame_at(cursor).map(|frame| self.frames[frame].time)
    }

    /// Gives back what lies wholly before `position`: no cursor is before it.
    pub fn release(&mut self, position: u64) {
        while self.pieces.front().is_some_and(|piece| piece.end() <= position) {
            self.pieces.pop_front();
        }
        while let Some(frame) = self.frames.front().copied().filter(|frame| frame.end <= position) {
            self.tail = frame;
            self.frames.pop_front();
        }
        if self.frames.is_empty() && self.frames.capacity() > IDLE_CAPACITY {
            self.frames = VecDeque::new();
            self.pieces = VecDeque::new();
        }
    }

    /// Index of the first frame that ends after `cursor`.
    fn frame_at(&self, cursor: u64) -> Option<usize> {
        let index = self.frames.partition_point(|frame| frame.end <= cursor);
        (index < self.frames.len()).then_some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn log_of(frames: &[&[u8]]) -> (Rc<Pool>, WireLog) {
        let pool = Pool::new(1 << 20);
        let mut log = WireLog::new(0);
        for (index, frame) in frames.iter().enumerate() {
            log.append(&pool, frame, index as u64 + 1, index as u64 * 10);
        }
        (pool, log)
    }

    #[test]
    fn a_slice_outlives_the_release_of_its_bytes() {
        let (pool, mut log) = log_of(&[b"one", b"two"]);
        let slice = log.slice(0, 100).unwrap();
        log.release(log.head());
        assert_eq!(log.held_bytes(), 0);
        assert_eq!(pool.used_bytes(), SMALL_CHUNK, "the slice keeps its chunk");
        log.append(&pool, b"three", 3, 0);
        assert_eq!(slice.bytes(), b"onetwo");
        drop(slice);
        assert_eq!(pool.used_bytes(), SMALL_CHUNK, "only the new chunk is left");
        assert_eq!(log.slice(6, 100).unwrap().bytes(), b"three");
    }

    #[test]
    fn a_cursor_inside_a_frame_finishes_it_and_resumes_after_it() {
        let (_, log) = log_of(&[b"aaaa", b"bbbb", b"cccc"]);
        assert_eq!((log.rest_of_frame(0), log.offset_at(0)), (vec![], 0));
        assert_eq!((log.rest_of_frame(4), log.offset_at(4)), (vec![], 1));
        assert_eq!((log.rest_of_frame(6), log.offset_at(6)), (b"bb".to_vec(), 2));
        assert_eq!((log.rest_of_frame(12), log.offset_at(12)), (vec![], 3));
        assert_eq!(log.unsent_since(6), Some(10));
        assert_eq!(log.unsent_since(12), None);
    }

    #[test]
    fn offsets_survive_the_release_of_their_frames() {
        let (pool, mut log) = log_of(&[b"aaaa", b"bbbb"]);
        log.release(8);
        assert_eq!(log.offset_at(8), 2);
        log.pass_over(7);
        assert_eq!(log.newest_offset(), 7);
        log.append(&pool, b"cc", 8, 0);
        assert_eq!((log.offset_at(8), log.offset_at(9), log.offset_at(10)), (7, 8, 8));
    }

    #[test]
    fn a_frame_larger_than_a_chunk_stays_contiguous() {
        let big = vec![b'x'; LARGE_CHUNK * 3];
        let (pool, mut log) = log_of(&[b"small", &big, b"after"]);
        assert_eq!(log.slice(5, usize::MAX).unwrap().bytes(), &big[..]);
        log.release(log.head());
        assert_eq!(pool.used_bytes(), 0);
    }

    proptest! {
        /// Any members reading at any pace see exactly the bytes appended, and the log lets go of what all have read.
        #[test]
        fn every_cursor_reads_what_was_appended(
            steps in prop::collection::vec((0usize..3, 1usize..9000), 1..200),
        ) {
            let pool = Pool::new(1 << 20);
            let mut log = WireLog::new(0);
            let (mut model, mut cursors, mut offset) = (Vec::new(), [0u64; 3], 0u64);
            for (who, size) in steps {
                if size % 2 == 0 {
                    offset += 1;
                    let frame = vec![offset as u8; size];
                    log.append(&pool, &frame, offset, 0);
                    model.extend_from_slice(&frame);
                } else if let Some(slice) = log.slice(cursors[who], size) {
                    let at = cursors[who] as usize;
                    prop_assert_eq!(slice.bytes(), &model[at..at + slice.len()]);
                    cursors[who] += slice.len() as u64;
                }
                log.release(*cursors.iter().min().unwrap());
                prop_assert_eq!(log.head() as usize, model.len());
            }
            log.release(log.head());
            prop_assert_eq!(pool.used_bytes(), 0);
        }
    }
}
