//! The admin pages: `/metrics`, `/healthz`, `/readyz`, `/debug/targets`, `/debug/sessions`.
//!
//! Every page is made by the task that owns the state, on request; that it answers at all is what `/healthz` tells.

use fairlead_telemetry::admin::{Page, serve_pages};
use fairlead_transport::LinkSender;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use crate::core::Event;
use crate::view::View;

const KNOWN: &str = "/metrics /healthz /readyz /debug/targets /debug/sessions";

/// Serves the pages until dropped.
pub(crate) async fn serve(listener: TcpListener, core: mpsc::Sender<Event<LinkSender>>) {
    serve_pages(listener, KNOWN, move |path| {
        let core = core.clone();
        async move {
            let view = match path.as_str() {
                "/metrics" => View::Metrics,
                "/healthz" | "/readyz" => View::Health,
                "/debug/targets" => View::Targets,
                "/debug/sessions" => View::Sessions,
                _ => return None,
            };
            let (reply, answer) = oneshot::channel();
            let asked = core.send(Event::Show { view, reply }).await;
            let page = match asked {
                Ok(()) => answer.await.ok(),
                Err(_) => None,
            };
            Some(page.unwrap_or_else(|| Page::text(503, "the scheduler is shutting down\n")))
        }
    })
    .await;
}
