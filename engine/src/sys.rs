//! System calls that the standard library has no words for: descriptor tables, CPUs, doorbells, limits,
//! sockets.
//!
//! Unsafe, and why: each of these is one system call with arguments on the stack. Nothing here keeps a
//! pointer, and a wrong descriptor is an error (`EBADF`), never undefined behaviour.
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::IntoRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener};
use std::path::Path;
use std::time::Duration;

use libc::{c_int, c_void, socklen_t};

use crate::ring::{Fd, Now};

/// After this long without an answer from the peer a TCP connection is over, with or without bytes on their
/// way. Seconds; with [`KEEPALIVE_INTERVAL`] and a retransmission on top it stays under a minute.
pub const PEER_TIMEOUT: u32 = 50;
/// A silent peer is asked whether it still lives after this many seconds. Longer than the heartbeats of every
/// transport, so that a living connection costs no probe.
pub const KEEPALIVE_IDLE: u32 = 30;
/// Seconds between such questions.
pub const KEEPALIVE_INTERVAL: u32 = 5;
/// Clients that may wait on an AF_UNIX listener; the kernel clamps it to `net.core.somaxconn`.
pub const UNIX_BACKLOG: u32 = 4096;

/// Gives the calling thread a descriptor table of its own, a copy of the process's. From here on no other
/// thread sees what it opens, and RLIMIT_NOFILE counts for it alone.
pub fn unshare_files() -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::unshare(libc::CLONE_FILES) }).map(drop)
}

/// CPUs the calling thread may run on, ascending. Never empty.
pub fn allowed_cpus() -> Vec<usize> {
    // SAFETY: all zeroes is an empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes at most the size given.
    let result = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) };
    let cpus: Vec<usize> = (0..libc::CPU_SETSIZE as usize)
        // SAFETY: reads one bit below CPU_SETSIZE.
        .filter(|&cpu| result == 0 && unsafe { libc::CPU_ISSET(cpu, &set) })
        .collect();
    if cpus.is_empty() { vec![0] } else { cpus }
}

/// Keeps the calling thread on one CPU.
pub fn pin_to(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: all zeroes is an empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: `cpu` is below CPU_SETSIZE.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the kernel reads the size given.
    check(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) }).map(drop)
}

/// Both clocks: CLOCK_MONOTONIC in nanoseconds, the same for all threads, and CLOCK_REALTIME in milliseconds.
pub fn clocks() -> Now {
    let read = |clock| {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes one timespec. Neither clock can fail.
        unsafe { libc::clock_gettime(clock, &mut time) };
        (time.tv_sec as u64, time.tv_nsec as u64)
    };
    let (mono, wall) = (read(libc::CLOCK_MONOTONIC), read(libc::CLOCK_REALTIME));
    Now { mono: mono.0 * 1_000_000_000 + mono.1, wall: wall.0 * 1_000 + wall.1 / 1_000_000 }
}

/// A doorbell: an eventfd, non-blocking and close-on-exec. Made before [`unshare_files`], it has the same
/// number in every table.
pub fn eventfd() -> io::Result<Fd> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })
}

/// Rings a doorbell. One that is ringing already stays so.
pub fn ring_bell(bell: Fd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: reads the eight bytes. EAGAIN means that the counter is full, which is ringing.
    unsafe { libc::write(bell, one.as_ptr().cast(), one.len()) };
}

/// Silences a doorbell without waiting; whether it was ringing.
pub fn hush_bell(bell: Fd) -> bool {
    let mut count = [0u8; 8];
    // SAFETY: the kernel writes at most eight bytes.
    unsafe { libc::read(bell, count.as_mut_ptr().cast(), count.len()) == 8 }
}

/// Waits for a doorbell and silences it; `None` waits for ever. Whether it rang: `false` after `wait`, or
/// after a signal.
pub fn wait_bell(bell: Fd, wait: Option<Duration>) -> bool {
    let mut poll = libc::pollfd { fd: bell, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, as said.
    let ready = unsafe { libc::poll(&mut poll, 1, millis_up(wait)) };
    ready > 0 && hush_bell(bell)
}

/// A wait as poll(2) and epoll_wait(2) take it: milliseconds, rounded up so that a timer is due after it; -1
/// for ever.
pub fn millis_up(wait: Option<Duration>) -> c_int {
    let round = |wait: Duration| wait.as_nanos().div_ceil(1_000_000);
    wait.map_or(-1, |wait| c_int::try_from(round(wait)).unwrap_or(c_int::MAX))
}

/// Raises the soft limit of open descriptors to the hard one; `(soft, hard)` as they are afterwards.
pub fn raise_nofile() -> (u64, u64) {
    let (_, hard) = limit(libc::RLIMIT_NOFILE);
    let raised = libc::rlimit { rlim_cur: hard, rlim_max: hard };
    // SAFETY: reads one rlimit. Refused, the limit stays what it was, and is reported.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) };
    limit(libc::RLIMIT_NOFILE)
}

/// Keeps the kernel from backing this process's memory with huge pages: connections come and go in small pieces, and a
/// piece must not cost 2 MiB. Where the kernel can't, memory is only less exact.
pub fn refuse_huge_pages() {
    // SAFETY: takes no pointers, and changes nothing but how later pages are backed.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// Bytes this process may lock in memory (the soft RLIMIT_MEMLOCK); `None` without a limit.
pub fn memlock_limit() -> Option<u64> {
    let (soft, _) = limit(libc::RLIMIT_MEMLOCK);
    (soft != libc::RLIM_INFINITY).then_some(soft)
}

/// The sysctl `kernel.io_uring_disabled`: 0 allowed, 1 only with CAP_SYS_ADMIN or in the group
/// `kernel.io_uring_group`, 2 for nobody. `None` where the kernel has no such sysctl (before 6.6).
pub fn io_uring_disabled() -> Option<u32> {
    let text = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    text.trim().parse().ok()
}

/// How seccomp restricts this process: 0 not at all, 1 strict, 2 by filter. `None` if the kernel doesn't
/// tell.
pub fn seccomp_mode() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Seccomp:"))?;
    line.trim().parse().ok()
}

/// The running kernel's release, such as `6.18.44`; empty if the kernel doesn't tell.
pub fn kernel_release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

/// A listening TCP socket, non-blocking and close-on-exec, with SO_REUSEADDR. Accepted sockets inherit
/// TCP_NODELAY and the options that end a connection whose peer is gone (see [`PEER_TIMEOUT`]).
///
/// `reuse_port` lets every shard bind the same address, the kernel spreading clients over them; `v6_only`
/// keeps an IPv6 wildcard from taking IPv4 clients; `backlog` is the number of clients that may wait to be
/// accepted.
pub fn tcp_listener(addr: SocketAddr, reuse_port: bool, v6_only: bool, backlog: u32) -> io::Result<Fd> {
    let family = if addr.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes no pointers.
    let fd = check(unsafe { libc::socket(family, kind, 0) })?;
    let made = set_listener_options(fd, addr.is_ipv6().then_some(v6_only), reuse_port)
        .and_then(|()| bind(fd, addr))
        .and_then(|()| start_listening(fd, backlog));
    if let Err(error) = made {
        close(fd);
        return Err(error);
    }
    Ok(fd)
}

/// A TCP socket that holds an address for shards to listen on with `reuse_port`, and does not listen itself: port 0
/// becomes one that is free.
pub fn tcp_holder(addr: SocketAddr, v6_only: bool) -> io::Result<Fd> {
    let family = if addr.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: takes no pointers.
    let fd = check(unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    let made =
        set_listener_options(fd, addr.is_ipv6().then_some(v6_only), true).and_then(|()| bind(fd, addr));
    made.inspect_err(|_| close(fd))?;
    Ok(fd)
}

/// A listening AF_UNIX stream socket, non-blocking and close-on-exec. A socket file that nobody answers on,
/// left behind by a process that ended, is replaced; any other file is an error (`AddrInUse`).
pub fn unix_listener(path: &Path) -> io::Result<Fd> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_abandoned(path) => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        bound => bound?,
    };
    listener.set_nonblocking(true)?;
    let fd = listener.into_raw_fd();
    // The standard library listens with a backlog of 128; listening again only changes that.
    start_listening(fd, UNIX_BACKLOG).inspect_err(|_| close(fd))?;
    Ok(fd)
}

/// The address a TCP socket is bound to.
pub fn bound_addr(fd: Fd) -> io::Result<SocketAddr> {
    address(|storage, len| {
        // SAFETY: the kernel writes at most `len` bytes of the storage.
        unsafe { libc::getsockname(fd, storage, len) }
    })
}

/// The address of a TCP socket's peer; an error for AF_UNIX and for what is not connected (any more).
pub fn peer_addr(fd: Fd) -> io::Result<SocketAddr> {
    address(|storage, len| {
        // SAFETY: the kernel writes at most `len` bytes of the storage.
        unsafe { libc::getpeername(fd, storage, len) }
    })
}

/// Takes one client from a listener's queue: non-blocking, close-on-exec. `WouldBlock` when the queue is
/// empty.
pub fn accept(listener: Fd) -> io::Result<Fd> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no address is asked for.
    check(unsafe { libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), flags) })
}

/// Whether accepting can go on at once after this `errno`: it concerned one client, or nothing at all.
pub fn concerns_one_client(errno: i32) -> bool {
    matches!(errno, libc::ECONNABORTED | libc::EPROTO | libc::EINTR | libc::ECANCELED)
}

/// Reads what is there, without waiting. `Ok(0)` is the end of the stream.
pub fn recv(fd: Fd, into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `into.len()` bytes.
    size(unsafe { libc::recv(fd, into.as_mut_ptr().cast(), into.len(), libc::MSG_DONTWAIT) })
}

/// Writes what fits, without waiting and without SIGPIPE.
pub fn send(fd: Fd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the kernel reads at most `bytes.len()` bytes.
    size(unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) })
}

/// Ends both directions of a connection; what was sent still goes out, followed by a FIN.
pub fn shutdown(fd: Fd) {
    // SAFETY: takes no pointers. Fails only if the connection is over, which is what is wanted.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

/// Makes the coming [`close`] drop what was not yet sent and answer with a RST. No effect on AF_UNIX.
pub fn reset_on_close(fd: Fd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // Fails only if the connection is over, which is what is wanted.
    let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, &linger);
}

/// Closes a descriptor. On Linux it is closed whatever the result, so there is none.
pub fn close(fd: Fd) {
    // SAFETY: takes no pointers; the caller owns the descriptor.
    unsafe { libc::close(fd) };
}

/// Tells systemd a state such as `READY=1` (sd_notify(3)). `Ok(false)` when nobody wants to know.
pub fn sd_notify(state: &str) -> io::Result<bool> {
    std::env::var_os("NOTIFY_SOCKET").map_or(Ok(false), |path| notify(&path, state).map(|()| true))
}

/// Sets a socket's send buffer, bytes; the kernel doubles it and has a minimum of its own.
#[cfg(test)]
pub fn set_send_buffer(fd: Fd, bytes: c_int) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, &bytes)
}

fn notify(path: &OsStr, state: &str) -> io::Result<()> {
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => UnixAddr::from_abstract_name(name)?,
        None => UnixAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

fn set_listener_options(fd: Fd, v6_only: Option<bool>, reuse_port: bool) -> io::Result<()> {
    let on: c_int = 1;
    set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, &on)?;
    if reuse_port {
        set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, &on)?;
    }
    if let Some(v6_only) = v6_only {
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &c_int::from(v6_only))?;
    }
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &on)?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, &on)?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, &KEEPALIVE_IDLE)?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, &KEEPALIVE_INTERVAL)?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, &(PEER_TIMEOUT * 1000))
}

fn set_option<T: Copy>(fd: Fd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let value_ptr: *const c_void = std::ptr::from_ref(value).cast();
    // SAFETY: the kernel reads `size_of::<T>()` bytes, and refuses a size that doesn't fit the option.
    check(unsafe { libc::setsockopt(fd, level, name, value_ptr, size_of::<T>() as socklen_t) }).map(drop)
}

fn start_listening(fd: Fd, backlog: u32) -> io::Result<()> {
    let backlog = c_int::try_from(backlog).unwrap_or(c_int::MAX);
    // SAFETY: takes no pointers.
    check(unsafe { libc::listen(fd, backlog) }).map(drop)
}

fn bind(fd: Fd, addr: SocketAddr) -> io::Result<()> {
    let result = match addr {
        SocketAddr::V4(addr) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: addr.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(addr.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: the kernel reads the size given.
            unsafe { libc::bind(fd, (&raw const raw).cast(), size_of_val(&raw) as socklen_t) }
        }
        SocketAddr::V6(addr) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: addr.port().to_be(),
                sin6_flowinfo: addr.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: addr.ip().octets() },
                sin6_scope_id: addr.scope_id(),
            };
            // SAFETY: the kernel reads the size given.
            unsafe { libc::bind(fd, (&raw const raw).cast(), size_of_val(&raw) as socklen_t) }
        }
    };
    check(result).map(drop)
}

fn address(ask: impl FnOnce(*mut libc::sockaddr, *mut socklen_t) -> c_int) -> io::Result<SocketAddr> {
    // SAFETY: all zeroes is a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let mut len = size_of_val(&storage) as socklen_t;
    check(ask((&raw mut storage).cast(), &mut len))?;
    match c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says what the storage holds, and it is aligned and large enough for any.
            let raw = unsafe { &*(&raw const storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
            Ok(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let raw = unsafe { &*(&raw const storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            let port = u16::from_be(raw.sin6_port);
            Ok(SocketAddrV6::new(ip, port, raw.sin6_flowinfo, raw.sin6_scope_id).into())
        }
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Whether a path is a socket that nobody has open. A datagram socket does the asking: it is refused if
/// nobody is there, gets `EPROTOTYPE` if a stream socket is, and never waits in a full backlog as a stream
/// would.
fn is_abandoned(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    let answer = UnixDatagram::unbound().and_then(|socket| socket.connect(path));
    is_socket && answer.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn limit(resource: libc::__rlimit_resource_t) -> (u64, u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one rlimit. Reading one's own limits can't fail.
    unsafe { libc::getrlimit(resource, &mut limit) };
    (limit.rlim_cur, limit.rlim_max)
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn size(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn accepted_sockets_inherit_what_ends_a_dead_peer() {
        let listener = tcp_listener("127.0.0.1:0".parse().unwrap(), true, false, 16).unwrap();
        let client = TcpStream::connect(bound_addr(listener).unwrap()).unwrap();
        assert!(has_client(listener));
        let fd = accept(listener).unwrap();
        assert_eq!(peer_addr(fd).unwrap(), client.local_addr().unwrap());
        for (level, name, expected) in [
            (libc::IPPROTO_TCP, libc::TCP_NODELAY, 1),
            (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, PEER_TIMEOUT as c_int * 1000),
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, KEEPALIVE_IDLE as c_int),
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, KEEPALIVE_INTERVAL as c_int),
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        ] {
            assert_eq!(option(fd, level, name), expected, "option {level}/{name}");
        }
        assert_eq!(accept(listener).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        close(fd);
        close(listener);
    }

    #[test]
    fn several_listeners_share_a_port_only_if_asked_to() {
        let first = tcp_listener("127.0.0.1:0".parse().unwrap(), true, false, 16).unwrap();
        let addr = bound_addr(first).unwrap();
        let second = tcp_listener(addr, true, false, 16).unwrap();
        let third = tcp_listener(addr, false, false, 16).unwrap_err();
        assert_eq!(third.kind(), io::ErrorKind::AddrInUse);
        close(first);
        close(second);
    }

    #[test]
    fn an_ipv6_wildcard_takes_ipv4_clients_unless_forbidden() {
        for (v6_only, reachable) in [(false, true), (true, false)] {
            let listener = tcp_listener("[::]:0".parse().unwrap(), false, v6_only, 16).unwrap();
            let port = bound_addr(listener).unwrap().port();
            assert_eq!(TcpStream::connect(("127.0.0.1", port)).is_ok(), reachable);
            close(listener);
        }
    }

    #[test]
    fn only_an_abandoned_socket_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bell.sock");
        let first = unix_listener(&path).unwrap();
        let taken = unix_listener(&path).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse, "somebody is listening");
        close(first);
        let second = unix_listener(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        assert!(peer_addr(accept(second).unwrap()).is_err(), "AF_UNIX has no address to show");
        close(second);

        let file = dir.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert_eq!(unix_listener(&file).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    }

    #[test]
    fn systemd_is_told_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("wellhead-notify-{}", std::process::id());
        let abstract_name = UnixAddr::from_abstract_name(&name).unwrap();
        for (socket, address) in [
            (UnixDatagram::bind(&path).unwrap(), path.as_os_str().to_owned()),
            (UnixDatagram::bind_addr(&abstract_name).unwrap(), format!("@{name}").into()),
        ] {
            notify(&address, "READY=1").unwrap();
            let mut state = [0; 64];
            let len = socket.recv(&mut state).unwrap();
            assert_eq!(&state[..len], b"READY=1");
        }
        assert!(notify(OsStr::new("/nowhere/at/all"), "READY=1").is_err());
    }

    #[test]
    fn a_bell_rings_once_however_often_it_was_rung() {
        let bell = eventfd().unwrap();
        assert!(!wait_bell(bell, Some(Duration::ZERO)));
        ring_bell(bell);
        ring_bell(bell);
        assert!(wait_bell(bell, None));
        assert!(!hush_bell(bell));
        close(bell);
    }

    #[test]
    fn an_unshared_table_is_invisible_but_keeps_the_bells() {
        let bell = eventfd().unwrap();
        // Far above any number that another test has open.
        let own = std::thread::spawn(move || {
            unshare_files().unwrap();
            ring_bell(bell);
            let open = || std::fs::File::open("/dev/null").unwrap().into_raw_fd();
            std::iter::repeat_with(open).find(|&fd| fd > 5000)
        });
        let own = own.join().unwrap().unwrap();
        assert!(wait_bell(bell, Some(Duration::from_secs(10))), "one bell in both tables");
        let mut storage = [0u8; 1];
        let error = recv(own, &mut storage).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        close(bell);
    }

    #[test]
    fn a_thread_stays_where_it_is_pinned() {
        let cpus = allowed_cpus();
        let last = *cpus.last().unwrap();
        let seen = std::thread::spawn(move || pin_to(last).map(|()| allowed_cpus()));
        assert_eq!(seen.join().unwrap().unwrap(), [last]);
        assert!(pin_to(1 << 20).is_err());
    }

    #[test]
    fn waits_are_rounded_up() {
        for (wait, millis) in [
            (None, -1),
            (Some(Duration::ZERO), 0),
            (Some(Duration::from_nanos(1)), 1),
            (Some(Duration::from_millis(7)), 7),
            (Some(Duration::MAX), c_int::MAX),
        ] {
            assert_eq!(millis_up(wait), millis);
        }
    }

    #[test]
    fn the_process_can_be_asked_about_its_limits() {
        let (soft, hard) = raise_nofile();
        assert_eq!(soft, hard);
        assert!(memlock_limit().is_none_or(|bytes| bytes > 0));
        assert!(seccomp_mode().is_some_and(|mode| mode <= 2));
        assert!(io_uring_disabled().is_none_or(|value| value <= 2));
        assert!(kernel_release().contains('.'));
    }

    #[test]
    fn a_reset_is_told_from_an_end() {
        for (reset, expected) in [(false, Ok(0)), (true, Err(io::ErrorKind::ConnectionReset))] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            client.write_all(b"").unwrap();
            if reset {
                reset_on_close(server.as_raw_fd());
            }
            drop(server);
            assert_eq!(client.read(&mut [0; 8]).map_err(|error| error.kind()), expected);
        }
    }

    fn option(fd: Fd, level: c_int, name: c_int) -> c_int {
        let (mut value, mut len) = (0, size_of::<c_int>() as socklen_t);
        // SAFETY: the kernel writes one int.
        unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &mut len) };
        value
    }

    fn has_client(fd: Fd) -> bool {
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, as said.
        unsafe { libc::poll(&mut poll, 1, 10_000) == 1 }
    }
}
