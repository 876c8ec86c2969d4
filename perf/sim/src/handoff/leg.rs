//! What part of a hand-off a request is, read from its headers and its body.

use super::lmcache::{self, Receiver};
use super::outbox::Goods;
use super::{mooncake, mori, p2p, pull, push, sglang, sidecar};
use crate::engine::Engine;
use crate::model::Refused;
use crate::prompt::Api;
use fairlead_wire::msg::{Handoff, ServingRole};
use hyper::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The two parts of a request that is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LegKind {
    /// Computes the prompt and hands its KV over.
    Prefill,
    /// Takes the KV and makes the answer.
    Decode,
}

/// Why a leg failed, as its client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LegError {
    pub status: StatusCode,
    pub message: String,
}

impl LegError {
    /// The request is wrong.
    pub fn bad(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into() }
    }

    /// The engine could not do it.
    pub fn internal(message: impl Into<String>) -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, message: message.into() }
    }
}

impl From<Refused> for LegError {
    fn from(e: Refused) -> Self {
        let status = match e {
            Refused::TooLarge { .. } => StatusCode::BAD_REQUEST,
            Refused::QueueFull { .. } => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self { status, message: e.to_string() }
    }
}

/// What the prefill side's answer carries in `kv_transfer_params`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Nothing,
    /// NIXL, with the name of its mode.
    Nixl(&'static str),
    Mori,
    /// LMCache: the first token, if it is asked for; the KV is pushed before.
    Push(Receiver),
}

/// Computes a prompt for others.
#[derive(Clone, Debug)]
pub(crate) struct Prefill {
    /// Name of each sequence's shipment; one that the engine makes up where there is none.
    pub names: Vec<String>,
    pub reply: Reply,
}

/// Where a decode leg's KV is.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// At another engine.
    Peers(Vec<Peer>),
    /// In the shared store.
    Store,
    /// Here already: another engine has pushed it.
    Inbox(Goods),
    /// At the engine that this one asks to prefill, `host:port`.
    Prefiller(String),
}

/// A shipment at another engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its `host:port`.
    pub addr: String,
    /// Its name, where the request tells it.
    pub engine_id: Option<String>,
    /// Name of the shipment.
    pub key: String,
}

/// A request's part in a hand-off.
#[derive(Clone, Debug)]
pub(crate) enum Leg {
    Plain,
    Prefill(Prefill),
    Decode(Source),
}

impl Leg {
    pub fn kind(&self) -> Option<LegKind> {
        match self {
            Self::Plain => None,
            Self::Prefill(_) => Some(LegKind::Prefill),
            Self::Decode(_) => Some(LegKind::Decode),
        }
    }
}

/// `kv_transfer_params`.
pub(crate) struct Params(pub Map<String, Value>);

impl Params {
    /// Python's truth of a member.
    pub fn truth(&self, name: &str) -> bool {
        match self.0.get(name) {
            None | Some(Value::Null) => false,
            Some(Value::Bool(b)) => *b,
            Some(Value::Number(n)) => n.as_f64() != Some(0.0),
            Some(Value::String(s)) => !s.is_empty(),
            Some(Value::Array(a)) => !a.is_empty(),
            Some(Value::Object(o)) => !o.is_empty(),
        }
    }

    /// A member that is text and not empty.
    pub fn text(&self, name: &str) -> Result<&str, LegError> {
        let found = self.0.get(name).and_then(Value::as_str).filter(|s| !s.is_empty());
        found.ok_or_else(|| LegError::internal(format!("kv_transfer_params: {name} is missing or no text")))
    }

    /// A port, as a number or in digits.
    pub fn port(&self, name: &str) -> Result<u16, LegError> {
        let found = match self.0.get(name) {
            Some(Value::Number(n)) => n.as_u64().and_then(|n| u16::try_from(n).ok()),
            Some(Value::String(s)) => s.parse().ok(),
            _ => None,
        };
        let wrong = || LegError::internal(format!("kv_transfer_params: {name} is missing or no port"));
        found.filter(|p| *p > 0).ok_or_else(wrong)
    }

    /// `remote_host` and `remote_port` in one.
    pub fn remote(&self) -> Result<String, LegError> {
        Ok(place(self.text("remote_host")?, self.port("remote_port")?))
    }
}

/// `host:port`, an IPv6 address in brackets.
pub(crate) fn place(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// A request as far as hand-offs read it.
pub(crate) struct Request<'a> {
    pub headers: &'a HeaderMap,
    pub api: Api,
    pub root: &'a Map<String, Value>,
}

impl Request<'_> {
    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty())
    }

    /// `kv_transfer_params`, if there are any.
    fn params(&self) -> Result<Option<Params>, LegError> {
        match self.root.get("kv_transfer_params") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(o)) => Ok(Some(Params(o.clone()))),
            Some(_) => Err(LegError::bad("kv_transfer_params: Input should be a valid dictionary")),
        }
    }

    /// How many sequences the request asks for, as far as the body can be read.
    pub fn sequences(&self) -> usize {
        let n = self.root.get("n").and_then(Value::as_u64).unwrap_or(1).clamp(1, 64) as usize;
        n * self.prompts()
    }

    /// Prompts in the body: a list of texts or of lists of ids is several.
    pub fn prompts(&self) -> usize {
        match self.root.get("prompt") {
            Some(Value::Array(items)) if self.api == Api::Completions => match items.first() {
                Some(Value::String(_) | Value::Array(_)) => items.len(),
                _ => 1,
            },
            _ => 1,
        }
    }
}

/// Reads a request. A leg that is wrong has a kind all the same: faults are chosen by it.
pub(crate) fn read(
    engine: &Engine,
    headers: &HeaderMap,
    api: Api,
    body: &[u8],
) -> (Option<LegKind>, Result<Leg, LegError>) {
    let Some(handover) = engine.handover.as_ref().filter(|_| api.generates()) else {
        return (None, Ok(Leg::Plain));
    };
    // What is no object is refused where the prompt is read.
    let Ok(Value::Object(root)) = serde_json::from_slice(body) else { return (None, Ok(Leg::Plain)) };
    let request = Request { headers, api, root: &root };
    if handover.options.handoff == Handoff::Sglang {
        let kind = handover.role_kind();
        return (kind, sglang::read(kind, &request, engine.options.listen.port()));
    }
    let leg = vllm(engine, handover.options.handoff, handover.role, &request);
    let kind = match &leg {
        Ok(leg) => leg.kind(),
        Err(_) => match request.params() {
            Ok(Some(p)) if p.truth("do_remote_decode") => Some(LegKind::Prefill),
            Ok(Some(p)) if p.truth("do_remote_prefill") => Some(LegKind::Decode),
            _ => handover.role_kind(),
        },
    };
    let one = |leg: Leg| match leg.kind() {
        Some(_) if !handover.options.handoff.hands_several() && request.sequences() > 1 => {
            Err(LegError::bad("a hand-off has one consumer: n and the number of prompts must be 1"))
        }
        _ => Ok(leg),
    };
    (kind, leg.and_then(one))
}

fn vllm(
    engine: &Engine,
    handoff: Handoff,
    role: ServingRole,
    request: &Request<'_>,
) -> Result<Leg, LegError> {
    let params = request.params()?;
    match handoff {
        Handoff::P2pNccl => p2p::read(engine, role, request),
        Handoff::SharedStore => Ok(match role {
            // Nothing tells the legs apart but where they are sent.
            ServingRole::Prefill => Leg::Prefill(Prefill { names: Vec::new(), reply: Reply::Nothing }),
            ServingRole::Decode => Leg::Decode(Source::Store),
            ServingRole::Both => Leg::Plain,
        }),
        Handoff::LmcachePd => match &engine.handover {
            Some(handover) => lmcache::read(handover, request, params.as_ref()),
            None => Ok(Leg::Plain),
        },
        Handoff::Sidecar if request.header(sidecar::HEADER).is_some() => sidecar::read(request),
        _ => {
            let Some(params) = params else { return Ok(Leg::Plain) };
            // As vLLM's schedulers ask: the decode side first.
            if params.truth("do_remote_prefill") {
                match handoff {
                    Handoff::NixlPush => push::decode(request, &params),
                    Handoff::Mooncake => mooncake::decode(role, &params),
                    Handoff::MoriRead | Handoff::MoriWrite => mori::decode(engine, request, &params),
                    _ => pull::decode(&params),
                }
            } else if params.truth("do_remote_decode") {
                match handoff {
                    Handoff::NixlPush => Ok(push::prefill(request)),
                    Handoff::Mooncake => mooncake::prefill(role, &params),
                    Handoff::MoriRead | Handoff::MoriWrite => mori::prefill(engine, request, &params),
                    _ => Ok(pull::prefill()),
                }
            } else {
                Ok(Leg::Plain)
            }
        }
    }
}
