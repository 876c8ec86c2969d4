//! The scheduler's side of a connection's start.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use fairlead_wire::frame::{Kind, Message};
use fairlead_wire::msg::{Hello, Refuse, RefuseCode, Role};
use fairlead_wire::{PROTOCOL, PROTOCOL_MIN};
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream, TokioRuntime, VarInt};
use tokio::sync::{Semaphore, mpsc};

use crate::codec::{Budget, read_frame};
use crate::connect::certified_peer;
use crate::error::{LinkError, ListenError, close_code};
use crate::identity::{Identity, Peer, role_str};
use crate::link::{Link, encode_refuse, short};
use crate::refusals::Refusals;
use crate::tls::{self, LinkOptions};

/// A peer whose certificate and hello have been found in order. The next thing it expects is a
/// [`Welcome`](fairlead_wire::msg::Welcome) or a refusal on the control lane.
pub struct Accepted {
    /// The link.
    pub link: Link,
    /// What the peer said; role and name agree with its certificate.
    pub hello: Hello,
    /// Newest protocol version that both sides speak.
    pub protocol: u16,
}

/// Accepts links. Handshakes run beside each other: a slow one holds up nobody.
pub struct Listener {
    endpoint: Endpoint,
    address: SocketAddr,
    accepted: mpsc::Receiver<Accepted>,
    refused: Arc<Refusals>,
}

/// Binds `address` (UDP; port 0 takes a free one) and starts accepting. Call within a tokio runtime.
pub fn listen(
    address: SocketAddr,
    identity: &Identity,
    options: &LinkOptions,
) -> Result<Listener, ListenError> {
    if identity.peer().role != Role::Scheduler {
        return Err(ListenError::Role(identity.peer().to_string()));
    }
    let bind = |source| ListenError::Bind { address, source };
    let config = tls::server(identity, options)?;
    let socket = tls::udp_socket(address, options).map_err(bind)?;
    let endpoint =
        Endpoint::new(tls::endpoint(identity), Some(config), socket, Arc::new(TokioRuntime)).map_err(bind)?;
    let address = endpoint.local_addr().map_err(bind)?;
    let (sender, accepted) = mpsc::channel(options.max_handshakes.max(1));
    let refused = Arc::new(Refusals::default());
    let door = Door {
        accepted: sender,
        cluster: identity.peer().cluster.clone().into(),
        handshakes: Arc::new(Semaphore::new(options.max_handshakes.max(1))),
        refused: refused.clone(),
        started: Instant::now(),
        said: Arc::default(),
        options: options.clone(),
    };
    tokio::spawn(accept(endpoint.clone(), door));
    Ok(Listener { endpoint, address, accepted, refused })
}

impl Listener {
    /// The address bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The next peer; `None` after [`Listener::close`]. May be dropped and called again without loss.
    pub async fn accept(&mut self) -> Option<Accepted> {
        self.accepted.recv().await
    }

    /// Peers turned away during the handshake so far; goes on counting wherever it is kept.
    pub fn refused(&self) -> Arc<Refusals> {
        self.refused.clone()
    }

    /// Closes every link and stops accepting; returns when the peers have been told or cannot be.
    pub async fn close(&mut self, reason: &str) {
        self.endpoint.close(VarInt::from_u32(0), short(reason));
        self.accepted.close();
        let _ = tokio::time::timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.endpoint.close(VarInt::from_u32(0), b"listener ended");
    }
}

#[derive(Clone)]
struct Door {
    accepted: mpsc::Sender<Accepted>,
    cluster: Arc<str>,
    handshakes: Arc<Semaphore>,
    refused: Arc<Refusals>,
    started: Instant,
    /// Second since the start in which a refusal was last logged, from 1.
    said: Arc<AtomicU64>,
    options: LinkOptions,
}

async fn accept(endpoint: Endpoint, door: Door) {
    while let Some(incoming) = endpoint.accept().await {
        let full = endpoint.open_connections() > door.options.max_links;
        let Ok(handshake) = door.handshakes.clone().try_acquire_owned() else {
            door.turn_away(incoming, "too many handshakes");
            continue;
        };
        if full {
            door.turn_away(incoming, "too many links");
            continue;
        }
        let door = door.clone();
        tokio::spawn(async move {
            let remote = incoming.remote_address();
            let rejected =
                match tokio::time::timeout(door.options.handshake_timeout, door.admit(incoming)).await {
                    Ok(Ok(accepted)) => {
                        drop(handshake);
                        // Fails only when the listener has been closed, which closes the link too.
                        let _ = door.accepted.send(accepted).await;
                        return;
                    }
                    Ok(Err(rejected)) => rejected,
                    Err(_) => "no hello in time".to_owned().into(),
                };
            let code = rejected.tell.as_ref().map(|(_, _, refuse)| refuse.code);
            door.count(remote, code, &rejected.why);
            if let Some((connection, send, refuse)) = rejected.tell {
                tell(&connection, send, &refuse).await;
            }
        });
    }
}

impl Door {
    fn turn_away(&self, incoming: Incoming, why: &str) {
        self.count(incoming.remote_address(), None, why);
        incoming.refuse();
    }

    /// Counts a peer turned away; says so at most once a second, since anybody on the network can cause it.
    fn count(&self, remote: SocketAddr, code: Option<RefuseCode>, why: &str) {
        let total = self.refused.count(code);
        let second = self.started.elapsed().as_secs() + 1;
        if self.said.swap(second, Relaxed) != second {
            tracing::warn!(%remote, why, total, "peer turned away");
        } else {
            tracing::debug!(%remote, why, total, "peer turned away");
        }
    }

    async fn admit(&self, incoming: Incoming) -> Result<Accepted, Rejected> {
        let connection = incoming.await.map_err(|e| e.to_string())?;
        // A handshake that is given up must not linger until the idle timeout.
        let guard = CloseUnlessAccepted(Some(connection.clone()));
        let peer = match certified_peer(&connection) {
            Ok(peer) => peer,
            Err(why) => {
                connection.close(close_code(RefuseCode::Identity), short(&why));
                return Err(why.into());
            }
        };
        let (send, mut recv) = connection.accept_bi().await.map_err(|e| e.to_string())?;
        let checked = match read_hello(&mut recv, &self.options).await {
            Ok(hello) => check(&hello, &peer, &self.cluster).map(|protocol| (hello, protocol)),
            Err(error) => match error.refusal() {
                Some(refuse) => Err(refuse),
                None => return Err(error.to_string().into()),
            },
        };
        let (hello, protocol) = match checked {
            Ok(checked) => checked,
            Err(refuse) => {
                guard.disarm();
                let why = format!("{peer}: {}", refuse.reason);
                return Err(Rejected { why, tell: Some((connection, send, refuse)) });
            }
        };
        guard.disarm();
        let link = Link::start(connection, None, peer, (send, recv), &self.options);
        Ok(Accepted { link, hello, protocol })
    }
}

struct Rejected {
    why: String,
    tell: Option<(Connection, SendStream, Refuse)>,
}

impl From<String> for Rejected {
    fn from(why: String) -> Self {
        Self { why, tell: None }
    }
}

struct CloseUnlessAccepted(Option<Connection>);

impl CloseUnlessAccepted {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CloseUnlessAccepted {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            connection.close(VarInt::from_u32(0), b"handshake not completed");
        }
    }
}

async fn read_hello(recv: &mut RecvStream, options: &LinkOptions) -> Result<Hello, LinkError> {
    let Some((frame, _)) = read_frame(recv, &Budget::new(options.receive_bytes)).await? else {
        return Err(LinkError::Protocol("no hello".into()));
    };
    if frame.header.kind != Kind::Hello {
        return Err(LinkError::Protocol(format!("{:?} came before the hello", frame.header.kind).into()));
    }
    match frame.message()? {
        Message::Hello(hello) => Ok(hello),
        _ => Err(LinkError::Protocol("a hello that is none".into())),
    }
}

/// The protocol version to speak, or why not to.
pub(crate) fn check(hello: &Hello, peer: &Peer, cluster: &str) -> Result<u16, Refuse> {
    let refuse = |code, reason| Err(Refuse { code, reason });
    if &*peer.cluster != cluster {
        return refuse(
            RefuseCode::Identity,
            format!("certificate of cluster {}, this is {cluster}", peer.cluster),
        );
    }
    if peer.role == Role::Scheduler || hello.role != peer.role {
        let (said, is) = (role_str(hello.role), role_str(peer.role));
        return refuse(RefuseCode::Identity, format!("hello as {said} with the certificate of a {is}"));
    }
    if !peer.may_be_called(&hello.name) {
        return refuse(
            RefuseCode::Identity,
            format!("hello as {:?} with a certificate for {:?}", hello.name, peer.name),
        );
    }
    let protocol = hello.protocol_max.min(PROTOCOL);
    if protocol < hello.protocol_min.max(PROTOCOL_MIN) {
        return refuse(
            RefuseCode::Protocol,
            format!(
                "no common protocol version: {} to {} there, {PROTOCOL_MIN} to {PROTOCOL} here",
                hello.protocol_min, hello.protocol_max
            ),
        );
    }
    Ok(protocol)
}

/// Sends a refusal before any link exists, waits briefly for it to arrive, and closes.
async fn tell(connection: &Connection, mut send: SendStream, refuse: &Refuse) {
    if let Some(bytes) = encode_refuse(refuse) {
        let delivered = async {
            let _ = send.write_chunk(bytes).await;
            let _ = send.finish();
            let _ = send.stopped().await;
        };
        let _ = tokio::time::timeout(Duration::from_millis(500), delivered).await;
    }
    connection.close(close_code(refuse.code), short(&refuse.reason));
}
