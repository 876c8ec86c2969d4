//! From a request to the code that answers it.

use super::body::AnswerBody;
use super::conn::ConnControl;
use super::{control, info, prompts, realtime};
use crate::engine::{Engine, LastRequest, Visit};
use crate::faults::{Faults, Garbage};
use crate::handoff::leg;
use crate::options::EngineKind;
use crate::prompt::Api;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use std::io;
use std::sync::Arc;

pub(crate) type Answer = Result<Response<AnswerBody>, io::Error>;

/// Bytes under a status and a content type.
pub(crate) fn reply(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<AnswerBody> {
    let mut r = Response::new(AnswerBody::whole(body));
    *r.status_mut() = status;
    r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    r
}

/// A JSON body.
pub(crate) fn reply_json(status: StatusCode, body: &serde_json::Value) -> Response<AnswerBody> {
    reply(status, "application/json", body.to_string())
}

/// An error in the form that the route's clients expect.
pub(crate) fn error(
    engine: &Engine,
    api: Option<Api>,
    status: StatusCode,
    param: Option<&str>,
    message: &str,
) -> Response<AnswerBody> {
    reply_json(status, &error_body(engine, api, status, param, message))
}

/// The body of an error.
fn error_body(
    engine: &Engine,
    api: Option<Api>,
    status: StatusCode,
    param: Option<&str>,
    message: &str,
) -> Value {
    let code = status.as_u16();
    if api.is_some_and(Api::is_anthropic) {
        let kind = match code {
            400 => "invalid_request_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 | 529 => "overloaded_error",
            _ => "api_error",
        };
        return json!({"type": "error", "error": {"type": kind, "message": message}});
    }
    let kind = match code {
        400 => "BadRequestError",
        404 => "NotFoundError",
        413 => "RequestEntityTooLarge",
        429 => "RateLimitError",
        503 => "ServiceUnavailableError",
        _ => "InternalServerError",
    };
    match engine.options.engine {
        EngineKind::Vllm => {
            json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
        }
        EngineKind::Sglang => {
            json!({"object": "error", "message": message, "type": kind, "param": param, "code": code})
        }
    }
}

/// The event that ends a stream whose request failed after its head was sent.
pub(crate) fn stream_error(engine: &Engine, api: Api, status: StatusCode, message: &str) -> Value {
    let body = error_body(engine, Some(api), status, None, message);
    if body.get("error").is_some() { body } else { json!({"error": body}) }
}

/// Answers one request.
pub(crate) async fn answer(
    engine: Arc<Engine>,
    conn: Arc<ConnControl>,
    request: Request<Incoming>,
) -> Answer {
    let path = request.uri().path().to_owned();
    if path.starts_with("/sim/") {
        let response = control::answer(&engine, &path, request).await;
        return Ok(response);
    }
    let api = Api::from_path(&path);
    let mut response = match api {
        None if path == "/v1/realtime" => realtime::answer(&engine, &conn, request).await?,
        Some(api) => on_prompt(&engine, &conn, api, &path, request).await?,
        None => on_info(&engine, &conn, &request).await?,
    };
    let headers = response.headers_mut();
    headers.insert("server", HeaderValue::from_static("uvicorn"));
    if let Ok(name) = HeaderValue::from_str(&engine.options.name) {
        headers.insert("x-inference-pod", name);
    }
    Ok(response)
}

async fn on_info(engine: &Arc<Engine>, conn: &Arc<ConnControl>, request: &Request<Incoming>) -> Answer {
    let faults = {
        let mut core = engine.core();
        if core.faults.everywhere { core.faults.take(None) } else { None }
    };
    if let Some(f) = &faults
        && let Some(broken) = before_answer(engine, conn, None, f).await?
    {
        return Ok(broken);
    }
    Ok(info::answer(engine, request.uri(), request.method()))
}

/// The faults that come before any work; `None` when the request goes on.
pub(crate) async fn before_answer(
    engine: &Engine,
    conn: &Arc<ConnControl>,
    api: Option<Api>,
    f: &Faults,
) -> Result<Option<Response<AnswerBody>>, io::Error> {
    if f.hang {
        std::future::pending::<()>().await;
    }
    if f.die_after == Some(0) {
        conn.reset_on_close();
        return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "died on demand"));
    }
    if let Some(status) = f.status {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut r = error(engine, api, status, None, "failed on demand");
        if let Some(s) = f.retry_after {
            r.headers_mut().insert(RETRY_AFTER, HeaderValue::from(s));
        }
        return Ok(Some(r));
    }
    match f.garbage {
        Some(Garbage::Head) => {
            conn.send_garbage();
            Ok(Some(reply(StatusCode::OK, "text/plain", "")))
        }
        Some(Garbage::Body) => {
            let noise: Vec<u8> = (0..512u32).map(|i| (i.wrapping_mul(197) >> 1) as u8).collect();
            Ok(Some(reply(StatusCode::OK, "application/json", noise)))
        }
        _ => Ok(None),
    }
}

async fn on_prompt(
    engine: &Arc<Engine>,
    conn: &Arc<ConnControl>,
    api: Api,
    path: &str,
    request: Request<Incoming>,
) -> Answer {
    if request.method() != Method::POST {
        return Ok(error(engine, Some(api), StatusCode::METHOD_NOT_ALLOWED, None, "Method Not Allowed"));
    }
    let mut visit = Visit::new(engine);
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, engine.options.max_body).collect().await {
        Ok(b) => b.to_bytes(),
        Err(e) if e.is::<http_body_util::LengthLimitError>() => {
            visit.complete();
            let message = format!("the body is longer than {} bytes", engine.options.max_body);
            return Ok(error(engine, Some(api), StatusCode::PAYLOAD_TOO_LARGE, None, &message));
        }
        Err(e) => {
            engine.core().traffic.broken_bodies += 1;
            return Err(io::Error::other(e));
        }
    };
    let (kind, leg) = leg::read(engine, &head.headers, api, &body);
    let faults = {
        let mut core = engine.core();
        *core.traffic.by_route.entry(route_name(api)).or_default() += 1;
        core.traffic.last = Some(LastRequest::of(&head.method, &head.uri, &head.headers, body.clone()));
        core.faults.take(kind)
    };
    if let Some(f) = &faults
        && let Some(broken) = before_answer(engine, conn, Some(api), f).await?
    {
        visit.complete();
        return Ok(broken);
    }
    if let Some(asked) = head.headers.get("x-return-error").and_then(|v| v.to_str().ok()?.parse::<u16>().ok())
        && let Ok(status) = StatusCode::from_u16(asked)
    {
        visit.complete();
        return Ok(error(engine, Some(api), status, None, "failed as the request asked"));
    }
    if !engine.ready() {
        visit.complete();
        return Ok(error(
            engine,
            Some(api),
            StatusCode::SERVICE_UNAVAILABLE,
            None,
            "the engine is not ready",
        ));
    }
    let request_id = head.headers.get("x-request-id").and_then(|v| v.to_str().ok()).map(str::to_owned);
    let call = prompts::Call { api, path: path.to_owned(), body, request_id, leg };
    let r = prompts::answer(engine, conn, call, visit, faults.as_ref()).await;
    if r.status().is_client_error() {
        tracing::debug!(path, status = r.status().as_u16(), "refused");
    }
    Ok(r)
}

fn route_name(api: Api) -> &'static str {
    match api {
        Api::Chat => "chat",
        Api::Completions => "completions",
        Api::Embeddings => "embeddings",
        Api::Responses => "responses",
        Api::Messages => "messages",
        Api::CountTokens => "count_tokens",
        Api::Rerank => "rerank",
        Api::Score => "score",
        Api::Tokenize => "tokenize",
        Api::Detokenize => "detokenize",
    }
}
