//! TLS on the traffic port and to instances.

use crate::error::{ConfigError, join};
use crate::schema::{Check, section};
use crate::setting::Setting;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

section! {
    /// With a certificate, clients are served over TLS 1.3 and 1.2 at an address of their own. Certificate, key and
    /// authorities are read again when their files change, and at SIGHUP; what cannot be used leaves the old ones in
    /// place. All files are PEM.
    pub struct Tls {
        /// Address of the TLS port. The same as the gateway's `listen`: only TLS is spoken there, and there is no plain
        /// port.
        listen: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8443);
        /// File with the certificate, and behind it those between it and its authority. Without it there is no TLS.
        certificate: Option<PathBuf> = None;
        /// File with the certificate's key. Needed with `certificate`.
        key: Option<PathBuf> = None;
        /// File with the authorities of clients' certificates. With it clients are asked for a certificate, and one that
        /// these have not signed is refused.
        client_ca: Option<PathBuf> = None;
        /// Clients without a certificate are refused, too. Needs `client_ca`.
        require_client_certificate: bool = false;
    }
}

section! {
    /// Holds for instances whose address begins with `https://`.
    pub struct UpstreamTls {
        /// File (PEM) with the authorities of their certificates. Without it: the authorities that this machine trusts.
        ca: Option<PathBuf> = None;
        /// Name that all their certificates bear. Without it: the host of each one's address.
        server_name: Option<String> = None;
        /// Nothing is checked: whoever is in between can read and change everything. For trials only; the log warns.
        insecure_skip_verify: bool = false;
    }
}

impl Check for Tls {
    fn check(&self, path: &str) -> Result<(), ConfigError> {
        let missing = |key| Err(ConfigError::Missing { path: join(path, key), allowed: PathBuf::allowed() });
        if self.certificate.is_none() && self.key.is_none() && self.client_ca.is_none() {
            return match self.require_client_certificate {
                true => missing("client_ca"),
                false => Ok(()),
            };
        }
        match (&self.certificate, &self.key, &self.client_ca) {
            (None, ..) => missing("certificate"),
            (_, None, _) => missing("key"),
            (.., None) if self.require_client_certificate => missing("client_ca"),
            _ => Ok(()),
        }
    }
}

impl Check for UpstreamTls {
    fn check(&self, path: &str) -> Result<(), ConfigError> {
        if self.insecure_skip_verify && self.ca.is_some() {
            let allowed = "`false` where ca is given: nobody would look at it";
            return Err(ConfigError::value(&join(path, "insecure_skip_verify"), "true", allowed));
        }
        Ok(())
    }
}
