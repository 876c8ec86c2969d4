//! Meaning of messages: ranges of fields, checked after the archive's structure.

use crate::limits::{
    MAX_ABOVE, MAX_BLOCK_SIZE, MAX_BLOCK_TOKENS, MAX_COST, MAX_COUNT, MAX_GATEWAYS, MAX_ITEMS, MAX_LABELS,
    MAX_MODELS, MAX_NAME, MAX_OBSERVATIONS, MAX_PATH, MAX_RANKS, MAX_RATE, MAX_SECONDS, MAX_TARGETS,
    MAX_TEXT,
};
use crate::msg::{
    CacheEvents, CacheOp, Costs, Delta, EngineLoad, Feedback, GatewayLoad, Hello, InFlight, IndexOp,
    InstanceInfo, LoadUpdate, Op, Ping, Placements, Pong, RankLoad, Recollection, Refuse, Register, Report,
    Resume, Run, SnapshotChunk, TargetCosts, TargetInfo, Transfer, Welcome,
};
use crate::{Slot, TargetId};

/// Why a message is refused: field, value and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Reason(pub String);

impl Reason {
    fn new(field: &str, value: impl std::fmt::Display, allowed: impl std::fmt::Display) -> Self {
        Self(format!("{field}: {value} is not {allowed}"))
    }
}

type Checked = Result<(), Reason>;

pub(crate) trait Check {
    fn check(&self) -> Checked;
}

fn within<T: PartialOrd + std::fmt::Display + Copy>(field: &str, value: T, low: T, high: T) -> Checked {
    // A NaN compares false with everything and so falls through to the refusal.
    if value >= low && value <= high {
        Ok(())
    } else {
        Err(Reason::new(field, value, format_args!("within {low} to {high}")))
    }
}

fn within_opt<T: PartialOrd + std::fmt::Display + Copy>(
    field: &str,
    value: Option<T>,
    low: T,
    high: T,
) -> Checked {
    value.map_or(Ok(()), |value| within(field, value, low, high))
}

fn at_most(field: &str, count: usize, max: usize) -> Checked {
    if count <= max {
        Ok(())
    } else {
        Err(Reason::new(field, count, format_args!("a count of at most {max}")))
    }
}

/// A name: 1 to [`MAX_NAME`] bytes, no control characters.
fn name(field: &str, value: &str) -> Checked {
    if value.is_empty() {
        return Err(Reason(format!("{field}: is empty")));
    }
    text(field, value, MAX_NAME)
}

fn text(field: &str, value: &str, max: usize) -> Checked {
    if value.len() > max {
        return Err(Reason(format!("{field}: {} bytes are more than {max}", value.len())));
    }
    if let Some(bad) = value.chars().find(|c| c.is_control()) {
        return Err(Reason(format!("{field}: contains the control character {:#04x}", bad as u32)));
    }
    Ok(())
}

/// `host:port`, the host a name, an IPv4 address or an IPv6 address in brackets.
fn address(field: &str, value: &str) -> Checked {
    name(field, value)?;
    let good = value.rsplit_once(':').is_some_and(|(host, port)| {
        let host_good = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            }
        };
        // A leading sign would parse as a number, so digits only.
        host_good && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p != 0)
    });
    if good { Ok(()) } else { Err(Reason::new(field, format_args!("{value:?}"), "host:port")) }
}

fn target(field: &str, packed: u32) -> Checked {
    let slot: Slot = TargetId::unpack(packed).slot;
    if (slot as usize) < MAX_TARGETS {
        Ok(())
    } else {
        Err(Reason::new(field, format_args!("slot {slot}"), format_args!("below {MAX_TARGETS}")))
    }
}

/// Block hashes: 0 names the root and is no block.
fn blocks(field: &str, blocks: &[u64]) -> Checked {
    if blocks.is_empty() {
        return Err(Reason(format!("{field}: has no block")));
    }
    at_most(field, blocks.len(), MAX_PATH)?;
    if blocks.contains(&0) {
        return Err(Reason(format!("{field}: contains the hash 0")));
    }
    Ok(())
}

impl Check for Hello {
    fn check(&self) -> Checked {
        name("hello.name", &self.name)?;
        text("hello.software", &self.software, MAX_NAME)?;
        within("hello.protocol_max", self.protocol_max, self.protocol_min, u16::MAX)
    }
}

impl Check for Welcome {
    fn check(&self) -> Checked {
        within("welcome.heartbeat_ms", self.heartbeat_ms, 10, 60_000)?;
        within("welcome.block_tokens", self.block_tokens, 1, MAX_BLOCK_TOKENS)
    }
}

impl Check for Refuse {
    fn check(&self) -> Checked {
        text("refuse.reason", &self.reason, MAX_TEXT)
    }
}

impl Check for Ping {
    fn check(&self) -> Checked {
        Ok(())
    }
}

impl Check for Pong {
    fn check(&self) -> Checked {
        Ok(())
    }
}

impl Check for Resume {
    fn check(&self) -> Checked {
        Ok(())
    }
}

impl Check for InstanceInfo {
    fn check(&self) -> Checked {
        name("instance.name", &self.name)?;
        // One that speaks TLS says so in front.
        let place = self.address.strip_prefix("https://").unwrap_or(&self.address);
        address("instance.address", place)?;
        text("instance.host", &self.host, MAX_NAME)?;
        text("instance.engine_version", &self.engine_version, MAX_NAME)?;
        at_most("instance.models", self.models.len(), MAX_MODELS)?;
        for model in &self.models {
            name("instance.models.name", &model.name)?;
            if let Some(parent) = &model.parent {
                name("instance.models.parent", parent)?;
            }
            within_opt("instance.models.max_model_len", model.max_model_len, 1, u32::MAX)?;
        }
        within("instance.dp_ranks", self.dp_ranks, 1, MAX_RANKS)?;
        within_opt("instance.block_size", self.block_size, 1, MAX_BLOCK_SIZE)?;
        within_opt("instance.kv_blocks", self.kv_blocks, 1, MAX_COUNT)?;
        within_opt("instance.max_num_seqs", self.max_num_seqs, 1, 1 << 24)?;
        at_most("instance.labels", self.labels.len(), MAX_LABELS)?;
        for (key, value) in &self.labels {
            name("instance.labels.key", key)?;
            text("instance.labels.value", value, MAX_NAME)?;
        }
        self.transfer.as_ref().map_or(Ok(()), Check::check)
    }
}

impl Check for Transfer {
    fn check(&self) -> Checked {
        text("instance.transfer.domain", &self.domain, MAX_NAME)?;
        for (field, place) in
            [("instance.transfer.bootstrap", &self.bootstrap), ("instance.transfer.peer", &self.peer)]
        {
            place.as_ref().map_or(Ok(()), |place| address(field, place))?;
        }
        within_opt("instance.transfer.peer_port", self.peer_port, 1, u16::MAX)?;
        at_most("instance.transfer.engine_ids", self.engine_ids.len(), MAX_RANKS as usize)?;
        self.engine_ids.iter().try_for_each(|id| text("instance.transfer.engine_ids", id, MAX_NAME))?;
        within_opt("instance.transfer.bytes_per_token", self.bytes_per_token, 1, 1 << 30)
    }
}

impl Check for Register {
    fn check(&self) -> Checked {
        self.instance.check()
    }
}

impl Check for RankLoad {
    fn check(&self) -> Checked {
        within("load.rank", self.rank, 0, MAX_RANKS - 1)?;
        within_opt("load.running", self.running, 0, 1 << 24)?;
        within_opt("load.waiting", self.waiting, 0, 1 << 24)?;
        within_opt("load.kv_usage", self.kv_usage, 0.0, 1.0)?;
        within_opt("load.kv_total_tokens", self.kv_total_tokens, 0, MAX_COUNT)?;
        within_opt("load.prompt_tokens_per_s", self.prompt_tokens_per_s, 0.0, MAX_RATE)?;
        within_opt("load.generation_tokens_per_s", self.generation_tokens_per_s, 0.0, MAX_RATE)?;
        within_opt("load.cache_hit_rate", self.cache_hit_rate, 0.0, 1.0)?;
        within_opt("load.host_kv_usage", self.host_kv_usage, 0.0, 1.0)?;
        within_opt("load.queue_time_s", self.queue_time_s, 0.0, MAX_SECONDS)?;
        within_opt("load.prefill_time_s", self.prefill_time_s, 0.0, MAX_SECONDS)?;
        within_opt("load.decode_time_s", self.decode_time_s, 0.0, MAX_SECONDS)?;
        within_opt("load.request_prompt_tokens", self.request_prompt_tokens, 0.0, MAX_RATE)?;
        within_opt("load.request_generation_tokens", self.request_generation_tokens, 0.0, MAX_RATE)?;
        within_opt("load.busy", self.busy, 0.0, 1.0)?;
        within_opt("load.utilization", self.utilization, 0.0, 1.0)
    }
}

impl Check for Report {
    fn check(&self) -> Checked {
        if let Some(reason) = &self.reason {
            text("report.reason", reason, MAX_TEXT)?;
        }
        at_most("report.ranks", self.ranks.len(), MAX_RANKS as usize)?;
        let mut seen = [0u64; (MAX_RANKS as usize).div_ceil(64)];
        for load in &self.ranks {
            load.check()?;
            let (word, bit) = (load.rank as usize / 64, 1 << (load.rank % 64));
            if seen[word] & bit != 0 {
                return Err(Reason(format!("report.ranks: rank {} is listed twice", load.rank)));
            }
            seen[word] |= bit;
        }
        Ok(())
    }
}

fn in_flight(field: &str, list: &[InFlight]) -> Checked {
    at_most(field, list.len(), MAX_TARGETS)?;
    for entry in list {
        target(field, entry.target)?;
        within(field, entry.requests, 0, 1 << 24)?;
        within(field, entry.prefilling, 0, 1 << 24)?;
        within(field, entry.prefill_tokens, 0, MAX_COUNT)?;
        within(field, entry.prefill_us, 0, MAX_COUNT)?;
        within(field, entry.context_tokens, 0, MAX_COUNT)?;
    }
    Ok(())
}

impl Check for GatewayLoad {
    fn check(&self) -> Checked {
        in_flight("gateway_load.targets", &self.targets)
    }
}

impl Check for Placements {
    fn check(&self) -> Checked {
        at_most("placements.items", self.items.len(), MAX_ITEMS)?;
        for item in &self.items {
            target("placements.target", item.target)?;
            blocks("placements.path", &item.path)?;
            within_opt("placements.keep", item.keep, 0, MAX_PATH as u32)?;
        }
        Ok(())
    }
}

impl Check for CacheEvents {
    fn check(&self) -> Checked {
        within("cache_events.rank", self.rank, 0, MAX_RANKS - 1)?;
        at_most("cache_events.ops", self.ops.len(), MAX_ITEMS)?;
        for op in &self.ops {
            let (above, path) = match op {
                CacheOp::Store { above, blocks } | CacheOp::Remove { above, blocks } => (above, blocks),
                CacheOp::Clear => continue,
            };
            at_most("cache_events.above", above.len(), MAX_ABOVE)?;
            if above.contains(&0) {
                return Err(Reason("cache_events.above: contains the hash 0".into()));
            }
            blocks("cache_events.blocks", path)?;
        }
        Ok(())
    }
}

impl Check for Feedback {
    fn check(&self) -> Checked {
        at_most("feedback.items", self.items.len(), 2 * MAX_TARGETS)?;
        for item in &self.items {
            target("feedback.target", item.target)?;
            within("feedback.answers", item.answers, 0, 1 << 24)?;
            within("feedback.predicted_tokens", item.predicted_tokens, 0, MAX_COUNT)?;
            within("feedback.cached_tokens", item.cached_tokens, 0, MAX_COUNT)?;
            within("feedback.prompt_tokens", item.prompt_tokens, 0, MAX_COUNT)?;
            within("feedback.prompt_bytes", item.prompt_bytes, 0, MAX_COUNT)?;
        }
        at_most("feedback.costs", self.costs.len(), MAX_TARGETS)?;
        self.costs.iter().try_for_each(Check::check)?;
        at_most("feedback.paces", self.paces.len(), MAX_TARGETS)?;
        for pace in &self.paces {
            target("feedback.paces.target", pace.target)?;
            within("feedback.paces.answers", pace.answers, 0, 1 << 24)?;
            within("feedback.paces.late", pace.late, 0, pace.answers)?;
        }
        Ok(())
    }
}

impl Check for Costs {
    fn check(&self) -> Checked {
        let numbers = [
            ("costs.prefill", self.prefill),
            ("costs.attention", self.attention),
            ("costs.step", self.step),
            ("costs.sequence", self.sequence),
            ("costs.context", self.context),
            ("costs.chunk", self.chunk),
        ];
        numbers.iter().try_for_each(|&(field, number)| within(field, number, 1.0 / MAX_COST, MAX_COST))?;
        within("costs.prefills", self.prefills, 0, MAX_OBSERVATIONS)?;
        within("costs.decodes", self.decodes, 0, MAX_OBSERVATIONS)
    }
}

impl Check for TargetCosts {
    fn check(&self) -> Checked {
        target("costs.target", self.target)?;
        self.costs.check()
    }
}

impl Check for TargetInfo {
    fn check(&self) -> Checked {
        target("target.target", self.target)?;
        self.instance.check()?;
        self.costs.as_ref().map_or(Ok(()), Check::check)?;
        within("target.rank", self.rank, 0, self.instance.dp_ranks - 1)
    }
}

impl Check for IndexOp {
    fn check(&self) -> Checked {
        match self {
            Self::Place { target: id, anchor, skip, blocks: path } => {
                target("place.target", *id)?;
                at_most("place.blocks", path.len(), MAX_PATH)?;
                if path.contains(&0) {
                    return Err(Reason("place.blocks: contains the hash 0".into()));
                }
                if *anchor == 0 { within("place.skip", *skip, 0, 0) } else { Ok(()) }
            }
            Self::Store { target: id, anchor, skip, blocks: path } => {
                target("store.target", *id)?;
                blocks("store.blocks", path)?;
                if *anchor == 0 { within("store.skip", *skip, 0, 0) } else { Ok(()) }
            }
            Self::Remove { target: id, from, len, .. } => {
                target("remove.target", *id)?;
                within("remove.from", *from, 0, MAX_PATH as u32)?;
                within("remove.len", *len, 0, MAX_PATH as u32)
            }
            Self::Clear { target: id } => target("clear.target", *id),
            Self::Evict { .. } => Ok(()),
        }
    }
}

impl Check for Delta {
    fn check(&self) -> Checked {
        at_most("delta.ops", self.ops.len(), MAX_ITEMS)?;
        for op in &self.ops {
            match op {
                Op::Target(info) => info.check()?,
                Op::TargetGone { target: id } => target("target_gone.target", *id)?,
                Op::Index(op) => op.check()?,
                Op::EpochSettled => {}
                Op::Costs(told) => told.check()?,
            }
        }
        Ok(())
    }
}

impl Check for Run {
    fn check(&self) -> Checked {
        blocks("run.blocks", &self.blocks)?;
        at_most("run.holders", self.holders.len(), MAX_TARGETS)?;
        let len = self.blocks.len() as u32;
        for holder in &self.holders {
            target("run.holders.target", holder.target)?;
            within("run.holders.depth", holder.depth, 0, len)?;
            for &(from, count) in &holder.missing {
                within("run.holders.missing.from", from, 0, len)?;
                within("run.holders.missing.len", count, 0, len - from)?;
            }
        }
        Ok(())
    }
}

impl Check for SnapshotChunk {
    fn check(&self) -> Checked {
        at_most("snapshot.targets", self.targets.len(), MAX_TARGETS)?;
        self.targets.iter().try_for_each(Check::check)?;
        at_most("snapshot.runs", self.runs.len(), MAX_ITEMS)?;
        self.runs.iter().try_for_each(Check::check)
    }
}

impl Check for Recollection {
    fn check(&self) -> Checked {
        name("recollection.instance", &self.instance)?;
        within("recollection.rank", self.rank, 0, MAX_RANKS - 1)?;
        at_most("recollection.paths", self.paths.len(), MAX_ITEMS)?;
        self.paths.iter().try_for_each(|path| blocks("recollection.paths", path))
    }
}

impl Check for EngineLoad {
    fn check(&self) -> Checked {
        target("load_update.engines.target", self.target)?;
        self.load.check()
    }
}

impl Check for LoadUpdate {
    fn check(&self) -> Checked {
        at_most("load_update.engines", self.engines.len(), MAX_TARGETS)?;
        self.engines.iter().try_for_each(Check::check)?;
        at_most("load_update.gateways", self.gateways.len(), MAX_GATEWAYS)?;
        for peer in &self.gateways {
            in_flight("load_update.gateways.targets", &peer.targets)?;
        }
        at_most("load_update.gone", self.gone.len(), MAX_GATEWAYS)?;
        at_most("load_update.live", self.live.as_ref().map_or(0, Vec::len), MAX_GATEWAYS)
    }
}
