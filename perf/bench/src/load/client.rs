//! Connections and single requests.

use super::sse::{Broken, ChatStream, Usage, whole};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, Uri, body::Incoming};
use hyper_util::rt::TokioIo;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// A connection idle for longer is not used again: servers close theirs after 5 s, and a race would look like a
/// failure of theirs.
const IDLE: Duration = Duration::from_secs(2);
/// Time to connect.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest answer in one piece, bytes.
const MAX_ANSWER: usize = 256 << 20;
/// Header with which a gateway names the engine that answered, and the one that simulated engines set.
const INSTANCE: [&str; 2] = ["x-fairlead-instance", "x-inference-pod"];

/// Why a URL cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadTarget {
    /// Not an http URL.
    #[error("{0:?} is not a URL of the form http://host:port[/path]")]
    Url(String),
    /// Not a header.
    #[error("{0:?} is not a header of the form \"name: value\"")]
    Header(String),
    /// The name does not resolve.
    #[error("cannot resolve {host}: {source}")]
    Resolve {
        /// The host.
        host: String,
        /// Why.
        source: io::Error,
    },
}

/// How a request ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// `None`: well.
    pub error: Option<Failure>,
    pub instance: Option<String>,
    pub usage: Option<Usage>,
    pub text: String,
    pub chunks: u64,
    pub first_token: Option<Instant>,
    pub last_token: Option<Instant>,
    pub end: Option<Instant>,
}

/// A failure by kind, with an example of what was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub kind: String,
    pub detail: String,
}

fn failure(kind: &str, detail: impl Into<String>) -> Failure {
    Failure { kind: kind.to_owned(), detail: detail.into() }
}

/// An endpoint and the idle connections to it.
#[derive(Debug)]
pub(crate) struct Client {
    addr: SocketAddr,
    host: HeaderValue,
    base: String,
    headers: HeaderMap,
    idle: Mutex<Vec<(SendRequest<Full<Bytes>>, Instant)>>,
}

impl Client {
    pub async fn new(url: &str, headers: &[String]) -> Result<Self, BadTarget> {
        let wrong = || BadTarget::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(wrong());
        };
        let host = authority.host();
        let port = authority.port_u16().unwrap_or(80);
        let addr = tokio::net::lookup_host((host.trim_matches(['[', ']']), port))
            .await
            .and_then(|mut a| a.next().ok_or_else(|| io::Error::other("no address")))
            .map_err(|source| BadTarget::Resolve { host: host.to_owned(), source })?;
        let mut map = HeaderMap::new();
        for h in headers {
            let pair = h.split_once(':').and_then(|(k, v)| {
                Some((k.trim().parse::<HeaderName>().ok()?, HeaderValue::from_str(v.trim()).ok()?))
            });
            let Some((k, v)) = pair else { return Err(BadTarget::Header(h.clone())) };
            map.append(k, v);
        }
        Ok(Self {
            addr,
            host: HeaderValue::from_str(authority.as_str()).map_err(|_| wrong())?,
            base: uri.path().trim_end_matches('/').to_owned(),
            headers: map,
            idle: Mutex::new(Vec::new()),
        })
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((c, since)) = idle.pop() {
            if since.elapsed() < IDLE && c.is_ready() {
                return Some(c);
            }
        }
        None
    }

    /// Keeps a connection whose answer has been read to its end.
    async fn keep(&self, mut c: SendRequest<Full<Bytes>>) {
        if c.ready().await.is_ok() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push((c, Instant::now()));
        }
    }

    async fn connect(&self) -> io::Result<SendRequest<Full<Bytes>>> {
        let stream = tokio::time::timeout(CONNECT, TcpStream::connect(self.addr))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        let (sender, conn) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::spawn(conn);
        Ok(sender)
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Request<Full<Bytes>> {
        let mut r = Request::new(Full::new(body));
        *r.method_mut() = method;
        *r.uri_mut() = format!("{}{path}", self.base).parse().unwrap_or_default();
        *r.headers_mut() = self.headers.clone();
        r.headers_mut().insert(HOST, self.host.clone());
        r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        r.headers_mut().insert(ACCEPT, HeaderValue::from_static("*/*"));
        r
    }

    /// Sends a request, on a kept connection where there is one. A request that the connection gave back unsent is
    /// sent again on a new one.
    async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(SendRequest<Full<Bytes>>, Response<Incoming>), Failure> {
        let mut kept = self.take_idle();
        loop {
            let (mut c, reused) = match kept.take() {
                Some(c) => (c, true),
                None => (self.connect().await.map_err(|e| failure("connect", e.to_string()))?, false),
            };
            match c.try_send_request(request).await {
                Ok(r) => return Ok((c, r)),
                Err(mut e) => match e.take_message() {
                    Some(unsent) if reused => request = unsent,
                    _ => return Err(failure("reset", e.into_error().to_string())),
                },
            }
        }
    }

    /// The body of a GET.
    pub async fn get(&self, path: &str) -> Result<Bytes, String> {
        let (c, r) = self.send(self.request(Method::GET, path, Bytes::new())).await.map_err(|f| f.detail)?;
        let status = r.status();
        let body =
            Limited::new(r.into_body(), MAX_ANSWER).collect().await.map_err(|e| e.to_string())?.to_bytes();
        self.keep(c).await;
        if status.is_success() { Ok(body) } else { Err(format!("{path} answered {status}")) }
    }

    /// One chat request, to its end.
    pub async fn chat(&self, body: Bytes, stream: bool) -> Outcome {
        let mut o = Outcome::default();
        if let Err(f) = self.exchange(body, stream, &mut o).await {
            o.error = Some(f);
        }
        o.end = Some(Instant::now());
        o
    }

    async fn exchange(&self, body: Bytes, stream: bool, o: &mut Outcome) -> Result<(), Failure> {
        let (c, response) = self.send(self.request(Method::POST, "/v1/chat/completions", body)).await?;
        o.instance = INSTANCE
            .iter()
            .find_map(|h| response.headers().get(*h))
            .and_then(|v| v.to_str().ok())
            .map(str::to_owned);
        let status = response.status();
        if !status.is_success() {
            let said = Limited::new(response.into_body(), 1 << 20).collect().await;
            let said =
                said.map_or_else(|e| e.to_string(), |b| String::from_utf8_lossy(&b.to_bytes()).into_owned());
            self.keep(c).await;
            return Err(failure(&format!("status {}", status.as_u16()), shorten(&said)));
        }
        let broken = |b| match b {
            Broken::ErrorEvent(said) => failure("error event", shorten(&said)),
            Broken::Malformed => failure("malformed", "the answer is not what it should be"),
        };
        let mut incoming = response.into_body();
        if !stream {
            let bytes = Limited::new(incoming, MAX_ANSWER)
                .collect()
                .await
                .map_err(|e| failure("reset", e.to_string()))?
                .to_bytes();
            let now = Instant::now();
            (o.first_token, o.last_token) = (Some(now), Some(now));
            (o.text, o.usage) = whole(&bytes).map_err(broken)?;
            self.keep(c).await;
            return Ok(());
        }
        let mut events = ChatStream::default();
        let result = loop {
            match incoming.frame().await {
                None if events.done => break Ok(()),
                None => break Err(failure("truncated", "the stream ended without its end mark")),
                Some(Err(e)) => break Err(failure("reset", e.to_string())),
                Some(Ok(frame)) => {
                    let Some(data) = frame.data_ref() else { continue };
                    match events.feed(data) {
                        Ok(true) => {
                            let now = Instant::now();
                            o.first_token.get_or_insert(now);
                            o.last_token = Some(now);
                        }
                        Ok(false) => {}
                        Err(b) => break Err(broken(b)),
                    }
                }
            }
        };
        o.text = std::mem::take(&mut events.text);
        (o.usage, o.chunks) = (events.usage, events.chunks);
        if result.is_ok() {
            self.keep(c).await;
        }
        result
    }
}

fn shorten(said: &str) -> String {
    said.chars().take(300).collect()
}

impl Outcome {
    /// A request that took longer than it may.
    pub fn timed_out(limit: Duration) -> Self {
        Self {
            error: Some(failure("timeout", format!("no end after {} s", limit.as_secs_f64()))),
            end: Some(Instant::now()),
            ..Self::default()
        }
    }
}
