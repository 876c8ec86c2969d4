//! The load generator against simulated engines.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests fail by panicking")]

use clap::Parser;
use fairlead_bench::load::{LoadArgs, LoadError, Report, run};
use fairlead_sim::{Faults, Handle, Sim, SimOptions};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    load: LoadArgs,
}

fn args(line: &str) -> LoadArgs {
    Cli::parse_from(std::iter::once("load").chain(line.split_whitespace())).load
}

fn sim() -> Handle {
    Sim::start(SimOptions { speed: 1000.0, name: "one".into(), ..SimOptions::default() }).unwrap()
}

async fn load(sim: &Handle, line: &str) -> Report {
    run(&args(&format!("--url {} {line}", sim.url()))).await.unwrap()
}

#[tokio::test]
async fn a_closed_loop_counts_what_the_engine_counts() {
    let sim = sim();
    let r = load(&sim, "--requests 60 --concurrency 8 --output-tokens 10").await;
    let s = sim.control().state();
    assert_eq!((r.requests, r.ok, r.failed(), r.unfinished), (60, 60, 0, 0));
    assert_eq!((s.completed, s.in_flight, s.aborted), (60, 0, 0));
    assert_eq!((r.output_tokens, r.prompt_tokens, r.cached_tokens), (600, s.prompt_tokens, s.cached_tokens));
    assert!(s.connections_total <= 9, "{}", s.connections_total);
    assert_eq!(r.instances["one"], 60);
    assert_eq!(r.sessions, 60);
    assert!(r.ttft_s.p99 > 0.0 && r.latency_s.p50 >= r.ttft_s.p50 && r.tpot_ms.max > 0.0);
    assert_eq!(r.timeline.iter().map(|s| s.ok).sum::<u64>(), 60);
}

#[tokio::test]
async fn one_conversation_after_the_other_reaches_the_bound_exactly() {
    let sim = sim();
    let r = load(&sim, "--conversations 5 --turns 4 --concurrency 1").await;
    assert_eq!((r.ok, r.sessions), (20, 5));
    let (hit, bound) = (r.hit_ratio.unwrap(), r.hit_ratio_bound.unwrap());
    assert!(hit > 0.5 && (hit - bound).abs() < 1e-12, "{hit} {bound}");
}

#[tokio::test]
async fn an_open_loop_runs_conversations_to_their_end() {
    let sim = sim();
    let r = load(&sim, "--conversations 30 --turns 3 --rate 900 --think 0.01").await;
    assert_eq!((r.ok, r.failed(), r.sessions, r.not_sent), (90, 0, 30, 0));
    assert!(r.hit_ratio_of_bound().unwrap() > 0.8, "{r}");
}

#[tokio::test]
async fn answers_in_one_piece_are_measured_too() {
    let sim = sim();
    let r = load(&sim, "--requests 10 --stream false --output-tokens 7").await;
    assert_eq!((r.ok, r.output_tokens), (10, 70));
}

/// Takes an engine away. Its listener is closed by the engine's own thread, so this waits until connects are refused.
async fn refuse(sim: &Handle) {
    sim.control().set_faults(Faults { refuse: true, ..Faults::default() }).unwrap();
    while tokio::net::TcpStream::connect(sim.addr()).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn failures_are_told_by_kind() {
    let sim = sim();
    let control = sim.control();
    for (faults, kind) in [
        (Faults { status: Some(500), ..Faults::default() }, "status 500"),
        (Faults { die_after: Some(0), ..Faults::default() }, "reset"),
        (Faults { die_after: Some(3), ..Faults::default() }, "reset"),
        (Faults { cut_after: Some(3), ..Faults::default() }, "reset"),
        (Faults { garbage: Some(fairlead_sim::Garbage::Event), ..Faults::default() }, "malformed"),
        (Faults { hang: true, ..Faults::default() }, "timeout"),
    ] {
        control.set_faults(faults).unwrap();
        let r = load(&sim, "--requests 4 --concurrency 2 --timeout 0.2").await;
        assert_eq!((r.failed(), r.errors.get(kind)), (4, Some(&4)), "{kind}: {:?}", r.errors);
    }
    refuse(&sim).await;
    let r = load(&sim, "--requests 4 --concurrency 2 --model sim-8b").await;
    assert_eq!(r.failed(), 4, "{:?}", r.errors);
}

#[tokio::test]
async fn what_does_not_end_is_unfinished() {
    let sim = sim();
    sim.control().set_faults(Faults { hang_after: Some(2), ..Faults::default() }).unwrap();
    let r = load(&sim, "--duration 0.05 --concurrency 3 --drain 0.05").await;
    assert_eq!((r.unfinished, r.requests), (3, 0));
}

#[tokio::test]
async fn the_json_file_has_the_agreed_form() {
    let sim = sim();
    let path = std::env::temp_dir().join(format!("fairlead-load-{}.json", sim.addr().port()));
    load(&sim, &format!("--requests 5 --json {}", path.display())).await;
    let v: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(v["name"], "load");
    assert_eq!(v["summary"]["ok"], 5);
    let rows = v["rows"].as_array().unwrap();
    for key in ["case", "metric", "unit", "ours", "baseline", "baseline_name", "ratio", "runs", "spread"] {
        assert!(rows.iter().all(|r| r.get(key).is_some()), "{key}");
    }
    assert!(rows.iter().any(|r| r["metric"] == "ttft_p99"));
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_named() {
    let e = run(&args("--url ftp://x --requests 1")).await.unwrap_err();
    assert!(matches!(e, LoadError::Target(_)), "{e}");
    let gone = sim();
    let url = gone.url();
    refuse(&gone).await;
    let e = run(&args(&format!("--url {url} --requests 1"))).await.unwrap_err();
    assert!(e.to_string().contains("--model"), "{e}");
}

/// A file that is gone with the test.
struct Temporary(std::path::PathBuf);

impl Temporary {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fairlead-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn a_trace_is_played_at_its_times_on_several_gateways() {
    let (one, two) = (sim(), sim());
    let line = |i: u64| {
        let ids: Vec<u64> = (0..2).chain([100 + i]).collect();
        format!(
            "{{\"timestamp\":{},\"input_length\":1200,\"output_length\":40,\"hash_ids\":{ids:?}}}\n",
            i * 1000
        )
    };
    let file = Temporary::new("timed.jsonl", &(0..20).map(line).collect::<String>());
    let line = format!("--url {} --trace {} --speed 100 --out-scale 0.25", two.url(), file.0.display());
    let r = load(&one, &line).await;
    let (a, b) = (one.control().state(), two.control().state());
    assert_eq!((r.ok, r.warm_up, r.failed(), r.not_sent), (20, 2, 0, 0), "{r}");
    assert_eq!((a.completed, b.completed), (10, 10));
    assert_eq!((a.prompt_tokens, b.prompt_tokens), (12_000, 12_000));
    // The first two warmed both caches; the figures are those of the other 18.
    assert_eq!((r.prompt_tokens, r.cached_tokens, r.output_tokens), (18 * 1200, 18 * 1024, 18 * 10));
    assert_eq!(r.hit_ratio, r.hit_ratio_bound);
    assert!(r.seconds >= 0.19, "{}", r.seconds);
}

#[tokio::test]
async fn recorded_sessions_wait_for_their_answers() {
    let sim = sim();
    let file = Temporary::new(
        "sessions.jsonl",
        "{\"s\":\"a\",\"tool\":1,\"sys\":1,\"r\":[[0.0,600,5,0,1.0,0,0,[[0,1]]],[9.0,1100,6,0.5,1.0,0,1,[[7,1]]]]}\n\
         {\"s\":\"b\",\"tool\":1,\"sys\":1,\"r\":[[0.0,700,5,0,1.0,0,0,[[0,1]]],[9.0,200000,6,0.5,1.0,0,1,[[9,300]]]]}\n",
    );
    let line =
        format!("--trace {} --concurrency 1 --speed 50 --warm-up 0 --max-input 100000", file.0.display());
    let r = load(&sim, &line).await;
    assert_eq!((r.ok, r.sessions, r.output_tokens), (3, 2, 16), "{r}");
    assert_eq!((r.prompt_tokens, r.cached_tokens), (2400, 1024));
    assert!(r.warnings.iter().any(|w| w.starts_with("1 requests with longer")), "{r}");
    let e = run(&args(&format!("--url {} --trace /nowhere", sim.url()))).await.unwrap_err();
    assert!(matches!(e, LoadError::Trace(_)), "{e}");
}
