//! TLS and QUIC settings shared by both ends.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, version::TLS13};
use socket2::{Domain, Protocol, Socket, Type};

use crate::identity::{Identity, IdentityError};

const ALPN: &[u8] = b"fairlead/1";

/// Limits and times of links. The same type serves both ends; the shorter idle timeout of the two holds.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// A link on which nothing arrives for this long has ended.
    pub idle_timeout: Duration,
    /// An idle link sends a probe this often.
    pub keep_alive: Duration,
    /// From the first packet to the accepted hello.
    pub handshake_timeout: Duration,
    /// Bytes in flight on one stream. A larger window moves no more data on a short path and queues it longer:
    /// 8 MiB were measured to add 12 to 16 ms where 256 KiB add 0.3.
    pub stream_window: u32,
    /// Frames waiting to be sent on one lane.
    pub send_frames: usize,
    /// Bytes waiting to be sent on one lane. One larger frame passes when the queue is empty.
    pub send_bytes: usize,
    /// Frames received and not yet taken, over all lanes but that of snapshots, and as many of that one.
    pub receive_frames: usize,
    /// Bytes received and not yet taken, over all lanes but that of snapshots, and as many of that one. One larger frame passes when nothing else waits.
    pub receive_bytes: usize,
    /// Kernel buffer of the UDP socket, bytes; the default of Linux loses packets in bursts. Taken as far as the
    /// system allows.
    pub socket_buffer: usize,
    /// Send the load lane's frames as datagrams when they fit. For senders whose every message is absolute:
    /// a datagram may be lost.
    pub load_datagrams: bool,
    /// Listener: links at once.
    pub max_links: usize,
    /// Listener: handshakes under way at once.
    pub max_handshakes: usize,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(4),
            keep_alive: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(2),
            stream_window: 256 * 1024,
            send_frames: 1024,
            send_bytes: 8 << 20,
            receive_frames: 256,
            receive_bytes: 32 << 20,
            socket_buffer: 4 << 20,
            load_datagrams: false,
            max_links: 8192,
            max_handshakes: 64,
        }
    }
}

impl LinkOptions {
    fn transport(&self) -> Arc<TransportConfig> {
        let window = VarInt::from_u32(self.stream_window);
        let mut transport = TransportConfig::default();
        transport
            .stream_receive_window(window)
            // Two streams' worth, so that a snapshot in full flow leaves room for the deltas beside it.
            .receive_window(VarInt::from_u32(self.stream_window.saturating_mul(2)))
            .send_window(u64::from(self.stream_window) * 2)
            .max_concurrent_bidi_streams(VarInt::from_u32(1))
            // Load, delta, and two snapshots while one replaces the other.
            .max_concurrent_uni_streams(VarInt::from_u32(4))
            .keep_alive_interval(Some(self.keep_alive))
            // The first retransmissions come after 150, 450, 1050 ms instead of 1 and 3 s: the usual reason for no
            // answer is a scheduler that is about to be back.
            .initial_rtt(Duration::from_millis(50))
            .datagram_receive_buffer_size(Some(256 * 1024))
            .datagram_send_buffer_size(256 * 1024);
        transport.max_idle_timeout(IdleTimeout::try_from(self.idle_timeout).ok());
        Arc::new(transport)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn refused(what: &str, why: impl std::fmt::Display) -> IdentityError {
    IdentityError::Certificate(format!("{what}: {why}"))
}

fn roots(identity: &Identity) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.authority().clone()).map_err(|e| refused("the authority", e))?;
    Ok(Arc::new(roots))
}

pub(crate) fn server(
    identity: &Identity,
    options: &LinkOptions,
) -> Result<quinn::ServerConfig, IdentityError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(identity)?, provider())
        .build()
        .map_err(|e| refused("the authority", e))?;
    let mut tls = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| refused("TLS 1.3", e))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(), identity.key())
        .map_err(|e| refused("own certificate", e))?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    // No tickets: a resumed session would be 0-RTT's first half and would skip the certificate check.
    tls.send_tls13_tickets = 0;
    let crypto = QuicServerConfig::try_from(tls).map_err(|e| refused("TLS for QUIC", e))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(options.transport()).max_incoming(options.max_handshakes.saturating_mul(4));
    Ok(config)
}

pub(crate) fn client(
    identity: &Identity,
    options: &LinkOptions,
) -> Result<quinn::ClientConfig, IdentityError> {
    client_trusting(identity, identity, options)
}

/// A client that is `identity` and believes the authority of `trusted`.
pub(crate) fn client_trusting(
    identity: &Identity,
    trusted: &Identity,
    options: &LinkOptions,
) -> Result<quinn::ClientConfig, IdentityError> {
    let mut tls = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| refused("TLS 1.3", e))?
        .with_root_certificates(roots(trusted)?)
        .with_client_auth_cert(identity.chain(), identity.key())
        .map_err(|e| refused("own certificate", e))?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.resumption = Resumption::disabled();
    tls.enable_early_data = false;
    let crypto = QuicClientConfig::try_from(tls).map_err(|e| refused("TLS for QUIC", e))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(options.transport());
    Ok(config)
}

/// Endpoint settings whose stateless-reset key follows from the identity: a restarted scheduler can tell the links of
/// its predecessor at once that they have ended, so that nobody waits for an idle timeout.
pub(crate) fn endpoint(identity: &Identity) -> EndpointConfig {
    let secret = identity.derive(b"fairlead stateless reset");
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, secret.as_ref())));
    // Connection ids bear a mark of the key, so that the successor can tell a predecessor's link from noise.
    let mut key = [0; 8];
    key.copy_from_slice(&identity.derive(b"fairlead connection ids").as_ref()[..8]);
    let key = u64::from_le_bytes(key);
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(key)));
    // The default of 20 ms would take 20 s to reset a thousand links.
    config.min_reset_interval(Duration::from_millis(1));
    config
}

pub(crate) fn udp_socket(address: SocketAddr, options: &LinkOptions) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // Dual stack whatever the system's default.
        socket.set_only_v6(false)?;
    }
    // Beyond net.core.rmem_max Linux grants less without an error; a system that refuses altogether still works.
    if let Err(error) = socket.set_recv_buffer_size(options.socket_buffer) {
        tracing::debug!(%error, "socket receive buffer not enlarged");
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}
