//! vLLM's MoRI-IO connector. The request id names both engines, as P2pNccl's does, or in the longer form
//! `host:IP,handshake:PORT,notify:PORT`; a transfer id matches the legs. In read mode the decode side gets what the
//! prefill side told and fetches; in write mode both legs come at once.

use super::Handover;
use super::leg::{Leg, LegError, Params, Peer, Prefill, Reply, Request, Source, place};
use super::{p2p, pull};
use crate::engine::Engine;
use fairlead_wire::msg::Handoff;
use std::fmt::Write as _;

/// `host:IP,handshake:PORT,notify:PORT`.
fn long_form(text: &str) -> Option<(String, u16)> {
    let (mut host, mut port, mut notify) = (None, None, false);
    for part in text.split(',') {
        match part.split_once(':')? {
            ("host", at) => host = Some(at.to_owned()),
            ("handshake", at) => port = at.parse().ok(),
            ("notify", at) => notify = at.parse::<u16>().is_ok(),
            _ => return None,
        }
    }
    Some((host?, port?)).filter(|_| notify)
}

/// Both engines' addresses in an id, prefill first.
fn addresses(id: &str) -> Option<[(String, u16); 2]> {
    let whole = |id: &str| {
        let (prefill, rest) = id.split_once("___prefill_addr_")?.1.split_once("___decode_addr_")?;
        // vLLM may add more after the 32 digits.
        let (decode, unique) = rest.rsplit_once('_')?;
        let hex = unique.len() >= 32 && unique.bytes().take(32).all(|b| b.is_ascii_hexdigit());
        let ends = unique.len() == 32 || unique.as_bytes().get(32) == Some(&b'-');
        Some([long_form(prefill)?, long_form(decode)?]).filter(|_| hex && ends)
    };
    whole(id).or_else(|| p2p::addresses(id))
}

fn both(request: &Request<'_>) -> Result<[(String, u16); 2], LegError> {
    let id = request.header("x-request-id").unwrap_or_default();
    addresses(id)
        .ok_or_else(|| LegError::internal(format!("Cannot parse peer zmq_address from request_id: {id:?}")))
}

fn own(engine: &Engine, at: &(String, u16)) -> Result<(), LegError> {
    if engine.is_at(&at.0, at.1) {
        return Ok(());
    }
    Err(LegError::internal(format!("{}:{} is not this engine's address", at.0, at.1)))
}

/// The prefill leg.
pub(crate) fn prefill(engine: &Engine, request: &Request<'_>, params: &Params) -> Result<Leg, LegError> {
    let [prefill, _] = both(request)?;
    own(engine, &prefill)?;
    let names = vec![params.text("transfer_id")?.to_owned()];
    Ok(Leg::Prefill(Prefill { names, reply: Reply::Mori }))
}

/// The decode leg.
pub(crate) fn decode(engine: &Engine, request: &Request<'_>, params: &Params) -> Result<Leg, LegError> {
    let [prefill, decode] = both(request)?;
    own(engine, &decode)?;
    let key = params.text("transfer_id")?.to_owned();
    let reads = engine.handover.as_ref().is_some_and(|h| h.options.handoff == Handoff::MoriRead);
    if reads && !params.truth("remote_block_ids") {
        return Err(LegError::internal("kv_transfer_params: read mode without remote_block_ids"));
    }
    // The parameters' own address counts before the id's, as in the engine.
    let addr = match params.0.contains_key("remote_host") {
        true => params.remote()?,
        false => place(&prefill.0, prefill.1),
    };
    let engine_id = match reads {
        true => Some(params.text("remote_engine_id")?.to_owned()),
        false => None,
    };
    Ok(Leg::Decode(Source::Peers(vec![Peer { addr, engine_id, key }])))
}

/// `kv_transfer_params` of the prefill side's answer, as text.
pub(crate) fn reply(handover: &Handover, key: &str, blocks: u32) -> String {
    let mut out = String::from("{\"do_remote_prefill\": true, \"do_remote_decode\": false, ");
    pull::block_ids(&mut out, key, blocks);
    let (host, port) = handover.side_channel();
    _ = write!(
        out,
        "\"remote_engine_id\": \"{}\", \"remote_host\": \"{host}\", \"remote_port\": {port}, \
         \"remote_handshake_port\": {port}, \"remote_notify_port\": {port}, \"tp_size\": 1, \"remote_dp_size\": 1, \
         \"transfer_id\": {}, \"sim_verbatim\" :  {}}}",
        handover.engine_id,
        serde_json::Value::from(key),
        pull::opaque("mori")
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_in_two_forms() {
        let at = |h: &str, p| (h.to_owned(), p);
        let hex = "0123456789abcdef0123456789abcdef";
        let long = |end: &str| {
            format!(
                "___prefill_addr_host:10.0.0.1,handshake:6301,notify:61005___decode_addr_host:10.0.0.2,\
                 handshake:6302,notify:61006_{hex}{end}"
            )
        };
        let found = Some([at("10.0.0.1", 6301), at("10.0.0.2", 6302)]);
        assert_eq!(addresses(&long("")), found);
        assert_eq!(addresses(&long("-0-abc")), found);
        assert_eq!(
            addresses(&format!("___prefill_addr_a:1___decode_addr_b:2_{hex}")),
            Some([at("a", 1), at("b", 2)])
        );
        assert_eq!(addresses("plain"), None);
    }
}
