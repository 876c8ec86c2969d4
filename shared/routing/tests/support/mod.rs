//! Fleets for tests of the public interface.
#![allow(dead_code, clippy::unwrap_used, reason = "tests; each uses a part")]

use std::sync::Arc;

use fairlead_prefix::Writer;
use fairlead_routing::{
    EngineFigures, Fleet, PlanRequest, PolicyName, Rng, ScorerName, Settings, Strategy, TargetCells,
    TargetEntry,
};
use fairlead_wire::TargetId;
use fairlead_wire::msg::{EngineKind, InstanceInfo, ModelInfo, ServingRole};

pub const MODEL: &str = "model";
/// Tokens of a block in these tests.
pub const BLOCK: u32 = 64;

pub fn entry(slot: u16, ready: bool, labels: &[(&str, &str)]) -> Arc<TargetEntry> {
    let info = InstanceInfo {
        name: format!("engine-{slot}"),
        address: format!("10.0.0.{slot}:8000"),
        host: format!("host-{}", slot / 2),
        incarnation: 1,
        engine: EngineKind::Vllm,
        engine_version: String::new(),
        models: vec![ModelInfo { name: MODEL.into(), max_model_len: None, parent: None }],
        role: ServingRole::Both,
        transfer: None,
        dp_ranks: 1,
        block_size: Some(16),
        kv_blocks: Some(10_000),
        max_num_seqs: None,
        labels: labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
    };
    Arc::new(TargetEntry::new(TargetId::new(slot, 1), Arc::new(info), 0, ready, Arc::new(TargetCells::new())))
}

/// A fleet, its targets and the index that they are looked up in.
pub struct World {
    pub fleet: Fleet,
    pub targets: Vec<Arc<TargetEntry>>,
    pub index: Writer,
}

impl World {
    pub fn of(targets: Vec<Arc<TargetEntry>>) -> Self {
        let config = fairlead_prefix::Config { max_bytes: 4 << 20, max_targets: 64, locate: false };
        let (mut index, reader) = fairlead_prefix::new(config);
        for target in &targets {
            index.bind(target.id).unwrap();
        }
        let fleet = Fleet::new([reader]);
        fleet.publish(targets.iter().cloned().map(Some).collect());
        Self { fleet, targets, index }
    }

    pub fn new(targets: u16) -> Self {
        Self::of((0..targets).map(|slot| entry(slot, true, &[])).collect())
    }

    pub fn report(&self, figures: &EngineFigures) {
        for target in &self.targets {
            target.cells.report(figures);
        }
    }
}

/// Every figure known, none remarkable.
pub fn figures() -> EngineFigures {
    EngineFigures {
        running: Some(4),
        waiting: Some(1),
        kv_usage: Some(0.5),
        host_kv_usage: Some(0.25),
        kv_total_tokens: Some(1_000_000),
        prompt_tokens_per_s: Some(1_000.0),
        generation_tokens_per_s: Some(100.0),
        queue_time_s: Some(0.1),
        prefill_time_s: Some(0.2),
        decode_time_s: Some(2.0),
        request_prompt_tokens: Some(800.0),
        request_generation_tokens: Some(150.0),
        busy: Some(0.8),
        utilization: Some(0.7),
        foreign_requests: Some(0),
        taken_us: 1,
    }
}

/// Figures of which every float is this one.
pub fn floats(value: f32) -> EngineFigures {
    let value = Some(value);
    EngineFigures {
        kv_usage: value,
        host_kv_usage: value,
        prompt_tokens_per_s: value,
        generation_tokens_per_s: value,
        queue_time_s: value,
        prefill_time_s: value,
        decode_time_s: value,
        request_prompt_tokens: value,
        request_generation_tokens: value,
        busy: value,
        utilization: value,
        ..figures()
    }
}

/// Every policy by name, and weighted sums: of all scorers, and of policies.
pub fn strategies() -> impl Iterator<Item = Strategy> {
    let scorers = ScorerName::ALL.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(",");
    let sums = [scorers, "prefix-cache:2,least-request:1".to_owned()];
    let names = PolicyName::ALL.iter().map(|name| name.to_string());
    names.chain(sums).map(|text| Strategy::parse(&text, &Settings::default()).unwrap())
}

/// A chained path of blocks.
pub fn path(rng: &mut Rng, blocks: usize) -> Vec<u64> {
    (0..blocks).map(|_| rng.next_u64()).collect()
}

/// A request for `path` at `now_us`.
pub fn request<'a>(strategy: &'a Strategy, path: &'a [u64], now_us: u64) -> PlanRequest<'a> {
    PlanRequest {
        path,
        prompt_tokens: path.len() as u32 * BLOCK + 7,
        block_tokens: BLOCK,
        now_us,
        ..PlanRequest::new(MODEL, strategy)
    }
}
