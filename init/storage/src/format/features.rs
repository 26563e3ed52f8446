//! What a file system needs beside its device and its own module, as its superblock says: further
//! devices, modules that the kernel asks for while it mounts, and what cannot be had.

use base::config::FsType;
use base::fields::{Fields, Uuid};

const EXT_SUPER: usize = 1024; // ext4_super_block, fs/ext4/ext4.h
const BTRFS_SUPER: usize = 64 * 1024; // btrfs_super_block, include/uapi/linux/btrfs_tree.h

const HAS_JOURNAL: u32 = 0x4; // compat
const JOURNAL_DEV: u32 = 0x8; // incompat
const CASEFOLD: u32 = 0x2_0000; // incompat
const QUOTA: u32 = 0x100; // ro_compat
const READONLY: u32 = 0x1000; // ro_compat
const SHARED_BLOCKS: u32 = 0x4000; // ro_compat
const PROJECT: u32 = 0x2000; // ro_compat
/// `BTRFS_SUPER_FLAG_SEEDING`.
const SEEDING: u64 = 1 << 32;

/// What a file system needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// btrfs: how many devices it is on, and which of them this is.
    pub member: Option<Member>,
    /// ext4: UUID of the device that holds the journal.
    pub journal: Option<String>,
    /// Modules that the kernel asks for, or aliases of them; it does without one that is built in.
    pub modules: Vec<&'static str>,
    /// Why no capture can be written there, for people; nothing if one can.
    pub obstacle: Option<&'static str>,
}

/// A device of a btrfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// UUID of this device in its file system, in lower case.
    pub id: String,
    /// Devices of the file system, this one included.
    pub count: u64,
}

/// Reads what the file system whose device starts with `head` needs. Of a damaged superblock nothing
/// is known, which is no need.
#[must_use]
pub fn needs(kind: FsType, head: &[u8]) -> Needs {
    match kind {
        FsType::Ext4 => ext(head),
        FsType::Xfs => xfs(head),
        FsType::Btrfs => btrfs(head),
        FsType::Vfat => Some(Needs::default()),
    }
    .unwrap_or_default()
}

/// The UUID of an ext4 journal that has the whole device.
#[must_use]
pub fn journal(head: &[u8]) -> Option<String> {
    let sb = Fields(head.get(EXT_SUPER..)?);
    let is_journal = sb.u16(0x38)? == 0xef53 && sb.u32(0x60)? & JOURNAL_DEV != 0;
    is_journal.then_some(Uuid(sb.bytes(0x68, 16)?).to_string())
}

fn ext(head: &[u8]) -> Option<Needs> {
    let sb = Fields(head.get(EXT_SUPER..)?);
    // S_feature_compat, s_feature_incompat, s_feature_ro_compat.
    let (compat, incompat, ro) = (sb.u32(0x5c)?, sb.u32(0x60)?, sb.u32(0x64)?);
    let mut modules = Vec::new();
    // Options that tune2fs -E mount_opts= stored: an old format of quotas, by usrjquota= and jqfmt=.
    let options = sb.text(0x200, 64)?; // s_mount_opts
    if ro & (QUOTA | PROJECT) != 0 || options.contains("quota") || options.contains("jqfmt") {
        // INIT_QUOTA_MODULE_NAMES, include/uapi/linux/quota.h.
        modules.extend(["quota_v2", "quota_tree", "quota_v1"]);
    }
    if incompat & CASEFOLD != 0 {
        modules.extend(["utf8data", "unicode"]); // utf8_load(), fs/unicode/utf8-core.c
    }
    // S_journal_inum and s_journal_uuid.
    let is_external = compat & HAS_JOURNAL != 0 && sb.u32(0xe0)? == 0;
    let journal = is_external.then_some(Uuid(sb.bytes(0xd0, 16)?).to_string());
    let obstacle = if ro & (READONLY | SHARED_BLOCKS) != 0 {
        Some("it is marked as read-only by one of its features (read-only, shared_blocks)")
    } else {
        None
    };
    Some(Needs { member: None, journal, modules, obstacle })
}

fn xfs(head: &[u8]) -> Option<Needs> {
    let sb = Fields(head); // struct xfs_dsb, fs/xfs/libxfs/xfs_format.h
    let (realtime, log) = (sb.u64_be(16)?, sb.u64_be(48)?); // sb_rblocks, sb_logstart
    let obstacle = match (realtime, log) {
        // Nothing on the other device says what it belongs to.
        (_, 0) => Some("its log is on another device, which the capture kernel cannot find"),
        (0, _) => None,
        _ => Some("it has a realtime device, which the capture kernel cannot find"),
    };
    Some(Needs { obstacle, ..Needs::default() })
}

fn btrfs(head: &[u8]) -> Option<Needs> {
    let sb = Fields(head.get(BTRFS_SUPER..)?);
    let id = Uuid(sb.bytes(267, 16)?).to_string(); // dev_item.uuid
    let member = Some(Member { id, count: sb.u64(136)? }); // num_devices
    // Btrfs_csum_type: the module's soft dependencies name these too, where depmod writes them down.
    let modules = match sb.u16(196)? {
        1 => vec!["crypto-xxhash64", "xxhash64"],
        2 => vec!["crypto-sha256", "sha256"],
        3 => vec!["crypto-blake2b-256", "blake2b-256"],
        _ => Vec::new(),
    };
    let is_seed = sb.u64(56)? & SEEDING != 0; // flags
    let obstacle = is_seed.then_some("it is a seed of other btrfs file systems, and read-only");
    Some(Needs { member, journal: None, modules, obstacle })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(edits: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; BTRFS_SUPER + 4096];
        for (at, bytes) in edits {
            head[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    fn ext4(edits: &[(usize, &[u8])]) -> Needs {
        let inside: Vec<(usize, &[u8])> = edits.iter().map(|(at, bytes)| (EXT_SUPER + at, *bytes)).collect();
        needs(FsType::Ext4, &with(&inside))
    }

    #[test]
    fn quotas_of_every_kind_need_their_format() {
        let plain = ext4(&[(0x5c, &[4]), (0xe0, &[8])]);
        assert_eq!(plain, Needs::default());
        let quota: &[u8] = &QUOTA.to_le_bytes();
        let project: &[u8] = &PROJECT.to_le_bytes();
        for edit in [(0x64, quota), (0x64, project), (0x200, b"usrjquota=aquota.user,jqfmt=vfsold")] {
            let found = ext4(&[edit]).modules;
            assert!(found.contains(&"quota_v2") && found.contains(&"quota_v1"), "{edit:?}: {found:?}");
        }
    }

    #[test]
    fn names_without_case_need_the_tables() {
        assert_eq!(ext4(&[(0x60, &CASEFOLD.to_le_bytes())]).modules, ["utf8data", "unicode"]);
    }

    #[test]
    fn a_journal_elsewhere_is_named_and_is_no_file_system() {
        let uuid = *b"0123456789abcdef";
        let text = Uuid(&uuid).to_string();
        assert_eq!(ext4(&[(0x5c, &[4]), (0xd0, &uuid)]).journal, Some(text.clone()));
        let head = with(&[
            (EXT_SUPER + 0x38, &0xef53_u16.to_le_bytes()),
            (EXT_SUPER + 0x60, &[8]),
            (EXT_SUPER + 0x68, &uuid),
        ]);
        assert_eq!(journal(&head), Some(text));
        assert_eq!(crate::format::superblock::probe(&head), None);
        assert_eq!(journal(&with(&[])), None);
    }

    #[test]
    fn what_cannot_be_written_says_why() {
        assert!(ext4(&[(0x64, &READONLY.to_le_bytes())]).obstacle.unwrap().contains("read-only"));
        assert!(ext4(&[(0x64, &SHARED_BLOCKS.to_le_bytes())]).obstacle.is_some());
        let xfs = |edits| needs(FsType::Xfs, &with(edits)).obstacle;
        assert!(xfs(&[]).unwrap().contains("log"));
        assert_eq!(xfs(&[(55, &[4])]), None);
        assert!(xfs(&[(55, &[4]), (23, &[4])]).unwrap().contains("realtime"));
        let seed = needs(FsType::Btrfs, &with(&[(BTRFS_SUPER + 56, &SEEDING.to_le_bytes())]));
        assert!(seed.obstacle.unwrap().contains("seed"));
    }

    #[test]
    fn a_btrfs_says_on_how_many_devices_it_is_and_what_it_is_summed_with() {
        for (kind, wanted) in
            [(0_u8, None), (1, Some("xxhash64")), (2, Some("sha256")), (3, Some("blake2b-256"))]
        {
            let head = with(&[
                (BTRFS_SUPER + 136, &[2]),
                (BTRFS_SUPER + 196, &[kind]),
                (BTRFS_SUPER + 267, b"0123456789abcdef"),
            ]);
            let found = needs(FsType::Btrfs, &head);
            assert_eq!(found.member.map(|member| member.count), Some(2));
            assert_eq!(found.modules.last().copied(), wanted);
        }
    }

    #[test]
    fn a_cut_superblock_needs_nothing() {
        for kind in [FsType::Ext4, FsType::Xfs, FsType::Btrfs, FsType::Vfat] {
            for cut in [0, 20, 1025, 1500, BTRFS_SUPER + 150] {
                assert_eq!(needs(kind, &with(&[])[..cut.min(BTRFS_SUPER)]).member, None);
            }
        }
    }
}
