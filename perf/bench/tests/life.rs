//! `perf/run life` on a few requests of the sample: what is asked and found is the same, live and in the replay. How long
//! it takes is not looked at.
#![cfg(feature = "fleet")]

use fairlead_bench::kit::sheet::Sheet;
use fairlead_bench::programs::life::{one_at_a_time, side_by_side};
use std::path::PathBuf;

fn sample() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../data/mooncake_conversation_sample.jsonl")
}

#[test]
fn one_request_at_a_time_finds_what_it_finds_in_the_replay() {
    let mut sheet = Sheet::default();
    one_at_a_time(&sample(), 120, &mut sheet).unwrap();
    let rows = sheet.rows();
    assert_eq!(rows.iter().map(|r| r.metric).collect::<Vec<_>>(), ["prompt_tokens", "cached_tokens"]);
    assert!(rows.iter().all(|r| r.ours == r.baseline && r.ours > Some(0.0)), "{rows:?}");
}

#[test]
fn a_run_under_load_tells_both_sides() {
    let mut sheet = Sheet::default();
    side_by_side(&sample(), 15, "cost", &mut sheet).unwrap();
    let rows = sheet.rows();
    let wanted = ["ttft_mean_s", "ttft_p50_s", "ttft_p99_s", "tpot_mean_ms", "hit_ratio", "goodput"];
    assert_eq!(rows.iter().map(|r| r.metric).collect::<Vec<_>>(), wanted);
    for row in &rows {
        let share = ["hit_ratio", "goodput"].contains(&row.metric);
        for side in [row.ours, row.baseline] {
            assert!(side.is_some_and(|s| s >= 0.0 && (!share || s <= 1.0)), "{row:?}");
        }
    }
}
