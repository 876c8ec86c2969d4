//! The seam over glommio 0.9, for those who want to compare. It stands on io_uring and has nothing else: where rings are
//! refused it does not start.
//!
//! Its sockets go by readiness: system calls that do not wait, and the ring only to be told when to try again. A dropped
//! read loses nothing here. What it does not offer (the peer's state, vectored writes, a listener that can be waited for
//! without taking a connection) is done on the descriptor itself. Its `spsc_queue`, whose ends can be cloned and then
//! free twice, is not used; wakes from other threads go through its wakers.

mod executor;
mod listener;
mod socket;

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

pub use executor::GlommioExecutor;
pub use listener::GlommioListener;
pub use socket::GlommioSocket;

use super::seam::Runtime;
use super::{net, resolve, time};

/// glommio on the calling thread's [`GlommioExecutor`].
#[derive(Debug, Clone, Copy)]
pub struct Glommio;

impl Runtime for Glommio {
    type Socket = GlommioSocket;
    type Listener = GlommioListener;

    fn now_us() -> u64 {
        time::now_us()
    }

    fn sleep(duration: Duration) -> impl Future<Output = ()> + use<> + 'static {
        glommio::timer::sleep(duration)
    }

    fn spawn(future: impl Future<Output = ()> + 'static) {
        drop(glommio::spawn_local(future).detach());
    }

    async fn connect(self, addr: SocketAddr, timeout: Duration) -> io::Result<GlommioSocket> {
        let socket = GlommioSocket::new(net::begin_connect(addr)?.into());
        // An empty write ends when the handshake has: well, or with the reason why not.
        match Self::within(timeout, poll_fn(|cx| socket.poll_write(cx, &[]))).await {
            Some(result) => result.map(|_| socket),
            None => Err(io::Error::from(io::ErrorKind::TimedOut)),
        }
    }

    fn connect_local(self, path: &str) -> io::Result<GlommioSocket> {
        net::connected_local(path).map(|raw| GlommioSocket::new(raw.into()))
    }

    fn resolve(name: &str) -> impl Future<Output = Option<SocketAddr>> {
        resolve::resolve(name)
    }
}
