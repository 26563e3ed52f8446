//! Disk images, made and read back without root, mounts or loop devices.

use crate::command::{Run, command};
use crate::fault::Fault;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// A disk image file.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The image.
    pub path: PathBuf,
    /// Whether the guest is kept from writing to it.
    pub read_only: bool,
    /// Names QEMU's nodes and devices of a disk with faults; a healthy disk needs no name.
    pub name: Option<String>,
    /// What is wrong with it.
    pub faults: Vec<Fault>,
}

impl Disk {
    /// A sparse disk of `size` bytes of zeros.
    pub fn raw(path: &Path, size: u64) -> Result<Self> {
        let context = || format!("making the disk {}", path.display());
        File::create(path).and_then(|file| file.set_len(size)).with_context(context)?;
        Ok(Self::existing(path))
    }

    /// The disk whose image is there already.
    #[must_use]
    pub fn existing(path: &Path) -> Self {
        Self { path: path.to_owned(), read_only: false, name: None, faults: Vec::new() }
    }

    /// An ext4 file system of `size` bytes that holds a copy of the directory `content`.
    pub fn ext4(path: &Path, size: u64, label: &str, uuid: &str, content: &Path) -> Result<Self> {
        let disk = Self::raw(path, size)?;
        command("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-L", label, "-U", uuid, "-d"])
            .args([content, path])
            .run()?;
        Ok(disk)
    }

    /// The same disk, write protected.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }

    /// Copies the directory `source` of the ext4 file system to the host directory `into`, with
    /// modes and times.
    pub fn read_back(&self, source: &str, into: &Path) -> Result<()> {
        fs::create_dir_all(into).with_context(|| format!("making {}", into.display()))?;
        let request = format!("rdump {source} {}", into.display());
        // debugfs exits with 0 whatever happens; it names a missing source on stderr.
        let output = command("debugfs").args(["-R", &request]).arg(&self.path).run()?;
        let message = String::from_utf8_lossy(&output.stderr);
        let complaints: Vec<_> = message.lines().filter(|line| !line.starts_with("debugfs ")).collect();
        anyhow::ensure!(complaints.is_empty(), "debugfs {request:?}: {}", complaints.join("\n"));
        Ok(())
    }

    /// Replays the journal, as the next mount would.
    pub fn replay(&self) -> Result<()> {
        command("e2fsck").args(["-p", "-E", "journal_only"]).arg(&self.path).run().map(drop)
    }

    /// Fills the ext4 file system so that `room` bytes are left.
    pub fn leave(&self, room: u64) -> Result<()> {
        let output = command("dumpe2fs").arg("-h").arg(&self.path).run()?;
        let message = String::from_utf8_lossy(&output.stdout).into_owned();
        let number = |key: &str| -> Result<u64> {
            let line = message
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .with_context(|| format!("no {key}"))?;
            line.trim().parse().with_context(|| format!("{key} {line}"))
        };
        let free = number("Free blocks:")?.saturating_mul(number("Block size:")?);
        let ballast = self.path.with_extension("ballast");
        let bytes = free.checked_sub(room).context("the disk is smaller than the room it is to have")?;
        // Not zeros: debugfs makes holes of them.
        let mut file = File::create(&ballast).context("making the ballast")?;
        io::copy(&mut io::repeat(0xff).take(bytes), &mut file).context("writing the ballast")?;
        let request = format!("write {} ballast", ballast.display());
        command("debugfs").args(["-w", "-R", &request]).arg(&self.path).run()?;
        fs::remove_file(&ballast).context("removing the ballast")
    }

    /// Checks the ext4 file system without changing it; fails when anything is wrong with it.
    ///
    /// A journal to be replayed is no fault: a crashed system leaves one. It is replayed on a copy
    /// first.
    pub fn check(&self) -> Result<()> {
        let copy = self.path.with_extension("fsck");
        command("cp").arg("--sparse=always").args([&self.path, &copy]).run()?;
        command("e2fsck").args(["-p", "-E", "journal_only"]).arg(&copy).run()?;
        command("e2fsck").arg("-fn").arg(&copy).run()?;
        fs::remove_file(&copy).with_context(|| format!("removing {}", copy.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_goes_into_a_file_system_comes_back() {
        let work = tempfile::tempdir().unwrap();
        let content = work.path().join("content");
        fs::create_dir_all(content.join("a/b")).unwrap();
        fs::write(content.join("a/b/file"), "text").unwrap();
        fs::set_permissions(content.join("a/b/file"), fs::Permissions::from_mode(0o600)).unwrap();
        let uuid = "00000000-1111-2222-3333-444444444444";
        let disk = Disk::ext4(&work.path().join("disk"), 8 << 20, "dump", uuid, &content).unwrap();
        disk.check().unwrap();
        let back = work.path().join("back");
        disk.read_back("/a/b", &back).unwrap();
        assert_eq!(fs::read(back.join("b/file")).unwrap(), b"text");
        let mode = fs::metadata(back.join("b/file")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert!(disk.read_back("/absent", &back).is_err());
    }

    #[test]
    fn a_damaged_file_system_is_noticed() {
        let work = tempfile::tempdir().unwrap();
        let content = work.path().join("content");
        fs::create_dir_all(content.join("a")).unwrap();
        let uuid = "00000000-1111-2222-3333-444444444444";
        let disk = Disk::ext4(&work.path().join("disk"), 8 << 20, "dump", uuid, &content).unwrap();
        command("debugfs").args(["-w", "-R", "clri /a"]).arg(&disk.path).run().unwrap();
        assert!(disk.check().is_err());
    }
}
