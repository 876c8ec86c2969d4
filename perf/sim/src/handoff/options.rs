//! How an engine hands KV over, and what that costs.

use crate::options::BadOption;
use fairlead_wire::msg::{Handoff, ServingRole};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Longest time that may be set, seconds.
const LONGEST: f64 = 1e6;

/// What becomes of a decode leg whose KV did not come (vLLM's `kv_load_failure_policy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OnKvFailure {
    /// The request ends with an error.
    #[default]
    Fail,
    /// The prompt is computed here.
    Recompute,
}

/// How an engine hands KV over. All times are those of a card: like steps, they pass `speed` times faster.
#[derive(Clone, Debug, PartialEq)]
pub struct HandoffOptions {
    /// The way.
    pub handoff: Handoff,
    /// KV bytes of one token.
    pub bytes_per_token: u32,
    /// Bandwidth of a transfer, gigabytes (10^9 bytes) per second.
    pub gigabytes_per_second: f64,
    /// What a transfer takes besides its bytes.
    pub latency: Duration,
    /// How long a prefill instance keeps what nobody has fetched (NIXL, MoRI-IO, P2pNccl), and how long a decode
    /// instance waits for a prefill leg that has not come.
    pub lease: Duration,
    /// How long an SGLang prefill leg waits for the decode side to enter its room.
    pub bootstrap_timeout: Duration,
    /// How long an SGLang decode leg waits for its KV.
    pub waiting_timeout: Duration,
    /// Lease and waiting time of Mooncake.
    pub abort_timeout: Duration,
    /// Engines hand over to each other only where this is equal.
    pub domain: String,
    /// What a decode leg does without its KV; SGLang always fails.
    pub on_failure: OnKvFailure,
    /// Folder of a shared store; without one, a store in this process for each domain.
    pub store: Option<PathBuf>,
    /// Where LMCache's prefill side tells the router that a transfer has ended: a ZMQ PULL socket.
    pub lmcache_proxy: Option<SocketAddr>,
}

impl HandoffOptions {
    /// That way, at the defaults: an 8B model over 25 GB/s, and the engines' own waiting times.
    pub fn new(handoff: Handoff) -> Self {
        Self {
            handoff,
            bytes_per_token: 131_072,
            gigabytes_per_second: 25.0,
            latency: Duration::from_millis(2),
            lease: Duration::from_secs(30),
            bootstrap_timeout: Duration::from_secs(300),
            waiting_timeout: Duration::from_secs(300),
            abort_timeout: Duration::from_secs(480),
            domain: String::new(),
            on_failure: OnKvFailure::Fail,
            store: None,
            lmcache_proxy: None,
        }
    }

    /// KV bytes of one token in the model of a profile.
    pub fn bytes_per_token_of(profile: &str) -> u32 {
        if profile == "70b-tp4" { 327_680 } else { 131_072 }
    }

    /// How long a transfer of so many tokens takes on a card.
    pub fn transfer(&self, tokens: u32) -> Duration {
        let bytes = f64::from(tokens) * f64::from(self.bytes_per_token);
        self.latency + Duration::from_secs_f64((bytes / (self.gigabytes_per_second * 1e9)).min(LONGEST))
    }

    /// How long shipments are kept for their consumer.
    pub(crate) fn kept(&self) -> Duration {
        if self.handoff == Handoff::Mooncake { self.abort_timeout } else { self.lease }
    }

    /// How long a decode leg waits.
    pub(crate) fn patience(&self) -> Duration {
        match self.handoff {
            Handoff::Sglang => self.waiting_timeout,
            Handoff::Mooncake => self.abort_timeout,
            _ => self.lease,
        }
    }

    /// Refuses values outside their range, and ways that the engine or the role does not have.
    pub(crate) fn validate(&self, role: ServingRole, sglang: bool) -> Result<(), BadOption> {
        let bad = |option, reason: String| Err(BadOption { option, reason });
        let name = self.handoff.as_str();
        if (self.handoff == Handoff::Sglang) != sglang {
            let other = if sglang { "sglang is the only one of SGLang" } else { "is SGLang's, not vLLM's" };
            return bad("handoff", format!("{name}: {other}"));
        }
        if sglang && role == ServingRole::Both {
            return bad("role", "both: an SGLang engine that hands over is prefill or decode".into());
        }
        if !(1..=1 << 30).contains(&self.bytes_per_token) {
            return bad("kv-bytes-per-token", format!("{} is outside 1..=2^30", self.bytes_per_token));
        }
        if !(1e-6..=1e6).contains(&self.gigabytes_per_second) {
            return bad("transfer-gbps", format!("{} is outside 1e-6..=1e6", self.gigabytes_per_second));
        }
        for (option, time, least) in [
            ("transfer-latency", self.latency, Duration::ZERO),
            ("lease", self.lease, Duration::from_millis(1)),
            ("bootstrap-timeout", self.bootstrap_timeout, Duration::from_millis(1)),
            ("waiting-timeout", self.waiting_timeout, Duration::from_millis(1)),
            ("abort-timeout", self.abort_timeout, Duration::from_millis(1)),
        ] {
            if time < least || time.as_secs_f64() > LONGEST {
                let least = least.as_secs_f64();
                return bad(option, format!("{} is outside {least}..={LONGEST} s", time.as_secs_f64()));
            }
        }
        if self.store.is_some() && self.handoff != Handoff::SharedStore {
            return bad("kv-store", format!("{name} has no store, only shared-store has one"));
        }
        if self.lmcache_proxy.is_some() && self.handoff != Handoff::LmcachePd {
            return bad("lmcache-proxy", format!("{name} tells no router, only lmcache-pd does"));
        }
        if self.handoff == Handoff::LmcachePd && role == ServingRole::Prefill && self.lmcache_proxy.is_none()
        {
            return bad("lmcache-proxy", "a prefill engine of lmcache-pd needs one".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_takes_latency_and_bandwidth() {
        let o = HandoffOptions::new(Handoff::NixlPull);
        for (tokens, micros) in [(0, 2_000), (1_000, 7_242), (10_000, 54_428)] {
            assert_eq!(o.transfer(tokens).as_micros(), micros, "{tokens}");
        }
    }

    #[test]
    fn ways_belong_to_engines_and_roles() {
        use ServingRole::{Both, Decode, Prefill};
        for (handoff, role, sglang, wrong) in [
            (Handoff::NixlPull, Both, false, None),
            (Handoff::NixlPull, Prefill, true, Some("handoff")),
            (Handoff::Sglang, Prefill, false, Some("handoff")),
            (Handoff::Sglang, Decode, true, None),
            (Handoff::Sglang, Both, true, Some("role")),
            (Handoff::LmcachePd, Prefill, false, Some("lmcache-proxy")),
            (Handoff::LmcachePd, Decode, false, None),
        ] {
            let said = HandoffOptions::new(handoff).validate(role, sglang).err().map(|e| e.option);
            assert_eq!(said, wrong, "{handoff:?} {role:?}");
        }
        let zero = HandoffOptions { lease: Duration::ZERO, ..HandoffOptions::new(Handoff::NixlPull) };
        assert_eq!(zero.validate(Both, false).unwrap_err().option, "lease");
    }
}
