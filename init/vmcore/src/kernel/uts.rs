//! uname of the production kernel.

use crate::format::kdump::Utsname;
use crate::format::vmcoreinfo::VmcoreInfo;
use crate::kernel::{Kernel, KernelError};

/// `OFFSET(uts_namespace.name)` before it was exported (v5.11): `struct kref` comes first and takes
/// 4 bytes.
const NAME_OFFSET: u64 = 4;

/// Reads `init_uts_ns.name`.
pub fn discover(kernel: &Kernel<'_>) -> Result<Utsname, KernelError> {
    let what = "init_uts_ns";
    let base = kernel.symbol(what)?;
    let offset = kernel.offset("uts_namespace.name").unwrap_or(NAME_OFFSET);
    let addr = base.checked_add(offset).ok_or(KernelError::Absurd { what, value: base.0 })?;
    let mut bytes = [0; Utsname::LEN];
    kernel.read(addr, &mut bytes, what)?;
    let found = Utsname::parse(&bytes).filter(|name| name.sysname == "Linux");
    found.ok_or(KernelError::Absurd { what, value: addr.0 })
}

/// What is known of uname without reading memory. Readers refuse a dump whose machine is not
/// theirs, so it comes from the ELF header.
#[must_use]
pub fn fallback(info: &VmcoreInfo, machine: Option<&str>) -> Utsname {
    Utsname {
        sysname: "Linux".to_owned(),
        nodename: String::new(),
        release: info.get("OSRELEASE").unwrap_or_default().to_owned(),
        version: String::new(),
        machine: machine.unwrap_or_default().to_owned(),
        domainname: String::new(),
    }
}
