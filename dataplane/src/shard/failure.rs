//! What a client is told when no target could serve its request.

use fairlead_routing::NoPlan;

use super::answer::Refusal;
use super::decide::Prompt;
use super::upstream::Cause;

/// The answer for a request that found no target.
pub fn no_plan(why: NoPlan, prompt: &Prompt, cause: Option<Cause>) -> Refusal {
    match (why, cause) {
        (NoPlan::UnknownModel, None) => {
            // The model was there when the body was read; its last target has just gone.
            Refusal::new(503, format!("no target serves `{}` any more", prompt.model)).retry_after(1)
        }
        (_, Some(cause)) => failed(cause),
        (NoPlan::NoneMatches, None) => {
            Refusal::new(503, format!("no target of `{}` matches the label filter", prompt.model))
                .code("no_matching_target")
        }
        (NoPlan::NoneWhole, None) => Refusal::new(
            503,
            format!(
                "no target of `{}` serves whole requests, and this one cannot be split now",
                prompt.model
            ),
        )
        .code("no_whole_target")
        .retry_after(1),
        (NoPlan::NoneReady | NoPlan::AllTried, None) => {
            Refusal::new(503, format!("no target of `{}` is ready", prompt.model))
                .code("no_ready_target")
                .retry_after(1)
        }
    }
}

/// The answer for a request whose last attempt failed.
pub fn failed(cause: Cause) -> Refusal {
    match cause {
        Cause::Refused => Refusal::new(502, "the engine cannot be reached").code("upstream_unreachable"),
        Cause::ConnectTimeout => {
            Refusal::new(504, "connecting to the engine took too long").code("upstream_timeout")
        }
        Cause::Died => {
            Refusal::new(502, "the engine closed the connection before it answered").code("upstream_error")
        }
        Cause::Broken(what) => {
            Refusal::new(502, format!("the engine's answer cannot be read: {what}")).code("upstream_error")
        }
        Cause::PrefillTimeout => {
            Refusal::new(504, "the prompt was not computed in time").code("upstream_timeout")
        }
        Cause::HandoffRefused => {
            Refusal::new(502, "the engine did not take what another one had prefilled").code("upstream_error")
        }
        Cause::Untrusted => Refusal::new(502, "no trusted TLS connection to the engine comes about")
            .code("upstream_untrusted"),
        Cause::Exhausted => Refusal::new(503, "the router is out of sockets").retry_after(1),
        Cause::Busy => Refusal::new(503, "the engine is busy").retry_after(1),
    }
}
