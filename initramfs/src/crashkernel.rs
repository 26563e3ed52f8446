//! Whether the crash kernel reservation is large enough for an image.

use std::path::Path;

/// What the kernel takes while it boots, beside its own start memory and the image. In guests of 2
/// GiB with virtio and ext4 it is at most 6 MiB (6.12), 10 MiB (6.1) and 19 MiB (7.2,
/// docs/measured/memory.md); what 7.2 takes more comes out of the headroom.
const BOOT: u64 = 12 << 20;
/// What is recommended beyond the peak, as a part of it: a quarter. Drivers of real hardware want
/// more than virtio's.
const HEADROOM: u64 = 4;

/// Bytes of memory that an image needs in the reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Without this the kernel cannot even unpack the image.
    pub minimum: u64,
    /// With this a capture is expected to work.
    pub recommended: u64,
}

impl Need {
    /// Where nothing is placed.
    pub const NONE: Self = Self { minimum: 0, recommended: 0 };
}

/// The need of a kernel with this `init_size` and an image of these sizes, all in bytes.
#[must_use]
pub fn need(init_size: u64, packed: u64, unpacked: u64) -> Need {
    let minimum = init_size.saturating_add(packed).saturating_add(unpacked);
    let peak = minimum.saturating_add(BOOT);
    Need { minimum, recommended: peak.saturating_add(peak / HEADROOM) }
}

/// Reservations are advised in steps of so many MiB: another target, hook or kernel is no reason for
/// another reboot then.
const STEP: u64 = 64;
/// And with at least so many MiB to spare.
const SPARE: u64 = 16;

/// The reservation to ask for, MiB, where `recommended` MiB are: one number for a configuration and
/// what is likely to become of it.
#[must_use]
pub fn advised(recommended: u64) -> u64 {
    recommended.saturating_add(SPARE).next_multiple_of(STEP)
}

/// What to do for a reservation that is large enough, where `recommended` MiB are: how much, why, and
/// in which file this distribution has it.
#[must_use]
pub fn reserve(recommended: u64) -> String {
    let advised = advised(recommended);
    format!(
        "set crashkernel={advised}M ({recommended} MiB for this kernel and image, rounded up so that a change \
         of the configuration needs no other) {} and reboot",
        set_where(advised, &|path| Path::new(path).exists())
    )
}

/// Where the kernel command line of the production kernel is set.
fn set_where(mib: u64, has: &dyn Fn(&str) -> bool) -> String {
    let in_path =
        |name: &str| ["/usr/sbin", "/sbin", "/usr/bin"].iter().any(|dir| has(&format!("{dir}/{name}")));
    match () {
        () if in_path("grubby") => format!("with `grubby --update-kernel=ALL --args=crashkernel={mib}M`"),
        () if has("/etc/default/grub") && in_path("update-grub") => {
            "in GRUB_CMDLINE_LINUX of /etc/default/grub, run `update-grub`".to_owned()
        }
        () if has("/etc/default/grub") => {
            "in GRUB_CMDLINE_LINUX of /etc/default/grub, run `grub2-mkconfig -o \
                                           /boot/grub2/grub.cfg`"
                .to_owned()
        }
        () if has("/etc/kernel/cmdline") => "in /etc/kernel/cmdline, run `kernel-install add-all`".to_owned(),
        () => "in the kernel's entry of the boot loader".to_owned(),
    }
}

/// Bytes of a reservation of `cma` kind (6.17), by the text of crash_cma_ranges. It is memory for the
/// capture kernel once that runs; the image has to fit in the other one.
#[must_use]
pub fn cma_bytes(ranges: &str) -> u64 {
    let bytes =
        placement::production::cma(ranges).into_iter().map(|range| range.end.saturating_sub(range.start));
    bytes.fold(0, u64::saturating_add)
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
    fn one_number_holds_for_what_becomes_of_a_configuration() {
        assert_eq!([90, 112].map(advised), [128, 128]);
        assert_eq!([113, 117, 118, 130].map(advised), [192; 4], "another target needs no other reboot");
        let with = |files: &'static [&str]| set_where(192, &|path| files.contains(&path));
        assert!(with(&["/usr/sbin/grubby", "/etc/default/grub"]).contains("--args=crashkernel=192M"));
        assert!(with(&["/etc/default/grub", "/usr/sbin/update-grub"]).contains("`update-grub`"));
        assert!(with(&["/etc/default/grub"]).contains("grub2-mkconfig"));
        assert!(with(&["/etc/kernel/cmdline"]).contains("kernel-install"));
        assert!(with(&[]).contains("boot loader"));
        assert!(reserve(117).starts_with("set crashkernel=192M (117 MiB"));
    }

    #[test]
    fn a_megabyte_of_image_counts_twice() {
        let base = need(60 << 20, 0, 0);
        assert_eq!(base, Need { minimum: 60 << 20, recommended: 90 << 20 });
        assert_eq!(need(60 << 20, 1 << 20, 1 << 20).minimum - base.minimum, 2 << 20);
        assert_eq!(mib(1), 1);
    }

    #[test]
    fn memory_of_users_counts_by_its_ranges() {
        assert_eq!(cma_bytes("100000000-107ffffff\n120000000-121ffffff\n"), 160 << 20);
        assert_eq!(cma_bytes(""), 0);
    }
}
