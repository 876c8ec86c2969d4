//! The simulated backend: any number of processes in one thread, in virtual time, decided by one seed.
//!
//! A [`World`] runs tasks one at a time. Which runnable task comes next, how long a poll takes, when bytes arrive, how
//! many of them one read or write moves and how late a timer fires all follow from the seed, so a run is repeated
//! exactly by its seed; [`World::trace`] is a hash of everything that happened, in order.
//!
//! *Processes* own tasks, listeners and connections. A killed process loses all of them at once, as its kernel would
//! clean up: connections are closed, or reset where bytes were left unread. A paused process runs no task until its
//! pause is over. Each has a clock of its own (an offset; [`Sim::now_us`](super::Runtime::now_us)).
//!
//! *Sockets* ([`SimSocket`]) keep the rules of the seam and check them: a read or write that was begun and dropped
//! loses bytes on a completion-based driver, so using the connection on afterwards panics here.
//!
//! Nothing here is for production: it is built with the cargo feature `sim` only.

mod net;
mod pipe;
mod socket;
mod world;

pub use net::SimListener;
pub use socket::SimSocket;
pub use world::{
    Chances, ProcessId, World, WorldOptions, below, chance, chances, is_running, note, now, process, wake_at,
};

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::seam::Runtime;

/// The simulated runtime: the world that runs on the calling thread.
#[derive(Debug, Clone, Copy)]
pub struct Sim;

impl Sim {
    /// Listens at `addr` for the process whose task calls this.
    ///
    /// # Errors
    /// Somebody listens there already.
    pub fn listen(addr: SocketAddr) -> io::Result<SimListener> {
        net::listen(addr)
    }
}

impl Runtime for Sim {
    type Socket = SimSocket;
    type Listener = SimListener;

    fn now_us() -> u64 {
        world::current(|world| world.process_now())
    }

    fn sleep(duration: Duration) -> impl Future<Output = ()> + use<> + 'static {
        world::sleep(duration)
    }

    fn spawn(future: impl Future<Output = ()> + 'static) {
        world::current(|world| world.spawn(world.process(), future));
    }

    fn connect(
        self,
        addr: SocketAddr,
        timeout: Duration,
    ) -> impl Future<Output = io::Result<SimSocket>> + use<> {
        net::connect(addr, timeout)
    }

    fn connect_local(self, _path: &str) -> io::Result<SimSocket> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    async fn resolve(name: &str) -> Option<SocketAddr> {
        Self::sleep(Duration::from_micros(below(2_000))).await;
        name.parse().ok()
    }
}

#[cfg(test)]
mod tests;
