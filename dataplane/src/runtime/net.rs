//! Listening and connecting.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket as RawSocket, TcpKeepalive, Type};

use super::socket::Socket;
use super::{ActiveDriver, sys, time};

/// Connections that the kernel queues for one listener before it refuses more (the system's `somaxconn` cuts it).
const BACKLOG: i32 = 4096;

/// Finds clients whose machine vanished without a word.
const CLIENT_KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(15))
    .with_retries(4);
/// Finds targets whose machine vanished while they were to answer: there is no deadline for the answer itself.
const TARGET_KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(15))
    .with_interval(Duration::from_secs(5))
    .with_retries(3);
/// How long what was sent to a target may stay unacknowledged by its kernel.
const TARGET_UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// Binds `count` listeners to one address with `SO_REUSEPORT`, one for each shard; port 0 is resolved by the first.
/// `TCP_NODELAY` and keep-alive are set on them and inherited by every accepted connection.
///
/// # Errors
/// The address cannot be bound, or somebody listens there already.
pub fn bind_shared(addr: SocketAddr, count: usize) -> io::Result<Vec<StdListener>> {
    let mut addr = addr;
    if addr.port() != 0 {
        // A port is shared among the shards of one process. With another process that shares its own, each would get
        // half of the connections; a bind without the option finds that out.
        let alone = RawSocket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        alone.set_reuse_address(true)?;
        alone.bind(&SockAddr::from(addr))?;
    }
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = RawSocket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&CLIENT_KEEPALIVE)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SockAddr::from(addr))?;
        socket.listen(BACKLOG)?;
        let listener: StdListener = socket.into();
        addr = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// A shard's listener. Waiting is separate from taking a connection, so that waiting can be given up (to drain)
/// without losing a connection that has just been accepted.
pub struct Listener {
    inner: monoio::net::TcpListener,
    nonblocking_streams: bool,
}

impl Listener {
    /// Registers the listener with this thread's runtime.
    ///
    /// # Errors
    /// The runtime refuses the descriptor.
    pub fn from_std(listener: StdListener, driver: ActiveDriver) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let nonblocking_streams = driver == ActiveDriver::Epoll;
        Ok(Self { inner: monoio::net::TcpListener::from_std(listener)?, nonblocking_streams })
    }

    /// Waits until a connection may be waiting. May be dropped at any time.
    ///
    /// # Errors
    /// The wait failed.
    pub async fn ready(&self) -> io::Result<()> {
        self.inner.readable(false).await
    }

    /// Takes one waiting connection, `None` when there is none.
    ///
    /// # Errors
    /// Among others: descriptors are exhausted.
    pub fn take(&self) -> io::Result<Option<Socket>> {
        match sys::accept(self.inner.as_raw_fd(), self.nonblocking_streams)? {
            Some(stream) => Socket::from_std(stream).map(Some),
            None => Ok(None),
        }
    }
}

impl Drop for Listener {
    /// Ends listening at once. On io_uring the descriptor itself is closed by an operation that nobody may be left to
    /// complete; until the process's end the kernel would go on taking connections that are never served.
    fn drop(&mut self) {
        sys::shutdown(self.inner.as_raw_fd(), sys::Direction::Read);
    }
}

/// How the address of a Unix socket begins.
const LOCAL: &str = "unix:";

/// The path of an address `unix:/path`.
pub fn local_path(address: &str) -> Option<&str> {
    address.strip_prefix(LOCAL)
}

/// Whether an address is that of a Unix socket.
pub fn is_local(address: &str) -> bool {
    local_path(address).is_some()
}

/// Connects to a Unix socket. The kernel takes or refuses such a connection at once; a full backlog is a refusal.
///
/// # Errors
/// Nobody listens there, the path is too long, or descriptors are exhausted.
pub fn connect_local(path: &str, driver: ActiveDriver) -> io::Result<Socket> {
    let raw = connected_local(path)?;
    if driver == ActiveDriver::Uring {
        // On a non-blocking descriptor the ring would answer EAGAIN instead of waiting.
        raw.set_nonblocking(false)?;
    }
    Socket::from_std(raw.into())
}

/// A non-blocking socket, connected to a Unix socket.
pub(super) fn connected_local(path: &str) -> io::Result<RawSocket> {
    let raw = RawSocket::new(Domain::UNIX, Type::STREAM, None)?;
    raw.set_nonblocking(true)?;
    raw.connect(&SockAddr::unix(path)?)?;
    Ok(raw)
}

/// A non-blocking socket with the options of connections to targets, whose handshake is under way or done.
pub(super) fn begin_connect(addr: SocketAddr) -> io::Result<RawSocket> {
    let raw = RawSocket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    raw.set_tcp_nodelay(true)?;
    raw.set_tcp_keepalive(&TARGET_KEEPALIVE)?;
    raw.set_tcp_user_timeout(Some(TARGET_UNACKNOWLEDGED))?;
    raw.set_nonblocking(true)?;
    match raw.connect(&SockAddr::from(addr)) {
        Ok(()) => Ok(raw),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(raw),
        Err(error) => Err(error),
    }
}

/// Connects within `timeout`. `TCP_NODELAY` is set before the handshake.
///
/// May be dropped at any time: the attempt is then abandoned and its descriptor closed.
///
/// # Errors
/// Refused, unreachable, out of descriptors or ports, or [`io::ErrorKind::TimedOut`].
pub async fn connect(addr: SocketAddr, timeout: Duration, driver: ActiveDriver) -> io::Result<Socket> {
    let socket = Socket::from_std(begin_connect(addr)?.into())?;
    match time::within(timeout, socket.writable()).await {
        Some(result) => result?,
        None => return Err(io::Error::from(io::ErrorKind::TimedOut)),
    }
    sys::take_error(socket.fd())?;
    if driver == ActiveDriver::Uring {
        // On a non-blocking descriptor the ring would answer EAGAIN instead of waiting.
        sys::set_nonblocking(socket.fd(), false)?;
    }
    Ok(socket)
}
