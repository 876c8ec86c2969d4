//! What targets' work costs in time: what the gateways have learnt, put together and told to all.
//!
//! A gateway tells what it has learnt of a target with the number of observations since it last did. The truth keeps a
//! mean of the logarithms by that weight; what it knew before weighs as [`MEMORY`] observations at most, so half of it
//! is forgotten with every 0.7 × [`MEMORY`] new ones. Observations of prefill and of decoding are apart.
//!
//! A target of which nobody has told anything yet is taken to be like those of its *class*: same model, kind of engine
//! and GPU labels, alive or gone. So an engine that restarts is known at once.
//!
//! What is known lives as long as the target; through an agent's absence, up to `linger_us`, as its holdings do. A
//! change of more than [`STEP`] is told with the next heartbeat, as an operation, so that a gateway's state says of
//! costs too what the truth's says.

use std::sync::Arc;

use ahash::AHashMap;
use fairlead_wire::TargetId;
use fairlead_wire::msg::{Costs, InstanceInfo, Op, TargetCosts};

use super::Truth;
use super::fleet::Fleet;

/// Observations that what was known before counts for at most.
const MEMORY: f64 = 512.0;
/// Logarithm by which a constant must have moved to be told.
const STEP: f64 = 0.02;
/// Classes remembered; of more, the one goes that was told of longest ago.
const MAX_CLASSES: usize = 256;

/// Constants by the observations that they come from: prefill's, and decoding's.
type Parts = [[f64; 3]; 2];

fn parts(costs: &Costs) -> Parts {
    let logs = |numbers: [f32; 3]| numbers.map(|number| f64::from(number).ln());
    [logs([costs.prefill, costs.attention, costs.chunk]), logs([costs.step, costs.sequence, costs.context])]
}

/// Means over what gateways have told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Merged {
    logs: Parts,
    /// Observations behind each part; of none, its numbers mean nothing.
    weights: [f64; 2],
}

impl Merged {
    fn take(&mut self, told: &Costs) {
        let counts = [told.prefills, told.decodes];
        for (part, told) in parts(told).into_iter().enumerate() {
            let new = f64::from(counts[part]).min(MEMORY);
            if new == 0.0 {
                continue;
            }
            let (mean, weight) = (&mut self.logs[part], &mut self.weights[part]);
            for (mean, told) in mean.iter_mut().zip(told) {
                *mean += (told - *mean) * new / (*weight + new);
            }
            *weight = (*weight + new).min(MEMORY);
        }
    }

    /// With the parts of `other` where there is no observation of the own.
    fn or(mut self, other: Option<&Self>) -> Self {
        let Some(other) = other else { return self };
        for part in 0..2 {
            if self.weights[part] == 0.0 && other.weights[part] > 0.0 {
                self.logs[part] = other.logs[part];
                // Better than nothing, and no more.
                self.weights[part] = 1.0;
            }
        }
        self
    }

    /// As it is told; `None` while nothing is known. Of a part that is not known the numbers are ones.
    fn costs(&self) -> Option<Costs> {
        if self.weights == [0.0; 2] {
            return None;
        }
        let [[prefill, attention, chunk], [step, sequence, context]] =
            self.logs.map(|part| part.map(|log| log.exp() as f32));
        let [prefills, decodes] = self.weights.map(|weight| weight as u32);
        Some(Costs { prefill, attention, step, sequence, context, chunk, prefills, decodes })
    }
}

/// Whether `now` says something that `told` did not.
fn is_news(told: Option<&Costs>, now: &Costs) -> bool {
    let Some(told) = told else { return true };
    let counts = [(told.prefills, now.prefills), (told.decodes, now.decodes)];
    let mut both = parts(told).into_iter().zip(parts(now)).zip(counts);
    both.any(|((told, now), (before, count))| {
        (before == 0) != (count == 0) || told.iter().zip(now).any(|(told, now)| (told - now).abs() > STEP)
    })
}

/// What a target's costs are known by.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    class: Arc<str>,
    own: Merged,
    /// As the gateways were told.
    told: Option<Costs>,
}

impl Known {
    pub(crate) fn told(&self) -> Option<Costs> {
        self.told
    }

    /// The target is described otherwise than before.
    pub(crate) fn described(&mut self, info: &InstanceInfo) {
        self.class = class(info);
    }
}

/// What is known by class.
#[derive(Debug, Default)]
pub(super) struct Classes {
    known: AHashMap<Arc<str>, (Merged, u64)>,
    /// Something was told since targets were last looked through.
    news: bool,
}

impl Classes {
    /// What is known of a target that has just come.
    pub(super) fn known(&self, info: &InstanceInfo) -> Known {
        let class = class(info);
        let like = self.known.get(&class).map(|(merged, _)| merged);
        Known { told: Merged::default().or(like).costs(), class, own: Merged::default() }
    }

    fn take(&mut self, class: &Arc<str>, told: &Costs, now_us: u64) {
        if !self.known.contains_key(class) && self.known.len() >= MAX_CLASSES {
            let oldest =
                self.known.iter().min_by_key(|(_, (_, at_us))| *at_us).map(|(class, _)| class.clone());
            oldest.and_then(|class| self.known.remove(&class));
        }
        let (merged, at_us) = self.known.entry(class.clone()).or_default();
        merged.take(told);
        *at_us = now_us;
        self.news = true;
    }
}

/// Name of the model that an instance has loaded: the first that is no adapter.
pub(super) fn base_model(info: &InstanceInfo) -> Option<&str> {
    let base = info.models.iter().find(|model| model.parent.is_none()).or(info.models.first());
    base.map(|model| model.name.as_str())
}

/// Targets alike in this should cost alike.
fn class(info: &InstanceInfo) -> Arc<str> {
    let mut class = format!("{:?}\0{}", info.engine, base_model(info).unwrap_or_default());
    let of_hardware = |key: &str| {
        let key = key.to_ascii_lowercase();
        ["gpu", "accelerator", "hardware"].iter().any(|word| key.contains(word))
    };
    let mut labels: Vec<_> = info.labels.iter().filter(|(key, _)| of_hardware(key)).collect();
    labels.sort_unstable();
    for (key, value) in labels {
        class.push_str(&format!("\0{key}={value}"));
    }
    class.into()
}

impl Truth {
    /// A gateway says what it has learnt. Targets that are gone teach nothing.
    pub(super) fn learnt(&mut self, items: &[TargetCosts]) {
        for told in items {
            let Some(target) = self.fleet.get_mut(TargetId::unpack(told.target)) else { continue };
            target.costs.own.take(&told.costs);
            self.classes.take(&target.costs.class, &told.costs, self.now_us);
        }
    }

    /// Tells what has changed.
    pub(super) fn tell_costs(&mut self) {
        if !std::mem::take(&mut self.classes.news) {
            return;
        }
        for told in news(&mut self.fleet, &self.classes) {
            self.push(Op::Costs(told));
        }
    }
}

fn news(fleet: &mut Fleet, classes: &Classes) -> Vec<TargetCosts> {
    let mut news = Vec::new();
    for target in fleet.live_mut() {
        let like = classes.known.get(&target.costs.class).map(|(merged, _)| merged);
        let Some(costs) = target.costs.own.or(like).costs() else { continue };
        if is_news(target.costs.told.as_ref(), &costs) {
            target.costs.told = Some(costs);
            news.push(TargetCosts { target: target.id.pack(), costs });
        }
    }
    news
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail so")]
mod tests {
    use fairlead_wire::msg::{EngineKind, ModelInfo, ServingRole};

    use super::*;

    fn told(prefill: f32, prefills: u32, step: f32, decodes: u32) -> Costs {
        Costs {
            prefill,
            attention: 0.001,
            step,
            sequence: 30.0,
            context: 0.02,
            chunk: 1_024.0,
            prefills,
            decodes,
        }
    }

    #[test]
    fn means_are_by_weight_and_of_logarithms() {
        // Messages as (prefill, observations); then the mean.
        let cases: [(&[(f32, u32)], f32); 5] = [
            (&[(40.0, 10)], 40.0),
            (&[(20.0, 10), (80.0, 10)], 40.0),
            (&[(20.0, 30), (80.0, 10)], 28.28),
            (&[(20.0, 10), (999.0, 0)], 20.0),
            // A claim of many counts for as much as all that was known before, and no more.
            (&[(20.0, 5_000), (80.0, 1 << 24)], 40.0),
        ];
        for (messages, want) in cases {
            let mut merged = Merged::default();
            messages.iter().for_each(|&(prefill, count)| merged.take(&told(prefill, count, 6_000.0, 0)));
            let costs = merged.costs().unwrap();
            assert!(
                (costs.prefill / want - 1.0).abs() < 0.001,
                "{messages:?}: {} is not {want}",
                costs.prefill
            );
            assert_eq!(costs.decodes, 0);
        }
        assert_eq!(Merged::default().costs(), None);
    }

    #[test]
    fn what_was_known_is_forgotten_by_halves() {
        let mut merged = Merged::default();
        merged.take(&told(20.0, 10_000, 6_000.0, 10_000));
        let mut observations = 0;
        while merged.costs().unwrap().prefill < 40.0 {
            merged.take(&told(80.0, 10, 6_000.0, 0));
            observations += 10;
        }
        assert!((340..380).contains(&observations), "{observations}");
    }

    #[test]
    fn each_part_is_taken_from_whoever_knows_it() {
        let (mut own, mut class) = (Merged::default(), Merged::default());
        own.take(&told(20.0, 50, 1.0, 0));
        class.take(&told(99.0, 50, 7_000.0, 60));
        let costs = own.or(Some(&class)).costs().unwrap();
        assert_eq!((costs.prefill.round(), costs.prefills), (20.0, 50));
        assert_eq!((costs.step.round(), costs.decodes), (7_000.0, 1));
        assert_eq!(own.or(None).costs().unwrap().decodes, 0);
        assert!(is_news(own.or(None).costs().as_ref(), &costs), "a part that was unknown");
        assert!(!is_news(Some(&costs), &Costs { prefill: 20.3, ..costs }));
        assert!(is_news(Some(&costs), &Costs { prefill: 20.5, ..costs }));
    }

    fn instance(engine: EngineKind, base: &str, labels: &[(&str, &str)]) -> InstanceInfo {
        let model = |name: &str, parent: Option<&str>| ModelInfo {
            name: name.into(),
            max_model_len: None,
            parent: parent.map(Into::into),
        };
        InstanceInfo {
            name: "e".into(),
            address: "h:1".into(),
            host: "h".into(),
            incarnation: 1,
            engine,
            engine_version: String::new(),
            models: vec![model("adapter", Some(base)), model(base, None)],
            role: ServingRole::Both,
            transfer: None,
            dp_ranks: 1,
            block_size: None,
            kv_blocks: None,
            max_num_seqs: None,
            labels: labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
        }
    }

    #[test]
    fn a_class_is_model_engine_and_hardware() {
        let of = |labels: &[(&str, &str)]| class(&instance(EngineKind::Vllm, "m", labels));
        assert_eq!(of(&[("zone", "a")]), of(&[("zone", "b")]));
        assert_eq!(
            of(&[("gpu", "h200"), ("Accelerator", "x")]),
            of(&[("Accelerator", "x"), ("gpu", "h200")])
        );
        assert_ne!(of(&[("nvidia.com/gpu.product", "h200")]), of(&[("nvidia.com/gpu.product", "l40s")]));
        assert_ne!(of(&[]), class(&instance(EngineKind::Sglang, "m", &[])));
        assert_ne!(of(&[]), class(&instance(EngineKind::Vllm, "n", &[])));
    }

    #[test]
    fn classes_are_bounded() {
        let mut classes = Classes::default();
        for i in 0..2 * MAX_CLASSES {
            classes.take(&format!("{i}").into(), &told(20.0, 1, 1.0, 1), i as u64);
        }
        assert_eq!(classes.known.len(), MAX_CLASSES);
        assert!(classes.known.contains_key("511") && !classes.known.contains_key("255"));
    }
}
