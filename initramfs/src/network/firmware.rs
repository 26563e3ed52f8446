//! Firmware that drivers of network cards may ask for: the files that the modules name and this
//! host has.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use object::build::elf::{Builder, SectionData};

use crate::modules::{ModuleTree, ModulesError};

/// Where the kernel looks, in this order (`fw_path`, drivers/base/firmware_loader/main.c); those of
/// one release come before.
const ROOTS: [&str; 2] = ["/lib/firmware/updates", "/lib/firmware"];
/// Where the files are in the image.
const IN_IMAGE: &str = "/lib/firmware";
/// Packed files have another name, by which the kernel looks for them itself
/// (`CONFIG_FW_LOADER_COMPRESS`).
const PACKED: [&str; 3] = ["", ".zst", ".xz"];
/// Files of which more are not taken for one module: a pattern that matches everything is a
/// mistake.
const MOST: usize = 256;

/// Why firmware cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// The modules.
    #[error(transparent)]
    Modules(#[from] ModulesError),
}

/// A file of firmware.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Firmware {
    /// Its path in the image.
    pub path: PathBuf,
    /// The file on this host.
    pub file: PathBuf,
    /// Its size, bytes.
    pub bytes: u64,
}

/// The files that these modules, and those that they depend on, may ask for, as far as this host
/// has them. A driver names all versions that it can use; which one it takes, and whether it needs
/// any, it does not say.
pub fn firmware(modules: &[String], tree: &ModuleTree) -> Result<Vec<Firmware>, FirmwareError> {
    let mut found = BTreeSet::new();
    for module in tree.closure(modules)? {
        let (bytes, _) = tree.load(&module)?;
        let names = names(&bytes);
        let mut files: Vec<Firmware> =
            names.iter().flat_map(|name| find(name, &ROOTS.map(PathBuf::from))).collect();
        if files.len() > MOST {
            log::warn!("module {}: of {} files of firmware {MOST} are taken", module.name, files.len());
            files.truncate(MOST);
        }
        found.extend(files);
    }
    let total = found.iter().fold(0, |sum: u64, file| sum.saturating_add(file.bytes));
    if total > 0 {
        log::info!("firmware of network cards: {} files, {} KiB", found.len(), total >> 10);
    }
    Ok(found.into_iter().collect())
}

/// The names in a module's information section: `firmware=rtl_nic/rtl8168g-2.fw`, entries end with
/// a NUL.
fn names(module: &[u8]) -> Vec<String> {
    let Ok(builder) = Builder::read(module) else { return Vec::new() };
    let Some(section) = builder.sections.iter().find(|section| section.name.as_slice() == b".modinfo") else {
        return Vec::new();
    };
    let SectionData::Data(data) = &section.data else { return Vec::new() };
    let entries = data.as_slice().split(|byte| *byte == 0).filter_map(|entry| str::from_utf8(entry).ok());
    entries.filter_map(|entry| entry.strip_prefix("firmware=")).map(str::to_owned).collect()
}

/// Files of a name, which may be a pattern, in the first root that has any.
fn find(name: &str, roots: &[PathBuf]) -> Vec<Firmware> {
    let is_inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if name.is_empty() || !is_inside {
        return Vec::new();
    }
    for root in roots {
        let found: Vec<Firmware> =
            PACKED.iter().flat_map(|suffix| matching(root, &format!("{name}{suffix}"))).collect();
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

fn matching(root: &Path, name: &str) -> Vec<Firmware> {
    let pattern = format!("{}/{name}", glob::Pattern::escape(&root.to_string_lossy()));
    let paths = glob::glob(&pattern).into_iter().flatten().flatten();
    paths
        .filter_map(|file| {
            let meta = fs::metadata(&file).ok().filter(fs::Metadata::is_file)?; // of a link, what it leads to
            let path = Path::new(IN_IMAGE).join(file.strip_prefix(root).ok()?);
            Some(Firmware { path, file, bytes: meta.len() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::elf;
    use std::os::unix::fs::symlink;

    fn module(info: &[u8]) -> Vec<u8> {
        let mut builder = Builder::new(object::Endianness::Little, true);
        builder.header.e_type = elf::ET_REL;
        builder.header.e_machine = elf::EM_X86_64;
        let section = builder.sections.add();
        section.name = b".shstrtab"[..].into();
        section.sh_type = elf::SHT_STRTAB;
        section.data = SectionData::SectionString;
        let section = builder.sections.add();
        section.name = b".modinfo"[..].into();
        section.sh_type = elf::SHT_PROGBITS;
        section.data = SectionData::Data(info.to_vec().into());
        let mut bytes = Vec::new();
        builder.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn modules_name_their_firmware() {
        let info = b"license=GPL\0firmware=rtl_nic/a.fw\0alias=x\0firmware=b/*.bin\0";
        assert_eq!(names(&module(info)), ["rtl_nic/a.fw", "b/*.bin"]);
        assert!(names(&module(b"license=GPL\0")).is_empty());
        assert!(names(b"no module").is_empty());
    }

    #[test]
    fn files_are_found_plain_packed_and_by_pattern() {
        let dir = tempfile::tempdir().unwrap();
        let roots = [dir.path().join("updates"), dir.path().join("firm[ware")];
        for (file, text) in [
            ("updates/only/new.bin", "n"),
            ("firm[ware/only/new.bin", "old"),
            ("firm[ware/nic/a.fw.zst", "packed"),
            ("firm[ware/nic/b1.bin", "1"),
            ("firm[ware/nic/b2.bin.xz", "22"),
        ] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        symlink("nic/b1.bin", dir.path().join("firm[ware/link.bin")).unwrap();
        let found = |name: &str| -> Vec<(String, u64)> {
            let all = find(name, &roots);
            all.into_iter().map(|found| (found.path.display().to_string(), found.bytes)).collect()
        };
        assert_eq!(found("only/new.bin"), [("/lib/firmware/only/new.bin".to_owned(), 1)]);
        assert_eq!(found("nic/a.fw"), [("/lib/firmware/nic/a.fw.zst".to_owned(), 6)]);
        let both =
            [("/lib/firmware/nic/b1.bin".to_owned(), 1), ("/lib/firmware/nic/b2.bin.xz".to_owned(), 2)];
        assert_eq!(found("nic/b*.bin"), both);
        assert_eq!(found("link.bin"), [("/lib/firmware/link.bin".to_owned(), 1)]);
        for bad in ["", "../../etc/shadow", "/etc/shadow", "nic/../../x", "nic"] {
            assert!(found(bad).is_empty(), "{bad}");
        }
    }
}
