//! Agents: registration, reports, absence.

use std::sync::Arc;

use ahash::AHashSet;
use fairlead_wire::TargetId;
use fairlead_wire::msg::{InstanceInfo, Op, RankLoad, RefuseCode, Report};

use super::fleet::Instance;
use super::{Part, Truth};
use crate::SessionId;

/// Bytes that a held block takes in the index, about.
const BLOCK_BYTES: u64 = 16;

impl Truth {
    /// An agent says what it watches.
    pub(super) fn register(&mut self, session: SessionId, info: InstanceInfo) {
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        let name = entry.name.clone();
        if *info.name != *name {
            let why = format!("instance.name: {:?} is not the agent's own name {name:?}", info.name);
            return self.refuse(session, RefuseCode::Identity, why);
        }
        let info = Arc::new(info);
        let same = self.fleet.instances.get(&name).is_some_and(|known| {
            known.info.incarnation == info.incarnation && known.info.dp_ranks == info.dp_ranks
        });
        if !same {
            self.drop_instance(&name);
            let Some(ids) = self.fleet.admit(&info, info.dp_ranks) else {
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
                orphaned_us: self.now_us,
            };
            self.fleet.instances.insert(name.clone(), instance);
        }
        let Some(instance) = self.fleet.instances.get_mut(&name) else { return };
        let changed = !same || !instance.ready || instance.info != info;
        instance.info = info.clone();
        instance.agent = Some(session);
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
            target.info = info.clone();
            target.ready = ready;
            let described = target.describe();
            self.push(Op::Target(described));
        }
    }

    fn drop_instance(&mut self, name: &Arc<str>) {
        let Some(instance) = self.fleet.instances.remove(name) else { return };
        for slot in instance.slots {
            if let Some(target) = self.fleet.retire(slot, self.now_us) {
                self.index.drop_target(slot);
                self.push(Op::TargetGone { target: target.id.pack() });
            }
        }
    }

    /// Enters what gateways remember of an instance that has just registered.
    fn recall(&mut self, name: &Arc<str>, info: &InstanceInfo) {
        for rank in 0..info.dp_ranks {
            for path in self.recollections.take(name, rank, info.incarnation) {
                self.place_rank(name, rank, &path);
            }
        }
        self.keep_budget();
    }

    pub(super) fn place_rank(&mut self, name: &Arc<str>, rank: u16, path: &[u64]) {
        let slot = self.fleet.instances.get(name).and_then(|known| known.slots.get(usize::from(rank)));
        let id = slot.and_then(|&slot| self.fleet.at(slot)).map(|target| target.id);
        if let Some(id) = id {
            self.place_one(id, path);
        }
    }

    pub(super) fn place_one(&mut self, id: TargetId, path: &[u64]) {
        let Some(op) = self.index.place(id, path, self.now_us) else { return };
        self.push(Op::Index(op));
        let held = self.index.held_by(id.slot);
        let most = self.most_blocks(id);
        if held > most {
            // Somewhat below the bound, so that not every placement trims.
            for op in self.index.trim_target(id, most - most / 16) {
                self.stats.trims += 1;
                self.push(Op::Index(op));
            }
        }
    }

    /// Blocks that a target may hold: its share of the index, and what its engine has room for.
    fn most_blocks(&self, id: TargetId) -> u64 {
        let share =
            (self.config.index_bytes as f64 * f64::from(self.config.target_share)) as u64 / BLOCK_BYTES;
        let room = self.fleet.get(id).and_then(|target| {
            let tokens = target.info.kv_blocks?.saturating_mul(u64::from(target.info.block_size?));
            tokens.checked_div(u64::from(self.config.block_tokens))
        });
        room.map_or(share, |room| room.max(1).min(share))
    }
}
