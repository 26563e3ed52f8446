//! The facts hold volume keys, private keys and tokens. They are needed until the last attempt and
//! the hand-off have read them, and by nobody after that: not by the next kernel, to which memory
//! goes as it is, not by the real root, and not by a shell.
//!
//! Memory of processes that have ended is cleared by the kernel itself: where there are secrets and
//! a hand-off, `afterimage load` starts the capture kernel with `init_on_free=1` (v5.3).

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base::config;
use nix::libc::O_NOFOLLOW;

/// Overwrites the facts in the image, and removes them. Twice is once.
pub(crate) fn wipe() -> io::Result<()> {
    wipe_file(Path::new(config::FACTS_PATH))
}

/// The root file system is in memory (ramfs or tmpfs), so what is written lands in the very pages
/// that held the file. A removed file alone leaves them as they are.
fn wipe_file(path: &Path) -> io::Result<()> {
    let mut file = match OpenOptions::new().write(true).custom_flags(O_NOFOLLOW).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let zeros = [0; 4096];
    let mut left = file.metadata()?.len();
    while left > 0 {
        let len = usize::try_from(left).unwrap_or(zeros.len()).min(zeros.len());
        file.write_all(zeros.get(..len).unwrap_or_default())?;
        left = left.saturating_sub(base::addr::to_u64(len));
    }
    drop(file);
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;

    #[test]
    fn what_was_in_the_file_is_gone_from_its_pages_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("facts.toml");
        for len in [1, 4096, 10_000] {
            fs::write(&path, vec![b'k'; len]).unwrap();
            let mut held = File::open(&path).unwrap();
            wipe_file(&path).unwrap();
            assert!(!path.exists());
            let mut bytes = Vec::new();
            held.read_to_end(&mut bytes).unwrap();
            assert!(bytes.len() == len && bytes.iter().all(|&byte| byte == 0), "{len}");
            wipe_file(&path).unwrap();
        }
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        assert!(wipe_file(&path).is_err(), "only our own file");
    }
}
