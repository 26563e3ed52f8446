//! Files by their paths, as far as their names are in memory: those of a tmpfs always are.

use std::collections::BTreeMap;

use ::processes::names;
use base::addr::VirtAddr;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::{layouts, list};

use super::super::Ground;
use super::super::files::{REGULAR, TYPE};
use super::super::links::{Seen, hlist};
use crate::mounts;
use crate::wanted::Mounts;

/// Mounts, and names in a directory, that are believed.
const MAX: usize = 100_000;

layouts! {
    DentryLayout of "dentry" {
        inode: "d_inode",
    } [
        children: "d_children",
        sibling: "d_sib",
        // Lists before 6.8 (da549bdd15c2).
        child_list: "d_subdirs",
        in_list: "d_child",
    ]
    InodeLayout of "inode" {
        mode: "i_mode",
        size: "i_size",
        mapping: "i_mapping",
    }
}

pub(super) struct Lookup {
    dentry: DentryLayout,
    inode: InodeLayout,
    mounts: Mounts,
}

/// A file.
#[derive(Clone, Copy, Debug)]
pub(super) struct File {
    pub(super) inode: VirtAddr,
    pub(super) mapping: VirtAddr,
    /// Bytes.
    pub(super) size: u64,
}

impl Lookup {
    pub(super) fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        Ok(Self {
            dentry: DentryLayout::ask(known)?,
            inode: InodeLayout::ask(known)?,
            mounts: Mounts::ask(known)?,
        })
    }

    /// Looks what is mounted where.
    pub(super) fn start<'a>(&'a self, ground: &'a Ground<'a>) -> Paths<'a> {
        let mut mounts = BTreeMap::new();
        if let Some(init) = ground.system.variables.init_task {
            let _ = mounts::walk(ground.system, &self.mounts, init, MAX, &mut |mount| {
                if let (Some(root), Ok(path)) = (mount.root, mount.path) {
                    // What is mounted last hides the others.
                    mounts.insert(path, root);
                }
            });
        }
        Paths { lookup: self, ground, mounts }
    }
}

/// Paths of the namespace of the first process.
pub(super) struct Paths<'a> {
    lookup: &'a Lookup,
    ground: &'a Ground<'a>,
    mounts: BTreeMap<String, VirtAddr>,
}

impl Paths<'_> {
    /// The file at a path; none if its name is not in memory, or is of something else.
    pub(super) fn file(&self, path: &str) -> Result<Option<File>, String> {
        self.dentry(path)?.map_or(Ok(None), |dentry| self.inode(dentry))
    }

    /// The files in a directory, with their names.
    pub(super) fn directory(&self, path: &str) -> Result<Vec<(String, File)>, String> {
        let Some(directory) = self.dentry(path)? else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for child in self.children(directory)? {
            let name = names::name(self.ground.system, child).map_err(|error| base::log::chain(&error))?;
            if let Ok(Some(file)) = self.inode(child) {
                all.push((String::from_utf8_lossy(&name).into_owned(), file));
            }
        }
        Ok(all)
    }

    fn dentry(&self, path: &str) -> Result<Option<VirtAddr>, String> {
        let Some(mut at) = self.mounts.get("/").copied() else {
            return Err("the root of the first process is not known".to_owned());
        };
        let mut so_far = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            so_far = format!("{so_far}/{part}");
            if let Some(root) = self.mounts.get(&so_far) {
                at = *root;
                continue;
            }
            let is_it = |child: &VirtAddr| {
                names::name(self.ground.system, *child).is_ok_and(|name| name == part.as_bytes())
            };
            // What was deleted may have the same name, and has no inode.
            let mut found = self.children(at)?.into_iter().filter(is_it);
            match found.find(|child| self.has_inode(*child)) {
                Some(child) => at = child,
                // Below may be a mount whose directory is hidden by another.
                None => at = VirtAddr(0),
            }
            if at.0 == 0 {
                let below = format!("{so_far}/");
                let leads_on = self.mounts.keys().any(|mount| mount.starts_with(&below));
                if !leads_on {
                    return Ok(None);
                }
            }
        }
        Ok(Some(at).filter(|at| at.0 != 0))
    }

    fn has_inode(&self, dentry: VirtAddr) -> bool {
        let inode = self.ground.system.pointer(dentry, self.lookup.dentry.inode, "dentry.d_inode");
        inode.is_ok_and(|inode| inode.is_some())
    }

    fn children(&self, dentry: VirtAddr) -> Result<Vec<VirtAddr>, String> {
        if dentry.0 == 0 {
            return Ok(Vec::new());
        }
        let (system, layout) = (self.ground.system, &self.lookup.dentry);
        let at = |offset: u64| VirtAddr(dentry.0.wrapping_add(offset));
        let (entries, link, fault) =
            match (layout.children, layout.sibling, layout.child_list, layout.in_list) {
                (Some(children), Some(link), ..) => {
                    let (entries, fault) = hlist(system, at(children), &mut Seen::new());
                    (entries, link, fault)
                }
                (_, _, Some(children), Some(link)) => {
                    let (entries, is_whole) = list::all(system.kernel, at(children), MAX);
                    let fault = (!is_whole).then(|| "a directory cannot be read to its end".to_owned());
                    (entries, link, fault)
                }
                _ => return Err("the kernel's types have no children in struct dentry".to_owned()),
            };
        match fault {
            Some(fault) => Err(fault),
            None => Ok(entries.into_iter().map(|entry| VirtAddr(entry.0.wrapping_sub(link))).collect()),
        }
    }

    fn inode(&self, dentry: VirtAddr) -> Result<Option<File>, String> {
        let (system, layout) = (self.ground.system, &self.lookup.inode);
        let read = || {
            let inode = system.pointer(dentry, self.lookup.dentry.inode, "dentry.d_inode")?;
            let Some(inode) = inode else { return Ok(None) };
            if system.short(inode, layout.mode, "inode.i_mode")? & TYPE != REGULAR {
                return Ok(None);
            }
            let Some(mapping) = system.pointer(inode, layout.mapping, "inode.i_mapping")? else {
                return Ok(None);
            };
            let size = system.word(inode, layout.size, "inode.i_size")?;
            Ok(Some(File { inode, mapping, size }))
        };
        read().map_err(|error: vmcore::kernel::KernelError| base::log::chain(&error))
    }
}
