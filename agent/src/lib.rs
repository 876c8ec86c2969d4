//! The agent: stands beside one engine and tells the scheduler about it.
//!
//! ```text
//!  engine ◀─GET─ monitor ──newest state──▶ uplink ──QUIC──▶ scheduler
//!                (probe, scrape)  (watch)  (register, report, heartbeat, cache events)
//!         ─ZeroMQ▶ [kv] ──────changes──────▶
//! ```
//!
//! *Monitor*: waits until the engine is ready, finds out which one it is, probes its health each second and reads
//! its metrics page, often while it works and seldom while it is idle. *Uplink*: holds the link to the scheduler and
//! sends the newest state on each change and with each heartbeat. Between the two stands one cell that holds only
//! the newest state, so a slow or absent scheduler costs no memory and delays no probe.
//!
//! *Streams* ([`kv`]): follow the engine's KV-cache events, where it publishes them, and tell what it holds.
//!
//! Everything is a future on the caller's runtime; an agent needs no thread, and many share one (`fairlead up`).
//! What engines send is bounded on reading (pages 8 MiB, lines 16 KiB, 256 models) and never trusted: a figure that is
//! absent or makes no sense is *unknown*.

mod admin;
mod clock;
mod engine;
mod http;
mod incarnation;
pub mod kv;
pub mod metrics;
mod monitor;
mod options;
mod reporter;
mod state;
mod tracker;
mod transfer;
mod uplink;
mod window;

pub use options::{AgentError, AgentOptions, Intervals, KV_BYTES, KvEvents};
pub use state::AgentState;
pub use transfer::{HandoffChoice, TransferOptions};

use admin::Admin;
use monitor::Monitor;
use options::Settings;
use state::{Published, Stats};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use uplink::Uplink;

/// What tests of whole fleets drive without a link.
#[cfg(feature = "sim")]
pub mod sim {
    pub use crate::reporter::{Heard, Post, Reporter, Told};
    pub use crate::state::Published;
}

/// Starts agents.
#[derive(Debug)]
pub struct Agent;

impl Agent {
    /// Starts an agent on the current tokio runtime.
    pub fn start(options: AgentOptions) -> Result<Handle, AgentError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| AgentError::NoRuntime)?;
        let settings = Arc::new(Settings::check(options)?);
        let listener = settings.listen.map(listen).transpose()?;
        let admin_addr = listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let (stop, stopping) = watch::channel(false);
        let (state, watching) = watch::channel(AgentState::default());
        let (published, newest) = watch::channel(Published::default());
        let stats = Arc::new(Stats::default());
        let (streams, engine) = watch::channel(None);
        let (upstream, downstream) = watch::channel(kv::Upstream::default());
        let (tell, told) = mpsc::channel(kv::TOLD);
        let feed = kv::Feed {
            engine,
            upstream: downstream,
            told: tell,
            stats: stats.kv.clone(),
            max_bytes: settings.kv_bytes,
        };
        let uplink = Uplink::new(settings.clone(), newest, state.clone(), stats.clone(), upstream, told);
        let monitor = Monitor::new(settings, published, streams, state, stats.clone());
        let admin = Admin { stats, state: watching.clone() };
        let task = runtime.spawn(async move {
            let serve = async move {
                match listener {
                    Some(listener) => admin.run(listener).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Ends when asked to; the others run as long as it does.
                () = uplink.run(stopping) => {}
                () = monitor.run() => {}
                () = feed.run() => {}
                () = serve => {}
            }
        });
        Ok(Handle { stop, state: watching, admin_addr, task })
    }
}

/// A running agent. Dropping it stops the agent.
#[derive(Debug)]
pub struct Handle {
    stop: watch::Sender<bool>,
    state: watch::Receiver<AgentState>,
    admin_addr: Option<SocketAddr>,
    task: JoinHandle<()>,
}

impl Handle {
    /// The agent's state, and its changes.
    pub fn state(&self) -> watch::Receiver<AgentState> {
        self.state.clone()
    }

    /// Where the admin page is served.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin_addr
    }

    /// Stops the agent: takes leave of the scheduler and waits for the end.
    pub async fn shutdown(self) {
        // Without a receiver it has ended already.
        let _ = self.stop.send(true);
        if let Err(error) = self.task.await {
            tracing::error!("agent: {error}");
        }
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, AgentError> {
    let failed = |source| AgentError::Listen { address, source };
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    TcpListener::from_std(listener).map_err(failed)
}
