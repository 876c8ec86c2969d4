//! What can be set about the policies, with the defaults of the systems that they come from.
//!
//! Each setting stands once, in the list at the end: type, default, bounds and meaning. The configuration's keys, its
//! checks and its reference follow from that list by [`Settings::keys`].

use crate::registry::PolicyName;

/// One setting, as a configuration sees it.
#[derive(Clone, Copy, Debug)]
pub struct SettingKey {
    /// Name of the policy that it belongs to.
    pub policy: &'static str,
    /// What that policy's settings are about.
    pub about: &'static str,
    /// Its own name.
    pub key: &'static str,
    /// What it means.
    pub doc: &'static str,
    /// Only whole numbers make sense.
    pub whole: bool,
    /// Least possible value.
    pub low: f64,
    /// Greatest possible value.
    pub high: f64,
    get: fn(&Settings) -> f64,
    set: fn(&mut Settings, f64),
}

/// A value that a setting cannot have.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("{value} is not possible; allowed is a {} from {low} to {high}", if *.whole { "whole number" } else { "number" })]
pub struct BadSetting {
    /// What was given.
    pub value: f64,
    /// Only whole numbers make sense.
    pub whole: bool,
    /// Least possible value.
    pub low: f64,
    /// Greatest possible value.
    pub high: f64,
}

impl SettingKey {
    /// Its value.
    pub fn get(&self, settings: &Settings) -> f64 {
        (self.get)(settings)
    }

    /// Sets it.
    ///
    /// # Errors
    /// The value lies outside of the bounds, or is no whole number where one is needed.
    pub fn set(&self, settings: &mut Settings, value: f64) -> Result<(), BadSetting> {
        let Self { whole, low, high, .. } = *self;
        // What is not a number lies nowhere.
        if !(low..=high).contains(&value) || (whole && value.fract() != 0.0) {
            return Err(BadSetting { value, whole, low, high });
        }
        (self.set)(settings, value);
        Ok(())
    }
}

/// The policies by which `pd-split` picks on each side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sides {
    /// Which prefill target.
    pub prefill: PolicyName,
    /// Which decode target.
    pub decode: PolicyName,
}

trait Number: Copy {
    const WHOLE: bool;
    fn to(self) -> f64;
    fn from(value: f64) -> Self;
}

macro_rules! numbers {
    ($($number:ty, $whole:literal;)*) => {$(
        impl Number for $number {
            const WHOLE: bool = $whole;
            fn to(self) -> f64 {
                self as f64
            }
            fn from(value: f64) -> Self {
                value as $number
            }
        }
    )*};
}
numbers! { f32, false; f64, false; u32, true; u64, true; }

/// The list: for each policy its field, type and name, and for each setting its type, default and bounds.
macro_rules! settings {
    ($(
        $(#[doc = $about:literal])*
        $policy:ident: $group:ident, $name:literal {
            $($(#[doc = $doc:literal])* $key:ident: $number:ty = $default:expr, $low:literal to $high:literal;)*
        }
    )*) => {
        /// Settings of all policies.
        #[derive(Clone, Copy, Debug, Default, PartialEq)]
        pub struct Settings {
            /// The policies of the two sides of `pd-split`.
            pub sides: Sides,
            $(#[doc = concat!("Of `", $name, "`.")] pub $policy: $group,)*
        }

        $(
            $(#[doc = $about])*
            #[derive(Clone, Copy, Debug, PartialEq)]
            pub struct $group {
                $($(#[doc = $doc])* pub $key: $number,)*
            }

            impl $group {
                const ABOUT: &'static str = concat!($($about),*);
            }

            impl Default for $group {
                fn default() -> Self {
                    Self { $($key: $default,)* }
                }
            }
        )*

        const KEYS: &[SettingKey] = &[$($(SettingKey {
            policy: $name,
            about: $group::ABOUT,
            key: stringify!($key),
            doc: concat!($($doc),*),
            whole: <$number as Number>::WHOLE,
            low: $low as f64,
            high: $high as f64,
            get: |settings| settings.$policy.$key.to(),
            set: |settings, value| settings.$policy.$key = <$number as Number>::from(value),
        },)*)*];
    };
}

impl Settings {
    /// Every setting of every policy, those of one policy side by side.
    pub fn keys() -> &'static [SettingKey] {
        KEYS
    }
}

settings! {
    /// Weights of what a choice does to others, against the request's own time to first token.
    cost: CostSettings, "cost" {
        /// On the request's own prefill work.
        own_prefill: f32 = 14.0, 0 to 1000;
        /// On the own prefill work where what is evicted for it is wanted again, times how often it is.
        eviction: f32 = 1.0, 0 to 1000;
        /// On the own prefill work, times the share of time that reading recent contexts takes at the target.
        crowding: f32 = 1.5, 0 to 1000;
        /// On the own prefill work, times the requests that decode at the target.
        disturbance: f32 = 0.2, 0 to 1000;
        /// Own prefill work that disturbs half as much as its length says; shorter work disturbs less yet.
        short_prefill_ms: f32 = 900.0, 0 to 1000000;
        /// On the prefill work queued at the target, times the requests that decode there.
        queue_disturbance: f32 = 0.1, 0 to 1000;
        /// On the decode step with the request in it.
        decode_step: f32 = 60.0, 0 to 1000000;
        /// Mean queue of a target, in multiples of a mean request's own prefill, at which what a choice does to others
        /// counts in full; it counts in proportion below.
        full_backlog: f32 = 10.0, 0.001 to 1000000;
    }

    /// The thresholds of PAI-EAS.
    prefix_cache: PrefixCacheSettings, "prefix-cache" {
        /// Below this share of the prompt's blocks, a match does not decide.
        hit_rate: f64 = 0.5, 0 to 1;
        /// A holder with this many requests before their first token, besides one, is busy.
        waiting: u64 = 2, 0 to 1000000;
        /// A busy holder is still taken while its tokens are within this share above the mean.
        tolerance: f64 = 0.3, 0 to 1000;
    }

    /// Weights of what an instance has, each as a share of what it can have; PAI-EAS states no formula.
    llm_metric_based: LlmMetricBasedSettings, "llm-metric-based" {
        /// On queued requests, over what the engine runs at once.
        queued_weight: f64 = 10.0, 0 to 1000000;
        /// On running requests, over what the engine runs at once.
        running_weight: f64 = 1.0, 0 to 1000000;
        /// On the share of KV room in use.
        kv_weight: f64 = 1.0, 0 to 1000000;
    }

    /// What a key is, and how far a target's keys may fill it.
    consistent_hash: ConsistentHashSettings, "consistent-hash" {
        /// A target takes requests up to this multiple of the mean, then its keys go to the next; 0 is no bound.
        load_factor: f64 = 1.25, 0 to 1000000;
        /// Leading blocks of the prompt that are the key of a request without a session.
        blocks: u32 = 4, 1 to 65536;
    }

    /// Those of the default cost function of Dynamo's KV router.
    dynamo: DynamoSettings, "dynamo" {
        /// Share of the cached blocks that is taken off the blocks to prefill.
        overlap_credit: f64 = 1.0, 0 to 1000;
        /// Weight of blocks to prefill against blocks to decode.
        prefill_scale: f64 = 1.0, 0 to 1000;
        /// Blocks that a request in flight stands for besides its own.
        request_weight: f64 = 0.0, 0 to 1000000;
        /// 0 takes the least cost; the higher, the more evenly targets are drawn.
        temperature: f64 = 0.0, 0 to 1000;
    }

    /// Weights of its scorers: those of llm-d's Helm chart.
    llm_d: LlmDSettings, "llm-d" {
        /// On `queue-scorer`.
        queue: f64 = 2.0, 0 to 1000000;
        /// On `kv-cache-utilization-scorer`.
        kv_cache_utilization: f64 = 2.0, 0 to 1000000;
        /// On `prefix-cache-scorer`.
        prefix_cache: f64 = 3.0, 0 to 1000000;
    }

    /// A scorer of weighted sums.
    load_aware_scorer: LoadAwareScorerSettings, "load-aware-scorer" {
        /// Queued requests from which a target scores 0.
        threshold: u32 = 128, 1 to 1000000;
    }

    /// A scorer of weighted sums.
    active_request_scorer: ActiveRequestScorerSettings, "active-request-scorer" {
        /// Requests in flight up to which a target scores 1.
        idle_threshold: u32 = 0, 0 to 1000000;
        /// Greatest score beyond them.
        max_busy_score: f64 = 1.0, 0 to 1;
    }

    /// A scorer of weighted sums.
    token_load_scorer: TokenLoadScorerSettings, "token-load-scorer" {
        /// Tokens in process from which a target scores 0.
        threshold: u64 = 4194304, 1 to 1000000000;
    }

    /// A scorer of weighted sums.
    prefix_cache_scorer: PrefixCacheScorerSettings, "prefix-cache-scorer" {
        /// Share of the score that goes by the length of the match instead of by its part of the prompt.
        length_weight: f64 = 0.0, 0 to 1;
        /// Cached tokens that count in full there.
        length_scale: u32 = 8192, 1 to 1000000000;
    }

    /// The defaults of sglang-router's command line.
    sglang_cache_aware: SglangCacheAwareSettings, "sglang-cache-aware" {
        /// A match decides when it covers more than this share of the prompt.
        cache_threshold: f64 = 0.3, 0 to 1;
        /// Loads are uneven when they differ by more requests than this, and by `balance_rel` too.
        balance_abs: u64 = 64, 0 to 1000000;
        /// Loads are uneven when the greatest is more than this multiple of the least.
        balance_rel: f64 = 1.5, 0 to 1000000;
    }

    /// Lengths of the request by which targets are compared while no engine tells its own.
    least_latency: LeastLatencySettings, "least-latency" {
        /// Prompt tokens.
        guess_prompt_tokens: f64 = 10.0, 1 to 1000000;
        /// Generated tokens.
        guess_generation_tokens: f64 = 100.0, 1 to 1000000;
    }

    /// Weights of what a target processes.
    throughput: ThroughputSettings, "throughput" {
        /// On prompt tokens per second.
        prompt_weight: f64 = 2.0, 0 to 1000;
        /// On generated tokens per second.
        generation_weight: f64 = 1.0, 0 to 1000;
    }

    /// Those of AIBrix's code (its notes say 16 and 2).
    aibrix_prefix_cache: AibrixPrefixCacheSettings, "aibrix-prefix-cache" {
        /// Where numbers of requests differ by more than this, only targets with the fewest are taken.
        imbalance: u64 = 8, 0 to 1000000;
        /// A holder may have as many requests as the mean and this many standard deviations.
        deviations: f64 = 1.0, 0 to 1000;
    }

    /// Those of AIBrix.
    prefix_cache_preble: PrefixCachePrebleSettings, "prefix-cache-preble" {
        /// Where numbers of requests differ by more than this, only targets with the fewest are taken.
        imbalance: u64 = 8, 0 to 1000000;
        /// A match of more than this share of the prompt decides.
        match_share: f64 = 0.5, 0 to 1;
        /// Tokens that an answer is taken to have.
        output_tokens: f64 = 45.0, 0 to 1000000;
        /// How long a request counts as load of its target, seconds.
        window_s: f64 = 180.0, 1 to 86400;
    }

    /// Those of AIBrix.
    vtc_basic: VtcBasicSettings, "vtc-basic" {
        /// How long tokens count, seconds.
        window_s: f64 = 300.0, 1 to 86400;
        /// On prompt tokens.
        input_weight: f64 = 1.0, 0 to 1000;
        /// On generated tokens.
        output_weight: f64 = 2.0, 0 to 1000;
        /// Least number of tokens by which a user moves on to the next target.
        least_bucket: f64 = 1000.0, 1 to 1000000000;
        /// Requests with which a target counts as full.
        full: f64 = 100.0, 1 to 1000000;
        /// On a target's distance from the user's place.
        fairness_weight: f64 = 1.0, 0 to 1000;
        /// On how full it is.
        utilization_weight: f64 = 1.0, 0 to 1000;
        /// Most that is drawn on top, so that near ties spread.
        noise: f64 = 0.1, 0 to 1000;
    }

    /// Limits of requests that bring none, how sure it is to keep them, and what a transfer of KV takes before any was
    /// seen.
    dynamic_pd_split: DynamicPdSettings, "dynamic-pd-split" {
        /// Time to the first token, milliseconds.
        target_ttft_ms: f32 = 2000.0, 1 to 4000000;
        /// Time per further token, milliseconds.
        target_tpot_ms: f32 = 50.0, 0.1 to 4000000;
        /// Share of a limit up to which a prediction counts as keeping it.
        margin: f32 = 0.85, 0.1 to 1;
        /// What a transfer takes besides its bytes, milliseconds.
        transfer_ms: f32 = 2.0, 0 to 60000;
        /// How fast its bytes pass, gigabytes per second.
        transfer_gbps: f32 = 25.0, 0.01 to 100000;
        /// The same between two instances of one host.
        transfer_local_gbps: f32 = 100.0, 0.01 to 100000;
        /// KV bytes of a token where the instances do not tell.
        kv_bytes_per_token: f32 = 131072.0, 1 to 1000000000;
        /// On placing a part on a target that leans to the other one, as a share of its cost.
        leaning: f32 = 0.3, 0 to 1000;
    }

    /// Those of AIBrix.
    pd: PdSettings, "pd" {
        /// Where outstanding prefills differ by more than this, the prefill target with the fewest is taken.
        prefill_imbalance: u64 = 16, 0 to 1000000;
        /// Where requests at decode targets differ by this or more, the one with the fewest is taken.
        decode_imbalance: u64 = 16, 0 to 1000000;
        /// Where generated tokens per second differ by more than this between decode targets, the slowest is taken.
        throughput_imbalance: f64 = 2048.0, 0 to 1000000000;
        /// On a decode target's requests, over the most of any.
        running_weight: f64 = 1.0, 0 to 1000;
        /// On what a decode target's throughput lacks to the most of any.
        throughput_weight: f64 = 1.0, 0 to 1000;
    }

    /// Limits of requests that bring none, for all policies named `slo`; and what those take for granted.
    slo: SloSettings, "slo" {
        /// Time to the first token, milliseconds; 0 is no limit.
        target_ttft_ms: f64 = 0.0, 0 to 4000000;
        /// Time per further token, milliseconds; 0 is no limit.
        target_tpot_ms: f64 = 0.0, 0 to 4000000;
        /// Most tokens that an answer is taken to have.
        output_tokens: f64 = 256.0, 1 to 1000000;
        /// Greatest load at which a target still takes requests.
        cap: f64 = 1.0, 0.01 to 1000;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_within_its_bounds_and_set_by_its_own_key() {
        let defaults = Settings::default();
        for (at, key) in Settings::keys().iter().enumerate() {
            let default = key.get(&defaults);
            let mut settings = defaults;
            assert!(
                key.low < key.high && key.set(&mut settings, default).is_ok(),
                "{}.{}",
                key.policy,
                key.key
            );
            assert_eq!(settings, defaults);
            let other = if default == key.high { key.low } else { key.high };
            key.set(&mut settings, other).unwrap();
            for (index, one) in Settings::keys().iter().enumerate() {
                let want = if index == at { other as f32 } else { one.get(&defaults) as f32 };
                assert_eq!(one.get(&settings) as f32, want, "{}.{}", one.policy, one.key);
            }
            let same = |one: &&SettingKey| (one.policy, one.key) == (key.policy, key.key);
            assert_eq!(Settings::keys().iter().filter(same).count(), 1);
            let named = key.policy.parse::<crate::PolicyName>().is_ok();
            assert!(named || crate::ScorerName::find(key.policy).is_some(), "{}", key.policy);
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let key = Settings::keys().iter().find(|key| key.key == "waiting").unwrap();
        let mut settings = Settings::default();
        for value in [-1.0, 0.5, 2e6, f64::NAN, f64::INFINITY] {
            assert!(key.set(&mut settings, value).is_err(), "{value}");
        }
        assert_eq!(settings, Settings::default());
        let said = key.set(&mut settings, 0.5).unwrap_err().to_string();
        assert_eq!(said, "0.5 is not possible; allowed is a whole number from 0 to 1000000");
    }
}
