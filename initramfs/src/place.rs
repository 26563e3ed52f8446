//! Where on this host a target's directory is: through what is mounted where, links, subvolumes of btrfs,
//! and mounts that hide a directory. A capture has none of these mounts, and must put the dump where the
//! host will see it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use base::config::{Config, Filesystem, FsType, Place};
use base::facts::{Disk, View};
use storage::block::{self, Device};

use crate::boot_entry::{self, Mount, Mounts};
use crate::host;

/// Links on the way to a file, after which the kernel gives up (`MAXSYMLINKS`, include/linux/namei.h).
const MAX_LINKS: usize = 40;

/// Where a target's directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// For the capture.
    pub view: View,
    /// Where the part of the file system is mounted that holds it.
    pub at: String,
    /// What the configuration should say instead, if this is not the place that it asks for.
    pub remedy: Option<String>,
}

/// A target of this host, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The target.
    pub target: String,
    /// Where the dumps will be.
    pub text: String,
    /// Why that is not the place that was asked for, and what to do.
    pub trouble: Option<(String, String)>,
    /// What is not plain about the device: a copy of it.
    pub remark: Option<String>,
}

/// Says of each target on a disk of this host where its dumps will be after the reboot. One that is not
/// on this host is left out.
#[must_use]
pub fn tell(config: &Config) -> Vec<Told> {
    let mounts = Mounts::parse(&host::read("/proc/self/mountinfo"));
    let tell_one = |target: &base::config::Target| {
        let device = block::find(target.device()?, Duration::ZERO).ok()?;
        let Place::Filesystem(wanted) = &target.place else {
            let text =
                format!("{target} is {}: `afterimage recover` takes a capture off it", device.node.display());
            return Some(Told { target: target.to_string(), text, trouble: None, remark: device.remark });
        };
        let seen = seen(wanted, &target.to_string(), &device, &mounts);
        Some(told(target, wanted, &device, seen))
    };
    config.target.iter().filter_map(tell_one).collect()
}

/// Where this host sees the directories of targets on disks; those that it does not see are left out.
#[must_use]
pub fn views(config: &Config) -> Vec<View> {
    let mounts = Mounts::parse(&host::read("/proc/self/mountinfo"));
    let view = |target: &base::config::Target| {
        let Place::Filesystem(wanted) = &target.place else { return None };
        let device = block::find(&wanted.device, Duration::ZERO).ok()?;
        Some(seen(wanted, &target.to_string(), &device, &mounts)?.view)
    };
    config.target.iter().filter_map(view).collect()
}

fn told(target: &base::config::Target, wanted: &Filesystem, device: &Device, seen: Option<Seen>) -> Told {
    let node = device.node.display();
    let Some(Seen { view, remedy, .. }) = seen else {
        let subvolume =
            wanted.subvolume.as_ref().map(|name| format!(" in the subvolume {name}")).unwrap_or_default();
        let text = format!(
            "{target} is {node}, which the host has not mounted: dumps will be in its directory {}{subvolume}",
            wanted.path
        );
        return Told { target: target.to_string(), text, trouble: None, remark: device.remark.clone() };
    };
    let inner = &view.directory;
    let text =
        format!("{target} is {node}, directory {inner} of it: dumps will be in {} of this host", view.host);
    let trouble = (!view.why.is_empty()).then(|| (view.why, remedy.unwrap_or_default()));
    Told { target: target.to_string(), text, trouble, remark: device.remark.clone() }
}

/// What is to be remembered of a device that is named `name`, and of the other devices of a btrfs.
#[must_use]
pub fn records(name: &str, device: &Device) -> Vec<Disk> {
    let own = device.record(name.to_owned());
    let members = block::members(device, base::facts::Recorded::default(), Duration::ZERO);
    let of = |member: &Device| Some(member.record(block::member_name(&member.needs.member.as_ref()?.id)));
    let further = members.iter().skip(1).filter_map(of);
    std::iter::once(own).chain(further).collect()
}

/// What the capture is told of the directory of a target; `None` if its file system is not mounted.
#[must_use]
pub fn seen(wanted: &Filesystem, target: &str, device: &Device, mounts: &Mounts) -> Option<Seen> {
    let members = block::members(device, base::facts::Recorded::default(), Duration::ZERO);
    let is_own = |mount: &Mount| {
        boot_entry::node_of(mount).is_some_and(|node| members.iter().any(|member| member.node == node))
    };
    let is_btrfs = device.filesystem.as_ref().is_some_and(|fs| fs.kind == FsType::Btrfs);
    let search = Search { wanted, target, mounts, is_btrfs, root: Path::new("/"), is_own: &is_own };
    search.seen()
}

/// What is looked for.
struct Search<'a> {
    wanted: &'a Filesystem,
    target: &'a str,
    mounts: &'a Mounts,
    is_btrfs: bool,
    /// Root directory of the host: `/`, but in tests.
    root: &'a Path,
    /// Whether the target's file system is what is mounted.
    is_own: &'a dyn Fn(&Mount) -> bool,
}

impl Search<'_> {
    fn seen(&self) -> Option<Seen> {
        let own: Vec<&Mount> = self.mounts.0.iter().filter(|mount| (self.is_own)(mount)).collect();
        // What shows all of it comes first.
        let main = *own.iter().min_by_key(|mount| (mount.root.iter().count(), mount.at.iter().count()))?;
        let asked = Path::new(&self.wanted.path);
        if self.is_btrfs && self.wanted.subvolume.is_none() {
            // Paths on btrfs begin in a subvolume, and nobody has said in which: the host's own path, if
            // that leads there.
            let real = self.real(asked);
            if let Some(mount) = real.as_deref().and_then(|real| self.visible(real)) {
                return self.at(mount, &real?);
            }
            let main = own.iter().min_by_key(|mount| mount.at.iter().count())?;
            return self.below(main, &join(&main.at, asked));
        }
        let inner = join(Path::new(self.wanted.subvolume.as_deref().unwrap_or("/")), asked);
        let mut shown = own.iter().filter_map(|mount| Some((*mount, mount.outer(&inner)?)));
        let first = shown.clone().next();
        let good = shown.find_map(|(_, outer)| {
            let real = self.real(&outer)?;
            self.at(self.visible(&real)?, &real)
        });
        match (good, first) {
            (Some(seen), _) => Some(seen),
            (None, Some((mount, outer))) => self.below(mount, &outer),
            // It may be mounted after the reboot, as fstab has it.
            (None, None) if self.wanted.subvolume.is_some() => None,
            (None, None) => {
                let (shown, at) = (main.root.display(), main.at.display());
                let why = format!("the host has mounted only {shown} of the file system, at {at}");
                let remedy = format!("write a path that begins with {shown}");
                Some(self.instead(main, why, Some(remedy)))
            }
        }
    }

    /// The target's mount that a path of the host without links is on.
    fn visible(&self, real: &Path) -> Option<&Mount> {
        self.mounts.holding(real).filter(|mount| (self.is_own)(mount))
    }

    /// A path without links on one of the target's mounts.
    fn at(&self, mount: &Mount, real: &Path) -> Option<Seen> {
        let view = View {
            target: self.target.to_owned(),
            directory: text(&mount.inner(real)?),
            root: text(&mount.root),
            host: text(real),
            why: String::new(),
        };
        Some(Seen { view, at: text(&mount.at), remedy: None })
    }

    /// A path that should be on this mount of the target's.
    fn below(&self, mount: &Mount, outer: &Path) -> Option<Seen> {
        let Some(real) = self.real(outer) else {
            let why = format!("{} is a link that leads in a circle", outer.display());
            return Some(self.instead(mount, why, None));
        };
        if let Some(own) = self.visible(&real) {
            return self.at(own, &real);
        }
        let other = self.mounts.holding(&real)?;
        let (at, fstype, source) = (other.at.display(), &other.fstype, &other.source);
        let why = if real == outer {
            format!("{} is hidden by {source} ({fstype}), which is mounted at {at}", outer.display())
        } else {
            let (outer, real) = (outer.display(), real.display());
            format!(
                "{outer} leads to {real}, out of the file system: that is on {source} ({fstype}), mounted at {at}"
            )
        };
        Some(self.instead(mount, why, remedy(other, &real)))
    }

    /// The top of what the host has mounted: there nothing hides a capture.
    fn instead(&self, mount: &Mount, why: String, remedy: Option<String>) -> Seen {
        // What is mounted over the very place does hide it; then there is nothing better.
        let view = View {
            target: self.target.to_owned(),
            directory: text(&mount.root),
            root: text(&mount.root),
            host: text(&mount.at),
            why,
        };
        let usual = "name a directory that is in the file system of the device";
        Seen { view, at: text(&mount.at), remedy: Some(remedy.unwrap_or_else(|| usual.to_owned())) }
    }

    /// A path of the host without links; what is not there yet has none.
    fn real(&self, path: &Path) -> Option<PathBuf> {
        let mut left: VecDeque<OsString> = path.iter().map(OsString::from).collect();
        let (mut real, mut links) = (PathBuf::from("/"), 0_usize);
        while let Some(part) = left.pop_front() {
            match Path::new(&part).components().next() {
                Some(Component::Normal(_)) => (),
                Some(Component::ParentDir) => {
                    real.pop();
                    continue;
                }
                Some(Component::RootDir) => {
                    real = PathBuf::from("/");
                    continue;
                }
                _ => continue,
            }
            let next = real.join(&part);
            let below = next.strip_prefix("/").unwrap_or(&next);
            match fs::read_link(self.root.join(below)) {
                Ok(to) => {
                    links = links.saturating_add(1);
                    if links > MAX_LINKS {
                        return None;
                    }
                    to.iter().rev().for_each(|part| left.push_front(part.to_owned()));
                }
                Err(_) => real = next,
            }
        }
        Some(real)
    }
}

/// What names a directory of this host for a capture.
fn remedy(mount: &Mount, real: &Path) -> Option<String> {
    let inner = mount.inner(real)?;
    let (device, fstype) = boot_entry::name(boot_entry::on_disk(mount, real).ok()?).ok()?;
    let (subvolume, path) = match fstype {
        FsType::Btrfs => {
            let path = join(Path::new("/"), real.strip_prefix(&mount.at).ok()?);
            (format!(", subvolume = {:?}", text(&mount.root)), path)
        }
        FsType::Ext4 | FsType::Xfs | FsType::Vfat => (String::new(), inner),
    };
    Some(format!("write device = \"{device}\"{subvolume}, path = {:?} for {}", text(&path), real.display()))
}

fn join(base: &Path, rest: &Path) -> PathBuf {
    let rest = rest.strip_prefix("/").unwrap_or(rest);
    if rest.as_os_str().is_empty() { base.to_owned() } else { base.join(rest) }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
