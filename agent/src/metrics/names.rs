//! The names that matter, of every generation in use.

use fairlead_wire::msg::EngineKind;

/// How several series of one name and rank become one figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// The largest counts: engines that export one series per tensor-parallel worker repeat the same figure.
    Gauge,
    /// They add up: totals are split by source or by caller-defined labels.
    Counter,
}

/// A figure picked from the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Field {
    /// Requests running.
    Running,
    /// Requests waiting.
    Waiting,
    /// Share of KV room in use.
    KvUsage,
    /// The same under vLLM's name up to 0.11.
    KvUsageOld,
    /// Prompt tokens since start.
    PromptTokens,
    /// Generated tokens since start.
    GenerationTokens,
    /// Tokens looked up in the prefix cache.
    CacheQueries,
    /// Tokens found in the prefix cache.
    CacheHits,
    /// [`Field::CacheQueries`] under vLLM's name up to 0.11.
    CacheQueriesOld,
    /// [`Field::CacheHits`] under vLLM's name up to 0.11.
    CacheHitsOld,
    /// Cache hit rate as the engine computes it.
    HitRate,
    /// Generated tokens per second as the engine computes it.
    GenThroughput,
    /// KV room in tokens.
    KvTokens,
    /// KV blocks.
    KvBlocks,
    /// Tokens in a KV block.
    BlockSize,
    /// Share of the KV room outside of the accelerator in use.
    HostKvUsage,
    /// Tokens held there.
    HostKvUsed,
    /// Tokens that fit there.
    HostKvTokens,
    /// Share of what the engine can take that is in use, as it computes it.
    Utilization,
    /// Seconds that all requests since start waited, and how many requests those are.
    QueueTime,
    /// Of [`Field::QueueTime`].
    QueueTimeCount,
    /// Seconds of prefill.
    PrefillTime,
    /// Of [`Field::PrefillTime`].
    PrefillTimeCount,
    /// Seconds of decoding.
    DecodeTime,
    /// Of [`Field::DecodeTime`].
    DecodeTimeCount,
    /// Seconds to the first token.
    FirstTokenTime,
    /// Of [`Field::FirstTokenTime`].
    FirstTokenTimeCount,
    /// Seconds of whole requests.
    WholeTime,
    /// Of [`Field::WholeTime`].
    WholeTimeCount,
    /// Prompt tokens of requests that have ended.
    RequestPrompt,
    /// Of [`Field::RequestPrompt`].
    RequestPromptCount,
    /// Generated tokens of requests that have ended.
    RequestGeneration,
    /// Of [`Field::RequestGeneration`].
    RequestGenerationCount,
    /// Requests that have ended.
    Requests,
}

impl Field {
    /// Number of fields.
    pub const COUNT: usize = 34;

    /// Every field, by index.
    pub const ALL: [Field; Field::COUNT] = [
        Field::Running,
        Field::Waiting,
        Field::KvUsage,
        Field::KvUsageOld,
        Field::PromptTokens,
        Field::GenerationTokens,
        Field::CacheQueries,
        Field::CacheHits,
        Field::CacheQueriesOld,
        Field::CacheHitsOld,
        Field::HitRate,
        Field::GenThroughput,
        Field::KvTokens,
        Field::KvBlocks,
        Field::BlockSize,
        Field::HostKvUsage,
        Field::HostKvUsed,
        Field::HostKvTokens,
        Field::Utilization,
        Field::QueueTime,
        Field::QueueTimeCount,
        Field::PrefillTime,
        Field::PrefillTimeCount,
        Field::DecodeTime,
        Field::DecodeTimeCount,
        Field::FirstTokenTime,
        Field::FirstTokenTimeCount,
        Field::WholeTime,
        Field::WholeTimeCount,
        Field::RequestPrompt,
        Field::RequestPromptCount,
        Field::RequestGeneration,
        Field::RequestGenerationCount,
        Field::Requests,
    ];

    /// Position in a row of cells.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Bit in a mask of fields.
    pub const fn bit(self) -> u64 {
        1 << (self as u64)
    }

    /// How series combine.
    pub const fn nature(self) -> Nature {
        match self {
            Field::PromptTokens
            | Field::GenerationTokens
            | Field::CacheQueries
            | Field::CacheHits
            | Field::CacheQueriesOld
            | Field::CacheHitsOld
            | Field::QueueTime
            | Field::QueueTimeCount
            | Field::PrefillTime
            | Field::PrefillTimeCount
            | Field::DecodeTime
            | Field::DecodeTimeCount
            | Field::FirstTokenTime
            | Field::FirstTokenTimeCount
            | Field::WholeTime
            | Field::WholeTimeCount
            | Field::RequestPrompt
            | Field::RequestPromptCount
            | Field::RequestGeneration
            | Field::RequestGenerationCount
            | Field::Requests => Nature::Counter,
            _ => Nature::Gauge,
        }
    }

    /// Properties of the configuration: equal on all ranks, so a series without a rank label speaks for each.
    pub const fn is_constant(self) -> bool {
        matches!(self, Field::KvTokens | Field::KvBlocks | Field::BlockSize)
    }
}

/// What a name on the page means to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pick {
    /// The value is this field.
    Value(Field),
    /// vLLM's cache configuration: the figures are label values.
    CacheConfig,
    /// When the process started, seconds.
    ProcessStart,
    /// When the engine made its counters, seconds: its start, for pages without process figures.
    CounterStart,
}

/// Looks a metric name up. The cheap tests come first: most lines end at the first byte or at the prefix.
pub(super) fn pick(name: &[u8]) -> Option<(Option<EngineKind>, Pick)> {
    match name.first()? {
        b'v' => {
            let rest = name.strip_prefix(b"vllm:").or_else(|| name.strip_prefix(b"vllm_"))?;
            vllm(rest).map(|pick| (Some(EngineKind::Vllm), pick))
        }
        b's' => {
            let rest = name.strip_prefix(b"sglang:").or_else(|| name.strip_prefix(b"sglang_"))?;
            sglang(rest).map(|pick| (Some(EngineKind::Sglang), pick))
        }
        b'p' if name == b"process_start_time_seconds" => Some((None, Pick::ProcessStart)),
        // xLLM puts nothing before its names.
        b'e' if name == b"engine_utilization" => Some((None, Pick::Value(Field::Utilization))),
        b'k' if name == b"kv_cache_utilization" => Some((None, Pick::Value(Field::KvUsage))),
        _ => None,
    }
}

fn vllm(name: &[u8]) -> Option<Pick> {
    Some(Pick::Value(match name {
        b"num_requests_running" => Field::Running,
        b"num_requests_waiting" => Field::Waiting,
        b"kv_cache_usage_perc" => Field::KvUsage,
        b"gpu_cache_usage_perc" => Field::KvUsageOld,
        b"prompt_tokens_total" => Field::PromptTokens,
        b"generation_tokens_total" => Field::GenerationTokens,
        b"prefix_cache_queries_total" => Field::CacheQueries,
        b"prefix_cache_hits_total" => Field::CacheHits,
        b"gpu_prefix_cache_queries_total" => Field::CacheQueriesOld,
        b"gpu_prefix_cache_hits_total" => Field::CacheHitsOld,
        b"cpu_cache_usage_perc" => Field::HostKvUsage,
        b"request_queue_time_seconds_sum" => Field::QueueTime,
        b"request_queue_time_seconds_count" => Field::QueueTimeCount,
        b"request_prefill_time_seconds_sum" => Field::PrefillTime,
        b"request_prefill_time_seconds_count" => Field::PrefillTimeCount,
        b"request_decode_time_seconds_sum" => Field::DecodeTime,
        b"request_decode_time_seconds_count" => Field::DecodeTimeCount,
        b"request_prompt_tokens_sum" => Field::RequestPrompt,
        b"request_prompt_tokens_count" => Field::RequestPromptCount,
        b"request_generation_tokens_sum" => Field::RequestGeneration,
        b"request_generation_tokens_count" => Field::RequestGenerationCount,
        b"cache_config_info" => return Some(Pick::CacheConfig),
        b"prompt_tokens_created" => return Some(Pick::CounterStart),
        _ => return None,
    }))
}

fn sglang(name: &[u8]) -> Option<Pick> {
    Some(Pick::Value(match name {
        b"num_running_reqs" => Field::Running,
        b"num_queue_reqs" => Field::Waiting,
        b"token_usage" => Field::KvUsage,
        b"prompt_tokens_total" => Field::PromptTokens,
        b"generation_tokens_total" => Field::GenerationTokens,
        b"gen_throughput" => Field::GenThroughput,
        b"cache_hit_rate" => Field::HitRate,
        b"max_total_num_tokens" => Field::KvTokens,
        b"num_pages" => Field::KvBlocks,
        b"page_size" => Field::BlockSize,
        b"hicache_host_used_tokens" => Field::HostKvUsed,
        b"hicache_host_total_tokens" => Field::HostKvTokens,
        b"utilization" => Field::Utilization,
        b"queue_time_seconds_sum" => Field::QueueTime,
        b"queue_time_seconds_count" => Field::QueueTimeCount,
        b"time_to_first_token_seconds_sum" => Field::FirstTokenTime,
        b"time_to_first_token_seconds_count" => Field::FirstTokenTimeCount,
        b"e2e_request_latency_seconds_sum" => Field::WholeTime,
        b"e2e_request_latency_seconds_count" => Field::WholeTimeCount,
        b"num_requests_total" => Field::Requests,
        b"prompt_tokens_created" => return Some(Pick::CounterStart),
        _ => return None,
    }))
}

/// The fields a page of this engine should carry, each with the name to put in the log when it does not. Where two
/// generations have two names, either will do.
pub(crate) fn expected(kind: EngineKind) -> &'static [(u64, &'static str)] {
    const VLLM: &[(u64, &str)] = &[
        (Field::Running.bit(), "vllm:num_requests_running"),
        (Field::Waiting.bit(), "vllm:num_requests_waiting"),
        (Field::KvUsage.bit() | Field::KvUsageOld.bit(), "vllm:kv_cache_usage_perc"),
        (Field::PromptTokens.bit(), "vllm:prompt_tokens_total"),
        (Field::GenerationTokens.bit(), "vllm:generation_tokens_total"),
        (Field::CacheQueries.bit() | Field::CacheQueriesOld.bit(), "vllm:prefix_cache_queries_total"),
        (Field::CacheHits.bit() | Field::CacheHitsOld.bit(), "vllm:prefix_cache_hits_total"),
        (Field::KvBlocks.bit(), "vllm:cache_config_info{num_gpu_blocks}"),
        (Field::BlockSize.bit(), "vllm:cache_config_info{block_size}"),
    ];
    const SGLANG: &[(u64, &str)] = &[
        (Field::Running.bit(), "sglang:num_running_reqs"),
        (Field::Waiting.bit(), "sglang:num_queue_reqs"),
        (Field::KvUsage.bit(), "sglang:token_usage"),
        (Field::PromptTokens.bit(), "sglang:prompt_tokens_total"),
        (Field::GenerationTokens.bit() | Field::GenThroughput.bit(), "sglang:gen_throughput"),
        (Field::HitRate.bit(), "sglang:cache_hit_rate"),
    ];
    match kind {
        EngineKind::Vllm => VLLM,
        EngineKind::Sglang => SGLANG,
        EngineKind::Generic => &[],
    }
}
