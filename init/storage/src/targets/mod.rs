//! The kinds of target on block devices, and what they share with other targets that are
//! directories.

pub mod captures;
pub mod directory;
pub mod file;
pub mod mounted;
pub mod ours;
pub mod raw;
pub mod tried;

use std::time::Duration;

use base::config::{self, Place};
use base::facts::View;
use vmcore::target::{Capture, Target, TargetError};

use crate::mount::{Mounted, Wanted};
use crate::prepared::PreparedDevice;
use mounted::MountedTarget;

/// Opens a target on a block device. What the device stands on is set up first, if the loader found
/// anything there. Fails for a kind of target that is not on a block device.
pub fn open(config: &config::Target, capture: Capture<'_>) -> Result<Box<dyn Target>, TargetError> {
    let wait = Duration::from_secs(config.wait);
    match &config.place {
        Place::Filesystem(target) => {
            let view = capture.view(config);
            let way = Way::to(target, view);
            let at = mounted::place(capture);
            let mut filesystem =
                Mounted::open(way.wanted, capture.recorded, &at, wait).map_err(TargetError::because)?;
            if let Some(view) = view.filter(|view| !view.why.is_empty()) {
                filesystem.remark(view.why.clone());
            }
            let paths: Vec<&str> = way.paths.iter().map(String::as_str).collect();
            Ok(Box::new(MountedTarget::open(filesystem, &paths, target.share, capture)?))
        }
        Place::Raw(target) => {
            let found = PreparedDevice::find(&target.device, capture.recorded, wait);
            let found = found.and_then(PreparedDevice::writable).map_err(TargetError::because)?;
            Ok(Box::new(raw::Raw::open(target, found, capture)?))
        }
        Place::Ssh(_) | Place::Nfs(_) | Place::Https(_) | Place::S3(_) => {
            Err(TargetError::not_built(config.kind()))
        }
    }
}

/// The way to a directory of captures: what is mounted, and where in it the directory is.
#[derive(Clone, Debug)]
pub struct Way<'a> {
    /// What is mounted.
    pub wanted: Wanted<'a>,
    /// The directory in it; behind it those that will do if it cannot be made.
    pub paths: Vec<String>,
}

impl<'a> Way<'a> {
    /// The way to a target. Where the loader has seen the directory on the host, it is that one;
    /// otherwise what the configuration says.
    #[must_use]
    pub fn to(target: &'a config::Filesystem, view: Option<&View>) -> Self {
        let mut wanted = Wanted::of_target(&target.device, target.fstype);
        let Some(view) = view else {
            wanted.subvolume = target.subvolume.as_deref();
            return Self { wanted, paths: vec![target.path.clone(), "/".to_owned()] };
        };
        // Paths of a view begin at the top of the file system, whatever is its default subvolume.
        wanted.subvolume = Some("/");
        let mut paths = vec![view.directory.clone(), view.root.clone(), "/".to_owned()];
        paths.dedup();
        Self { wanted, paths }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::config::Config;

    fn way(keys: &str, view: Option<&View>) -> (Option<String>, Vec<String>) {
        let text = format!("[[target]]\ntype = \"filesystem\"\ndevice = \"UUID=1\"\n{keys}");
        let config = Config::parse(&text).unwrap();
        let Place::Filesystem(target) = &config.target[0].place else { panic!("{config:?}") };
        let way = Way::to(target, view);
        (way.wanted.subvolume.map(str::to_owned), way.paths)
    }

    #[test]
    fn a_directory_is_where_the_host_saw_it_or_as_configured() {
        let paths = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect::<Vec<_>>();
        assert_eq!(way("", None), (None, paths(&["/var/crash", "/"])));
        let subvolume = way("subvolume = \"/@crash\"\npath = \"/d\"", None);
        assert_eq!(subvolume, (Some("/@crash".into()), paths(&["/d", "/"])));
        let view = View {
            target: "UUID=1:/var/crash".into(),
            directory: "/root/var/crash".into(),
            root: "/root".into(),
            host: "/var/crash".into(),
            why: String::new(),
        };
        let seen = way("", Some(&view));
        assert_eq!(seen, (Some("/".into()), paths(&["/root/var/crash", "/root", "/"])));
    }
}
