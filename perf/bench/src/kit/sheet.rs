//! Samples by case and metric, and the rows that come of them: a table on the terminal and the form of `--json`.

use std::fmt::Write as _;

use serde::Serialize;

use super::stats;

/// Which side a sample is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Fairlead.
    Ours,
    /// What it is compared with.
    Baseline,
}

/// Something measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its fixed name.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
}

impl Metric {
    /// A metric.
    pub const fn new(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit }
    }
}

/// One line of the result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was measured on.
    pub case: String,
    /// What was measured.
    pub metric: &'static str,
    /// Unit of `ours` and `baseline`.
    pub unit: &'static str,
    /// Median of our runs.
    pub ours: Option<f64>,
    /// Median of the baseline's runs.
    pub baseline: Option<f64>,
    /// What the baseline is.
    pub baseline_name: Option<String>,
    /// `ours / baseline`.
    pub ratio: Option<f64>,
    /// Our runs.
    pub runs: usize,
    /// Largest less smallest of our runs, as a share of their median.
    pub spread: Option<f64>,
}

struct Entry {
    case: String,
    metric: Metric,
    ours: Vec<f64>,
    baselines: Vec<(String, Vec<f64>)>,
}

/// Samples in the order in which their rows shall appear: that of first mention.
#[derive(Default)]
pub struct Sheet {
    pages: Vec<String>,
    entries: Vec<Entry>,
    notes: Vec<String>,
}

impl Sheet {
    /// Adds one run's sample of ours.
    pub fn ours(&mut self, case: &str, metric: Metric, value: f64) {
        self.entry(case, metric).ours.push(value);
    }

    /// Adds one run's sample of the baseline `name`. Each baseline of a case and metric gets a row.
    pub fn baseline(&mut self, case: &str, metric: Metric, name: &str, value: f64) {
        let baselines = &mut self.entry(case, metric).baselines;
        match baselines.iter_mut().find(|(known, _)| known == name) {
            Some((_, samples)) => samples.push(value),
            None => baselines.push((name.to_owned(), vec![value])),
        }
    }

    /// Adds text to stand above the table: what its rows are drawn from.
    pub fn page(&mut self, text: impl Into<String>) {
        self.pages.push(text.into());
    }

    /// Adds a sentence to stand under the table: what a reader must know to read the figures rightly.
    pub fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    fn entry(&mut self, case: &str, metric: Metric) -> &mut Entry {
        let at = self.entries.iter().position(|e| e.case == case && e.metric == metric);
        let at = at.unwrap_or_else(|| {
            self.entries.push(Entry {
                case: case.to_owned(),
                metric,
                ours: Vec::new(),
                baselines: Vec::new(),
            });
            self.entries.len() - 1
        });
        &mut self.entries[at]
    }

    /// Medians over the runs.
    pub fn rows(&self) -> Vec<Row> {
        let middle = |samples: &[f64]| Some(stats::median(samples)).filter(|m| m.is_finite());
        let row = |e: &Entry, against: Option<&(String, Vec<f64>)>| {
            let (ours, baseline) = (middle(&e.ours), against.and_then(|(_, samples)| middle(samples)));
            let ratio = ours.zip(baseline).map(|(o, b)| o / b).filter(|r| r.is_finite());
            Row {
                case: e.case.clone(),
                metric: e.metric.name,
                unit: e.metric.unit,
                ours,
                baseline,
                baseline_name: against.map(|(name, _)| name.clone()),
                ratio,
                runs: e.ours.len(),
                spread: stats::spread(&e.ours),
            }
        };
        let rows = |e: &Entry| match e.baselines.as_slice() {
            [] => vec![row(e, None)],
            all => all.iter().map(|against| row(e, Some(against))).collect(),
        };
        self.entries.iter().flat_map(rows).collect()
    }

    /// The rows as a table, with notes.
    pub fn table(&self) -> String {
        let head = ["case", "metric", "unit", "ours", "baseline", "ratio", "spread", "runs", "against"];
        let number = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), figure);
        let share = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{:.0} %", 100.0 * v));
        let mut lines = vec![head.map(str::to_owned)];
        lines.extend(self.rows().into_iter().map(|row| {
            [
                row.case,
                row.metric.to_owned(),
                row.unit.to_owned(),
                number(row.ours),
                number(row.baseline),
                number(row.ratio),
                share(row.spread),
                row.runs.to_string(),
                row.baseline_name.unwrap_or_default(),
            ]
        }));
        let width: [usize; 9] =
            std::array::from_fn(|i| lines.iter().map(|l| l[i].chars().count()).max().unwrap_or(0));
        let mut out = String::new();
        for page in &self.pages {
            let _ = writeln!(out, "{page}");
        }
        for line in &lines {
            let mut text = String::new();
            for (i, cell) in line.iter().enumerate() {
                let w = width[i];
                // Words to the left, figures to the right.
                let _ = if (3..8).contains(&i) {
                    write!(text, "{cell:>w$}  ")
                } else {
                    write!(text, "{cell:<w$}  ")
                };
            }
            let _ = writeln!(out, "{}", text.trim_end());
        }
        for note in &self.notes {
            let _ = writeln!(out, "{note}");
        }
        out
    }
}

/// Three significant digits, large numbers with separators.
fn figure(v: f64) -> String {
    let magnitude = v.abs();
    if magnitude >= 1000.0 {
        let digits = format!("{v:.0}");
        let (sign, digits) = digits.strip_prefix('-').map_or(("", &*digits), |d| ("-", d));
        let mut out = String::new();
        for (i, c) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                out.push(',');
            }
            out.push(c);
        }
        return format!("{sign}{out}");
    }
    match magnitude {
        m if m >= 100.0 => format!("{v:.0}"),
        m if m >= 10.0 => format!("{v:.1}"),
        m if m >= 1.0 || m == 0.0 => format!("{v:.2}"),
        _ => format!("{v:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Metric = Metric::new("lookup_p50_us", "us");

    #[test]
    fn rows_are_medians_in_the_order_of_first_mention() {
        let mut sheet = Sheet::default();
        sheet.ours("b", TIME, 1.0);
        for v in [2.0, 4.0, 3.0] {
            sheet.ours("a", TIME, v);
            sheet.baseline("a", TIME, "map", v * 2.0);
        }
        let rows = sheet.rows();
        assert_eq!((rows[0].case.as_str(), rows[0].ours, rows[0].ratio), ("b", Some(1.0), None));
        let a = &rows[1];
        assert_eq!((a.ours, a.baseline, a.ratio, a.runs), (Some(3.0), Some(6.0), Some(0.5), 3));
        assert_eq!(a.baseline_name.as_deref(), Some("map"));
        let json = serde_json::to_value(a).unwrap();
        let keys: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        for key in ["case", "metric", "unit", "ours", "baseline", "baseline_name", "ratio", "runs", "spread"]
        {
            assert!(keys.iter().any(|k| k == key), "{key}");
        }
        assert_eq!(keys.len(), 9);
    }

    #[test]
    fn each_baseline_has_a_row() {
        let mut sheet = Sheet::default();
        sheet.ours("a", TIME, 2.0);
        for (name, v) in [("one", 4.0), ("two", 1.0), ("one", 8.0)] {
            sheet.baseline("a", TIME, name, v);
        }
        let rows: Vec<_> = sheet.rows().into_iter().map(|r| (r.baseline_name.unwrap(), r.ratio)).collect();
        assert_eq!(rows, [("one".to_owned(), Some(2.0 / 6.0)), ("two".to_owned(), Some(2.0))]);
    }

    #[test]
    fn figures_keep_three_digits() {
        let shown: Vec<_> = [1_234_567.8, 999.6, 0.0, 12.34, 0.1234, -1234.0].map(figure).to_vec();
        assert_eq!(shown, ["1,234,568", "1000", "0.00", "12.3", "0.123", "-1,234"]);
    }
}
