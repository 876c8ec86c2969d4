//! How hand-offs are spoken to engines: which leg comes first, and what each says to the other.
//!
//! | hand-off | order | prefill leg | decode leg |
//! |---|---|---|---|
//! | `sglang` | both at once | host, port and room: header lines from 0.5.15 on, members of the body before | the same |
//! | `nixl-pull` | prefill first | one token, `kv_transfer_params` | those of the prefill leg's answer, as they came |
//! | `nixl-push` | at once, once the prefill engine has told its address | as `nixl-pull` | that address and the request id |
//! | `mooncake` | at once | one token, a transfer id | the same id, bootstrap address, engine id |
//! | `mori-read` | prefill first | one token, both sockets in the request id, a transfer id | as `nixl-pull` |
//! | `mori-write` | at once | as `mori-read` | the same, and the prefill engine's sockets |
//! | `p2p-nccl` | prefill first | one token, both sockets in the request id | the client's body, the same id |
//! | `shared-store` | prefill first | one token | the client's request |
//! | `sidecar` | decode only | none of ours | a header that names the prefill engine |
//!
//! No I/O. Bodies are the client's own bytes with a little new text between them.

mod params;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use fairlead_openai::Api;
use fairlead_openai::splice::{Edited, Edits, Located, Member, decode_copy};
use fairlead_routing::TargetEntry;
use fairlead_wire::msg::{Handoff, Transfer};

pub use params::{PushPeer, told};

use crate::http::RequestId;
use crate::tls::place;

/// Port of SGLang's bootstrap server where nobody tells another.
const BOOTSTRAP_PORT: u16 = 8998;

/// Which leg goes out when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The decode leg, once the prefill leg was answered.
    Sequential,
    /// Both at once.
    Concurrent,
    /// The decode leg alone: its engine has the prefill done.
    DecodeOnly,
}

/// What differs from attempt to attempt.
pub struct Fresh<'a> {
    /// An id that nobody had before.
    pub id: RequestId,
    /// A random number.
    pub number: u64,
    /// What the prefill engine told of its connector before, where it pushes.
    pub push_peer: Option<&'a PushPeer>,
}

/// A request that is to be split.
pub struct Request<'a> {
    /// API it speaks.
    pub api: Api,
    /// Its body.
    pub body: &'a Bytes,
}

/// One leg of it.
#[derive(Debug)]
pub struct Leg {
    /// Header lines besides the client's.
    pub add: Vec<(&'static str, String)>,
    /// The request id, where it is not the client's.
    pub id: Option<String>,
    /// The body.
    pub body: Edited,
}

/// One hand-off between two targets: what its legs say.
#[derive(Debug)]
pub struct Deal {
    order: Order,
    way: Way,
    /// Id of the prefill leg. Never the client's: a request that is tried again would bring it a second time.
    id: String,
    /// The decode leg has the same.
    shared_id: bool,
}

#[derive(Debug)]
enum Way {
    Room(Room),
    /// The decode leg gets what the prefill leg's answer tells.
    Relayed {
        prefill: Bytes,
        mori: bool,
    },
    /// What both legs say is known beforehand.
    Known {
        prefill: Bytes,
        decode: Bytes,
        mori: bool,
    },
    /// Nothing is said but the id.
    Unsaid,
    /// `host:port` of the prefill engine.
    Beside(String),
}

/// Where an SGLang engine's decode side finds its prefill side.
#[derive(Debug)]
struct Room {
    host: String,
    port: u16,
    number: u64,
    /// Rank of the prefill side, where it has several.
    rank: Option<u16>,
    in_headers: bool,
}

impl Deal {
    /// Arranges a hand-off.
    ///
    /// # Errors
    /// Names what is not known of a target, without which its connector cannot be spoken to.
    pub fn new(prefill: &TargetEntry, decode: &TargetEntry, fresh: &Fresh<'_>) -> Result<Self, &'static str> {
        let transfer = prefill.info.transfer.as_ref().ok_or("the prefill target hands nothing over")?;
        let plain = fresh.id.as_str().to_owned();
        let (order, way, id, shared_id) = match transfer.handoff {
            Handoff::Sglang => (Order::Concurrent, Way::Room(Room::new(prefill, fresh.number)), plain, false),
            Handoff::NixlPull => {
                let way = Way::Relayed { prefill: params::nixl_prefill(), mori: false };
                (Order::Sequential, way, plain, true)
            }
            Handoff::NixlPush => match fresh.push_peer {
                None => {
                    let way = Way::Relayed { prefill: params::nixl_prefill(), mori: false };
                    (Order::Sequential, way, plain, true)
                }
                Some(peer) => {
                    let decode = peer.decode(&plain);
                    let way = Way::Known { prefill: params::nixl_prefill(), decode, mori: false };
                    (Order::Concurrent, way, plain, true)
                }
            },
            Handoff::Mooncake => {
                let (prefill, decode) = params::mooncake(prefill, transfer, fresh.id)?;
                (Order::Concurrent, Way::Known { prefill, decode, mori: false }, plain, false)
            }
            Handoff::MoriRead => {
                let id = sockets(prefill, decode, transfer, fresh.id)?;
                let prefill = params::mori_prefill(decode, fresh.id);
                (Order::Sequential, Way::Relayed { prefill, mori: true }, id, true)
            }
            Handoff::MoriWrite => {
                let id = sockets(prefill, decode, transfer, fresh.id)?;
                let known = params::mori_decode(prefill, transfer, fresh.id);
                let prefill = params::mori_prefill(decode, fresh.id);
                (Order::Concurrent, Way::Known { prefill, decode: known, mori: true }, id, true)
            }
            Handoff::P2pNccl => {
                let id = sockets(prefill, decode, transfer, fresh.id)?;
                (Order::Sequential, Way::Unsaid, id, true)
            }
            Handoff::SharedStore => (Order::Sequential, Way::Unsaid, plain, false),
            Handoff::Sidecar => {
                (Order::DecodeOnly, Way::Beside(place(&prefill.address).to_owned()), plain, false)
            }
            Handoff::LmcachePd => return Err("the router does not speak this hand-off"),
        };
        Ok(Self { order, way, id, shared_id })
    }

    /// Which leg goes out when.
    pub fn order(&self) -> Order {
        self.order
    }

    /// Id of the prefill leg.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether the decode leg needs what the prefill leg's answer tells: its [`told`].
    pub fn wants_told(&self) -> bool {
        matches!(self.way, Way::Relayed { .. })
    }

    /// The prefill leg. `None` for a body whose members cannot be told apart.
    pub fn prefill_leg(&self, request: &Request<'_>) -> Option<Leg> {
        let leg = |body| Leg { add: Vec::new(), id: Some(self.id.clone()), body };
        Some(match &self.way {
            Way::Room(room) => Leg { id: Some(self.id.clone()), ..room.leg(request)? },
            Way::Relayed { prefill, mori } | Way::Known { prefill, mori, .. } => {
                let located = Located::of(request.body)?;
                let edits = Edits::new(&located, request.body).prefill(request.api);
                // MoRI-IO's prefill side must not end by itself before its one token.
                let edits = match mori {
                    true => edits.remove(Member::Stop).set(Member::IgnoreEos, "true"),
                    false => edits,
                };
                leg(edits.insert(Member::KvTransferParams, prefill.clone()).finish())
            }
            Way::Unsaid => {
                let located = Located::of(request.body)?;
                leg(Edits::new(&located, request.body).prefill(request.api).finish())
            }
            Way::Beside(_) => return None,
        })
    }

    /// The decode leg, where `told` is the prefill leg's answer to [`Deal::wants_told`]. `None` as for
    /// [`Deal::prefill_leg`].
    pub fn decode_leg(&self, request: &Request<'_>, told: Option<Bytes>) -> Option<Leg> {
        let id = self.shared_id.then(|| self.id.clone());
        let leg = |body| Leg { add: Vec::new(), id, body };
        let with = |params: Bytes| Some(decode_copy(&Located::of(request.body)?, request.body, params));
        Some(match &self.way {
            Way::Room(room) => room.leg(request)?,
            Way::Relayed { .. } => leg(with(told?)?),
            Way::Known { decode, .. } => leg(with(decode.clone())?),
            Way::Unsaid => leg(Edited::from(request.body.clone())),
            Way::Beside(address) => Leg {
                add: vec![("x-prefiller-host-port", address.clone())],
                ..leg(Edited::from(request.body.clone()))
            },
        })
    }
}

impl Room {
    fn new(prefill: &TargetEntry, number: u64) -> Self {
        let told = prefill.info.transfer.as_ref().and_then(|transfer| transfer.bootstrap.as_deref());
        let host = |address: &str| address.rsplit_once(':').map_or(address, |(host, _)| host).to_owned();
        let port = told.and_then(|told| told.rsplit_once(':')?.1.parse().ok()).unwrap_or(BOOTSTRAP_PORT);
        let ranks = u64::from(prefill.info.dp_ranks.max(1));
        // Below 2^62, since the rooms of several answers are numbered on from it. Its remainder tells the decode side
        // the rank.
        let number = number >> 2;
        let number = number - number % ranks + u64::from(prefill.rank) % ranks;
        Self {
            host: host(told.unwrap_or(place(&prefill.address))),
            port,
            number,
            rank: (ranks > 1).then_some(prefill.rank),
            in_headers: reads_headers(&prefill.info.engine_version),
        }
    }

    /// Either leg.
    fn leg(&self, request: &Request<'_>) -> Option<Leg> {
        let (port, number) = (self.port.to_string(), self.number.to_string());
        if self.in_headers {
            let mut add = vec![
                ("x-override-bootstrap-host", self.host.clone()),
                ("x-override-bootstrap-port", port),
                ("x-override-bootstrap-room", number),
            ];
            add.extend(self.rank.map(|rank| ("x-override-disagg-prefill-dp-rank", rank.to_string())));
            return Some(Leg { add, id: None, body: Edited::from(request.body.clone()) });
        }
        let located = Located::of(request.body)?;
        let body = Edits::new(&located, request.body)
            .insert(Member::BootstrapHost, params::text(&self.host))
            .insert(Member::BootstrapPort, port)
            .insert(Member::BootstrapRoom, number)
            .finish();
        Some(Leg { add: Vec::new(), id: None, body })
    }
}

/// Whether an SGLang engine of that version takes the room from headers: from 0.5.15 on, as far as is known. What is not
/// known to take them gets members of the body, which all do.
fn reads_headers(version: &str) -> bool {
    let mut parts = version.trim_start_matches('v').split('.').map(|part| {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        part.get(..digits).and_then(|digits| digits.parse::<u32>().ok())
    });
    let mut next = || parts.next().flatten();
    let (Some(major), Some(minor)) = (next(), next()) else { return false };
    (major, minor, next().unwrap_or(0)) >= (0, 5, 15)
}

/// A request id by which connectors find each other's sockets: P2pNccl's form, or MoRI-IO's longer one where the ports of
/// notices are known.
fn sockets(
    prefill: &TargetEntry,
    decode: &TargetEntry,
    transfer: &Transfer,
    id: RequestId,
) -> Result<String, &'static str> {
    let own = |target: &TargetEntry| {
        let transfer = target.info.transfer.as_ref()?;
        Some((transfer.peer.clone()?, transfer.peer_port))
    };
    let (p, p_notify) = own(prefill).ok_or("the connector's socket of the prefill target is not known")?;
    let (d, d_notify) = own(decode).ok_or("the connector's socket of the decode target is not known")?;
    let id = id.as_str();
    if transfer.handoff != Handoff::P2pNccl
        && let (Some(p_notify), Some(d_notify)) = (p_notify, d_notify)
        && let (Some((p_host, p_port)), Some((d_host, d_port))) = (p.rsplit_once(':'), d.rsplit_once(':'))
    {
        return Ok(format!(
            "___prefill_addr_host:{p_host},handshake:{p_port},notify:{p_notify}\
             ___decode_addr_host:{d_host},handshake:{d_port},notify:{d_notify}_{id}"
        ));
    }
    Ok(format!("___prefill_addr_{p}___decode_addr_{d}_{id}"))
}
