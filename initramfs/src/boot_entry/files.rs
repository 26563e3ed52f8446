//! Which kernel file, initrd and command line a host would boot next, by its own files: those of
//! the running kernel, or of the boot loader's default entry. Paths are those of the host.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use base::addr::to_u64;
use kexec::BzImage;
use kexec::bzimage::HEAD_LEN;
use storage::targets::tried;

use super::mounts::Mounts;
use super::{BootError, bls, grub};
use crate::cmdline;

/// Where entries of the Boot Loader Specification lie.
const ENTRIES: [&str; 4] =
    ["/boot/loader/entries", "/boot/efi/loader/entries", "/efi/loader/entries", "/boot/EFI/loader/entries"];
/// Where GRUB's files lie.
const GRUB: [&str; 2] = ["/boot/grub2", "/boot/grub"];
/// Where GRUB's environment lies where it is not beside the others.
const VENDORS: &str = "/boot/efi/EFI";

/// What is started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its initrds, in order.
    pub initrd: Vec<PathBuf>,
    /// Its command line.
    pub cmdline: String,
}

/// A host's files and what its kernel says of its own boot.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its root directory: `/`, but in tests.
    pub root: PathBuf,
    /// `uname -r`.
    pub release: String,
    /// `/proc/cmdline`.
    pub cmdline: String,
    /// What is mounted.
    pub mounts: Mounts,
    /// Whether it was booted with an initrd.
    pub has_initrd: bool,
}

impl Host {
    /// What runs now.
    pub fn running(&self) -> Result<Files, BootError> {
        let words = cmdline::split(&self.cmdline);
        let named = words.iter().find_map(|word| word.strip_prefix("BOOT_IMAGE="));
        // GRUB puts the disk before the path: (hd0,gpt2)/vmlinuz.
        let named = named.map(|name| name.split_once(')').map_or(name, |(_, path)| path));
        let release = &self.release;
        let usual =
            ["/boot/vmlinuz-", "/boot/kernel-"].map(|front| PathBuf::from(format!("{front}{release}")));
        let mut candidates: Vec<PathBuf> = named.into_iter().flat_map(|name| self.of_loader(name)).collect();
        candidates.extend(usual);
        candidates.push(format!("/lib/modules/{release}/vmlinuz").into());
        let kernel = candidates.into_iter().find(|path| self.release_of(path).as_ref() == Some(release));
        let kernel = kernel.ok_or_else(|| BootError::NoRunning(release.clone()))?;
        let initrd = self.initrd_of(&kernel);
        if self.has_initrd && initrd.is_empty() {
            return Err(BootError::NoInitrd(kernel));
        }
        Ok(Files { kernel, initrd, cmdline: self.own_cmdline() })
    }

    /// What the boot loader would start.
    pub fn default_entry(&self) -> Result<Files, BootError> {
        let environment = self.environment();
        let (entries, loader) = self.bls_entries(&environment);
        let saved = environment.get("saved_entry").filter(|saved| !saved.is_empty());
        let wanted = saved.map(String::as_str).or_else(|| bls::loader_default(&loader));
        let files = |linux: &str, initrd: &[String], options: String| {
            let find = |path: &str| self.of_loader(path).into_iter().find(|path| self.exists(path));
            let missing = |path: &str| BootError::Missing(path.to_owned());
            let kernel = find(linux).ok_or_else(|| missing(linux))?;
            let initrd = initrd.iter().map(|path| find(path).ok_or_else(|| missing(path)));
            Ok(Files { kernel, initrd: initrd.collect::<Result<_, _>>()?, cmdline: options })
        };
        if let Some(entry) = bls::choose(entries, wanted) {
            return files(&entry.linux, &entry.initrd, entry.options);
        }
        let mut configs = GRUB.iter().filter_map(|dir| self.read(&format!("{dir}/grub.cfg")));
        let entry = configs.find_map(|text| grub::default_entry(&text, &environment));
        let entry = entry.ok_or(BootError::NoEntry)?;
        files(&entry.linux, &entry.initrd, entry.options)
    }

    /// The initrds beside a kernel that belong to it by name; none if there is none.
    #[must_use]
    pub fn initrd_of(&self, kernel: &Path) -> Vec<PathBuf> {
        let directory = if kernel.starts_with("/lib/modules") {
            Path::new("/boot")
        } else {
            kernel.parent().unwrap_or(kernel)
        };
        let name = kernel.file_name().unwrap_or_default().to_string_lossy();
        // vmlinuz-6.1.0, vmlinuz-linux; of any other name the release is left.
        let suffix = name.split_once('-').map_or(self.release.as_str(), |(_, suffix)| suffix);
        let names =
            [format!("initrd.img-{suffix}"), format!("initramfs-{suffix}.img"), format!("initrd-{suffix}")];
        let found = names.iter().map(|name| directory.join(name)).find(|path| self.exists(path));
        found.into_iter().collect()
    }

    /// The running kernel's command line without what boot loaders add for themselves.
    #[must_use]
    pub fn own_cmdline(&self) -> String {
        let words = cmdline::split(&self.cmdline).into_iter();
        let theirs = ["BOOT_IMAGE=", "initrd=", tried::WORD];
        let ours = words.filter(|word| !theirs.iter().any(|start| word.starts_with(start)));
        ours.collect::<Vec<_>>().join(" ")
    }

    /// Where on the host a file is that this host sees at `path`.
    #[must_use]
    pub fn real(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn exists(&self, path: &Path) -> bool {
        self.real(path).is_file()
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read(self.real(Path::new(path))).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    fn release_of(&self, path: &Path) -> Option<String> {
        let file = File::open(self.real(path)).ok()?;
        let len = file.metadata().ok()?.len();
        let mut head = Vec::new();
        file.take(to_u64(HEAD_LEN)).read_to_end(&mut head).ok()?;
        Some(BzImage::parse(&head, len).ok()?.release)
    }

    /// Files that a boot loader may mean by a path, which begins at the root of a file system:
    /// /boot's, the ESP's, or the root's.
    fn of_loader(&self, path: &str) -> Vec<PathBuf> {
        let path = Path::new(path);
        let places = ["/boot/x", "/boot/efi/x", "/efi/x", "/x"];
        let mounts = places.iter().filter_map(|place| self.mounts.holding(Path::new(place)));
        let mut candidates: Vec<PathBuf> = mounts.filter_map(|mount| mount.outer(path)).collect();
        candidates.dedup();
        candidates
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let vendors = fs::read_dir(self.real(Path::new(VENDORS))).into_iter().flatten().flatten();
        let vendors = vendors.map(|entry| format!("{VENDORS}/{}", entry.file_name().to_string_lossy()));
        let mut places: Vec<String> = GRUB.iter().map(|&dir| dir.to_owned()).chain(vendors).collect();
        places.dedup();
        let found = places.iter().find_map(|dir| self.read(&format!("{dir}/grubenv")));
        found.map(|text| grub::environment(&text)).unwrap_or_default()
    }

    /// The entries, and loader.conf beside them.
    fn bls_entries(&self, variables: &BTreeMap<String, String>) -> (Vec<bls::Entry>, String) {
        for dir in ENTRIES {
            let files = fs::read_dir(self.real(Path::new(dir))).into_iter().flatten().flatten();
            let entries: Vec<_> = files
                .filter_map(|file| {
                    let name = file.file_name().to_string_lossy().into_owned();
                    bls::parse(&name, &self.read(&format!("{dir}/{name}"))?, variables)
                })
                .collect();
            if !entries.is_empty() {
                let loader = self.read(&dir.replace("/entries", "/loader.conf"));
                return (entries, loader.unwrap_or_default());
            }
        }
        (Vec::new(), String::new())
    }
}
