//! What is left out, and in which order filters are given up.

use std::sync::Arc;

use super::LabelFilter;
use crate::fleet::tests_support::{empty_fleet, entry};
use crate::{
    EngineFigures, Fleet, Mode, NoPlan, PlanRequest, PolicyName, Scratch, Settings, Strategy, TargetEntry,
    plan,
};

/// A target's host and labels.
type Described<'a> = (&'a str, &'a [(&'a str, &'a str)]);

struct World {
    fleet: Fleet,
    targets: Vec<Arc<TargetEntry>>,
    strategy: Strategy,
}

impl World {
    /// Targets `0`, `1`, ... each on the host and with the labels given.
    fn new(targets: &[Described<'_>]) -> Self {
        let made = |(slot, (host, labels)): (usize, &Described<'_>)| {
            let mut target = (*entry(slot as u16, &format!("t{slot}"), "m")).clone_for_test();
            let info = Arc::make_mut(&mut target.info);
            info.host = (*host).into();
            info.labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
            Arc::new(target)
        };
        let targets: Vec<_> = targets.iter().enumerate().map(made).collect();
        let fleet = empty_fleet();
        fleet.publish(targets.iter().cloned().map(Some).collect());
        Self { fleet, targets, strategy: Strategy::new(PolicyName::Random, &Settings::default()) }
    }

    fn free(&self, target: usize, tokens: u64) {
        self.targets[target].cells.report(&EngineFigures {
            kv_total_tokens: Some(tokens),
            kv_usage: Some(0.0),
            ..EngineFigures::default()
        });
    }

    /// Which targets are picked over many seeds, or why none is.
    fn picked(&self, labels: Option<&str>, tried: &[usize]) -> Result<Vec<u16>, NoPlan> {
        let labels = labels.map(|text| LabelFilter::parse(text).unwrap());
        let tried: Vec<_> = tried.iter().map(|i| self.targets[*i].clone()).collect();
        let mut slots = Vec::new();
        for seed in 0..64 {
            let request = PlanRequest {
                prompt_tokens: 1_000,
                labels: labels.as_ref(),
                tried: &tried,
                now_us: 1_000_000,
                ..PlanRequest::new("m", &self.strategy)
            };
            slots.push(plan(&request, &self.fleet, &mut Scratch::new(seed))?.target().id.slot);
        }
        slots.sort_unstable();
        slots.dedup();
        Ok(slots)
    }
}

#[test]
fn labels_are_never_given_up() {
    let world = World::new(&[("a", &[("tier", "gold")]), ("b", &[("tier", "free")]), ("c", &[])]);
    assert_eq!(world.picked(None, &[]), Ok(vec![0, 1, 2]));
    assert_eq!(world.picked(Some("tier=gold"), &[]), Ok(vec![0]));
    assert_eq!(world.picked(Some("tier!=gold"), &[]), Ok(vec![1, 2]));
    assert_eq!(world.picked(Some("tier=gold"), &[0]), Err(NoPlan::AllTried));
    assert_eq!(world.picked(Some("tier=none"), &[]), Err(NoPlan::NoneMatches));
    // Its circuit is open, but no other target matches.
    world.targets[0].cells.connect_failed(999_999);
    assert_eq!(world.picked(Some("tier=gold"), &[]), Ok(vec![0]));
    assert_eq!(world.picked(Some("tier"), &[]), Ok(vec![1]));
    let mut asleep = world.targets[0].clone_for_test();
    asleep.ready = false;
    world.fleet.publish(vec![Some(Arc::new(asleep)), Some(world.targets[1].clone())]);
    assert_eq!(world.picked(Some("tier=gold"), &[]), Err(NoPlan::NoneReady));
}

#[test]
fn a_full_target_is_skipped_while_another_has_room() {
    let world = World::new(&[("a", &[]), ("b", &[]), ("c", &[])]);
    world.free(0, 999);
    world.free(1, 1_000);
    assert_eq!(world.picked(None, &[]), Ok(vec![1, 2]), "unknown room is room");
    world.free(1, 1);
    assert_eq!(world.picked(None, &[]), Ok(vec![2]));
    world.free(2, 10);
    assert_eq!(world.picked(None, &[]), Ok(vec![0, 1, 2]), "all are full: all are candidates");
    world.free(1, 5_000);
    assert_eq!(world.picked(None, &[]), Ok(vec![1]));
    world.fleet.set_mode(Mode::Stale);
    assert_eq!(world.picked(None, &[]), Ok(vec![0, 1, 2]), "old reports say nothing");
}

#[test]
fn room_is_given_up_before_the_host_and_the_circuit_last() {
    // 0 and 1 on one host, 2 on another, 3 on a third.
    let world = World::new(&[("a", &[]), ("a", &[]), ("b", &[]), ("c", &[])]);
    world.free(2, 10);
    world.targets[3].cells.connect_failed(999_999);
    assert_eq!(world.picked(None, &[0]), Ok(vec![2]), "full, but on another host");
    assert_eq!(world.picked(None, &[0, 2]), Ok(vec![1]), "the host that failed, before an open circuit");
    world.free(1, 10);
    assert_eq!(world.picked(None, &[0, 2]), Ok(vec![1]), "even when it is full");
    assert_eq!(world.picked(None, &[0, 1, 2]), Ok(vec![3]));
    assert_eq!(world.picked(None, &[0, 1, 2, 3]), Err(NoPlan::AllTried));
}

#[test]
fn an_adapter_is_served_where_it_is_loaded() {
    let world = World::new(&[("a", &[]), ("b", &[])]);
    let mut with = world.targets[1].clone_for_test();
    let adapter =
        fairlead_wire::msg::ModelInfo { name: "lora".into(), max_model_len: None, parent: Some("m".into()) };
    Arc::make_mut(&mut with.info).models.push(adapter);
    world.fleet.publish(vec![Some(world.targets[0].clone()), Some(Arc::new(with))]);
    for seed in 0..20 {
        let request = PlanRequest::new("lora", &world.strategy);
        let plan = plan(&request, &world.fleet, &mut Scratch::new(seed)).unwrap();
        assert_eq!(plan.target().id.slot, 1);
    }
}
