//! The tables: for the terminal, for `--json` and for the documentation.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use fairlead_sim::replay::Summary;

use super::bars::{self, Bar, OURS};
use super::cases::{LOADS, Part};
use super::measure::{Measured, ORACLE};
use crate::kit::sheet::{Metric, Sheet};

const MEAN: Metric = Metric::new("ttft_mean_s", "s");
const P99: Metric = Metric::new("ttft_p99_s", "s");
const TPOT: Metric = Metric::new("tpot_mean_ms", "ms");
const HITS: Metric = Metric::new("hit_ratio", "share");
const GOODPUT: Metric = Metric::new("goodput", "share");
const RATE: Metric = Metric::new("throughput_rps", "1/s");

/// Between these lines of the documentation stands what is measured.
const BEGIN: &str = "<!-- perf/run routing --write: begin -->";
const END: &str = "<!-- perf/run routing --write: end -->";

/// `--json` rows: `cost` against the best of the others by each figure, and against the oracle.
pub fn rows(measured: &[Measured<'_>], sheet: &mut Sheet) {
    /// A metric, the figure, and whether more of it is better.
    type Figure = (Metric, fn(&Summary) -> f64, bool);
    const FIGURES: [Figure; 6] = [
        (MEAN, |s| s.ttft_mean_s, false),
        (P99, |s| s.ttft_p99_s, false),
        (TPOT, |s| s.tpot_mean_ms, false),
        (HITS, |s| s.hit_ratio, true),
        (GOODPUT, |s| s.goodput, true),
        (RATE, |s| s.throughput_rps, true),
    ];
    for m in measured {
        let Some((_, ours)) = m.runs.iter().find(|(name, _)| name == OURS) else { continue };
        for (metric, figure, more) in FIGURES {
            let sign = if more { -1.0 } else { 1.0 };
            ours.iter().for_each(|run| sheet.ours(&m.case.name, metric, figure(run)));
            if let Some((name, best)) = bars::best(m, |s| sign * figure(s)) {
                sheet.baseline(&m.case.name, metric, name, sign * best);
            }
        }
        if let Some(oracle) = &m.oracle {
            let case = format!("{}, beside the {ORACLE}", m.case.name);
            for (metric, figure, _) in [FIGURES[0], FIGURES[1], FIGURES[4]] {
                ours.iter().for_each(|run| sheet.ours(&case, metric, figure(run)));
                sheet.baseline(&case, metric, ORACLE, figure(oracle));
            }
        }
    }
}

/// Policies of a case, the best mean TTFT first; the oracle at its place.
fn ranked<'m>(m: &'m Measured<'_>) -> Vec<(&'m str, Summary)> {
    let oracle = m.oracle.iter().map(|figures| (ORACLE, figures.clone()));
    let mut ranked: Vec<_> = m.means().chain(oracle).collect();
    ranked.sort_by(|a, b| a.1.ttft_mean_s.total_cmp(&b.1.ttft_mean_s));
    ranked
}

/// All policies of every case, for the terminal.
pub fn terminal(measured: &[Measured<'_>]) -> String {
    let mut text = String::new();
    for m in measured {
        let _ = writeln!(text, "{}", m.case.name);
        let _ = writeln!(
            text,
            "  {:22}  TTFT mean      p50    p99 s  TPOT ms    hits  goodput   req/s  failed",
            "policy"
        );
        for (name, s) in ranked(m) {
            let _ = writeln!(
                text,
                "  {name:22}  {:9.3} {:8.3} {:8.3}  {:7.1}  {:6.4}   {:6.4}  {:6.2}  {:6}",
                s.ttft_mean_s,
                s.ttft_p50_s,
                s.ttft_p99_s,
                s.tpot_mean_ms,
                s.hit_ratio,
                s.goodput,
                s.throughput_rps,
                s.failed
            );
        }
        text.push('\n');
    }
    text
}

/// Seconds in three digits.
fn seconds(s: f64) -> String {
    match s {
        s if s < 1.0 => format!("{s:.3}"),
        s if s < 10.0 => format!("{s:.2}"),
        s if s < 100.0 => format!("{s:.1}"),
        s => format!("{s:.0}"),
    }
}

fn own(name: &str) -> String {
    if name == OURS || name == ORACLE { format!("**{name}**") } else { name.to_owned() }
}

/// The part of the documentation that is measured.
pub fn markdown(measured: &[Measured<'_>], bars: &[Bar], seeds: u64) -> String {
    let mut text = bars_of("`cost`", bars, seeds);
    for m in measured {
        if matches!(m.case.part, Part::Load { gateways: 1, .. }) {
            load(m, &mut text);
        }
    }
    gateways(measured, &mut text);
    let part = |part: Part| measured.iter().filter(|m| m.case.part == part).collect::<Vec<_>>();
    grid("Older state, four gateways, conversation 3.0", &part(Part::Age), &mut text);
    let marked = bars::cliff(measured).map(|m| m.case.name.clone());
    grid("Coding sessions, eight instances of 6,000 blocks", &part(Part::Cliff), &mut text);
    if let Some(cliff) = marked {
        let _ = writeln!(text, "\nThe cliff is at *{cliff}*: there `marginal` falls below 0.75 first.");
    }
    grid("Other engines", &part(Part::Sensitivity), &mut text);
    grid("Engines that cost other than believed", &part(Part::Belief), &mut text);
    closed(&part(Part::Loop), &mut text);
    text
}

/// What a policy has to reach, and whether it does.
pub fn bars_of(policy: &str, bars: &[Bar], seeds: u64) -> String {
    let mut text =
        format!("## The bars\n\n| | case | asked of {policy} | {policy} | limit |\n|---|---|---|---|---|\n");
    for Bar { case, asks, ours, limit, passed } in bars {
        let verdict = if *passed { "✓" } else { "**missed**" };
        let _ = writeln!(text, "| {verdict} | {case} | {asks} | {ours:.4} | {limit:.4} |");
    }
    let missed = bars.iter().filter(|bar| !bar.passed).count();
    let _ =
        writeln!(text, "\n{} of {} are reached. Means of {seeds} seeds.", bars.len() - missed, bars.len());
    text
}

fn load(m: &Measured<'_>, text: &mut String) {
    let requests = m.means().next().map_or(0, |(_, s)| s.requests);
    let Part::Load { load, .. } = m.case.part else { return };
    let rate = LOADS[load].source.rate(LOADS[load].speed);
    let _ = writeln!(text, "\n## {}: {rate:.1} requests/s, {requests} counted\n", m.case.name);
    text.push_str(
        "| policy | TTFT mean | p50 | p99, s | TPOT, ms | hits | goodput |\n|---|---|---|---|---|---|---|\n",
    );
    for (name, s) in ranked(m) {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {:.1} | {:.3} | {:.3} |",
            own(name),
            seconds(s.ttft_mean_s),
            seconds(s.ttft_p50_s),
            seconds(s.ttft_p99_s),
            s.tpot_mean_ms,
            s.hit_ratio,
            s.goodput
        );
    }
}

/// Policies × numbers of gateways.
fn gateways(measured: &[Measured<'_>], text: &mut String) {
    for (number, load) in LOADS.iter().enumerate() {
        let of = |m: &&Measured<'_>| matches!(m.case.part, Part::Load { load, .. } if load == number);
        let cases: Vec<_> = measured.iter().filter(of).collect();
        if cases.len() > 1 {
            grid(&format!("{}: one, two and four gateways, state 1 ms old", load.name), &cases, text);
        }
    }
}

/// Policies × cases: goodput and mean TTFT.
fn grid(title: &str, cases: &[&Measured<'_>], text: &mut String) {
    let Some(first) = cases.first() else { return };
    let _ = writeln!(text, "\n## {title}\n\nGoodput, mean TTFT in seconds.\n");
    let names: Vec<&str> = cases.iter().map(|m| m.case.name.as_str()).collect();
    let _ = writeln!(text, "| policy | {} |\n|---|{}", names.join(" | "), "---|".repeat(cases.len()));
    for (name, _) in ranked(first) {
        if name == ORACLE {
            continue;
        }
        let cell = |m: &&Measured<'_>| {
            let show = |s: Summary| format!("{:.3}, {}", s.goodput, seconds(s.ttft_mean_s));
            m.mean(name).map_or_else(|| "–".to_owned(), show)
        };
        let cells: Vec<String> = cases.iter().map(cell).collect();
        let _ = writeln!(text, "| {} | {} |", own(name), cells.join(" | "));
    }
}

/// The closed loop against round robin, in the form of the published table.
fn closed(cases: &[&Measured<'_>], text: &mut String) {
    const NONE: &str = "round-robin";
    let Some(first) = cases.first() else { return };
    text.push_str("\n## Conversations in a closed loop, five instances, with think time\n\n");
    text.push_str("Requests per second, mean TTFT and mean TPOT: of round robin in figures, of the others by how much they differ.\n\n");
    let names: Vec<&str> = cases.iter().map(|m| m.case.name.as_str()).collect();
    let _ = writeln!(text, "| policy | {} |\n|---|{}", names.join(" | "), "---|".repeat(cases.len()));
    for (name, _) in ranked(first) {
        let cell = |m: &&Measured<'_>| {
            let (Some(s), Some(none)) = (m.mean(name), m.mean(NONE)) else { return "–".to_owned() };
            if name == NONE {
                let (rate, ttft, tpot) = (s.throughput_rps, s.ttft_mean_s * 1e3, s.tpot_mean_ms);
                return format!("{rate:.2}/s, {ttft:.0} ms, {tpot:.1} ms");
            }
            let change = |of: fn(&Summary) -> f64| 100.0 * (of(&s) / of(&none) - 1.0);
            let (rate, ttft) = (change(|s| s.throughput_rps), change(|s| s.ttft_mean_s));
            format!("{rate:+.1} %, {ttft:+.0} %, {:+.1} %", change(|s| s.tpot_mean_ms))
        };
        let cells: Vec<String> = cases.iter().map(cell).collect();
        let _ = writeln!(text, "| {} | {} |", own(name), cells.join(" | "));
    }
}

/// Puts the measured part into a document, in place of the one that is there.
///
/// # Errors
/// The file cannot be read or written, or has no place for it.
pub fn write(path: &Path, part: &str) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let place = text.find(BEGIN).zip(text.find(END)).filter(|(begin, end)| begin < end);
    ensure!(place.is_some(), "{} has no lines `{BEGIN}` and `{END}`", path.display());
    let (begin, end) = place.unwrap_or_default();
    let text = format!("{}{BEGIN}\n\n{part}\n{}", &text[..begin], &text[end..]);
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measured_part_replaces_the_one_that_is_there() {
        let path = std::env::temp_dir().join(format!("fairlead-routing-{}.md", std::process::id()));
        std::fs::write(&path, format!("before\n{BEGIN}\nold\n{END}\nafter\n")).unwrap();
        for part in ["new\n", "newer\n"] {
            write(&path, part).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("before\n{BEGIN}\n\nnewer\n\n{END}\nafter\n"));
        std::fs::write(&path, "nothing of the kind").unwrap();
        assert!(write(&path, "new").is_err());
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn times_have_three_digits() {
        assert_eq!([0.0123, 1.234, 12.34, 123.4].map(seconds), ["0.012", "1.23", "12.3", "123"]);
    }
}
