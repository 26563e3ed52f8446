//! Loading kernel modules in the order that `afterimage build` worked out: no modprobe, no udev.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use base::config::MODULES_PATH;
use vmcore::report::Degradation;

/// Loads the modules listed in the image. A module that fails is reported, and the next one is
/// tried: which of them the target really needs shows when the target is opened.
///
/// `skip` are modules in which an earlier attempt got stuck; `begins` is called with each before it
/// is loaded.
///
/// A line is a path; a `-` before it marks one of several providers of the same thing (a checksum
/// with and without a CPU feature), of which some may refuse to load.
pub(super) fn load_all(skip: &[String], begins: &dyn Fn(&str), degrade: &mut dyn FnMut(Degradation)) {
    let list = match fs::read_to_string(MODULES_PATH) {
        Ok(list) => list,
        Err(error) => {
            return degrade(Degradation::Module { path: MODULES_PATH.into(), cause: error.to_string() });
        }
    };
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    for line in list.lines().filter(|line| !line.is_empty()) {
        let (path, optional) = match line.strip_prefix('-') {
            Some(path) => (path, true),
            None => (line, false),
        };
        if skip.iter().any(|skipped| skipped == path) {
            let cause = "an earlier attempt came to its end in it".to_owned();
            degrade(Degradation::Module { path: path.into(), cause });
            continue;
        }
        begins(path);
        match load(Path::new(path), &cmdline) {
            Ok(()) => log::debug!("module {path} loaded"),
            Err(cause) if optional => log::debug!("module {path} not loaded: {cause}"),
            Err(cause) => degrade(Degradation::Module { path: path.into(), cause }),
        }
    }
}

fn load(path: &Path, cmdline: &str) -> Result<(), String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    match finit_module(&file, &parameters(path, cmdline), ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.desc().to_owned()),
    }
}

/// A module's parameters on the kernel command line (`nvme.poll_queues=2`): the kernel takes them
/// only for built-in modules, modprobe hands them to the others.
fn parameters(path: &Path, cmdline: &str) -> CString {
    let normal = |name: &str| name.replace('-', "_");
    let module = path.file_stem().map(|stem| normal(&stem.to_string_lossy())).unwrap_or_default();
    let words = cmdline.split_ascii_whitespace().filter_map(|word| word.split_once('.'));
    let ours: Vec<&str> =
        words.filter(|(name, _)| normal(name) == module).map(|(_, parameter)| parameter).collect();
    CString::new(ours.join(" ")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_reach_their_module() {
        let cmdline =
            "console=ttyS0 nvme-core.max_retries=3 quiet nvme_core.admin_timeout=9 nvme.poll_queues=2";
        assert_eq!(
            parameters(Path::new("/lib/modules/nvme_core.ko"), cmdline).as_c_str(),
            c"max_retries=3 admin_timeout=9"
        );
        assert_eq!(parameters(Path::new("/lib/modules/nvme.ko"), cmdline).as_c_str(), c"poll_queues=2");
        assert_eq!(parameters(Path::new("/lib/modules/ext4.ko"), cmdline).as_c_str(), c"");
    }
}
