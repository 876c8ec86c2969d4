//! The scheduler: sessions, liveness, fan-out.
//!
//! ```text
//!  agents, gateways ══ links ══▶ readers (one task per link: decode, check)
//!                                   │ one bounded channel (messages and bytes)
//!                                   ▼
//!                                 core: the one task that owns the truth ◀── admin pages
//!                                   │ per link and lane: bounded queues; what finds no room waits in the truth
//!                                   ▼
//!  agents, gateways ◀══ links ══ writers
//! ```
//!
//! What the state is and how it changes is [`fairlead_replication::Truth`]'s business; this crate moves messages and
//! time to it. A scheduler keeps nothing on disk: a restarted one starts a new epoch on the same port and is told the
//! rest by its peers.

mod admin;
mod clock;
mod core;
mod options;
mod session;
mod view;

use std::net::SocketAddr;

use fairlead_replication::{Truth, TruthConfig};
use fairlead_transport::ListenError;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub use options::SchedulerOptions;

/// What tests of whole fleets drive without links.
#[cfg(feature = "sim")]
pub mod sim {
    pub use crate::core::{Core, Event, Outlet};
}

/// Why a scheduler did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address for agents and gateways, or the identity, cannot be used.
    #[error("listen: {0}")]
    Listen(#[from] ListenError),
    /// The address of the admin pages cannot be bound.
    #[error("admin: {address}: {source}")]
    Admin {
        /// As given.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Starts schedulers.
pub struct Scheduler;

impl Scheduler {
    /// Binds both addresses and spawns the scheduler on the current tokio runtime. Ready when it returns.
    pub async fn start(options: SchedulerOptions) -> Result<Handle, StartError> {
        let listener = fairlead_transport::listen(options.listen, &options.identity, &options.links)?;
        let addr = listener.local_addr();
        let admin = match options.admin {
            Some(address) => {
                let failed = |source| StartError::Admin { address, source };
                let listener = TcpListener::bind(address).await.map_err(failed)?;
                let bound = listener.local_addr().map_err(failed)?;
                Some((listener, bound))
            }
            None => None,
        };
        let clock = clock::Clock::start();
        let epoch = clock.epoch();
        let seed = options.cluster_seed.unwrap_or_else(|| options.identity.cluster_seed());
        let config = TruthConfig {
            heartbeat_us: u64::try_from(options.heartbeat.as_micros()).unwrap_or(u64::MAX).max(10_000),
            max_targets: options.max_targets,
            index_bytes: options.index_bytes,
            block_tokens: options.block_tokens,
            lean: options.lean,
            ..TruthConfig::default()
        };
        let truth = Truth::new(config, epoch, seed, clock.now_us());
        let (stop, stopped) = watch::channel(false);
        let (events, inbox) = mpsc::channel(options.inbox_messages.max(1));
        let admin_addr = admin.as_ref().map(|(_, bound)| *bound);
        let pages = admin.map(|(listener, _)| tokio::spawn(admin::serve(listener, events.clone())));
        let door = session::Inbox::new(events, options.inbox_bytes);
        let core =
            tokio::spawn(core::Core::new(truth, listener.refused()).run(clock, inbox, stopped.clone()));
        let accepting = tokio::spawn(session::accept(listener, door, stopped));
        tracing::info!(%addr, epoch, "scheduler listening");
        Ok(Handle { addr, admin_addr, epoch, stop, core, accepting, pages })
    }
}

/// Returns when the scheduler is to stop.
async fn told(stop: &mut watch::Receiver<bool>) {
    // A handle that is gone says the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A running scheduler. Dropping the handle stops it without waiting.
#[derive(Debug)]
pub struct Handle {
    addr: SocketAddr,
    admin_addr: Option<SocketAddr>,
    epoch: u64,
    stop: watch::Sender<bool>,
    core: JoinHandle<()>,
    accepting: JoinHandle<()>,
    pages: Option<JoinHandle<()>>,
}

impl Handle {
    /// Where agents and gateways connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where the admin pages are.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin_addr
    }

    /// The epoch: this start of the scheduler.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Tells every peer, closes all links and stops. Returns when the ports are free, or after about two seconds.
    pub async fn shutdown(mut self) {
        let _ = self.stop.send(true);
        if let Some(pages) = self.pages.take() {
            pages.abort();
            let _ = pages.await;
        }
        for task in [&mut self.core, &mut self.accepting] {
            if let Err(error) = task.await
                && error.is_panic()
            {
                tracing::error!(%error, "scheduler task");
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(pages) = &self.pages {
            pages.abort();
        }
    }
}
