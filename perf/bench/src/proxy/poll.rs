//! epoll, with waits to the nanosecond, and limits of descriptors.
#![allow(unsafe_code)]

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Wake when something can be read.
pub const READ: u32 = libc::EPOLLIN as u32;
/// Wake when something can be written.
pub const WRITE: u32 = libc::EPOLLOUT as u32;

/// Events taken at a time.
const EVENTS: usize = 256;

/// A set of descriptors that are waited for, each under a number.
pub struct Poll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Poll {
    /// An empty set.
    ///
    /// # Errors
    /// Descriptors are exhausted.
    pub fn new() -> io::Result<Self> {
        // SAFETY: plain system call.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS] })
    }

    /// Adds a descriptor under `key`. Closing it removes it.
    ///
    /// # Errors
    /// It is there already, or limits of the system.
    pub fn add(&self, what: &impl AsRawFd, key: usize, interest: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, what, key, interest)
    }

    /// Changes what is waited for.
    ///
    /// # Errors
    /// It is not there.
    pub fn change(&self, what: &impl AsRawFd, key: usize, interest: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, what, key, interest)
    }

    fn control(&self, operation: i32, what: &impl AsRawFd, key: usize, interest: u32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest, u64: key as u64 };
        // SAFETY: the call reads one event where it is told to.
        let result = unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, what.as_raw_fd(), &mut event) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits for at most `limit`; the number of events, which [`Self::event`] gives.
    ///
    /// # Errors
    /// Those of the kernel; a signal is none.
    pub fn wait(&mut self, limit: Duration) -> io::Result<usize> {
        let time = libc::timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        };
        // SAFETY: pointer and length describe the events; no signal mask is given.
        let count = unsafe {
            libc::epoll_pwait2(
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                EVENTS as i32,
                &raw const time,
                std::ptr::null(),
            )
        };
        match usize::try_from(count) {
            Ok(count) => Ok(count),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
                error => Err(error),
            },
        }
    }

    /// Key of an event, and whether something can be read or has ended.
    pub fn event(&self, n: usize) -> (usize, bool, bool) {
        let libc::epoll_event { events, u64: key } = self.events[n];
        (key as usize, events & !WRITE != 0, events & WRITE != 0)
    }
}

/// Connects without delaying small packets, and makes what comes of it non-blocking.
///
/// # Errors
/// Refused, or out of ports or descriptors.
pub fn connect(addr: std::net::SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Listens at a free port of the loopback with a queue that holds whatever comes at once.
///
/// # Errors
/// Descriptors or ports are exhausted.
pub fn listen() -> io::Result<TcpListener> {
    const QUEUE: i32 = 4096;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    // SAFETY: plain system call; listening again only changes the queue's length.
    unsafe { libc::listen(listener.as_raw_fd(), QUEUE) };
    Ok(listener)
}

/// Raises this process's limit of descriptors, which its children get, to what it may be; the limit.
pub fn raise_descriptors() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the calls read and write one plain value.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 {
            return 0;
        }
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
    limit.rlim_cur
}
