//! Targets other than the production disk: one of each file system, each named in another way.

use crate::command::{Run, command};
use crate::disk::Disk;
use crate::outcome::Dump;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

const SIZE: u64 = 1 << 30;
/// Where the partition begins on a partitioned disk.
const PARTITION: u64 = 1 << 20;
const UUID: &str = "5a17c0de-0000-4000-8000-0000000000f5";
const LABEL: &str = "dumps";

/// A file system on a disk of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// XFS on the whole disk, found by its UUID.
    Xfs,
    /// btrfs on the whole disk, found by its label.
    Btrfs,
    /// FAT32 in a GPT partition, found by the partition's UUID.
    Vfat,
}

impl Format {
    /// The name for `fstype`.
    #[must_use]
    pub fn fstype(self) -> &'static str {
        match self {
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Vfat => "vfat",
        }
    }

    /// The name for `device`.
    #[must_use]
    pub fn device(self) -> String {
        match self {
            Self::Xfs => format!("UUID={UUID}"),
            Self::Btrfs => format!("LABEL={LABEL}"),
            Self::Vfat => format!("PARTUUID={UUID}"),
        }
    }

    /// Makes the disk.
    pub fn make(self, path: &Path) -> Result<Disk> {
        let disk = Disk::raw(path, SIZE)?;
        match self {
            Self::Xfs => {
                command("mkfs.xfs").args(["-q", "-f", "-m", &format!("uuid={UUID}")]).arg(path).run()?
            }
            Self::Btrfs => command("mkfs.btrfs").args(["-q", "-f", "-L", LABEL]).arg(path).run()?,
            Self::Vfat => return partitioned(path),
        };
        Ok(disk)
    }

    /// Checks the file system, and reads the dumps back where a tool can do that without mounting
    /// it: there is none for XFS.
    pub fn read_back(self, disk: &Disk, into: &Path) -> Result<Option<Vec<Dump>>> {
        fs::create_dir_all(into).with_context(|| format!("making {}", into.display()))?;
        match self {
            Self::Xfs => {
                command("xfs_repair").args(["-n", "-f"]).arg(&disk.path).run()?;
                return Ok(None);
            }
            Self::Btrfs => {
                command("btrfs").args(["check", "-q"]).arg(&disk.path).run()?;
                command("btrfs").args(["-q", "restore", "-m"]).args([&disk.path, into]).run()?;
            }
            Self::Vfat => {
                let image = format!("{}@@{PARTITION}", disk.path.display());
                command("mcopy").args(["-s", "-i", &image, "::/var"]).arg(into).run()?;
            }
        }
        Dump::all_in(&into.join("var/crash")).map(Some)
    }
}

/// A GPT disk with one partition that holds FAT32.
fn partitioned(path: &Path) -> Result<Disk> {
    let content = path.with_extension("partition");
    Disk::raw(&content, SIZE)?;
    command("mkfs.vfat").args(["-F", "32", "-n", "DUMPS"]).arg(&content).run()?;
    let disk = Disk::raw(path, PARTITION + SIZE + PARTITION)?;
    let table = path.with_extension("sfdisk");
    let (start, size) = (PARTITION / 512, SIZE / 512);
    fs::write(&table, format!("label: gpt\nstart={start}, size={size}, uuid={UUID}, name=\"crash dumps\"\n"))
        .with_context(|| format!("writing {}", table.display()))?;
    let table = File::open(&table).with_context(|| format!("opening {}", table.display()))?;
    command("sfdisk").arg("-q").arg(path).stdin(table).run()?;
    // Only the start of an empty FAT holds anything; the rest stays sparse.
    let head = fs::read(&content).context("reading the FAT file system")?;
    let used = head.iter().rposition(|&byte| byte != 0).map_or(0, |last| last.saturating_add(1));
    let mut file = File::options().write(true).open(path).context("opening the disk")?;
    file.seek(SeekFrom::Start(PARTITION)).context("finding the partition")?;
    file.write_all(head.get(..used).unwrap_or_default()).context("filling the partition")?;
    fs::remove_file(&content).context("removing the FAT file system")?;
    Ok(disk)
}
