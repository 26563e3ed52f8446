//! The key of this host that signs arm records: made once, in the format of minisign, read by root only.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use evidence::minisign::{PublicKey, SecretKey, SignatureError};

use super::armed::random;
use crate::sys::wiping;
use crate::trusted;

/// Where it is.
pub const PATH: &str = "/etc/afterimage/keys/evidence.key";

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("reading {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// It is no key.
    #[error("{path}: to have another one made, move it away")]
    NoKey {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: SignatureError,
    },
    /// None was made.
    #[error("making the host's key {path}")]
    Make {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// The host's key; made if there is none.
pub(super) fn secret(path: &Path) -> Result<SecretKey, KeyError> {
    wiping::begin();
    match trusted::read(path) {
        Ok(bytes) => {
            let bytes = zeroize::Zeroizing::new(bytes);
            let text = String::from_utf8_lossy(&bytes);
            SecretKey::parse(&text).map_err(|source| KeyError::NoKey { path: path.to_owned(), source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(path),
        Err(source) => Err(KeyError::Read { path: path.to_owned(), source }),
    }
}

fn make(path: &Path) -> Result<SecretKey, KeyError> {
    let failed = |source| KeyError::Make { path: path.to_owned(), source };
    let key = SecretKey::from_seed(&*random().map_err(failed)?);
    let write = |path: &Path, mode: u32, text: &str| -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
    }
    write(path, 0o600, &key.to_file()).map_err(failed)?;
    // For people; it is made anew from the other one.
    let public = path.with_extension("pub");
    let _ = fs::remove_file(&public);
    if let Err(error) = write(&public, 0o644, &key.public().to_file()) {
        log::warn!("{}: {error}", public.display());
    }
    log::info!("made the key of this host for evidence, {}: {}", path.display(), key.public());
    Ok(key)
}

/// The public half of the host's key; the key is made if there is none.
pub fn public(path: &Path) -> Result<PublicKey, KeyError> {
    Ok(secret(path)?.public())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_read_by_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys/evidence.key");
        let made = public(&path).unwrap();
        assert_eq!(public(&path).unwrap(), made);
        let bits = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((bits(&path), bits(path.parent().unwrap())), (0o600, 0o700));
        let shown = fs::read_to_string(path.with_extension("pub")).unwrap();
        assert_eq!(PublicKey::parse(&shown).unwrap(), made);
        fs::write(&path, "rubbish").unwrap();
        assert!(public(&path).unwrap_err().to_string().contains("move it away"));
    }
}
