//! The few system calls that neither `std`, `socket2` nor monoio offers in the form a shard needs.
//!
//! Everything here takes a raw descriptor that the caller keeps open for the length of the call; none of the
//! functions keeps or closes it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// What the kernel knows of the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Both directions are open.
    Open,
    /// The peer has sent its last byte (FIN); it may still read, or it may be gone altogether.
    HalfClosed,
    /// The connection was reset or is closed in both directions.
    Gone,
}

/// Asks for the state of the peer without reading a byte, so it also sees a FIN behind unread data.
pub fn peer_state(fd: RawFd) -> Peer {
    let mut entry = libc::pollfd { fd, events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one valid pollfd, length one, no wait.
    let ready = unsafe { libc::poll(&mut entry, 1, 0) };
    if ready <= 0 {
        return Peer::Open;
    }
    if entry.revents & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0 {
        Peer::Gone
    } else if entry.revents & libc::POLLRDHUP != 0 {
        Peer::HalfClosed
    } else {
        Peer::Open
    }
}

/// Whether a pooled connection can carry another request: nothing unread, no FIN, no error.
pub fn is_quiet(fd: RawFd) -> bool {
    let mut entry = libc::pollfd { fd, events: libc::POLLIN | libc::POLLRDHUP, revents: 0 };
    // SAFETY: one valid pollfd, length one, no wait.
    let ready = unsafe { libc::poll(&mut entry, 1, 0) };
    ready == 0
}

/// Whether bytes have arrived that nobody has read.
pub fn has_unread(fd: RawFd) -> bool {
    let mut byte = 0u8;
    // SAFETY: pointer and length describe one valid byte; a peek takes nothing away.
    let count = unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    count > 0
}

/// Which directions [`shutdown`] ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// A pending or later read ends at once.
    Read,
    /// A FIN is sent; reading goes on.
    Write,
    /// Both; a pending write fails.
    Both,
}

/// Ends directions of a socket. This is how a shard ends an operation that another task waits for: the
/// operation completes by itself, so none has to be dropped.
pub fn shutdown(fd: RawFd, direction: Direction) {
    let how = match direction {
        Direction::Read => libc::SHUT_RD,
        Direction::Write => libc::SHUT_WR,
        Direction::Both => libc::SHUT_RDWR,
    };
    // SAFETY: plain system call; an error (not connected any more) needs no handling.
    unsafe { libc::shutdown(fd, how) };
}

/// Sends what fits without waiting, whatever the blocking mode, and without a signal at a closed connection.
pub fn send_now(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe one valid slice.
    let sent = unsafe {
        libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Sends what fits of several buffers without waiting, whatever the blocking mode, and without a signal at a closed
/// connection.
#[cfg(feature = "glommio")]
pub fn send_vectored(fd: RawFd, bufs: &impl monoio::buf::IoVecBuf) -> io::Result<usize> {
    // SAFETY: an all-zero header is a valid empty one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = bufs.read_iovec_ptr().cast_mut();
    message.msg_iovlen = bufs.read_iovec_len() as _;
    // SAFETY: the vector and what it points to are valid for as long as `bufs` lives, which its trait promises; the call
    // reads them and keeps nothing.
    let sent = unsafe { libc::sendmsg(fd, &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Bytes of memory that this process may lock.
#[cfg(feature = "glommio")]
pub fn locked_memory_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call fills one valid rlimit.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    if result == 0 { Ok(limit.rlim_cur) } else { Err(io::Error::last_os_error()) }
}

/// Makes the close of this socket an immediate reset, so that the peer cannot take a cut answer for a whole one.
pub fn reset_on_close(fd: RawFd) {
    // SAFETY: the caller keeps the descriptor open; the borrow ends with this call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let _ = socket2::SockRef::from(&fd).set_linger(Some(std::time::Duration::ZERO));
}

/// Accepts one connection; `Ok(None)` when none is waiting. The listener must be non-blocking.
pub fn accept(listener: RawFd, nonblocking: bool) -> io::Result<Option<std::net::TcpStream>> {
    let flags = libc::SOCK_CLOEXEC | if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
    // SAFETY: no address is asked for, so both pointers may be null.
    let fd = unsafe { libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), flags) };
    if fd >= 0 {
        // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
        return Ok(Some(unsafe { std::net::TcpStream::from_raw_fd(fd) }));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EINTR | libc::ECONNABORTED) => Ok(None),
        _ => Err(error),
    }
}

/// The pending error of a socket, cleared by the read.
pub fn take_error(fd: RawFd) -> io::Result<()> {
    // SAFETY: the caller keeps the descriptor open; the borrow ends with this call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    match socket2::SockRef::from(&fd).take_error()? {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Switches `O_NONBLOCK`.
pub fn set_nonblocking(fd: RawFd, on: bool) -> io::Result<()> {
    // SAFETY: the caller keeps the descriptor open; the borrow ends with this call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    socket2::SockRef::from(&fd).set_nonblocking(on)
}

/// The kernel's monotonic clock, microseconds. A shard reads it at every step of a request, and `Instant` costs some dozen
/// instructions more each time.
pub fn monotonic_us() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills one valid timespec; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
}

/// A non-blocking event counter.
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: plain system call.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds one to an event counter. A full counter is already a pending wake, so errors need no handling.
pub fn eventfd_ring(fd: impl AsFd) {
    use std::os::fd::AsRawFd;
    let one = 1u64.to_ne_bytes();
    // SAFETY: the buffer is eight valid bytes.
    unsafe { libc::write(fd.as_fd().as_raw_fd(), one.as_ptr().cast(), one.len()) };
}

/// Empties an event counter.
pub fn eventfd_drain(fd: impl AsFd) {
    use std::os::fd::AsRawFd;
    let mut count = [0u8; 8];
    // SAFETY: the buffer is eight valid bytes; the descriptor is non-blocking.
    unsafe { libc::read(fd.as_fd().as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
}

/// A timer whose descriptor becomes readable when it has run out.
pub fn timerfd() -> io::Result<OwnedFd> {
    // SAFETY: plain system call.
    let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets a timer, whatever it was set to before; an earlier expiry that nobody has read is forgotten.
pub fn timerfd_set(timer: impl AsFd, after: std::time::Duration) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // A zero would switch it off.
    let nanos = after.as_nanos().clamp(1, i64::MAX as u128) as i64;
    let value = libc::timespec { tv_sec: nanos / 1_000_000_000, tv_nsec: nanos % 1_000_000_000 };
    let spec = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
    // SAFETY: a valid itimerspec; the old one is not asked for.
    let result = unsafe { libc::timerfd_settime(timer.as_fd().as_raw_fd(), 0, &spec, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes a timer's expiry; `WouldBlock` when it has not run out.
pub fn timerfd_expired(timer: impl AsFd) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let mut count = [0u8; 8];
    // SAFETY: the buffer is eight valid bytes; the descriptor is non-blocking.
    let read = unsafe { libc::read(timer.as_fd().as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    if read < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The processors this process may run on, in ascending order.
pub fn allowed_cores() -> Vec<usize> {
    // SAFETY: an all-zero cpu_set_t is a valid empty set; the call fills it within its size.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, std::mem::size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            return Vec::new();
        }
        set
    };
    let limit = 8 * std::mem::size_of::<libc::cpu_set_t>();
    // SAFETY: `core` stays below the number of bits in the set.
    (0..limit).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect()
}

/// Pins the calling thread to one processor.
pub fn pin_to_core(core: usize) -> io::Result<()> {
    if core >= 8 * std::mem::size_of::<libc::cpu_set_t>() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: an all-zero cpu_set_t is a valid empty set and `core` is inside it.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, std::mem::size_of::<libc::cpu_set_t>(), &set)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
