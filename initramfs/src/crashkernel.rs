//! Whether the crash kernel reservation is large enough for an image.

/// What the kernel and our process need beside the kernel's own start memory and the image: measured floors of
/// 6.1 and 6.12 with virtio and ext4 lie 10 to 20 MiB above that, drivers of real hardware want more.
const HEADROOM: u64 = 32 << 20;

/// Bytes of memory that an image needs in the reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Without this the kernel cannot even unpack the image.
    pub minimum: u64,
    /// With this a capture is expected to work.
    pub recommended: u64,
}

/// The need of a kernel with this `init_size` and an image of these sizes, all in bytes.
#[must_use]
pub fn need(init_size: u64, packed: u64, unpacked: u64) -> Need {
    let minimum = init_size.saturating_add(packed).saturating_add(unpacked);
    Need { minimum, recommended: minimum.saturating_add(HEADROOM) }
}

/// Bytes as whole MiB, rounded up.
#[must_use]
pub fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_megabyte_of_image_counts_twice() {
        let base = need(60 << 20, 0, 0);
        assert_eq!(base, Need { minimum: 60 << 20, recommended: 92 << 20 });
        assert_eq!(need(60 << 20, 1 << 20, 1 << 20).recommended - base.recommended, 2 << 20);
        assert_eq!(mib(1), 1);
    }
}
