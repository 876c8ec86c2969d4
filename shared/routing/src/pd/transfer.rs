//! What it takes to hand KV over.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::policy::{Candidate, Decision};
use crate::settings::DynamicPdSettings;

/// Weight of an observation in the mean.
const SEEN: f32 = 1.0 / 16.0;
/// How far observations move the prediction from the prior.
const RANGE: (f32, f32) = (0.1, 20.0);

/// By what factor transfers of a model's KV take longer than the prior says, as this gateway has seen it. Of answers that
/// end at once, one may go uncounted.
#[derive(Debug)]
pub struct TransferCell(AtomicU32);

impl Default for TransferCell {
    fn default() -> Self {
        Self(AtomicU32::new(1.0f32.to_bits()))
    }
}

impl TransferCell {
    /// The factor; 1 before anything was seen.
    #[inline]
    pub fn factor(&self) -> f32 {
        f32::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// A hand-off was predicted to take so long and took so long, microseconds: from the end of the prefill leg to the
    /// decode leg's first token, that token's step taken off.
    pub fn learn(&self, predicted_us: f32, took_us: f32) {
        let (factor, (low, high)) = (self.factor(), RANGE);
        if predicted_us > 0.0 && took_us.is_finite() {
            // The prediction already holds the factor.
            let sample = (took_us.max(0.0) / predicted_us * factor).clamp(low, high);
            self.0.store((factor + SEEN * (sample - factor)).clamp(low, high).to_bits(), Ordering::Relaxed);
        }
    }
}

/// Transfer times within one decision.
pub(super) struct Transfers {
    /// Microseconds besides the bytes.
    base: f32,
    /// Microseconds a token, between hosts and within one.
    token: f32,
    local_token: f32,
}

impl Transfers {
    /// Source of the form: `g0 + tokens × KV bytes per token / bandwidth`, as Mooncake's conductor takes it.
    pub(super) fn new(decision: &Decision<'_>, settings: &DynamicPdSettings, of: &Candidate) -> Self {
        let told = decision.target(of).info.transfer.as_ref().and_then(|transfer| transfer.bytes_per_token);
        let bytes = told.map_or(settings.kv_bytes_per_token, |bytes| bytes as f32);
        let factor = decision.model.transfer.factor();
        // Bytes over gigabytes per second are nanoseconds.
        let token = |gbps: f32| factor * bytes / gbps / 1e3;
        Self {
            base: factor * settings.transfer_ms * 1e3,
            token: token(settings.transfer_gbps),
            local_token: token(settings.transfer_local_gbps.max(settings.transfer_gbps)),
        }
    }

    /// What the tokens that `to` does not hold take from any other host, microseconds.
    #[inline]
    pub(super) fn between_hosts(&self, decision: &Decision<'_>, to: &Candidate) -> f32 {
        self.base + self.token * decision.request.uncached(to.cached_blocks) as f32
    }

    /// What they take from `from`.
    pub(super) fn time(&self, decision: &Decision<'_>, from: &Candidate, to: &Candidate) -> f32 {
        let (p, d) = (decision.target(from), decision.target(to));
        let same = !p.info.host.is_empty() && p.info.host == d.info.host;
        let token = if same { self.local_token } else { self.token };
        self.base + token * decision.request.uncached(to.cached_blocks) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_follows_what_transfers_take_within_bounds() {
        let cell = TransferCell::default();
        for _ in 0..200 {
            cell.learn(1_000.0 * cell.factor(), 3_000.0);
        }
        assert!((cell.factor() - 3.0).abs() < 0.05, "{}", cell.factor());
        for _ in 0..200 {
            cell.learn(1_000.0, f32::INFINITY);
            cell.learn(0.0, 5.0);
        }
        assert!((cell.factor() - 3.0).abs() < 0.05);
        for _ in 0..400 {
            cell.learn(1.0, 1e9);
        }
        assert!(cell.factor() <= RANGE.1);
    }
}
