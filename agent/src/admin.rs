//! `/metrics`, `/healthz` and `/readyz` of the agent itself.

use crate::metrics::expected;
use crate::state::{AgentState, ENGINE_LABELS, Stats};
use fairlead_telemetry::admin::{Page, serve_pages};
use fairlead_wire::msg::EngineKind;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::net::TcpListener;
use tokio::sync::watch;

#[derive(Clone)]
pub(crate) struct Admin {
    pub stats: Arc<Stats>,
    pub state: watch::Receiver<AgentState>,
}

impl Admin {
    /// Serves for ever.
    pub async fn run(self, listener: TcpListener) {
        serve_pages(listener, "/metrics /healthz /readyz", move |path| {
            let page = self.answer(&path);
            async move { page }
        })
        .await;
    }

    fn answer(&self, path: &str) -> Option<Page> {
        match path {
            "/metrics" => Some(Page {
                status: 200,
                content_type: "text/plain; version=0.0.4; charset=utf-8",
                body: self.page(),
            }),
            "/healthz" => Some(Page::text(200, "ok\n")),
            "/readyz" => {
                let state = self.state.borrow();
                Some(match (state.registered, &state.reason, &state.link_error) {
                    (true, None, _) => Page::text(200, "ok\n"),
                    (_, Some(why), _) => Page::text(503, format!("engine: {why}\n")),
                    (_, None, Some(why)) => Page::text(503, format!("scheduler: {why}\n")),
                    (false, None, None) => Page::text(503, "not registered yet\n"),
                })
            }
            _ => None,
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
        stats.kv.write(&mut page);
        page
    }
}
