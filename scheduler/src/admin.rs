//! The admin pages: `/metrics`, `/healthz`, `/readyz`, `/debug/targets`, `/debug/sessions`.
//!
//! Every page is answered from a view that the task owning the state makes on request; that it answers at all is what
//! `/healthz` tells.

use std::convert::Infallible;
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
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::core::Event;
use crate::view::{self, Page};

/// Connections at once; further ones wait in the kernel's queue.
const CONNECTIONS: usize = 64;
/// Longest life of a connection, so that a reader that holds one idle gives its place back.
const LIFE: Duration = Duration::from_secs(300);
/// Time for a request's head.
const HEAD: Duration = Duration::from_secs(10);
/// Time for the state's owner to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Serves the pages until dropped.
pub(crate) async fn serve(listener: TcpListener, core: mpsc::Sender<Event>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
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
        while connections.try_join_next().is_some() {}
        let core = core.clone();
        connections.spawn(async move {
            let service = service_fn(|request| {
                let core = core.clone();
                async move { Ok::<_, Infallible>(respond(request, &core).await) }
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

async fn respond<B>(request: Request<B>, core: &mpsc::Sender<Event>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n");
    }
    let page = match request.uri().path() {
        "/metrics" => Page::Metrics,
        "/healthz" | "/readyz" => Page::Health,
        "/debug/targets" => Page::Targets,
        "/debug/sessions" => Page::Sessions,
        _ => {
            let known = "here are /metrics /healthz /readyz /debug/targets /debug/sessions\n";
            return text(StatusCode::NOT_FOUND, known);
        }
    };
    let (reply, answer) = oneshot::channel();
    let asked = async {
        core.send(Event::Show { page, reply }).await.ok()?;
        answer.await.ok()
    };
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(Some(body)) => with_type(StatusCode::OK, view::content_type(page), body),
        Ok(None) => text(StatusCode::SERVICE_UNAVAILABLE, "the scheduler is shutting down\n"),
        Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "the scheduler's state does not answer\n"),
    }
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    with_type(status, "text/plain; charset=utf-8", body.to_owned())
}

fn with_type(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
