//! What an agent is told of the instance's part in hand-offs.

use super::{has_bootstrap, has_peer, has_peer_port};
use fairlead_wire::limits;
use fairlead_wire::msg::{Handoff, ServingRole};

/// Most KV bytes of one token that the protocol carries.
const BYTES_PER_TOKEN_MAX: u32 = 1 << 30;

/// Which hand-off the instance's connector makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HandoffChoice {
    /// The one that the engine tells of, if any.
    #[default]
    Auto,
    /// None, whatever the engine says.
    None,
    /// This one, whatever the engine says.
    Is(Handoff),
}

/// The instance's part in hand-offs between engines, as far as it is told and not found out. All of it comes before
/// what the engine says.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TransferOptions {
    /// The part it plays; `None` for what the engine says, and both where it says nothing.
    pub role: Option<ServingRole>,
    /// How KV is handed over.
    pub handoff: HandoffChoice,
    /// Bootstrap server of the connector, `host:port` as engines reach it. Default: the engine's host as gateways reach
    /// it, and the port that the engine tells, else 8998.
    pub bootstrap: Option<String>,
    /// The connector's own socket, `host:port` as engines reach it.
    pub peer: Option<String>,
    /// A further port of the connector: allocation (LMCache's PD backend), notices (MoRI-IO).
    pub peer_port: Option<u16>,
    /// Engines hand over to each other only within a domain. Default: what their connectors would refuse each other for,
    /// the connector's name and the engine's version.
    pub domain: Option<String>,
    /// KV bytes of one token, from 1 to 2^30.
    pub bytes_per_token: Option<u32>,
}

impl TransferOptions {
    /// Reads a role: `auto`, `both`, `prefill` or `decode`.
    ///
    /// # Errors
    /// What would have been possible.
    pub fn parse_role(text: &str) -> Result<Option<ServingRole>, String> {
        match text {
            "auto" => Ok(None),
            "both" => Ok(Some(ServingRole::Both)),
            "prefill" => Ok(Some(ServingRole::Prefill)),
            "decode" => Ok(Some(ServingRole::Decode)),
            _ => Err(format!("{text:?}: auto, both, prefill and decode are possible")),
        }
    }

    /// Refuses what cannot be; the error names the option and why.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        for (option, place) in [("bootstrap", &self.bootstrap), ("peer", &self.peer)] {
            if let Some(place) = place {
                crate::options::host_of(place).map_err(|why| (option, format!("{place:?}: {why}")))?;
            }
        }
        for (option, given, fits) in [
            ("bootstrap", self.bootstrap.is_some(), has_bootstrap as fn(Handoff) -> bool),
            ("peer", self.peer.is_some(), has_peer),
            ("peer_port", self.peer_port.is_some(), has_peer_port),
            ("transfer_domain", self.domain.is_some(), |_| true),
            ("kv_bytes_per_token", self.bytes_per_token.is_some(), |_| true),
        ] {
            match self.handoff {
                HandoffChoice::None if given => {
                    return Err((option, "means nothing without a hand-off, and handoff says none".into()));
                }
                HandoffChoice::Is(handoff) if given && !fits(handoff) => {
                    return Err((option, format!("the hand-off {:?} has none", handoff.as_str())));
                }
                _ => {}
            }
        }
        if self.peer_port == Some(0) {
            return Err(("peer_port", "a port is a number from 1 to 65535".into()));
        }
        if self.bytes_per_token.is_some_and(|bytes| !(1..=BYTES_PER_TOKEN_MAX).contains(&bytes)) {
            return Err(("kv_bytes_per_token", format!("1 to {BYTES_PER_TOKEN_MAX} are possible")));
        }
        let good = |domain: &str| domain.len() <= limits::MAX_NAME && !domain.contains(char::is_control);
        if self.domain.as_deref().is_some_and(|domain| !good(domain)) {
            let why = format!("at most {} bytes without control characters are possible", limits::MAX_NAME);
            return Err(("transfer_domain", why));
        }
        Ok(())
    }
}

impl HandoffChoice {
    /// Reads `auto`, `none` or the name of a hand-off.
    ///
    /// # Errors
    /// What would have been possible.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            name => Handoff::find(name).map(Self::Is).ok_or_else(|| {
                let names: Vec<_> = Handoff::ALL.iter().map(|handoff| handoff.as_str()).collect();
                format!("{text:?}: auto, none, {} are possible", names.join(", "))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        assert_eq!(HandoffChoice::parse("auto"), Ok(HandoffChoice::Auto));
        assert_eq!(HandoffChoice::parse("none"), Ok(HandoffChoice::None));
        for handoff in Handoff::ALL {
            assert_eq!(HandoffChoice::parse(handoff.as_str()), Ok(HandoffChoice::Is(*handoff)));
        }
        let why = HandoffChoice::parse("nixl").expect_err("no such hand-off");
        assert!(why.contains("nixl-pull") && why.contains("none"), "{why}");
        assert_eq!(TransferOptions::parse_role("auto"), Ok(None));
        assert_eq!(TransferOptions::parse_role("decode"), Ok(Some(ServingRole::Decode)));
        assert!(TransferOptions::parse_role("P").is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        let good = TransferOptions::default();
        let is =
            |handoff| TransferOptions { handoff: HandoffChoice::Is(handoff), ..TransferOptions::default() };
        let none = TransferOptions { handoff: HandoffChoice::None, ..good.clone() };
        let place = || Some("h:1".to_owned());
        for (options, refused) in [
            (good.clone(), None),
            (TransferOptions { bootstrap: place(), peer: place(), peer_port: Some(1), ..good.clone() }, None),
            (TransferOptions { bootstrap: place(), ..is(Handoff::Sglang) }, None),
            (TransferOptions { peer: place(), peer_port: Some(2), ..is(Handoff::LmcachePd) }, None),
            (TransferOptions { domain: Some(String::new()), ..is(Handoff::NixlPull) }, None),
            (TransferOptions { role: Some(ServingRole::Prefill), ..none.clone() }, None),
            (TransferOptions { bootstrap: Some("h".into()), ..good.clone() }, Some("bootstrap")),
            (TransferOptions { peer: Some("h:0".into()), ..good.clone() }, Some("peer")),
            (TransferOptions { bootstrap: place(), ..is(Handoff::NixlPull) }, Some("bootstrap")),
            (TransferOptions { peer: place(), ..is(Handoff::Sglang) }, Some("peer")),
            (TransferOptions { peer_port: Some(1), ..is(Handoff::P2pNccl) }, Some("peer_port")),
            (TransferOptions { peer_port: Some(0), ..good.clone() }, Some("peer_port")),
            (TransferOptions { domain: Some("x".into()), ..none.clone() }, Some("transfer_domain")),
            (TransferOptions { domain: Some("x".repeat(300)), ..good.clone() }, Some("transfer_domain")),
            (TransferOptions { domain: Some("a\nb".into()), ..good.clone() }, Some("transfer_domain")),
            (TransferOptions { bytes_per_token: Some(0), ..good.clone() }, Some("kv_bytes_per_token")),
            (TransferOptions { bytes_per_token: Some(u32::MAX), ..good.clone() }, Some("kv_bytes_per_token")),
            (TransferOptions { bytes_per_token: Some(1), ..none.clone() }, Some("kv_bytes_per_token")),
        ] {
            assert_eq!(options.check().err().map(|(option, _)| option), refused, "{options:?}");
        }
    }
}
