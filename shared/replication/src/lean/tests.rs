//! A pool under traffic that is made up, look by look.

use super::*;

const LOOK_US: u64 = 250_000;
/// One prefill of a second: at the prior's costs a prompt of some 30,000 tokens.
const SECOND: u64 = 1_000_000;

/// What a pool is asked for, and how it does.
#[derive(Clone, Copy)]
struct Traffic {
    /// Prompts, each a quarter of a second, and the work of each in microseconds.
    prompts: usize,
    work_us: u64,
    /// Requests that decode in the whole pool.
    decoding: u32,
    /// Answers per look, and how many of them are late while the pool is mixed.
    answers: u32,
    late: u32,
}

/// A pool of eight strains under this, and six of them can prefill it: see `a_parting_strains_as_its_formula_says`.
const HEAVY: Traffic = Traffic { prompts: 1, work_us: 3 * SECOND / 4, decoding: 160, answers: 20, late: 2 };
const LIGHT: Traffic = Traffic { prompts: 1, work_us: 20_000, decoding: 16, answers: 20, late: 0 };

struct Pool {
    config: LeanConfig,
    leaning: Leaning,
    ids: Vec<TargetId>,
    told: BTreeMap<TargetId, InFlight>,
    now_us: u64,
    turn: usize,
}

impl Pool {
    fn new(targets: u16, config: LeanConfig) -> Self {
        let ids = (0..targets).map(|slot| TargetId::new(slot, 1)).collect();
        let (leaning, told) = (Leaning::default(), BTreeMap::new());
        Self { config, leaning, ids, told, now_us: SECOND, turn: 0 }
    }

    fn roles(&self, role: ServingRole) -> Vec<TargetId> {
        self.ids.iter().copied().filter(|id| self.leaning.of(*id) == role).collect()
    }

    /// How many prefill and how many decode.
    fn parted(&self) -> (usize, usize) {
        (self.roles(ServingRole::Prefill).len(), self.roles(ServingRole::Decode).len())
    }

    fn tell(&mut self, id: TargetId, change: impl FnOnce(&mut InFlight)) {
        let told = self.told.entry(id).or_default();
        let before = *told;
        change(told);
        self.leaning.observe(&self.config, id, &before, told, false, self.now_us);
    }

    /// One look's time of traffic, and the look; what has changed.
    fn pass(&mut self, traffic: Traffic) -> Vec<(TargetId, ServingRole)> {
        let mixed = self.parted() == (0, 0);
        let [prefill, decode] = [ServingRole::Prefill, ServingRole::Decode].map(|role| self.roles(role));
        let prefill = if mixed || prefill.is_empty() { self.ids.clone() } else { prefill };
        let decode = if mixed || decode.is_empty() { self.ids.clone() } else { decode };
        for id in self.ids.clone() {
            let share = if decode.contains(&id) { traffic.decoding / decode.len() as u32 } else { 0 };
            self.tell(id, |told| {
                (told.requests, told.context_tokens) = (share, u64::from(share) * 2_000);
            });
        }
        for _ in 0..traffic.prompts {
            self.turn += 1;
            let id = prefill[self.turn % prefill.len()];
            self.tell(id, |told| told.prefill_us += traffic.work_us);
            self.tell(id, |told| told.prefill_us -= traffic.work_us);
        }
        self.now_us += LOOK_US;
        let late = if mixed { traffic.late } else { 0 };
        self.leaning.answered(&self.config, traffic.answers, late, self.now_us);
        self.look()
    }

    fn look(&mut self) -> Vec<(TargetId, ServingRole)> {
        let pool: Vec<LeanTarget> = self.ids.iter().map(|id| LeanTarget::new(*id, None)).collect();
        self.leaning.look(&self.config, &pool, self.now_us)
    }

    fn pass_for(&mut self, us: u64, traffic: Traffic) {
        (0..us / LOOK_US).for_each(|_| drop(self.pass(traffic)));
    }
}

fn config() -> LeanConfig {
    LeanConfig { tpot_us: 25_000.0, ..LeanConfig::default() }
}

#[test]
fn a_pool_is_parted_when_it_is_late_and_the_parts_can_bear_it() {
    let calm = Traffic { late: 0, ..HEAVY };
    let cases = [
        ("late, and its parts bear it", 8, HEAVY, config(), (6, 2)),
        ("strained, yet in time", 8, calm, config(), (0, 0)),
        ("hardly ever late", 200, Traffic { answers: 200, late: 1, ..HEAVY }, config(), (0, 0)),
        ("too few answers to tell", 8, Traffic { answers: 1, late: 1, ..HEAVY }, config(), (0, 0)),
        ("late, but the parts are late too", 8, Traffic { decoding: 1_200, ..HEAVY }, config(), (0, 0)),
        ("nearly all late: worth a try", 8, Traffic { decoding: 1_200, late: 20, ..HEAVY }, config(), (3, 5)),
        ("two targets", 2, Traffic { work_us: SECOND / 8, decoding: 40, ..HEAVY }, config(), (1, 1)),
        ("one target", 1, HEAVY, config(), (0, 0)),
        ("switched off", 8, HEAVY, LeanConfig { enabled: false, ..config() }, (0, 0)),
        ("a limit that is kept", 8, calm, LeanConfig { tpot_us: 200_000.0, ..config() }, (0, 0)),
        ("nothing is asked of it", 8, Traffic { prompts: 0, decoding: 0, ..HEAVY }, config(), (0, 0)),
    ];
    for (what, targets, traffic, config, want) in cases {
        let mut pool = Pool::new(targets, config);
        // Demands are taken over a while: until they are known, nobody tells of answers.
        pool.pass_for(15 * SECOND, Traffic { answers: 0, ..traffic });
        assert_eq!(pool.parted(), (0, 0), "{what}");
        pool.pass_for(15 * SECOND, traffic);
        assert_eq!(pool.parted(), want, "{what}");
    }
}

#[test]
fn a_parting_strains_as_its_formula_says() {
    // Three targets' worth of prompts, 160 requests that make a token in 7.4 ms of a target that does nothing else.
    let demand = Demand {
        targets: 8.0,
        prefill: 3.0,
        tokens: 160.0 / 7_400.0 * (5.0 / 8.0) * 1e6,
        context: 2_000.0,
        prompt: 750_000.0,
        most_running: f32::INFINITY,
        kv_tokens: f32::INFINITY,
        costs: Costs::PRIOR,
    };
    let config = config();
    let limit = 25_000.0 * config.margin;
    // What prefill takes of a prefill target's time, the rest being steps.
    let share = 34_099.2 / 40_099.2;
    let tpot = |targets: f32| 6_000.0 / (1.0 - demand.tokens / targets * 70.0 / 1e6);
    for (prefillers, want) in [
        (1, 3.0 / share / config.load),
        (5, 3.0 / (5.0 * share) / config.load),
        (6, 3.0 / (6.0 * share) / config.load),
        (7, tpot(1.0) / limit),
    ] {
        let found = demand.strain(&config, 1.0, prefillers);
        assert!((found / want - 1.0).abs() < 1e-3, "{prefillers}: {found} is not {want}");
    }
    // Mixed: 11.8 ms per token, and of 64 tokens two deviations more for the prompts that come between.
    let mean = 7_400.0 * 8.0 / 5.0;
    let spread = (3.0 / 8.0 * (750_000.0 * 8.0 / 5.0) * mean / 64.0_f32).sqrt();
    let want = (mean + 2.0 * spread) / 25_000.0;
    for factor in [1.0, 2.0] {
        let found = demand.strain(&config, factor, 0);
        assert!((found / (factor * want) - 1.0).abs() < 1e-3, "{found} is not {want}");
    }
    for hopeless in [Demand { prefill: 7.7, ..demand }, Demand { tokens: 1e9, ..demand }] {
        assert_eq!(hopeless.strain(&config, 1.0, 0), f32::INFINITY);
    }
}

#[test]
fn a_pool_that_is_late_without_reason_learns_that_there_is_one() {
    // Predicted to be well in time, and late all the same: steps are longer than they seem.
    let traffic = Traffic { work_us: SECOND / 4, ..HEAVY };
    let mut pool = Pool::new(8, config());
    pool.pass_for(SECOND, traffic);
    assert_eq!(pool.parted(), (0, 0));
    pool.pass_for(15 * SECOND, traffic);
    assert_ne!(pool.parted(), (0, 0));
    assert!(pool.leaning.factor > 1.3, "{}", pool.leaning.factor);
    assert!(pool.leaning.factor <= FACTOR.1);
}

#[test]
fn a_pool_is_mixed_again_when_little_is_asked_of_it() {
    let pause = Traffic { prompts: 0, decoding: 0, answers: 0, ..HEAVY };
    for little in [LIGHT, pause] {
        let mut pool = Pool::new(8, config());
        pool.pass_for(15 * SECOND, HEAVY);
        assert_ne!(pool.parted(), (0, 0));
        pool.pass_for(30 * SECOND, little);
        assert_eq!(pool.parted(), (0, 0));
    }
}

#[test]
fn a_leaning_is_kept_for_a_while_and_taken_up_at_once() {
    let mut pool = Pool::new(8, config());
    let mut since = BTreeMap::new();
    let mut changes = 0;
    let phases = [HEAVY, LIGHT, HEAVY, Traffic { decoding: 560, ..HEAVY }, LIGHT];
    for phase in phases.iter().cycle().take(20) {
        for _ in 0..12 {
            let before: Vec<_> = pool.ids.iter().map(|id| pool.leaning.of(*id)).collect();
            let now_us = pool.now_us + LOOK_US;
            for (id, leaning) in pool.pass(*phase) {
                let was = before[usize::from(id.slot)];
                assert_ne!(was, leaning, "no change");
                let dwelt = since.insert(id, now_us).map_or(u64::MAX, |at: u64| now_us - at);
                assert!(was == ServingRole::Both || dwelt >= pool.config.dwell_us, "{id}: {dwelt}");
                changes += 1;
            }
            let (prefill, decode) = pool.parted();
            assert!((prefill == 0) == (decode == 0) || prefill + decode < 8, "one of each kind");
        }
    }
    assert!(changes > 16, "{changes}");
}

#[test]
fn a_forgotten_target_leans_to_nothing_and_its_part_goes_to_another() {
    let mut pool = Pool::new(8, config());
    pool.pass_for(15 * SECOND, HEAVY);
    assert_eq!(pool.parted(), (6, 2));
    for role in [ServingRole::Decode, ServingRole::Prefill] {
        let gone = pool.roles(role);
        pool.ids.retain(|id| !gone.contains(id));
        for id in &gone {
            pool.leaning.forget(*id);
            pool.told.remove(id);
            assert_eq!(pool.leaning.of(*id), ServingRole::Both);
        }
        pool.ids.extend(&gone);
        pool.pass_for(15 * SECOND, HEAVY);
        let (prefill, decode) = pool.parted();
        assert!(prefill >= 1 && decode >= 1 && prefill + decode == 8, "{prefill} {decode}");
    }
    // Who is not in the pool that is looked at is forgotten too.
    let gone = pool.ids.remove(0);
    pool.pass(HEAVY);
    assert!(!pool.leaning.seen.contains_key(&gone));
}

#[test]
fn what_a_gateway_takes_with_it_has_not_been_done() {
    let work = InFlight { requests: 3, prefilling: 1, prefill_us: SECOND, ..InFlight::default() };
    for (ended, want) in [(false, SECOND as f64), (true, 0.0)] {
        let mut pool = Pool::new(1, config());
        let (id, nothing) = (pool.ids[0], InFlight::default());
        pool.leaning.observe(&pool.config, id, &nothing, &work, false, pool.now_us);
        pool.leaning.observe(&pool.config, id, &work, &nothing, ended, pool.now_us);
        let seen = pool.leaning.seen[&id];
        assert_eq!((seen.done_us, seen.requests, seen.prefilling, seen.prefill_us), (want, 0, 0, 0));
    }
}

#[test]
fn numbers_beyond_all_reason_do_no_harm() {
    let most = InFlight {
        target: 0,
        requests: 1 << 24,
        prefilling: 1 << 24,
        prefill_tokens: 1 << 40,
        prefill_us: 1 << 40,
        context_tokens: 1 << 40,
    };
    let costs = |number: f32| Costs {
        prefill: number,
        attention: number,
        step: number,
        sequence: number,
        context: number,
        chunk: number,
        prefills: 1,
        decodes: 1,
    };
    for number in [1e-9, 1.0, 1e9] {
        let mut pool = Pool::new(4, config());
        for round in 0..100 {
            for id in pool.ids.clone() {
                pool.tell(id, |told| *told = if round % 2 == 0 { most } else { InFlight::default() });
            }
            pool.leaning.answered(&pool.config, 1 << 24, 1 << 24, pool.now_us);
            pool.now_us += LOOK_US;
            let target = |id: &TargetId| LeanTarget::new(*id, Some(costs(number)));
            let targets: Vec<_> = pool.ids.iter().map(target).collect();
            pool.leaning.look(&pool.config, &targets, pool.now_us);
        }
    }
}
