//! Identity files: small, some of them secret, never half written.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use crate::identity::IdentityError;

/// No identity file is larger; a wrong path must not be read into memory whole.
const SIZE_MAX: u64 = 64 * 1024;

/// Who may read a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Everyone,
    Owner,
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> IdentityError + '_ {
    move |source| IdentityError::File { path: path.to_owned(), source }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let mut content = Vec::new();
    let file = fs::File::open(path).map_err(failed(path))?;
    file.take(SIZE_MAX + 1).read_to_end(&mut content).map_err(failed(path))?;
    if content.len() as u64 > SIZE_MAX {
        return Err(IdentityError::Content {
            path: path.to_owned(),
            why: format!("larger than {SIZE_MAX} bytes"),
        });
    }
    Ok(content)
}

pub(crate) fn create_dir(dir: &Path) -> Result<(), IdentityError> {
    fs::create_dir_all(dir).map_err(failed(dir))
}

/// Writes through a temporary file in the same folder, created with its final mode: a secret is never readable by
/// others, not even for a moment, and a crash leaves the old content.
pub(crate) fn write(path: &Path, content: &str, access: Access) -> Result<(), IdentityError> {
    let temporary = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(if access == Access::Owner { 0o600 } else { 0o644 });
    }
    #[cfg(not(unix))]
    let _ = access;
    let _ = fs::remove_file(&temporary);
    let mut file = options.open(&temporary).map_err(failed(&temporary))?;
    file.write_all(content.as_bytes()).map_err(failed(&temporary))?;
    file.sync_all().map_err(failed(&temporary))?;
    fs::rename(&temporary, path).map_err(failed(path))
}
