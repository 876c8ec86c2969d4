//! Where engines live: one thread with one runtime, shared by as many engines as a process starts.

use crate::engine::Engine;
use crate::events::{self, EventLog, Sockets, Told};
use crate::faults::{BadFaults, Faults};
use crate::handoff::{Handover, lmcache};
use crate::http::conn::{self, Place};
use crate::http::control;
use crate::options::{BadOption, SimOptions};
use crate::state::State;
use crate::text;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::runtime;
use tokio::sync::Notify;

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An option is out of range.
    #[error(transparent)]
    Option(#[from] BadOption),
    /// The address cannot be used.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The folder of the shared store cannot be used.
    #[error("cannot use the shared store: {0}")]
    Store(io::Error),
    /// The simulator's thread could not be made.
    #[error("cannot start the simulator's thread: {0}")]
    Thread(io::Error),
}

/// A name in the form of a UUID, another for each start.
fn random_id(addr: SocketAddr) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    let base = text::mix(now ^ u64::from(std::process::id()).rotate_left(32) ^ u64::from(addr.port()));
    let (a, b) = (text::mix(base), text::mix(base ^ 1));
    let b_low = b & 0xffff_ffff_ffff;
    format!("{:08x}-{:04x}-4{:03x}-a{:03x}-{b_low:012x}", a >> 32, a >> 16 & 0xffff, a & 0xfff, b >> 52)
}

/// A thread for engines. Dropping it ends them.
#[derive(Debug)]
pub struct Host {
    runtime: runtime::Handle,
    stop: Arc<Notify>,
}

impl Host {
    /// Starts a thread of its own.
    pub fn new() -> Result<Self, StartError> {
        let runtime =
            runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
        let handle = runtime.handle().clone();
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        std::thread::Builder::new()
            .name("fairlead-sim".into())
            .spawn(move || runtime.block_on(stopped.notified()))
            .map_err(StartError::Thread)?;
        Ok(Self { runtime: handle, stop })
    }

    /// Starts an engine on this thread; on return it listens.
    pub fn start(&self, options: SimOptions) -> Result<Handle, StartError> {
        options.validate()?;
        let failed = |source| StartError::Listen { addr: options.listen, source };
        let place = Place::take(options.listen).map_err(failed)?;
        let addr = place.addr();
        let _context = self.runtime.enter();
        // The address is tried even if the engine begins by refusing, so that a taken one is told now.
        let listener = place.listen().map_err(failed)?;
        let mut publisher = None;
        if let Some(kv) = &options.kv_events {
            let sockets = Sockets::bind(kv.listen, kv.replay)
                .map_err(|(addr, source)| StartError::Listen { addr, source })?;
            let (events, replay) = sockets.addrs().map_err(failed)?;
            let told = Told { events, replay, topic: kv.topic.clone(), kept: kv.kept };
            let log = EventLog::new(options.engine, kv.encoding, options.block_tokens, told);
            publisher = Some((Arc::new(log), sockets));
        }
        let log = publisher.as_ref().map(|(log, _)| Arc::clone(log));
        let handover = options
            .transfer
            .clone()
            .map(|transfer| Handover::new(transfer, options.role, random_id(addr), addr, options.speed));
        let mut handover = handover.transpose().map_err(StartError::Store)?;
        let notices = handover.as_mut().and_then(Handover::notices);
        let handover = handover.map(Arc::new);
        let engine = Engine::new(SimOptions { listen: addr, ..options }, log, handover);
        if let Some((log, sockets)) = publisher {
            self.runtime.spawn(events::run(Arc::clone(&engine), log, sockets));
        }
        if let Some((proxy, notices)) = notices {
            self.runtime.spawn(lmcache::tell(Arc::clone(&engine), proxy, notices));
        }
        let first = if engine.options.faults.refuse { None } else { Some(listener) };
        if let Some(ms) = engine.options.faults.for_ms {
            let engine = Arc::clone(&engine);
            self.runtime.spawn(async move {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                engine.end_faults(0);
            });
        }
        self.runtime.spawn(Arc::clone(&engine).run());
        self.runtime.spawn(conn::serve(Arc::clone(&engine), place, first));
        Ok(Handle { addr, control: Control { engine, runtime: self.runtime.clone() } })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.notify_one();
    }
}

/// Starts engines on a thread that all of the process share.
#[derive(Clone, Copy, Debug)]
pub struct Sim;

impl Sim {
    /// Starts an engine; on return it listens.
    pub fn start(options: SimOptions) -> Result<Handle, StartError> {
        static SHARED: OnceLock<Host> = OnceLock::new();
        let host = match SHARED.get() {
            Some(h) => h,
            None => {
                let made = Host::new()?;
                SHARED.get_or_init(|| made)
            }
        };
        host.start(options)
    }
}

/// A started engine. Dropping the handle stops it.
#[derive(Debug)]
pub struct Handle {
    addr: SocketAddr,
    control: Control,
}

impl Handle {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where its KV events are published, if they are.
    pub fn kv_events_addr(&self) -> Option<SocketAddr> {
        self.control.engine.events.as_ref().map(|e| e.told.events)
    }

    /// Where past KV events can be asked for, if they can.
    pub fn kv_replay_addr(&self) -> Option<SocketAddr> {
        self.control.engine.events.as_ref().and_then(|e| e.told.replay)
    }

    /// `http://` and the address.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Faults and state, from any thread.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Stops at once: the listener closes, connections are reset, work is dropped.
    pub fn shutdown(&self) {
        self.control.engine.stop();
    }

    /// Waits until no request is in flight, or for `limit`; then stops. Returns whether all had ended.
    pub async fn drain(&self, limit: Duration) -> bool {
        const LOOK: Duration = Duration::from_millis(20);
        let deadline = tokio::time::Instant::now() + limit;
        let mut idle = self.control.in_flight() == 0;
        while !idle && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
            idle = self.control.in_flight() == 0;
        }
        self.shutdown();
        idle
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Remote control of an engine, usable from any thread.
#[derive(Clone)]
pub struct Control {
    engine: Arc<Engine>,
    runtime: runtime::Handle,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("name", &self.engine.options.name).finish_non_exhaustive()
    }
}

impl Control {
    /// Replaces the faults in force.
    pub fn set_faults(&self, faults: Faults) -> Result<(), BadFaults> {
        faults.validate()?;
        let _context = self.runtime.enter();
        control::apply(&self.engine, faults);
        Ok(())
    }

    /// Ends all faults.
    pub fn heal(&self) {
        _ = self.engine.set_faults(Faults::default());
    }

    /// A picture of the engine now.
    pub fn state(&self) -> State {
        State::of(&self.engine)
    }

    /// Requests on prompt routes whose answer has not ended.
    pub fn in_flight(&self) -> u64 {
        self.engine.core().traffic.in_flight
    }

    /// The last body that arrived on a prompt route, whole.
    pub fn last_body(&self) -> bytes::Bytes {
        self.engine.core().traffic.last.as_ref().map(|l| l.body.clone()).unwrap_or_default()
    }

    /// The engine's names of all cached blocks, in no order.
    pub fn cached_blocks(&self) -> Vec<u64> {
        self.engine.core().model.cache().names().collect()
    }

    /// Forgets every cached prefix that no running sequence holds.
    pub fn clear_cache(&self) {
        self.engine.clear_cache();
    }
}
