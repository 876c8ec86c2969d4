//! Gateways: what they have in flight, and what they are told of the others and of the engines.

use ahash::AHashSet;
use bytes::Bytes;
use fairlead_wire::msg::{EngineLoad, GatewayLoad, LoadUpdate, PeerLoad};
use fairlead_wire::{TargetId, encode};

use super::gateway::Gateway;
use super::{Part, Truth};
use crate::SessionId;

/// Engine loads in one update: about 140 bytes each.
const UPDATE_ENGINES: usize = 1_024;
/// Reservations in one update: about 40 bytes each.
const UPDATE_IN_FLIGHT: usize = 8_192;

impl Truth {
    /// The others forget what a gateway had in flight.
    pub(super) fn gateway_gone(&mut self, session: SessionId, gateway: &Gateway) {
        self.gateways.retain(|&other| other != session);
        self.turn = 0;
        let now_us = self.now_us;
        for other in self.gateways.clone() {
            if let Some(other) = self.gateway_mut(other) {
                other.dirty.peers.remove(&gateway.number);
                other.dirty.gone.push(gateway.number);
                // The refresh names everybody who is still there, which says as much in bounded room.
                if other.dirty.gone.len() > 64 {
                    other.dirty.gone.clear();
                    other.dirty.refresh = true;
                }
                other.dirty.touch(now_us);
            }
        }
    }

    pub(super) fn gateway_load(&mut self, session: SessionId, load: &GatewayLoad) {
        let now_us = self.now_us;
        let Some(Part::Gateway(gateway)) = self.sessions.get_mut(&session).map(|entry| &mut entry.part)
        else {
            return;
        };
        let fleet = &self.fleet;
        let changed = gateway.load(load, |packed| fleet.knows(TargetId::unpack(packed)));
        let number = gateway.number;
        if changed.is_empty() {
            return;
        }
        self.observe(&changed, false);
        for other in self.gateways.clone() {
            if other != session
                && let Some(other) = self.gateway_mut(other)
            {
                let targets = changed.iter().map(|(_, now)| now.target);
                other.dirty.peers.entry(number).or_default().extend(targets);
                other.dirty.touch(now_us);
            }
        }
    }

    /// The load changes that a gateway has not been told, as many as fit one frame.
    pub(super) fn load_update(&mut self, session: SessionId) -> Option<Bytes> {
        let mut dirty = std::mem::take(&mut self.gateway_mut(session)?.dirty);
        let mut update = LoadUpdate { gone: std::mem::take(&mut dirty.gone), ..LoadUpdate::default() };
        for slot in dirty.take_engines(UPDATE_ENGINES) {
            if let Some(target) = self.fleet.at(slot)
                && let Some(load) = target.load
            {
                update.engines.push(EngineLoad { target: target.id.pack(), load });
            }
        }
        let own = self.gateway_mut(session)?.number;
        let mut entries = 0;
        if dirty.refresh {
            update.live = Some(self.gateway_parts().map(|gateway| gateway.number).collect());
        }
        for gateway in self.gateway_parts().filter(|gateway| gateway.number != own) {
            if entries >= UPDATE_IN_FLIGHT {
                // What is left goes with the next frame; of a refresh, whole gateways are turned into changes.
                if dirty.refresh {
                    let targets = gateway.in_flight.keys().copied();
                    dirty.peers.entry(gateway.number).or_insert_with(AHashSet::new).extend(targets);
                }
                continue;
            }
            let changed = dirty.peers.remove(&gateway.number);
            let targets = if dirty.refresh {
                gateway.in_flight.values().copied().collect()
            } else {
                changed.into_iter().flatten().map(|target| gateway.in_flight_at(target)).collect::<Vec<_>>()
            };
            if !targets.is_empty() || dirty.refresh {
                entries += targets.len();
                update.gateways.push(PeerLoad {
                    gateway: gateway.number,
                    version: gateway.version,
                    full: dirty.refresh,
                    targets,
                });
            }
        }
        dirty.refresh = false;
        let live: AHashSet<u32> = self.gateway_parts().map(|gateway| gateway.number).collect();
        dirty.peers.retain(|number, _| live.contains(number));
        dirty.since_us = (!dirty.is_empty()).then_some(self.now_us);
        let stamp = self.stamp();
        self.gateway_mut(session)?.dirty = dirty;
        if update == LoadUpdate::default() {
            return None;
        }
        match encode(&update, stamp) {
            Ok(frame) => Some(frame.to_bytes().into()),
            Err(error) => {
                tracing::error!(%error, "load update cannot be encoded");
                None
            }
        }
    }
}
