//! vLLM's NixlConnector: the prefill side tells where its blocks are, the decode side fetches them.

use super::Handover;
use super::leg::{Leg, LegError, Params, Peer, Prefill, Reply, Source};
use std::fmt::Write as _;

/// The prefill leg; its shipment is named at random.
pub(crate) fn prefill() -> Leg {
    Leg::Prefill(Prefill { names: Vec::new(), reply: Reply::Nixl("pull") })
}

/// The decode leg: what the prefill side's answer told.
pub(crate) fn decode(params: &Params) -> Result<Leg, LegError> {
    if !params.truth("remote_block_ids") {
        return Err(LegError::internal("kv_transfer_params: do_remote_prefill without remote_block_ids"));
    }
    let peer = Peer {
        addr: params.remote()?,
        engine_id: Some(params.text("remote_engine_id")?.to_owned()),
        key: params.text("remote_request_id")?.to_owned(),
    };
    Ok(Leg::Decode(Source::Peers(vec![peer])))
}

/// A member that no router knows, written as no serialiser would: only a copy of the bytes equals it.
pub(crate) fn opaque(key: &str) -> String {
    format!(
        "{{ \"say\" : \"a \\\"quoted\\\" ] }} text, \\\\ and \\u00e9\", \"of\":\"{key}\" ,\"n\": [1.50, 2e+3 ,{{ }} ]}}"
    )
}

/// `kv_transfer_params` of the prefill side's answer, as text.
pub(crate) fn reply(
    handover: &Handover,
    mode: &str,
    key: &str,
    tokens: u32,
    blocks: u32,
    until: f64,
) -> String {
    let mut out = String::from("{\"do_remote_prefill\": true, \"do_remote_decode\": false, ");
    block_ids(&mut out, key, blocks);
    let (host, port) = handover.side_channel();
    _ = write!(
        out,
        "\"remote_engine_id\": \"{}\", \"remote_request_id\": \"{key}\", \"remote_host\": \"{host}\", \
         \"remote_port\": {port}, \"tp_size\": 1, \"dcp_size\": 1, \"pp_size\": 1, \"remote_num_tokens\": {tokens}, \
         \"remote_blocks_expiry_time\": {until:.6}, \"remote_registration_generation\": 1, \
         \"transfer_mode\": \"{mode}\", \"sim_verbatim\" :  {}}}",
        handover.engine_id,
        opaque(key)
    );
    out
}

/// Numbers of blocks that nobody looks at, one list for the one group of layers.
pub(crate) fn block_ids(out: &mut String, key: &str, blocks: u32) {
    let first = (xxhash_rust::xxh3::xxh3_64(key.as_bytes()) % 100_000) as u32;
    out.push_str("\"remote_block_ids\": [[");
    for at in 0..blocks.max(1) {
        let comma = if at > 0 { ", " } else { "" };
        _ = write!(out, "{comma}{}", first + at);
    }
    out.push_str("]], ");
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn no_serialiser_writes_what_must_come_back() {
        let text = opaque("k");
        let parsed: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed["of"], "k");
        assert_ne!(parsed.to_string(), text);
    }

    #[test]
    fn a_decode_leg_needs_all_that_was_told() {
        let whole = json!({"do_remote_prefill": true, "remote_block_ids": [[1]], "remote_engine_id": "e",
            "remote_request_id": "r", "remote_host": "h", "remote_port": 5600});
        for gone in
            ["", "remote_block_ids", "remote_engine_id", "remote_request_id", "remote_host", "remote_port"]
        {
            let mut params = whole.as_object().unwrap().clone();
            params.remove(gone);
            assert_eq!(decode(&Params(params)).is_ok(), gone.is_empty(), "{gone}");
        }
    }
}
