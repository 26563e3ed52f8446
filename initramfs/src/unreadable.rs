//! Kernels whose own symbols or types cannot be had: why, what works all the same, and what can be
//! done.

use base::text;
use symbols::debuginfo::DebuginfoError;
use vmcore::format::vmcoreinfo::VmcoreInfo;

/// Why nothing is made of a kernel's own symbols and types, and the way around it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(String);

impl Unreadable {
    pub(crate) fn new(cause: &DebuginfoError, info: &VmcoreInfo) -> Self {
        let get = |key: &str| info.get(key).map(text::line);
        let kernel =
            get("OSRELEASE").map_or_else(|| "this kernel".to_owned(), |release| format!("kernel {release}"));
        let id = get("BUILD-ID").map(|id| format!(" (build id {id})")).unwrap_or_default();
        Self(format!(
            "{}. The commands dmesg, inspect and dump of afterimage need no symbols and work all the same; crash and drgn \
             work with the vmlinux of the distribution's debug package for {kernel}{id}: `crash VMLINUX DUMP`, \
             `drgn -c DUMP -s VMLINUX`",
            base::log::chain(cause)
        ))
    }
}

#[cfg(test)]
mod tests {
    use symbols::btf::BtfError;
    use symbols::kallsyms::KallsymsError;

    use super::*;

    fn of(cause: impl Into<DebuginfoError>, info: &str) -> String {
        Unreadable::new(&cause.into(), &VmcoreInfo::parse(info.as_bytes())).to_string()
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
