//! The JSON that vLLM's connectors get in `kv_transfer_params`, and what is read of theirs.

use bytes::Bytes;
use fairlead_openai::Span;
use fairlead_openai::splice::{member_in, object_of};
use fairlead_routing::TargetEntry;
use fairlead_wire::msg::Transfer;

use crate::http::RequestId;

/// Longest value of a member that is kept of what a prefill engine tells about itself, bytes.
const LONGEST: usize = 512;

/// `kv_transfer_params` of a prefill leg's answer, as they came: a part of `answer`. `None` where it has none, or is no
/// JSON object.
pub fn told(answer: &Bytes) -> Option<Bytes> {
    let Span { start, end } = object_of(answer, "kv_transfer_params")?;
    Some(answer.slice(start..end))
}

/// A prefill leg of NIXL, whether the decode side pulls or the prefill side pushes.
pub(super) fn nixl_prefill() -> Bytes {
    Bytes::from_static(
        br#"{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}"#,
    )
}

/// Both legs of Mooncake.
pub(super) fn mooncake(
    prefill: &TargetEntry,
    transfer: &Transfer,
    id: RequestId,
) -> Result<(Bytes, Bytes), &'static str> {
    let bootstrap =
        transfer.bootstrap.as_deref().ok_or("the prefill target's bootstrap server is not known")?;
    let engine = transfer.engine_ids.get(usize::from(prefill.rank)).filter(|engine| !engine.is_empty());
    let engine = text(engine.ok_or("the prefill target's engine id is not known")?);
    let (address, id) = (text(&format!("http://{bootstrap}")), uuid(id));
    let p = format!(r#"{{"do_remote_decode":true,"do_remote_prefill":false,"transfer_id":"xfer-{id}"}}"#);
    let d = format!(
        r#"{{"do_remote_decode":false,"do_remote_prefill":true,"remote_bootstrap_addr":{address},"remote_engine_id":{engine},"transfer_id":"xfer-{id}"}}"#
    );
    Ok((p.into(), d.into()))
}

/// A prefill leg of MoRI-IO. Its tensor-parallel size is taken to be the other side's: nobody tells it.
pub(super) fn mori_prefill(decode: &TargetEntry, id: RequestId) -> Bytes {
    let (ranks, id) = (decode.info.dp_ranks, uuid(id));
    let text = format!(
        r#"{{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"transfer_id":"tx-{id}","remote_dp_size":{ranks}}}"#
    );
    text.into()
}

/// A decode leg of MoRI-IO that does not wait for the prefill leg's answer.
pub(super) fn mori_decode(prefill: &TargetEntry, transfer: &Transfer, id: RequestId) -> Bytes {
    let (ranks, rank, id) = (prefill.info.dp_ranks, prefill.rank, uuid(id));
    let mut out = format!(
        r#"{{"do_remote_decode":false,"do_remote_prefill":true,"remote_engine_id":null,"remote_block_ids":null,"transfer_id":"tx-{id}","remote_dp_size":{ranks},"remote_dp_rank":{rank}"#
    );
    if let Some((host, port)) = transfer.peer.as_deref().and_then(|peer| peer.rsplit_once(':'))
        && let Ok(port) = port.parse::<u16>()
    {
        let host = text(host);
        out.push_str(&format!(
            r#","remote_host":{host},"remote_port":{port},"remote_handshake_port":{port}"#
        ));
        if let Some(notify) = transfer.peer_port {
            out.push_str(&format!(r#","remote_notify_port":{notify}"#));
        }
    }
    out.push('}');
    out.into()
}

/// What a prefill engine that pushes tells of itself: all that a decode leg must know to be sent at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushPeer {
    /// The object up to the request's own member.
    start: String,
}

impl PushPeer {
    /// From the [`told`] of a prefill leg. `None` where it does not push, or does not tell all of it.
    pub fn of(told: &Bytes) -> Option<Self> {
        let whole = Span { start: 0, end: told.len() };
        let raw = |name: &str| {
            let Span { start, end } = member_in(told, whole, name)?;
            let value = std::str::from_utf8(told.get(start..end)?).ok()?;
            (value.len() <= LONGEST && value != "null").then_some(value)
        };
        if raw("transfer_mode")? != r#""push""# {
            return None;
        }
        let mut start = String::from(r#"{"do_remote_prefill":true,"do_remote_decode":false"#);
        for (name, needed) in [
            ("remote_engine_id", true),
            ("remote_host", true),
            ("remote_port", true),
            ("tp_size", false),
            ("dcp_size", false),
            ("pp_size", false),
        ] {
            match raw(name) {
                Some(value) => start.push_str(&format!(r#","{name}":{value}"#)),
                None if needed => return None,
                None => {}
            }
        }
        Some(Self { start })
    }

    /// The decode leg of a request with that id.
    pub(super) fn decode(&self, id: &str) -> Bytes {
        format!(r#"{},"remote_request_id":{}}}"#, self.start, text(id)).into()
    }
}

/// A text as JSON.
pub(super) fn text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// An id in the form of a UUID.
fn uuid(id: RequestId) -> String {
    let id = id.as_str();
    let part = |from, to| id.get(from..to).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}
