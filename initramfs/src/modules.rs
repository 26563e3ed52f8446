//! Which kernel modules an image needs, and in which order: modules.dep, modules.softdep,
//! modules.alias and the list of built-in modules, as depmod(8) writes them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::fingerprint::Fingerprint;
use crate::trusted;

/// Why the modules of a kernel could not be worked out.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// A list of depmod's is missing.
    #[error("reading {path}: has depmod been run for this kernel?")]
    List {
        /// Which file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A module is neither there nor built in.
    #[error("this kernel has no module {0}, and it is not built in either")]
    Missing(String),
    /// A module file cannot be read or unpacked.
    #[error("reading module {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Compressed in a way that we do not know.
    #[error("module {0} has an unknown compression")]
    Compression(PathBuf),
}

/// A module to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, with `_` for `-`.
    pub name: String,
    /// Its file, relative to the modules directory.
    pub path: PathBuf,
    /// One of several providers of the same thing: it may refuse to load.
    pub optional: bool,
}

/// What depmod knows about a kernel's modules.
#[derive(Debug, Default)]
pub struct ModuleTree {
    dir: PathBuf,
    files: BTreeMap<String, PathBuf>,
    deps: BTreeMap<String, Vec<String>>,
    softdeps: BTreeMap<String, Vec<String>>,
    builtin: BTreeSet<String>,
    aliases: Vec<(glob::Pattern, String)>,
}

impl ModuleTree {
    /// Reads the lists in `dir`, such as `/lib/modules/6.1.0-1-amd64`.
    pub fn read(dir: &Path) -> Result<Self, ModulesError> {
        let list = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(|source| ModulesError::List { path, source })
        };
        let mut tree = Self::parse(&list("modules.dep")?, &list("modules.builtin")?, &list("modules.alias")?);
        // Only kernels with soft dependencies have this one.
        tree.add_softdeps(&list("modules.softdep").unwrap_or_default());
        // What is built in may need modules all the same: a checksum, a quota format.
        tree.add_builtin(&list("modules.builtin.modinfo").unwrap_or_default());
        dir.clone_into(&mut tree.dir);
        Ok(tree)
    }

    fn parse(dep: &str, builtin: &str, alias: &str) -> Self {
        let mut tree = Self::default();
        for (path, deps) in dep.lines().filter_map(|line| line.split_once(':')) {
            let name = name_of(path);
            tree.files.insert(name.clone(), path.into());
            tree.deps.insert(name, deps.split_ascii_whitespace().map(name_of).collect());
        }
        tree.builtin = builtin.lines().map(name_of).collect();
        let words = alias.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
        tree.aliases = words
            .filter_map(|words| match words[..] {
                ["alias", pattern, name] => Some((glob::Pattern::new(pattern).ok()?, normal(name))),
                _ => None,
            })
            .collect();
        tree
    }

    fn add_softdeps(&mut self, text: &str) {
        for line in text.lines().filter_map(|line| line.strip_prefix("softdep ")) {
            let mut words = line.split_ascii_whitespace();
            let Some(name) = words.next() else { continue };
            // "post:" modules are wanted as well; when they come does not matter for a storage
            // stack.
            let wanted = words.filter(|word| !word.ends_with(':')).map(str::to_owned);
            self.softdeps.entry(normal(name)).or_default().extend(wanted);
        }
    }

    /// What built-in modules say of themselves: `NAME.KEY=VALUE`, each ended by a NUL.
    fn add_builtin(&mut self, text: &str) {
        for (name, key, value) in text.split('\0').filter_map(|item| {
            let (name, value) = item.split_once('=')?;
            let (name, key) = name.split_once('.')?;
            Some((name, key, value))
        }) {
            match key {
                "softdep" => self.add_softdeps(&format!("softdep {name} {value}")),
                "alias" => {
                    self.aliases
                        .extend(glob::Pattern::new(value).ok().map(|pattern| (pattern, normal(name))));
                }
                _ => {}
            }
        }
    }

    /// The modules that `roots` need, each after what it depends on. A root is a module's name or
    /// an alias (`pci:v00001AF4…`); a built-in one needs nothing. With a `-` before it, it may be
    /// missing and may refuse to load.
    pub fn closure(&self, roots: &[String]) -> Result<Vec<Module>, ModulesError> {
        let mut order = Order { tree: self, modules: Vec::new(), open: BTreeSet::new() };
        for root in roots {
            let (name, optional) = root.strip_prefix('-').map_or((root.as_str(), false), |name| (name, true));
            if !order.add(name, optional) && !optional {
                return Err(ModulesError::Missing(root.clone()));
            }
        }
        Ok(order.modules)
    }

    /// The names of the modules that an alias of a device (its `modalias`) matches.
    #[must_use]
    pub fn providers(&self, alias: &str) -> Vec<String> {
        let matching = self.aliases.iter().filter(|(pattern, _)| pattern.matches(alias));
        let mut names: Vec<String> = matching.map(|(_, name)| name.clone()).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Whether a module of this name exists, as a file or built in.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        let name = normal(name);
        self.files.contains_key(&name) || self.builtin.contains(&name)
    }

    /// The module's bytes, unpacked, and its file as it is; that one's path is relative to the
    /// modules directory.
    pub fn load(&self, module: &Module) -> Result<(Vec<u8>, Fingerprint), ModulesError> {
        let path = self.dir.join(&module.path);
        let bytes =
            trusted::read(&path).map_err(|source| ModulesError::Read { path: path.clone(), source })?;
        let file = Fingerprint::of(&module.path, &bytes);
        let unpacked = match path.extension().and_then(|extension| extension.to_str()) {
            Some("ko") => Ok(bytes),
            Some("xz") => read_all(liblzma::read::XzDecoder::new(bytes.as_slice())),
            Some("gz") => read_all(flate2::read::GzDecoder::new(bytes.as_slice())),
            Some("zst") => zstd::stream::decode_all(bytes.as_slice()),
            _ => return Err(ModulesError::Compression(path)),
        };
        let unpacked = unpacked.map_err(|source| ModulesError::Read { path, source })?;
        Ok((unpacked, file))
    }
}

/// A depth-first walk that puts each module behind its dependencies.
struct Order<'a> {
    tree: &'a ModuleTree,
    modules: Vec<Module>,
    /// Modules on the way from a root to here: a cycle of soft dependencies ends there.
    open: BTreeSet<String>,
}

impl Order<'_> {
    /// Adds a module, or all modules behind an alias; `false` if there is none. What one root only
    /// would like to have and another one needs is needed.
    fn add(&mut self, wanted: &str, optional: bool) -> bool {
        let name = normal(wanted);
        if self.tree.files.contains_key(&name) {
            self.add_module(&name, optional);
            return true;
        }
        if self.tree.builtin.contains(&name) {
            if self.open.insert(name.clone()) {
                for soft in self.tree.softdeps.get(&name).into_iter().flatten() {
                    self.add(soft, true);
                }
                self.open.remove(&name);
            }
            return true;
        }
        let providers = self.tree.providers(wanted);
        let optional = optional || providers.len() > 1;
        for provider in &providers {
            self.add(provider, optional);
        }
        !providers.is_empty()
    }

    fn add_module(&mut self, name: &str, optional: bool) {
        let present = self.modules.iter().position(|module| module.name == name);
        let known =
            present.and_then(|at| self.modules.get(at)).is_some_and(|module| optional || !module.optional);
        if known || !self.open.insert(name.to_owned()) {
            return;
        }
        for soft in self.tree.softdeps.get(name).into_iter().flatten() {
            self.add(soft, true); // wanted, not needed: a missing one is no error
        }
        for dep in self.tree.deps.get(name).into_iter().flatten().rev() {
            self.add(dep, optional);
        }
        match (present.and_then(|at| self.modules.get_mut(at)), self.tree.files.get(name)) {
            (Some(module), _) => module.optional = optional,
            (None, Some(path)) => {
                self.modules.push(Module { name: name.to_owned(), path: path.clone(), optional });
            }
            (None, None) => (),
        }
        self.open.remove(name);
    }
}

/// `kernel/fs/nls/nls_cp437.ko.xz` → `nls_cp437`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    normal(file.split(".ko").next().unwrap_or(file))
}

/// The kernel's spelling of a module name.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn read_all(mut from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).map(|_| bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> ModuleTree {
        let dep = "kernel/fs/ext4/ext4.ko: kernel/fs/mbcache.ko kernel/fs/jbd2/jbd2.ko\n\
                   kernel/fs/mbcache.ko:\nkernel/fs/jbd2/jbd2.ko:\n\
                   kernel/lib/libcrc32c.ko.xz:\nkernel/crypto/crc32c-intel.ko:\nkernel/crypto/crc32c_generic.ko:\n\
                   kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko \
                   kernel/drivers/virtio/virtio_ring.ko\n\
                   kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko\n\
                   kernel/drivers/virtio/virtio_ring.ko:\n";
        let alias = "# Aliases\nalias crc32c crc32c_intel\nalias crc32c crc32c_generic\n\
                     alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci\nalias odd[ broken\n";
        let mut tree = ModuleTree::parse(dep, "kernel/fs/xfs/xfs.ko\n", alias);
        tree.add_softdeps("softdep jbd2 pre: crc32c\nsoftdep libcrc32c pre: nothing post: crc32c\n");
        tree.add_builtin("btrfs.softdep=pre: libcrc32c\0btrfs.alias=fs-btrfs\0btrfs.license=GPL\0odd\0");
        tree.builtin.insert("btrfs".into());
        tree
    }

    fn names(roots: &[&str]) -> Vec<String> {
        let roots: Vec<String> = roots.iter().map(|&root| root.into()).collect();
        let marked = |m: Module| if m.optional { format!("-{}", m.name) } else { m.name };
        tree().closure(&roots).unwrap().into_iter().map(marked).collect()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        assert_eq!(names(&["ext4"]), ["-crc32c_generic", "-crc32c_intel", "jbd2", "mbcache", "ext4"]);
        assert_eq!(names(&["virtio_pci", "virtio"]), ["virtio_ring", "virtio", "virtio_pci"]);
        assert_eq!(names(&["pci:v00001AF4d00001001sv0sd0bc1sc0i0"]), ["virtio_ring", "virtio", "virtio_pci"]);
        assert_eq!(names(&["crc32c", "crc32c_generic"]), ["crc32c_generic", "-crc32c_intel"]);
    }

    #[test]
    fn built_in_needs_nothing_and_missing_is_named() {
        assert_eq!(names(&["xfs"]), Vec::<String>::new());
        let modular = ["-crc32c_generic", "-crc32c_intel", "-libcrc32c"];
        assert_eq!(names(&["btrfs"]), modular, "it is built in, its checksum is not");
        assert_eq!(names(&["fs-btrfs"]), modular, "by an alias");
        assert_eq!(names(&["-nvme", "-mbcache"]), ["-mbcache"]);
        let error = tree().closure(&["nvme".into()]).unwrap_err();
        assert_eq!(error.to_string(), "this kernel has no module nvme, and it is not built in either");
    }

    #[test]
    fn missing_lists_say_what_to_do() {
        let error = ModuleTree::read(Path::new("/no/such")).unwrap_err().to_string();
        assert!(error.contains("/no/such/modules.dep") && error.contains("depmod"), "{error}");
    }
}
