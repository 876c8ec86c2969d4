//! Where the replica puts what it learns: the fleet view of the shards.

use std::sync::Arc;

use ahash::AHashMap;
use fairlead_replication::{EngineView, ReplicaSink, ReservationSource, TargetState, Trust};
use fairlead_routing::{EngineFigures, Estimate, Fleet, InFlightSums, Mode, TargetEntry, pool};
use fairlead_wire::TargetId;
use fairlead_wire::msg::{Costs, InFlight, InstanceInfo};

use super::costs::CostBook;
use crate::shard::SpeedNote;
use crate::shared::LearntCounts;

/// Writes the fleet view.
pub struct FleetSink {
    fleet: Arc<Fleet>,
    /// By local slot: the next table.
    entries: Vec<Option<Arc<TargetEntry>>>,
    /// Gone from the table, with requests that may still run.
    gone: AHashMap<TargetId, Arc<TargetEntry>>,
    costs: CostBook,
    /// Time per token after the first beyond which an answer is late, microseconds.
    tpot_us: f32,
}

impl FleetSink {
    /// Nothing known. An answer is late when its tokens after the first take longer than `tpot_us` each, in the mean.
    pub fn new(fleet: Arc<Fleet>, tpot_us: f32) -> Self {
        Self { fleet, entries: Vec::new(), gone: AHashMap::new(), costs: CostBook::default(), tpot_us }
    }

    /// What it writes.
    pub fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    /// An answer has shown something of its target's speed.
    pub fn seen(&mut self, note: &SpeedNote) {
        if self.known(note.target).is_some() {
            self.costs.seen(note);
        }
    }

    /// Whether an answer was late, if it had more than one token and its target hands KV over: others have no leaning.
    pub fn late(&self, note: &SpeedNote) -> Option<bool> {
        let seen = note.decode.as_ref().filter(|seen| seen.tokens > 0)?;
        self.known(note.target)?.info.transfer.as_ref()?;
        Some(seen.span_us as f32 > self.tpot_us * seen.tokens as f32)
    }

    /// Shows the shards what was learnt and told since the last call. What this gateway has learnt itself, for the
    /// scheduler; and how much is behind all that is known, if anything has changed.
    pub fn show_costs(&mut self) -> (Vec<(TargetId, Costs)>, Option<LearntCounts>) {
        let news = self.costs.news();
        if !news.is_empty() {
            self.pool_costs();
        }
        let counts = (!news.is_empty()).then(|| self.costs.counts().collect());
        (news.into_iter().filter_map(|news| Some((news.target, news.learnt?))).collect(), counts)
    }

    /// Shows the shards what every target costs: equal ones of a model the same, so that no decision follows the noise
    /// of what each has shown by itself.
    fn pool_costs(&self) {
        let mut models: AHashMap<&str, Vec<(&TargetEntry, Estimate)>> = AHashMap::new();
        for entry in self.entries.iter().flatten() {
            let model = entry.info.models.first().map_or("", |model| model.name.as_str());
            models.entry(model).or_default().push((entry, self.costs.estimate(entry.id)));
        }
        for targets in models.values_mut() {
            let mut estimates: Vec<Estimate> = targets.iter().map(|(_, estimate)| *estimate).collect();
            pool(&mut estimates);
            for ((entry, _), estimate) in targets.iter().zip(estimates) {
                entry.cells.costs.store(&estimate.constants);
            }
        }
    }

    fn listed(&self, id: TargetId) -> Option<&Arc<TargetEntry>> {
        self.entries.get(usize::from(id.slot))?.as_ref().filter(|entry| entry.id == id)
    }

    fn known(&self, id: TargetId) -> Option<&Arc<TargetEntry>> {
        self.listed(id).or_else(|| self.gone.get(&id))
    }
}

impl ReplicaSink for FleetSink {
    fn target(&mut self, id: TargetId, state: TargetState, info: &Arc<InstanceInfo>) {
        let TargetState { rank, ready, cache, leaning } = state;
        let cells = self.known(id).map(|entry| entry.cells.clone());
        if ready
            && let Some(before) = self.listed(id)
            && !before.ready
        {
            // The agent has reached the engine again: what this gateway saw before is out of date.
            before.cells.connected();
        }
        let entry = TargetEntry::new(id, info.clone(), rank, ready, cells.unwrap_or_default())
            .with_cache(cache)
            .with_leaning(leaning);
        let slot = usize::from(id.slot);
        if slot >= self.entries.len() {
            self.entries.resize(slot + 1, None);
        }
        self.gone.remove(&id);
        self.entries[slot] = Some(Arc::new(entry));
    }

    fn target_gone(&mut self, id: TargetId) {
        if let Some(entry) = self.listed(id).cloned() {
            self.entries[usize::from(id.slot)] = None;
            self.gone.insert(id, entry);
        }
    }

    fn forgotten(&mut self, id: TargetId) {
        self.gone.remove(&id);
        self.costs.forget(id);
    }

    fn publish(&mut self) {
        self.fleet.publish(self.entries.clone());
    }

    fn engine_load(&mut self, id: TargetId, view: &EngineView) {
        if let Some(entry) = self.known(id) {
            let load = &view.load;
            entry.cells.report(&EngineFigures {
                running: load.running,
                waiting: load.waiting,
                kv_usage: load.kv_usage,
                host_kv_usage: load.host_kv_usage,
                kv_total_tokens: load.kv_total_tokens,
                prompt_tokens_per_s: load.prompt_tokens_per_s,
                generation_tokens_per_s: load.generation_tokens_per_s,
                queue_time_s: load.queue_time_s,
                prefill_time_s: load.prefill_time_s,
                decode_time_s: load.decode_time_s,
                request_prompt_tokens: load.request_prompt_tokens,
                request_generation_tokens: load.request_generation_tokens,
                busy: load.busy,
                utilization: load.utilization,
                foreign_requests: view.foreign_requests,
                taken_us: load.taken_us,
            });
        }
    }

    fn peer_load(&mut self, id: TargetId, sums: &InFlight, now_us: u64) {
        if let Some(entry) = self.known(id) {
            let sums = InFlightSums {
                requests: u64::from(sums.requests),
                prefilling: u64::from(sums.prefilling),
                prefill_tokens: sums.prefill_tokens,
                prefill_us: sums.prefill_us,
                context_tokens: sums.context_tokens,
            };
            entry.cells.set_peers(sums, now_us);
        }
    }

    fn costs(&mut self, id: TargetId, costs: &Costs) {
        self.costs.told(id, costs);
    }

    fn trust(&mut self, trust: Trust) {
        let (mode, what) = match trust {
            Trust::Fresh => (Mode::Fresh, "the state of the fleet is fresh"),
            Trust::Stale => {
                (Mode::Stale, "nothing heard from the scheduler: other parties' load no longer counts")
            }
            Trust::Blind => (Mode::Blind, "nothing heard from the scheduler for long: round robin"),
        };
        if trust == Trust::Fresh {
            tracing::info!("{what}");
        } else {
            tracing::warn!("{what}");
        }
        self.fleet.set_mode(mode);
    }
}

impl ReservationSource for FleetSink {
    fn in_flight(&self, id: TargetId) -> InFlight {
        let sums = self.known(id).map(|entry| entry.cells.counters.in_flight()).unwrap_or_default();
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        InFlight {
            target: id.pack(),
            requests: narrow(sums.requests),
            prefilling: narrow(sums.prefilling),
            prefill_tokens: sums.prefill_tokens,
            prefill_us: sums.prefill_us,
            context_tokens: sums.context_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use fairlead_routing::{DecodeSeen, Reservation};
    use fairlead_wire::msg::{CacheSource, Handoff, ServingRole, Transfer};

    use super::*;
    use crate::StaticInstance;

    const READY: TargetState =
        TargetState { rank: 0, ready: true, cache: CacheSource::Placements, leaning: ServingRole::Both };
    const UNREADY: TargetState = TargetState { ready: false, ..READY };

    fn sink() -> (FleetSink, Arc<InstanceInfo>) {
        let instance =
            StaticInstance { name: "a".into(), address: "127.0.0.1:1".into(), models: vec!["m".into()] };
        (FleetSink::new(crate::static_fleet(&[]), 50_000.0), instance.entry(0).info.clone())
    }

    #[test]
    fn counters_survive_changes_and_a_short_absence() {
        let (mut sink, info) = sink();
        let id = TargetId::new(3, 1);
        sink.target(id, READY, &info);
        sink.publish();
        let entry = sink.fleet().table_full().get(id).cloned().unwrap();
        let held = Reservation::new(entry, 10, 10, 1);
        sink.target(id, UNREADY, &info);
        sink.publish();
        assert_eq!(sink.fleet().table().ready(), 0);
        assert_eq!(sink.in_flight(id).requests, 1);
        sink.target_gone(id);
        sink.publish();
        assert!(sink.fleet().table().model("m").is_none());
        assert_eq!(sink.in_flight(id).requests, 1, "a gone target's requests are still counted");
        sink.target(id, READY, &info);
        sink.publish();
        assert_eq!(sink.in_flight(id).requests, 1);
        drop(held);
        assert_eq!(sink.in_flight(id).requests, 0);
        sink.target_gone(id);
        sink.forgotten(id);
        assert_eq!(sink.in_flight(id), InFlight { target: id.pack(), ..Default::default() });
    }

    /// Costs with so many observations behind them.
    fn costs(prefill: f32, seen: u32) -> Costs {
        Costs {
            prefill,
            attention: 0.001,
            step: 6_000.0,
            sequence: 30.0,
            context: 0.02,
            chunk: 1_024.0,
            prefills: seen,
            decodes: seen,
        }
    }

    #[test]
    fn equal_targets_are_shown_to_cost_the_same() {
        let (mut sink, info) = sink();
        for (slot, prefill) in [(0, 30.0), (1, 33.0), (2, 90.0), (3, 0.0)] {
            let id = TargetId::new(slot, 1);
            sink.target(id, READY, &info);
            if prefill > 0.0 {
                sink.costs(id, &costs(prefill, 90));
            }
        }
        sink.publish();
        sink.show_costs();
        let table = sink.fleet().table_full();
        let prefill = |slot| table.get(TargetId::new(slot, 1)).unwrap().cells.costs.read().prefill;
        assert!((prefill(0) / 31.46 - 1.0).abs() < 0.01, "{}", prefill(0));
        assert_eq!(prefill(0), prefill(1));
        assert_eq!(prefill(2), 90.0, "another kind");
        assert_eq!(prefill(3), prefill(0), "unknown: as most are");
    }

    #[test]
    fn what_is_learnt_and_told_reaches_decisions_until_the_target_is_forgotten() {
        let (mut sink, info) = sink();
        let id = TargetId::new(3, 1);
        sink.target(id, READY, &info);
        sink.publish();
        sink.costs(id, &costs(70.0, 9));
        let (learnt, counts) = sink.show_costs();
        assert!(learnt.is_empty());
        assert_eq!(counts.unwrap()[&id].shared, (9, 9));
        let entry = sink.fleet().table_full().get(id).cloned().unwrap();
        assert_eq!(entry.cells.costs.read().prefill, 70.0);
        // The others hear of the work that waits, not only of its tokens.
        let held = Reservation::new(entry.clone(), 1_000, 1_000, 1);
        assert_eq!(sink.in_flight(id).prefill_us, 70_500);
        drop(held);
        let seen = DecodeSeen { span_us: 1_000_000, tokens: 50, batch: 1.0, context: 0.0, prefilled: 0.0 };
        let note = |target| SpeedNote { target, prefill: None, decode: Some(seen) };
        (0..50).for_each(|_| sink.seen(&note(id)));
        sink.seen(&note(TargetId::new(9, 9)));
        let (learnt, _) = sink.show_costs();
        assert_eq!(learnt.len(), 1, "of targets that are not known nothing is learnt");
        assert_eq!((learnt[0].0, learnt[0].1.prefills, learnt[0].1.decodes), (id, 0, 50));
        assert!(entry.cells.costs.read().step > 10_000.0);
        assert!(sink.show_costs().1.is_none(), "nothing new");
        sink.target_gone(id);
        sink.forgotten(id);
        sink.seen(&note(id));
        assert!(sink.show_costs().1.is_none());
    }

    #[test]
    fn late_is_above_the_limit_and_only_said_of_targets_that_hand_over() {
        let (mut sink, info) = sink();
        let (alone, paired) = (TargetId::new(0, 1), TargetId::new(1, 1));
        sink.target(alone, READY, &info);
        let transfer = Some(Transfer::new(Handoff::NixlPull));
        sink.target(paired, READY, &Arc::new(InstanceInfo { transfer, ..(*info).clone() }));
        let cases = [
            (paired, 2_000_000, 40, Some(false)),
            (paired, 2_000_001, 40, Some(true)),
            (paired, 50_001, 1, Some(true)),
            (paired, 9, 0, None),
            (alone, 2_000_001, 40, None),
            (TargetId::new(9, 9), 2_000_001, 40, None),
        ];
        for (target, span_us, tokens, want) in cases {
            let seen = DecodeSeen { span_us, tokens, batch: 1.0, context: 0.0, prefilled: 0.0 };
            let note = SpeedNote { target, prefill: None, decode: Some(seen) };
            assert_eq!(sink.late(&note), want, "{target}: {tokens} tokens in {span_us} us");
            assert_eq!(sink.late(&SpeedNote { decode: None, ..note }), None);
        }
    }

    #[test]
    fn a_leaning_reaches_decisions() {
        let (mut sink, info) = sink();
        let id = TargetId::new(0, 1);
        for leaning in [ServingRole::Prefill, ServingRole::Decode, ServingRole::Both] {
            sink.target(id, TargetState { leaning, ..READY }, &info);
            sink.publish();
            assert_eq!(sink.fleet().table_full().get(id).unwrap().leaning, leaning);
        }
    }

    #[test]
    fn another_generation_has_counters_of_its_own() {
        let (mut sink, info) = sink();
        sink.target(TargetId::new(0, 1), READY, &info);
        sink.publish();
        let entry = sink.fleet().table_full().get(TargetId::new(0, 1)).cloned().unwrap();
        let _held = Reservation::new(entry, 10, 10, 1);
        sink.target_gone(TargetId::new(0, 1));
        sink.target(TargetId::new(0, 2), READY, &info);
        sink.publish();
        assert_eq!(sink.in_flight(TargetId::new(0, 2)).requests, 0);
        assert_eq!(sink.in_flight(TargetId::new(0, 1)).requests, 1);
    }

    #[test]
    fn a_recovered_target_has_its_circuit_closed() {
        let (mut sink, info) = sink();
        let id = TargetId::new(0, 1);
        sink.target(id, READY, &info);
        sink.publish();
        let cells = sink.fleet().table_full().get(id).unwrap().cells.clone();
        cells.connect_failed(1_000);
        sink.target(id, READY, &info);
        assert!(
            !cells.circuit_closed(2_000),
            "news without a change of readiness says nothing about connects"
        );
        sink.target(id, UNREADY, &info);
        sink.target(id, READY, &info);
        assert!(cells.circuit_closed(2_000));
    }
}
