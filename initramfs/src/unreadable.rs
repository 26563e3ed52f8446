//! Kernels whose own symbols or types cannot be had: why, what works all the same, and what can be
//! done.

use core::fmt::{self, Display, Formatter};

use base::text;
use symbols::debuginfo::DebuginfoError;
use vmcore::format::vmcoreinfo::VmcoreInfo;

/// Why nothing is made of a kernel's own symbols and types, and the way around it.
#[derive(Debug)]
pub struct Unreadable {
    cause: DebuginfoError,
    /// `OSRELEASE` and `BUILD-ID`.
    release: Option<String>,
    build_id: Option<String>,
}

impl Unreadable {
    pub(crate) fn new(cause: DebuginfoError, info: &VmcoreInfo) -> Self {
        let get = |key: &str| info.get(key).map(text::line);
        Self { cause, release: get("OSRELEASE"), build_id: get("BUILD-ID") }
    }
}

impl Display for Unreadable {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { cause, release, build_id } = self;
        write!(
            f,
            "{}. The commands dmesg, inspect and dump of afterimage need no symbols and work all the same; crash and drgn \
             work with the vmlinux of the distribution's debug package for ",
            base::log::chain(cause)
        )?;
        match release {
            Some(release) => write!(f, "kernel {release}")?,
            None => f.write_str("this kernel")?,
        }
        if let Some(id) = build_id {
            write!(f, " (build id {id})")?;
        }
        f.write_str(": `crash VMLINUX DUMP`, `drgn -c DUMP -s VMLINUX`")
    }
}

impl core::error::Error for Unreadable {}

#[cfg(test)]
mod tests {
    use symbols::btf::BtfError;
    use symbols::kallsyms::KallsymsError;

    use super::*;

    fn of(cause: impl Into<DebuginfoError>, info: &str) -> String {
        Unreadable::new(cause.into(), &VmcoreInfo::parse(info.as_bytes())).to_string()
    }

    #[test]
    fn reason_remedy_and_what_still_works_are_said() {
        let info = "OSRELEASE=6.1.0-57\nBUILD-ID=5a5a\n";
        let damaged = BtfError::Header { what: "the magic number", value: 0 };
        for (text, reason) in [
            (of(damaged, info), "(BTF) is damaged: the magic number is 0x0. The"),
            (of(BtfError::NoBtf, info), "CONFIG_DEBUG_INFO_BTF"),
            (of(KallsymsError::NotFound, info), "CONFIG_KALLSYMS"),
            (of(DebuginfoError::NoVariables, info), "CONFIG_KALLSYMS_ALL"),
            (of(DebuginfoError::NoInitTask, info), "no init_task"),
        ] {
            for expected in [
                reason,
                "dmesg, inspect and dump",
                "debug package for kernel 6.1.0-57 (build id 5a5a): `crash VMLINUX DUMP`",
            ] {
                assert!(text.contains(expected), "{text}");
            }
        }
    }

    #[test]
    fn what_is_not_known_is_not_named() {
        let text = of(BtfError::NoBtf, "");
        assert!(text.contains("debug package for this kernel: `crash"), "{text}");
        let text = of(BtfError::NoBtf, "OSRELEASE=6.1\u{1b}[2J\n");
        assert!(text.contains("for kernel 6.1\\u{1b}[2J: `crash"), "{text}");
    }
}
