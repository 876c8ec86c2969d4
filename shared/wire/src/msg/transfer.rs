//! How KV gets from the instance that prefills a prompt to the one that decodes its answer.

use rkyv::{Archive, Deserialize, Serialize};

macro_rules! handoffs {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A way in which engines hand KV over. Order and edits of each stand with the gateway's hand-offs.
        #[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Handoff { $($(#[$doc])* $variant,)* }

        impl Handoff {
            /// All of them, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The spelling in options, configuration and metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The hand-off of that name.
            pub fn find(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

handoffs! {
    /// SGLang: both legs at once, matched by a room at the prefill instance's bootstrap server.
    Sglang = "sglang",
    /// vLLM's NixlConnector: prefill first, its parameters are pasted into the decode leg, which pulls.
    NixlPull = "nixl-pull",
    /// vLLM's NixlPushConnector: both legs at once, matched by an equal request id.
    NixlPush = "nixl-push",
    /// vLLM's MooncakeConnector: both legs at once, matched by a transfer id.
    Mooncake = "mooncake",
    /// vLLM's MoRI-IO connector, read mode: prefill first, its parameters go to the decode leg.
    MoriRead = "mori-read",
    /// vLLM's MoRI-IO connector, write mode: both legs at once.
    MoriWrite = "mori-write",
    /// vLLM's P2pNcclConnector (vLLM 0.9.2 to 0.23): prefill first; the request id names both sockets.
    P2pNccl = "p2p-nccl",
    /// A store that both instances share (LMCache, shared storage, offloading): prefill first, found by content.
    SharedStore = "shared-store",
    /// LMCache's PD backend: prefill first and a notice of the transfer; the decode leg begins with the first token.
    LmcachePd = "lmcache-pd",
    /// llm-d's sidecar beside the decode instance, which runs the prefill leg that a header names.
    Sidecar = "sidecar",
}

impl Handoff {
    /// Whether an instance that only decodes can serve a request without a prefill leg: it then prefills itself.
    pub const fn decodes_alone(self) -> bool {
        !matches!(self, Self::Sglang)
    }

    /// Whether one request may ask for several answers or hold several prompts: elsewhere a hand-off has one consumer.
    pub const fn hands_several(self) -> bool {
        matches!(self, Self::Sglang | Self::SharedStore)
    }

    /// Whether both legs are sent at once, so that the decode leg waits for the transfer by itself.
    pub const fn is_concurrent(self) -> bool {
        matches!(self, Self::Sglang | Self::NixlPush | Self::Mooncake | Self::MoriWrite)
    }
}

/// What an instance's KV connector is, as its agent knows it.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Transfer {
    /// The way.
    pub handoff: Handoff,
    /// Instances hand over to each other only where this is equal: what connectors check when they meet, such as the
    /// engine's version, and the part of the fleet that the network joins. Empty where nothing is known to part them.
    pub domain: String,
    /// Bootstrap server of a prefill instance, `host:port` (SGLang, Mooncake).
    pub bootstrap: Option<String>,
    /// The connector's own socket, `host:port` (MoRI-IO, P2pNccl, LMCache PD).
    pub peer: Option<String>,
    /// Further port of that host (LMCache PD: allocation; MoRI-IO: notices).
    pub peer_port: Option<u16>,
    /// The engine's name in transfers, by data-parallel rank (Mooncake); empty where it is not told.
    pub engine_ids: Vec<String>,
    /// KV bytes of one token.
    pub bytes_per_token: Option<u32>,
}

impl Transfer {
    /// That way, and nothing else known.
    pub fn new(handoff: Handoff) -> Self {
        Self {
            handoff,
            domain: String::new(),
            bootstrap: None,
            peer: None,
            peer_port: None,
            engine_ids: Vec::new(),
            bytes_per_token: None,
        }
    }
}
