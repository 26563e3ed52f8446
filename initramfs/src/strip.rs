//! Making a module smaller: its signature, debug sections and BTF go.
//!
//! Each megabyte of an image counts twice while the kernel unpacks it, and BTF costs memory again
//! when a module is loaded. A stripped module has no valid signature, so nothing is stripped where
//! anything speaks for signatures ([`crate::signatures`]).

use object::build::elf::Builder;

use crate::signatures;

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
    signatures::split(module).map_or(module, |(code, _)| code)
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
    fn what_is_no_elf_stays() {
        assert_eq!(strip(b"no elf"), b"no elf");
    }
}
