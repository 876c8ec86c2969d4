//! The `/metrics` pages of vLLM and SGLang, with the names and labels of the real ones and this engine's values.

use crate::engine::Engine;
use crate::handoff::{Handover, LegKind};
use crate::histogram::{Histogram, number};
use crate::http::info::max_tokens;
use std::fmt::Write;

struct Page {
    out: String,
    labels: String,
    created: f64,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, more: &str, v: f64) {
        let comma = if more.is_empty() || self.labels.is_empty() { "" } else { "," };
        _ = writeln!(self.out, "{name}{{{}{comma}{more}}} {}", self.labels, number(v));
    }

    fn plain(&mut self, name: &str, kind: &str, help: &str, v: f64) {
        self.family(name, kind, help);
        _ = writeln!(self.out, "{name} {}", number(v));
    }

    fn gauge(&mut self, name: &str, help: &str, v: f64) {
        self.family(name, "gauge", help);
        self.sample(name, "", v);
    }

    /// A counter and the gauge that tells when it began. `series` are label sets with their values.
    fn counters(&mut self, name: &str, help: &str, series: &[(&str, f64)]) {
        let total = format!("{name}_total");
        let created = format!("{name}_created");
        self.family(&total, "counter", help);
        for (labels, v) in series {
            self.sample(&total, labels, *v);
        }
        self.family(&created, "gauge", help);
        for (labels, _) in series {
            self.sample(&created, labels, self.created);
        }
    }

    fn counter(&mut self, name: &str, help: &str, v: u64) {
        self.counters(name, help, &[("", v as f64)]);
    }

    fn histogram(&mut self, name: &str, help: &str, h: &Histogram) {
        self.family(name, "histogram", help);
        h.write(&mut self.out, name, &self.labels);
        let created = format!("{name}_created");
        self.family(&created, "gauge", help);
        self.sample(&created, "", self.created);
    }
}

impl Page {
    /// Of NIXL's connectors; the others have no page worth reading.
    fn transfers(&mut self, handover: &Handover) {
        if !handover.options.handoff.as_str().starts_with("nixl") {
            return;
        }
        let transfers = handover.tally.transfers();
        self.histogram(
            "vllm:nixl_xfer_time_seconds",
            "Histogram of transfer duration for NIXL KV Cache transfers.",
            &transfers.seconds,
        );
        self.histogram(
            "vllm:nixl_bytes_transferred",
            "Histogram of bytes transferred per NIXL KV Cache transfers.",
            &transfers.bytes,
        );
        self.counter(
            "vllm:nixl_num_failed_transfers",
            "Number of failed NIXL KV Cache transfers.",
            handover.tally.failed_loads(),
        );
        self.counter(
            "vllm:nixl_num_kv_expired_reqs",
            "Number of requests that had their KV expire.",
            handover.outbox.counts().expired,
        );
    }
}

fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// vLLM's page.
pub(crate) fn vllm(engine: &Engine) -> String {
    let o = &engine.options;
    let mut p = Page {
        out: String::with_capacity(32 << 10),
        labels: format!("engine=\"0\",model_name=\"{}\"", label(&o.models[0])),
        created: engine.started_unix,
    };
    p.family("python_info", "gauge", "Python platform information");
    p.out.push_str("python_info{implementation=\"simulated\",major=\"3\",minor=\"12\",patchlevel=\"0\",version=\"3.12.0\"} 1.0\n");
    p.plain(
        "process_start_time_seconds",
        "gauge",
        "Start time of the process since unix epoch in seconds.",
        engine.started_unix,
    );
    let core = engine.core();
    let (m, s) = (&core.model, core.model.stats());
    let usage = f64::from(m.cache().used()) / f64::from(m.cache().capacity().max(1));
    p.gauge(
        "vllm:num_requests_running",
        "Number of requests in model execution batches.",
        m.running() as f64,
    );
    // Requests that wait for their KV are in the queue, passed over until it has come.
    let deferred = engine.handover.as_ref().map_or(0, |h| h.tally.waiting(LegKind::Decode)) as f64;
    p.gauge(
        "vllm:num_requests_waiting",
        "Number of requests waiting to be processed.",
        m.waiting() as f64 + deferred,
    );
    if !o.legacy_metrics {
        p.family("vllm:num_requests_waiting_by_reason", "gauge", "Number of waiting requests by reason.");
        p.sample("vllm:num_requests_waiting_by_reason", "reason=\"capacity\"", m.waiting() as f64);
        p.sample("vllm:num_requests_waiting_by_reason", "reason=\"deferred\"", deferred);
        p.family("vllm:engine_sleep_state", "gauge", "Engine sleep state.");
        p.sample("vllm:engine_sleep_state", "sleep_state=\"awake\"", 1.0);
        p.sample("vllm:engine_sleep_state", "sleep_state=\"weights_offloaded\"", 0.0);
        p.sample("vllm:engine_sleep_state", "sleep_state=\"discard_all\"", 0.0);
    }
    let (kv, queries, hits) = if o.legacy_metrics {
        ("vllm:gpu_cache_usage_perc", "vllm:gpu_prefix_cache_queries", "vllm:gpu_prefix_cache_hits")
    } else {
        ("vllm:kv_cache_usage_perc", "vllm:prefix_cache_queries", "vllm:prefix_cache_hits")
    };
    p.gauge(kv, "KV-cache usage. 1 means 100 percent usage.", usage);
    p.counter(queries, "Prefix cache queries, in terms of number of queried tokens.", s.cache_queries);
    p.counter(hits, "Prefix cache hits, in terms of number of cached tokens.", s.cache_hits);
    p.counter("vllm:num_preemptions", "Cumulative number of preemption from the engine.", 0);
    p.counter("vllm:prompt_tokens", "Number of prefill tokens processed.", s.prompt_tokens);
    if !o.legacy_metrics {
        let computed = (s.prompt_tokens - s.cached_prompt_tokens) as f64;
        let external = engine.handover.as_ref().map_or(0, |h| h.tally.tokens_received());
        let external = external.min(s.cached_prompt_tokens) as f64;
        p.counters(
            "vllm:prompt_tokens_by_source",
            "Number of prompt tokens by source.",
            &[
                ("source=\"local_compute\"", computed),
                ("source=\"local_cache_hit\"", s.cached_prompt_tokens as f64 - external),
                ("source=\"external_kv_transfer\"", external),
            ],
        );
        p.counter(
            "vllm:prompt_tokens_cached",
            "Number of cached prompt tokens (local + external).",
            s.cached_prompt_tokens,
        );
    }
    p.counter("vllm:generation_tokens", "Number of generation tokens processed.", s.generation_tokens);
    p.counters(
        "vllm:request_success",
        "Count of successfully processed requests.",
        &[
            ("finished_reason=\"stop\"", s.finished_stop as f64),
            ("finished_reason=\"length\"", s.finished_length as f64),
            ("finished_reason=\"abort\"", s.aborted as f64),
            ("finished_reason=\"error\"", 0.0),
        ],
    );
    if !o.legacy_metrics {
        p.counters(
            "vllm:admission_rejections",
            "Number of admission attempts rejected by a queue limit, by reason.",
            &[
                ("reason=\"max_num_queued_reqs\"", s.rejected as f64),
                ("reason=\"max_num_queued_tokens\"", 0.0),
            ],
        );
    }
    for (name, help, h) in [
        ("vllm:request_prompt_tokens", "Number of prefill tokens processed.", &s.request_prompt_tokens),
        (
            "vllm:request_generation_tokens",
            "Number of generation tokens processed.",
            &s.request_generation_tokens,
        ),
        ("vllm:iteration_tokens_total", "Histogram of number of tokens per engine_step.", &s.step_tokens),
        (
            "vllm:request_max_num_generation_tokens",
            "Histogram of maximum number of requested generation tokens.",
            &s.request_max_tokens,
        ),
        ("vllm:request_params_n", "Histogram of the n request parameter.", &s.request_n),
        ("vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", &s.ttft),
        ("vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", &s.inter_token),
        (
            "vllm:request_time_per_output_token_seconds",
            "Histogram of time_per_output_token_seconds per request.",
            &s.tpot,
        ),
        ("vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", &s.e2e),
        (
            "vllm:request_queue_time_seconds",
            "Histogram of time spent in WAITING phase for request.",
            &s.queue,
        ),
        (
            "vllm:request_inference_time_seconds",
            "Histogram of time spent in RUNNING phase for request.",
            &s.inference,
        ),
        (
            "vllm:request_prefill_time_seconds",
            "Histogram of time spent in PREFILL phase for request.",
            &s.prefill,
        ),
        (
            "vllm:request_decode_time_seconds",
            "Histogram of time spent in DECODE phase for request.",
            &s.decode,
        ),
        (
            "vllm:request_num_preemptions",
            "Histogram of the number of times a request was preempted.",
            &s.request_preemptions,
        ),
        (
            "vllm:request_prefill_kv_computed_tokens",
            "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
            &s.request_computed_tokens,
        ),
    ] {
        p.histogram(name, help, h);
    }
    let blocks = m.cache().capacity();
    drop(core);
    if let Some(handover) = &engine.handover {
        p.transfers(handover);
    }
    p.family("vllm:cache_config_info", "gauge", "Information of the LLMEngine CacheConfig");
    let caching = if o.prefix_caching { "True" } else { "False" };
    let size = o.block_tokens;
    _ = writeln!(
        p.out,
        "vllm:cache_config_info{{block_size=\"{size}\",cache_dtype=\"auto\",effective_attention_block_size=\"{size}\",\
         enable_prefix_caching=\"{caching}\",engine=\"0\",gpu_memory_utilization=\"0.92\",hash_block_size=\"None\",\
         is_attention_free=\"False\",kv_cache_max_concurrency=\"{}\",kv_cache_size_tokens=\"{}\",\
         num_cpu_blocks=\"None\",num_gpu_blocks=\"{blocks}\",num_gpu_blocks_override=\"None\",\
         prefix_caching_hash_algo=\"sha256\",sliding_window=\"None\"}} 1.0",
        number(max_tokens(engine) as f64 / f64::from(o.max_model_len.max(1))),
        max_tokens(engine),
    );
    p.out
}

/// SGLang's page.
pub(crate) fn sglang(engine: &Engine) -> String {
    let o = &engine.options;
    let kind = match engine.handover.as_ref().and_then(|h| h.role_kind()) {
        None => "unified",
        Some(LegKind::Prefill) => "prefill",
        Some(LegKind::Decode) => "decode",
    };
    let [bootstrapping, inflight, receiving] = engine.handover.as_ref().map_or([0.0; 3], |h| {
        let sent = h.outbox.counts();
        [h.tally.waiting(LegKind::Prefill), sent.ready + sent.sending, h.tally.waiting(LegKind::Decode)]
            .map(|n| n as f64)
    });
    let mut p = Page {
        out: String::with_capacity(16 << 10),
        labels: format!(
            "engine_type=\"{kind}\",model_name=\"{}\",pp_rank=\"0\",tp_rank=\"0\"",
            label(&o.models[0])
        ),
        created: engine.started_unix,
    };
    p.plain(
        "process_start_time_seconds",
        "gauge",
        "Start time of the process since unix epoch in seconds.",
        engine.started_unix,
    );
    let max = max_tokens(engine);
    let core = engine.core();
    let (m, s) = (&core.model, core.model.stats());
    let used = m.used_tokens();
    let named = u64::from(m.cache().named()) * u64::from(o.block_tokens);
    let throughput = if m.running() > 0 { core.rate } else { 0.0 };
    let usage = used as f64 / max.max(1) as f64;
    for (name, help, v) in [
        ("sglang:num_running_reqs", "The number of running requests.", m.running() as f64),
        ("sglang:num_queue_reqs", "The number of requests in the waiting queue.", m.waiting() as f64),
        ("sglang:num_retracted_reqs", "The number of retracted requests.", 0.0),
        ("sglang:num_used_tokens", "The number of used tokens.", used as f64),
        ("sglang:token_usage", "The token usage.", usage),
        ("sglang:full_token_usage", "The token usage for full attention layers.", usage),
        ("sglang:kv_used_tokens", "KV tokens in use.", used as f64),
        ("sglang:kv_available_tokens", "KV tokens free.", max.saturating_sub(used) as f64),
        ("sglang:kv_evictable_tokens", "KV tokens that could be evicted.", named.min(max - used) as f64),
        ("sglang:max_total_num_tokens", "Maximum number of KV tokens.", max as f64),
        ("sglang:page_size", "Tokens in a page.", f64::from(o.block_tokens)),
        ("sglang:num_pages", "Pages.", f64::from(o.blocks())),
        ("sglang:gen_throughput", "The generation throughput (token/s).", throughput),
        ("sglang:cache_hit_rate", "The prefix cache hit rate.", s.last_hit_rate),
        ("sglang:utilization", "The utilization.", m.running() as f64 / f64::from(o.profile.max_running)),
        (
            "sglang:num_prefill_bootstrap_queue_reqs",
            "Requests in the prefill bootstrap queue.",
            bootstrapping,
        ),
        ("sglang:num_prefill_inflight_queue_reqs", "Requests in the prefill inflight queue.", inflight),
        ("sglang:num_decode_prealloc_queue_reqs", "Requests in the decode prealloc queue.", 0.0),
        ("sglang:num_decode_transfer_queue_reqs", "Requests in the decode transfer queue.", receiving),
    ] {
        p.gauge(name, help, v);
    }
    p.counter("sglang:prompt_tokens", "Number of prefill tokens processed.", s.prompt_tokens);
    p.counter("sglang:generation_tokens", "Number of generation tokens processed.", s.generation_tokens);
    p.counter("sglang:cached_tokens", "Number of cached prompt tokens.", s.cached_prompt_tokens);
    p.counter("sglang:num_requests", "Number of requests processed.", s.finished_length + s.finished_stop);
    p.counter("sglang:num_aborted_requests", "Number of requests aborted.", s.aborted);
    for (name, help, h) in [
        ("sglang:time_to_first_token_seconds", "Histogram of time to first token in seconds.", &s.ttft),
        (
            "sglang:inter_token_latency_seconds",
            "Histogram of inter-token latency in seconds.",
            &s.inter_token,
        ),
        ("sglang:e2e_request_latency_seconds", "Histogram of end-to-end request latency in seconds.", &s.e2e),
        ("sglang:queue_time_seconds", "Histogram of queueing time in seconds.", &s.queue),
    ] {
        p.histogram(name, help, h);
    }
    p.out
}
