//! vLLM's NixlPushConnector: both legs at once, matched by an equal `X-Request-Id`.

use super::leg::{Leg, LegError, Params, Peer, Prefill, Reply, Request, Source};

/// vLLM adds `-` and eight hex digits to a request's id and takes them off again to match the legs.
fn base(id: &str) -> &str {
    match id.rsplit_once('-') {
        Some((base, end)) if end.len() == 8 && end.bytes().all(|b| b.is_ascii_hexdigit()) => base,
        _ => id,
    }
}

/// The prefill leg; without a request id it has one that no decode leg knows.
pub(crate) fn prefill(request: &Request<'_>) -> Leg {
    let names = request.header("x-request-id").map(str::to_owned).into_iter().collect();
    Leg::Prefill(Prefill { names, reply: Reply::Nixl("push") })
}

/// The decode leg.
pub(crate) fn decode(request: &Request<'_>, params: &Params) -> Result<Leg, LegError> {
    let key = request.header("x-request-id").map(str::to_owned);
    let key = key.ok_or_else(|| LegError::internal("no X-Request-Id: the legs cannot be matched"))?;
    let told = params.text("remote_request_id")?;
    if told != key && base(told) != key {
        return Err(LegError::internal(format!("remote_request_id is {told:?}, X-Request-Id {key:?}")));
    }
    let peer =
        Peer { addr: params.remote()?, engine_id: Some(params.text("remote_engine_id")?.to_owned()), key };
    Ok(Leg::Decode(Source::Peers(vec![peer])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_random_end_of_an_id_is_taken_off() {
        for (id, is) in
            [("a-0123abcd", "a"), ("a-0123abcg", "a-0123abcg"), ("a", "a"), ("a-b-00000000", "a-b")]
        {
            assert_eq!(base(id), is);
        }
    }
}
