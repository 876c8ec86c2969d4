//! GET over one kept connection.
//!
//! The agent talks to a single engine, one request at a time, many times a minute: a connection that is kept and
//! watched. Watched, because the kernel closes a dying process's sockets at once: an engine that is killed between
//! two probes is noticed through [`Client::closed`], not at the next probe.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::header::{ACCEPT, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Bytes that hyper may hold of an answer's head and of a body's unread part.
const BUFFER: usize = 64 * 1024;

/// Why a request to the engine had no usable answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// No connection: refused, unreachable, no such host.
    #[error("cannot connect to {address}: {why}")]
    Connect {
        /// `host:port` of the engine.
        address: String,
        /// What the system said.
        why: String,
    },
    /// No full answer in time.
    #[error("GET {path}: no answer within {} ms", .limit.as_millis())]
    Timeout {
        /// Path asked for.
        path: String,
        /// The limit.
        limit: Duration,
    },
    /// The connection broke, or what came is not HTTP.
    #[error("GET {path}: {why}")]
    Broken {
        /// Path asked for.
        path: String,
        /// What went wrong.
        why: String,
    },
    /// More body than is ever read.
    #[error("GET {path}: answer longer than {limit} bytes")]
    TooLong {
        /// Path asked for.
        path: String,
        /// The limit, bytes.
        limit: usize,
    },
}

/// Limits of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// From the connect to the last byte.
    pub time: Duration,
    /// Longest body, bytes.
    pub body: usize,
}

/// Where the engine is, from `http://host[:port][/base]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// As a socket address understands it: an IPv6 address without brackets.
    host: String,
    port: u16,
    /// As written in a URL.
    authority: String,
    header: HeaderValue,
    base: String,
}

impl Origin {
    /// Reads an engine's URL; the error says what is wrong with it.
    pub fn parse(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|e| format!("not a URL: {e}"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some(other) => return Err(format!("scheme {other:?}: only http is spoken to engines")),
            None => return Err("no scheme: write http://host:port".into()),
        }
        if uri.query().is_some() {
            return Err("a query has no meaning here".into());
        }
        let authority = uri.authority().ok_or("no host")?;
        if authority.as_str().contains('@') {
            return Err("user names are not supported".into());
        }
        let host = authority.host();
        let port = authority.port_u16().unwrap_or(80);
        let authority = format!("{host}:{port}");
        let header = HeaderValue::from_str(&authority).map_err(|_| "host is not printable")?;
        Ok(Self {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port,
            authority,
            header,
            base: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// The host: a name or an address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Another port of the same host, as it is written in a URL.
    pub fn beside(&self, port: &str) -> String {
        let host = self.authority.rsplit_once(':').map_or(self.authority.as_str(), |(host, _)| host);
        format!("{host}:{port}")
    }

    /// `host:port`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Whether only this machine can reach it.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    driver: JoinHandle<()>,
    /// Requests already answered on it.
    used: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// How one attempt ended.
enum Failure {
    /// Before any byte of an answer: a kept connection may have been closed under the request.
    BeforeAnswer(HttpError),
    Other(HttpError),
}

/// A client of one engine.
pub(crate) struct Client {
    origin: Origin,
    connection: Option<Connection>,
}

impl Client {
    pub fn new(origin: Origin) -> Self {
        Self { origin, connection: None }
    }

    /// The engine's host: a name or an address, without brackets.
    pub fn host(&self) -> &str {
        &self.origin.host
    }

    /// Resolves when the kept connection ends. Pending while there is none. Cancel-safe.
    pub async fn closed(&mut self) {
        match &mut self.connection {
            Some(connection) => {
                // How the driver ended is of no interest: the next request says more.
                let _ = (&mut connection.driver).await;
                self.connection = None;
            }
            None => std::future::pending().await,
        }
    }

    /// GETs `path` and hands the body to `sink` as it arrives. Gives the status.
    ///
    /// A kept connection that fails before the answer is replaced once: servers close idle connections (uvicorn after
    /// 5 s), and a request may cross that close.
    pub async fn get(
        &mut self,
        path: &str,
        limits: Limits,
        sink: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<u16, HttpError> {
        let result = timeout(limits.time, self.get_with_retry(path, limits.body, sink)).await;
        let result =
            result.unwrap_or_else(|_| Err(HttpError::Timeout { path: path.to_owned(), limit: limits.time }));
        if result.is_err() {
            // Whatever is still on its way belongs to a request that nobody waits for.
            self.connection = None;
        }
        result
    }

    /// GETs a whole body.
    pub async fn get_body(&mut self, path: &str, limits: Limits) -> Result<(u16, Vec<u8>), HttpError> {
        let mut body = Vec::new();
        let status = self.get(path, limits, &mut |chunk| body.extend_from_slice(chunk)).await?;
        Ok((status, body))
    }

    async fn get_with_retry(
        &mut self,
        path: &str,
        body: usize,
        sink: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<u16, HttpError> {
        let reused = self.connection.as_ref().is_some_and(|connection| connection.used);
        match self.attempt(path, body, sink).await {
            Ok(status) => Ok(status),
            Err(Failure::BeforeAnswer(_)) if reused => {
                self.connection = None;
                self.attempt(path, body, sink).await.map_err(|failure| match failure {
                    Failure::BeforeAnswer(error) | Failure::Other(error) => error,
                })
            }
            Err(Failure::BeforeAnswer(error) | Failure::Other(error)) => Err(error),
        }
    }

    async fn attempt(
        &mut self,
        path: &str,
        limit: usize,
        sink: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<u16, Failure> {
        let broken = |why: String| HttpError::Broken { path: path.to_owned(), why };
        let request = Request::get(format!("{}{path}", self.origin.base))
            .header(HOST, self.origin.header.clone())
            .header(USER_AGENT, "fairlead-agent")
            .header(ACCEPT, "*/*")
            .body(Empty::new())
            .map_err(|e| Failure::Other(broken(e.to_string())))?;
        let connection = match &mut self.connection {
            Some(connection) if !connection.sender.is_closed() => connection,
            stale => stale.insert(connect(&self.origin).await.map_err(Failure::Other)?),
        };
        let answer = async {
            connection.sender.ready().await?;
            connection.sender.send_request(request).await
        };
        let response = answer.await.map_err(|e| Failure::BeforeAnswer(broken(explain(&e))))?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        let mut length = 0usize;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| Failure::Other(broken(explain(&e))))?;
            if let Some(chunk) = frame.data_ref() {
                length = length.saturating_add(chunk.len());
                if length > limit {
                    return Err(Failure::Other(HttpError::TooLong { path: path.to_owned(), limit }));
                }
                sink(chunk);
            }
        }
        connection.used = true;
        Ok(status)
    }
}

async fn connect(origin: &Origin) -> Result<Connection, HttpError> {
    let failed = |why: String| HttpError::Connect { address: origin.authority.clone(), why };
    let stream =
        TcpStream::connect((origin.host.as_str(), origin.port)).await.map_err(|e| failed(e.to_string()))?;
    // Requests are single small segments; without this the second one on a connection may wait for an acknowledgement.
    stream.set_nodelay(true).map_err(|e| failed(e.to_string()))?;
    let mut builder = Builder::new();
    builder.max_buf_size(BUFFER);
    let (sender, driver) =
        builder.handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.map_err(|e| failed(explain(&e)))?;
    let driver = tokio::spawn(async move {
        // Its error also reaches the request under way, which reports it.
        let _ = driver.await;
    });
    Ok(Connection { sender, driver, used: false })
}

/// hyper's errors name a class; the cause is one level down.
fn explain(error: &hyper::Error) -> String {
    use std::error::Error;
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::Origin;

    #[test]
    fn origins_are_read_or_refused_with_the_reason() {
        for (url, authority, base) in [
            ("http://127.0.0.1:8000", "127.0.0.1:8000", ""),
            ("http://engine", "engine:80", ""),
            ("http://engine:81/", "engine:81", ""),
            ("http://[::1]:9000/api/x/", "[::1]:9000", "/api/x"),
        ] {
            let origin = Origin::parse(url).unwrap_or_else(|e| panic!("{url}: {e}"));
            assert_eq!((origin.authority(), origin.base.as_str()), (authority, base), "{url}");
        }
        for (url, says) in [
            ("127.0.0.1:8000", "http://"),
            ("https://engine", "https"),
            ("http://user@engine", "user"),
            ("http://engine/?x=1", "query"),
            ("http://", "URL"),
        ] {
            let error = Origin::parse(url).expect_err(url);
            assert!(error.contains(says), "{url}: {error}");
        }
        assert!(Origin::parse("http://[::1]:1").is_ok_and(|o| o.is_loopback()));
        assert!(!Origin::parse("http://10.0.0.1:1").is_ok_and(|o| o.is_loopback()));
    }
}
