//! vLLM's MooncakeConnector: both legs at once, matched by a transfer id; the decode side learns where the prefill
//! side's workers are from its bootstrap server.

use super::leg::{Leg, LegError, Params, Peer, Prefill, Reply, Source};
use fairlead_wire::msg::ServingRole;

/// The prefill leg.
pub(crate) fn prefill(role: ServingRole, params: &Params) -> Result<Leg, LegError> {
    if role == ServingRole::Decode {
        return Err(LegError::internal("do_remote_decode on a kv_consumer"));
    }
    let names = vec![params.text("transfer_id")?.to_owned()];
    Ok(Leg::Prefill(Prefill { names, reply: Reply::Nothing }))
}

/// The decode leg.
pub(crate) fn decode(role: ServingRole, params: &Params) -> Result<Leg, LegError> {
    if role == ServingRole::Prefill {
        return Err(LegError::internal("do_remote_prefill on a kv_producer"));
    }
    let url = params.text("remote_bootstrap_addr")?;
    let addr = url.strip_prefix("http://").map(|a| a.trim_end_matches('/')).filter(|a| a.contains(':'));
    let wrong = || LegError::internal(format!("remote_bootstrap_addr {url:?} is not http://HOST:PORT"));
    let peer = Peer {
        addr: addr.ok_or_else(wrong)?.to_owned(),
        engine_id: Some(params.text("remote_engine_id")?.to_owned()),
        key: params.text("transfer_id")?.to_owned(),
    };
    Ok(Leg::Decode(Source::Peers(vec![peer])))
}
