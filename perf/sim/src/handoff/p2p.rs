//! vLLM's P2pNcclConnector (0.9.2 to 0.23): the request id names both engines' sockets, and nothing else is told.

use super::leg::{Leg, LegError, Peer, Prefill, Reply, Request, Source, place};
use crate::engine::Engine;
use fairlead_wire::msg::ServingRole;

const PREFILL: &str = "___prefill_addr_";
const DECODE: &str = "___decode_addr_";

/// The address after `mark`, as `(.*):(\d+)` finds it in Python: up to the last colon with digits after it, and with
/// `end` after these.
fn address(id: &str, mark: &str, end: &str) -> Option<(String, u16)> {
    let rest = &id[id.find(mark)? + mark.len()..];
    for (colon, _) in rest.rmatch_indices(':') {
        let digits = rest[colon + 1..].bytes().take_while(u8::is_ascii_digit).count();
        let after = &rest[colon + 1 + digits..];
        if digits > 0 && after.starts_with(end) {
            return Some((rest[..colon].to_owned(), rest[colon + 1..][..digits].parse().ok()?));
        }
    }
    None
}

/// Both addresses of an id, prefill first.
pub(crate) fn addresses(id: &str) -> Option<[(String, u16); 2]> {
    Some([address(id, PREFILL, "___")?, address(id, DECODE, "")?])
}

/// Reads a request by its id; one that names no engines is nobody's leg.
pub(crate) fn read(engine: &Engine, role: ServingRole, request: &Request<'_>) -> Result<Leg, LegError> {
    let Some(id) = request.header("x-request-id").filter(|id| id.contains(PREFILL) || id.contains(DECODE))
    else {
        return Ok(Leg::Plain);
    };
    let Some([prefill, decode]) = addresses(id) else {
        return Err(LegError::internal(format!("Request id {id} does not contain hostname and port")));
    };
    let own = |at: &(String, u16)| engine.is_at(&at.0, at.1);
    let prefills = match role {
        ServingRole::Prefill => true,
        ServingRole::Decode => false,
        ServingRole::Both => own(&prefill),
    };
    let here = if prefills { &prefill } else { &decode };
    if !own(here) {
        return Err(LegError::internal(format!("{}:{} is not this engine's address", here.0, here.1)));
    }
    let key = id.to_owned();
    Ok(if prefills {
        Leg::Prefill(Prefill { names: vec![key], reply: Reply::Nothing })
    } else {
        let peer = Peer { addr: place(&prefill.0, prefill.1), engine_id: None, key };
        Leg::Decode(Source::Peers(vec![peer]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_name_both_engines() {
        let at = |h: &str, p| (h.to_owned(), p);
        for (id, found) in [
            (
                "___prefill_addr_10.0.0.1:21001___decode_addr_10.0.0.2:22001_0123abcd",
                Some([at("10.0.0.1", 21001), at("10.0.0.2", 22001)]),
            ),
            ("x___prefill_addr_a:1___decode_addr_b:2", Some([at("a", 1), at("b", 2)])),
            ("___prefill_addr_a:1_decode_addr_b:2_u", None),
            ("___prefill_addr_a___decode_addr_b:2_u", None),
            ("___decode_addr_b:2_u", None),
            ("___prefill_addr_a:99999___decode_addr_b:2_u", None),
        ] {
            assert_eq!(addresses(id), found, "{id}");
        }
    }
}
