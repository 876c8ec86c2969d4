//! The seam over monoio: the only place that knows both.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::seam::{Acceptor, OutBuf, Runtime, Stream};
use super::{ActiveDriver, Direction, Listener, Peer, Socket, net, resolve, spawn, sys, time};

/// monoio on the driver that the thread's [`Executor`](super::Executor) stands on.
#[derive(Debug, Clone, Copy)]
pub struct Monoio(pub ActiveDriver);

impl Runtime for Monoio {
    type Socket = Socket;
    type Listener = Listener;

    fn now_us() -> u64 {
        time::now_us()
    }

    fn sleep(duration: Duration) -> impl Future<Output = ()> + use<> + 'static {
        time::sleep(duration)
    }

    fn spawn(future: impl Future<Output = ()> + 'static) {
        spawn(future);
    }

    fn connect(
        self,
        addr: SocketAddr,
        timeout: Duration,
    ) -> impl Future<Output = io::Result<Socket>> + use<> {
        net::connect(addr, timeout, self.0)
    }

    fn connect_local(self, path: &str) -> io::Result<Socket> {
        net::connect_local(path, self.0)
    }

    fn resolve(name: &str) -> impl Future<Output = Option<SocketAddr>> {
        resolve::resolve(name)
    }
}

impl Stream for Socket {
    type Handle = RawFd;

    fn handle(&self) -> RawFd {
        self.fd()
    }

    fn shutdown_by(fd: &RawFd, direction: Direction) {
        sys::shutdown(*fd, direction);
    }

    fn read(&self, buf: BytesMut) -> impl Future<Output = (io::Result<usize>, BytesMut)> + use<> + 'static {
        Socket::read(self, buf)
    }

    fn write_range<B: OutBuf>(
        &self,
        buf: B,
        from: usize,
        to: usize,
    ) -> impl Future<Output = (io::Result<()>, B)> + use<B> {
        Socket::write_range(self, buf, from, to)
    }

    fn write_both(
        &self,
        first: Bytes,
        second: Bytes,
    ) -> impl Future<Output = io::Result<()>> + use<> + 'static {
        Socket::write_both(self, first, second)
    }

    fn write_pieces(&self, pieces: Vec<Bytes>) -> impl Future<Output = io::Result<()>> + use<> + 'static {
        Socket::write_pieces(self, pieces)
    }

    fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        Socket::send_now(self, bytes)
    }

    fn readable(&self) -> impl Future<Output = io::Result<()>> + use<> + 'static {
        Socket::readable(self)
    }

    fn peer(&self) -> Peer {
        Socket::peer(self)
    }

    fn is_quiet(&self) -> bool {
        Socket::is_quiet(self)
    }

    fn has_unread(&self) -> bool {
        Socket::has_unread(self)
    }

    fn reset_on_close(&self) {
        Socket::reset_on_close(self);
    }
}

impl Acceptor for Listener {
    type Socket = Socket;

    async fn ready(&self) -> io::Result<()> {
        Listener::ready(self).await
    }

    fn take(&self) -> io::Result<Option<Socket>> {
        Listener::take(self)
    }
}
