//! The file systems that everything else needs.

use std::fs;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

/// (type, where).
const MOUNTS: [(&str, &str); 3] = [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")];

/// Mounts them. What is mounted already is left as it is; an error is returned as text, since there
/// is no log yet.
pub(super) fn mount_all() -> Vec<String> {
    let mut errors = Vec::new();
    for (kind, at) in MOUNTS {
        let _ = fs::create_dir(at);
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        match mount(Some(kind), at, Some(kind), flags, None::<&str>) {
            Ok(()) | Err(Errno::EBUSY) => (),
            Err(errno) => errors.push(format!("mounting {at}: {}", errno.desc())),
        }
    }
    errors
}
