//! The client's side of a connection's start.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fairlead_wire::frame::{Message, Stamp, encode};
use fairlead_wire::msg::{Hello, Role, Welcome};
use quinn::{Endpoint, TokioRuntime, VarInt};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::codec::{Budget, read_frame};
use crate::error::{ConnectError, LinkError, close_code};
use crate::identity::{Identity, Peer, SCHEDULER_HOST};
use crate::link::{Link, short};
use crate::tls::{self, LinkOptions};

/// Addresses of one host that are tried.
const ADDRESSES_MAX: usize = 8;
/// An address that has not answered for this long gets company from the next one of the same host: `localhost` may
/// name two, of which the scheduler listens on one, and UDP does not say which.
const STAGGER: Duration = Duration::from_millis(100);

/// Connects to the scheduler at `address` (`host:port`; the host's addresses are tried side by side, all within
/// `handshake_timeout`), checks that it is this cluster's scheduler, and exchanges hello and welcome.
pub async fn connect(
    address: &str,
    identity: &Identity,
    hello: &Hello,
    options: &LinkOptions,
) -> Result<(Link, Welcome), ConnectError> {
    let late =
        || ConnectError::TimedOut { address: address.into(), millis: options.handshake_timeout.as_millis() };
    let resolve = |why: String| ConnectError::Resolve { address: address.into(), why };
    let deadline = Instant::now() + options.handshake_timeout;
    let config = tls::client(identity, options)?;
    let hello = encode(hello, Stamp::default()).map_err(ConnectError::Hello)?.to_bytes();
    let found = timeout_at(deadline, tokio::net::lookup_host(address)).await.map_err(|_| late())?;
    let mut addresses: Vec<SocketAddr> = found.map_err(|e| resolve(e.to_string()))?.collect();
    addresses.dedup();
    addresses.truncate(ADDRESSES_MAX);
    if addresses.is_empty() {
        return Err(resolve("the host has no address".into()));
    }
    let reached = first_to_answer(&addresses, identity, &config, options);
    let linked = async {
        let (endpoint, connection) = reached.await?;
        greet(endpoint, connection, identity, &hello, options).await
    };
    timeout_at(deadline, linked).await.map_err(|_| late())?
}

pub(crate) type Dialled = (Endpoint, quinn::Connection);

/// The first of the addresses with which a handshake succeeds. No hello is sent before it is chosen: two hellos of one
/// peer would be two sessions, of which the second ends the first.
pub(crate) async fn first_to_answer(
    addresses: &[SocketAddr],
    identity: &Identity,
    config: &quinn::ClientConfig,
    options: &LinkOptions,
) -> Result<Dialled, ConnectError> {
    let mut waiting = addresses.iter();
    let mut attempts = JoinSet::new();
    let mut failure = None;
    loop {
        if let Some(&remote) = waiting.next() {
            let (identity, config, options) = (identity.clone(), config.clone(), options.clone());
            attempts.spawn(async move { dial(remote, &identity, config, &options).await });
        }
        let pause = async {
            match waiting.len() {
                0 => std::future::pending().await,
                _ => tokio::time::sleep(STAGGER).await,
            }
        };
        tokio::select! {
            ended = attempts.join_next() => match ended {
                Some(Ok(Ok(reached))) => return Ok(reached),
                Some(Ok(Err(error))) => failure = Some(error),
                // A panic in an attempt, or none left.
                Some(Err(error)) => failure = Some(ConnectError::Socket(std::io::Error::other(error))),
                None => {}
            },
            () = pause => {}
        }
        if attempts.is_empty() && waiting.len() == 0 {
            return Err(failure.unwrap_or_else(|| ConnectError::Socket(std::io::ErrorKind::NotFound.into())));
        }
    }
}

async fn dial(
    remote: SocketAddr,
    identity: &Identity,
    config: quinn::ClientConfig,
    options: &LinkOptions,
) -> Result<Dialled, ConnectError> {
    let failed = |error: LinkError| ConnectError::Link { address: remote, error };
    let local: SocketAddr = if remote.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = tls::udp_socket(local, options)?;
    let endpoint = Endpoint::new(tls::endpoint(identity), None, socket, Arc::new(TokioRuntime))?;
    let connecting = endpoint
        .connect_with(config, remote, SCHEDULER_HOST)
        .map_err(|e| failed(LinkError::Transport(e.to_string().into())))?;
    let connection = connecting.await.map_err(|e| failed(e.into()))?;
    Ok((endpoint, connection))
}

async fn greet(
    endpoint: Endpoint,
    connection: quinn::Connection,
    identity: &Identity,
    hello: &[u8],
    options: &LinkOptions,
) -> Result<(Link, Welcome), ConnectError> {
    let remote = connection.remote_address();
    let failed = |error: LinkError| match error {
        LinkError::Refused(refuse) => ConnectError::Refused(refuse),
        error => ConnectError::Link { address: remote, error },
    };
    let untrusted = |why: String| ConnectError::Untrusted { address: remote, why };
    let peer = certified_peer(&connection).map_err(&untrusted)?;
    if peer.role != Role::Scheduler || peer.cluster != identity.peer().cluster {
        let why = format!("its certificate is of {peer}, not of a scheduler of {}", identity.peer().cluster);
        connection.close(VarInt::from_u32(0), short(&why));
        return Err(untrusted(why));
    }

    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| failed(e.into()))?;
    // A write fails when the peer has closed: the reason is what the connection says.
    if send.write_all(hello).await.is_err() {
        return Err(failed(connection.closed().await.into()));
    }
    let answer = read_frame(&mut recv, &Budget::new(options.receive_bytes)).await.map_err(failed)?;
    let Some((frame, _)) = answer else {
        return Err(failed(connection.closed().await.into()));
    };
    let why = match frame.message() {
        Ok(Message::Welcome(welcome)) => {
            return Ok((Link::start(connection, Some(endpoint), peer, (send, recv), options), welcome));
        }
        Ok(Message::Refuse(refuse)) => {
            connection.close(VarInt::from_u32(0), b"");
            return Err(ConnectError::Refused(Arc::new(refuse)));
        }
        Ok(_) => LinkError::Protocol("neither welcome nor refusal came first".into()),
        Err(error) => error.into(),
    };
    if let Some(refuse) = why.refusal() {
        connection.close(close_code(refuse.code), short(&refuse.reason));
    }
    Err(failed(why))
}

/// The peer that the TLS handshake has authenticated.
pub(crate) fn certified_peer(connection: &quinn::Connection) -> Result<Peer, String> {
    let identity = connection.peer_identity().ok_or("no certificate")?;
    let chain = identity
        .downcast::<Vec<rustls_pki_types::CertificateDer<'static>>>()
        .map_err(|_| "a certificate of unknown form")?;
    let leaf = chain.first().ok_or("no certificate")?;
    Peer::from_certificate(leaf).map_err(|e| e.to_string())
}
