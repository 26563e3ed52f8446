//! Files of other programs that people take for a dump of memory, by their first bytes.

/// Bytes that signatures are looked for in.
pub(super) const HEAD: usize = 8192;

/// What a file is, and what can be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Foreign {
    pub(super) what: &'static str,
    pub(super) remedy: &'static str,
}

const UNPACK: &str = "unpack it first";
/// First bytes, what they are, and the remedy.
const KNOWN: [(&[u8], &str, &str); 21] = [
    (b"AVML\x02", "compressed AVML memory", "make LiME of it with `avml-convert IN OUT`, which is read"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it first, with `gzip -dk`"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it first, with `zstd -dk`"),
    (b"\xfd7zXZ\0", "compressed by xz", "unpack it first, with `xz -dk`"),
    (b"BZh", "compressed by bzip2", "unpack it first, with `bzip2 -dk`"),
    (b"\x04\x22\x4d\x18", "compressed by lz4", "unpack it first, with `lz4 -dk`"),
    (b"\x89LZO\0", "compressed by lzop", "unpack it first, with `lzop -d`"),
    (b"\xff\x06\0\0sNaPpY", "compressed by snappy", UNPACK),
    (b"PK\x03\x04", "a ZIP archive", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (
        b"LibvirtQemudSave",
        "a guest that libvirt has saved",
        "take the memory with `virsh dump --memory-only --format elf`, which is read",
    ),
    (
        b"LibvirtQemudPart",
        "a guest that libvirt has not saved to the end",
        "take the memory with `virsh dump --memory-only --format elf`, which is read",
    ),
    (
        b"QEVM",
        "a QEMU guest's migration or saved state",
        "take the memory with `dump-guest-memory` of QEMU's monitor, which is read",
    ),
    (
        b"QFI\xfb",
        "a qcow2 disk image",
        "it has a disk, not memory; with `virsh dump --memory-only` memory is had",
    ),
    (b"DISKDUMP", "a diskdump of a kernel before 2.6.20", "open it with crash"),
    (b"PAGEDU64", "a crash dump of Windows", "volatility3 reads it"),
    (b"PAGEDUMP", "a crash dump of Windows", "volatility3 reads it"),
    (
        b"\xd2\xbe\xd2\xbe",
        "a snapshot of a VMware guest",
        "make an ELF core of it with `vmss2core -N`, which is read",
    ),
    (
        b"\xd0\xbe\xd2\xbe",
        "a snapshot of a VMware guest",
        "make an ELF core of it with `vmss2core -N`, which is read",
    ),
    (
        b"EVF\x09\x0d\x0a\xff\0",
        "an EWF (EnCase) image",
        "mount it with `ewfmount`, and name the file in there",
    ),
    (b"!<arch>\n", "an archive, such as a .deb", UNPACK),
];

/// Offset of the signature of a tar (POSIX ustar).
const TAR_AT: usize = 257;

/// What the file is that begins with `head`, if it is of another program.
pub(super) fn foreign(head: &[u8]) -> Option<Foreign> {
    let known = KNOWN.iter().find(|(signature, _, _)| head.starts_with(signature));
    let is_tar = head.get(TAR_AT..).is_some_and(|bytes| bytes.starts_with(b"ustar"));
    let tar = || is_tar.then_some(Foreign { what: "a tar archive", remedy: UNPACK });
    known.map(|&(_, what, remedy)| Foreign { what, remedy }).or_else(tar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_others_are_named_with_a_remedy() {
        for (signature, what, _) in KNOWN {
            let mut head = signature.to_vec();
            head.resize(HEAD, 0x5a);
            let found = foreign(&head).unwrap();
            assert_eq!((found.what, found.remedy.is_empty()), (what, false));
        }
        let mut tar = vec![b'a'; 512];
        tar[TAR_AT..TAR_AT + 5].copy_from_slice(b"ustar");
        assert_eq!(foreign(&tar).unwrap().what, "a tar archive");
        for ours in [&b"\x7fELF"[..], b"KDUMP   ", b"makedumpfile\0\0\0\0", b"EMiL", b""] {
            assert_eq!(foreign(ours), None);
        }
    }
}
