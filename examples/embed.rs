//! The router as a library: a program that does its own networking asks where to send each request.
//!
//! `cargo run --example embed` prints where four chat requests go and why.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::sync::Arc;

use fairlead::openai::{Api, canonical, scan};
use fairlead::prefix;
use fairlead::routing::{
    EngineFigures, Explain, Fleet, PlanRequest, Scratch, Settings, Strategy, TargetEntry, plan_explained,
};
use fairlead::tokens::{BlockHasher, DEFAULT_BLOCK_BYTES, estimate_tokens};
use fairlead::wire::TargetId;
use fairlead::wire::msg::InstanceInfo;

type Failure = Box<dyn std::error::Error>;

/// The same in all processes that share an index, and secret: who knows it can make prompts that collide.
const SEED: u64 = 0x5eed;

/// Runs the example.
pub fn main() -> Result<(), Failure> {
    // The engines: a slot each, and what each of them serves.
    let target = |slot: u16| {
        let name = format!("engine-{slot}");
        let info = InstanceInfo::new(&name, &format!("10.0.0.{}:8000", slot + 1), ["llama"]);
        Arc::new(TargetEntry::new(TargetId::new(slot, 1), Arc::new(info), 0, true, Arc::default()))
    };
    let targets: Vec<_> = (0..3).map(target).collect();

    // The index of what they hold: one writer, and a reader for the decisions.
    let (mut index, reader) =
        prefix::new(prefix::Config { max_bytes: 64 << 20, max_targets: 16, locate: false });
    for target in &targets {
        index.bind(target.id)?;
    }
    let fleet = Fleet::new([reader]);
    fleet.publish(targets.iter().cloned().map(Some).collect());

    // What an engine reports of itself, where anybody reads its metrics. What is left out is unknown, not zero.
    let report =
        EngineFigures { running: Some(3), waiting: Some(0), kv_usage: Some(0.4), ..Default::default() };
    targets[0].cells.report(&report);

    // How to pick: a policy's name or a weighted sum; made once, used for every request.
    let strategy = Strategy::parse("prefix-cache:2,least-request:1", &Settings::default())?;
    // One per thread that decides.
    let mut scratch = Scratch::new(1);

    let system = "You answer questions about ships and harbours. ".repeat(60);
    let mut running = Vec::new();
    for (turn, question) in
        ["What is a fairlead?", "And a cleat?", "And a bollard?", "Why?"].iter().enumerate()
    {
        let body = serde_json::json!({
            "model": "llama",
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": question}],
        });
        let body = serde_json::to_vec(&body)?;

        // From the body to hashes of the prompt's blocks, equal for prompts that begin alike.
        let scanned = scan(&body, Api::Chat).map_err(|error| error.to_string())?;
        let mut path = Vec::new();
        let mut hasher = BlockHasher::new(SEED, "llama", "", "", DEFAULT_BLOCK_BYTES, &mut path);
        canonical(&body, &scanned, Api::Chat, &mut |piece| hasher.update(piece));
        let prompt_tokens = estimate_tokens(hasher.finish().bytes);

        // The decision. `plan` is the same without the record.
        let now_us = 1_000_000 + 20_000 * turn as u64;
        let request =
            PlanRequest { path: &path, prompt_tokens, now_us, ..PlanRequest::new("llama", &strategy) };
        let mut explain = Explain::default();
        let plan = plan_explained(&request, &fleet, &mut scratch, &mut explain)?;
        println!(
            "{question:20} -> {} at {}: {} of {} blocks cached, {}",
            plan.target().name,
            plan.target().address,
            plan.cached_blocks,
            path.len(),
            plan.reason.as_str(),
        );
        for candidate in &explain.candidates {
            println!(
                "    {}: value {:.3}, {} blocks, {} requests, first token in {:.0} ms",
                candidate.name,
                candidate.value.unwrap_or(f64::NAN),
                candidate.cached_blocks,
                candidate.requests,
                candidate.ttft_us / 1e3,
            );
        }

        // The target will hold the prompt, so later ones that begin alike find it there.
        index.place(plan.target().id, &path, now_us);
        running.push(plan.reservation);
    }

    // The reservation is the request's share of its target's load: told of the first token, dropped at the end.
    for (turn, mut reservation) in running.into_iter().enumerate() {
        reservation.first_token(1_200_000 + 20_000 * turn as u64);
    }
    let left: u64 = targets.iter().map(|target| target.cells.counters.in_flight().requests).sum();
    println!("{left} requests in flight");
    Ok(())
}
