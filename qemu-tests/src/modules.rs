//! The modules a production kernel needs, with what they depend on, in load order.

use crate::command::{Run, command};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What `depmod` wrote about the modules of one kernel.
#[derive(Debug)]
pub struct ModuleIndex {
    root: PathBuf,
    /// Name → path below `root` and the paths it needs, the innermost last (modules.dep).
    modules: BTreeMap<String, (String, Vec<String>)>,
    /// Name → names to load first (modules.softdep, `pre:` part).
    soft: BTreeMap<String, Vec<String>>,
    builtin: BTreeSet<String>,
}

impl ModuleIndex {
    /// Reads the lists in a `lib/modules/VERSION` directory.
    pub fn read(root: &Path) -> Result<Self> {
        let list = |file: &str| {
            let path = root.join(file);
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let modules = list("modules.dep")?
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(path, needs)| {
                let needs = needs.split_whitespace().map(str::to_owned).collect();
                (name(path), (path.to_owned(), needs))
            })
            .collect();
        let soft = list("modules.softdep")?
            .lines()
            .filter_map(|line| line.strip_prefix("softdep ")?.split_once(" pre: "))
            .map(|(module, needs)| {
                let needs = needs.split_whitespace().take_while(|word| *word != "post:");
                (normal(module), needs.map(normal).collect())
            })
            .collect();
        let builtin = list("modules.builtin")?.lines().map(name).collect();
        Ok(Self { root: root.to_owned(), modules, soft, builtin })
    }

    /// The files to load, each after what it needs. Modules built into the kernel need no file.
    pub fn closure(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut order = Vec::new();
        for name in names {
            let name = normal(name);
            if !self.modules.contains_key(&name) && !self.builtin.contains(&name) {
                bail!("{} has no module {name}", self.root.display());
            }
            self.visit(&name, &mut BTreeSet::new(), &mut order);
        }
        Ok(order.iter().map(|path| self.root.join(path)).collect())
    }

    /// A soft dependency may name an alias or a module this kernel lacks; both are skipped, as modprobe does.
    fn visit(&self, module: &str, on_the_way: &mut BTreeSet<String>, order: &mut Vec<String>) {
        let Some((path, needs)) = self.modules.get(module) else { return };
        if order.contains(path) || !on_the_way.insert(module.to_owned()) {
            return;
        }
        for soft in self.soft.get(module).into_iter().flatten() {
            self.visit(soft, on_the_way, order);
        }
        for need in needs.iter().rev() {
            self.visit(&name(need), on_the_way, order);
        }
        order.push(path.clone());
    }
}

/// The content of a module file, decompressed: `finit_module` is called without flags.
pub fn content(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        return Ok(command("xz").arg("-dc").arg(path).run()?.stdout);
    }
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// The module name of a path: `kernel/a/foo-bar.ko.xz` → `foo_bar`.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    normal(file.split('.').next().unwrap_or(file))
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_first_and_builtins_need_no_file() {
        let root = tempfile::tempdir().unwrap();
        let put = |file: &str, content: &str| fs::write(root.path().join(file), content).unwrap();
        put("modules.dep", "a/x-fs.ko.xz: a/lib.ko a/core.ko\na/lib.ko: a/core.ko\na/core.ko:\na/crc.ko:\n");
        put("modules.softdep", "# comment\nsoftdep core pre: crc absent post: lib\n");
        put("modules.builtin", "kernel/fs/ext4.ko\n");
        let index = ModuleIndex::read(root.path()).unwrap();
        let order = index.closure(&["x_fs", "ext4"]).unwrap();
        let expected: Vec<_> = ["a/crc.ko", "a/core.ko", "a/lib.ko", "a/x-fs.ko.xz"]
            .iter()
            .map(|p| root.path().join(p))
            .collect();
        assert_eq!(order, expected);
        assert!(index.closure(&["zfs"]).unwrap_err().to_string().contains("no module zfs"));
    }
}
