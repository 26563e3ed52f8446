//! What the machine goes on to after the capture, as the loader found it: the next kernel, and the
//! root file system.
//!
//! Values only. Paths begin at the root of their file system, wherever that was mounted.

use serde::{Deserialize, Serialize};

use crate::config::{DeviceId, FsType};

/// A kernel to start, and what it is started with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// The file system that holds the files. A stack of the facts with this name is under it.
    pub device: DeviceId,
    /// Its type.
    pub fstype: FsType,
    /// The kernel.
    pub kernel: String,
    /// What is handed to it as its initrd, one behind the other.
    pub initrd: Vec<String>,
    /// Its command line.
    pub cmdline: String,
}

/// A root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Where it is. A stack of the facts with this name is under it.
    pub device: DeviceId,
    /// Its type.
    pub fstype: FsType,
    /// btrfs: the path of the subvolume that is mounted; not given: the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subvolume: Option<String>,
}
