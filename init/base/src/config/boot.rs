//! `[boot]`: what the machine goes on to, where the final action is `kexec`, `switch_root` or
//! `shell`. Resolved by the loader, see [`crate::facts::boot`].

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{DeviceId, FsType, checked};

/// `[boot]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Boot {
    /// The next kernel.
    pub kernel: NextKernel,
    /// Its initrd. Not given: the one that belongs to the kernel or is in its entry.
    #[serde(deserialize_with = "checked::path", skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// Its command line. Not given: that of the running kernel or of the entry.
    #[serde(deserialize_with = "checked::command_line", skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// The device that holds kernel and initrd, whose paths then begin at its root. Not given: what
    /// holds them when the image is loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// Its file system. Not given: what the superblock says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fstype: Option<FsType>,
    /// The root file system's device. Not given: what is mounted at / when the image is loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<DeviceId>,
    /// Its file system. Not given: what the superblock says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_fstype: Option<FsType>,
    /// The init in it, for `switch_root`. Not given: `/sbin/init`.
    #[serde(deserialize_with = "checked::path", skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// Key file that opens the LUKS device under either. Read on the host when the image is loaded,
    /// never in the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
}

/// `kernel` of `[boot]`: which kernel comes next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NextKernel {
    /// The one that runs when the image is loaded.
    #[default]
    Running,
    /// The one that the boot loader would start.
    Default,
    /// This file.
    Path(String),
}

/// No name of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no kernel: write \"running\", \"default\" or an absolute path without . and ..")]
pub struct NextKernelError(String);

impl Boot {
    /// The init of the root file system.
    #[must_use]
    pub fn init(&self) -> &str {
        self.init.as_deref().unwrap_or("/sbin/init")
    }
}

impl FromStr for NextKernel {
    type Err = NextKernelError;

    fn from_str(text: &str) -> Result<Self, NextKernelError> {
        match text {
            "running" => Ok(Self::Running),
            "default" => Ok(Self::Default),
            path => checked::absolute_path(path.to_owned())
                .map(Self::Path)
                .map_err(|_| NextKernelError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for NextKernel {
    type Error = NextKernelError;

    fn try_from(text: String) -> Result<Self, NextKernelError> {
        text.parse()
    }
}

impl From<NextKernel> for String {
    fn from(kernel: NextKernel) -> Self {
        kernel.to_string()
    }
}

impl fmt::Display for NextKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("running"),
            Self::Default => f.write_str("default"),
            Self::Path(path) => f.write_str(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_boot_table_round_trips() {
        let text = "[boot]\nkernel = \"/vmlinuz\"\ninitrd = \"/initrd.img\"\ncmdline = \"ro quiet\"\n\
                    device = \"LABEL=boot\"\nfstype = \"ext4\"\nroot = \"UUID=a-1\"\ninit = \"/bin/x\"\n";
        let config = Config::parse(text).unwrap();
        assert_eq!(config.boot.kernel, NextKernel::Path("/vmlinuz".into()));
        assert_eq!(config.boot.init(), "/bin/x");
        assert_eq!(Config::parse(&config.to_toml()).unwrap(), config);
        assert_eq!(Config::default().boot.init(), "/sbin/init");
        for kernel in ["running", "default"] {
            assert_eq!(kernel.parse::<NextKernel>().unwrap().to_string(), kernel);
        }
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for (key, reason) in [
            ("kernel = \"newest\"", "names no kernel"),
            ("initrd = \"img\"", "absolute path"),
            ("cmdline = \"a\\nb\"", "one line"),
            ("device = \"sda1\"", "names no device"),
            ("init = \"../init\"", "absolute path"),
        ] {
            let error = Config::parse(&format!("[boot]\n{key}\n")).unwrap_err().to_string();
            assert!(error.contains("line 2,") && error.contains(reason), "{key}: {error}");
        }
    }
}
