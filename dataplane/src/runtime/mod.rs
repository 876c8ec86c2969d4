//! The runtime seam: everything that a shard asks of its runtime ([`Runtime`], [`Stream`], [`Acceptor`]), over monoio
//! on io_uring or epoll ([`Monoio`]), or over glommio (feature `glommio`). A thread starts either by its [`Backend`].
//!
//! One runtime per shard thread; nothing here is `Send` except [`Notify`] and [`Bell`]. Rules of the seam:
//!
//! * reads and writes own their buffers and are polled to their end; only waiting for readiness, timers and
//!   notifications may be dropped (see [`Socket`]);
//! * waiting for a peer goes through [`Socket::readable`], so that an idle connection holds no buffer;
//! * a task never wakes itself to yield: this scheduler would run it again before all others;
//! * an executor lives until the process exits (see [`Executor`]).

mod backend;
mod driver;
mod gather;
#[cfg(feature = "glommio")]
mod glommio;
mod link;
mod net;
mod op;
mod real;
mod resolve;
mod seam;
#[cfg(feature = "sim")]
pub mod sim;
mod socket;
pub mod sys;
mod time;
mod wake;

pub use backend::{Backend, Kind, NotBuilt, UnknownKind};
pub use driver::{ActiveDriver, Driver, Executor, UnknownDriver};
#[cfg(feature = "glommio")]
pub use glommio::{Glommio, GlommioExecutor, GlommioListener, GlommioSocket};
pub use link::{Layer, Link, LinkHandle};
pub use net::{Listener, bind_shared, connect, connect_local, is_local, local_path};
pub use op::Op;
pub use real::Monoio;
pub use resolve::resolve;
pub use seam::{Acceptor, Either, OutBuf, Runtime, Stream, either};
pub use socket::Socket;
pub use sys::{Direction, Peer};
pub use time::{now_us, sleep, within};
pub use wake::{Bell, Notify};

/// Starts a task on this thread, which runs monoio.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    drop(monoio::spawn(future));
}

#[cfg(test)]
mod tests;
