//! TLS of the load generator, and the certificate that all processes under test show.
//!
//! Only one cipher is offered, so that all of them compute the same.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::poll;

/// Longest handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// What every process under test shows, and who trusts it.
#[derive(Clone, Debug)]
pub struct Seal {
    /// Certificate, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Both in one file.
    pub both: PathBuf,
    config: Arc<ClientConfig>,
}

impl Seal {
    /// A new certificate (ECDSA with P-256), as files in `folder`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()])?.self_signed(&key)?;
        let file = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            Ok::<_, anyhow::Error>(path)
        };
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone())?;
        let mut provider = ring::default_provider();
        provider.cipher_suites = vec![ring::cipher_suite::TLS13_AES_128_GCM_SHA256];
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            certificate: file("certificate.pem", certificate.pem())?,
            key: file("key.pem", key.serialize_pem())?,
            both: file("both.pem", certificate.pem() + &key.serialize_pem())?,
            config: Arc::new(config),
        })
    }
}

/// A connection of the load generator, which never blocks.
pub struct Line {
    /// The connection itself, for the loop.
    pub socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

impl Line {
    /// Connects, and shakes hands where there is to be TLS.
    ///
    /// # Errors
    /// Refused, or out of ports or descriptors, or no handshake comes about.
    pub fn connect(to: SocketAddr, seal: Option<&Seal>) -> anyhow::Result<Self> {
        let mut socket = poll::connect(to)?;
        let Some(seal) = seal else { return Ok(Self { socket, tls: None }) };
        let mut tls = ClientConnection::new(seal.config.clone(), ServerName::from(to.ip()))?;
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        while tls.is_handshaking() {
            tls.complete_io(&mut socket).context("a TLS handshake")?;
        }
        while tls.wants_write() {
            tls.write_tls(&mut socket)?;
        }
        socket.set_nonblocking(true)?;
        Ok(Self { socket, tls: Some(Box::new(tls)) })
    }

    /// Writes what is taken at once of `first` and then `second`. With TLS both are taken whole, and what is left to be
    /// sent waits for [`flush`](Self::flush).
    ///
    /// # Errors
    /// The connection's, among them that it takes nothing now.
    pub fn write(&mut self, first: &[u8], second: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return match first {
                [] => self.socket.write(second),
                _ => self.socket.write_vectored(&[io::IoSlice::new(first), io::IoSlice::new(second)]),
            };
        };
        tls.set_buffer_limit(None);
        tls.writer().write_all(&[first, second].concat())?;
        Ok(first.len() + second.len())
    }

    /// Sends what waits.
    ///
    /// # Errors
    /// The connection's, among them that it takes no more now.
    pub fn flush(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                tls.write_tls(&mut self.socket)?;
            }
        }
        Ok(())
    }

    /// Reads once into `buf`; `Ok(0)` is the end. With TLS, `got` is told in pieces, and the count is that of the records'
    /// bytes.
    ///
    /// # Errors
    /// The connection's, among them that nothing is there now.
    pub fn read(
        &mut self,
        buf: &mut [u8],
        mut got: impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<io::Result<usize>> {
        let count = match self.socket.read(buf) {
            Ok(count) if count > 0 => count,
            other => return Ok(other),
        };
        let mut read = &buf[..count];
        let Some(tls) = &mut self.tls else {
            got(read)?;
            return Ok(Ok(count));
        };
        let mut plain = Vec::new();
        while !read.is_empty() {
            tls.read_tls(&mut read)?;
            let waiting = tls.process_new_packets()?.plaintext_bytes_to_read();
            let from = plain.len();
            plain.resize(from + waiting, 0);
            tls.reader().read_exact(&mut plain[from..])?;
        }
        if !plain.is_empty() {
            got(&plain)?;
        }
        Ok(Ok(count))
    }
}
