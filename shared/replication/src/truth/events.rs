//! KV-cache events: what engines themselves say they hold.
//!
//! A target whose agent tells events is *exact*: in token space it holds what the events say and nothing else, so
//! placements in token space only note use. An event's place is named by blocks before it; when those are not in the
//! tree (evicted, or never told), the event is counted and left out, and the target becomes *partial*: what is known
//! of it is right, more may be there. A full dump (`replace`) heals that. It forgets all that was known of the target,
//! byte space included: of a run one cannot tell by which of the two it came, and prompts that are still in use enter
//! what they find again with their next turn.
//!
//! An agent that comes back and tells no events for [`linger_us`](super::TruthConfig) has had them switched off: its
//! targets count by placements from then on.

use std::sync::Arc;

use fairlead_prefix::StoreError;
use fairlead_wire::TargetId;
use fairlead_wire::msg::{CacheEvents, CacheOp, CacheSource, IndexOp, Op, RefuseCode};

use super::Truth;
use crate::SessionId;

impl Truth {
    /// An agent says what its engine's cache holds.
    pub(super) fn events(&mut self, session: SessionId, events: CacheEvents) {
        let Some(entry) = self.sessions.get(&session) else { return };
        let name = entry.name.clone();
        let instance = self.fleet.instances.get(&name).filter(|instance| {
            instance.agent == Some(session) && instance.info.incarnation == events.incarnation
        });
        let Some(instance) = instance else {
            self.stats.events_ignored += events.ops.len() as u64;
            return;
        };
        let ranks = instance.info.dp_ranks;
        let slot = instance.slots.get(usize::from(events.rank)).copied();
        let Some(target) = slot.and_then(|slot| self.fleet.at_mut(slot)) else {
            let why = format!("cache_events.rank: {} is not below the instance's {ranks}", events.rank);
            return self.refuse(session, RefuseCode::Invalid, why);
        };
        let id = target.id;
        let first = target.events_from.replace(session) != Some(session);
        if events.replace {
            target.incomplete = false;
        }
        // Events that go on where another session stopped say nothing of what lies between.
        let continues = first && !events.replace;
        let known = target.cache;
        if known == CacheSource::Placements {
            // From here on it says itself what it holds: what engines of its size are believed to keep bounds nothing.
            target.cache = CacheSource::PartialEvents;
        }
        if events.replace || known == CacheSource::Placements {
            self.clear_target(id);
        }
        let mut incomplete = continues;
        for op in &events.ops {
            self.stats.cache_events += 1;
            match op {
                CacheOp::Store { above, blocks } => match self.index.store(id, above, blocks, self.now_us) {
                    Ok(Some(op)) => self.push(Op::Index(op)),
                    Ok(None) => {}
                    Err(StoreError::UnknownParent { .. }) => {
                        self.stats.unknown_parents += 1;
                        incomplete = true;
                    }
                },
                CacheOp::Remove { above, blocks } => {
                    for op in self.index.remove_blocks(id, above, blocks) {
                        self.push(Op::Index(op));
                    }
                }
                CacheOp::Clear => {
                    self.clear_target(id);
                    incomplete = false;
                }
            }
        }
        incomplete |= self.trim(id);
        if let Some(target) = self.fleet.get_mut(id) {
            target.incomplete |= incomplete;
            let partial = events.partial || target.incomplete;
            let cache = if partial { CacheSource::PartialEvents } else { CacheSource::Events };
            target.cache = cache;
            if cache != known {
                let described = target.describe();
                self.push(Op::Target(Box::new(described)));
            }
        }
    }

    /// The target holds nothing.
    fn clear_target(&mut self, id: TargetId) {
        if self.index.held_by(id.slot) > 0 {
            self.index.clear(id.slot);
            self.push(Op::Index(IndexOp::Clear { target: id.pack() }));
        }
    }

    /// Targets of a new agent session that tells no events count by placements.
    pub(super) fn forsake_events(&mut self) {
        let (now_us, linger_us) = (self.now_us, self.config.linger_us);
        let mut names: Vec<Arc<str>> = self
            .fleet
            .instances
            .iter()
            .filter(|(_, instance)| {
                instance.agent.is_some() && now_us.saturating_sub(instance.agent_since_us) >= linger_us
            })
            .map(|(name, _)| name.clone())
            .collect();
        names.sort_unstable();
        for name in names {
            let Some(instance) = self.fleet.instances.get(&name) else { continue };
            let (agent, slots) = (instance.agent, instance.slots.clone());
            for slot in slots {
                let Some(target) = self.fleet.at_mut(slot) else { continue };
                if target.cache == CacheSource::Placements || target.events_from == agent {
                    continue;
                }
                target.cache = CacheSource::Placements;
                target.incomplete = false;
                let (id, described) = (target.id, target.describe());
                self.clear_target(id);
                self.push(Op::Target(Box::new(described)));
            }
        }
    }
}
