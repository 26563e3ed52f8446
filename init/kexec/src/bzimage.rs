//! An x86 kernel image (Documentation/arch/x86/boot.rst): what its setup header says, and whether
//! the file is whole.

use std::ops::Range;

use sha2::{Digest, Sha256};

use base::addr::{to_u64, to_usize};
use base::fields::Fields;

/// Where the setup header begins, in the file and in `boot_params`.
pub const SETUP_HEADER: usize = 0x1f1;
/// Bytes at the beginning of a file that hold all that [`BzImage::parse`] reads: 64 sectors of
/// setup and the version's text.
pub const HEAD_LEN: usize = 64 << 10;
/// Offset of the 64-bit entry in the kernel.
pub const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;
/// `setup_sects` when the field is 0.
const OLD_SETUP_SECTORS: u8 = 4;
/// boot.rst: `xloadflags` exist from 2.12 on (Linux 3.8).
const LEAST_PROTOCOL: u16 = 0x020c;
const XLF_KERNEL_64: u16 = 1;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 2;
/// A kernel that cannot be aligned to more than this makes no sense.
const MOST_ALIGNMENT: u64 = 1 << 30;

/// What a kernel image's setup header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BzImage {
    /// Kernel release, the first word of its version text.
    pub release: String,
    /// Bytes of memory that the kernel needs to start (`init_size`).
    pub init_size: u64,
    /// Alignment of the kernel's address, a power of two (`kernel_alignment`).
    pub alignment: u64,
    /// Whether it may lie above 4 GiB.
    pub above_4g: bool,
    /// Longest command line that it takes, bytes without the NUL.
    pub cmdline_size: u64,
    /// The setup header as the file has it, from 0x1f1 on.
    pub setup_header: Vec<u8>,
    /// Where in the file the kernel begins, behind the setup sectors.
    pub kernel_at: u64,
    /// Where it ends by its own account (`syssize`).
    pub kernel_end: u64,
}

/// Why a file is not a kernel that can be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BzImageError {
    /// Something else.
    #[error("not an x86 bzImage")]
    NotABzImage,
    /// From another time.
    #[error("boot protocol {}.{:02}, at least 2.12 is needed", .0 >> 8, .0 & 0xff)]
    Protocol(u16),
    /// For another processor.
    #[error("no 64-bit kernel (xloadflags {0:#x})")]
    Not64Bit(u16),
    /// Fields that cannot be.
    #[error("the setup header makes no sense: {field} is {value:#x}")]
    Field {
        /// Which.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// Cut short.
    #[error("the file ends early: it has {have} of {need} bytes")]
    Truncated {
        /// Its length.
        have: u64,
        /// What its header says.
        need: u64,
    },
    /// Bits are not what they were.
    #[error("the file is damaged: its {0} is wrong")]
    Damaged(&'static str),
}

impl BzImage {
    /// Reads the setup header from the beginning of a file ([`HEAD_LEN`] bytes of it) that is
    /// `file_len` bytes long.
    pub fn parse(head: &[u8], file_len: u64) -> Result<Self, BzImageError> {
        let f = Fields(head);
        let short = || BzImageError::Truncated { have: file_len, need: to_u64(HEAD_LEN) };
        f.bytes(0x202, 4).filter(|magic| magic == b"HdrS").ok_or(BzImageError::NotABzImage)?;
        let protocol = f.u16(0x206).ok_or_else(short)?;
        if protocol < LEAST_PROTOCOL {
            return Err(BzImageError::Protocol(protocol));
        }
        let flags = f.u16(0x236).ok_or_else(short)?;
        if flags & XLF_KERNEL_64 == 0 {
            return Err(BzImageError::Not64Bit(flags));
        }
        let field = |field, value| BzImageError::Field { field, value };
        let alignment = u64::from(f.u32(0x230).ok_or_else(short)?);
        if !(0x1000..=MOST_ALIGNMENT).contains(&alignment) || !alignment.is_power_of_two() {
            return Err(field("kernel_alignment", alignment));
        }
        let init_size = u64::from(f.u32(0x260).ok_or_else(short)?);
        let sectors =
            f.u8(SETUP_HEADER).map(|n| if n == 0 { OLD_SETUP_SECTORS } else { n }).ok_or_else(short)?;
        let kernel_at = u64::from(sectors).saturating_add(1).saturating_mul(SECTOR);
        let syssize = u64::from(f.u32(0x1f4).ok_or_else(short)?).saturating_mul(16);
        let kernel_end = kernel_at.saturating_add(syssize);
        if file_len < kernel_end || syssize == 0 {
            return Err(BzImageError::Truncated { have: file_len, need: kernel_end });
        }
        if init_size < file_len.saturating_sub(kernel_at) {
            return Err(field("init_size", init_size));
        }
        // The byte at 0x201 is the operand of a short jump over the header: 0x202 plus it is where
        // the header ends.
        let header_end = usize::from(f.u8(0x201).ok_or_else(short)?).saturating_add(0x202);
        let setup_header = head.get(SETUP_HEADER..header_end).filter(|bytes| bytes.len() >= 0x73);
        let setup_header = setup_header.ok_or_else(|| field("jump", to_u64(header_end)))?.to_vec();
        let text_at = usize::from(f.u16(0x20e).ok_or_else(short)?).saturating_add(0x200); // kernel_version
        let text = f.text(text_at, 256).unwrap_or_default();
        let release = text.split_ascii_whitespace().next().ok_or(field("kernel_version", to_u64(text_at)))?;
        Ok(Self {
            release: release.to_owned(),
            init_size,
            alignment,
            above_4g: flags & XLF_CAN_BE_LOADED_ABOVE_4G != 0,
            cmdline_size: u64::from(f.u32(0x238).unwrap_or(0)),
            setup_header,
            kernel_at,
            kernel_end,
        })
    }

    /// Parses a whole file and checks its checksums. A kernel without any (6.16 and later, not
    /// signed) cannot be checked.
    pub fn parse_whole(file: &[u8]) -> Result<Self, BzImageError> {
        let image = Self::parse(file.get(..HEAD_LEN).unwrap_or(file), to_u64(file.len()))?;
        let pe = Pe::parse(file);
        image.check_crc(file, pe.as_ref())?;
        pe.map_or(Ok(()), |pe| pe.check(file))?;
        Ok(image)
    }

    /// The kernel in a whole file.
    #[must_use]
    pub fn kernel<'a>(&self, file: &'a [u8]) -> &'a [u8] {
        file.get(to_usize(self.kernel_at)..).unwrap_or_default()
    }

    /// The CRC-32 that the kernel's build appends so that the CRC of all is 0 (boot.rst, "The Image
    /// Checksum"; since "x86/boot: Drop CRC-32 checksum and the build tool that generates it",
    /// v6.16, there is padding in its place). Signing comes later and changes fields of the PE
    /// header, which were 0.
    fn check_crc(&self, file: &[u8], pe: Option<&Pe>) -> Result<(), BzImageError> {
        let whole = file.get(..to_usize(self.kernel_end)).unwrap_or_default();
        if whole.ends_with(&[0; 4]) {
            return Ok(());
        }
        let mut crc = crc32fast::Hasher::new();
        let mut at = 0;
        for field in pe.map(|pe| pe.signed_later.as_slice()).unwrap_or_default() {
            crc.update(whole.get(at..field.start).unwrap_or_default());
            crc.update(&vec![0; field.len()]);
            at = field.end;
        }
        crc.update(whole.get(at..).unwrap_or_default());
        if !crc.finalize() == 0 { Ok(()) } else { Err(BzImageError::Damaged("CRC")) }
    }
}

/// What signing for Secure Boot leaves in the file's PE header and behind its end (Microsoft,
/// "Windows Authenticode Portable Executable Signature Format").
#[derive(Debug)]
struct Pe {
    /// Fields that signing fills in: the checksum, and the directory entry of the certificates.
    signed_later: [Range<usize>; 2],
    /// Where the certificates lie; empty in a file that is not signed.
    certificates: Range<usize>,
}

impl Pe {
    fn parse(file: &[u8]) -> Option<Self> {
        let f = Fields(file);
        let pe = usize::try_from(f.u32(0x3c)?).ok()?;
        f.bytes(pe, 4).filter(|magic| magic == b"PE\0\0")?;
        let optional = pe.checked_add(24)?;
        (f.u16(optional)? == 0x20b).then_some(())?; // PE32+
        let checksum = optional.checked_add(64)?;
        let entry = optional.checked_add(0x90)?;
        let at = usize::try_from(f.u32(entry)?).ok()?;
        let len = usize::try_from(f.u32(entry.checked_add(4)?)?).ok()?;
        let signed_later = [checksum..checksum.checked_add(4)?, entry..entry.checked_add(8)?];
        Some(Self { signed_later, certificates: at..at.checked_add(len)? })
    }

    /// A signature states the SHA-256 of what is signed. Whether somebody trusts it is not asked
    /// here, only whether the file is still what was signed.
    fn check(&self, file: &[u8]) -> Result<(), BzImageError> {
        if self.certificates.is_empty() {
            return Ok(());
        }
        let certificates = file.get(self.certificates.clone());
        let certificates = certificates.ok_or_else(|| BzImageError::Truncated {
            have: to_u64(file.len()),
            need: to_u64(self.certificates.end),
        })?;
        let mut hash = Sha256::new();
        let mut at = 0;
        for left_out in &self.signed_later {
            hash.update(file.get(at..left_out.start).unwrap_or_default());
            at = left_out.end;
        }
        hash.update(file.get(at..self.certificates.start).unwrap_or_default());
        let digest = hash.finalize();
        let stated = certificates.windows(digest.len()).any(|window| window == digest.as_slice());
        if stated { Ok(()) } else { Err(BzImageError::Damaged("signed digest")) }
    }
}

#[cfg(any(test, feature = "testing"))]
pub mod testing {
    //! A made-up kernel for tests.

    #![expect(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::missing_panics_doc,
        reason = "for tests, which may panic"
    )]
    #![cfg_attr(not(test), expect(clippy::arithmetic_side_effects, reason = "likewise"))]

    /// An image of 0x800 bytes of setup and `kernel`, with a right CRC.
    #[must_use]
    pub fn bzimage(kernel: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 0x800];
        image[0x1f1] = 3;
        image[0x201] = 0x6a; // the header ends at 0x26c
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
        image[0x20e..0x210].copy_from_slice(&[0x00, 0x01]);
        image[0x230..0x234].copy_from_slice(&0x20_0000_u32.to_le_bytes());
        image[0x234] = 1;
        image[0x236..0x238].copy_from_slice(&3_u16.to_le_bytes());
        image[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
        image[0x260..0x264].copy_from_slice(&0x0400_0000_u32.to_le_bytes());
        image[0x300..0x30c].copy_from_slice(b"6.1.0-56 (x)");
        image.extend(kernel);
        image.resize((image.len() + 4).next_multiple_of(16) - 4, 0);
        let paragraphs = u32::try_from((image.len() + 4 - 0x800) / 16).unwrap();
        image[0x1f4..0x1f8].copy_from_slice(&paragraphs.to_le_bytes());
        let crc = !crc32fast::hash(&image);
        image.extend(crc.to_le_bytes());
        image
    }
}

#[cfg(test)]
mod tests {
    use super::testing::bzimage;
    use super::*;

    #[test]
    fn reads_what_loading_needs() {
        let file = bzimage(b"kernel");
        let image = BzImage::parse_whole(&file).unwrap();
        assert_eq!((image.release.as_str(), image.init_size), ("6.1.0-56", 0x0400_0000));
        assert_eq!((image.alignment, image.kernel_at, image.above_4g), (0x20_0000, 0x800, true));
        assert!(image.kernel(&file).starts_with(b"kernel"));
        assert_eq!(image.setup_header, file[0x1f1..0x26c]);
    }

    #[test]
    fn a_damaged_or_cut_file_is_refused() {
        let file = bzimage(&[7; 100]);
        for cut in [0, 0x205, 0x262, 0x801, file.len() - 1] {
            assert!(BzImage::parse_whole(&file[..cut]).is_err(), "{cut:#x}");
        }
        for at in [0x10, 0x310, 0x810] {
            let mut damaged = file.clone();
            damaged[at] ^= 1;
            assert_eq!(BzImage::parse_whole(&damaged), Err(BzImageError::Damaged("CRC")), "{at:#x}");
        }
        let mut odd = file.clone();
        odd[0x231] = 1;
        let error = BzImage::parse_whole(&odd).unwrap_err();
        assert_eq!(error.to_string(), "the setup header makes no sense: kernel_alignment is 0x200100");
        assert_eq!(BzImage::parse_whole(b"x"), Err(BzImageError::NotABzImage));
    }

    #[test]
    fn a_signed_file_is_held_to_its_signature() {
        let mut file = bzimage(&[7; 100]);
        file[0x3c..0x40].copy_from_slice(&0x40_u32.to_le_bytes());
        file[0x40..0x44].copy_from_slice(b"PE\0\0");
        file[0x58..0x5a].copy_from_slice(&0x20b_u16.to_le_bytes());
        let end = file.len();
        file.truncate(end - 4);
        let crc = !crc32fast::hash(&file);
        file.extend(crc.to_le_bytes());
        assert!(BzImage::parse_whole(&file).is_ok(), "a PE header without a signature");

        let pe = Pe::parse(&file).unwrap();
        let mut hash = Sha256::new();
        hash.update(&file[..pe.signed_later[0].start]);
        hash.update(&file[pe.signed_later[0].end..pe.signed_later[1].start]);
        hash.update(&file[pe.signed_later[1].end..]);
        let digest = hash.finalize();
        file[pe.signed_later[0].clone()].copy_from_slice(&[1, 2, 3, 4]);
        let entry = [u32::try_from(end).unwrap().to_le_bytes(), 40_u32.to_le_bytes()].concat();
        file[pe.signed_later[1].clone()].copy_from_slice(&entry);
        file.extend([&[9; 4], digest.as_slice(), &[9; 4]].concat());
        assert!(BzImage::parse_whole(&file).is_ok());
        let mut changed = file.clone();
        changed[end + 10] ^= 1;
        assert_eq!(BzImage::parse_whole(&changed), Err(BzImageError::Damaged("signed digest")));
        file.truncate(end + 20);
        assert!(matches!(BzImage::parse_whole(&file), Err(BzImageError::Truncated { .. })));
    }
}
