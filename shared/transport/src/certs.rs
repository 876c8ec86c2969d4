//! What `fairlead certs` writes.

use std::path::{Path, PathBuf};

use fairlead_wire::msg::Role;

use crate::identity::{ANY_NAME, Authority, Identity, IdentityError, role_str};

/// Which identities a folder shall hold.
#[derive(Clone, Debug)]
pub struct Certs {
    /// Name of the cluster, when the folder has no authority yet.
    pub cluster: String,
    /// Names of schedulers.
    pub schedulers: Vec<String>,
    /// Names of gateways; [`ANY_NAME`] serves all gateways.
    pub gateways: Vec<String>,
    /// Names of agents; [`ANY_NAME`] serves all agents.
    pub agents: Vec<String>,
}

impl Default for Certs {
    fn default() -> Self {
        Self {
            cluster: "fairlead".into(),
            schedulers: vec!["scheduler".into()],
            gateways: vec![ANY_NAME.into()],
            agents: vec![ANY_NAME.into()],
        }
    }
}

/// An identity's folder after [`write_certs`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The folder.
    pub dir: PathBuf,
    /// False when it was there already and left alone.
    pub new: bool,
}

/// Writes an authority to `dir` (or takes the one that is there) and one identity to each of the folders
/// `scheduler`, `gateway`, `agent`, or `<role>-<name>` for further names. What exists is kept: run again, it adds.
///
/// The authority's key stays in `dir`; processes need only their own folder.
pub fn write_certs(dir: &Path, certs: &Certs) -> Result<Vec<Written>, IdentityError> {
    let authority = if dir.join("ca.pem").exists() {
        Authority::load(dir)?
    } else {
        let authority = Authority::new(&certs.cluster)?;
        authority.save(dir)?;
        authority
    };
    let mut written = Vec::new();
    for (role, names) in
        [(Role::Scheduler, &certs.schedulers), (Role::Gateway, &certs.gateways), (Role::Agent, &certs.agents)]
    {
        for name in names {
            let role_name = role_str(role);
            let folder = if name == ANY_NAME || name == role_name {
                dir.join(role_name)
            } else {
                dir.join(format!("{role_name}-{}", name.replace(':', "_")))
            };
            let new = !folder.join("cert.pem").exists();
            if new {
                authority.issue(role, name)?.save(&folder)?;
            } else {
                // A folder that does not load, or is somebody else's, must not be mistaken for the one asked for.
                let found = Identity::load(&folder)?;
                if found.peer().role != role || found.peer().name != *name {
                    let why = format!("is of {}, not of {role_name} {name}", found.peer());
                    return Err(IdentityError::Content { path: folder.join("cert.pem"), why });
                }
            }
            written.push(Written { dir: folder, new });
        }
    }
    Ok(written)
}
