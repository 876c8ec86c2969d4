//! Starting and stopping the shards.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fairlead_routing::Fleet;

use crate::options::GatewayOptions;
use crate::runtime::{ActiveDriver, Backend, Executor, Kind, NotBuilt, bind_shared, sys};
use crate::shard::{self, Door, Inbox};
use crate::shared::Shared;

/// Why the data plane cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The traffic address cannot be bound.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address asked for.
        addr: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// This program was built without the runtime asked for.
    #[error(transparent)]
    NotBuilt(#[from] NotBuilt),
    /// A shard's runtime cannot be built.
    #[error("cannot build {runtime} on the {driver:?} driver for a shard: {source}")]
    Driver {
        /// The runtime asked for.
        runtime: Kind,
        /// The driver asked for.
        driver: crate::runtime::Driver,
        /// The system's reason.
        source: io::Error,
    },
    /// Threads or descriptors are exhausted.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

/// A running data plane.
pub struct Gateway {
    addr: SocketAddr,
    runtime: Kind,
    tls_addr: Option<SocketAddr>,
    driver: ActiveDriver,
    shared: Arc<Shared>,
    inboxes: Vec<Inbox>,
    threads: Vec<JoinHandle<()>>,
}

/// Starts the shards and returns when all of them accept connections.
///
/// # Errors
/// See [`StartError`]. Shards that have started meanwhile are told to end.
pub fn start(options: GatewayOptions, fleet: Arc<Fleet>) -> Result<Gateway, StartError> {
    let shared = Shared::new(&options, fleet)?;
    start_with(options, shared)
}

/// Like [`start`], with shared state that the caller has made and given to its control thread before.
///
/// # Errors
/// As for [`start`].
pub fn start_with(options: GatewayOptions, shared: Arc<Shared>) -> Result<Gateway, StartError> {
    options.runtime.check()?;
    match options.runtime {
        #[cfg(feature = "glommio")]
        Kind::Glommio => start_on::<crate::runtime::GlommioExecutor>(options, shared),
        // Without the feature the check has refused everything else.
        _ => start_on::<Executor>(options, shared),
    }
}

/// Starts the shards on one kind of runtime: a type, so that serving a request never asks which.
fn start_on<B: Backend>(options: GatewayOptions, shared: Arc<Shared>) -> Result<Gateway, StartError> {
    let options = Arc::new(options);
    let cores = sys::allowed_cores();
    let count = if options.shards == 0 { default_shards(cores.len()) } else { options.shards };
    let Doors { of_shards, addr, tls_addr } = Doors::open(&options, count)?;
    let seed = if options.seed == 0 { random_seed() } else { options.seed };

    let (report, reports) = mpsc::channel();
    let mut gateway = Gateway {
        addr,
        runtime: options.runtime,
        tls_addr,
        driver: ActiveDriver::Epoll,
        shared,
        inboxes: Vec::new(),
        threads: Vec::new(),
    };
    for (index, doors) in of_shards.into_iter().enumerate() {
        let inbox = Inbox::default();
        gateway.inboxes.push(inbox.clone());
        let core = if options.pin && count <= cores.len() { cores.get(index).copied() } else { None };
        let (options, shared, report) = (options.clone(), gateway.shared.clone(), report.clone());
        let seed = seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let thread = std::thread::Builder::new().name(format!("shard-{index}")).spawn(move || {
            if let Some(core) = core
                && let Err(error) = sys::pin_to_core(core)
            {
                tracing::warn!(shard = index, core, %error, "cannot pin");
            }
            let (executor, fallback) = match B::build(options.driver) {
                Ok(built) => built,
                Err(error) => {
                    // The starter has gone only if another shard failed first.
                    let _ = report.send(Err(error));
                    return;
                }
            };
            let driver = executor.active();
            match fallback {
                Some(reason) => tracing::info!(
                    shard = index, %driver, %reason, "io_uring is not available here, using epoll"
                ),
                None => tracing::info!(shard = index, runtime = %options.runtime, %driver, "driver chosen"),
            }
            shared.shard_started();
            let _ended = Ended(shared.clone());
            let _ = report.send(Ok(driver));
            let runtime = executor.runtime();
            executor.run(async {
                let door = |(listener, secure)| Ok(Door { listener: B::listen(runtime, listener)?, secure });
                match doors.into_iter().map(door).collect::<io::Result<Vec<_>>>() {
                    Ok(doors) => shard::run(runtime, doors, options, shared, inbox, seed).await,
                    Err(error) => tracing::error!(shard = index, %error, "shard ended"),
                }
            });
        })?;
        gateway.threads.push(thread);
    }
    for _ in 0..count {
        match reports.recv() {
            Ok(Ok(driver)) => gateway.driver = driver,
            Ok(Err(source)) => {
                gateway.begin_drain();
                return Err(StartError::Driver { runtime: options.runtime, driver: options.driver, source });
            }
            Err(_) => return Err(StartError::System(io::Error::other("a shard ended while it started"))),
        }
    }
    Ok(gateway)
}

/// What the shards listen at: for each its listeners, and whether TLS is spoken there.
struct Doors {
    of_shards: Vec<Vec<(std::net::TcpListener, bool)>>,
    addr: SocketAddr,
    tls_addr: Option<SocketAddr>,
}

impl Doors {
    /// One port or two. Where the TLS port is the plain one, only TLS is spoken.
    fn open(options: &GatewayOptions, shards: usize) -> Result<Self, StartError> {
        let tls = options.tls.as_ref().map(|tls| tls.listen);
        let plain = Some(options.listen).filter(|addr| tls != Some(*addr) || addr.port() == 0);
        let mut of_shards: Vec<Vec<_>> = (0..shards).map(|_| Vec::new()).collect();
        let mut bound = [None, None];
        for ((addr, secure), bound) in [(plain, false), (tls, true)].into_iter().zip(&mut bound) {
            let Some(addr) = addr else { continue };
            let listeners =
                bind_shared(addr, shards).map_err(|source| StartError::Listen { addr, source })?;
            *bound = listeners.first().map(std::net::TcpListener::local_addr).transpose()?;
            of_shards.iter_mut().zip(listeners).for_each(|(doors, one)| doors.push((one, secure)));
        }
        let [addr, tls_addr] = bound;
        let addr = addr.or(tls_addr).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(Self { of_shards, addr, tls_addr })
    }
}

/// Counts a shard out, also when it panics.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.shard_ended();
    }
}

/// All processors, less one for the control thread from four up.
fn default_shards(cores: usize) -> usize {
    match cores {
        0 | 1 => 1,
        2 | 3 => cores,
        _ => cores - 1,
    }
}

fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library seeds its hasher from the operating system.
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u64(crate::runtime::now_us());
    hasher.finish() | 1
}

impl Gateway {
    /// The traffic address, with the port that was taken; the TLS port's where there is no other.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The runtime in use.
    pub fn runtime(&self) -> Kind {
        self.runtime
    }

    /// The address of the TLS port, with the port that was taken.
    pub fn tls_addr(&self) -> Option<SocketAddr> {
        self.tls_addr
    }

    /// The driver in use.
    pub fn driver(&self) -> ActiveDriver {
        self.driver
    }

    /// Number of shards.
    pub fn shards(&self) -> usize {
        self.inboxes.len()
    }

    /// What shards and control thread share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// How to reach each shard.
    pub fn shard_inboxes(&self) -> &[Inbox] {
        &self.inboxes
    }

    /// Tells the shards to stop accepting, to end idle connections and to finish what is in flight; returns at once.
    pub fn begin_drain(&self) {
        self.shared.set_draining();
        self.inboxes.iter().for_each(Inbox::wake);
    }

    /// Drains and waits. Requests still in flight after `timeout` are cut off. Returns whether none had to be.
    pub fn drain(self, timeout: Duration) -> bool {
        self.begin_drain();
        let deadline = Instant::now() + timeout;
        let finished = self.wait_until(deadline);
        if !finished {
            self.shared.cut_off();
            self.inboxes.iter().for_each(Inbox::wake);
            self.wait_until(Instant::now() + Duration::from_secs(1));
        }
        for thread in self.threads {
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
        finished
    }

    fn wait_until(&self, deadline: Instant) -> bool {
        while self.shared.shards_running() > 0 {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_thread_gets_a_core_from_four_up() {
        for (cores, shards) in [(0, 1), (1, 1), (2, 2), (3, 3), (4, 3), (16, 15)] {
            assert_eq!(default_shards(cores), shards);
        }
    }
}
