//! What an answer shows of its target's speed: when its first token came, and how fast the others followed.
//!
//! | answer | its prefill counts as queued until | shows |
//! |---|---|---|
//! | a stream of events | the first event that may bear a token | prefill; decoding, once it has ended well |
//! | embeddings, scores, one token | it begins | prefill, once it has ended well |
//! | anything else that comes whole | the time that was predicted, or its head | nothing: only its end is seen |
//! | an error, cut short, or failed over | it ends | nothing |
//!
//! Of a hand-off, the prefill leg's answer shows prefill, and the decode leg's stream decoding.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use fairlead_openai::{Api, Usage};
use fairlead_routing::{DecodeSeen, Leg, Plan, PrefillSeen, Reservation};
use fairlead_wire::TargetId;

use super::decide::Prompt;
use crate::runtime::Runtime;

/// What a shard tells the control thread about one answer's speed.
#[derive(Debug, Clone, Copy)]
pub struct SpeedNote {
    /// Target that answered.
    pub target: TargetId,
    /// What its first token showed.
    pub prefill: Option<PrefillSeen>,
    /// What the others showed.
    pub decode: Option<DecodeSeen>,
}

/// When a gateway sees an answer's first token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    /// In the stream.
    Streamed,
    /// The answer is ready when the prompt is computed.
    AtOnce,
    /// Never.
    Never,
}

fn sight(prompt: &Prompt) -> Sight {
    match prompt.api {
        Api::Chat | Api::Completions | Api::Responses | Api::Messages if prompt.stream => Sight::Streamed,
        // With several answers the second token is another one's first.
        Api::Chat | Api::Completions | Api::Responses | Api::Messages => {
            if prompt.said.max_output == Some(1) { Sight::AtOnce } else { Sight::Never }
        }
        Api::Embeddings | Api::Rerank | Api::Score => Sight::AtOnce,
        Api::CountTokens | Api::Tokenize | Api::Detokenize | Api::Other => Sight::Never,
    }
}

/// To be called with each plan, before anything else is done with it.
pub fn picked(prompt: &Prompt, plan: &mut Plan) {
    // A decode leg has no prefill to be seen.
    if plan.prefill.is_none() && sight(prompt) == Sight::Never {
        plan.reservation.unseen();
    }
}

/// Whether the first token of the prompt's answer is seen.
pub fn sees_first_token(prompt: &Prompt) -> bool {
    sight(prompt) != Sight::Never
}

/// The prefill leg of a hand-off was answered: what the control thread is to be told of it.
pub fn prefilled(reservation: &mut Reservation, now_us: u64, usage: Option<Usage>) -> Option<SpeedNote> {
    let target = reservation.target().id;
    let seen = corrected(reservation.first_token(now_us)?, usage);
    Some(SpeedNote { target, prefill: Some(seen), decode: None })
}

/// What is not seen is taken to have happened: the prefill is over, or the KV of a decode leg has come.
fn presume(reservation: &mut Reservation, now_us: u64) {
    match reservation.leg() {
        Leg::Decode => drop(reservation.first_token(now_us)),
        Leg::Whole | Leg::Prefill => reservation.presume_prefilled(now_us),
    }
}

/// Waits for the head of the answer. Meanwhile the prefill of an answer that comes whole is taken to end after `prefill`,
/// the time that was predicted; at the latest, when there is a head.
pub async fn presuming<R: Runtime, F: Future>(
    prompt: &Prompt,
    plan: &mut Plan,
    prefill: Duration,
    mut head: Pin<&mut F>,
) -> F::Output {
    if sight(prompt) != Sight::Never {
        return head.await;
    }
    // A timer is large, so it lies elsewhere.
    let mut timer = None;
    let mut presumed = false;
    let reservation = &mut plan.reservation;
    let got = poll_fn(|cx| {
        if let Poll::Ready(got) = head.as_mut().poll(cx) {
            return Poll::Ready(got);
        }
        if !presumed && timer.get_or_insert_with(|| Box::pin(R::sleep(prefill))).as_mut().poll(cx).is_ready()
        {
            presumed = true;
            presume(reservation, R::now_us());
        }
        Poll::Pending
    })
    .await;
    presume(reservation, R::now_us());
    got
}

/// How an answer went that has ended well. Times are of the process's clock, microseconds.
pub struct Went {
    /// What the first token of a stream showed.
    pub seen: Option<PrefillSeen>,
    /// First byte of the body.
    pub first_us: u64,
    /// Last bytes of the body.
    pub last_us: u64,
    /// Tokens, as the engine counted them.
    pub usage: Option<Usage>,
    /// Events of a stream, its end mark included.
    pub events: u64,
}

/// What the control thread is to be told of it.
pub fn note(prompt: &Prompt, reservation: &mut Reservation, went: &Went) -> Option<SpeedNote> {
    let (prefill, decode) = match sight(prompt) {
        Sight::Streamed => {
            let counted = went.events.saturating_sub(1);
            let tokens = went.usage.map_or(counted, |usage| usage.completion_tokens);
            // The tokens of several answers come several at a time.
            let tokens = if prompt.said.several { 0 } else { u32::try_from(tokens).unwrap_or(u32::MAX) };
            (went.seen, reservation.last_token(went.last_us, tokens))
        }
        Sight::AtOnce => (reservation.first_token(went.first_us), None),
        Sight::Never => (None, None),
    };
    let prefill = prefill.map(|seen| corrected(seen, went.usage));
    let target = reservation.target().id;
    (prefill.is_some() || decode.is_some()).then_some(SpeedNote { target, prefill, decode })
}

/// With the prompt's tokens as the engine counted them, and the cached ones, where it tells.
fn corrected(seen: PrefillSeen, usage: Option<Usage>) -> PrefillSeen {
    let Some(usage) = usage.filter(|usage| usage.prompt_tokens > 0) else { return seen };
    let predicted = u64::from(seen.tokens) + u64::from(seen.cached);
    let share = || u64::from(seen.cached) * usage.prompt_tokens / predicted.max(1);
    // It always computes the last token.
    let cached = usage.cached_tokens.unwrap_or_else(share).min(usage.prompt_tokens - 1);
    let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    PrefillSeen { tokens: narrow(usage.prompt_tokens - cached), cached: narrow(cached), ..seen }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_knows_better_what_a_prompt_was() {
        let seen =
            PrefillSeen { span_us: 1, alone: true, tokens: 600, cached: 200, batch: 0.0, context: 0.0 };
        let usage =
            |prompt_tokens, cached_tokens| Some(Usage { prompt_tokens, cached_tokens, completion_tokens: 9 });
        for (usage, want) in [
            (None, (600, 200)),
            (usage(0, None), (600, 200)),
            (usage(1_000, None), (750, 250)),
            (usage(1_000, Some(0)), (1_000, 0)),
            (usage(1_000, Some(900)), (100, 900)),
            (usage(1_000, Some(5_000)), (1, 999)),
        ] {
            let corrected = corrected(seen, usage);
            assert_eq!((corrected.tokens, corrected.cached), want, "{usage:?}");
        }
    }
}
