//! An engine that answers as it is told, and a scheduler that listens.

// Each test program uses its part of this.
#![allow(dead_code)]

pub mod publisher;

use bytes::Bytes;
use fairlead_agent::{AgentOptions, Intervals};
use fairlead_transport::{
    Authority, Lane, LinkError, LinkOptions, LinkReceiver, LinkSender, Listener, listen,
};
use fairlead_wire::msg::{Hello, Ping, Pong, Register, Report, Role, Welcome};
use fairlead_wire::{Message, Stamp, encode};
use http_body_util::Full;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

/// Nothing here takes this long unless it never happens, also on a machine that does much else.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(120), future).await {
        Ok(value) => value,
        Err(_) => panic!("never happened: {what}"),
    }
}

/// Answers by path: status and body.
type Answers = BTreeMap<&'static str, (u16, Bytes)>;

#[derive(Default)]
struct Shared {
    answers: Mutex<Answers>,
    hang: Mutex<bool>,
    connections: AtomicUsize,
    requests: AtomicUsize,
    asked: Mutex<BTreeMap<String, usize>>,
    closes: AtomicBool,
}

/// A fake engine.
pub struct Engine {
    shared: Arc<Shared>,
    pub addr: SocketAddr,
    server: Option<JoinHandle<()>>,
}

impl Engine {
    /// An engine that answers 404 to everything.
    pub async fn start() -> Self {
        let mut engine =
            Self { shared: Arc::default(), addr: SocketAddr::from(([127, 0, 0, 1], 0)), server: None };
        engine.revive().await;
        engine
    }

    /// A vLLM that is ready, with this metrics page.
    pub async fn vllm(page: &str) -> Self {
        let engine = Self::start().await;
        engine.answer("/health", 200, "");
        engine.answer(
            "/v1/models",
            200,
            r#"{"data":[{"id":"chat","owned_by":"vllm","max_model_len":4096}]}"#,
        );
        engine.answer("/version", 200, r#"{"version":"0.32.0"}"#);
        engine.answer("/metrics", 200, page);
        engine
    }

    pub fn answer(&self, path: &'static str, status: u16, body: &str) {
        let body = Bytes::copy_from_slice(body.as_bytes());
        self.shared.answers.lock().expect("no panic under it").insert(path, (status, body));
    }

    pub fn hang(&self, hang: bool) {
        *self.shared.hang.lock().expect("no panic under it") = hang;
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Requests for a path.
    pub fn asked(&self, path: &str) -> usize {
        self.shared.asked.lock().expect("no panic under it").get(path).copied().unwrap_or(0)
    }

    /// Closes each connection after one answer.
    pub fn close_after_answers(&self) {
        self.shared.closes.store(true, Ordering::Relaxed);
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Dies as a killed process does: port and connections are gone at once.
    pub async fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            let _ = server.await;
        }
    }

    /// Listens (again), on the same port.
    pub async fn revive(&mut self) {
        let listener = TcpListener::bind(self.addr).await.expect("a port");
        self.addr = listener.local_addr().expect("bound");
        let shared = self.shared.clone();
        self.server = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let shared = shared.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(shared.clone(), request));
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        }));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

async fn answer(
    shared: Arc<Shared>,
    request: hyper::Request<hyper::body::Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    shared.requests.fetch_add(1, Ordering::Relaxed);
    *shared.asked.lock().expect("no panic under it").entry(request.uri().path().to_owned()).or_default() += 1;
    if *shared.hang.lock().expect("no panic under it") {
        std::future::pending::<()>().await;
    }
    let known = shared.answers.lock().expect("no panic under it").get(request.uri().path()).cloned();
    let (status, body) = known.unwrap_or((404, Bytes::from_static(b"no such thing")));
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    if shared.closes.load(Ordering::Relaxed) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// A fake scheduler.
pub struct Scheduler {
    authority: Authority,
    listener: Option<Listener>,
    pub addr: SocketAddr,
}

impl Scheduler {
    pub fn start() -> Self {
        let authority = Authority::new("test").expect("an authority");
        let identity = authority.issue(Role::Scheduler, "s").expect("an identity");
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = listen(anywhere, &identity, &LinkOptions::default()).expect("a port");
        let addr = listener.local_addr();
        Self { authority, listener: Some(listener), addr }
    }

    /// Goes away and comes back on the same port. Its sessions must have been dropped: a link holds the port.
    pub async fn restart(&mut self) {
        if let Some(mut listener) = self.listener.take() {
            listener.close("restart").await;
        }
        let identity = self.authority.issue(Role::Scheduler, "s").expect("an identity");
        let back = async {
            loop {
                match listen(self.addr, &identity, &LinkOptions::default()) {
                    Ok(listener) => return listener,
                    // The old socket closes when its tasks have ended.
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        self.listener = Some(soon("the port is free", back).await);
    }

    /// Options of an agent for this scheduler, in a hurry.
    pub fn options(&self, engine: &Engine) -> AgentOptions {
        let identity = self.authority.issue(Role::Agent, "*").expect("an identity");
        let mut options = AgentOptions::new(engine.url(), self.addr.to_string(), identity);
        options.intervals = Intervals {
            probe: Duration::from_millis(50),
            probe_timeout: Duration::from_secs(2),
            scrape_busy: Duration::from_millis(20),
            scrape_idle: Duration::from_millis(40),
            models: Duration::from_millis(100),
            wait: Duration::from_millis(50),
        };
        options
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Accepts the agent's next link, and answers its heartbeats.
    pub async fn accept(&mut self, epoch: u64) -> Session {
        self.accept_with(epoch, true).await
    }

    /// Accepts the agent's next link; `alive`: answers its heartbeats.
    pub async fn accept_with(&mut self, epoch: u64, alive: bool) -> Session {
        let listener = self.listener.as_mut().expect("not restarting");
        let accepted = soon("a link from the agent", listener.accept()).await.expect("still listening");
        let (sender, receiver) = accepted.link.split();
        let pings = Arc::new(AtomicU64::new(0));
        let (heard, messages) = mpsc::unbounded_channel();
        let reader = tokio::spawn(read(sender.clone(), receiver, heard, pings.clone(), alive));
        let session = Session { hello: accepted.hello, sender, messages, reader, pings };
        session.send(&Welcome {
            protocol: accepted.protocol,
            epoch,
            cluster_seed: 1,
            heartbeat_ms: 100,
            block_tokens: 64,
        });
        session
    }
}

/// Forwards what arrives except for heartbeats.
async fn read(
    sender: LinkSender,
    mut receiver: LinkReceiver,
    heard: mpsc::UnboundedSender<Result<Message, LinkError>>,
    pings: Arc<AtomicU64>,
    alive: bool,
) {
    loop {
        let message = receiver.recv().await.map(|(_, frame)| frame.message().expect("a valid frame"));
        match message {
            Ok(Message::Ping(Ping { id, sent_us })) => {
                pings.fetch_add(1, Ordering::Relaxed);
                if alive {
                    send(&sender, &Pong { id, ping_sent_us: sent_us, received_us: 1 });
                }
            }
            message => {
                let ended = message.is_err();
                if heard.send(message).is_err() || ended {
                    return;
                }
            }
        }
    }
}

fn send<T: fairlead_wire::Body>(sender: &LinkSender, body: &T) {
    let frame = encode(body, Stamp::default()).expect("valid");
    // A link that has ended says so when it is read.
    let _ = sender.try_send(Lane::Control, frame.to_bytes().into());
}

/// A link with the agent.
pub struct Session {
    pub hello: Hello,
    sender: LinkSender,
    messages: mpsc::UnboundedReceiver<Result<Message, LinkError>>,
    reader: JoinHandle<()>,
    pub pings: Arc<AtomicU64>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Session {
    pub fn send<T: fairlead_wire::Body>(&self, body: &T) {
        send(&self.sender, body);
    }

    pub fn refuse(&self, reason: &str) {
        self.sender.refuse(fairlead_wire::msg::RefuseCode::Superseded, reason);
    }

    /// The next message that is not a heartbeat.
    pub async fn next(&mut self) -> Result<Message, LinkError> {
        self.messages.recv().await.expect("not read beyond the end")
    }

    pub async fn register(&mut self) -> Register {
        soon("a registration", async {
            loop {
                if let Message::Register(register) = self.next().await.expect("link") {
                    return register;
                }
            }
        })
        .await
    }

    /// The next report that satisfies a condition.
    pub async fn report(&mut self, what: &str, good: impl Fn(&Report) -> bool) -> Report {
        soon(what, async {
            loop {
                if let Message::Report(report) = self.next().await.expect("link")
                    && good(&report)
                {
                    return report;
                }
            }
        })
        .await
    }

    /// Waits for the link's end.
    pub async fn end(&mut self) -> LinkError {
        soon("the link's end", async {
            loop {
                if let Err(end) = self.next().await {
                    return end;
                }
            }
        })
        .await
    }
}
