//! llm-d's sidecar beside a decode engine: a header names the prefill engine, and the prefill leg is sent from here.

use super::client;
use super::leg::{Leg, LegError, Params, Peer, Request, Source};
use super::{pull, raw};
use bytes::Bytes;
use hyper::StatusCode;
use serde_json::{Value, json};

/// `host:port` of the prefill engine.
pub(crate) const HEADER: &str = "x-prefiller-host-port";

/// A request with that header.
pub(crate) fn read(request: &Request<'_>) -> Result<Leg, LegError> {
    let addr = request.header(HEADER).unwrap_or_default();
    // The sidecar takes the first of several.
    let addr = addr.split(',').next().unwrap_or_default().trim();
    match addr.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
            Ok(Leg::Decode(Source::Prefiller(addr.to_owned())))
        }
        _ => Err(LegError::bad(format!("{HEADER}: {addr:?} is not HOST:PORT"))),
    }
}

/// What came of the prefill leg.
pub(crate) enum Prefilled {
    /// Its KV can be fetched; the text is the `kv_transfer_params`, as they came.
    Handed(Peer, Bytes),
    /// The prefill engine is unwell: the decode engine does it all.
    Alone,
}

/// Sends the prefill leg. An answer of 4xx is the client's; anything else that is wrong makes the sidecar go on alone.
pub(crate) async fn prefill(
    addr: &str,
    path: &str,
    request_id: &str,
    body: &[u8],
) -> Result<Prefilled, LegError> {
    let Ok(Value::Object(mut root)) = serde_json::from_slice::<Value>(body) else {
        return Ok(Prefilled::Alone);
    };
    root.remove("stream_options");
    root.insert("stream".into(), json!(false));
    root.insert("max_tokens".into(), json!(1));
    if root.contains_key("max_completion_tokens") {
        root.insert("max_completion_tokens".into(), json!(1));
    }
    let params = json!({"do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null,
        "remote_block_ids": null, "remote_host": null, "remote_port": null});
    root.insert("kv_transfer_params".into(), params);
    let body = Bytes::from(Value::Object(root).to_string());
    let (status, answer) = match client::post(addr, path, &[("x-request-id", request_id)], body).await {
        Ok(answered) => answered,
        Err(error) => {
            tracing::debug!(%error, "prefill leg failed, decoding alone");
            return Ok(Prefilled::Alone);
        }
    };
    if status.is_client_error() {
        return Err(LegError { status, message: String::from_utf8_lossy(&answer).into_owned() });
    }
    let told = raw::member(&answer, "kv_transfer_params").filter(|_| status == StatusCode::OK);
    let Some(told) = told.map(|text| answer.slice_ref(text)) else { return Ok(Prefilled::Alone) };
    let Ok(Value::Object(params)) = serde_json::from_slice(&told) else { return Ok(Prefilled::Alone) };
    match pull::decode(&Params(params))? {
        Leg::Decode(Source::Peers(mut peers)) if peers.len() == 1 => {
            Ok(Prefilled::Handed(peers.swap_remove(0), told))
        }
        _ => Ok(Prefilled::Alone),
    }
}
