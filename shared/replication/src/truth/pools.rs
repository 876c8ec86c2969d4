//! Pools: targets without a fixed role that serve one model and hand KV over to one another. Which of a pool's targets
//! should rather prefill and which rather decode is found here from what all gateways have in flight and how many of
//! their answers were late, and told as part of the targets' descriptions. How is [`Leaning`]'s business.
//!
//! Only what may be picked is in a pool: a target that becomes unready or goes is forgotten, and leans to nothing when
//! it comes back. So does everything in a new epoch.

use std::collections::BTreeSet;

use fairlead_wire::TargetId;
use fairlead_wire::msg::{Handoff, InFlight, InstanceInfo, Op, ServingRole, TargetPace};

use super::Truth;
use super::costs::base_model;
use super::fleet::{Fleet, Target};
use super::gateway::{Gateway, nothing_at};
use crate::{LeanConfig, LeanTarget, Leaning};

/// Pools of more than one kind of model or hand-off than anybody runs; the targets of the rest do not lean.
const MAX_POOLS: usize = 256;

/// What the targets of a pool have in common.
#[derive(Debug, PartialEq, Eq)]
struct Key {
    model: String,
    handoff: Handoff,
    domain: String,
}

impl Key {
    /// Whether a target of that description belongs here.
    fn fits(&self, info: &InstanceInfo) -> bool {
        info.role == ServingRole::Both
            && base_model(info) == Some(self.model.as_str())
            && info
                .transfer
                .as_ref()
                .is_some_and(|transfer| transfer.handoff == self.handoff && transfer.domain == self.domain)
    }

    /// The key of a target that may lean.
    fn of(info: &InstanceInfo) -> Option<Self> {
        let transfer = info.transfer.as_ref().filter(|_| info.role == ServingRole::Both)?;
        let (model, domain) = (base_model(info)?.to_owned(), transfer.domain.clone());
        Some(Self { model, handoff: transfer.handoff, domain })
    }
}

#[derive(Debug)]
struct Pool {
    key: Key,
    leaning: Leaning,
    members: BTreeSet<TargetId>,
}

/// All pools, by number. A pool that is left by its last target is dropped.
#[derive(Debug)]
pub(super) struct Pools {
    pools: Vec<Option<Pool>>,
    /// When they are looked at next; never while none has two targets.
    due_us: u64,
}

impl Default for Pools {
    fn default() -> Self {
        Self { pools: Vec::new(), due_us: u64::MAX }
    }
}

impl Pools {
    /// When [`Truth::lean`] has something to do.
    pub(super) fn due_us(&self) -> u64 {
        self.due_us
    }

    fn get(&self, number: u16) -> Option<&Pool> {
        self.pools.get(usize::from(number))?.as_ref()
    }

    fn get_mut(&mut self, number: u16) -> Option<&mut Pool> {
        self.pools.get_mut(usize::from(number))?.as_mut()
    }

    /// Puts a target into its pool; its number, if there is room for one.
    fn join(&mut self, key: Key, id: TargetId, now_us: u64) -> Option<u16> {
        let known = self.pools.iter().position(|pool| pool.as_ref().is_some_and(|pool| pool.key == key));
        let number = known.or_else(|| {
            let free = self.pools.iter().position(Option::is_none);
            if free.is_none() && self.pools.len() < MAX_POOLS {
                self.pools.push(None);
                return Some(self.pools.len() - 1);
            }
            free
        })?;
        let fresh = || Pool { key, leaning: Leaning::default(), members: BTreeSet::new() };
        let pool = self.pools[number].get_or_insert_with(fresh);
        pool.members.insert(id);
        if pool.members.len() >= 2 {
            self.due_us = self.due_us.min(now_us);
        }
        u16::try_from(number).ok()
    }

    fn leave(&mut self, number: u16, id: TargetId, now_us: u64) {
        let Some(pool) = self.get_mut(number) else { return };
        pool.members.remove(&id);
        pool.leaning.forget(id);
        if pool.members.is_empty() {
            self.pools[usize::from(number)] = None;
        }
        // Who is left alone leans no more.
        self.due_us = self.due_us.min(now_us);
    }

    /// See [`Leaning::observe`].
    fn observe(
        &mut self,
        config: &LeanConfig,
        number: u16,
        (before, after): (&InFlight, &InFlight),
        ended: bool,
        now_us: u64,
    ) {
        if let Some(pool) = self.get_mut(number) {
            pool.leaning.observe(config, TargetId::unpack(after.target), before, after, ended, now_us);
        }
    }

    /// Looks at every pool that has a choice; whose leaning is to change.
    fn look(&mut self, config: &LeanConfig, fleet: &Fleet, now_us: u64) -> Vec<(TargetId, ServingRole)> {
        let mut changes = Vec::new();
        let mut any = false;
        for pool in self.pools.iter_mut().flatten() {
            let alone = pool.members.len() < 2;
            let mixed = || pool.members.iter().all(|id| pool.leaning.of(*id) == ServingRole::Both);
            if alone && mixed() {
                continue;
            }
            any = true;
            let target = |id: &TargetId| Some(lean_target(fleet.get(*id)?));
            let targets: Vec<LeanTarget> = pool.members.iter().filter_map(target).collect();
            let changed = pool.leaning.look(config, &targets, now_us);
            if !changed.is_empty() {
                let leans = |role| pool.members.iter().filter(|id| pool.leaning.of(**id) == role).count();
                let (prefill, decode) = (leans(ServingRole::Prefill), leans(ServingRole::Decode));
                let Key { model, domain, .. } = &pool.key;
                let targets = pool.members.len();
                tracing::info!(%model, %domain, targets, prefill, decode, "targets lean otherwise");
            }
            changes.extend(changed);
        }
        self.due_us = if any { now_us + config.every_us } else { u64::MAX };
        changes
    }
}

fn lean_target(target: &Target) -> LeanTarget {
    let (most_running, kv_tokens) = (target.info.max_num_seqs, target.kv_tokens());
    LeanTarget { most_running, kv_tokens, ..LeanTarget::new(target.id, target.costs.told()) }
}

impl Truth {
    /// A target has come, or its description or readiness has changed: puts it into the pool where it belongs now, or
    /// into none. Before the change is announced, since it may end a leaning.
    pub(super) fn sort_into_pool(&mut self, slot: u16) {
        let now_us = self.now_us;
        let Some(target) = self.fleet.at(slot) else { return };
        let (id, before, info) = (target.id, target.pool, target.info.clone());
        let may = self.config.lean.enabled && target.ready;
        if may
            && let Some(number) = before
            && self.pools.get(number).is_some_and(|pool| pool.key.fits(&info))
        {
            return;
        }
        if let Some(number) = before {
            self.pools.leave(number, id, now_us);
        }
        let key = if may { Key::of(&info) } else { None };
        let pool = key.and_then(|key| self.pools.join(key, id, now_us));
        if let Some(target) = self.fleet.get_mut(id) {
            (target.pool, target.leaning) = (pool, ServingRole::Both);
        }
        let Some(number) = pool else { return };
        // What gateways have in flight there already: of this, only changes will be told.
        let idle = nothing_at(id.pack());
        let had: Vec<InFlight> = self.gateway_parts().map(|one| one.in_flight_at(id.pack())).collect();
        for after in had {
            self.pools.observe(&self.config.lean, number, (&idle, &after), false, now_us);
        }
    }

    /// A target is gone.
    pub(super) fn leave_pool(&mut self, target: &Target) {
        if let Some(number) = target.pool {
            self.pools.leave(number, target.id, self.now_us);
        }
    }

    /// What a gateway has in flight at targets has changed, from the first to the second.
    pub(super) fn observe(&mut self, changes: &[(InFlight, InFlight)], ended: bool) {
        for (before, after) in changes {
            let target = self.fleet.get(TargetId::unpack(after.target));
            if let Some(number) = target.and_then(|target| target.pool) {
                self.pools.observe(&self.config.lean, number, (before, after), ended, self.now_us);
            }
        }
    }

    /// A gateway's session has ended, and with it all it had in flight.
    pub(super) fn observe_end(&mut self, gateway: &Gateway) {
        let changes: Vec<_> = gateway.in_flight.values().map(|had| (*had, nothing_at(had.target))).collect();
        self.observe(&changes, true);
    }

    /// A gateway says how many of its answers were late.
    pub(super) fn paced(&mut self, paces: &[TargetPace]) {
        for pace in paces {
            let target = self.fleet.get(TargetId::unpack(pace.target));
            if let Some(pool) = target.and_then(|target| self.pools.get_mut(target.pool?)) {
                pool.leaning.answered(&self.config.lean, pace.answers, pace.late, self.now_us);
            }
        }
    }

    /// Looks at the pools when that is due, and tells whose leaning has changed.
    pub(super) fn lean(&mut self) {
        if self.now_us < self.pools.due_us {
            return;
        }
        for (id, leaning) in self.pools.look(&self.config.lean, &self.fleet, self.now_us) {
            let Some(target) = self.fleet.get_mut(id) else { continue };
            target.leaning = leaning;
            let described = target.describe();
            self.push(Op::Target(Box::new(described)));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail so")]
mod tests {
    use fairlead_wire::msg::{ModelInfo, Transfer};

    use super::*;

    fn info(model: &str, domain: Option<&str>) -> InstanceInfo {
        let transfer =
            domain.map(|domain| Transfer { domain: domain.to_owned(), ..Transfer::new(Handoff::NixlPull) });
        InstanceInfo { transfer, ..InstanceInfo::new("e", "h:1", [model]) }
    }

    #[test]
    fn a_pool_is_a_model_a_hand_off_and_a_domain() {
        let base = info("m", Some("d"));
        let adapter = ModelInfo { name: "a".into(), max_model_len: None, parent: Some("m".into()) };
        let mut adapted = base.clone();
        adapted.models.insert(0, adapter);
        let sglang = Transfer { domain: "d".into(), ..Transfer::new(Handoff::Sglang) };
        let cases = [
            ("the same", base.clone(), true),
            ("with an adapter", adapted, true),
            ("another model", info("n", Some("d")), false),
            ("another domain", info("m", Some("e")), false),
            ("no hand-off", info("m", None), false),
            ("another hand-off", InstanceInfo { transfer: Some(sglang), ..base.clone() }, false),
            ("a fixed role", InstanceInfo { role: ServingRole::Decode, ..base.clone() }, false),
            ("no model", InstanceInfo { models: Vec::new(), ..base.clone() }, false),
        ];
        let key = Key::of(&base).unwrap();
        for (what, other, same) in cases {
            assert_eq!(key.fits(&other), same, "{what}");
            assert_eq!(Key::of(&other).as_ref() == Some(&key), same, "{what}");
        }
    }

    #[test]
    fn pools_are_bounded_dropped_when_empty_and_due_while_one_has_a_choice() {
        let mut pools = Pools::default();
        let id = |slot| TargetId::new(slot, 1);
        let key = |number: u16| Key::of(&info(&format!("m{number}"), Some(""))).unwrap();
        for number in 0..MAX_POOLS as u16 {
            assert_eq!(pools.join(key(number), id(number), 5), Some(number));
        }
        assert_eq!(pools.join(key(999), id(999), 5), None, "no room");
        assert_eq!(pools.due_us(), u64::MAX, "one target has no choice");
        assert_eq!(pools.join(key(7), id(999), 6), Some(7));
        assert_eq!(pools.due_us(), 6);
        pools.leave(7, id(999), 7);
        pools.leave(7, id(7), 7);
        assert_eq!(pools.join(key(999), id(999), 8), Some(7), "the room of one that was left");
        let (config, fleet) = (LeanConfig::default(), Fleet::new(1));
        assert!(pools.look(&config, &fleet, 9).is_empty());
        assert_eq!(pools.due_us(), u64::MAX);
    }
}
