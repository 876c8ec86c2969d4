//! Reading metrics pages: the names of each engine generation, and whatever else may stand on a page.

use fairlead_agent::metrics::{Field, MAX_LINE, MAX_RANKS, Reader, Sample};
use fairlead_wire::msg::EngineKind;
use proptest::prelude::*;

fn read(page: &[u8]) -> Sample {
    let mut reader = Reader::new();
    reader.feed(page);
    reader.finish().clone()
}

type Figures<'a> = &'a [(usize, Field, Option<f64>)];

#[test]
fn each_generation_of_names_is_understood() {
    use Field::*;
    let pages: [(&str, EngineKind, usize, Option<f64>, Figures); 4] = [
        (
            include_str!("pages/vllm-new.txt"),
            EngineKind::Vllm,
            2,
            Some(1.79400012345e9),
            &[
                (0, Running, Some(3.0)),
                (1, Running, Some(0.0)),
                (0, Waiting, Some(2.0)),
                (0, KvUsage, Some(0.125)),
                (0, KvUsageOld, None),
                (0, PromptTokens, Some(4000.0)),
                (1, PromptTokens, None),
                (0, GenerationTokens, Some(512.0)),
                (1, GenerationTokens, Some(1.0)),
                (0, CacheQueries, Some(4000.0)),
                (0, CacheHits, Some(1000.0)),
                (0, KvBlocks, Some(4096.0)),
                (0, KvTokens, Some(65600.0)),
                (1, KvTokens, None),
                (1, BlockSize, Some(16.0)),
                (2, Running, None),
            ],
        ),
        (
            include_str!("pages/vllm-old.txt"),
            EngineKind::Vllm,
            1,
            None,
            &[
                (0, Running, Some(1.0)),
                (0, Waiting, Some(0.0)),
                (0, KvUsage, None),
                (0, KvUsageOld, Some(0.03125)),
                (0, PromptTokens, Some(100.0)),
                (0, GenerationTokens, Some(10.0)),
                (0, CacheQueriesOld, Some(100.0)),
                (0, CacheHitsOld, Some(25.0)),
                (0, KvBlocks, Some(2048.0)),
            ],
        ),
        (
            include_str!("pages/sglang-colon.txt"),
            EngineKind::Sglang,
            1,
            None,
            &[
                (0, Running, Some(7.0)),
                (0, Waiting, Some(2.0)),
                (0, KvUsage, Some(0.28)),
                (0, GenThroughput, Some(86.5)),
                (0, HitRate, Some(0.75)),
                (0, KvTokens, Some(40960.0)),
                (0, PromptTokens, Some(10000.0)),
                (0, GenerationTokens, Some(700.0)),
            ],
        ),
        (
            include_str!("pages/sglang-underscore.txt"),
            EngineKind::Sglang,
            2,
            None,
            &[
                (0, Running, Some(1.0)),
                (1, Running, Some(2.0)),
                (1, Waiting, Some(5.0)),
                (1, KvUsage, Some(0.25)),
                (0, GenThroughput, Some(10.0)),
                (1, GenThroughput, None),
                // A total without a rank is nobody's where there are several; a constant is everybody's.
                (0, PromptTokens, None),
                (0, KvTokens, Some(1000.0)),
                (1, KvTokens, Some(1000.0)),
            ],
        ),
    ];
    for (page, kind, ranks, started, figures) in pages {
        let sample = read(page.as_bytes());
        let name = page.lines().find(|line| !line.starts_with('#')).unwrap_or_default();
        assert_eq!((sample.kind(), sample.ranks()), (kind, ranks), "{name}");
        assert_eq!(sample.started(), started, "{name}");
        for (rank, field, value) in figures {
            assert_eq!(sample.get(*rank, *field), *value, "{name} rank {rank} {field:?}");
        }
    }
}

#[test]
fn histograms_are_read_by_their_sums_and_counts() {
    use Field::*;
    let page = "# TYPE vllm:request_queue_time_seconds histogram\n\
        vllm:request_queue_time_seconds_bucket{engine=\"0\",le=\"0.3\",model_name=\"m\"} 2.0\n\
        vllm:request_queue_time_seconds_bucket{engine=\"0\",le=\"+Inf\",model_name=\"m\"} 3.0\n\
        vllm:request_queue_time_seconds_count{engine=\"0\",model_name=\"m\"} 3.0\n\
        vllm:request_queue_time_seconds_sum{engine=\"0\",model_name=\"m\"} 1.5\n\
        vllm:request_queue_time_seconds_created{engine=\"0\",model_name=\"m\"} 1.79e+09\n\
        vllm:request_prompt_tokens_sum{engine=\"0\",model_name=\"m\"} 900.0\n\
        vllm:request_prompt_tokens_count{engine=\"0\",model_name=\"m\"} 3.0\n\
        vllm:cpu_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0.25\n\
        engine_utilization 0.5\nkv_cache_utilization 0.75\n";
    let sample = read(page.as_bytes());
    for (field, want) in [
        (QueueTime, Some(1.5)),
        (QueueTimeCount, Some(3.0)),
        (RequestPrompt, Some(900.0)),
        (RequestPromptCount, Some(3.0)),
        (HostKvUsage, Some(0.25)),
        (Utilization, Some(0.5)),
        (KvUsage, Some(0.75)),
        (PrefillTime, None),
        (PromptTokens, None),
    ] {
        assert_eq!(sample.get(0, field), want, "{field:?}");
    }
}

#[test]
fn forms_of_a_line() {
    for (line, running) in [
        ("vllm:num_requests_running 4", Some(4.0)),
        ("vllm:num_requests_running\t4", Some(4.0)),
        ("vllm_num_requests_running 4", Some(4.0)),
        ("vllm:num_requests_running{} 4", Some(4.0)),
        ("vllm:num_requests_running {engine=\"0\"} 4", Some(4.0)),
        ("vllm:num_requests_running{ engine = \"0\" , } 4", Some(4.0)),
        ("vllm:num_requests_running{engine=\"0\"}4", Some(4.0)),
        ("vllm:num_requests_running{engine=\"0\"} 4 1794000123456", Some(4.0)),
        ("vllm:num_requests_running{engine=\"0\"} 4 # {trace=\"x\"} 1", Some(4.0)),
        ("vllm:num_requests_running{engine=\"0\"} 4\r", Some(4.0)),
        ("vllm:num_requests_running{engine=\"0\"} +4.0e0", Some(4.0)),
        ("vllm:num_requests_running{engine=\"None\"} 4", Some(4.0)),
        ("vllm:num_requests_running{engine=\"\"} 4", Some(4.0)),
        ("vllm:num_requests_running{m=\"a}b\\\"c,engine=\\\"9\",engine=\"0\"} 4", Some(4.0)),
        ("vllm:num_requests_running{m=\"\\\\\",engine=\"0\"} 4", Some(4.0)),
        ("vllm:num_requests_running -0", Some(0.0)),
        // Unknown rather than zero.
        ("vllm:num_requests_running NaN", None),
        ("vllm:num_requests_running -1", None),
        ("vllm:num_requests_running +Inf", None),
        ("vllm:num_requests_running 4x", None),
        ("vllm:num_requests_running", None),
        ("vllm:num_requests_running ", None),
        ("vllm:num_requests_running{engine=\"zero\"} 4", None),
        ("vllm:num_requests_running{engine=\"-1\"} 4", None),
        ("vllm:num_requests_running{engine=\"70000\"} 4", None),
        ("vllm:num_requests_running{engine=\"0\" 4", None),
        ("vllm:num_requests_running{engine=\"0} 4", None),
        ("vllm:num_requests_running{engine=0} 4", None),
        ("vllm:num_requests_running{engine} 4", None),
        ("vllm:num_requests_running{m=\"\\", None),
        // Not these names.
        ("vllm:num_requests_running_total 4", None),
        ("vllm:num_requests_runnin 4", None),
        ("vllm:num_requests_waiting_by_reason{reason=\"capacity\"} 4", None),
        ("xvllm:num_requests_running 4", None),
        (" vllm:num_requests_running 4", None),
        ("# vllm:num_requests_running 4", None),
        ("vllm", None),
        ("vllm:", None),
        ("", None),
    ] {
        for page in [line.to_owned(), format!("{line}\n"), format!("up 1\n{line}\n\nup 1")] {
            assert_eq!(read(page.as_bytes()).get(0, Field::Running), running, "{page:?}");
        }
    }
}

#[test]
fn a_bad_series_makes_the_sum_unknown_whatever_the_order() {
    let good = "vllm:prompt_tokens_total{engine=\"0\",m=\"a\"} 5\n";
    let bad = "vllm:prompt_tokens_total{engine=\"0\",m=\"b\"} NaN\n";
    for page in [format!("{good}{bad}"), format!("{bad}{good}")] {
        let sample = read(page.as_bytes());
        assert_eq!(sample.get(0, Field::PromptTokens), None);
        assert_eq!(sample.known() & Field::PromptTokens.bit(), 0);
    }
    assert_eq!(read(good.repeat(2).as_bytes()).get(0, Field::PromptTokens), Some(10.0));
}

#[test]
fn ranks_are_bounded() {
    let line = |rank: usize| format!("vllm:num_requests_running{{engine=\"{rank}\"}} 1\n");
    assert_eq!(read(line(MAX_RANKS - 1).as_bytes()).ranks(), MAX_RANKS);
    assert_eq!(read(line(MAX_RANKS).as_bytes()).ranks(), 0);
}

#[test]
fn a_line_beyond_the_limit_is_skipped_and_the_next_is_read() {
    for length in [MAX_LINE - 1, MAX_LINE, MAX_LINE + 1, 3 * MAX_LINE] {
        let start = "vllm:num_requests_running{m=\"";
        let line = format!("{start}{}\"}} 4", "x".repeat(length - start.len() - 4));
        assert_eq!(line.len(), length);
        let page = format!("{line}\nvllm:num_requests_waiting 2");
        let want = (length <= MAX_LINE).then_some(4.0);
        for step in [1000, MAX_LINE, page.len()] {
            let mut reader = Reader::new();
            page.as_bytes().chunks(step).for_each(|chunk| reader.feed(chunk));
            let sample = reader.finish();
            assert_eq!(sample.get(0, Field::Running), want, "{length} by {step}");
            assert_eq!(sample.get(0, Field::Waiting), Some(2.0), "{length} by {step}");
        }
    }
}

#[test]
fn a_reader_can_be_used_again() {
    let mut reader = Reader::new();
    reader.feed(b"vllm:num_requests_running 4\nvllm:num_requ");
    reader.reset();
    reader.feed(b"sglang:num_queue_reqs 1\n");
    assert_eq!(*reader.finish(), read(b"sglang:num_queue_reqs 1\n"));
}

/// Pages of lines that are right, nearly right, or nothing.
fn page() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        Just("vllm:num_requests_running"),
        Just("vllm:prompt_tokens_total"),
        Just("vllm:cache_config_info"),
        Just("sglang_token_usage"),
        Just("process_start_time_seconds"),
        Just("vllm:nothing"),
        Just("#"),
        Just(""),
    ];
    let labels = prop_oneof![
        Just(""),
        Just("{engine=\"1\"}"),
        Just("{dp_rank=\"3\",x=\"\\\"}\"}"),
        Just("{block_size=\"16\",num_gpu_blocks=\"9\"}"),
        Just("{engine=\"1\""),
        Just("{\\"),
    ];
    let value =
        prop_oneof![Just("0"), Just("17.5"), Just("NaN"), Just("-3"), Just("1e300"), Just(""), Just("1 2 3")];
    let line =
        (name, labels, value, prop::collection::vec(any::<u8>(), 0..6)).prop_map(|(n, l, v, garbage)| {
            let mut line = format!("{n}{l} {v}").into_bytes();
            line.extend(garbage);
            line.push(b'\n');
            line
        });
    prop::collection::vec(line, 0..20).prop_map(|lines| lines.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn how_a_page_is_cut_makes_no_difference(page in page(), cuts in prop::collection::vec(0usize..800, 0..12)) {
        let whole = read(&page);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(page.len())).collect();
        cuts.extend([0, page.len()]);
        cuts.sort_unstable();
        let mut reader = Reader::new();
        for pair in cuts.windows(2) {
            reader.feed(&page[pair[0]..pair[1]]);
        }
        prop_assert_eq!(reader.finish(), &whole);
        let mut reader = Reader::new();
        page.chunks(1).for_each(|byte| reader.feed(byte));
        prop_assert_eq!(reader.finish(), &whole);
    }

    #[test]
    fn any_bytes_give_figures_that_make_sense(page in prop::collection::vec(any::<u8>(), 0..2000)) {
        check(&read(&page));
    }

    #[test]
    fn lines_that_are_nearly_right_give_figures_that_make_sense(page in page()) {
        check(&read(&page));
    }
}

fn check(sample: &Sample) {
    for rank in 0..sample.ranks() + 1 {
        for field in Field::ALL {
            if let Some(value) = sample.get(rank, field) {
                assert!(value.is_finite() && value >= 0.0, "{field:?} {value}");
            }
        }
    }
}
