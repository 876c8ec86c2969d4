//! Histograms in the form of a Prometheus page.

use std::fmt::Write;

/// Bounds for tokens of one request.
pub const REQUEST_TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0, 50000.0,
    100000.0,
];
/// Bounds for tokens of one step.
pub const STEP_TOKENS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
/// Bounds for the time to the first token, seconds.
pub const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// Bounds for the time between tokens, seconds.
pub const BETWEEN_TOKENS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// Bounds for the time of a request or one of its phases, seconds.
pub const REQUEST_SECONDS: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
/// Bounds for the bytes of one KV transfer.
pub const TRANSFER_BYTES: &[f64] = &[1e6, 1e7, 5e7, 1e8, 2.5e8, 5e8, 1e9, 2.5e9, 5e9, 1e10, 5e10];
/// Bounds for small counts such as `n`.
pub const SMALL: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];

/// Counts of observations under fixed upper bounds.
#[derive(Clone, Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    counts: Vec<u64>,
    sum: f64,
    count: u64,
}

impl Histogram {
    /// An empty histogram; `bounds` ascend.
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len()], sum: 0.0, count: 0 }
    }

    /// Adds one value.
    pub fn observe(&mut self, v: f64) {
        let at = self.bounds.partition_point(|b| *b < v);
        if let Some(c) = self.counts.get_mut(at) {
            *c += 1;
        }
        self.sum += v;
        self.count += 1;
    }

    /// How many values were seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their sum.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// Writes the bucket, count and sum lines; `labels` without braces and without `le`.
    pub fn write(&self, out: &mut String, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut total = 0;
        for (b, c) in self.bounds.iter().zip(&self.counts) {
            total += c;
            _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{b:?}\"}} {}", number(total as f64));
        }
        _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {}", number(self.count as f64));
        _ = writeln!(out, "{name}_count{{{labels}}} {}", number(self.count as f64));
        _ = writeln!(out, "{name}_sum{{{labels}}} {}", number(self.sum));
    }
}

/// A number as the Python exporter writes it: always with a point, with an exponent from a million on.
pub fn number(v: f64) -> String {
    let plain = format!("{v:?}");
    let (digits, sign) = match plain.strip_prefix('-') {
        Some(d) => (d, "-"),
        None => (plain.as_str(), ""),
    };
    match digits.find('.') {
        Some(dot) if dot > 6 && !digits.contains('e') => {
            let mantissa = format!("{}.{}{}", &digits[..1], &digits[1..dot], &digits[dot + 1..]);
            let mantissa = mantissa.trim_end_matches('0').trim_end_matches('.');
            format!("{sign}{mantissa}e+{:02}", dot - 1)
        }
        _ => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_like_the_real_page() {
        for (v, s) in [
            (0.0, "0.0"),
            (356.0, "356.0"),
            (0.25, "0.25"),
            (999999.0, "999999.0"),
            (1000000.0, "1e+06"),
            (1795175590.5, "1.7951755905e+09"),
            (-2500000.0, "-2.5e+06"),
        ] {
            assert_eq!(number(v), s);
            assert_eq!(number(v).parse::<f64>().unwrap(), v);
        }
    }

    #[test]
    fn buckets_are_cumulative() {
        let mut h = Histogram::new(&[1.0, 2.0]);
        [0.5, 1.0, 1.5, 9.0].into_iter().for_each(|v| h.observe(v));
        let mut s = String::new();
        h.write(&mut s, "x", "a=\"b\"");
        assert!(s.contains("x_bucket{a=\"b\",le=\"1.0\"} 2.0\n"));
        assert!(s.contains("x_bucket{a=\"b\",le=\"2.0\"} 3.0\n"));
        assert!(s.contains("x_bucket{a=\"b\",le=\"+Inf\"} 4.0\nx_count{a=\"b\"} 4.0\nx_sum{a=\"b\"} 12.0\n"));
    }
}
