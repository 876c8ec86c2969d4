//! Certificates, and clients with TLS.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fairlead_dataplane::runtime::Driver;
use fairlead_dataplane::{GatewayOptions, TlsOptions, UpstreamTls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::common::{Client, Engine, PATIENCE, Rig};

/// A client's connection with TLS.
pub type Sealed = StreamOwned<ClientConnection, TcpStream>;

/// An authority, and files that it signed.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Authority {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("fairlead-tls-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, dir }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Certificate and key for `name`, as files `FILE.pem` and `FILE-key.pem`.
    pub fn issue(&self, file: &str, name: &str) {
        let key = KeyPair::generate().unwrap();
        let names = vec![name.to_owned(), "127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        // Replaced as a whole, as those who renew certificates do.
        for (name, text) in
            [(format!("{file}-key.pem"), key.serialize_pem()), (format!("{file}.pem"), certificate.pem())]
        {
            let new = self.file(&format!("{name}.new"));
            std::fs::File::create(&new).unwrap().write_all(text.as_bytes()).unwrap();
            std::fs::rename(new, self.file(&name)).unwrap();
        }
    }

    pub fn options(&self) -> TlsOptions {
        TlsOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            certificate: self.file("gateway.pem"),
            key: self.file("gateway-key.pem"),
            client_ca: None,
            require_client_certificate: false,
            http2: false,
        }
    }

    pub fn trust(&self) -> UpstreamTls {
        UpstreamTls { ca: Some(self.file("ca.pem")), ..UpstreamTls::default() }
    }

    /// What clients are configured with that trust this authority; with the certificate in `FILE.pem` for themselves.
    pub fn client(&self, file: Option<&str>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        match file {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let chain = CertificateDer::from_pem_file(self.file(&format!("{file}.pem"))).unwrap();
                let key = PrivateKeyDer::from_pem_file(self.file(&format!("{file}-key.pem"))).unwrap();
                builder.with_client_auth_cert(vec![chain], key).unwrap()
            }
        }
    }
}

/// A gateway with a TLS port, and who trusts it.
pub struct Secure {
    pub rig: Rig,
    pub authority: Authority,
    pub config: Arc<ClientConfig>,
}

impl Secure {
    pub fn new(driver: Driver, engine: &Engine) -> Self {
        Self::with(driver, engine, |_, _| {})
    }

    pub fn with(
        driver: Driver,
        engine: &Engine,
        adjust: impl FnOnce(&mut GatewayOptions, &mut TlsOptions),
    ) -> Self {
        let authority = Authority::new();
        authority.issue("gateway", "localhost");
        let rig = Rig::with(driver, &[engine], |options| {
            let mut tls = authority.options();
            adjust(options, &mut tls);
            options.tls = Some(tls);
        });
        let config = Arc::new(authority.client(None));
        Self { rig, authority, config }
    }

    pub fn addr(&self) -> SocketAddr {
        self.rig.gateway.tls_addr().unwrap()
    }

    pub fn client(&self) -> Client<Sealed> {
        client(self.addr(), &self.config)
    }

    pub fn ask(&self, request: impl AsRef<[u8]>) -> super::common::Answer {
        let mut client = self.client();
        client.send(request);
        client.answer()
    }

    pub fn handshakes(&self, outcome: &str) -> f64 {
        self.rig.metric("fairlead_tls_handshakes_total", &[&format!("outcome=\"{outcome}\"")])
    }
}

pub fn tcp(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

pub fn client(addr: SocketAddr, config: &Arc<ClientConfig>) -> Client<Sealed> {
    over(tcp(addr), config)
}

pub fn over(stream: TcpStream, config: &Arc<ClientConfig>) -> Client<Sealed> {
    let name = ServerName::try_from("localhost").unwrap();
    Client::over(StreamOwned::new(ClientConnection::new(config.clone(), name).unwrap(), stream))
}
