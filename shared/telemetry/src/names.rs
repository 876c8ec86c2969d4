//! Names, help texts and labels of the product's metrics. They are surface: dashboards and alerts depend on them.

/// One metric name. Counters' names end in `_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Definition {
    /// The name as it is scraped.
    pub name: &'static str,
    /// One line for the reader of the scrape.
    pub help: &'static str,
    /// Label names, in the order in which values are given.
    pub labels: &'static [&'static str],
}

impl Definition {
    /// Defines a metric.
    pub const fn new(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self { name, help, labels }
    }

    /// The name without the suffix which the text format adds to counters by itself.
    pub(crate) fn family_name(&self) -> &'static str {
        self.name.strip_suffix("_total").unwrap_or(self.name)
    }

    pub(crate) fn pair<'v>(&self, values: impl Iterator<Item = &'v str>) -> Vec<(&'static str, &'v str)> {
        self.labels.iter().copied().zip(values).collect()
    }
}

macro_rules! definitions {
    ($($(#[$doc:meta])* $constant:ident = $name:literal $labels:tt $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Definition = Definition::new($name, $help, &$labels);
        )*

        /// All of the above.
        pub const ALL: &[Definition] = &[$($constant),*];
    };
}

definitions! {
    RESERVATIONS = "fairlead_reservations" ["target", "kind"]
        "What this gateway has in flight at a target: requests, uncached prompt tokens, context tokens decoding";
    REPLICA_EPOCH = "fairlead_replica_epoch" [] "Epoch of the scheduler whose state this gateway holds";
    REPLICA_SEQUENCE = "fairlead_replica_sequence" [] "Last delta that this gateway has applied";
    REPLICA_AGE = "fairlead_replica_age_seconds" [] "Time since this gateway last heard from its scheduler";
    INDEX_BLOCKS = "fairlead_index_blocks" [] "Blocks in the prefix index, counted once per holder";
    INDEX_BYTES = "fairlead_index_bytes" [] "Memory that the prefix index takes";
    PICKS = "fairlead_picks_total" ["policy", "reason"] "Routing decisions by policy and by what decided them";
    POLICY_DEGRADED = "fairlead_policy_degraded" ["policy", "metric"]
        "1 while a policy does without a metric that targets do not report";
    REQUESTS = "fairlead_requests_total" ["model", "code"] "Requests answered, by model and status";
    TTFT = "fairlead_ttft_seconds" [] "Time from a request's head to the first byte of its answer's body";
    TPOT = "fairlead_tpot_seconds" [] "Mean time per output token after the first, per streamed request";
    OVERHEAD = "fairlead_overhead_seconds" [] "Time that the gateway itself added to a request";
    TTFT_PREDICTION = "fairlead_ttft_prediction_ratio" [] "Predicted time to first token over the actual one";
    CACHED_TOKENS_PREDICTION = "fairlead_cached_tokens_prediction_ratio" []
        "Cached prompt tokens as predicted over what the engine reports";
    SCHEDULER_REFUSALS = "fairlead_scheduler_refusals_total" ["code"]
        "Peers refused, by cause: what they said of themselves, malformed frames, no room";
    SCHEDULER_CACHE_SOURCES = "fairlead_scheduler_cache_sources" ["source"]
        "Targets by where the index learns what they hold: their engine's events (partial: some were lost) or placements";
    HANDOFFS = "fairlead_handoffs_total" ["handoff", "outcome"]
        "Requests split between two targets: ok, prefill_failed, decode_failed, refused_local (decoded without the hand-off), cancelled";
    HANDOFF_TIME = "fairlead_handoff_seconds" []
        "Time from the end of a prefill leg to the decode leg's first token, where one follows the other";
    PREFILL_DOWN = "fairlead_prefill_down" ["model"]
        "1 while requests of a split model are served whole because no prefill target can be used";
    RETRIES = "fairlead_retries_total" ["cause"] "Requests sent to another target after one failed";
}
