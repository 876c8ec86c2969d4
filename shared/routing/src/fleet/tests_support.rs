//! Targets and fleets for this crate's tests.

use std::sync::Arc;

use fairlead_wire::TargetId;
use fairlead_wire::msg::{EngineKind, InstanceInfo, ModelInfo, ServingRole};

use super::{Fleet, TargetEntry};

pub(crate) fn entry(slot: u16, name: &str, model: &str) -> Arc<TargetEntry> {
    let info = InstanceInfo {
        name: name.into(),
        address: format!("127.0.0.1:{}", 1000 + slot),
        host: format!("host-{name}"),
        incarnation: 1,
        engine: EngineKind::Vllm,
        engine_version: String::new(),
        models: vec![ModelInfo { name: model.into(), max_model_len: None, parent: None }],
        role: ServingRole::Both,
        transfer: None,
        dp_ranks: 1,
        block_size: None,
        kv_blocks: None,
        max_num_seqs: None,
        labels: Vec::new(),
    };
    Arc::new(TargetEntry::new(TargetId::new(slot, 1), Arc::new(info), 0, true, Arc::default()))
}

impl TargetEntry {
    /// A copy with cells of its own.
    pub(crate) fn clone_for_test(&self) -> Self {
        Self::new(self.id, self.info.clone(), self.rank, self.ready, Arc::default())
    }
}

pub(crate) fn empty_fleet() -> Fleet {
    let config = || fairlead_prefix::Config { max_bytes: 1 << 20, max_targets: 64, locate: false };
    let (_, index) = fairlead_prefix::new(config());
    let (_, overlay) = fairlead_prefix::new(config());
    Fleet::new([index, overlay])
}
