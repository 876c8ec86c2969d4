//! Gateways: each with the fleet view, the routing code and the overlay that a real one has, fed after a delay.
//!
//! All calls of `fairlead_routing` are here. A gateway's own reservations and placements count at once; what engines and
//! other gateways do, after the state delay. Requests come to a gateway drawn evenly, by the seed.

use std::sync::Arc;

use fairlead_prefix::{Hits, Reader};
use fairlead_replication::{CHORES_US, CONFIRM, LeanConfig, LeanTarget, Leaning, Overlay, ReplicaConfig};
use fairlead_routing::{
    Constants, Estimate, Fleet, InFlightSums, Learner, PlanRequest, Reservation, Rng, Scratch, Strategy,
    TargetCells, TargetEntry, plan, pool,
};
use fairlead_wire::TargetId;
use fairlead_wire::msg::{
    CacheSource, Costs, EngineKind, Handoff, HashSpace, InFlight, InstanceInfo, ModelInfo, ServingRole,
    Transfer,
};

use super::cluster::{Event, World};
use super::decide::{Decider, Placing};
use super::meter::Meter;
use super::news::{Index, Mail, News, config};
use super::workload::{RequestId, Workload};
use super::{BadPolicy, Setup};
use crate::text::mix;

/// Time between two looks at what all targets have shown.
const POOL_US: u64 = 1_000_000;

const MODEL: &str = "m";

struct Gateway {
    strategy: Strategy,
    fleet: Fleet,
    index: Reader,
    overlay: Overlay,
    hits: Hits,
    scratch: Scratch,
    next_chores_us: u64,
    /// By instance.
    learners: Vec<Learner>,
    next_pool_us: u64,
}

/// What a gateway keeps of a request in flight.
struct Flight {
    gateway: u32,
    reservation: Reservation,
    prefill: Option<PrefillLeg>,
    first_us: Option<u64>,
}

/// The prefill leg of a request in flight.
struct PrefillLeg {
    instance: usize,
    /// Until the hand-off.
    reservation: Option<Reservation>,
    /// When that was; 0 before.
    ended_us: u64,
    transfer_us: f32,
    step_us: f32,
}

/// All gateways of a fleet.
pub struct Gateways {
    list: Vec<Gateway>,
    index: Index,
    mail: Mail,
    meters: Vec<Meter>,
    infos: Vec<Arc<InstanceInfo>>,
    /// The targets that the instances are now.
    ids: Vec<TargetId>,
    ready: Vec<bool>,
    /// By gateway and instance: what the others have heard of it.
    told: Vec<Vec<InFlightSums>>,
    requests: Vec<Option<Flight>>,
    /// Gateway that a request came to; a retry stays there.
    at: Vec<u32>,
    tried: Vec<Arc<TargetEntry>>,
    rng: Rng,
    learns: bool,
    /// As the scheduler decides it; nothing where instances have fixed roles.
    leaning: Option<(Leaning, LeanConfig)>,
    leanings: Vec<ServingRole>,
    /// By gateway and instance: what the scheduler has heard.
    heard: Vec<Vec<InFlight>>,
    slo: fairlead_routing::Slo,
}

fn micros(seconds: f64) -> u64 {
    (seconds * 1e6).round() as u64
}

impl Gateways {
    /// Gateways that know of idle engines, each with a policy of its own as a configuration names it.
    ///
    /// # Errors
    /// The policy is unknown.
    pub fn new(setup: &Setup, workload: &Arc<Workload>, policy: &str, seed: u64) -> Result<Self, BadPolicy> {
        let instances = setup.pool.len();
        let infos: Vec<Arc<InstanceInfo>> =
            (0..instances).map(|i| Arc::new(describe(setup, workload, i))).collect();
        let ids: Vec<TargetId> = (0..instances).map(|i| TargetId::new(i as u16, 1)).collect();
        let mut index = Index::new(workload.clone(), instances);
        ids.iter().for_each(|id| index.bind(*id));
        let times = ReplicaConfig::default();
        let gateways = setup.gateways.max(1);
        let list: Vec<Gateway> = (0..gateways as u64)
            .map(|number| {
                let (tree, placed) = fairlead_prefix::new(config(instances));
                let mut overlay = Overlay::new(tree, times.overlay_bytes, times.overlay_keep_us);
                for id in &ids {
                    // Slots are below the bound that the tree was made for.
                    let _ = overlay.tree.bind(*id);
                }
                Ok(Gateway {
                    strategy: super::strategy(policy, &setup.settings)?,
                    fleet: Fleet::new([index.reader(), placed]),
                    index: index.reader(),
                    overlay,
                    hits: Hits::default(),
                    scratch: Scratch::new(mix(seed ^ mix(number))),
                    next_chores_us: 0,
                    learners: vec![Learner::new(Constants::PRIOR); instances],
                    next_pool_us: 0,
                })
            })
            .collect::<Result<_, BadPolicy>>()?;
        let pairs = list.iter().any(|gateway: &Gateway| gateway.strategy.pairing().is_some());
        let mut gateways = Self {
            list,
            index,
            mail: Mail::new(micros(setup.state_delay)),
            meters: vec![Meter::default(); instances],
            infos,
            ids,
            ready: vec![true; instances],
            told: vec![vec![InFlightSums::default(); instances]; gateways],
            requests: (0..workload.requests.len()).map(|_| None).collect(),
            at: vec![u32::MAX; workload.requests.len()],
            tried: Vec::new(),
            rng: Rng::new(mix(seed ^ 0x6761_7465)),
            learns: setup.learn,
            leaning: (setup.leaning && setup.prefillers.is_none() && pairs).then(|| {
                let tpot = setup.told_slo.map_or(0.05, |slo| slo.tpot);
                (Leaning::default(), LeanConfig { tpot_us: (tpot * 1e6) as f32, ..LeanConfig::default() })
            }),
            leanings: vec![ServingRole::Both; instances],
            heard: vec![vec![InFlight::default(); instances]; gateways],
            slo: setup.told_slo.map_or_else(Default::default, |slo| fairlead_routing::Slo {
                ttft_us: micros(slo.ttft) as u32,
                tpot_us: micros(slo.tpot) as u32,
            }),
        };
        gateways.publish();
        Ok(gateways)
    }

    /// What all gateways have in flight; nothing once every request has ended.
    pub fn in_flight(&self) -> InFlightSums {
        let mut sum = InFlightSums::default();
        for gateway in &self.list {
            for entry in gateway.fleet.table().entries.iter().flatten() {
                sum.add(&entry.cells.counters.in_flight());
            }
        }
        sum
    }

    /// What a gateway takes an instance's work to cost.
    pub fn constants(&self, gateway: usize, instance: usize) -> Constants {
        self.cells(gateway, instance).map_or(Constants::PRIOR, |cells| cells.costs.read())
    }

    /// Leading blocks of a path that an instance holds, once all news has arrived: by the index and without what a
    /// gateway takes to be on its way.
    pub fn held(&mut self, instance: usize, path: &[u64]) -> usize {
        self.hear(u64::MAX);
        let Gateway { index, hits, .. } = &mut self.list[0];
        index.lookup(path, hits);
        hits.get(self.ids[instance].slot) as usize
    }

    /// Shows every gateway the targets as they are now. A target that is the same as before keeps its cells.
    fn publish(&mut self) {
        for gateway in &self.list {
            let before = gateway.fleet.table_full();
            let entry = |(i, id): (usize, &TargetId)| {
                let cells = before.get(*id).map_or_else(|| Arc::new(TargetCells::new()), |e| e.cells.clone());
                let entry = TargetEntry::new(*id, self.infos[i].clone(), 0, self.ready[i], cells);
                Some(Arc::new(entry.with_cache(CacheSource::Events).with_leaning(self.leanings[i])))
            };
            gateway.fleet.publish(self.ids.iter().enumerate().map(entry).collect());
        }
    }

    fn cells(&self, gateway: usize, instance: usize) -> Option<Arc<TargetCells>> {
        let table = self.list[gateway].fleet.table();
        table.get(self.ids[instance]).map(|entry| entry.cells.clone())
    }

    /// Lets through what has arrived by now.
    fn hear(&mut self, now_us: u64) {
        while let Some((at_us, news)) = self.mail.take(now_us) {
            match news {
                News::Figures { instance, figures } => {
                    for gateway in &self.list {
                        if let Some(entry) = gateway.fleet.table().get(self.ids[instance]) {
                            entry.cells.report(&figures);
                        }
                    }
                }
                News::Cache { instance, changes } => {
                    if self.ready[instance] {
                        self.index.apply(self.ids[instance], &changes, at_us);
                    }
                }
                News::Peer { gateway, instance, sums } => {
                    self.told[gateway][instance] = sums;
                    self.show_peers(instance, at_us);
                }
                News::Leaning { instance, leaning } => {
                    self.leanings[instance] = leaning;
                    self.publish();
                }
                News::Target { instance, id, ready } => self.target(instance, id, ready),
            }
        }
    }

    fn target(&mut self, instance: usize, id: TargetId, ready: bool) {
        self.index.drop_target(self.ids[instance]);
        for gateway in &mut self.list {
            gateway.learners[instance] = Learner::new(Constants::PRIOR);
            gateway.overlay.drop_target(id.slot);
            let _ = gateway.overlay.tree.bind(id);
        }
        self.index.bind(id);
        self.ids[instance] = id;
        self.ready[instance] = ready;
        for told in &mut self.told {
            told[instance] = InFlightSums::default();
        }
        self.publish();
    }

    fn show_peers(&self, instance: usize, at_us: u64) {
        let mut all = InFlightSums::default();
        for told in &self.told {
            all.add(&told[instance]);
        }
        for (number, gateway) in self.list.iter().enumerate() {
            let own = &self.told[number][instance];
            let others = InFlightSums {
                requests: all.requests - own.requests,
                prefilling: all.prefilling - own.prefilling,
                prefill_tokens: all.prefill_tokens - own.prefill_tokens,
                prefill_us: all.prefill_us - own.prefill_us,
                context_tokens: all.context_tokens - own.context_tokens,
            };
            if let Some(entry) = gateway.fleet.table().get(self.ids[instance]) {
                entry.cells.set_peers(others, at_us);
            }
        }
    }

    /// Tells the others what a gateway has in flight at an instance.
    fn tell(&mut self, gateway: usize, instance: usize, now_us: u64) {
        if self.list.len() == 1 && self.leaning.is_none() {
            return;
        }
        let Some(cells) = self.cells(gateway, instance) else { return };
        let sums = cells.counters.in_flight();
        self.lean(gateway, instance, &sums, now_us);
        if self.list.len() > 1 {
            self.mail.send(now_us, News::Peer { gateway, instance, sums });
        }
    }

    /// The scheduler hears what a gateway has in flight, and looks at the pool when it is time.
    fn lean(&mut self, gateway: usize, instance: usize, sums: &InFlightSums, now_us: u64) {
        let Some((leaning, config)) = &mut self.leaning else { return };
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let now = InFlight {
            target: 0,
            requests: narrow(sums.requests),
            prefilling: narrow(sums.prefilling),
            prefill_tokens: sums.prefill_tokens,
            prefill_us: sums.prefill_us,
            context_tokens: sums.context_tokens,
        };
        let before = std::mem::replace(&mut self.heard[gateway][instance], now);
        leaning.observe(config, self.ids[instance], &before, &now, false, now_us);
        if now_us < leaning.due_us() {
            return;
        }
        let table = self.list[0].fleet.table();
        let costs = |id: TargetId| {
            let constants = table.get(id).map_or(Constants::PRIOR, |entry| entry.cells.costs.read());
            let Constants { prefill, attention, step, sequence, context, chunk } = constants;
            Costs { prefill, attention, step, sequence, context, chunk, prefills: 0, decodes: 0 }
        };
        let ready = self.ids.iter().zip(&self.ready).filter(|(_, ready)| **ready);
        let pool: Vec<LeanTarget> = ready
            .map(|(id, _)| {
                let info = &self.infos[usize::from(id.slot)];
                let kv_tokens = info.kv_blocks.zip(info.block_size).map(|(n, size)| n * u64::from(size));
                LeanTarget { id: *id, costs: costs(*id), most_running: info.max_num_seqs, kv_tokens }
            })
            .collect();
        drop(table);
        for (id, leaning) in leaning.look(config, &pool, now_us) {
            self.mail.send(now_us, News::Leaning { instance: usize::from(id.slot), leaning });
        }
    }

    /// Looks through a gateway's overlay at the times at which its control thread would have.
    fn chores(&mut self, gateway: usize, now_us: u64) {
        loop {
            let Gateway { overlay, next_chores_us, .. } = &mut self.list[gateway];
            let due_us = *next_chores_us;
            if due_us > now_us {
                break;
            }
            *next_chores_us = if overlay.is_empty() { now_us + CHORES_US } else { due_us + CHORES_US };
            if overlay.is_empty() {
                break;
            }
            self.hear(due_us);
            let Gateway { overlay, index, hits, .. } = &mut self.list[gateway];
            overlay.confirm_by(CONFIRM, |target, path| {
                index.lookup(path, hits);
                hits.get(target.slot) as usize >= path.len()
            });
            overlay.expire(due_us);
        }
        self.hear(now_us);
    }

    /// What agents measure of engines that do nothing, which have no step whose end would tell it.
    fn watch_idle(&mut self, world: &World, now_us: u64) {
        for (instance, engine) in world.engines.iter().enumerate() {
            let meter = &mut self.meters[instance];
            if engine.up && engine.in_flight() == 0 && meter.is_due(world.now) {
                let figures = meter.figures(engine, world.now);
                self.mail.send(now_us, News::Figures { instance, figures });
            }
        }
    }

    /// Takes what a gateway saw of an instance's speed into account.
    fn learn(&mut self, number: usize, instance: usize, now_us: u64, take: impl FnOnce(&mut Learner)) {
        if !self.learns {
            return;
        }
        let gateway = &mut self.list[number];
        take(&mut gateway.learners[instance]);
        if now_us < gateway.next_pool_us {
            return;
        }
        gateway.next_pool_us = now_us + POOL_US;
        let estimate = |l: &Learner| Estimate { constants: l.constants(), samples: l.samples() };
        let mut estimates: Vec<Estimate> = gateway.learners.iter().map(estimate).collect();
        pool(&mut estimates);
        let table = gateway.fleet.table();
        for (id, estimate) in self.ids.iter().zip(&estimates) {
            if let Some(entry) = table.get(*id) {
                entry.cells.costs.store(&estimate.constants);
            }
        }
    }

    /// Ends a request's reservation and tells the others.
    fn release(&mut self, request: RequestId, now_us: u64) {
        if let Some(Flight { gateway, reservation, prefill, .. }) = self.requests[request as usize].take() {
            let decode = usize::from(reservation.target().id.slot);
            drop(reservation);
            self.tell(gateway as usize, decode, now_us);
            if let Some(PrefillLeg { instance, reservation: Some(held), .. }) = prefill {
                drop(held);
                self.tell(gateway as usize, instance, now_us);
            }
        }
    }
}

impl Decider for Gateways {
    /// Whole requests alone are meant; of those placed apart, where they are decoded.
    fn decide(&mut self, request: RequestId, tried: &[usize], world: &World) -> Option<usize> {
        self.place(request, tried, world).map(|placing| placing.decode)
    }

    fn place(&mut self, request: RequestId, tried: &[usize], world: &World) -> Option<Placing> {
        let now_us = micros(world.now);
        let at = &mut self.at[request as usize];
        if *at == u32::MAX {
            *at = self.rng.below(self.list.len()) as u32;
        }
        let number = *at as usize;
        self.watch_idle(world, now_us);
        self.chores(number, now_us);
        let asked = &world.workload().requests[request as usize];
        let gateway = &mut self.list[number];
        self.tried.clear();
        if !tried.is_empty() {
            let table = gateway.fleet.table();
            self.tried.extend(tried.iter().filter_map(|i| table.get(self.ids[*i]).cloned()));
        }
        let ask = PlanRequest {
            path: &asked.path,
            prompt_tokens: asked.prompt_tokens,
            block_tokens: world.workload().block_tokens,
            session: asked.session,
            slo: self.slo,
            tried: &self.tried,
            now_us,
            ..PlanRequest::new(MODEL, &gateway.strategy)
        };
        let plan = plan(&ask, &gateway.fleet, &mut gateway.scratch).ok()?;
        let target = plan.target().id;
        gateway.index.lookup(&asked.path, &mut gateway.hits);
        let leg = plan.prefill.as_ref().map(|leg| leg.reservation.target().id);
        for target in [Some(target), leg].into_iter().flatten() {
            if (gateway.hits.get(target.slot) as usize) < asked.path.len() {
                gateway.overlay.add(target, HashSpace::Tokens, &asked.path, now_us);
            }
        }
        let instance = usize::from(target.slot);
        let prefill = plan.prefill.map(|leg| PrefillLeg {
            instance: usize::from(leg.reservation.target().id.slot),
            reservation: Some(leg.reservation),
            ended_us: 0,
            transfer_us: leg.transfer_us,
            step_us: leg.step_us,
        });
        let placing = Placing { decode: instance, prefill: prefill.as_ref().map(|leg| leg.instance) };
        self.requests[request as usize] =
            Some(Flight { gateway: number as u32, reservation: plan.reservation, prefill, first_us: None });
        self.tell(number, instance, now_us);
        placing.prefill.iter().for_each(|prefill| self.tell(number, *prefill, now_us));
        Some(placing)
    }

    fn refused(&mut self, request: RequestId, instance: usize, down: bool, world: &World) {
        let now_us = micros(world.now);
        let gateway = self.at[request as usize] as usize;
        // With one leg the other is over too.
        let other = self.requests[request as usize].as_ref().and_then(|flight| {
            let decode = usize::from(flight.reservation.target().id.slot);
            [Some(decode), flight.prefill.as_ref().map(|leg| leg.instance)]
                .into_iter()
                .flatten()
                .find(|i| *i != instance)
        });
        self.release(request, now_us);
        let asked = &world.workload().requests[request as usize];
        for leg in [Some(instance), other].into_iter().flatten() {
            self.list[gateway].overlay.withdraw(self.ids[leg], &asked.path);
        }
        if down && let Some(cells) = self.cells(gateway, instance) {
            cells.connect_failed(now_us);
        }
    }

    fn happened(&mut self, event: &Event, world: &mut World) {
        let now_us = micros(world.now);
        match *event {
            Event::FirstToken { request, instance, .. } => {
                if let Some(flight) = &mut self.requests[request as usize] {
                    let seen = flight.reservation.first_token(now_us);
                    flight.first_us = Some(now_us);
                    let gateway = flight.gateway as usize;
                    if let Some(leg) = flight.prefill.as_ref().filter(|leg| leg.ended_us > 0) {
                        let took = now_us.saturating_sub(leg.ended_us) as f32 - leg.step_us;
                        if let Some(model) = self.list[gateway].fleet.table().model(MODEL) {
                            model.cells.transfer.learn(leg.transfer_us, took);
                        }
                    }
                    self.learn(gateway, instance, now_us, |learner| {
                        seen.iter().for_each(|s| learner.prefilled(s))
                    });
                    self.tell(gateway, instance, now_us);
                }
            }
            Event::Prefilled { request, instance, .. } => {
                if let Some(Flight { gateway, prefill: Some(leg), .. }) = &mut self.requests[request as usize]
                    && let Some(mut reservation) = leg.reservation.take()
                {
                    leg.ended_us = now_us;
                    let (gateway, seen) = (*gateway as usize, reservation.first_token(now_us));
                    drop(reservation);
                    self.learn(gateway, instance, now_us, |learner| {
                        seen.iter().for_each(|s| learner.prefilled(s))
                    });
                    self.tell(gateway, instance, now_us);
                }
            }
            Event::Finished { request, instance } => {
                if let Some(flight) = &self.requests[request as usize] {
                    let tokens = world.workload().requests[request as usize].output_tokens;
                    if let Some((leaning, config)) = &mut self.leaning
                        && let Some(first) = flight.first_us
                        && tokens > 1
                    {
                        let late = (now_us - first) as f32 / (tokens - 1) as f32 > config.tpot_us;
                        leaning.answered(config, 1, late.into(), now_us);
                    }
                    let seen = flight.reservation.last_token(now_us, tokens);
                    let gateway = flight.gateway as usize;
                    self.learn(gateway, instance, now_us, |learner| {
                        seen.iter().for_each(|s| learner.decoded(s))
                    });
                }
                self.release(request, now_us);
            }
            Event::Lost { request, instance, .. } => {
                // The connection breaks: the gateway sees that at once.
                self.refused(request, instance, true, world);
            }
            Event::Stepped(instance) => {
                let changes = world.take_changes(instance);
                let figures = self.meters[instance].figures(&world.engines[instance], world.now);
                if !changes.is_empty() {
                    self.mail.send(now_us, News::Cache { instance, changes });
                }
                self.mail.send(now_us, News::Figures { instance, figures });
            }
            Event::Down(instance) | Event::Up(instance) => {
                let ready = matches!(event, Event::Up(_));
                self.meters[instance] = Meter::default();
                let before = self.ids[instance];
                let id = if ready { TargetId::new(before.slot, before.generation + 1) } else { before };
                self.mail.send(now_us, News::Target { instance, id, ready });
            }
            Event::Arrival(_) => {}
        }
    }
}

fn describe(setup: &Setup, workload: &Workload, instance: usize) -> InstanceInfo {
    let spec = &setup.pool[instance];
    InstanceInfo {
        name: format!("i{instance}"),
        address: format!("10.0.0.1:{}", 1000 + instance),
        host: format!("h{instance}"),
        incarnation: 1,
        engine: EngineKind::Vllm,
        engine_version: String::new(),
        models: vec![ModelInfo { name: MODEL.into(), max_model_len: None, parent: None }],
        role: match setup.prefillers {
            None => ServingRole::Both,
            Some(n) if instance < n => ServingRole::Prefill,
            Some(_) => ServingRole::Decode,
        },
        // Whatever hand-off: its order is what the world plays.
        transfer: Some(Transfer {
            bytes_per_token: Some(setup.transfer.bytes_per_token),
            ..Transfer::new(Handoff::NixlPull)
        }),
        dp_ranks: 1,
        block_size: Some(workload.block_tokens),
        kv_blocks: Some(spec.kv_blocks.into()),
        max_num_seqs: Some(spec.profile.max_running),
        labels: Vec::new(),
    }
}
