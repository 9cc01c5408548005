//! The kernel's floor of a fan-out: one thread sends the same bytes to all connections, again and again, another
//! drains them, and nobody does anything else.
//!
//! A send of `joined` messages is one contiguous buffer. TCP goes over loopback, where about half of a send is
//! the receiver's half, done by the sender.

use std::fmt::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use loadgen::{process, sys};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::time::Timespec;
use serde::{Deserialize, Serialize};

/// Bytes drained at once. TCP throws them away (MSG_TRUNC), AF_UNIX copies them.
const DRAIN_BYTES: usize = 1 << 20;
/// Between two rows, so that the reader has emptied the sockets.
const SETTLE: Duration = Duration::from_millis(300);
/// How late the reader may notice its end.
const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// Descriptors beside those of the connections.
const OWN_DESCRIPTORS: u64 = 64;

/// What to measure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    /// Connections, at least 1; both ends are in this process.
    pub connections: usize,
    /// Bytes of a message, at least 1.
    pub bytes: usize,
    /// Messages in a send, a row for each.
    pub joined: Vec<usize>,
    /// Seconds per row.
    pub seconds: u64,
    /// AF_UNIX instead of TCP.
    pub unix: bool,
    /// CPU of the sender.
    pub sender_cpu: usize,
    /// CPU of the reader.
    pub reader_cpu: usize,
}

/// What was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Floor {
    /// What was asked for.
    pub options: Options,
    /// Kernel and CPUs.
    pub machine: String,
    /// One per number of joined messages.
    pub rows: Vec<Row>,
}

/// One number of joined messages.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Messages in a send.
    pub joined: usize,
    /// Sends that took something.
    pub sends: u64,
    /// Sends that found the socket full: the reader was the slower one. Their time is in the figures.
    pub full: u64,
    /// The sender's CPU time per send, µs.
    pub us_per_send: f64,
    /// ... per message, by the bytes that were taken, µs.
    pub us_per_message: f64,
    /// Messages per second of real time.
    pub messages_per_second: f64,
}

/// Measures all rows.
///
/// # Errors
/// If the system refuses the connections or the CPUs; the text says what to do.
pub fn run(options: &Options) -> Result<Floor, String> {
    sys::allow_descriptors(options.connections as u64 * 2 + OWN_DESCRIPTORS)?;
    sys::pin(&[options.sender_cpu])?;
    let (senders, readers): (Vec<OwnedFd>, Vec<OwnedFd>) = pairs(options)
        .map_err(|error| format!("can't make {} connections: {error}", options.connections))?
        .into_iter()
        .unzip();
    let stop = AtomicBool::new(false);
    let rows = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            sys::pin(&[options.reader_cpu])?;
            drain(&readers, &stop).map_err(|error| format!("the reader failed: {error}"))
        });
        let mut rows = Vec::new();
        for &joined in &options.joined {
            let message = vec![b'x'; joined * options.bytes];
            match measure(&senders, &message, joined, options) {
                Ok(row) => rows.push(row),
                Err(error) => {
                    stop.store(true, Relaxed);
                    return Err(format!("a send failed: {error}"));
                }
            }
            std::thread::sleep(SETTLE);
        }
        stop.store(true, Relaxed);
        reader.join().map_err(|_| "the reader panicked")??;
        Ok(rows)
    })?;
    Ok(Floor { options: options.clone(), machine: process::machine(), rows })
}

impl Floor {
    /// The table for people.
    pub fn table(&self) -> String {
        let family = if self.options.unix { "AF_UNIX" } else { "TCP" };
        let mut text = format!(
            "{family}, {} connections, {} B\n{:>8} {:>9} {:>12} {:>14} {:>8}\n",
            self.options.connections,
            self.options.bytes,
            "joined",
            "us/send",
            "us/message",
            "messages/s",
            "full"
        );
        for row in &self.rows {
            let full = 100.0 * row.full as f64 / (row.full + row.sends).max(1) as f64;
            let _ = writeln!(
                text,
                "{:>8} {:>9.2} {:>12.3} {:>14.0} {full:>7.1}%",
                row.joined, row.us_per_send, row.us_per_message, row.messages_per_second
            );
        }
        text
    }
}

/// Sender's and reader's ends, non-blocking.
fn pairs(options: &Options) -> std::io::Result<Vec<(OwnedFd, OwnedFd)>> {
    if options.unix {
        let pair = || {
            let (sender, reader) = UnixStream::pair()?;
            sender.set_nonblocking(true)?;
            reader.set_nonblocking(true)?;
            Ok((sender.into(), reader.into()))
        };
        return (0..options.connections).map(|_| pair()).collect();
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let pair = || {
        let reader = TcpStream::connect(address)?;
        let (sender, _) = listener.accept()?;
        sender.set_nodelay(true)?;
        sender.set_nonblocking(true)?;
        reader.set_nonblocking(true)?;
        Ok((sender.into(), reader.into()))
    };
    (0..options.connections).map(|_| pair()).collect()
}

fn measure(senders: &[OwnedFd], message: &[u8], joined: usize, options: &Options) -> Result<Row, Errno> {
    let duration = Duration::from_secs(options.seconds);
    let (began, cpu) = (Instant::now(), sys::thread_cpu_ns());
    let (mut sends, mut full, mut bytes) = (0_u64, 0_u64, 0_u64);
    while began.elapsed() < duration {
        for sender in senders {
            match rustix::net::send(sender, message, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    sends += 1;
                    bytes += sent as u64;
                }
                Err(Errno::AGAIN | Errno::INTR) => full += 1,
                Err(error) => return Err(error),
            }
        }
    }
    let cpu_us = (sys::thread_cpu_ns() - cpu) as f64 / 1e3;
    let messages = bytes as f64 / options.bytes as f64;
    Ok(Row {
        joined,
        sends,
        full,
        us_per_send: cpu_us / sends as f64,
        us_per_message: cpu_us / messages,
        messages_per_second: messages / began.elapsed().as_secs_f64(),
    })
}

fn drain(readers: &[OwnedFd], stop: &AtomicBool) -> Result<(), Errno> {
    let queue = epoll::create(CreateFlags::CLOEXEC)?;
    for (index, reader) in readers.iter().enumerate() {
        epoll::add(&queue, reader, EventData::new_u64(index as u64), EventFlags::IN)?;
    }
    let mut events = Vec::with_capacity(256);
    let mut sink = vec![0; DRAIN_BYTES];
    while !stop.load(Relaxed) {
        match epoll::wait(&queue, spare_capacity(&mut events), Some(&WAIT)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        for event in events.drain(..) {
            let reader = &readers[event.data.u64() as usize];
            match rustix::net::recv(reader, &mut *sink, RecvFlags::TRUNC) {
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_has_its_sends_and_the_table_shows_them() {
        let allowed = rustix::thread::sched_getaffinity(None).unwrap();
        let cpu = (0..).find(|cpu| allowed.is_set(*cpu)).unwrap();
        for unix in [false, true] {
            let options = Options {
                connections: 3,
                bytes: 100,
                joined: vec![1, 8],
                seconds: 1,
                unix,
                sender_cpu: cpu,
                reader_cpu: cpu,
            };
            let floor = run(&options).unwrap();
            let joined: Vec<_> = floor.rows.iter().map(|row| row.joined).collect();
            assert_eq!(joined, [1, 8]);
            for row in &floor.rows {
                assert!(row.sends >= 3 && row.us_per_send > 0.0, "{row:?}");
                // Every send took all, or the last of a full socket a part.
                let per_send = row.us_per_send / row.us_per_message;
                assert!(per_send <= row.joined as f64 + 1e-6, "{row:?}");
            }
            assert_eq!(floor.table().lines().count(), 4);
        }
    }
}
