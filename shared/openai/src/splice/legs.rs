//! The bodies of the two legs of a hand-off in which vLLM's connectors agree.

use bytes::Bytes;

use super::{Edited, Edits, Located, Member};
use crate::api::Api;

impl Edits<'_> {
    /// Makes the request one that only prefills: one token, one answer, no stream. Of the two spellings of a chat's
    /// limit only that which the client uses remains, because strict engines refuse both at once.
    pub fn prefill(self, api: Api) -> Self {
        let mut edits = self
            .set_if_present(Member::Stream, "false")
            .remove(Member::StreamOptions)
            .remove(Member::MinTokens)
            .set_if_present(Member::N, "1");
        let (limit, others) = match api {
            Api::Chat if edits.says(Member::MaxCompletionTokens) => {
                (Member::MaxCompletionTokens, [Member::MaxTokens, Member::MaxOutputTokens])
            }
            Api::Responses => (Member::MaxOutputTokens, [Member::MaxTokens, Member::MaxCompletionTokens]),
            _ => (Member::MaxTokens, [Member::MaxCompletionTokens, Member::MaxOutputTokens]),
        };
        for other in others {
            edits = edits.remove(other);
        }
        edits.set(limit, "1")
    }

    /// Whether the body has the member with a value other than `null`.
    fn says(&self, member: Member) -> bool {
        self.located.value(member).is_some_and(|span| span.of(self.body) != b"null")
    }
}

/// The body of a prefill leg: the client's with the limits of [`Edits::prefill`], and with `kv_transfer_params` if the
/// connector takes any.
pub fn prefill_copy(located: &Located, body: &Bytes, api: Api, kv_transfer_params: Option<Bytes>) -> Edited {
    let edits = Edits::new(located, body).prefill(api);
    match kv_transfer_params {
        Some(value) => edits.insert(Member::KvTransferParams, value).finish(),
        None => edits.finish(),
    }
}

/// The body of a decode leg: the client's, with `kv_transfer_params` put in.
pub fn decode_copy(located: &Located, body: &Bytes, kv_transfer_params: Bytes) -> Edited {
    Edits::new(located, body).insert(Member::KvTransferParams, kv_transfer_params).finish()
}
