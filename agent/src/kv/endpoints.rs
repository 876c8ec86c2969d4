//! Where an engine's events are to be had.

use serde_json::Value;

/// Ranks of one engine that are followed.
const RANKS_MAX: usize = fairlead_wire::limits::MAX_RANKS as usize;

/// One rank's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub rank: u16,
    /// `tcp://host:port` of the engine's PUB socket.
    pub events: String,
    /// `tcp://host:port` of its ROUTER socket.
    pub replay: Option<String>,
}

/// Splits `tcp://host:port`; the host may be an IPv6 address with or without brackets.
fn split(endpoint: &str) -> Result<(&str, u16), String> {
    let rest = endpoint
        .strip_prefix("tcp://")
        .ok_or_else(|| format!("{endpoint:?}: only tcp://HOST:PORT is spoken"))?;
    let bad = || format!("{endpoint:?}: write tcp://HOST:PORT");
    let (host, port) = rest.rsplit_once(':').ok_or_else(bad)?;
    let port = port.parse().map_err(|_| bad())?;
    if port == 0 {
        return Err(bad());
    }
    Ok((host, port))
}

/// An endpoint as it is connected to: `*` and its like are the engine's host, and the port is moved by `offset`.
fn connectable(endpoint: &str, engine: &str, offset: u16) -> Result<String, String> {
    let (host, port) = split(endpoint)?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let host = if matches!(bare, "" | "*" | "0.0.0.0" | "::") { engine } else { bare };
    let port = port.checked_add(offset).ok_or_else(|| format!("{endpoint:?}: no port for rank {offset}"))?;
    Ok(if host.contains(':') { format!("tcp://[{host}]:{port}") } else { format!("tcp://{host}:{port}") })
}

/// Checks an endpoint given by hand.
pub(crate) fn check(endpoint: &str) -> Result<(), String> {
    connectable(endpoint, "localhost", 0).map(drop)
}

/// The streams of endpoints given by hand: one for each rank, or one from which the ranks' ports are counted.
pub(crate) fn given(events: &[String], replay: &[String], engine: &str, ranks: u16) -> Vec<Source> {
    let place = |list: &[String], rank: u16| match list {
        [first] => connectable(first, engine, rank).ok(),
        list => connectable(list.get(usize::from(rank))?, engine, 0).ok(),
    };
    (0..ranks)
        .filter_map(|rank| Some(Source { rank, events: place(events, rank)?, replay: place(replay, rank) }))
        .collect()
}

/// vLLM's `/kv_event_sources`: `{"<rank>": {publisher, endpoint, replay_endpoint, ...}}`, with ports that are the rank's
/// own. An error says what cannot be used.
pub(crate) fn vllm(said: &Value, engine: &str) -> Result<Vec<Source>, String> {
    let entries = said.as_object().ok_or("not an object")?;
    let mut sources = Vec::new();
    for (rank, entry) in entries {
        let Ok(rank) = rank.parse::<u16>() else { continue };
        let text = |key: &str| entry.get(key).and_then(Value::as_str);
        let off = entry.get("enable_kv_cache_events").and_then(Value::as_bool) == Some(false);
        if off || text("publisher").is_some_and(|publisher| publisher != "zmq") {
            continue;
        }
        let Some(endpoint) = text("endpoint") else { continue };
        let events = connectable(endpoint, engine, 0)?;
        let replay = text("replay_endpoint").map(|endpoint| connectable(endpoint, engine, 0)).transpose()?;
        sources.push(Source { rank, events, replay });
    }
    sources.sort_by_key(|source| source.rank);
    sources.truncate(RANKS_MAX);
    Ok(sources)
}

/// SGLang's `kv_events` of `/server_info`: base ports from which the ranks' are counted.
pub(crate) fn sglang(said: &Value, engine: &str) -> Result<Vec<Source>, String> {
    let text = |key: &str| said.get(key).and_then(Value::as_str);
    if text("publisher").is_some_and(|publisher| publisher != "zmq") {
        return Ok(Vec::new());
    }
    let host = text("endpoint_host").unwrap_or("*");
    let number = |key: &str| said.get(key).and_then(Value::as_u64);
    let Some(port) = number("endpoint_port_base") else { return Ok(Vec::new()) };
    let ranks = number("dp_size").unwrap_or(1).clamp(1, RANKS_MAX as u64) as u16;
    let events = format!("tcp://{host}:{port}");
    let replay = number("replay_endpoint_port_base").map(|port| format!("tcp://{host}:{port}"));
    check(&events)?;
    Ok(given(&[events], replay.as_slice(), engine, ranks))
}

#[cfg(test)]
mod tests {
    use super::{Source, given, sglang, vllm};
    use serde_json::json;

    fn source(rank: u16, events: &str, replay: Option<&str>) -> Source {
        Source { rank, events: events.into(), replay: replay.map(Into::into) }
    }

    #[test]
    fn vllm_names_each_rank() {
        let said = json!({
            "1": {"publisher": "zmq", "endpoint": "tcp://*:5558", "replay_endpoint": null},
            "0": {"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://0.0.0.0:5557",
                "replay_endpoint": "tcp://127.0.0.1:5600", "buffer_steps": 10000, "topic": "t"},
            "2": {"publisher": "null", "endpoint": "tcp://*:5559"},
            "3": {"enable_kv_cache_events": false, "endpoint": "tcp://*:5560"},
            "x": {},
        });
        let expected = [
            source(0, "tcp://10.0.0.1:5557", Some("tcp://127.0.0.1:5600")),
            source(1, "tcp://10.0.0.1:5558", None),
        ];
        assert_eq!(vllm(&said, "10.0.0.1").as_deref(), Ok(&expected[..]));
        assert_eq!(
            vllm(&json!({"0": {"endpoint": "tcp://[::]:1"}}), "fe80::1").map(|s| s[0].events.clone()),
            Ok("tcp://[fe80::1]:1".into())
        );
        for bad in ["ipc:///tmp/x", "tcp://*", "tcp://*:0", "tcp://*:99999"] {
            assert!(vllm(&json!({"0": {"endpoint": bad}}), "h").is_err(), "{bad}");
        }
        assert!(vllm(&json!([]), "h").is_err());
    }

    #[test]
    fn sglang_counts_from_a_base() {
        let said = json!({"publisher": "zmq", "endpoint_host": "*", "endpoint_port_base": 5557, "dp_size": 2,
            "replay_endpoint_port_base": 5600, "block_size": 64});
        let expected = [
            source(0, "tcp://e:5557", Some("tcp://e:5600")),
            source(1, "tcp://e:5558", Some("tcp://e:5601")),
        ];
        assert_eq!(sglang(&said, "e").as_deref(), Ok(&expected[..]));
        assert_eq!(sglang(&json!({"publisher": "null"}), "e"), Ok(vec![]));
        assert_eq!(sglang(&json!({}), "e"), Ok(vec![]));
        assert!(sglang(&json!({"endpoint_port_base": 70000}), "e").is_err());
    }

    #[test]
    fn given_endpoints_are_counted_or_listed() {
        let list = |given: &[&str]| given.iter().map(|text| text.to_string()).collect::<Vec<_>>();
        let one = given(&list(&["tcp://h:10"]), &[], "e", 2);
        assert_eq!(one, [source(0, "tcp://h:10", None), source(1, "tcp://h:11", None)]);
        let two = given(&list(&["tcp://h:10", "tcp://*:20"]), &list(&["tcp://h:30"]), "e", 3);
        assert_eq!(
            two,
            [source(0, "tcp://h:10", Some("tcp://h:30")), source(1, "tcp://e:20", Some("tcp://h:31")),]
        );
    }
}
