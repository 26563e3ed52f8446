//! Superblocks of the file systems that a dump can be written to: which one, its label, its UUID.
//!
//! Enough to find a device without udev or libblkid, and no more. Offsets cite the kernel's
//! structures.

use super::features;
use base::config::FsType;
use base::fields::{Fields, Uuid};

/// How many bytes from the start of a device [`probe`] wants to see: the btrfs superblock ends
/// last.
pub const PROBE_LEN: usize = BTRFS_SUPER + 4096;

/// MD_SB_MAGIC, first in the metadata of Linux software RAID (include/uapi/linux/raid/md_p.h).
pub const MD_MAGIC: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();

const EXT_SUPER: usize = 1024; // ext4_super_block, fs/ext4/ext4.h
const BTRFS_SUPER: usize = 64 * 1024; // btrfs_super_block, include/uapi/linux/btrfs_tree.h

/// What a superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Which file system.
    pub kind: FsType,
    /// Label, without padding; may be empty.
    pub label: String,
    /// UUID in lower case with dashes, or `1234-abcd` for vfat.
    pub uuid: String,
}

/// Recognises the file system whose device starts with `head` ([`PROBE_LEN`] bytes, fewer on a
/// small one).
#[must_use]
pub fn probe(head: &[u8]) -> Option<FileSystem> {
    ext(head).or_else(|| xfs(head)).or_else(|| btrfs(head)).or_else(|| vfat(head))
}

/// Something on a device that a raw target must not write over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// What it is, as blkid calls it where it does.
    pub what: &'static str,
    /// Its UUID, in lower case; empty if it has none, or none that is read here.
    pub uuid: String,
}

/// What somebody else has put on the device whose first bytes are `head`: a file system, swap, an
/// encrypted device, a part of a volume group or of an array, a partition table.
#[must_use]
pub fn foreign(head: &[u8]) -> Option<Foreign> {
    if let Some(fs) = probe(head) {
        return Some(Foreign { what: fs.kind.name(), uuid: fs.uuid });
    }
    if let Some(uuid) = swap(head) {
        return Some(Foreign { what: "swap", uuid });
    }
    let fields = Fields(head);
    let has = |offset: usize, magic: &[u8]| fields.bytes(offset, magic.len()) == Some(magic);
    // struct luks_phdr and the LUKS2 binary header: magic, and uuid[40] at 168 in both.
    if has(0, b"LUKS\xba\xbe") {
        return Some(Foreign { what: "LUKS", uuid: fields.text(168, 40).unwrap_or_default().to_lowercase() });
    }
    // struct label_header of LVM2, in one of the first four sectors.
    let lvm = [0_usize, 512, 1024, 1536].iter().any(|&sector| has(sector, b"LABELONE"));
    let what = match () {
        () if lvm => "an LVM2 physical volume",
        () if features::journal(head).is_some() => "the journal of an ext4 file system",
        // mdp_superblock_1 (include/uapi/linux/raid/md_p.h) of version 1.1 or 1.2
        () if has(0, &MD_MAGIC) || has(4096, &MD_MAGIC) => "an MD RAID member",
        () if has(512, b"EFI PART") || has(4096, b"EFI PART") || has(510, b"\x55\xaa") => {
            "a partition table or boot sector"
        }
        () => return None,
    };
    Some(Foreign { what, uuid: String::new() })
}

/// The UUID of a swap area (union swap_header, include/linux/swap.h), whose signature ends its
/// first page.
#[must_use]
pub fn swap(head: &[u8]) -> Option<String> {
    let pages = [4096_usize, 16 << 10, 64 << 10];
    let signed = |page: &usize| {
        let at = page.saturating_sub(10);
        matches!(Fields(head).bytes(at, 10), Some(b"SWAPSPACE2" | b"S1SUSPEND\0"))
    };
    pages.iter().find(|page| signed(page))?;
    Some(Uuid(Fields(head).bytes(1024 + 12, 16)?).to_string()) // info.sws_uuid
}

fn ext(head: &[u8]) -> Option<FileSystem> {
    let sb = Fields(head.get(EXT_SUPER..)?);
    (sb.u16(0x38)? == 0xef53).then_some(())?; // s_magic
    // EXT4_FEATURE_INCOMPAT_JOURNAL_DEV of s_feature_incompat: the journal of another device's.
    (sb.u32(0x60)? & 0x8 == 0).then_some(())?;
    Some(FileSystem {
        kind: FsType::Ext4,
        label: sb.text(0x78, 16)?,                   // s_volume_name
        uuid: Uuid(sb.bytes(0x68, 16)?).to_string(), // s_uuid
    })
}

fn xfs(head: &[u8]) -> Option<FileSystem> {
    let sb = Fields(head); // struct xfs_dsb, fs/xfs/libxfs/xfs_format.h
    (sb.u32_be(0)? == 0x5846_5342).then_some(())?; // sb_magicnum "XFSB"
    Some(FileSystem {
        kind: FsType::Xfs,
        label: sb.text(108, 12)?,                  // sb_fname
        uuid: Uuid(sb.bytes(32, 16)?).to_string(), // sb_uuid
    })
}

fn btrfs(head: &[u8]) -> Option<FileSystem> {
    let sb = Fields(head.get(BTRFS_SUPER..)?);
    (sb.bytes(64, 8)? == b"_BHRfS_M").then_some(())?; // magic
    Some(FileSystem {
        kind: FsType::Btrfs,
        label: sb.text(299, 256)?,                 // label
        uuid: Uuid(sb.bytes(32, 16)?).to_string(), // fsid
    })
}

fn vfat(head: &[u8]) -> Option<FileSystem> {
    let bs = Fields(head); // struct fat_boot_sector, include/uapi/linux/msdos_fs.h
    let sector = bs.u16(11)?;
    let plausible = bs.u16(510)? == 0xaa55
        && matches!(sector, 512 | 1024 | 2048 | 4096)
        && bs.u8(13)?.is_power_of_two() // sec_per_clus
        && matches!(bs.u8(16)?, 1 | 2); // fats
    plausible.then_some(())?;
    let fat32 = bs.u16(22)? == 0; // fat_length
    let (kind_at, volume_at, label_at) = if fat32 { (82, 67, 71) } else { (54, 39, 43) };
    bs.bytes(kind_at, 3).filter(|kind| kind == b"FAT")?;
    let serial = bs.u32(volume_at)?;
    let label = bs.text(label_at, 11)?;
    let label = label.trim_end();
    Some(FileSystem {
        kind: FsType::Vfat,
        label: if label == "NO NAME" { String::new() } else { label.to_owned() },
        uuid: format!("{:04x}-{:04x}", serial >> 16, serial & 0xffff),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(fields: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; PROBE_LEN];
        for (at, value) in fields {
            bytes[*at..at + value.len()].copy_from_slice(value);
        }
        bytes
    }

    const UUID: &[u8] = &[0xfa, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    const TEXT: &str = "fa010203-0405-0607-0809-0a0b0c0d0e0f";

    #[test]
    fn knows_the_four() {
        let cases = [
            (
                FsType::Ext4,
                image(&[(1024 + 0x38, b"\x53\xef"), (1024 + 0x68, UUID), (1024 + 0x78, b"dump")]),
                TEXT,
            ),
            (FsType::Xfs, image(&[(0, b"XFSB"), (32, UUID), (108, b"dump")]), TEXT),
            (
                FsType::Btrfs,
                image(&[(65536 + 64, b"_BHRfS_M"), (65536 + 32, UUID), (65536 + 299, b"dump")]),
                TEXT,
            ),
            (
                FsType::Vfat,
                image(&[
                    (11, b"\x00\x02\x04"),
                    (16, b"\x02"),
                    (67, b"\x78\x56\x34\x12"),
                    (71, b"dump       FAT32   "),
                    (510, b"\x55\xaa"),
                ]),
                "1234-5678",
            ),
        ];
        for (kind, bytes, uuid) in cases {
            let expected = FileSystem { kind, label: "dump".into(), uuid: uuid.into() };
            assert_eq!(probe(&bytes), Some(expected), "{}", kind.name());
            for cut in [0, 100, 511, 1100, 65_600] {
                let _ = probe(&bytes[..cut]); // total on any prefix
            }
        }
    }

    #[test]
    fn what_is_not_ours_is_named() {
        let cases = [
            (image(&[(4086, b"SWAPSPACE2"), (1036, UUID)]), "swap", TEXT),
            (image(&[(65526, b"SWAPSPACE2"), (1036, UUID)]), "swap", TEXT),
            (image(&[(0, b"LUKS\xba\xbe"), (168, TEXT.to_uppercase().as_bytes())]), "LUKS", TEXT),
            (image(&[(512, b"LABELONE")]), "an LVM2 physical volume", ""),
            (image(&[(4096, b"\xfc\x4e\x2b\xa9")]), "an MD RAID member", ""),
            (image(&[(510, b"\x55\xaa")]), "a partition table or boot sector", ""),
            (image(&[(0, b"XFSB"), (32, UUID)]), "xfs", TEXT),
        ];
        for (bytes, what, uuid) in cases {
            assert_eq!(foreign(&bytes), Some(Foreign { what, uuid: uuid.into() }));
            for cut in [0, 511, 4090, 65_530] {
                let _ = foreign(&bytes[..cut]); // total on any prefix
            }
        }
        assert_eq!(foreign(&image(&[])), None);
    }

    #[test]
    fn a_boot_sector_without_fat_is_none() {
        assert_eq!(probe(&image(&[(11, b"\x00\x02\x04"), (16, b"\x02"), (510, b"\x55\xaa")])), None);
        assert_eq!(probe(&vec![0; PROBE_LEN]), None);
    }
}
