//! `/metrics`, `/healthz` and `/readyz` of the agent itself.

use crate::metrics::expected;
use crate::state::{AgentState, ENGINE_LABELS, Stats};
use bytes::Bytes;
use fairlead_wire::msg::EngineKind;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Connections at once; further ones wait in the kernel's queue.
const CONNECTIONS: usize = 32;
/// Longest life of a connection: a scraper that holds one for ever would take one of the few places.
const LIFE: Duration = Duration::from_secs(300);
/// Time for a request's head.
const HEAD: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(crate) struct Admin {
    pub stats: Arc<Stats>,
    pub state: watch::Receiver<AgentState>,
}

impl Admin {
    /// Serves for ever.
    pub async fn run(self, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        // Dropped with this future, and its connections with it.
        let mut connections = JoinSet::new();
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: they come back.
                    tracing::warn!("admin listener: {error}");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            while connections.try_join_next().is_some() {}
            let admin = self.clone();
            connections.spawn(async move {
                let service = service_fn(move |request| {
                    let answer = admin.answer(&request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let serve = Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD)
                    .max_buf_size(16 * 1024)
                    .serve_connection(TokioIo::new(stream), service);
                // A client that breaks off is its own business.
                let _ = timeout(LIFE, serve).await;
                drop(place);
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into());
        }
        match request.uri().path() {
            "/metrics" => text(StatusCode::OK, self.page()),
            "/healthz" => text(StatusCode::OK, "ok\n".into()),
            "/readyz" => {
                let state = self.state.borrow();
                match (state.registered, &state.reason, &state.link_error) {
                    (true, None, _) => text(StatusCode::OK, "ok\n".into()),
                    (_, Some(why), _) => text(StatusCode::SERVICE_UNAVAILABLE, format!("engine: {why}\n")),
                    (_, None, Some(why)) => {
                        text(StatusCode::SERVICE_UNAVAILABLE, format!("scheduler: {why}\n"))
                    }
                    (false, None, None) => {
                        text(StatusCode::SERVICE_UNAVAILABLE, "not registered yet\n".into())
                    }
                }
            }
            _ => text(StatusCode::NOT_FOUND, "here are /metrics, /healthz and /readyz\n".into()),
        }
    }

    fn page(&self) -> String {
        let stats = &self.stats;
        let mut page = String::with_capacity(4096);
        let mut metric = |name: &str, kind: &str, help: &str, value: u64| {
            // Writing to a String cannot fail.
            let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        };
        let flag = |flag: &std::sync::atomic::AtomicBool| u64::from(flag.load(Relaxed));
        metric("fairlead_agent_engine_ready", "gauge", "Whether the engine is ready.", flag(&stats.ready));
        metric(
            "fairlead_agent_connected",
            "gauge",
            "Whether a scheduler is connected.",
            flag(&stats.connected),
        );
        metric(
            "fairlead_agent_rtt_microseconds",
            "gauge",
            "Last heartbeat's round trip.",
            stats.rtt_us.load(Relaxed),
        );
        for (name, help, value) in [
            ("fairlead_agent_probes_total", "Health probes of the engine.", &stats.probes),
            ("fairlead_agent_probe_failures_total", "Health probes that failed.", &stats.probe_failures),
            ("fairlead_agent_scrapes_total", "Reads of the engine's metrics page.", &stats.scrapes),
            ("fairlead_agent_scrape_failures_total", "Reads that failed.", &stats.scrape_failures),
            (
                "fairlead_agent_engine_restarts_total",
                "Restarts of the engine noticed.",
                &stats.engine_restarts,
            ),
            ("fairlead_agent_connects_total", "Links to a scheduler made.", &stats.connects),
            (
                "fairlead_agent_connect_failures_total",
                "Attempts to link that failed.",
                &stats.connect_failures,
            ),
            ("fairlead_agent_registrations_total", "Registrations sent.", &stats.registrations),
            ("fairlead_agent_reports_total", "Reports sent.", &stats.reports),
            ("fairlead_agent_send_failures_total", "Messages not sent.", &stats.send_failures),
        ] {
            metric(name, "counter", help, value.load(Relaxed));
        }
        let engine = stats.engine.load(Relaxed) as usize;
        let kind = [EngineKind::Generic, EngineKind::Vllm, EngineKind::Sglang].get(engine).copied();
        let unknown = stats.unknown.load(Relaxed);
        let name = "fairlead_agent_metric_unknown";
        let _ = write!(
            page,
            "# HELP {name} Expected figures that the engine does not report.\n# TYPE {name} gauge\n"
        );
        let label = ENGINE_LABELS.get(engine).copied().unwrap_or("generic");
        for (at, (_, metric)) in expected(kind.unwrap_or_default()).iter().enumerate() {
            let absent = unknown >> at & 1;
            let _ = writeln!(page, "{name}{{engine=\"{label}\",metric=\"{metric}\"}} {absent}");
        }
        page
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    response
}
