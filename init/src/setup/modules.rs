//! Loading kernel modules in the order that `afterimage build` worked out: no modprobe, no udev.

use std::fs::{self, File};
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::config::MODULES_PATH;
use crate::report::Degradation;

/// Loads the modules listed in the image. A module that fails is reported, and the next one is tried: which of
/// them the target really needs shows when the target is opened.
///
/// A line is a path; a `-` before it marks one of several providers of the same thing (a checksum with and
/// without a CPU feature), of which some may refuse to load.
pub fn load_all(degrade: &mut dyn FnMut(Degradation)) {
    let list = match fs::read_to_string(MODULES_PATH) {
        Ok(list) => list,
        Err(error) => {
            return degrade(Degradation::Module { path: MODULES_PATH.into(), cause: error.to_string() });
        }
    };
    for line in list.lines().filter(|line| !line.is_empty()) {
        let (path, optional) = match line.strip_prefix('-') {
            Some(path) => (path, true),
            None => (line, false),
        };
        match load(Path::new(path)) {
            Ok(()) => log::debug!("module {path} loaded"),
            Err(cause) if optional => log::debug!("module {path} not loaded: {cause}"),
            Err(cause) => degrade(Degradation::Module { path: path.into(), cause }),
        }
    }
}

fn load(path: &Path) -> Result<(), String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.desc().to_owned()),
    }
}
