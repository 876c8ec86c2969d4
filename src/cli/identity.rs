//! Identities for the commands.

use std::path::Path;

use anyhow::{Context as _, bail};
use fairlead_transport::Identity;
use fairlead_wire::msg::Role;

/// Loads the identity that `key` names. One of another role would be turned away by every peer, so it is refused here,
/// where the mistake is.
pub fn load(key: &str, dir: &Path, role: Role) -> anyhow::Result<Identity> {
    let identity = Identity::load(dir).context(key.to_owned())?;
    let have = identity.peer();
    if have.role != role {
        bail!("{key}: {} holds an identity of another role: {have}", dir.display());
    }
    Ok(identity)
}
