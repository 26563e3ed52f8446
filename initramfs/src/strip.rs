//! Making a module smaller: its signature, debug sections and BTF go.
//!
//! Each megabyte of an image counts twice while the kernel unpacks it, and BTF costs memory again
//! when a module is loaded. A stripped module has no valid signature, so nothing is stripped where
//! signatures are enforced.

use object::build::elf::Builder;

/// `struct module_signature` and the marker that end a signed module
/// (include/linux/module_signature.h).
const MARKER: &[u8] = b"~Module signature appended~\n";
const SIGNATURE_INFO_LEN: usize = 12;
/// Largest alignment that a module's sections have: a page.
const MAX_ALIGN: u64 = 4096;

/// The module without its signature and without sections that it does not need to run. A module
/// that cannot be taken apart stays as it is, less its signature.
#[must_use]
pub fn strip(module: &[u8]) -> Vec<u8> {
    let unsigned = without_signature(module);
    without_sections(unsigned).unwrap_or_else(|error| {
        log::warn!("module not stripped: {error}");
        unsigned.to_vec()
    })
}

fn without_signature(module: &[u8]) -> &[u8] {
    let parse = || {
        let rest = module.strip_suffix(MARKER)?;
        let info = rest.get(rest.len().checked_sub(SIGNATURE_INFO_LEN)?..)?;
        let signature_len = u32::from_be_bytes(*info.last_chunk::<4>()?); // sig_len
        let tail = usize::try_from(signature_len).ok()?.checked_add(SIGNATURE_INFO_LEN)?;
        rest.get(..rest.len().checked_sub(tail)?)
    };
    parse().unwrap_or(module)
}

fn without_sections(module: &[u8]) -> Result<Vec<u8>, String> {
    let mut builder = Builder::read(module).map_err(|error| error.to_string())?;
    // The writer pads to any alignment that a section claims.
    if let Some(section) = builder.sections.iter().find(|section| section.sh_addralign > MAX_ALIGN) {
        return Err(format!("a section is aligned to {} bytes", section.sh_addralign));
    }
    if builder.segments.iter().next().is_some() {
        return Err("it has segments, so it is no relocatable module".to_owned());
    }
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        let unneeded = name.starts_with(b".debug_")
            || name.starts_with(b".rela.debug_")
            || matches!(name, b".BTF" | b".comment" | b".note.GNU-stack");
        section.delete = unneeded;
    }
    builder.delete_orphans();
    builder.delete_unused_versions();
    let mut out = Vec::new();
    builder.write(&mut out).map_err(|error| error.to_string())?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_cut_off() {
        let mut signed = b"module bytes".to_vec();
        signed.extend([0xaa; 30]);
        signed.extend([0, 0, 2, 0, 0, 0, 0, 0]);
        signed.extend(30_u32.to_be_bytes());
        signed.extend(MARKER);
        assert_eq!(without_signature(&signed), b"module bytes");
        assert_eq!(without_signature(b"plain"), b"plain");
        let mut lying = vec![0; 4];
        lying.extend([0xff; 12]);
        lying.extend(MARKER);
        assert_eq!(without_signature(&lying), lying);
    }

    #[test]
    fn what_is_no_elf_stays() {
        assert_eq!(strip(b"no elf"), b"no elf");
    }
}
