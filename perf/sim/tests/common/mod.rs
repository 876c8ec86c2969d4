//! A small client for the tests.
#![allow(
    dead_code,
    clippy::unwrap_used,
    missing_docs,
    reason = "each test file uses its part and fails by panicking"
)]

use bytes::Bytes;
use fairlead_sim::{Handle, Sim, SimOptions};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::net::TcpStream;

/// Far faster than life: steps take no time to speak of.
pub fn quick() -> SimOptions {
    SimOptions { speed: 1000.0, ..SimOptions::default() }
}

pub fn start(options: SimOptions) -> Handle {
    Sim::start(options).unwrap()
}

pub async fn connect(addr: SocketAddr) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (sender, conn) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(conn);
    sender
}

pub fn request(method: &str, path: &str, body: &Value) -> Request<Full<Bytes>> {
    let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "sim")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(bytes)))
        .unwrap()
}

pub async fn try_post(
    addr: SocketAddr,
    path: &str,
    body: &Value,
) -> Result<Response<Incoming>, hyper::Error> {
    connect(addr).await.send_request(request("POST", path, body)).await
}

pub async fn text(addr: SocketAddr, method: &str, path: &str, body: &Value) -> (StatusCode, String) {
    let response = connect(addr).await.send_request(request(method, path, body)).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

pub async fn get(addr: SocketAddr, path: &str) -> (StatusCode, String) {
    text(addr, "GET", path, &Value::Null).await
}

pub async fn post(addr: SocketAddr, path: &str, body: &Value) -> (StatusCode, Value) {
    let (status, body) = text(addr, "POST", path, body).await;
    (status, serde_json::from_str(&body).unwrap())
}

pub fn chat(content: &str, max_tokens: u32, stream: bool) -> Value {
    let mut v = json!({"model": "sim-8b", "max_tokens": max_tokens, "stream": stream,
        "messages": [{"role": "user", "content": content}]});
    if stream {
        v["stream_options"] = json!({"include_usage": true});
    }
    v
}

/// The `data:` payloads of a stream.
pub fn events(stream: &str) -> Vec<String> {
    stream
        .split("\n\n")
        .filter_map(|e| e.lines().find_map(|l| l.strip_prefix("data: ")))
        .map(str::to_owned)
        .collect()
}

/// Value of a sample on a metrics page, its labels ignored.
pub fn metric(page: &str, name: &str) -> Option<f64> {
    page.lines()
        .filter(|l| !l.starts_with('#'))
        .find(|l| l.strip_prefix(name).is_some_and(|r| r.starts_with(['{', ' '])))
        .and_then(|l| l.rsplit(' ').next()?.parse().ok())
}
