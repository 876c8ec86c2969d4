//! What `cost` has to reach, and whether it does.

use fairlead_sim::replay::Summary;

use super::cases::{Case, LOADS, Part};
use super::measure::{Measured, ORACLE};

/// Ours.
pub const OURS: &str = "cost";
/// Goodputs this close are equal.
const TIE: f64 = 0.005;
/// Goodput of `marginal` below which coding sessions are past the cliff.
const CLIFF: f64 = 0.75;

/// One bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Where.
    pub case: String,
    /// What is asked.
    pub asks: String,
    /// Our figure.
    pub ours: f64,
    /// What it may be, at most or at least.
    pub limit: f64,
    /// Whether it reaches that.
    pub passed: bool,
}

impl Bar {
    fn at_most(case: &Case, asks: impl Into<String>, ours: f64, limit: f64) -> Self {
        Self { case: case.name.clone(), asks: asks.into(), ours, limit, passed: ours <= limit }
    }

    fn at_least(case: &Case, asks: impl Into<String>, ours: f64, limit: f64) -> Self {
        Self { case: case.name.clone(), asks: asks.into(), ours, limit, passed: ours >= limit }
    }
}

/// All bars that the measured cases have.
pub fn bars(measured: &[Measured<'_>]) -> Vec<Bar> {
    let mut bars = Vec::new();
    for m in measured {
        let Some(ours) = m.mean(OURS) else { continue };
        if let Part::Load { load, gateways } = m.case.part {
            bars.extend(goodput(m, &ours));
            match (LOADS[load].over_oracle, &m.oracle) {
                (Some(times), Some(oracle)) if gateways == 1 => {
                    let asks = format!("mean TTFT ≤ {times} × {ORACLE} ({:.3} s)", oracle.ttft_mean_s);
                    bars.push(Bar::at_most(m.case, asks, ours.ttft_mean_s, times * oracle.ttft_mean_s));
                    bars.extend(tail(m, &ours, oracle));
                }
                (None, _) if gateways == 1 => bars.extend(plain(m, &ours)),
                _ => {}
            }
            bars.extend(spread(m, measured, &ours));
        }
    }
    if let Some(m) = cliff(measured)
        && let Some(ours) = m.mean(OURS)
    {
        bars.extend(goodput(m, &ours));
    }
    bars
}

/// The load at which `marginal` falls off first.
pub fn cliff<'m, 'c>(measured: &'m [Measured<'c>]) -> Option<&'m Measured<'c>> {
    let mut sessions = measured.iter().filter(|m| m.case.part == Part::Cliff);
    sessions.find(|m| m.mean("marginal").is_some_and(|s| s.goodput < CLIFF))
}

/// The best of the others by a figure, least is best.
pub fn best<'m>(m: &'m Measured<'_>, figure: impl Fn(&Summary) -> f64) -> Option<(&'m str, f64)> {
    let others = m.means().filter(|(name, _)| *name != OURS).map(|(name, s)| (name, figure(&s)));
    others.min_by(|a, b| a.1.total_cmp(&b.1))
}

fn goodput(m: &Measured<'_>, ours: &Summary) -> Option<Bar> {
    let (name, other) = best(m, |s| -s.goodput)?;
    let asks = format!("goodput ≥ every other's less {TIE} (best: {name}, {:.4})", -other);
    Some(Bar::at_least(m.case, asks, ours.goodput, -other - TIE))
}

/// 99 % against those that are good in the mean.
fn tail(m: &Measured<'_>, ours: &Summary, oracle: &Summary) -> Option<Bar> {
    let good = |s: &Summary| s.ttft_mean_s <= 1.25 * oracle.ttft_mean_s;
    let (name, other) = best(m, |s| if good(s) { s.ttft_p99_s } else { f64::INFINITY })?;
    let asks = if other.is_finite() {
        format!("p99 TTFT ≤ 1.10 × the best of those with mean ≤ 1.25 × {ORACLE} ({name}, {other:.3} s)")
    } else {
        format!("p99 TTFT ≤ 1.10 × the best of those with mean ≤ 1.25 × {ORACLE} (there is no other)")
    };
    Some(Bar::at_most(m.case, asks, ours.ttft_p99_s, 1.10 * other))
}

/// Nothing is asked twice: as good as the queue alone.
fn plain(m: &Measured<'_>, ours: &Summary) -> Vec<Bar> {
    const QUEUE: &str = "least-queued-tokens";
    let Some(queue) = m.mean(QUEUE) else { return Vec::new() };
    let (mean, p99) = (queue.ttft_mean_s, queue.ttft_p99_s);
    let asks = |what: &str, figure: f64| format!("{what} TTFT ≤ 1.05 × {QUEUE} ({figure:.3} s)");
    vec![
        Bar::at_most(m.case, asks("mean", mean), ours.ttft_mean_s, 1.05 * mean),
        Bar::at_most(m.case, asks("p99", p99), ours.ttft_p99_s, 1.05 * p99),
    ]
}

/// Four gateways decide as one does.
fn spread(m: &Measured<'_>, measured: &[Measured<'_>], ours: &Summary) -> Option<Bar> {
    let Part::Load { load, gateways: 4 } = m.case.part else { return None };
    let alone = measured.iter().find(|m| m.case.part == Part::Load { load, gateways: 1 })?;
    let alone = alone.mean(OURS)?.ttft_mean_s;
    let change = (ours.ttft_mean_s / alone - 1.0).abs();
    let asks =
        format!("mean TTFT changes by < 3 % from one gateway ({alone:.3} s to {:.3} s)", ours.ttft_mean_s);
    Some(Bar::at_most(m.case, asks, change, 0.03))
}

/// The bars as a table, and how many are missed.
pub fn shown(bars: &[Bar]) -> (String, usize) {
    let mut text = String::new();
    for Bar { case, asks, ours, limit, passed } in bars {
        let verdict = if *passed { "pass" } else { "FAIL" };
        text += &format!("{verdict}  {case:<32}  {ours:>8.4} against {limit:>8.4}  {asks}\n");
    }
    (text, bars.iter().filter(|bar| !bar.passed).count())
}

#[cfg(test)]
mod tests {
    use fairlead_sim::Profile;
    use fairlead_sim::replay::{InstanceSpec, Play, Setup, Workload};
    use fairlead_sim::trace::Trace;
    use std::sync::Arc;

    use super::*;

    fn case(part: Part) -> Case {
        let spec = InstanceSpec { profile: Profile::h200_8b(), kv_blocks: 1 };
        let nothing = Trace { talks: Vec::new(), left_out: 0 };
        let workload = Arc::new(Workload::new(&nothing, &Play::default()));
        let setup = Setup::new(spec, 1);
        Case { name: format!("{part:?}"), part, setup, workload, planned: false, policies: None }
    }

    fn figures(mean: f64, p99: f64, goodput: f64) -> Summary {
        Summary { ttft_mean_s: mean, ttft_p99_s: p99, goodput, ..Summary::default() }
    }

    fn measured<'c>(case: &'c Case, runs: &[(&str, Summary)], oracle: Option<Summary>) -> Measured<'c> {
        let runs = runs.iter().map(|(name, s)| ((*name).to_owned(), vec![s.clone()])).collect();
        Measured { case, runs, oracle }
    }

    /// Which bars are reached, in order.
    fn verdicts(measured: &[Measured<'_>]) -> Vec<bool> {
        bars(measured).iter().map(|bar| bar.passed).collect()
    }

    #[test]
    fn a_load_with_prefixes_has_goodput_mean_and_tail() {
        let case = case(Part::Load { load: 0, gateways: 1 });
        let oracle = Some(figures(1.0, 4.0, 0.95));
        let check = |ours: Summary, other: Summary| {
            verdicts(&[measured(&case, &[("cost", ours), ("other", other)], oracle.clone())])
        };
        assert_eq!(check(figures(1.05, 5.5, 0.9), figures(1.2, 5.0, 0.905)), [true, true, true]);
        assert_eq!(check(figures(1.06, 5.6, 0.9), figures(1.2, 5.0, 0.906)), [false, false, false]);
        // Who is bad in the mean sets no bar for the tail.
        assert_eq!(check(figures(1.05, 5.6, 0.9), figures(1.3, 5.0, 0.9)), [true, true, true]);
    }

    #[test]
    fn without_prefixes_the_queue_is_the_measure() {
        let case = case(Part::Load { load: 4, gateways: 1 });
        let queue = ("least-queued-tokens", figures(1.0, 2.0, 1.0));
        assert_eq!(
            verdicts(&[measured(&case, &[("cost", figures(1.05, 2.2, 1.0)), queue], None)]),
            [true, true, false]
        );
    }

    #[test]
    fn four_gateways_change_little() {
        let (one, four) =
            (case(Part::Load { load: 2, gateways: 1 }), case(Part::Load { load: 2, gateways: 4 }));
        let of = |case, mean| measured(case, &[("cost", figures(mean, 1.0, 1.0))], None);
        assert_eq!(verdicts(&[of(&one, 1.0), of(&four, 1.02)]), [true]);
        assert_eq!(verdicts(&[of(&one, 1.0), of(&four, 0.96)]), [false]);
    }

    #[test]
    fn the_cliff_is_where_marginal_falls() {
        let case = case(Part::Cliff);
        let of = |marginal, ours| {
            let runs = [("cost", figures(1.0, 1.0, ours)), ("marginal", figures(1.0, 1.0, marginal))];
            measured(&case, &runs, None)
        };
        assert_eq!(verdicts(&[of(0.9, 0.1), of(0.75, 0.1), of(0.7, 0.72), of(0.5, 0.1)]), [true]);
        assert_eq!(verdicts(&[of(0.9, 0.9), of(0.7, 0.69), of(0.5, 0.9)]), [false]);
    }
}
