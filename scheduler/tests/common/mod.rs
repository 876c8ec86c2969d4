//! Agents, gateways and an HTTP reader for tests of a real scheduler on the loopback interface.
#![allow(dead_code, reason = "not every test file uses everything")]

use std::net::SocketAddr;
use std::time::Duration;

use fairlead_scheduler::{Handle, Scheduler, SchedulerOptions};
use fairlead_transport::{
    ANY_NAME, Authority, Identity, Lane, LinkError, LinkOptions, LinkReceiver, LinkSender,
};
use fairlead_wire::msg::{
    Hello, InstanceInfo, ModelInfo, Ping, Pong, RankLoad, Register, Report, Role, Welcome,
};
use fairlead_wire::{Body, Message, PROTOCOL, PROTOCOL_MIN, Stamp, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Long enough for a starved machine; nothing waits for it when all is well.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("nothing happened in time")
}

pub fn local() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

pub fn links() -> LinkOptions {
    LinkOptions {
        handshake_timeout: PATIENCE,
        idle_timeout: PATIENCE,
        keep_alive: Duration::from_millis(100),
        ..LinkOptions::default()
    }
}

pub struct Cluster {
    pub authority: Authority,
    pub scheduler: Identity,
}

impl Cluster {
    pub fn new() -> Self {
        let authority = Authority::new("test").expect("an authority");
        let scheduler = authority.issue(Role::Scheduler, "s").expect("an identity");
        Self { authority, scheduler }
    }

    pub fn options(&self) -> SchedulerOptions {
        let mut options = SchedulerOptions::new(local(), self.scheduler.clone());
        options.admin = Some(local());
        options.index_bytes = 64 << 20;
        // So slow a machine that a peer looks silent must not fail a test that is about something else.
        options.heartbeat = Duration::from_secs(5);
        options.links.idle_timeout = PATIENCE;
        options
    }

    pub async fn start(&self) -> Handle {
        Scheduler::start(self.options()).await.expect("a scheduler")
    }

    pub async fn connect(&self, to: SocketAddr, role: Role, name: &str, incarnation: u64) -> Peer {
        self.connect_with(to, role, name, incarnation, &links()).await
    }

    pub async fn connect_with(
        &self,
        to: SocketAddr,
        role: Role,
        name: &str,
        incarnation: u64,
        options: &LinkOptions,
    ) -> Peer {
        let identity = self.authority.issue(role, ANY_NAME).expect("an identity");
        let hello = Hello {
            role,
            name: name.into(),
            incarnation,
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL,
            software: "test".into(),
            have: None,
        };
        let (link, welcome) = soon(fairlead_transport::connect(&to.to_string(), &identity, &hello, options))
            .await
            .expect("a link");
        let (sender, receiver) = link.split();
        Peer { welcome, sender, receiver, stamp: Stamp::default() }
    }
}

/// An agent or a gateway that says what the test wants.
pub struct Peer {
    pub welcome: Welcome,
    pub sender: LinkSender,
    pub receiver: LinkReceiver,
    /// Of the last frame received.
    pub stamp: Stamp,
}

impl Peer {
    pub async fn say<T: Body>(&self, lane: Lane, body: &T) {
        let frame =
            encode(body, Stamp { epoch: self.welcome.epoch, ..Stamp::default() }).expect("a valid body");
        soon(self.sender.send(lane, frame.to_bytes().into())).await.expect("an open link");
    }

    /// The next message that is not a heartbeat; heartbeats are answered.
    pub async fn hear(&mut self) -> Result<Message, LinkError> {
        loop {
            let (_, frame) = soon(self.receiver.recv()).await?;
            self.stamp = frame.header.stamp();
            match frame.message().expect("a valid message") {
                Message::Ping(Ping { id, sent_us }) => {
                    self.say(Lane::Control, &Pong { id, ping_sent_us: sent_us, received_us: sent_us }).await;
                }
                Message::Pong(_) => {}
                message => return Ok(message),
            }
        }
    }

    /// Messages until one satisfies `wanted`.
    pub async fn hear_until<T>(&mut self, mut wanted: impl FnMut(&Message) -> Option<T>) -> T {
        soon(async {
            loop {
                let message = self.hear().await.expect("an open link");
                if let Some(found) = wanted(&message) {
                    return found;
                }
            }
        })
        .await
    }

    /// How the link ends, whatever is said before.
    pub async fn end(&mut self) -> LinkError {
        loop {
            if let Err(error) = soon(self.receiver.recv()).await {
                return error;
            }
        }
    }

    /// Registers an engine under the agent's own name.
    pub async fn register(&self, name: &str, incarnation: u64) {
        self.say(Lane::Control, &Register { instance: instance(name, incarnation) }).await;
    }

    pub async fn report(&self, incarnation: u64, running: u32) {
        let load = RankLoad { taken_us: 1, running: Some(running), waiting: Some(0), ..RankLoad::default() };
        let report = Report { incarnation, ready: true, reason: None, ranks: vec![load] };
        self.say(Lane::Control, &report).await;
    }
}

pub fn instance(name: &str, incarnation: u64) -> InstanceInfo {
    InstanceInfo {
        name: name.into(),
        address: "127.0.0.1:8000".into(),
        host: "host".into(),
        incarnation,
        engine: Default::default(),
        engine_version: "1".into(),
        models: vec![ModelInfo { name: "m".into(), max_model_len: None, parent: None }],
        role: Default::default(),
        transfer: None,
        dp_ranks: 1,
        block_size: Some(16),
        kv_blocks: Some(1000),
        max_num_seqs: Some(64),
        labels: Vec::new(),
    }
}

/// Status and body of an admin page.
pub async fn get(address: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
    let request = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("a request");
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.expect("an answer");
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let body = answer.split_once("\r\n\r\n").expect("a body").1.to_owned();
    (status, body)
}

/// The page's JSON once it satisfies `wanted`.
pub async fn page_when(
    address: SocketAddr,
    path: &str,
    wanted: impl Fn(&serde_json::Value) -> bool,
) -> serde_json::Value {
    soon(async {
        loop {
            let (status, body) = get(address, &format!("GET {path}")).await;
            assert_eq!(status, 200, "{body}");
            let value = serde_json::from_str(&body).expect("JSON");
            if wanted(&value) {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}
