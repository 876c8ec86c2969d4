//! The client's side of a connection's start.

use std::net::SocketAddr;
use std::sync::Arc;

use fairlead_wire::frame::{Message, Stamp, encode};
use fairlead_wire::msg::{Hello, Role, Welcome};
use quinn::{Endpoint, TokioRuntime, VarInt};
use tokio::time::{Instant, timeout_at};

use crate::codec::{Budget, read_frame};
use crate::error::{ConnectError, LinkError, close_code};
use crate::identity::{Identity, Peer, SCHEDULER_HOST};
use crate::link::{Link, short};
use crate::tls::{self, LinkOptions};

/// Connects to the scheduler at `address` (`host:port`; every address of the host is tried, all within
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
    let addresses: Vec<SocketAddr> = found.map_err(|e| resolve(e.to_string()))?.collect();
    let mut outcome = resolve("the host has no address".into());
    for (tried, &remote) in addresses.iter().enumerate() {
        // An address that does not answer must leave time for the others.
        let left = deadline.saturating_duration_since(Instant::now());
        let share = Instant::now() + left / u32::try_from(addresses.len() - tried).unwrap_or(1);
        match timeout_at(share, attempt(remote, identity, config.clone(), &hello, options)).await {
            Ok(Ok(linked)) => return Ok(linked),
            Ok(Err(error)) => outcome = error,
            Err(_) => outcome = late(),
        }
    }
    Err(outcome)
}

async fn attempt(
    remote: SocketAddr,
    identity: &Identity,
    config: quinn::ClientConfig,
    hello: &[u8],
    options: &LinkOptions,
) -> Result<(Link, Welcome), ConnectError> {
    let failed = |error: LinkError| match error {
        LinkError::Refused(refuse) => ConnectError::Refused(refuse),
        error => ConnectError::Link { address: remote, error },
    };
    let untrusted = |why: String| ConnectError::Untrusted { address: remote, why };
    let local: SocketAddr = if remote.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = tls::udp_socket(local, options)?;
    let endpoint = Endpoint::new(tls::endpoint(identity), None, socket, Arc::new(TokioRuntime))?;
    let connecting = endpoint
        .connect_with(config, remote, SCHEDULER_HOST)
        .map_err(|e| failed(LinkError::Transport(e.to_string().into())))?;
    let connection = connecting.await.map_err(|e| failed(e.into()))?;

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
