//! The small HTTP server behind every process's admin port.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections at once; further ones wait in the kernel's queue.
const CONNECTIONS: usize = 64;
/// Longest life of a connection, so that a reader that holds one idle gives its place back.
const LIFE: Duration = Duration::from_secs(300);
/// Time for a request's head.
const HEAD: Duration = Duration::from_secs(10);
/// Time for a page.
const ANSWER: Duration = Duration::from_secs(5);

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// HTTP status.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
}

impl Page {
    /// Plain text with a status.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: body.into() }
    }

    /// JSON with status 200.
    pub fn json(body: impl Into<String>) -> Self {
        Self { status: 200, content_type: "application/json", body: body.into() }
    }

    /// The metrics of a registry.
    pub fn metrics(registry: &crate::Registry) -> Self {
        Self { status: 200, content_type: crate::CONTENT_TYPE, body: registry.encode() }
    }
}

/// Serves pages until dropped. `pages` is given the path of each GET; `None` answers 404 with `known`, the list of
/// paths that exist.
pub async fn serve_pages<F, A>(listener: TcpListener, known: &'static str, pages: F)
where
    F: Fn(String) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Option<Page>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "admin connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Small answers must not wait for the reader's acknowledgement; a socket that refuses is still served.
        let _ = stream.set_nodelay(true);
        while connections.try_join_next().is_some() {}
        let pages = pages.clone();
        connections.spawn(async move {
            let service = service_fn(|request| {
                let pages = pages.clone();
                async move { Ok::<_, Infallible>(respond(request, known, pages).await) }
            });
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            // How a reader's connection ends concerns nobody.
            let _ = tokio::time::timeout(LIFE, serving).await;
            drop(place);
        });
    }
}

async fn respond<B, F, A>(request: Request<B>, known: &'static str, pages: F) -> Response<Full<Bytes>>
where
    F: Fn(String) -> A,
    A: Future<Output = Option<Page>>,
{
    let page = if request.method() != Method::GET && request.method() != Method::HEAD {
        Page::text(405, "only GET is answered\n")
    } else {
        match tokio::time::timeout(ANSWER, pages(request.uri().path().to_owned())).await {
            Ok(Some(page)) => page,
            Ok(None) => Page::text(404, format!("here are {known}\n")),
            Err(_) => Page::text(503, "the state does not answer\n"),
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(page.body)));
    *response.status_mut() = StatusCode::from_u16(page.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    response
}
