//! The control thread: the only writer of what the shards read.
//!
//! One thread with a tokio runtime of its own. It holds the [`Replica`](fairlead_replication::Replica), keeps a link to
//! the scheduler, takes the shards' placements from their bounded queue, tells the scheduler what this gateway has in
//! flight, and serves the admin port. Shards never wait for it: they ring a bell that costs a system call only when
//! this thread sleeps.

mod admin;
mod costs;
mod desk;
mod driver;
mod metrics;
mod sink;
mod wake;

use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use fairlead_replication::ReplicaConfig;
use fairlead_routing::Fleet;
use fairlead_transport::{Identity, LinkOptions};
use fairlead_wire::msg::InstanceInfo;

use crate::gateway::{Gateway, StartError, start_with};
use crate::options::GatewayOptions;
use crate::shared::Shared;
#[cfg(feature = "sim")]
pub use desk::{Desk, DeskOptions};
use driver::Driver;
#[cfg(feature = "sim")]
pub use sink::FleetSink;

/// What the control thread is told at start.
#[derive(Clone)]
pub struct ControlOptions {
    /// The scheduler, `host:port`, and this gateway's identity; `None` runs on `instances` alone.
    pub scheduler: Option<(String, Identity)>,
    /// Name of this gateway, unique among gateways.
    pub name: String,
    /// Where to serve `/metrics`, `/healthz`, `/readyz` and `/debug/...`.
    pub admin: Option<SocketAddr>,
    /// Instances from the configuration, served when no scheduler has been heard within `snapshot_wait`.
    pub instances: Vec<InstanceInfo>,
    /// How long to wait for the fleet's state before accepting requests.
    pub snapshot_wait: Duration,
    /// Settings of the replica.
    pub replica: ReplicaConfig,
    /// Settings of the link.
    pub link: LinkOptions,
}

/// A gateway with its control thread.
pub struct ControlledGateway {
    gateway: Gateway,
    admin: Option<SocketAddr>,
    stop: tokio::sync::watch::Sender<bool>,
    thread: JoinHandle<()>,
}

/// Starts the control thread, waits (bounded) for the state of the fleet, then starts the shards.
///
/// # Errors
/// An address cannot be bound, a driver cannot be built, or threads are exhausted.
pub fn start_controlled(
    options: GatewayOptions,
    control: ControlOptions,
) -> Result<ControlledGateway, StartError> {
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let (told, telling) = mpsc::channel();
    let (shared_made, shared_here) = mpsc::channel();
    let wait = control.snapshot_wait;
    let shared_options = options.clone();
    let tpot_us = options.routing.settings.dynamic_pd_split.target_tpot_ms * 1e3;
    let thread = std::thread::Builder::new().name("control".into()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                // The starter has gone only if it has failed itself.
                let _ = told.send(Err(StartError::System(error)));
                return;
            }
        };
        runtime.block_on(async move {
            let make = |fleet: Arc<Fleet>| Shared::new(&shared_options, fleet);
            match Driver::start(control, tpot_us, make) {
                Ok((driver, admin)) => {
                    let _ = shared_made.send(driver.shared().clone());
                    let _ = told.send(Ok(admin));
                    driver.run(stopping).await;
                }
                Err(error) => {
                    let _ = told.send(Err(error));
                }
            }
        });
    })?;
    let gone = || StartError::System(std::io::Error::other("the control thread ended while it started"));
    let admin = telling.recv().map_err(|_| gone())??;
    let shared = shared_here.recv().map_err(|_| gone())?;
    shared.wait_synced(wait);
    let gateway = start_with(options, shared)?;
    Ok(ControlledGateway { gateway, admin, stop, thread })
}

impl ControlledGateway {
    /// The data plane.
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// The admin address, with the port that was taken.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Drains the shards, then ends the control thread. Requests still in flight after `timeout` are cut off. Returns
    /// whether none had to be.
    pub fn drain(self, timeout: Duration) -> bool {
        let finished = self.gateway.drain(timeout);
        // Without a receiver the thread has ended already.
        let _ = self.stop.send(true);
        if self.thread.join().is_err() {
            tracing::error!("the control thread has panicked");
        }
        finished
    }
}
