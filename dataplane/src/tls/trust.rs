//! What instances must show, and what they are shown.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionMemoryCache, Resumption, UnbufferedClientConnection};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::HTTP_1;
use super::files::{TlsError, authorities, provider, read};

/// How an instance's address begins that speaks TLS.
const HTTPS: &str = "https://";
/// Instances whose sessions a shard remembers; those not used for longest go.
const SESSIONS: usize = 1024;

/// `host:port` of an address `https://host:port`.
pub fn https_address(address: &str) -> Option<&str> {
    address.strip_prefix(HTTPS)
}

/// `host:port` of an address, whether TLS is spoken there or not.
pub fn place(address: &str) -> &str {
    https_address(address).unwrap_or(address)
}

/// How instances are reached over TLS.
#[derive(Debug, Clone, Default)]
pub struct UpstreamTls {
    /// File with the authorities of their certificates, PEM; `None` for the machine's.
    pub ca: Option<PathBuf>,
    /// Name that their certificates must bear; `None` for the host of each one's address.
    pub server_name: Option<String>,
    /// Nothing is checked.
    pub insecure: bool,
}

impl UpstreamTls {
    /// Reads the files as a start would.
    ///
    /// # Errors
    /// They cannot be read or used, or the name is none.
    pub fn check(&self) -> Result<(), TlsError> {
        Trust::new(self).map(|_| ())
    }
}

/// What was made of [`UpstreamTls`].
#[derive(Clone)]
pub struct Trust {
    config: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
}

impl Trust {
    /// Reads the files.
    ///
    /// # Errors
    /// They cannot be read or used, or the name is none.
    pub fn new(options: &UpstreamTls) -> Result<Self, TlsError> {
        let name = match &options.server_name {
            Some(name) => Some(
                ServerName::try_from(name.clone())
                    .map_err(|_| TlsError::Authorities(format!("{name:?} is no name of a server")))?,
            ),
            None => None,
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Identity)?;
        let mut config = if options.insecure {
            tracing::warn!(
                "certificates of instances are not checked: whoever is in between reads and writes"
            );
            let anything = Arc::new(Anything(provider()));
            builder.dangerous().with_custom_certificate_verifier(anything).with_no_client_auth()
        } else {
            let roots = match &options.ca {
                Some(path) => authorities(path, &read(path)?)?,
                None => machine(),
            };
            builder.with_root_certificates(roots).with_no_client_auth()
        };
        config.alpn_protocols = vec![HTTP_1.to_vec()];
        Ok(Self { config: Arc::new(config), name })
    }

    /// The same for one shard, which remembers sessions of its own: shards do not wait for each other.
    pub(crate) fn of_shard(&self) -> Self {
        let mut config = (*self.config).clone();
        config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(SESSIONS)));
        Self { config: Arc::new(config), name: self.name.clone() }
    }

    /// A session with the instance at `address`, `host:port`. `None`: its host is no name that a certificate could bear.
    pub(crate) fn session(&self, address: &str) -> Option<UnbufferedClientConnection> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => {
                let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']');
                ServerName::try_from(host.to_owned()).ok()?
            }
        };
        UnbufferedClientConnection::new(self.config.clone(), name).ok()
    }
}

/// The authorities that this machine trusts. Where there are none, nothing is trusted.
fn machine() -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (_, unusable) = roots.add_parsable_certificates(found.certs);
    if let Some(error) = found.errors.first() {
        tracing::debug!(%error, "certificates of this machine's authorities");
    }
    if unusable > 0 {
        tracing::debug!(unusable, "certificates of this machine's authorities");
    }
    Arc::new(roots)
}

/// Takes every certificate.
#[derive(Debug)]
struct Anything(Arc<CryptoProvider>);

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
