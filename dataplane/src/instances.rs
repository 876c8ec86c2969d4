//! Instances known from configuration, without a scheduler.

use std::sync::Arc;

use fairlead_routing::{Fleet, TargetEntry};
use fairlead_wire::TargetId;
use fairlead_wire::msg::{InstanceInfo, ServingRole, Transfer};

/// An instance named in the configuration.
#[derive(Debug, Clone)]
pub struct StaticInstance {
    /// Unique name.
    pub name: String,
    /// `host:port` of its HTTP server, `https://host:port` where it speaks TLS, or `unix:/path`.
    pub address: String,
    /// Models that it serves.
    pub models: Vec<String>,
}

impl StaticInstance {
    /// The instance's description, as an agent would give it.
    pub fn info(&self) -> InstanceInfo {
        InstanceInfo::new(&self.name, &self.address, &self.models)
    }

    /// The same for an instance that plays a part in hand-offs between engines.
    pub fn info_as(&self, role: ServingRole, transfer: Option<Transfer>) -> InstanceInfo {
        InstanceInfo { role, transfer, ..self.info() }
    }

    /// Table entry number `slot` for this instance, ready to be picked, with fresh counters.
    pub fn entry(&self, slot: u16) -> Arc<TargetEntry> {
        Arc::new(TargetEntry::new(TargetId::new(slot, 1), Arc::new(self.info()), 0, true, Arc::default()))
    }
}

/// A fleet of instances that are always ready, whose prefix knowledge stays empty: for tests, and for gateways that
/// only balance load.
pub fn static_fleet(instances: &[StaticInstance]) -> Arc<Fleet> {
    let config = || fairlead_prefix::Config { max_bytes: 1 << 20, max_targets: 4096, locate: false };
    let (_, index) = fairlead_prefix::new(config());
    let (_, overlay) = fairlead_prefix::new(config());
    let fleet = Fleet::new([index, overlay]);
    fleet.publish((0u16..).zip(instances).map(|(slot, instance)| Some(instance.entry(slot))).collect());
    Arc::new(fleet)
}
