//! Learnt costs against engines whose costs are known: how soon predictions of the time to the first token are good.
#![allow(clippy::unwrap_used, reason = "a test may fail so")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use fairlead_prefix::{Config, Writer};
use fairlead_routing::{
    Constants, Fleet, InFlightSums, Learner, PlanRequest, PrefillSeen, Reservation, Rng, Scratch, Settings,
    Strategy, TargetEntry, plan,
};
use fairlead_sim::Profile;
use fairlead_sim::model::{Model, ModelOptions, Progress, SeqId, SeqSpec};
use fairlead_wire::TargetId;
use fairlead_wire::msg::{EngineKind, InstanceInfo, ModelInfo, ServingRole};

const BLOCK: u32 = 64;
const ID: TargetId = TargetId { slot: 0, generation: 1 };

fn entry() -> TargetEntry {
    let info = InstanceInfo {
        name: "e".into(),
        address: "127.0.0.1:1".into(),
        host: "h".into(),
        incarnation: 1,
        engine: EngineKind::Vllm,
        engine_version: String::new(),
        models: vec![ModelInfo { name: "m".into(), max_model_len: None, parent: None }],
        role: ServingRole::Both,
        transfer: None,
        dp_ranks: 1,
        block_size: None,
        kv_blocks: None,
        max_num_seqs: None,
        labels: Vec::new(),
    };
    TargetEntry::new(ID, Arc::new(info), 0, true, Arc::default())
}

/// One gateway before the engine.
struct Gateway {
    fleet: Fleet,
    entry: Arc<TargetEntry>,
    learner: Learner,
    scratch: Scratch,
}

/// A request in flight.
struct Flight {
    gateway: usize,
    reservation: Reservation,
    predicted_us: f64,
    sent: f64,
    spec: SeqSpec,
    /// The answer comes whole.
    whole: bool,
}

/// What is played.
#[derive(Clone, Copy)]
struct Play {
    /// Share of the engine's time that the load takes, about.
    load: f64,
    /// Mean prompt, tokens; the spread is wide.
    prompt: f64,
    /// Tokens of an answer.
    output: u32,
    /// Share of prompts that go on where an earlier one ended.
    continued: f64,
    gateways: usize,
    /// Time until a gateway knows of the others' requests, seconds.
    delay: f64,
    /// Share of answers that come whole, so that nobody sees their first token.
    whole: f64,
    /// KV room, of what the profile has.
    room: f64,
    /// The engine takes so many times as long from the middle on.
    slower: f64,
}

const PLAIN: Play = Play {
    load: 0.5,
    prompt: 2_000.0,
    output: 150,
    continued: 0.5,
    gateways: 1,
    delay: 0.002,
    whole: 0.0,
    room: 4.0,
    slower: 1.0,
};

/// Predicted over actual time to the first token, in the order of first tokens; and the constants at the end.
fn ratios(
    profile: &Profile,
    prior: Constants,
    play: Play,
    requests: usize,
    seed: u64,
) -> (Vec<f64>, Constants) {
    let mut rng = Rng::new(seed);
    let options = ModelOptions {
        profile: profile.clone(),
        block_tokens: BLOCK,
        kv_blocks: (profile.kv_tokens as f64 * play.room / f64::from(BLOCK)) as u32,
        max_waiting: 10_000,
        prefix_caching: true,
        track: false,
        tell_reused: false,
        sparse: false,
    };
    let mut engine = Model::new(options);
    let (mut index, reader): (Writer, _) =
        fairlead_prefix::new(Config { max_bytes: 64 << 20, max_targets: 4, locate: false });
    index.bind(ID).unwrap();
    let strategy = Strategy::parse("cost", &Settings::default()).unwrap();
    let mut gateways: Vec<Gateway> = (0..play.gateways)
        .map(|number| {
            let fleet = Fleet::new([reader.clone()]);
            let entry = Arc::new(entry());
            entry.cells.costs.store(&prior);
            fleet.publish(vec![Some(entry.clone())]);
            Gateway { fleet, entry, learner: Learner::new(prior), scratch: Scratch::new(number as u64) }
        })
        .collect();
    // Time of the engine that a request takes: its prefill, and its share of the steps of a batch of eight.
    let fresh = play.prompt * (1.0 - play.continued * 0.8);
    let each = fresh * profile.prefill
        + f64::from(play.output)
            * (profile.base / 8.0 + profile.per_sequence + play.prompt * profile.decode_context);
    let gap = each / play.load;

    let mut flights: BTreeMap<SeqId, Flight> = BTreeMap::new();
    let mut sessions: Vec<(Vec<u64>, u32)> = Vec::new();
    let mut news: VecDeque<(f64, usize, InFlightSums)> = VecDeque::new();
    let mut told = vec![InFlightSums::default(); play.gateways];
    let mut ratios = Vec::new();
    let mut progress: Vec<Progress> = Vec::new();
    let (mut now, mut next) = (0.0f64, 0.0f64);
    let mut step_ends: Option<f64> = None;
    let mut sent = 0;
    let us = |seconds: f64| (seconds * 1e6).round() as u64;
    let tell = |news: &mut VecDeque<_>, gateways: &[Gateway], from: usize, now: f64| {
        news.push_back((now + play.delay, from, gateways[from].entry.cells.counters.in_flight()));
    };
    while ratios.len() < requests {
        let idle = step_ends.is_none();
        now = step_ends.map_or(next, |end| if end <= next { end } else { next }).max(now);
        while let Some((at, from, sums)) = news.front().copied().filter(|(at, ..)| *at <= now) {
            news.pop_front();
            told[from] = sums;
            for (number, gateway) in gateways.iter().enumerate() {
                let mut others = InFlightSums::default();
                told.iter().enumerate().filter(|(n, _)| *n != number).for_each(|(_, sums)| others.add(sums));
                gateway.entry.cells.set_peers(others, us(at));
            }
        }
        if step_ends.is_some_and(|end| end <= now) {
            engine.end_step(now, &mut progress);
            for p in progress.drain(..) {
                let Some(flight) = flights.get_mut(&p.id) else { continue };
                let number = flight.gateway;
                if p.emitted == 1 {
                    ratios.push(flight.predicted_us / ((now - flight.sent) * 1e6));
                }
                if p.emitted == 1 && !flight.whole {
                    let tokens = flight.spec.prompt_tokens;
                    // As engines tell that count cached tokens.
                    let seen = flight.reservation.first_token(us(now)).map(|seen| PrefillSeen {
                        tokens: tokens - p.cached,
                        cached: p.cached,
                        ..seen
                    });
                    let gateway = &mut gateways[number];
                    seen.iter().for_each(|seen| gateway.learner.prefilled(seen));
                    gateway.entry.cells.costs.store(&gateway.learner.constants());
                    tell(&mut news, &gateways, number, now);
                }
                if p.finished
                    && let Some(flight) = flights.remove(&p.id)
                {
                    let seen = flight.reservation.last_token(us(now), flight.spec.output_tokens);
                    let seen = seen.filter(|_| !flight.whole);
                    drop(flight);
                    let gateway = &mut gateways[number];
                    seen.iter().for_each(|seen| gateway.learner.decoded(seen));
                    gateway.entry.cells.costs.store(&gateway.learner.constants());
                    tell(&mut news, &gateways, number, now);
                }
            }
            step_ends = None;
        }
        for flight in flights.values_mut().filter(|flight| flight.whole) {
            if (now - flight.sent) * 1e6 >= flight.predicted_us {
                flight.reservation.presume_prefilled((now * 1e6) as u64);
            }
        }
        if next <= now {
            next = now - rng.unit().max(1e-9).ln() * gap;
            let number = rng.below(gateways.len());
            // Between a quarter of the mean and some times as much.
            let fresh = (play.prompt * 0.25 * (1.0 - rng.unit()).max(0.02).powf(-0.75)) as u32;
            let (mut path, before) = match sessions.len() {
                n if n > 0 && rng.unit() < play.continued => sessions.swap_remove(rng.below(n)),
                _ => (Vec::new(), 0),
            };
            let fresh = if before > 0 { fresh / 4 + 16 } else { fresh + 16 };
            let tokens = before + fresh;
            while (path.len() as u32) < tokens / BLOCK {
                path.push(rng.below(usize::MAX >> 1) as u64 | 1);
            }
            let gateway = &mut gateways[number];
            let ask = PlanRequest {
                path: &path,
                prompt_tokens: tokens,
                block_tokens: BLOCK,
                now_us: us(now),
                ..PlanRequest::new("m", &strategy)
            };
            let mut planned = plan(&ask, &gateway.fleet, &mut gateway.scratch).unwrap();
            index.place(ID, &path, us(now));
            let output_tokens = 1 + rng.below(2 * play.output as usize) as u32;
            let path: Arc<[u64]> = path.into();
            let spec = SeqSpec {
                path,
                prompt_tokens: tokens,
                output_tokens,
                limited: true,
                origin: None,
                remote: 0,
            };
            if let Ok(id) = engine.submit(spec.clone(), now) {
                if tokens < 32_000 {
                    sessions.push((spec.path.to_vec(), tokens));
                }
                let predicted_us = f64::from(planned.predicted_ttft_us);
                let whole = rng.unit() < play.whole;
                if whole {
                    planned.reservation.unseen();
                }
                let reservation = planned.reservation;
                let flight = Flight { gateway: number, reservation, predicted_us, sent: now, spec, whole };
                flights.insert(id, flight);
                tell(&mut news, &gateways, number, now);
                sent += 1;
            }
        }
        if step_ends.is_none() {
            let slower = if ratios.len() > requests / 2 { play.slower } else { 1.0 };
            step_ends = engine.begin_step(now).map(|seconds| now + seconds * slower);
        }
        assert!(!(idle && step_ends.is_none() && sent > 10 * requests), "nothing comes");
    }
    let constants = gateways[0].learner.constants();
    (ratios, constants)
}

fn off(ratios: &[f64]) -> f64 {
    let mut errors: Vec<f64> = ratios.iter().map(|ratio| (ratio - 1.0).abs()).collect();
    errors.sort_by(f64::total_cmp);
    errors[errors.len() / 2]
}

fn truth(profile: &Profile) -> Constants {
    Constants {
        prefill: (profile.prefill * 1e6) as f32,
        attention: (profile.attention * 1e6) as f32,
        step: (profile.base * 1e6) as f32,
        sequence: (profile.per_sequence * 1e6) as f32,
        context: (profile.decode_context * 1e6) as f32,
        chunk: profile.token_budget as f32,
    }
}

fn scaled(c: Constants, by: f32) -> Constants {
    let [a, b, d, e, f, chunk] = c.to_array();
    Constants::from_array([a * by, b * by, d * by, e * by, f * by, chunk])
}

#[test]
fn two_hundred_requests_mend_a_wrong_prior() {
    let short = Play { prompt: 300.0, ..PLAIN };
    // With the greatest median error allowed. The prediction leaves out the rest of the step that is under way, which is
    // a good part of a short prompt's time.
    let plays = [
        ("plain", PLAIN, 0.12),
        ("little load", Play { load: 0.15, ..PLAIN }, 0.12),
        ("much load", Play { load: 0.8, ..PLAIN }, 0.15),
        ("short prompts", short, 0.25),
        ("long prompts", Play { prompt: 8_000.0, output: 300, ..PLAIN }, 0.12),
        ("two gateways", Play { gateways: 2, ..PLAIN }, 0.15),
        ("four gateways, much load", Play { gateways: 4, load: 0.8, ..PLAIN }, 0.2),
        ("half come whole", Play { whole: 0.5, ..PLAIN }, 0.2),
        ("half come whole, two gateways", Play { whole: 0.5, gateways: 2, ..PLAIN }, 0.2),
    ];
    for (name, budget) in [("8b-h200", 1_024), ("8b-h200", 8_192), ("70b-tp4", 1_024), ("70b-tp4", 8_192)] {
        let profile = Profile { token_budget: budget, ..Profile::named(name).unwrap() };
        let truth = truth(&profile);
        for (what, play, most) in plays {
            for by in [0.2, 0.5, 2.0, 5.0] {
                let (ratios, learnt) = ratios(&profile, scaled(truth, by), play, 500, 7);
                let late = off(&ratios[200..]);
                let what = format!("{name}, steps of {budget}, {what}, prior x {by}");
                assert!(late <= most, "{what}: half of the predictions are {late:.2} off");
                for (part, learnt, truth) in
                    [("prefill", learnt.prefill, truth.prefill), ("step", learnt.step, truth.step)]
                {
                    assert!((learnt / truth - 1.0).abs() < 0.3, "{what}: {part} {learnt} is not {truth}");
                }
            }
        }
    }
}

#[test]
fn an_engine_that_has_forgotten_what_the_index_lists_teaches_nothing_wrong() {
    let profile = Profile::tp4_70b();
    let play = Play { prompt: 8_000.0, output: 300, room: 0.4, ..PLAIN };
    let (ratios, learnt) = ratios(&profile, truth(&profile), play, 500, 7);
    assert!(off(&ratios[200..]) > 0.3, "predictions are to be wrong by what was evicted");
    let prefill = learnt.prefill / truth(&profile).prefill;
    assert!((0.85..1.18).contains(&prefill), "{prefill}");
}

#[test]
fn an_engine_that_slows_down_is_followed() {
    for slower in [2.0, 0.5] {
        let profile = Profile::h200_8b();
        let play = Play { slower, ..PLAIN };
        let (ratios, _) = ratios(&profile, truth(&profile), play, 1_000, 3);
        let (before, then, later) = (off(&ratios[200..500]), off(&ratios[500..550]), off(&ratios[700..]));
        assert!(before < 0.15 && later < 0.2, "x {slower}: {before:.2}, then {then:.2}, later {later:.2}");
    }
}
