use super::*;
use crate::histogram::Histogram;
use std::collections::HashMap;

fn options(blocks: u32) -> ModelOptions {
    ModelOptions {
        profile: Profile::h200_8b(),
        block_tokens: 16,
        kv_blocks: blocks,
        max_waiting: 100,
        prefix_caching: true,
        track: false,
        tell_reused: false,
        sparse: false,
    }
}

fn spec(family: u64, prompt: u32, output: u32) -> SeqSpec {
    SeqSpec {
        path: (0..u64::from(prompt / 16)).map(|i| family * 1_000_000 + i + 1).collect(),
        prompt_tokens: prompt,
        output_tokens: output,
        limited: true,
        origin: None,
        remote: 0,
    }
}

/// Runs until idle; returns the progress of every step and the time.
fn run(m: &mut Model, from: f64) -> (Vec<Vec<Progress>>, f64) {
    let (mut now, mut all) = (from, Vec::new());
    while let Some(d) = m.begin_step(now) {
        now += d;
        let mut out = Vec::new();
        m.end_step(now, &mut out);
        all.push(out);
    }
    (all, now)
}

#[test]
fn one_request_takes_prefill_and_decode_steps() {
    let mut m = Model::new(options(1000));
    let id = m.submit(spec(1, 2500, 4), 0.0).unwrap();
    let (steps, end) = run(&mut m, 0.0);
    // 1,024 + 1,024 + 452 tokens of prompt, then three more tokens.
    assert_eq!(steps.len(), 6);
    assert!(steps[0].is_empty() && steps[1].is_empty());
    assert_eq!(steps[2], [Progress { id, emitted: 1, cached: 0, finished: false }]);
    assert!(steps[5][0].finished);
    let p = Profile::h200_8b();
    let expected = 6.0 * (p.base + p.per_sequence)
        + 2500.0 * p.prefill
        + p.attention * (1024.0 * 512.0 + 1024.0 * 1536.0 + 452.0 * 2274.0)
        + p.decode_context * (2501.0 + 2502.0 + 2503.0);
    assert!((end - expected).abs() < 1e-9, "{end} {expected}");
    assert_eq!((m.stats().prompt_tokens, m.stats().generation_tokens, m.cache().used()), (2500, 4, 0));
}

#[test]
fn the_second_turn_finds_the_first() {
    let mut m = Model::new(options(1000));
    m.submit(spec(1, 320, 2), 0.0).unwrap();
    run(&mut m, 0.0);
    m.submit(spec(1, 400, 2), 1.0).unwrap();
    // Exactly the same prompt: its last block is computed again.
    m.submit(spec(1, 320, 2), 1.0).unwrap();
    let (steps, _) = run(&mut m, 1.0);
    assert_eq!(steps[0].iter().map(|p| p.cached).collect::<Vec<_>>(), [320, 304]);
    assert_eq!((m.stats().cache_queries, m.stats().cache_hits), (1040, 624));
}

#[test]
fn a_prefix_is_usable_only_once_computed() {
    let mut m = Model::new(options(1000));
    m.submit(spec(1, 320, 2), 0.0).unwrap();
    m.submit(spec(1, 320, 2), 0.0).unwrap();
    let (steps, _) = run(&mut m, 0.0);
    assert!(steps[0].iter().all(|p| p.cached == 0));
    assert_eq!(m.cache().named(), 20);
}

#[test]
fn sequences_share_steps() {
    let mut m = Model::new(options(1000));
    for f in 0..4 {
        m.submit(spec(f, 64, 8), 0.0).unwrap();
    }
    let (steps, _) = run(&mut m, 0.0);
    assert_eq!(steps.len(), 8);
    assert!(steps.iter().all(|s| s.len() == 4));
}

#[test]
fn admission_is_first_come_first_served_and_waits_for_room() {
    let mut m = Model::new(options(10));
    let big = m.submit(spec(1, 100, 28), 0.0).unwrap();
    let next = m.submit(spec(2, 100, 28), 0.0).unwrap();
    let small = m.submit(spec(3, 16, 8), 0.0).unwrap();
    m.begin_step(0.0);
    assert_eq!((m.running(), m.waiting(), m.cache().used()), (1, 2, 8));
    let mut out = Vec::new();
    m.end_step(0.1, &mut out);
    assert_eq!(out[0].id, big);
    let (steps, _) = run(&mut m, 0.1);
    let order: Vec<SeqId> = steps.iter().flatten().filter(|p| p.finished).map(|p| p.id).collect();
    assert_eq!(order, [big, small, next]);
}

#[test]
fn refusals_name_their_reason() {
    let mut m = Model::new(ModelOptions { max_waiting: 1, ..options(10) });
    assert_eq!(m.submit(spec(1, 200, 10), 0.0), Err(Refused::TooLarge { needed: 14, capacity: 10 }));
    m.submit(spec(1, 16, 1), 0.0).unwrap();
    assert_eq!(m.submit(spec(1, 16, 1), 0.0), Err(Refused::QueueFull { waiting: 1 }));
}

#[test]
fn an_abort_frees_everything_at_once() {
    let mut m = Model::new(options(1000));
    let a = m.submit(spec(1, 1600, 100), 0.0).unwrap();
    let b = m.submit(spec(2, 1600, 100), 0.0).unwrap();
    m.begin_step(0.0);
    assert!(m.abort(a));
    assert!(m.abort(b));
    assert!(!m.abort(a));
    m.end_step(0.1, &mut Vec::new());
    assert_eq!((m.running(), m.waiting(), m.cache().used(), m.cache().named()), (0, 0, 0, 0));
    assert_eq!(m.begin_step(0.1), None);
}

#[test]
fn work_without_output_ends_with_its_prompt() {
    let mut m = Model::new(options(1000));
    let id = m.submit(spec(1, 64, 0), 0.0).unwrap();
    let (steps, _) = run(&mut m, 0.0);
    assert_eq!(steps, [vec![Progress { id, emitted: 0, cached: 0, finished: true }]]);
}

#[test]
fn at_most_max_running_run() {
    let mut o = options(100_000);
    o.profile.max_running = 3;
    let mut m = Model::new(o);
    for f in 0..5 {
        m.submit(spec(f, 16, 4), 0.0).unwrap();
    }
    m.begin_step(0.0);
    assert_eq!((m.running(), m.waiting()), (3, 2));
}

mod random {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        /// Whatever comes and goes, limits hold, every sequence that stays gets all its tokens in order, and an idle
        /// engine holds nothing.
        #[test]
        fn nothing_is_lost_and_nothing_stays(
            ops in prop::collection::vec((0u8..8, 0u64..4, 1u32..300, 0u32..20), 1..120),
            blocks in 30u32..200,
            budget in 16u32..200,
        ) {
            let mut o = options(blocks);
            o.profile.token_budget = budget;
            o.profile.max_running = 6;
            let mut m = Model::new(o);
            let mut now = 0.0;
            let mut open: HashMap<SeqId, (u32, u32)> = HashMap::new();
            let mut step = |m: &mut Model, open: &mut HashMap<SeqId, (u32, u32)>| {
                let Some(d) = m.begin_step(now) else { return Ok(false) };
                prop_assert!(d > 0.0 && m.running() <= 6);
                prop_assert!(m.cache().used() <= blocks);
                now += d;
                let mut out = Vec::new();
                m.end_step(now, &mut out);
                for p in out {
                    let (want, got) = open[&p.id];
                    let next = if want == 0 { 0 } else { got + 1 };
                    prop_assert_eq!(p.emitted, next);
                    prop_assert_eq!(p.finished, next == want);
                    if p.finished {
                        open.remove(&p.id);
                    } else {
                        open.insert(p.id, (want, next));
                    }
                }
                Ok(true)
            };
            for (op, family, prompt, output) in ops {
                match op {
                    0..3 => {
                        if let Ok(id) = m.submit(spec(family, prompt, output), 0.0) {
                            open.insert(id, (output, 0));
                        }
                    }
                    3 => {
                        if let Some(id) = open.keys().copied().min() {
                            prop_assert!(m.abort(id));
                            open.remove(&id);
                        }
                    }
                    _ => {
                        step(&mut m, &mut open)?;
                    }
                }
            }
            while step(&mut m, &mut open)? {}
            prop_assert!(open.is_empty());
            prop_assert_eq!((m.running(), m.waiting(), m.cache().used()), (0, 0, 0));
            prop_assert!(m.cache().named() <= blocks);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        /// A sparse engine and a clone of one do what a full one does; they only tell less.
        #[test]
        fn sparse_engines_and_clones_do_the_same(
            ops in prop::collection::vec((0u8..8, 0u64..4, 1u32..300, 0u32..20), 1..120),
            blocks in 30u32..200,
            budget in 4u32..200,
        ) {
            let mut o = options(blocks);
            o.profile.token_budget = budget;
            o.profile.max_running = 6;
            let mut full = Model::new(o.clone());
            let mut sparse = Model::new(ModelOptions { sparse: true, ..o });
            let (mut now, mut ids) = (0.0, Vec::new());
            for (op, family, prompt, output) in ops {
                match op {
                    0..3 => {
                        let spec = spec(family, prompt, output);
                        let id = full.submit(spec.clone(), now);
                        prop_assert_eq!(&id, &sparse.submit(spec, now));
                        ids.extend(id);
                    }
                    3 if !ids.is_empty() => {
                        let id = ids.swap_remove(prompt as usize % ids.len());
                        prop_assert_eq!(full.abort(id), sparse.abort(id));
                    }
                    4 => sparse = sparse.clone(),
                    _ => {
                        let seconds = full.begin_step(now);
                        prop_assert_eq!(seconds, sparse.begin_step(now));
                        now += seconds.unwrap_or(0.0);
                        // A sequence may go, and another come to its place, while a step runs.
                        if output == 0 && !ids.is_empty() {
                            let id = ids.swap_remove(prompt as usize % ids.len());
                            prop_assert_eq!(full.abort(id), sparse.abort(id));
                            let spec = spec(family, prompt, output);
                            let id = full.submit(spec.clone(), now);
                            prop_assert_eq!(&id, &sparse.submit(spec, now));
                            ids.extend(id);
                        }
                        let (mut all, mut some) = (Vec::new(), Vec::new());
                        full.end_step(now, &mut all);
                        sparse.end_step(now, &mut some);
                        all.retain(|p| p.emitted <= 1 || p.finished);
                        prop_assert_eq!(all, some);
                    }
                }
                let seen = |m: &Model| {
                    let c = m.cache();
                    (m.running(), m.waiting(), c.used(), c.named(), c.evictions(), m.ids().collect::<Vec<_>>())
                };
                prop_assert_eq!(seen(&full), seen(&sparse));
                let counted = |m: &Model| {
                    let s = m.stats();
                    let sums = [&s.queue, &s.prefill, &s.decode, &s.request_prompt_tokens].map(Histogram::sum);
                    (s.prompt_tokens, s.generation_tokens, s.cache_hits, s.steps, s.queue.count(), sums)
                };
                prop_assert_eq!(counted(&full), counted(&sparse));
            }
        }
    }
}

#[test]
fn steps_that_only_decode_may_be_taken_at_once() {
    let sparse = ModelOptions { sparse: true, ..options(400) };
    let mut m = Model::new(sparse);
    for i in 0..8 {
        m.submit(spec(i, 100 + 37 * i as u32, 10 + 13 * i as u32), 0.0).unwrap();
    }
    // The cache has no room for this one until some have ended.
    m.submit(spec(20, 3_000, 5), 0.0).unwrap();
    let mut slow = m.clone();
    let play = |m: &mut Model, begin: &dyn Fn(&mut Model, f64) -> Option<f64>| {
        let (mut now, mut told, mut steps) = (0.0, Vec::new(), 0);
        while let Some(seconds) = begin(m, now) {
            now += seconds;
            steps += 1;
            let mut out = Vec::new();
            m.end_step(now, &mut out);
            told.extend(out.into_iter().map(|p| (p.id, p.emitted, p.finished, (now * 1e9).round())));
        }
        (told, steps)
    };
    let (one_by_one, many) = play(&mut slow, &|m, now| m.begin_step(now));
    let (at_once, few) = play(&mut m.clone(), &|m, now| m.begin_steps(now, f64::INFINITY));
    assert_eq!(at_once, one_by_one);
    assert!(few * 3 < many, "{few} {many}");
    // Up to a time, not beyond: each call ends by the next hundredth, or is one step.
    let by = |now: f64| (now * 100.0).floor() / 100.0 + 0.01;
    let (in_pieces, some) = play(&mut m, &|m, now| {
        let before = m.decoding().1;
        let seconds = m.begin_steps(now, by(now))?;
        assert!(now + seconds <= by(now) + 1e-12 || m.times == 1, "{before}");
        Some(seconds)
    });
    assert_eq!(in_pieces, one_by_one);
    assert!(few < some && some <= many);
}

#[test]
fn what_another_instance_computed_costs_one_token_and_can_be_found_afterwards() {
    let mut m = Model::new(options(100));
    let handed = SeqSpec { remote: 160, ..spec(1, 160, 3) };
    m.submit(handed, 0.0).unwrap();
    let (steps, took) = run(&mut m, 0.0);
    let first = steps[0][0];
    assert_eq!((steps.len(), first.emitted, first.cached), (3, 1, 159));
    let profile = &m.options().profile;
    assert!(took < 3.0 * profile.base + 100.0 * profile.prefill, "{took}");
    // The whole prompt is there for the next one.
    assert_eq!(m.cache().matched(&spec(1, 160, 1).path), 10);
    assert_eq!(m.cache().used(), 0);
}
