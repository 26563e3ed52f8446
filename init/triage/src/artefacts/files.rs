//! `files.jsonl`: open files of all kinds, those of which no name is left marked.

use ::processes::names;
use ::processes::tasks::Task;
use base::addr::{VirtAddr, to_usize};
use base::fields::Fields;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::layouts;
use vmcore::kernel::KernelError;

use super::{Artefact, Ground, Row, Rows, Stop};
use crate::mounts;

/// Descriptors of one process that are believed; its table is read in pieces.
const MAX_FILES: u64 = 1 << 20;
const PIECE: u64 = 512;
/// `S_IFMT` and the types below it.
pub(super) const TYPE: u16 = 0o170_000;
pub(super) const SOCKET: u16 = 0o140_000;
pub(super) const REGULAR: u16 = 0o100_000;

layouts! {
    TaskLayout of "task_struct" {
        files: "files",
    }
    FilesLayout of "files_struct" {
        table: "fdt",
    }
    TableLayout of "fdtable" {
        max: "max_fds",
        files: "fd",
    }
    FileLayout of "file" {
        inode: "f_inode",
        flags: "f_flags",
        position: "f_pos",
        private: "private_data",
    }
    InodeLayout of "inode" {
        mode: "i_mode",
        number: "i_ino",
        size: "i_size",
        links: "i_nlink" | "__i_nlink",
        uid: "i_uid",
        superblock: "i_sb",
    }
    SuperLayout of "super_block" {
        device: "s_dev",
        kind: "s_type",
    }
    KindLayout of "file_system_type" {
        name: "name",
    }
}

/// Where a process has its open files.
pub(super) struct Tables {
    task: TaskLayout,
    files: FilesLayout,
    table: TableLayout,
    pub(super) file: FileLayout,
    pub(super) inode: InodeLayout,
}

impl Tables {
    pub(super) fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        Ok(Self {
            task: TaskLayout::ask(known)?,
            files: FilesLayout::ask(known)?,
            table: TableLayout::ask(known)?,
            file: FileLayout::ask(known)?,
            inode: InodeLayout::ask(known)?,
        })
    }

    /// Calls `each` with the numbers and the `struct file`s of a process.
    pub(super) fn each(
        &self,
        ground: &Ground<'_>,
        task: &Task,
        each: &mut dyn FnMut(u64, VirtAddr) -> Result<(), Stop>,
    ) -> Result<Result<(), KernelError>, Stop> {
        let system = ground.system;
        let follow = |base: VirtAddr, offset: u64, what: &'static str| system.pointer(base, offset, what);
        let start = || -> Result<Option<(VirtAddr, u64)>, KernelError> {
            let Some(files) = follow(task.address, self.task.files, "task_struct.files")? else {
                return Ok(None);
            };
            let Some(table) = follow(files, self.files.table, "files_struct.fdt")? else { return Ok(None) };
            let max = system.half(table, self.table.max, "fdtable.max_fds")?;
            let array = follow(table, self.table.files, "fdtable.fd")?;
            Ok(array.map(|array| (array, u64::from(max).min(MAX_FILES))))
        };
        let (array, max) = match start() {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(Ok(())),
            Err(error) => return Ok(Err(error)),
        };
        let mut first = 0;
        while first < max {
            let count = PIECE.min(max.saturating_sub(first));
            let bytes =
                system.bytes(array, first.saturating_mul(8), to_usize(count.saturating_mul(8)), "fdtable.fd");
            let bytes = match bytes {
                Ok(bytes) => bytes,
                Err(error) => return Ok(Err(error)),
            };
            for (number, word) in (first..).zip(bytes.chunks_exact(8)) {
                // The lowest bits may be flags.
                let file = Fields(word).u64(0).unwrap_or(0) & !7;
                if file != 0 {
                    each(number, VirtAddr(file))?;
                }
            }
            first = first.saturating_add(count);
        }
        Ok(Ok(()))
    }

    /// Type and rights of the file.
    pub(super) fn mode(&self, ground: &Ground<'_>, file: VirtAddr) -> Result<(VirtAddr, u16), KernelError> {
        let what = "file.f_inode";
        let inode = ground.system.follow(file, self.file.inode, what)?;
        Ok((inode, ground.system.short(inode, self.inode.mode, "inode.i_mode")?))
    }
}

pub(super) struct Layout {
    tables: Tables,
    superblock: SuperLayout,
    kind: KindLayout,
}

impl Artefact for Layout {
    const NAME: &'static str = "files";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        let superblock = SuperLayout::ask(known)?;
        Ok(Self { tables: Tables::ask(known)?, superblock, kind: KindLayout::ask(known)? })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        for process in &ground.processes.all {
            let task = &process.leader;
            let walked = self.tables.each(ground, task, &mut |number, file| {
                let mut row = Row::at(file);
                row.set("process.pid", task.pid);
                row.set("process.name", task.comm.clone());
                row.set("linux.fd", number);
                self.row(ground, file, &mut row);
                rows.add(&row)
            })?;
            if let Err(error) = walked {
                let mut row = Row::at(task.address);
                row.set("process.pid", task.pid);
                row.error("the table of open files", &base::log::chain(&error));
                rows.add(&row)?;
            }
        }
        Ok(())
    }
}

impl Layout {
    fn row(&self, ground: &Ground<'_>, file: VirtAddr, row: &mut Row) {
        let (system, layout) = (ground.system, &self.tables.file);
        row.read(
            "linux.flags",
            system.half(file, layout.flags, "file.f_flags").map(|word| format!("{word:#o}")),
        );
        row.read("linux.position", system.word(file, layout.position, "file.f_pos"));
        let (inode, mode) = match self.tables.mode(ground, file) {
            Ok(found) => found,
            Err(error) => return row.error("file.inode", &base::log::chain(&error)),
        };
        row.read("file.path", self.name(ground, file, inode));
        row.set("file.type", kind(mode));
        row.set("file.mode", format!("{:04o}", mode & 0o7777));
        let layout = &self.tables.inode;
        row.read(
            "file.inode",
            system.word(inode, layout.number, "inode.i_ino").map(|number| number.to_string()),
        );
        row.read("file.size", system.word(inode, layout.size, "inode.i_size"));
        row.read("file.uid", system.half(inode, layout.uid, "inode.i_uid").map(|id| id.to_string()));
        let links = system.half(inode, layout.links, "inode.i_nlink");
        if links.as_ref().is_ok_and(|links| *links == 0) {
            row.set("linux.deleted", true);
        }
        row.read("linux.links", links);
        let device = system.follow(inode, layout.superblock, "inode.i_sb");
        let device = device.and_then(|at| system.half(at, self.superblock.device, "super_block.s_dev"));
        row.read("file.device", device.map(device_name));
    }
}

impl Layout {
    /// The name as /proc/PID/fd has it.
    fn name(&self, ground: &Ground<'_>, file: VirtAddr, inode: VirtAddr) -> Result<String, KernelError> {
        let system = ground.system;
        let kind = || {
            let superblock = system.pointer(inode, self.tables.inode.superblock, "inode.i_sb").ok()??;
            let kind = system.pointer(superblock, self.superblock.kind, "super_block.s_type").ok()??;
            mounts::text(system, kind, self.kind.name).ok()
        };
        let number = || system.word(inode, self.tables.inode.number, "inode.i_ino");
        let path = || names::path(system, file).map(|path| String::from_utf8_lossy(&path).into_owned());
        Ok(match kind().as_deref() {
            Some("sockfs") => format!("socket:[{}]", number()?),
            Some("pipefs") => format!("pipe:[{}]", number()?),
            Some("anon_inodefs") => {
                let path = path()?;
                let name = path.trim_start_matches('/').split(" (deleted)").next().unwrap_or_default();
                format!("anon_inode:{name}")
            }
            _ => path()?,
        })
    }
}

/// MAJOR:MINOR (include/linux/kdev_t.h).
pub(super) fn device_name(device: u32) -> String {
    format!("{}:{}", device >> 20, device & 0xf_ffff)
}

/// Types of files, as the schema names them.
fn kind(mode: u16) -> &'static str {
    match mode & TYPE {
        SOCKET => "socket",
        0o120_000 => "symlink",
        REGULAR => "file",
        0o060_000 => "block",
        0o040_000 => "dir",
        0o020_000 => "char",
        0o010_000 => "fifo",
        _ => "anonymous",
    }
}
