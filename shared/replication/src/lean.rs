//! Which targets of a pool should rather prefill and which rather decode: decided in one place, since gateways that each
//! decided for themselves would part the pool in different ways.
//!
//! Targets without a fixed role serve whole requests as long as prefill beside decoding does not make tokens come too
//! slowly. From what gateways have in flight and what work costs follow two demands: prefill work, in targets that it
//! keeps busy, and tokens per second. With those, every parting of the pool is predicted:
//!
//! ```text
//! f      = prefill work per second / targets
//! mixed    time per token    d(b) / (1 - f)     b / d(b) · (1 - f) = tokens per second and target
//! k : m    time per token    d(b)               b / d(b)           = tokens per second / m
//!          load of prefill   prefill work per second / (k · share of a prefill step that is prefill)
//! ```
//!
//! A parting *strains* as much as the greater of its time per token over its limit and its prefill load over its limit.
//! While a mixed pool does not strain it stays mixed; else the parting that strains least is taken. What is in force stays
//! until another strains clearly less, and a target keeps its leaning for some seconds at least. Source of the form:
//! Llumnix's adaptive prefill/decode roles; the demands are ours.

use std::collections::BTreeMap;

use fairlead_wire::TargetId;
use fairlead_wire::msg::{Costs, InFlight, ServingRole};

/// Standard deviations of a short answer's time per token that must keep the limit too.
const SPREAD: f32 = 2.0;

/// Shares of late answers between which a mixed pool is at its limit.
const LATE: (f32, f32) = (0.01, 0.04);
/// Answers behind such a share at least.
const ANSWERS: f32 = 20.0;
/// Strain of a parting that is worth it.
const BEARABLE: f32 = 1.15;
/// Share of late answers at which any parting is worth a try.
const HOPELESS: f32 = 0.2;
/// By how much a mixed pool must be below its limit to be restored.
const RETURN: f32 = 0.4;
/// How far what is seen moves what is predicted of a mixed pool.
const FACTOR: (f32, f32) = (0.3, 3.0);

/// How roles lean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LeanConfig {
    /// Whether they do.
    pub enabled: bool,
    /// Time per token that is kept, microseconds.
    pub tpot_us: f32,
    /// Share of that up to which a prediction keeps it.
    pub margin: f32,
    /// Tokens of an answer for which it is kept nearly always.
    pub short_answer: f32,
    /// Load of prefill targets that is aimed at.
    pub load: f32,
    /// By how much another parting must strain less.
    pub hysteresis: f32,
    /// Least time that a target keeps a leaning, microseconds.
    pub dwell_us: u64,
    /// Time between two looks, microseconds.
    pub every_us: u64,
    /// Time over which demands are taken, microseconds.
    pub window_us: u64,
}

impl Default for LeanConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            tpot_us: 50_000.0,
            margin: 0.85,
            short_answer: 64.0,
            load: 0.85,
            hysteresis: 0.1,
            dwell_us: 5_000_000,
            every_us: 250_000,
            window_us: 3_000_000,
        }
    }
}

/// A target that may lean.
#[derive(Clone, Copy, Debug)]
pub struct LeanTarget {
    /// Which.
    pub id: TargetId,
    /// What its work costs: all of it known, or taken for granted ([`Costs::or_prior`]).
    pub costs: Costs,
    /// Requests that it runs at once, where known.
    pub most_running: Option<u32>,
    /// Its KV room, tokens, where known.
    pub kv_tokens: Option<u64>,
}

impl LeanTarget {
    /// A target of which the gateways have been told so much.
    pub fn new(id: TargetId, told: Option<Costs>) -> Self {
        Self { id, costs: told.map_or(Costs::PRIOR, Costs::or_prior), most_running: None, kv_tokens: None }
    }
}

/// What is known of a target.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    requests: i64,
    prefilling: i64,
    prefill_us: i64,
    context: i64,
    /// Prefill work done, fading; and the squares of each prompt's.
    done_us: f64,
    squares: f64,
    at_us: u64,
    leaning: ServingRole,
    since_us: u64,
}

impl Seen {
    fn fade(&mut self, now_us: u64, window_us: u64) {
        let passed = now_us.saturating_sub(self.at_us) as f64 / window_us as f64;
        let kept = (-passed).exp();
        (self.done_us, self.squares) = (self.done_us * kept, self.squares * kept);
        self.at_us = now_us.max(self.at_us);
    }
}

/// The demands of a pool, and its size.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Demand {
    targets: f32,
    /// Targets that prefill work would keep busy.
    prefill: f32,
    /// Tokens a second.
    tokens: f32,
    /// Context of a decoding request, tokens.
    context: f32,
    /// Prefill work of a prompt as a burst of it is met: the mean by work, microseconds.
    prompt: f32,
    /// Requests that a target runs at once, and context that it has room for; infinite where not known.
    most_running: f32,
    kv_tokens: f32,
    costs: Costs,
}

impl Demand {
    /// Time per token where `on` targets make all tokens, in that share of their time; infinite where they cannot.
    fn tpot(&self, on: f32, share: f32) -> f32 {
        let each = self.tokens / (on * share.max(1e-3)) / 1e6;
        let room = 1.0 - each * (self.costs.sequence + self.costs.context * self.context);
        if room <= 0.0 { f32::INFINITY } else { self.costs.step / room / share.max(1e-3) }
    }

    /// How far a mixed pool strains: time per token that nearly all short answers keep, over the limit.
    fn mixed(&self, config: &LeanConfig) -> f32 {
        let busy = self.prefill / self.targets;
        if busy >= 0.95 {
            return f32::INFINITY;
        }
        let mean = self.tpot(self.targets, 1.0 - busy);
        // Prefill comes in bursts, the longer the busier the targets; an answer of few tokens meets whole ones.
        let burst = self.prompt / (1.0 - busy);
        let spread = (busy * burst * mean / config.short_answer).sqrt();
        (mean + SPREAD * spread) / config.tpot_us
    }

    /// How far a parting strains; `factor` is what was seen of mixed pools over what was predicted.
    fn strain(&self, config: &LeanConfig, factor: f32, prefillers: usize) -> f32 {
        if prefillers == 0 {
            return factor * self.mixed(config);
        }
        let limit = config.margin * config.tpot_us;
        let (k, m) = (prefillers as f32, self.targets - prefillers as f32);
        let chunk = self.costs.prefill * self.costs.chunk;
        let load = self.prefill / (k * chunk / (chunk + self.costs.step));
        let tpot = self.tpot(m, 1.0);
        // What decodes there at once, and its context: a request that finds no place waits for its first token.
        let batch = self.tokens / m * tpot / 1e6;
        let crowded = (batch / self.most_running).max(batch * self.context / self.kv_tokens);
        (load.max(crowded) / config.load).max(tpot / limit)
    }
}

/// The leanings of one pool: targets of one model that hand over to one another.
#[derive(Debug)]
pub struct Leaning {
    /// In order, so that sums over it are the same in every run.
    seen: BTreeMap<TargetId, Seen>,
    /// Demands, smoothed: prefill and tokens a second.
    demand: Option<(f32, f32)>,
    /// Answers, and of these late ones, fading.
    answers: (f32, f32),
    answers_us: u64,
    /// What was seen of the mixed pool over what was predicted.
    factor: f32,
    /// Since when a parted pool need not be parted; 0 while it must.
    calm_us: u64,
    due_us: u64,
}

impl Default for Leaning {
    fn default() -> Self {
        let (seen, demand, answers) = (BTreeMap::new(), None, (0.0, 0.0));
        Self { seen, demand, answers, answers_us: 0, factor: 1.0, calm_us: 0, due_us: 0 }
    }
}

impl Leaning {
    /// What one gateway has in flight at a target has changed. `ended`: the gateway is gone, and with it what it had.
    pub fn observe(
        &mut self,
        config: &LeanConfig,
        id: TargetId,
        before: &InFlight,
        after: &InFlight,
        ended: bool,
        now_us: u64,
    ) {
        let seen = self.seen.entry(id).or_default();
        let change = |before: u64, after: u64| after as i64 - before as i64;
        seen.requests += change(before.requests.into(), after.requests.into());
        seen.prefilling += change(before.prefilling.into(), after.prefilling.into());
        seen.context += change(before.context_tokens, after.context_tokens);
        let work = change(before.prefill_us, after.prefill_us);
        seen.prefill_us += work;
        if work < 0 && !ended {
            seen.fade(now_us, config.window_us);
            seen.done_us -= work as f64;
            // Mostly of one prompt: messages come within a millisecond.
            seen.squares += (work as f64).powi(2);
        }
    }

    /// So many answers have ended, and of these so many took longer per token than the limit.
    pub fn answered(&mut self, config: &LeanConfig, answers: u32, late: u32, now_us: u64) {
        let passed = now_us.saturating_sub(self.answers_us) as f32 / config.window_us as f32;
        let kept = (-passed).exp();
        self.answers.0 = self.answers.0 * kept + answers as f32;
        self.answers.1 = self.answers.1 * kept + late.min(answers) as f32;
        self.answers_us = now_us.max(self.answers_us);
    }

    /// The leaning of a target.
    pub fn of(&self, id: TargetId) -> ServingRole {
        self.seen.get(&id).map_or(ServingRole::Both, |seen| seen.leaning)
    }

    /// Forgets a target.
    pub fn forget(&mut self, id: TargetId) {
        self.seen.remove(&id);
    }

    /// When [`Leaning::look`] has something to do.
    pub fn due_us(&self) -> u64 {
        self.due_us
    }

    /// Looks at the pool and says whose leaning has changed. `pool` are the targets that are ready and may lean.
    pub fn look(
        &mut self,
        config: &LeanConfig,
        pool: &[LeanTarget],
        now_us: u64,
    ) -> Vec<(TargetId, ServingRole)> {
        if now_us < self.due_us {
            return Vec::new();
        }
        self.due_us = now_us + config.every_us;
        self.seen.retain(|id, _| pool.iter().any(|target| target.id == *id));
        for target in pool {
            self.seen.entry(target.id).or_default().fade(now_us, config.window_us);
        }
        let wanted = if config.enabled && pool.len() >= 2 {
            match self.measure(config, pool) {
                Some(demand) => self.choose(config, &demand, now_us),
                // Nothing is asked of it.
                None if self.calm(config, true, now_us) => 0,
                None => return Vec::new(),
            }
        } else {
            0
        };
        self.assign(config, wanted, now_us)
    }

    fn measure(&mut self, config: &LeanConfig, pool: &[LeanTarget]) -> Option<Demand> {
        let n = pool.len() as f32;
        let mean = |of: fn(&Costs) -> f32| pool.iter().map(|target| of(&target.costs)).sum::<f32>() / n;
        let costs = Costs {
            prefill: mean(|c| c.prefill),
            attention: mean(|c| c.attention),
            step: mean(|c| c.step),
            sequence: mean(|c| c.sequence),
            context: mean(|c| c.context),
            chunk: mean(|c| c.chunk),
            prefills: 0,
            decodes: 0,
        };
        let window = config.window_us as f64;
        let (mut work, mut decoders_work, mut decoding, mut context) = (0.0, 0.0, 0i64, 0i64);
        let (mut done, mut squares) = (0.0, 0.0);
        let (mut on_the_way, mut decoders) = (0i64, 0.0f32);
        for seen in self.seen.values() {
            let busy = (seen.done_us + seen.prefill_us.max(0) as f64) / window;
            work += busy;
            done += seen.done_us;
            squares += seen.squares;
            if seen.leaning == ServingRole::Prefill {
                // What is prefilled there is counted a second time where it will be decoded.
                on_the_way += seen.prefilling;
            } else {
                decoders += 1.0;
                decoders_work += busy;
            }
            decoding += (seen.requests - seen.prefilling).max(0);
            context += seen.context.max(0);
        }
        let each = if decoding > 0 { context as f32 / decoding as f32 } else { 0.0 };
        let decoding = (decoding - on_the_way).max(0) as f32;
        if decoding == 0.0 && work < 0.01 {
            return None;
        }
        let decoders = decoders.max(1.0);
        let batch = decoding / decoders;
        let step = costs.step + batch * (costs.sequence + costs.context * each);
        let share = (1.0 - decoders_work as f32 / decoders).max(0.05);
        let tokens = decoding / (step / share) * 1e6;
        let before = self.demand.unwrap_or((work as f32, tokens));
        let smooth = |before: f32, now: f32| before + 0.3 * (now - before);
        let demand = (smooth(before.0, work as f32), smooth(before.1, tokens));
        self.demand = Some(demand);
        let prompt = if done > 0.0 { (squares / done) as f32 } else { 0.0 };
        let least = |of: &dyn Fn(&LeanTarget) -> Option<f32>| {
            pool.iter().filter_map(of).fold(f32::INFINITY, f32::min)
        };
        let most_running = least(&|target| target.most_running.map(|n| n.max(1) as f32));
        let kv_tokens = least(&|target| target.kv_tokens.map(|n| n.max(1) as f32));
        Some(Demand {
            targets: n,
            prefill: demand.0,
            tokens: demand.1,
            context: each,
            prompt,
            most_running,
            kv_tokens,
            costs,
        })
    }

    /// How many targets should prefill; none for a mixed pool.
    fn choose(&mut self, config: &LeanConfig, demand: &Demand, now_us: u64) -> usize {
        let targets = demand.targets as usize;
        let mixed_now = self.seen.values().all(|seen| seen.leaning == ServingRole::Both);
        let (answers, late) = self.answers;
        if mixed_now && answers >= ANSWERS {
            // Steps that are short enough whatever is in them, or bursts that are longer than they seem: what is seen
            // counts.
            let predicted = self.factor * demand.mixed(config);
            let share = late / answers;
            if share > LATE.1 && predicted < 1.5 {
                self.factor *= 1.1;
            } else if share < LATE.0 && predicted > 0.8 {
                self.factor *= 0.93;
            }
            self.factor = self.factor.clamp(FACTOR.0, FACTOR.1);
        }
        let factor = self.factor;
        let strain = |prefillers: usize| demand.strain(config, factor, prefillers);
        // At least one of each kind.
        let best = (1..targets).min_by(|a, b| strain(*a).total_cmp(&strain(*b))).unwrap_or(0);
        if mixed_now {
            // Nothing is parted for the sake of a prediction alone, nor where the parts could not bear what is asked
            // either, unless few answers come in time as it is.
            let share = if answers >= ANSWERS { late / answers } else { 0.0 };
            let helps = strain(best) < BEARABLE || share > HOPELESS;
            let part = share > 2.0 * LATE.0 && strain(0) > 1.0 && strain(best) < strain(0) && helps;
            if part {
                // So many late answers tell how far beyond its limit the pool is: it is joined again by that measure.
                let strained = 1.0 + (3.0 * share).min(1.0);
                self.factor = factor.max(strained / demand.mixed(config)).clamp(FACTOR.0, FACTOR.1);
            }
            return if part { best } else { 0 };
        }
        // Joined only when that has been enough for some time: a pause in what is asked is no reason.
        if self.calm(config, strain(0) <= 1.0 - RETURN, now_us) {
            return 0;
        }
        let now = self
            .seen
            .values()
            .filter(|seen| seen.leaning == ServingRole::Prefill)
            .count()
            .clamp(1, targets - 1);
        if strain(best) < strain(now) * (1.0 - config.hysteresis) { best } else { now }
    }

    /// Whether what is asked could have been borne by a mixed pool for some time; `now` is whether it could now.
    fn calm(&mut self, config: &LeanConfig, now: bool, now_us: u64) -> bool {
        if !now {
            self.calm_us = 0;
        } else if self.calm_us == 0 {
            self.calm_us = now_us;
        } else if now_us >= self.calm_us + config.dwell_us {
            self.calm_us = 0;
            return true;
        }
        false
    }

    fn assign(
        &mut self,
        config: &LeanConfig,
        prefillers: usize,
        now_us: u64,
    ) -> Vec<(TargetId, ServingRole)> {
        let mut order: Vec<(TargetId, Seen)> = self.seen.iter().map(|(id, seen)| (*id, *seen)).collect();
        // Those that prefill already, then those with the least to decode; by number where nothing tells them apart.
        order.sort_by_key(|(id, seen)| {
            let decoding = (seen.requests - seen.prefilling).max(0);
            (seen.leaning != ServingRole::Prefill, decoding, id.slot)
        });
        if order.iter().filter(|(_, seen)| seen.leaning == ServingRole::Prefill).count() > prefillers {
            // Of those that prefill, the ones with the least queue are the first to stop.
            order.sort_by_key(|(id, seen)| {
                (seen.leaning != ServingRole::Prefill, std::cmp::Reverse(seen.prefill_us), id.slot)
            });
        }
        let mut changes = Vec::new();
        for (at, (id, seen)) in order.into_iter().enumerate() {
            let wanted = match prefillers {
                0 => ServingRole::Both,
                n if at < n => ServingRole::Prefill,
                _ => ServingRole::Decode,
            };
            let fresh = seen.since_us != 0 && now_us < seen.since_us + config.dwell_us;
            // From no leaning a target may go at once: it has dwelt there.
            let bound = fresh && seen.leaning != ServingRole::Both;
            if wanted == seen.leaning || bound {
                continue;
            }
            if let Some(kept) = self.seen.get_mut(&id) {
                (kept.leaning, kept.since_us) = (wanted, now_us);
            }
            changes.push((id, wanted));
        }
        changes
    }
}

#[cfg(test)]
mod tests;
