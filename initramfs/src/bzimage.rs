//! The few fields of an x86 kernel image that loading it needs (Documentation/arch/x86/boot.rst).

use capture::format::fields::Fields;

/// What a bzImage's setup header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BzImage {
    /// Kernel release, the first word of its version text.
    pub release: String,
    /// Bytes of memory that the kernel needs to start.
    pub init_size: u64,
}

/// Reads the setup header; `None` if the file is no bzImage of boot protocol 2.10 or later.
#[must_use]
pub fn parse(image: &[u8]) -> Option<BzImage> {
    let f = Fields(image);
    f.bytes(0x202, 4).filter(|magic| magic == b"HdrS")?;
    (f.u16(0x206)? >= 0x020a).then_some(())?; // version: init_size exists
    let text_at = usize::from(f.u16(0x20e)?).checked_add(0x200)?; // kernel_version
    let text = f.text(text_at, 256)?;
    let release = text.split_ascii_whitespace().next()?.to_owned();
    Some(BzImage { release, init_size: u64::from(f.u32(0x260)?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_release_and_size() {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
        image[0x20e..0x210].copy_from_slice(&[0x00, 0x01]);
        image[0x300..0x30c].copy_from_slice(b"6.1.0-56 (x)");
        image[0x260..0x264].copy_from_slice(&[0, 0, 0, 4]);
        assert_eq!(parse(&image), Some(BzImage { release: "6.1.0-56".into(), init_size: 0x0400_0000 }));
        for cut in [0, 0x205, 0x262, 0x300] {
            assert_eq!(parse(&image[..cut]), None, "{cut:#x}");
        }
    }
}
