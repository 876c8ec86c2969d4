//! SGLang: both legs at once, each with the prefill engine's bootstrap server and a room, in the body or in headers. The
//! prefill leg waits until the decode side has entered the room, and answers when the KV has gone.

use super::leg::{Leg, LegError, LegKind, Peer, Prefill, Reply, Request, Source, place};
use serde_json::Value;

/// Headers that set a field, each before the body.
const HEADERS: [(&str, &str); 3] = [
    ("bootstrap_host", "x-override-bootstrap-host"),
    ("bootstrap_port", "x-override-bootstrap-port"),
    ("bootstrap_room", "x-override-bootstrap-room"),
];
/// Rooms are below this.
const ROOMS: u64 = 1 << 63;

/// A field for each sequence: one for all, or a list that is repeated for each answer.
fn field(request: &Request<'_>, name: &str, header: &str) -> Result<Vec<Value>, LegError> {
    let text = name == "bootstrap_host";
    if let Some(value) = request.headers.get(header) {
        let said = value.to_str().map_err(|_| LegError::bad(format!("{header}: not text")))?;
        let value = match text {
            true => Value::from(said),
            // What Python's int() takes, without its blanks and underscores.
            false => match said.trim().parse::<i64>() {
                Ok(n) => Value::from(n),
                Err(_) => return Err(LegError::bad(format!("{header}: {said:?} is no number"))),
            },
        };
        return Ok(vec![value]);
    }
    let fits = |v: &Value| v.is_null() || if text { v.is_string() } else { v.is_i64() || v.is_u64() };
    match request.root.get(name) {
        None => Ok(vec![Value::Null]),
        Some(Value::Array(all)) if !all.is_empty() && all.iter().all(fits) => Ok(all.clone()),
        Some(v) if fits(v) => Ok(vec![v.clone()]),
        Some(_) => Err(LegError::bad(format!("{name}: Input should be a valid value or a list of them"))),
    }
}

/// Reads a request to a prefill or decode engine; one without a room is refused.
pub(crate) fn read(kind: Option<LegKind>, request: &Request<'_>, own_port: u16) -> Result<Leg, LegError> {
    let Some(kind) = kind else { return Ok(Leg::Plain) };
    let mut fields = Vec::with_capacity(HEADERS.len());
    for (name, header) in HEADERS {
        fields.push((name, field(request, name, header)?));
    }
    let (prompts, sequences) = (request.prompts(), request.sequences());
    for (name, values) in &fields {
        let listed = matches!(request.root.get(*name), Some(Value::Array(_)));
        if listed && values.len() != prompts && values.len() > 1 {
            let message = format!("{name}: {} values for {prompts} prompts", values.len());
            return Err(LegError::bad(message));
        }
    }
    let mut peers = Vec::with_capacity(sequences);
    for at in 0..sequences {
        let of = |i: usize| {
            let values = &fields[i].1;
            &values[at % values.len()]
        };
        let room = match of(2).as_u64().filter(|r| *r < ROOMS) {
            // One room for several sequences: the engine counts up from it.
            Some(first) if fields[2].1.len() == 1 => first + at as u64,
            Some(room) => room,
            None if of(2).is_null() => {
                let message = "Disaggregated request received without bootstrap room id";
                return Err(LegError::bad(message));
            }
            None => return Err(LegError::bad(format!("bootstrap_room: {} is out of range", of(2)))),
        };
        let key = room.to_string();
        let port = match of(1) {
            Value::Null => own_port,
            port => port
                .as_u64()
                .and_then(|p| u16::try_from(p).ok())
                .ok_or_else(|| LegError::bad(format!("bootstrap_port: {port} is no port")))?,
        };
        let addr = match (kind, of(0).as_str()) {
            (_, Some(host)) => place(host, port),
            (LegKind::Prefill, None) => String::new(),
            (LegKind::Decode, None) => {
                return Err(LegError::bad("Disaggregated request received without bootstrap host"));
            }
        };
        peers.push(Peer { addr, engine_id: None, key });
    }
    Ok(match kind {
        LegKind::Prefill => {
            let names = peers.into_iter().map(|p| p.key).collect();
            Leg::Prefill(Prefill { names, reply: Reply::Nothing })
        }
        LegKind::Decode => Leg::Decode(Source::Peers(peers)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::Api;
    use hyper::HeaderMap;
    use serde_json::json;

    fn rooms(kind: LegKind, body: &Value, headers: &[(&'static str, &str)]) -> Result<Vec<String>, String> {
        let mut map = HeaderMap::new();
        for (k, v) in headers {
            map.insert(*k, v.parse().unwrap());
        }
        let root = body.as_object().unwrap();
        let request = Request { headers: &map, api: Api::Completions, root };
        match read(Some(kind), &request, 7) {
            Ok(Leg::Decode(Source::Peers(peers))) => {
                Ok(peers.into_iter().map(|p| format!("{} {}", p.addr, p.key)).collect())
            }
            Ok(Leg::Prefill(p)) => Ok(p.names),
            Ok(_) => Err("no leg".into()),
            Err(e) => Err(format!("{} {}", e.status.as_u16(), e.message)),
        }
    }

    #[test]
    fn fields_come_from_the_body_or_from_headers() {
        let one = json!({"prompt": "x", "bootstrap_host": "h", "bootstrap_port": 9, "bootstrap_room": 5});
        let batch = json!({"prompt": ["x", "y"], "bootstrap_host": ["h", "i"], "bootstrap_port": [8, null],
            "bootstrap_room": [5, 6]});
        let many =
            json!({"prompt": "x", "n": 3, "bootstrap_host": "h", "bootstrap_port": 9, "bootstrap_room": 5});
        let none = json!({"prompt": "x"});
        let header = [
            ("x-override-bootstrap-host", "::1"),
            ("x-override-bootstrap-port", "12"),
            ("x-override-bootstrap-room", "9223372036854775807"),
        ];
        use LegKind::{Decode, Prefill};
        for (kind, body, headers, is) in [
            (Decode, &one, &[][..], Ok(vec!["h:9 5"])),
            (Prefill, &one, &[], Ok(vec!["5"])),
            (Decode, &batch, &[], Ok(vec!["h:8 5", "i:7 6"])),
            (Decode, &many, &[], Ok(vec!["h:9 5", "h:9 6", "h:9 7"])),
            (Decode, &none, &header, Ok(vec!["[::1]:12 9223372036854775807"])),
            (Decode, &one, &header[2..], Ok(vec!["h:9 9223372036854775807"])),
            (Prefill, &none, &[], Err("400 Disaggregated")),
            (Decode, &none, &header[2..], Err("400 Disaggregated")),
            (Decode, &one, &[("x-override-bootstrap-room", "1x")], Err("400 x-override")),
            (Decode, &one, &[("x-override-bootstrap-room", "-1")], Err("400 bootstrap_room")),
            (Decode, &one, &[("x-override-bootstrap-port", "70000")], Err("400 bootstrap_port")),
            (Decode, &json!({"prompt": "x", "bootstrap_room": "5"}), &[], Err("400 bootstrap_room")),
            (
                Decode,
                &json!({"prompt": ["x", "y", "z"], "bootstrap_room": [1, 2]}),
                &[],
                Err("400 bootstrap_room"),
            ),
        ] {
            match (rooms(kind, body, headers), is) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{body}"),
                (Err(got), Err(want)) => assert!(got.starts_with(want), "{got}"),
                (got, want) => panic!("{body}: {got:?} {want:?}"),
            }
        }
    }
}
