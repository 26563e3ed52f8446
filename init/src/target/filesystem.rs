//! A directory in a file system on a block device: found, mounted, and unmounted again.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::config;
use crate::setup::block;
use crate::sink::Sink;
use crate::target::directory::Directory;
use crate::target::{Artifact, Capture, Ledger, Target, TargetError};

/// Where the target's file system is mounted in the image.
const MOUNT_POINT: &str = "/target";

/// A mounted file system with the capture's directory in it.
#[derive(Debug)]
pub(super) struct Filesystem {
    directory: Directory,
    device: String,
    ledger: Ledger,
}

impl Filesystem {
    pub(super) fn open(config: &config::Target, capture: Capture<'_>) -> Result<Self, TargetError> {
        let found = block::find(&config.device, Duration::from_secs(config.wait), capture.heartbeat)?;
        let device = found.node.display().to_string();
        if found.read_only {
            return Err(TargetError::ReadOnly(device));
        }
        let kind = config.fstype.or(found.filesystem.map(|fs| fs.kind));
        let fstype = kind.ok_or_else(|| TargetError::NoFilesystem(device.clone()))?.name();
        let _ = fs::create_dir(MOUNT_POINT); // it may be there from an earlier target
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
        mount(Some(&found.node), MOUNT_POINT, Some(fstype), flags, None::<&str>)
            .map_err(|errno| TargetError::Mount { device: device.clone(), fstype, source: errno.into() })?;
        log::info!("target {} is {device} ({fstype})", config.device);
        match Directory::create(Path::new(MOUNT_POINT), config.path(), capture.name) {
            Ok(directory) => Ok(Self { directory, device, ledger: Ledger::default() }),
            Err(error) => {
                unmount()?;
                Err(error)
            }
        }
    }
}

impl Target for Filesystem {
    fn location(&self) -> String {
        format!("{}:{}", self.device, self.directory.path().display())
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn room(&self) -> Option<u64> {
        None
    }

    fn create(&mut self, artifact: Artifact) -> Result<Box<dyn Sink>, TargetError> {
        self.directory.create_file(artifact)
    }

    fn publish(&mut self, artifact: Artifact) -> Result<(), TargetError> {
        self.directory.publish(artifact)
    }

    fn close(self: Box<Self>) -> Result<(), TargetError> {
        drop(self.directory); // its descriptor would keep the file system busy
        unmount()
    }
}

fn unmount() -> Result<(), TargetError> {
    umount2(MOUNT_POINT, MntFlags::empty()).map_err(|errno| TargetError::File {
        what: "unmounting",
        name: MOUNT_POINT.to_owned(),
        source: errno.into(),
    })
}
