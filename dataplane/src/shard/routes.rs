//! Which paths are forwarded, and which the gateway answers itself.

use std::time::{SystemTime, UNIX_EPOCH};

use fairlead_openai::{Api, ErrorStyle, ModelCard, model_body, models_body};
use fairlead_routing::{ModelEntry, TargetTable};
use http::{Method, StatusCode};

use super::answer::{Refusal, Reply, shown};
use super::decide::unknown_model;
use crate::shared::Shared;

/// What to do with a request, decided by its method and path alone.
#[derive(Debug)]
pub enum Route {
    /// Forward to a target that serves its model.
    Forward(Api),
    /// `/v1/models`
    Models,
    /// `/v1/models/{id}`
    Model(String),
    /// `/healthz`: the process lives.
    Health,
    /// `/readyz`: requests can be served.
    Ready,
    /// Neither.
    Refuse(Refusal),
}

/// Where the realtime API is served.
const REALTIME: &str = "/v1/realtime";

/// The API of a path on which WebSockets are forwarded: any below `/v1/` that the gateway does not answer itself.
pub fn upgradable(path: &str) -> Option<Api> {
    Api::from_path(path).filter(|_| path.starts_with("/v1/") && !climbs(path))
}

/// Classifies a path without base path and query. `None` for the path: it does not lie below the base path.
pub fn classify(method: &Method, path: Option<&str>) -> Route {
    let Some(path) = path else {
        return Route::Refuse(Refusal::new(404, "the path lies outside this server's base path"));
    };
    let local = match path {
        "/v1/models" => Some(Route::Models),
        "/healthz" | "/health" => Some(Route::Health),
        "/readyz" => Some(Route::Ready),
        _ => path.strip_prefix("/v1/models/").filter(|id| !id.is_empty()).map(|id| Route::Model(decode(id))),
    };
    if let Some(route) = local {
        return if *method == Method::GET || *method == Method::HEAD {
            route
        } else {
            Route::Refuse(
                Refusal::new(405, format!("{} takes GET and HEAD only", shown(path))).allow("GET, HEAD"),
            )
        };
    }
    match Api::from_path(path).filter(|api| *api != Api::Other || !climbs(path)) {
        Some(api) if *method == Method::POST => Route::Forward(api),
        Some(_) if path == REALTIME => Route::Refuse(
            Refusal::new(426, format!("{REALTIME} takes WebSockets")).fields(&[("Upgrade", "websocket")]),
        ),
        Some(_) => Route::Refuse(Refusal::new(405, format!("{} takes POST only", shown(path))).allow("POST")),
        None => {
            Route::Refuse(Refusal::new(404, format!("there is no route {}", shown(path))).code("not_found"))
        }
    }
}

/// Whether a server that resolves `.` and `..` could read the path as another one: below `/v1/` lie prompts, outside
/// of it an engine's administration. Backslashes, `;` and encoded forms count, because some servers take them so.
fn climbs(path: &str) -> bool {
    let path = decode(path);
    path.split(['/', '\\']).any(|segment| matches!(segment.split(';').next(), Some("." | "..")))
}

/// Shape of errors on a path.
pub fn error_style(path: Option<&str>) -> ErrorStyle {
    path.and_then(Api::from_path).map_or(ErrorStyle::OpenAi, Api::error_style)
}

/// Appends the answer of a route that needs no engine. Not for [`Route::Forward`], which is answered 500.
pub fn answer(route: &Route, shared: &Shared, reply: &Reply<'_>, out: &mut Vec<u8>) {
    let table = shared.fleet.table();
    match route {
        Route::Models => {
            let names = table.model_names();
            let cards = names.iter().filter_map(|name| table.model(name)).map(card);
            reply.json(StatusCode::OK, &models_body(cards, started()), out);
        }
        Route::Model(id) => match table.model(id) {
            Some(entry) => reply.json(StatusCode::OK, &model_body(&card(entry), started()), out),
            None => reply.refuse(&unknown_model(id, &table, shared), out),
        },
        Route::Health => reply.text(StatusCode::OK, "ok\n", out),
        Route::Ready => match readiness(shared, &table) {
            Ok(ready) => reply.text(StatusCode::OK, &format!("ready: {ready} targets\n"), out),
            Err(why) => reply.refuse(&Refusal::new(503, why).retry_after(1), out),
        },
        Route::Refuse(refusal) => reply.refuse(refusal, out),
        Route::Forward(_) => reply.refuse(&Refusal::new(500, "route is not local"), out),
    }
}

/// Targets that may be picked, or why no request could be served.
pub fn readiness(shared: &Shared, table: &TargetTable) -> Result<usize, &'static str> {
    if shared.is_draining() {
        return Err("draining");
    }
    if !shared.is_synced() {
        return Err("the state of the fleet has not been received yet");
    }
    match table.ready() {
        0 => Err("no target is ready"),
        ready => Ok(ready),
    }
}

fn card(entry: &ModelEntry) -> ModelCard<'_> {
    let length = entry
        .targets
        .iter()
        .flat_map(|target| &target.info.models)
        .find_map(|model| if *model.name == *entry.name { model.max_model_len } else { None });
    ModelCard { max_model_len: length.map(u64::from), ..ModelCard::new(&entry.name) }
}

/// Seconds since 1970 of the first question: `created` of every model, the same in all answers.
fn started() -> u64 {
    static AT: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *AT.get_or_init(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// Decodes `%2F` and the like, which clients put into model names.
pub fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = |digit: u8| (digit as char).to_digit(16);
        match (first, tail) {
            (b'%', [high, low, after @ ..]) if hex(*high).is_some() && hex(*low).is_some() => {
                bytes.push((hex(*high).unwrap_or(0) << 4 | hex(*low).unwrap_or(0)) as u8);
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes() {
        let status = |method: Method, path: &str| match classify(&method, Some(path)) {
            Route::Refuse(refusal) => refusal.status,
            Route::Forward(_) => 1,
            _ => 2,
        };
        let table = [
            (Method::POST, "/v1/chat/completions", 1),
            (Method::GET, "/v1/chat/completions", 405),
            (Method::POST, "/v1/anything/else", 1),
            (Method::POST, "/tokenize", 1),
            (Method::GET, "/v1/models", 2),
            (Method::HEAD, "/v1/models", 2),
            (Method::POST, "/v1/models", 405),
            (Method::GET, "/v1/models/a/b", 2),
            (Method::GET, "/v1/models/", 404),
            (Method::GET, "/healthz", 2),
            (Method::GET, "/readyz", 2),
            (Method::POST, "/elsewhere", 404),
            (Method::POST, "/v1/a.b/..c", 1),
            (Method::POST, "/v1/../metrics", 404),
            (Method::POST, "/v1/a/%2E%2e%2fmetrics", 404),
            (Method::POST, "/v1/..;x/metrics", 404),
            (Method::POST, "/v1/.", 404),
            (Method::GET, "/", 404),
            (Method::GET, "/v1/realtime", 426),
            (Method::POST, "/v1/realtime", 1),
            (Method::POST, "/v1/realtime/calls", 1),
        ];
        for (method, path, want) in table {
            assert_eq!(status(method.clone(), path), want, "{method} {path}");
        }
        assert!(matches!(classify(&Method::GET, None), Route::Refuse(r) if r.status == 404));
    }

    #[test]
    fn websockets_are_forwarded_below_v1() {
        for (path, want) in [
            ("/v1/realtime", Some(Api::Other)),
            ("/v1/chat/completions", Some(Api::Chat)),
            ("/v1/a/b", Some(Api::Other)),
            ("/v1/models", None),
            ("/v1/", None),
            ("/v1/../metrics", None),
            ("/tokenize", None),
            ("/healthz", None),
        ] {
            assert_eq!(upgradable(path), want, "{path}");
        }
    }

    #[test]
    fn model_names_are_decoded() {
        for (text, want) in [("a%2Fb", "a/b"), ("a/b", "a/b"), ("100%", "100%"), ("%zz%4", "%zz%4")] {
            assert_eq!(decode(text), want);
        }
    }
}
