//! Agents: registration, reports, absence.

use std::sync::Arc;

use ahash::AHashSet;
use fairlead_wire::TargetId;
use fairlead_wire::msg::{CacheSource, InstanceInfo, Op, RankLoad, RefuseCode, Report, TargetFeedback};

use super::fleet::{Instance, Target};
use super::intake::Input;
use super::{Part, Truth};
use crate::SessionId;

/// Bytes that a held block takes in the index, about.
const BLOCK_BYTES: u64 = 16;

impl Truth {
    /// An agent says what it watches. Another engine than before changes the index, which has its order.
    pub(super) fn on_register(&mut self, session: SessionId, info: InstanceInfo) {
        let same = self.fleet.instances.get(info.name.as_str()).is_some_and(|known| known.is(&info));
        if same {
            self.register(session, info);
        } else {
            self.take(Input::Register { session, info: Box::new(info) });
        }
    }

    pub(super) fn register(&mut self, session: SessionId, info: InstanceInfo) {
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        let name = entry.name.clone();
        if *info.name != *name {
            let why = format!("instance.name: {:?} is not the agent's own name {name:?}", info.name);
            return self.refuse(session, RefuseCode::Identity, why);
        }
        let info = Arc::new(info);
        let same = self.fleet.instances.get(&name).is_some_and(|known| known.is(&info));
        if !same {
            self.drop_instance(&name);
            let costs = self.classes.known(&info);
            let Some(ids) = self.fleet.admit(&info, info.dp_ranks, &costs) else {
                let why = format!(
                    "instance.dp_ranks: no room for {} of {} targets",
                    info.dp_ranks, self.config.max_targets
                );
                return self.refuse(session, RefuseCode::Capacity, why);
            };
            for &id in &ids {
                if let Err(error) = self.index.bind(id) {
                    // Index and table are made with the same bound.
                    tracing::error!(%error, "the index has no room for a target of the table");
                }
            }
            let instance = Instance {
                info: info.clone(),
                slots: ids.iter().map(|id| id.slot).collect(),
                // Not yet announced, so that the announcement below covers every rank.
                ready: false,
                agent: None,
                agent_since_us: self.now_us,
                orphaned_us: self.now_us,
            };
            self.fleet.instances.insert(name.clone(), instance);
        }
        let Some(instance) = self.fleet.instances.get_mut(&name) else { return };
        let changed = !same || !instance.ready || instance.info != info;
        instance.info = info.clone();
        if instance.agent.replace(session) != Some(session) {
            instance.agent_since_us = self.now_us;
        }
        instance.ready = true;
        if let Some(Part::Agent { registered }) = self.sessions.get_mut(&session).map(|entry| &mut entry.part)
        {
            *registered = true;
        }
        if changed {
            self.announce(&name);
        }
        if !same {
            self.recall(&name, &info);
        }
    }

    /// An agent says how its engine is.
    pub(super) fn on_report(&mut self, session: SessionId, report: Report) {
        let known = |truth: &Self| {
            let name = &truth.sessions.get(&session)?.name;
            let instance = truth.fleet.instances.get(name)?;
            (instance.agent == Some(session) && instance.info.incarnation == report.incarnation).then_some(())
        };
        // The registration that it follows may be waiting for its turn.
        if self.is_caught_up() || known(self).is_some() {
            self.report(session, report);
        } else {
            self.take(Input::Report { session, report });
        }
    }

    pub(super) fn report(&mut self, session: SessionId, report: Report) {
        let now_us = self.now_us;
        let Some(entry) = self.sessions.get(&session) else { return };
        let name = entry.name.clone();
        let instance = self.fleet.instances.get_mut(&name).filter(|instance| {
            instance.agent == Some(session) && instance.info.incarnation == report.incarnation
        });
        let Some(instance) = instance else {
            self.stats.reports_ignored += 1;
            return;
        };
        let turned = instance.ready != report.ready;
        instance.ready = report.ready;
        let slots = instance.slots.clone();
        let clock = &entry.clock;
        let mut dirty = Vec::with_capacity(report.ranks.len());
        let told: AHashSet<u16> = report.ranks.iter().map(|load| load.rank).collect();
        for mut load in report.ranks {
            let slot = slots.get(usize::from(load.rank)).copied();
            let Some(target) = slot.and_then(|slot| self.fleet.at_mut(slot)) else {
                self.stats.reports_ignored += 1;
                continue;
            };
            // Before the first pong the two clocks cannot be compared; the arrival is the best bound there is.
            load.taken_us = clock.to_local(load.taken_us).unwrap_or(now_us).min(now_us);
            if target.load.is_none_or(|before| before.taken_us <= load.taken_us) {
                target.load = Some(load);
                dirty.push(target.id.slot);
            }
        }
        for &slot in &slots {
            // A rank that is left out is one whose figures are unknown now: the old ones must not stand for them.
            if let Some(target) = self.fleet.at_mut(slot)
                && !told.contains(&target.rank)
                && let Some(load) = &mut target.load
                && *load != (RankLoad { rank: load.rank, taken_us: load.taken_us, ..RankLoad::default() })
            {
                *load = RankLoad { rank: target.rank, taken_us: now_us, ..RankLoad::default() };
                dirty.push(slot);
            }
        }
        for session in self.gateways.clone() {
            if let Some(gateway) = self.gateway_mut(session) {
                for &slot in &dirty {
                    gateway.dirty.engine(slot, now_us);
                }
            }
        }
        if turned {
            self.announce(&name);
        }
    }

    /// The agent of an instance has left.
    pub(super) fn orphan(&mut self, name: &Arc<str>, session: SessionId, unready: bool) {
        let now_us = self.now_us;
        let instance = self.fleet.instances.get_mut(name).filter(|instance| instance.agent == Some(session));
        let Some(instance) = instance else { return };
        instance.agent = None;
        instance.orphaned_us = now_us;
        if unready && std::mem::replace(&mut instance.ready, false) {
            self.announce(name);
        }
    }

    /// Ends what no agent has spoken for: first its readiness, then itself.
    pub(super) fn bury_orphans(&mut self, patience_us: u64) {
        let (now_us, linger_us) = (self.now_us, self.config.linger_us);
        let mut silenced = Vec::new();
        let mut buried = Vec::new();
        for (name, instance) in &mut self.fleet.instances {
            let alone_us = now_us.saturating_sub(instance.orphaned_us.max(self.patience_us));
            if instance.agent.is_some() {
                continue;
            }
            if alone_us >= linger_us {
                buried.push(name.clone());
            } else if instance.ready && alone_us >= patience_us {
                instance.ready = false;
                silenced.push(name.clone());
            }
        }
        // A map's order differs from run to run; operations must not.
        silenced.sort_unstable();
        buried.sort_unstable();
        for name in silenced {
            self.announce(&name);
        }
        for name in buried {
            self.drop_instance(&name);
        }
    }

    /// Tells the gateways the present description of every rank.
    fn announce(&mut self, name: &Arc<str>) {
        let Some(instance) = self.fleet.instances.get(name) else { return };
        let (info, ready, slots) = (instance.info.clone(), instance.ready, instance.slots.clone());
        for slot in slots {
            let Some(target) = self.fleet.at_mut(slot) else { continue };
            if target.info != info {
                target.costs.described(&info);
            }
            target.info = info.clone();
            target.ready = ready;
            self.sort_into_pool(slot);
            let Some(described) = self.fleet.at(slot).map(Target::describe) else { continue };
            self.push(Op::Target(Box::new(described)));
        }
    }

    fn drop_instance(&mut self, name: &Arc<str>) {
        let Some(instance) = self.fleet.instances.remove(name) else { return };
        for slot in instance.slots {
            if let Some(target) = self.fleet.retire(slot, self.now_us) {
                self.leave_pool(&target);
                self.index.drop_target(slot);
                self.push(Op::TargetGone { target: target.id.pack() });
            }
        }
    }

    /// Takes from a target what goes beyond its bound, the least recently used first. Whether anything did.
    pub(super) fn trim(&mut self, id: TargetId) -> bool {
        let most = self.most_blocks(id);
        if self.index.held_by(id.slot) <= most {
            return false;
        }
        // Somewhat below the bound, so that not every placement trims.
        for op in self.index.trim_target(id, most - most / 16) {
            self.stats.trims += 1;
            self.push(Op::Index(op));
        }
        true
    }

    /// Blocks that a target may hold: its share of the index; of what is known by placements alone, no more than its
    /// engine is believed to keep.
    fn most_blocks(&self, id: TargetId) -> u64 {
        let share =
            (self.config.index_bytes as f64 * f64::from(self.config.target_share)) as u64 / BLOCK_BYTES;
        let Some(target) = self.fleet.get(id) else { return share };
        match self.believed(target) {
            Some(room) if target.cache == CacheSource::Placements => room.min(share),
            _ => share,
        }
    }

    /// Blocks that an engine is believed to keep.
    pub(super) fn believed(&self, target: &Target) -> Option<u64> {
        let block_bytes = self.config.block_bytes;
        (block_bytes > 0).then(|| Some(target.capacity.blocks(target.kv_tokens()?, block_bytes)))?
    }

    /// Gateways say how well the index predicted what engines had cached.
    pub(super) fn feedback(&mut self, items: &[TargetFeedback]) {
        for told in items {
            let id = TargetId::unpack(told.target);
            let Some(target) = self.fleet.get(id) else { continue };
            let bound = self.believed(target).unwrap_or(u64::MAX);
            let held = self.index.held_by(id.slot);
            if let Some(target) = self.fleet.get_mut(id) {
                target.capacity.learn(told, held, bound);
            }
        }
    }
}
