//! Who a process is: a certificate of the cluster's own authority, with role and name in it.
//!
//! The certificate carries one URI, `fairlead://<cluster>/<role>/<name>`; it is the only source of a peer's role.
//! Schedulers may serve and not connect, gateways and agents may connect and not serve (extended key usage); the
//! scheduler's certificate also carries the DNS name [`SCHEDULER_HOST`], which clients demand. A certificate whose
//! name is [`ANY_NAME`] speaks for every name of its role: one secret for a fleet of agents.

use std::fmt;
use std::path::{Path, PathBuf};

use fairlead_wire::msg::Role;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use ring::{digest, hmac, rand::SecureRandom, rand::SystemRandom};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::files;

/// DNS name in every scheduler certificate and demanded by every client. Never resolved.
pub const SCHEDULER_HOST: &str = "scheduler.fairlead.internal";
/// The name of a certificate that may speak for any name of its role.
pub const ANY_NAME: &str = "*";
/// Longest name of a peer or a cluster, bytes.
pub const NAME_MAX: usize = 128;

const CA_CERT: &str = "ca.pem";
const CA_KEY: &str = "ca-key.pem";
const CERT: &str = "cert.pem";
const KEY: &str = "key.pem";
const SEED: &str = "cluster.seed";

/// Why an identity could not be made, read or believed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file does not hold what its name says.
    #[error("{path}: {why}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A cluster or peer name has a form that a certificate URI cannot carry.
    #[error("name {name:?}: allowed are 1 to {NAME_MAX} characters of A-Z a-z 0-9 . _ : - {extra}")]
    Name {
        /// The name.
        name: String,
        /// What else is allowed here.
        extra: &'static str,
    },
    /// A certificate was not understood.
    #[error("certificate: {0}")]
    Certificate(String),
    /// A certificate could not be generated.
    #[error("generating a certificate: {0}")]
    Generate(String),
    /// The system has no random numbers.
    #[error("no random numbers from the system")]
    Random,
}

impl From<rcgen::Error> for IdentityError {
    fn from(error: rcgen::Error) -> Self {
        Self::Generate(error.to_string())
    }
}

/// The other end of a link, as its certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Cluster the certificate belongs to.
    pub cluster: String,
    /// What the peer is.
    pub role: Role,
    /// The peer's name, or [`ANY_NAME`].
    pub name: String,
}

impl Peer {
    /// Reads the peer out of a certificate (DER). The certificate's signature is not checked here.
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let bad = |why: &dyn fmt::Display| IdentityError::Certificate(why.to_string());
        let (_, certificate) = X509Certificate::from_der(der).map_err(|e| bad(&e))?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|e| bad(&e))?
            .ok_or_else(|| bad(&"no subject alternative name"))?;
        let mut found = None;
        for name in &names.value.general_names {
            let GeneralName::URI(uri) = name else { continue };
            if !uri.starts_with(URI_SCHEME) {
                continue;
            }
            if found.replace(Self::from_uri(uri)?).is_some() {
                return Err(bad(&"more than one fairlead:// name"));
            }
        }
        found.ok_or_else(|| bad(&"no fairlead:// name"))
    }

    fn from_uri(uri: &str) -> Result<Self, IdentityError> {
        let bad = || IdentityError::Certificate(format!("name {uri:?} is not fairlead://cluster/role/name"));
        let mut parts = uri.strip_prefix(URI_SCHEME).ok_or_else(bad)?.split('/');
        let (Some(cluster), Some(role), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad());
        };
        let role = match role {
            "scheduler" => Role::Scheduler,
            "gateway" => Role::Gateway,
            "agent" => Role::Agent,
            _ => return Err(bad()),
        };
        if !is_plain(cluster) || !(is_plain(name) || name == ANY_NAME) {
            return Err(bad());
        }
        Ok(Self { cluster: cluster.into(), role, name: name.into() })
    }

    /// Whether this certificate lets its holder call itself `name`.
    pub fn may_be_called(&self, name: &str) -> bool {
        self.name == ANY_NAME || self.name == name
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{URI_SCHEME}{}/{}/{}", self.cluster, role_str(self.role), self.name)
    }
}

const URI_SCHEME: &str = "fairlead://";

/// The role's spelling in certificates, folders and logs.
pub const fn role_str(role: Role) -> &'static str {
    match role {
        Role::Scheduler => "scheduler",
        Role::Gateway => "gateway",
        Role::Agent => "agent",
    }
}

/// A process's own certificate and key, with the authority it believes.
pub struct Identity {
    peer: Peer,
    authority: CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
    seed: Option<u64>,
}

impl Identity {
    /// Reads `ca.pem`, `cert.pem`, `key.pem` and, where there is one, `cluster.seed` from a folder.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self, IdentityError> {
        let dir = dir.as_ref();
        let authority = read_certificate(&dir.join(CA_CERT))?;
        let certificate = read_certificate(&dir.join(CERT))?;
        let key_path = dir.join(KEY);
        let key = PrivatePkcs8KeyDer::from_pem_slice(&files::read(&key_path)?)
            .map_err(|e| IdentityError::Content { path: key_path, why: e.to_string() })?;
        let peer = Peer::from_certificate(&certificate)
            .map_err(|e| IdentityError::Content { path: dir.join(CERT), why: e.to_string() })?;
        let seed = read_seed(&dir.join(SEED))?;
        Ok(Self { peer, authority, certificate, key, seed })
    }

    /// Writes the files that [`Identity::load`] reads; key and seed with mode 0600.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<(), IdentityError> {
        let dir = dir.as_ref();
        files::create_dir(dir)?;
        files::write(&dir.join(CA_CERT), &pem("CERTIFICATE", &self.authority), files::Access::Everyone)?;
        files::write(&dir.join(CERT), &pem("CERTIFICATE", &self.certificate), files::Access::Everyone)?;
        let key = pem("PRIVATE KEY", self.key.secret_pkcs8_der());
        files::write(&dir.join(KEY), &key, files::Access::Owner)?;
        if let Some(seed) = self.seed {
            files::write(&dir.join(SEED), &format!("{seed:016x}\n"), files::Access::Owner)?;
        }
        Ok(())
    }

    /// Cluster, role and name in the certificate.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The secret seed of the cluster's block hashes: the authority's, or without its file a digest of the private
    /// key. Either way the same after every restart.
    pub fn cluster_seed(&self) -> u64 {
        self.seed.unwrap_or_else(|| {
            let tag = self.derive(b"fairlead cluster seed");
            let mut first = [0; 8];
            first.copy_from_slice(&tag.as_ref()[..8]);
            u64::from_le_bytes(first)
        })
    }

    pub(crate) fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone()]
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }

    /// A secret bound to the private key and a purpose.
    pub(crate) fn derive(&self, purpose: &[u8]) -> hmac::Tag {
        let secret = digest::digest(&digest::SHA256, self.key.secret_pkcs8_der());
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_ref()), purpose)
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            peer: self.peer.clone(),
            authority: self.authority.clone(),
            certificate: self.certificate.clone(),
            key: self.key.clone_key(),
            seed: self.seed,
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("peer", &self.peer.to_string()).finish_non_exhaustive()
    }
}

/// The cluster's certificate authority.
pub struct Authority {
    cluster: String,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    seed: u64,
}

impl Authority {
    /// A new authority, in memory.
    pub fn new(cluster: &str) -> Result<Self, IdentityError> {
        if !is_plain(cluster) {
            return Err(IdentityError::Name { name: cluster.into(), extra: "" });
        }
        let key = KeyPair::generate()?;
        let mut params = params(cluster)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.der().clone();
        let mut seed = [0; 8];
        SystemRandom::new().fill(&mut seed).map_err(|_| IdentityError::Random)?;
        Ok(Self {
            cluster: cluster.into(),
            certificate,
            issuer: Issuer::new(params, key),
            seed: u64::from_le_bytes(seed),
        })
    }

    /// Reads `ca.pem`, `ca-key.pem` and `cluster.seed` from a folder.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self, IdentityError> {
        let dir = dir.as_ref();
        let path = dir.join(CA_CERT);
        let certificate = read_certificate(&path)?;
        let content = |why: String| IdentityError::Content { path: path.clone(), why };
        let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|e| content(e.to_string()))?;
        let cluster = parsed
            .subject()
            .iter_common_name()
            .next()
            .and_then(|name| name.as_str().ok())
            .filter(|name| is_plain(name))
            .ok_or_else(|| content("the subject's common name is not a cluster name".into()))?
            .to_owned();
        let key_path = dir.join(CA_KEY);
        let key_pem = String::from_utf8_lossy(&files::read(&key_path)?).into_owned();
        let key = KeyPair::from_pem(&key_pem)
            .map_err(|e| IdentityError::Content { path: key_path, why: e.to_string() })?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|e| content(e.to_string()))?;
        let seed_path = dir.join(SEED);
        let seed = read_seed(&seed_path)?
            .ok_or_else(|| IdentityError::Content { path: seed_path, why: "missing".into() })?;
        Ok(Self { cluster, certificate, issuer, seed })
    }

    /// Writes the files that [`Authority::load`] reads; key and seed with mode 0600.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<(), IdentityError> {
        let dir = dir.as_ref();
        files::create_dir(dir)?;
        files::write(&dir.join(CA_KEY), &self.issuer.key().serialize_pem(), files::Access::Owner)?;
        files::write(&dir.join(SEED), &format!("{:016x}\n", self.seed), files::Access::Owner)?;
        // Last, because its presence says that the authority is complete.
        files::write(&dir.join(CA_CERT), &pem("CERTIFICATE", &self.certificate), files::Access::Everyone)
    }

    /// Name of the cluster.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Issues an identity. `name` may be [`ANY_NAME`]. The scheduler's carries the cluster seed.
    pub fn issue(&self, role: Role, name: &str) -> Result<Identity, IdentityError> {
        if !(is_plain(name) || name == ANY_NAME) {
            return Err(IdentityError::Name { name: name.into(), extra: "(or * alone, for any name)" });
        }
        let peer = Peer { cluster: self.cluster.clone(), role, name: name.into() };
        let mut params = params(&format!("{} {name}", role_str(role)))?;
        params.subject_alt_names.push(SanType::URI(peer.to_string().try_into()?));
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match role {
            Role::Scheduler => {
                params.subject_alt_names.push(SanType::DnsName(SCHEDULER_HOST.try_into()?));
                vec![ExtendedKeyUsagePurpose::ServerAuth]
            }
            Role::Gateway | Role::Agent => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        Ok(Identity {
            peer,
            authority: self.certificate.clone(),
            certificate,
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
            seed: (role == Role::Scheduler).then_some(self.seed),
        })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// Certificates live for ten years: they are replaced by issuing again, and a fleet must not stop on a date that
/// nobody watches. The start lies in the past so that a clock running behind does not refuse a new certificate.
fn params(common_name: &str) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Fairlead");
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(this_year().saturating_add(10), 1, 1);
    Ok(params)
}

fn this_year() -> i32 {
    let seconds =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // Mean Gregorian year. A clock far off must not make the date unrepresentable.
    i32::try_from(1970 + seconds / 31_556_952).unwrap_or(2024).clamp(2024, 4000)
}

fn is_plain(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-'))
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, IdentityError> {
    CertificateDer::from_pem_slice(&files::read(path)?)
        .map_err(|e| IdentityError::Content { path: path.to_owned(), why: e.to_string() })
}

fn read_seed(path: &Path) -> Result<Option<u64>, IdentityError> {
    if !path.exists() {
        return Ok(None);
    }
    let text = files::read(path)?;
    let seed = std::str::from_utf8(&text).ok().and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    seed.map(Some).ok_or_else(|| IdentityError::Content {
        path: path.to_owned(),
        why: "not a number of up to 16 hexadecimal digits".into(),
    })
}

fn pem(label: &str, der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(label, der), config)
}
