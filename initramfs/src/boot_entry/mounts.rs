//! `/proc/self/mountinfo`: which file system holds a file, and where in it
//! (Documentation/filesystems/proc.rst, 3.5).

use std::path::{Path, PathBuf};

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `major:minor` of the device; major 0 for what is on no device, and for btrfs.
    pub numbers: String,
    /// The directory of the file system that is mounted.
    pub root: PathBuf,
    /// Where it is mounted.
    pub at: PathBuf,
    /// Type.
    pub fstype: String,
    /// What it was mounted from.
    pub source: String,
}

/// All mounts, in the order in which they were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts(pub Vec<Mount>);

impl Mounts {
    /// Parses mountinfo; a line that makes no sense is left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(line).collect())
    }

    /// What a path without links is on: of the mounts at the longest prefix the last one, which
    /// hides the others.
    #[must_use]
    pub fn holding(&self, path: &Path) -> Option<&Mount> {
        let above = self.0.iter().filter(|mount| path.starts_with(&mount.at));
        above.max_by_key(|mount| mount.at.iter().count())
    }
}

impl Mount {
    /// The path in the file system of a file that is at `path` on the host.
    #[must_use]
    pub fn inner(&self, path: &Path) -> Option<PathBuf> {
        let rest = path.strip_prefix(&self.at).ok()?;
        Some(join(&self.root, rest))
    }

    /// Where a file is on the host that has this path in the file system, if that part of it is
    /// mounted.
    #[must_use]
    pub fn outer(&self, inner: &Path) -> Option<PathBuf> {
        let rest = inner.strip_prefix(&self.root).ok()?;
        Some(join(&self.at, rest))
    }
}

/// Without the slash that joining nothing leaves at the end.
fn join(base: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() { base.to_owned() } else { base.join(rest) }
}

fn line(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(2);
    let (numbers, root, at) = (front.next()?, front.next()?, front.next()?);
    let mut back = back.split(' ');
    let (fstype, source) = (back.next()?, back.next()?);
    Some(Mount {
        numbers: numbers.to_owned(),
        root: unescape(root).into(),
        at: unescape(at).into(),
        fstype: fstype.to_owned(),
        source: unescape(source),
    })
}

/// Space, tab, newline and backslash are written in octal (mangle(), fs/proc_namespace.c).
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BTRFS: &str = "\
        22 27 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw\n\
        27 1 0:25 /@root / rw,relatime shared:1 - btrfs /dev/vda3 rw,subvolid=256,subvol=/@root\n\
        45 27 0:25 /@home /home rw,relatime shared:30 - btrfs /dev/vda3 rw,subvolid=257,subvol=/@home\n\
        48 27 254:2 / /boot rw,relatime shared:32 master:3 - ext4 /dev/vda2 rw\n\
        51 48 254:1 / /boot/efi rw - vfat /dev/vda1 rw\n\
        60 27 0:50 / /mnt/a\\040b rw - tmpfs tmpfs rw\n\
        rubbish\n";

    #[test]
    fn a_file_is_on_the_mount_nearest_to_it() {
        let mounts = Mounts::parse(BTRFS);
        assert_eq!(mounts.0.len(), 6);
        let inner = |path: &str| {
            let mount = mounts.holding(Path::new(path)).unwrap();
            (mount.source.as_str(), mount.inner(Path::new(path)).unwrap().display().to_string())
        };
        assert_eq!(inner("/boot/vmlinuz"), ("/dev/vda2", "/vmlinuz".into()));
        assert_eq!(inner("/boot/efi/x/y"), ("/dev/vda1", "/x/y".into()));
        assert_eq!(inner("/bootleg"), ("/dev/vda3", "/@root/bootleg".into()));
        assert_eq!(inner("/"), ("/dev/vda3", "/@root".into()));
        assert_eq!(inner("/mnt/a b/c"), ("tmpfs", "/c".into()));
    }

    #[test]
    fn paths_of_a_boot_loader_lead_to_files() {
        let mounts = Mounts::parse(BTRFS);
        let outer = |index: usize, path: &str| mounts.0[index].outer(Path::new(path));
        assert_eq!(outer(1, "/@root/boot/x"), Some("/boot/x".into()));
        assert_eq!(outer(1, "/@home/x"), None);
        assert_eq!(outer(3, "/vmlinuz"), Some("/boot/vmlinuz".into()));
    }

    #[test]
    fn what_hides_another_mount_is_the_one() {
        let mounts = Mounts::parse("1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 8:2 / / rw - xfs /dev/b rw\n");
        assert_eq!(mounts.holding(Path::new("/x")).unwrap().source, "/dev/b");
        assert_eq!(Mounts::default().holding(Path::new("/x")), None);
    }
}
