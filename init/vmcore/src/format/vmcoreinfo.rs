//! VMCOREINFO: what the production kernel tells about itself, as `KEY=value` lines
//! (kernel/vmcore_info.c, Documentation/admin-guide/kdump/vmcoreinfo.rst).
//!
//! A missing or unparsable key is `None`; nothing here decides by a kernel version.

use std::collections::BTreeMap;

use base::addr::{PageSize, VirtAddr};

/// Longest text that is read; the kernel's own limit is one page, a few in recent kernels.
pub const MAX_LEN: usize = 64 * 1024;

/// The keys and values of a VMCOREINFO note.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmcoreInfo {
    values: BTreeMap<String, String>,
}

impl VmcoreInfo {
    /// Parses the note's descriptor. Lines without `=` and bytes that are no UTF-8 are skipped; the
    /// last of several values wins (CRASHTIME is appended at the panic).
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        let bytes = bytes.get(..MAX_LEN).unwrap_or(bytes);
        let lines = bytes.split(|&b| b == b'\n' || b == 0);
        let values = lines
            .filter_map(|line| core::str::from_utf8(line).ok()?.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
            .collect();
        Self { values }
    }

    /// Whether there is no key at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The keys and values as text again.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.values.iter().flat_map(|(key, value)| [key.as_str(), "=", value, "\n"]).collect()
    }

    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Keys that `other` lacks or has another value for.
    #[must_use]
    pub fn differences(&self, other: &Self) -> usize {
        self.values.iter().filter(|(key, value)| other.values.get(*key) != Some(value)).count()
    }

    /// Takes one key over from `other`, if it is there.
    pub fn take_over(&mut self, other: &Self, key: &str) {
        self.values.extend(other.values.get(key).map(|value| (key.to_owned(), value.clone())));
    }

    /// The text of a bare key such as `OSRELEASE`, `BUILD-ID` or `CRASHTIME`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    /// `SYMBOL(name)`: an address, relocated (KASLR included).
    #[must_use]
    pub fn symbol(&self, name: &str) -> Option<VirtAddr> {
        let text = self.get(&format!("SYMBOL({name})"))?;
        u64::from_str_radix(text, 16).ok().map(VirtAddr)
    }

    /// All `SYMBOL(name)`, by name.
    pub fn symbols(&self) -> impl Iterator<Item = (&str, VirtAddr)> {
        self.values.iter().filter_map(|(key, value)| {
            let name = key.strip_prefix("SYMBOL(")?.strip_suffix(')')?;
            Some((name, VirtAddr(u64::from_str_radix(value, 16).ok()?)))
        })
    }

    /// `OFFSET(struct.member)`, in bytes.
    #[must_use]
    pub fn offset(&self, name: &str) -> Option<u64> {
        self.get(&format!("OFFSET({name})"))?.parse().ok()
    }

    /// `SIZE(name)`, in bytes.
    #[must_use]
    pub fn size(&self, name: &str) -> Option<u64> {
        self.get(&format!("SIZE({name})"))?.parse().ok()
    }

    /// `LENGTH(name)`: elements of an array.
    #[must_use]
    pub fn length(&self, name: &str) -> Option<u64> {
        self.get(&format!("LENGTH({name})"))?.parse().ok()
    }

    /// `NUMBER(name)`: printed by the kernel as `%ld`, `%lx` with `0x`, or `%lu`.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<i64> {
        let text = self.get(&format!("NUMBER({name})"))?;
        match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok().map(u64::cast_signed),
            None => text.parse().ok().or_else(|| text.parse().ok().map(u64::cast_signed)),
        }
    }

    /// `PAGESIZE`.
    #[must_use]
    pub fn page_size(&self) -> Option<PageSize> {
        PageSize::from_bytes(self.get("PAGESIZE")?.parse().ok()?)
    }

    /// `CRASHTIME`, in seconds since 1970; only written by a panic.
    #[must_use]
    pub fn crash_time(&self) -> Option<u64> {
        self.get("CRASHTIME")?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_spellings() {
        let info = VmcoreInfo::parse(
            b"OSRELEASE=6.1.0-56-cloud-amd64\nPAGESIZE=4096\nSYMBOL(prb)=ffffffff82a0\nOFFSET(page.lru)=8\n\
              SIZE(page)=64\nNUMBER(phys_base)=-228589568\nNUMBER(sme_mask)=0x8000000000000000\nno equals \
              sign\n\
              CRASHTIME=1\nCRASHTIME=1763900000\n\0",
        );
        assert_eq!(info.get("OSRELEASE"), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(info.symbol("prb"), Some(VirtAddr(0xffff_ffff_82a0)));
        assert_eq!((info.offset("page.lru"), info.size("page")), (Some(8), Some(64)));
        assert_eq!(info.number("phys_base"), Some(-228_589_568));
        assert_eq!(info.number("sme_mask"), Some(i64::MIN));
        assert_eq!(info.page_size(), Some(PageSize::FOUR_KIB));
        assert_eq!(info.crash_time(), Some(1_763_900_000));
        assert_eq!(info.symbol("absent"), None);
    }

    #[test]
    fn rubbish_is_empty_not_fatal() {
        assert!(VmcoreInfo::parse(&[0xff; 100]).is_empty());
        assert_eq!(VmcoreInfo::parse(b"PAGESIZE=12\nSYMBOL(x)=zz").page_size(), None);
    }
}
