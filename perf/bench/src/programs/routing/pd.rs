//! Prefill and decode apart: every static split against none and against the policy that parts the pool by itself, over
//! mixes from long prompts with short answers to the reverse; and a mix that flips.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use fairlead_sim::Profile;
use fairlead_sim::replay::{InstanceSpec, Outcome, Record, Setup, Slo, Summary, Workload, run};

use super::bars::Bar;
use super::mixes::{self, Kind, READING, Stretch, WRITING};
use crate::kit::sheet::{Metric, Sheet};

const GOODPUT: Metric = Metric::new("goodput", "share");
const REMOTE: Metric = Metric::new("remote_share", "share");

/// Ours, whole requests alone, and the fixed split.
const OURS: &str = "dynamic-pd-split";
const WHOLE: &str = "cost";
const FIXED: &str = "pd-split";
/// AIBrix's, on the best of the fixed splits.
const AIBRIX: &str = "pd";

/// Instances.
const INSTANCES: usize = 8;
/// A static split that is better than none by this much sets the bar.
const BETTER: f64 = 1.10;
/// Share of what is best that ours must reach.
const REACH: f64 = 0.98;
/// Share of requests that ours must then place apart.
const REMOTE_SHARE: f64 = 0.2;

/// An engine and what is asked of it.
#[derive(Clone, Copy, Debug)]
struct Shape {
    name: &'static str,
    /// Tokens of a step.
    budget: u32,
    /// Limit of the time per token, milliseconds.
    tpot_ms: f64,
}

/// Where prefill beside decoding is too much, where it never is, and where long steps make it so.
const SHAPES: [Shape; 3] = [
    Shape { name: "steps of 1,024 tokens, 25 ms a token", budget: 1_024, tpot_ms: 25.0 },
    Shape { name: "steps of 1,024 tokens, 50 ms a token", budget: 1_024, tpot_ms: 50.0 },
    Shape { name: "steps of 8,192 tokens, 50 ms a token", budget: 8_192, tpot_ms: 50.0 },
];
/// Shares of long prompts with short answers.
const MIXES: [f64; 6] = [1.0, 0.8, 0.5, 0.2, 0.05, 0.0];
/// Shares of what the instances can compute.
const LOADS: [f64; 2] = [0.8, 0.9];

impl Shape {
    fn profile(&self) -> Profile {
        Profile { token_budget: self.budget, ..Profile::h200_8b() }
    }

    fn setup(&self) -> Setup {
        let profile = self.profile();
        let spec = InstanceSpec { kv_blocks: (profile.kv_tokens / 512) as u32, profile };
        Setup { told_slo: Some(self.slo()), ..Setup::new(spec, INSTANCES) }
    }

    fn slo(&self) -> Slo {
        Slo { ttft: 2.0, tpot: self.tpot_ms / 1e3 }
    }

    /// Requests a second that keep the instances busy for so much of the time, decoding in batches of 32.
    fn rate(&self, reading: f64, load: f64) -> f64 {
        const BATCH: f64 = 32.0;
        let p = self.profile();
        let seconds = |kind: Kind| {
            let prefill = kind.prompt * (p.prefill + kind.prompt / 2.0 * p.attention);
            let context = kind.prompt + kind.answer / 2.0;
            let step = p.base + BATCH * (p.per_sequence + context * p.decode_context);
            prefill + kind.answer * step / BATCH
        };
        load * INSTANCES as f64 / (reading * seconds(READING) + (1.0 - reading) * seconds(WRITING))
    }

    fn stretch(&self, reading: f64, load: f64, seconds: f64) -> Stretch {
        Stretch { seconds, rate: self.rate(reading, load), reading }
    }
}

/// A mix at a load, and what became of it.
struct Cell {
    shape: Shape,
    load: f64,
    reading: f64,
    rate: f64,
    /// By instances that only prefill.
    fixed: Vec<(usize, Summary)>,
    whole: Summary,
    ours: Summary,
    aibrix: Summary,
}

impl Cell {
    fn name(&self) -> String {
        let Self { shape, load, reading, .. } = self;
        format!("{}, load {load}, {:.0} % reading", shape.name, reading * 100.0)
    }

    fn best(&self) -> (usize, &Summary) {
        let best = self.fixed.iter().rev().max_by(|a, b| a.1.goodput.total_cmp(&b.1.goodput));
        best.map_or((0, &self.whole), |(split, summary)| (*split, summary))
    }
}

/// A flip and how goodput went.
struct Flip {
    /// Seconds of each half.
    half: f64,
    /// Goodput of the last 5 s by the second, and the share placed apart: of ours, and of whole requests alone.
    ours: Vec<(f64, f64)>,
    whole: Vec<(f64, f64)>,
    /// Seconds after which each flip was got over.
    back: Vec<f64>,
}

/// All that is measured.
pub struct Pd {
    cells: Vec<Cell>,
    flip: Flip,
    seeds: u64,
}

/// Plays everything.
pub fn measure(quick: bool, seeds: u64) -> Pd {
    let seconds = if quick { 60.0 } else { 300.0 };
    let loads = if quick { &LOADS[..1] } else { &LOADS[..] };
    let mut wanted = Vec::new();
    for shape in SHAPES {
        for &load in loads {
            wanted.extend(MIXES.iter().map(|reading| (shape, load, *reading)));
        }
    }
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&(shape, load, reading)) = wanted.get(number) else { break };
                    let cell = cell(shape, load, reading, seconds, seeds);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((number, cell));
                }
            });
        }
    });
    let mut cells = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    cells.sort_by_key(|(number, _)| *number);
    let cells = cells.into_iter().map(|(_, cell)| cell).collect();
    Pd { cells, flip: flip(if quick { 40.0 } else { 90.0 }), seeds }
}

fn play(setup: &Setup, workload: &Arc<Workload>, policy: &str, seed: u64) -> Outcome {
    // The names are those of policies that there are.
    run(setup, workload, policy, seed).unwrap_or_default()
}

fn cell(shape: Shape, load: f64, reading: f64, seconds: f64, seeds: u64) -> Cell {
    let stretch = shape.stretch(reading, load, seconds);
    let workloads: Vec<_> = (1..=seeds).map(|seed| (seed, mixes::workload(&[stretch], seed))).collect();
    let mean = |prefillers: Option<usize>, policy: &str| {
        let setup = Setup { prefillers, ..shape.setup() };
        let summary = |(seed, workload): &(u64, Arc<Workload>)| {
            play(&setup, workload, policy, *seed).summary(&shape.slo())
        };
        Summary::mean(&workloads.iter().map(summary).collect::<Vec<_>>())
    };
    let fixed: Vec<_> = (1..INSTANCES).map(|split| (split, mean(Some(split), FIXED))).collect();
    let best =
        fixed.iter().rev().max_by(|a, b| a.1.goodput.total_cmp(&b.1.goodput)).map_or(1, |(split, _)| *split);
    Cell {
        shape,
        load,
        reading,
        rate: stretch.rate,
        fixed,
        whole: mean(None, WHOLE),
        ours: mean(None, OURS),
        aibrix: mean(Some(best), AIBRIX),
    }
}

/// From short prompts with long answers to the reverse and back, twice.
fn flip(half: f64) -> Flip {
    let shape = SHAPES[0];
    let stretches: Vec<Stretch> =
        [0.1, 0.8, 0.1, 0.8].iter().map(|reading| shape.stretch(*reading, 0.8, half)).collect();
    let workload = mixes::workload(&stretches, 1);
    let slo = shape.slo();
    let rolling = |policy: &str| -> Vec<(f64, f64)> {
        let outcome = play(&shape.setup(), &workload, policy, 1);
        let seconds = (half * stretches.len() as f64) as usize;
        (5..=seconds)
            .map(|until| {
                let until = until as f64;
                let within = |r: &&Record| r.arrival >= until - 5.0 && r.arrival < until;
                let last: Vec<&Record> = outcome.records.iter().filter(within).collect();
                let share = |of: fn(&Record, &Slo) -> bool| {
                    last.iter().filter(|r| of(r, &slo)).count() as f64 / last.len().max(1) as f64
                };
                (share(good), share(|r, _| r.prefill.is_some()))
            })
            .collect()
    };
    let ours = rolling(OURS);
    let back = (1..stretches.len()).map(|stretch| back(&ours, stretch, half)).collect();
    Flip { half, ours, whole: rolling(WHOLE), back }
}

fn good(record: &Record, slo: &Slo) -> bool {
    record.ttft().is_some_and(|t| t < slo.ttft) && record.tpot().is_none_or(|between| between < slo.tpot)
}

/// Seconds from a flip until goodput is at 95 % of what it is in the last half of the stretch.
fn back(rolling: &[(f64, f64)], stretch: usize, half: f64) -> f64 {
    // The first figure is of the seconds 0 to 5.
    let at = |second: f64| (second as usize).saturating_sub(5).min(rolling.len());
    let (from, to) = (at(stretch as f64 * half), at((stretch + 1) as f64 * half));
    let late = &rolling[(from + to) / 2..to];
    let steady = late.iter().map(|(goodput, _)| goodput).sum::<f64>() / late.len().max(1) as f64;
    // From the last second that was below it within the first half.
    let first = &rolling[from..(from + to) / 2];
    let below = first.iter().rposition(|(goodput, _)| *goodput < 0.95 * steady);
    below.map_or(0.0, |second| (second + 1) as f64)
}

impl Pd {
    /// `--json` rows.
    pub fn rows(&self, sheet: &mut Sheet) {
        for cell in &self.cells {
            let (name, (split, best)) = (cell.name(), cell.best());
            sheet.ours(&name, GOODPUT, cell.ours.goodput);
            if best.goodput >= cell.whole.goodput {
                sheet.baseline(&name, GOODPUT, &format!("{split}P:{}D", INSTANCES - split), best.goodput);
            } else {
                sheet.baseline(&name, GOODPUT, WHOLE, cell.whole.goodput);
            }
            sheet.ours(&name, REMOTE, cell.ours.remote_share);
        }
    }

    /// What ours has to reach.
    pub fn bars(&self) -> Vec<Bar> {
        let mut bars = Vec::new();
        let mut bar = |case: String, asks: String, ours: f64, limit: f64, passed: bool| {
            bars.push(Bar { case, asks, ours, limit, passed });
        };
        for cell in &self.cells {
            let ((split, best), whole, ours) = (cell.best(), &cell.whole, &cell.ours);
            if best.goodput >= BETTER * whole.goodput && best.goodput > 0.0 {
                let limit = REACH * best.goodput;
                let asks =
                    format!("goodput ≥ {REACH} × {split}P:{}D ({:.4})", INSTANCES - split, best.goodput);
                bar(cell.name(), asks, ours.goodput, limit, ours.goodput >= limit);
                let asks = format!("share placed apart > {REMOTE_SHARE}");
                bar(cell.name(), asks, ours.remote_share, REMOTE_SHARE, ours.remote_share > REMOTE_SHARE);
            } else if whole.goodput >= best.goodput && whole.goodput > 0.0 {
                let limit = REACH * whole.goodput;
                let asks = format!("goodput ≥ {REACH} × {WHOLE} ({:.4})", whole.goodput);
                bar(cell.name(), asks, ours.goodput, limit, ours.goodput >= limit);
            }
        }
        for (number, seconds) in self.flip.back.iter().enumerate() {
            let asks = "back at 95 % of the new steady goodput within 10 s".to_owned();
            bar(format!("flip {}", number + 1), asks, *seconds, 10.0, *seconds <= 10.0);
        }
        bars
    }

    /// The tables, for terminal and documentation.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let mut last = None;
        for cell in &self.cells {
            let title = format!("{}, load {}", cell.shape.name, cell.load);
            if last.as_ref() != Some(&title) {
                let _ = write!(
                    text,
                    "\n### {title}\n\n| reading | requests/s | best fixed split | `{WHOLE}` | `{OURS}` | placed apart | \
                     `{AIBRIX}` | TTFT mean, s | TPOT mean, ms |\n|---|---|---|---|---|---|---|---|---|\n"
                );
                last = Some(title);
            }
            let (split, best) = cell.best();
            let (ours, whole) = (&cell.ours, &cell.whole);
            let _ = writeln!(
                text,
                "| {:.0} % | {:.1} | {split}P:{}D {:.3} | {:.3} | **{:.3}** | {:.0} % | {:.3} | {:.2} / {:.2} / {:.2} | \
                 {:.1} / {:.1} / {:.1} |",
                cell.reading * 100.0,
                cell.rate,
                INSTANCES - split,
                best.goodput,
                whole.goodput,
                ours.goodput,
                ours.remote_share * 100.0,
                cell.aibrix.goodput,
                best.ttft_mean_s,
                whole.ttft_mean_s,
                ours.ttft_mean_s,
                best.tpot_mean_ms,
                whole.tpot_mean_ms,
                ours.tpot_mean_ms,
            );
        }
        let _ = writeln!(
            text,
            "\nGoodput, means of {} seed{}; TTFT and TPOT of the fixed split, of `{WHOLE}` and of `{OURS}`.",
            self.seeds,
            if self.seeds == 1 { "" } else { "s" }
        );
        let _ = writeln!(text, "\n### The flip\n");
        for (number, seconds) in self.flip.back.iter().enumerate() {
            let at = (number + 1) as f64 * self.flip.half;
            let _ =
                writeln!(text, "- at {at:.0} s: back at 95 % of the new steady goodput after {seconds:.0} s");
        }
        text
    }

    /// How goodput goes through the flip, as an SVG picture.
    pub fn plot(&self) -> String {
        const WIDTH: f64 = 900.0;
        const HEIGHT: f64 = 260.0;
        const LEFT: f64 = 50.0;
        const TOP: f64 = 30.0;
        let Flip { half, ours, whole, .. } = &self.flip;
        let seconds = 4.0 * half;
        let x = |second: f64| LEFT + second / seconds * WIDTH;
        let y = |share: f64| TOP + (1.0 - share) * HEIGHT;
        let line = |points: &[(f64, f64)], of: fn(&(f64, f64)) -> f64, style: &str| {
            let at =
                |(n, point): (usize, &(f64, f64))| format!("{:.1},{:.1}", x(n as f64 + 5.0), y(of(point)));
            let points: Vec<String> = points.iter().enumerate().map(at).collect();
            format!("<polyline fill=\"none\" {style} points=\"{}\"/>\n", points.join(" "))
        };
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
            LEFT + WIDTH + 20.0,
            TOP + HEIGHT + 60.0
        );
        for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
            let _ = write!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{1}\" y2=\"{1}\" stroke=\"#ddd\"/>\n\
                 <text x=\"{2}\" y=\"{3}\" text-anchor=\"end\">{share}</text>\n",
                LEFT + WIDTH,
                y(share),
                LEFT - 6.0,
                y(share) + 4.0
            );
        }
        for (number, mix) in ["10 % reading", "80 %", "10 %", "80 %"].iter().enumerate() {
            let from = number as f64 * half;
            let _ = write!(
                svg,
                "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{1}\" stroke=\"#999\" stroke-dasharray=\"4 3\"/>\n\
                 <text x=\"{2:.1}\" y=\"{3}\" text-anchor=\"middle\">{mix}</text>\n\
                 <text x=\"{0:.1}\" y=\"{4}\" text-anchor=\"middle\">{from:.0} s</text>\n",
                x(from),
                TOP + HEIGHT,
                x(from + half / 2.0),
                TOP - 10.0,
                TOP + HEIGHT + 18.0
            );
        }
        svg += &line(whole, |p| p.0, "stroke=\"#c33\" stroke-width=\"1.2\"");
        svg += &line(ours, |p| p.1, "stroke=\"#88a\" stroke-width=\"1\" stroke-dasharray=\"3 2\"");
        svg += &line(ours, |p| p.0, "stroke=\"#06c\" stroke-width=\"2\"");
        let _ = write!(
            svg,
            "<text x=\"{LEFT}\" y=\"{}\"><tspan fill=\"#06c\">goodput of the last 5 s, {OURS}</tspan>  \
             <tspan fill=\"#c33\">the same, {WHOLE}</tspan>  <tspan fill=\"#88a\">share placed apart</tspan></text>\n</svg>\n",
            TOP + HEIGHT + 44.0
        );
        svg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_is_counted_from_the_flip() {
        // Two stretches of 40 s; goodput falls at the flip and is back 7 s later.
        let mut rolling = vec![(1.0, 0.0); 76];
        rolling[35..42].fill((0.5, 0.0));
        assert_eq!(back(&rolling, 1, 40.0), 7.0);
        assert_eq!(back(&vec![(0.8, 0.0); 76], 1, 40.0), 0.0);
    }

    #[test]
    fn a_short_run_has_every_row_and_a_picture() {
        let shape = SHAPES[0];
        let cell = cell(shape, 0.5, 0.5, 5.0, 1);
        assert_eq!(cell.fixed.len(), INSTANCES - 1);
        let flip =
            Flip { half: 10.0, ours: vec![(1.0, 0.5); 36], whole: vec![(0.5, 0.0); 36], back: vec![0.0; 3] };
        let pd = Pd { cells: vec![cell], flip, seeds: 1 };
        assert!(pd.markdown().contains("50 %") && pd.plot().ends_with("</svg>\n"));
        assert_eq!(pd.bars().iter().filter(|bar| bar.case.starts_with("flip")).count(), 3);
    }
}
