//! What clients are shown: certificate, tickets, protocols; and what they must show.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::{
    NoServerSessionStorage, ProducesTickets, UnbufferedServerConnection, WebPkiClientVerifier,
};

use super::files::{TlsError, authorities, certificates, key, provider, read};
use super::{H2, HTTP_1};

/// How clients are served over TLS.
#[derive(Debug, Clone)]
pub struct TlsOptions {
    /// Address of the port; port 0 takes a free one. Where it is the plain port's, that one speaks TLS only.
    pub listen: SocketAddr,
    /// File with the certificate and those between it and its authority, PEM.
    pub certificate: PathBuf,
    /// File with its key, PEM.
    pub key: PathBuf,
    /// File with the authorities of clients' certificates, PEM; `None` asks for none.
    pub client_ca: Option<PathBuf>,
    /// A client without a certificate is refused. Only with `client_ca`.
    pub require_client_certificate: bool,
    /// Offer HTTP/2.
    pub http2: bool,
}

impl TlsOptions {
    /// Reads the files as a start would.
    ///
    /// # Errors
    /// They cannot be read, or do not hold what they should.
    pub fn check(&self) -> Result<(), TlsError> {
        load(self, stamps(self), None).map(|_| ())
    }
}

/// What clients are shown now. Shards take the newest for every connection.
pub struct Edge {
    options: TlsOptions,
    current: ArcSwap<ServerConfig>,
    /// Only the control thread looks at it.
    loaded: Mutex<Loaded>,
    asked: AtomicBool,
    reloads: AtomicU64,
    failures: AtomicU64,
}

/// What was loaded last.
struct Loaded {
    stamps: Stamps,
    client_ca: Option<Vec<u8>>,
    ticketer: Arc<dyn ProducesTickets>,
}

/// When files were changed, and their lengths.
type Stamps = [Option<(SystemTime, u64)>; 3];

impl Edge {
    /// Reads the files.
    ///
    /// # Errors
    /// They cannot be read, or do not hold what they should.
    pub fn new(options: &TlsOptions) -> Result<Arc<Self>, TlsError> {
        let stamps = stamps(options);
        let (config, loaded) = load(options, stamps, None)?;
        Ok(Arc::new(Self {
            options: options.clone(),
            current: ArcSwap::from(config),
            loaded: Mutex::new(loaded),
            asked: AtomicBool::new(false),
            reloads: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }))
    }

    /// A session with a client that has just connected.
    pub(crate) fn session(&self) -> Result<UnbufferedServerConnection, rustls::Error> {
        UnbufferedServerConnection::new(self.current.load_full())
    }

    /// Has the files read again at the next [`check`](Self::check), whether they were changed or not.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
    }

    /// Whether the files are to be read again.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// Reads the files again if they were changed. What cannot be used changes nothing. For the control thread.
    pub fn check(&self) {
        let asked = self.asked.swap(false, Ordering::SeqCst);
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = stamps(&self.options);
        if !asked && stamps == loaded.stamps {
            return;
        }
        match load(&self.options, stamps, Some(&loaded)) {
            Ok((config, now)) => {
                *loaded = now;
                self.current.store(config);
                self.reloads.fetch_add(1, Ordering::Relaxed);
                tracing::info!(certificate = %self.options.certificate.display(), "certificate loaded anew");
            }
            Err(error) => {
                // Said once for each state of the files.
                loaded.stamps = stamps;
                self.failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, "the new certificate cannot be used; the old one stays");
            }
        }
    }

    /// How often the files were read anew, and how often in vain.
    pub fn reloads(&self) -> (u64, u64) {
        (self.reloads.load(Ordering::Relaxed), self.failures.load(Ordering::Relaxed))
    }
}

fn stamps(options: &TlsOptions) -> Stamps {
    let stamp = |path: &PathBuf| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    };
    [stamp(&options.certificate), stamp(&options.key), options.client_ca.as_ref().and_then(stamp)]
}

fn load(
    options: &TlsOptions,
    stamps: Stamps,
    before: Option<&Loaded>,
) -> Result<(Arc<ServerConfig>, Loaded), TlsError> {
    let chain = certificates(&options.certificate, &read(&options.certificate)?)?;
    let key = key(&options.key, &read(&options.key)?)?;
    let client_ca = options.client_ca.as_ref().map(|path| read(path)).transpose()?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Identity)?;
    let builder = match (&options.client_ca, &client_ca) {
        (Some(path), Some(pem)) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(authorities(path, pem)?, provider());
            let verifier =
                if options.require_client_certificate { verifier } else { verifier.allow_unauthenticated() };
            let verifier = verifier.build().map_err(|error| TlsError::Authorities(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(TlsError::Identity)?;
    // A ticket stands for the check of a client's certificate: other authorities, other tickets.
    let ticketer = match before {
        Some(before) if before.client_ca == client_ca => before.ticketer.clone(),
        _ => rustls::crypto::ring::Ticketer::new().map_err(TlsError::Identity)?,
    };
    config.ticketer = ticketer.clone();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.alpn_protocols =
        if options.http2 { vec![H2.to_vec(), HTTP_1.to_vec()] } else { vec![HTTP_1.to_vec()] };
    Ok((Arc::new(config), Loaded { stamps, client_ca, ticketer }))
}
