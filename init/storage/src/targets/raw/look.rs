//! Looks at a device without writing to it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use super::error::RawError;
use super::{Device, failed};
use crate::format::rawdump::{Superblock, latest};
use crate::targets::file::FileSink;
use base::config;
use vmcore::target::Capture;

/// Why a new capture would not be written to the device at `node`, if it would not. Only looks.
pub fn refusal(node: &Path, overwrite: &[String]) -> Result<(), RawError> {
    let name = node.display().to_string();
    check_kind(node).map_err(failed("opening", name.clone()))?;
    let file = File::open(node).map_err(failed("opening", name.clone()))?;
    let sink = FileSink::new(file.try_clone().map_err(failed("opening", name.clone()))?);
    let device = Device::new(name, file, Box::new(sink))?;
    let crash_loop = config::CrashLoop { crashes: 0, within: 0 };
    let new = Capture::new("", 0, crash_loop);
    device.may_be_written(&device.contents()?, overwrite, &new)
}

/// Whether `node` can be a device or the image of one. Opening a pipe would wait for ever.
pub fn check_kind(node: &Path) -> io::Result<()> {
    let kind = std::fs::metadata(node)?.file_type();
    if kind.is_block_device() || kind.is_file() {
        return Ok(());
    }
    let text = "it is neither a block device nor a regular file: name one of these, which can be read at \
                any place";
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// The superblock of the device or image that `file` is.
pub fn superblock(file: &File, name: &str) -> Result<Superblock, RawError> {
    let mut head = vec![0; 8192];
    // One bad sector must not hide the other slot.
    let halves = head.chunks_mut(4096).zip([0, 4096]);
    let read = halves.map(|(half, at)| file.read_exact_at(half, at)).collect::<Vec<_>>();
    match latest(&head) {
        Some(superblock) => Ok(superblock),
        None => match read.into_iter().find_map(Result::err) {
            Some(source) => Err(failed("reading the superblocks of", name.to_owned())(source)),
            None => Err(RawError::NoSuperblock(name.to_owned())),
        },
    }
}
