//! A policy of one's own: the fewest requests, with a surcharge for targets in another zone.
//!
//! `cargo run --example custom_policy` prints how a burst spreads over two zones.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::sync::Arc;

use fairlead::prefix;
use fairlead::routing::{
    Candidate, Choice, Decision, Fleet, Missing, PlanRequest, Policy, PolicyName, Reason, Rng, Scratch,
    Settings, Strategy, TargetEntry, least, plan,
};
use fairlead::wire::TargetId;
use fairlead::wire::msg::InstanceInfo;

// docs/adding-a-policy.md shows what stands between these two lines: begin
/// The target with the fewest requests in flight, where one in another zone counts as having `surcharge` more.
///
/// Inputs: requests in flight, the label `zone`. Ties are drawn. Never passes.
struct NearFirst {
    zone: String,
    surcharge: u64,
}

impl NearFirst {
    fn load(&self, decision: &Decision<'_>, candidate: &Candidate) -> u64 {
        let labels = &decision.target(candidate).info.labels;
        let is_near = labels.iter().any(|(key, value)| key == "zone" && *value == self.zone);
        candidate.requests + if is_near { 0 } else { self.surcharge }
    }
}

impl Policy for NearFirst {
    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let index = least(decision.candidates, rng, |_| true, |c| self.load(decision, c)).ok_or(None)?;
        Ok(Choice { index, reason: Reason::LeastLoad })
    }

    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        Some(self.load(decision, candidate) as f64)
    }

    fn fallback(&self) -> Option<PolicyName> {
        None
    }
}
// end

/// Runs the example.
pub fn main() -> Result<(), Box<dyn std::error::Error>> {
    let target = |slot: u16| {
        let mut info =
            InstanceInfo::new(&format!("engine-{slot}"), &format!("10.0.0.{}:8000", slot + 1), ["llama"]);
        info.labels = vec![("zone".to_owned(), if slot < 2 { "a" } else { "b" }.to_owned())];
        Arc::new(TargetEntry::new(TargetId::new(slot, 1), Arc::new(info), 0, true, Arc::default()))
    };
    let targets: Vec<_> = (0..4).map(target).collect();
    let (_, reader) = prefix::new(prefix::Config::default());
    let fleet = Fleet::new([reader]);
    fleet.publish(targets.iter().cloned().map(Some).collect());

    let policy = NearFirst { zone: "a".to_owned(), surcharge: 4 };
    let strategy = Strategy::custom("near-first", Box::new(policy), &Settings::default());
    let mut scratch = Scratch::new(7);
    let mut running = Vec::new();
    for _ in 0..20 {
        running.push(plan(&PlanRequest::new("llama", &strategy), &fleet, &mut scratch)?);
    }
    for target in &targets {
        println!("{}: {} requests", target.name, target.cells.counters.in_flight().requests);
    }
    // Zone a is 4 requests ahead, and within a zone the load is even.
    let requests = targets.iter().map(|target| target.cells.counters.in_flight().requests);
    assert_eq!(requests.collect::<Vec<_>>(), [7, 7, 3, 3]);
    Ok(())
}
