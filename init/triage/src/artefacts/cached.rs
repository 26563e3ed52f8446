//! `recovered.jsonl`, and the files themselves: what is in memory only. Files of tmpfs and ramfs are
//! recovered whole; of all others the pages that were written and have not reached the disk, at their
//! places in a file with holes. And `body.txt`: what is known of all files that have a name in memory.

use std::collections::BTreeMap;

use ::processes::cache::{self, Cached, Piece};
use ::processes::names;
use ::processes::system::System;
use ::processes::tables::Steps;
use base::addr::{VirtAddr, to_u64};
use base::fields::Fields;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::layouts;
use vmcore::kernel::KernelError;

use super::content::{self, FilePage, PAGE};
use super::files::{REGULAR, TYPE, device_name};
use super::timeline::Moment;
use super::{Artefact, Ground, Recovered, Row, Rows, Stop};
use crate::mounts;
use crate::wanted::Mounts;

/// Of a page that cannot be read.
const ZEROS: [u8; 4096] = [0; 4096];
/// Superblocks, and inodes of each, that are believed.
const MAX_SUPERBLOCKS: usize = 10_000;
const MAX_INODES: usize = 4 << 20;
/// Lines of `body.txt`.
const MAX_LINES: u64 = 1 << 20;
/// Directories above a file.
const DEPTH: usize = 256;
/// Ranges of a file that a row lists.
const RANGES: usize = 1000;
/// Pieces of one file that are remembered.
const MAX_PIECES: usize = 1 << 18;
/// Pages of one file that are looked at: 4 TiB of file.
const MAX_PAGES: u64 = 1 << 30;

layouts! {
    SuperLayout of "super_block" {
        list: "s_list",
        inodes: "s_inodes",
        kind: "s_type",
        id: "s_id",
        device: "s_dev",
        root: "s_root",
    }
    KindLayout of "file_system_type" {
        name: "name",
    }
    InodeLayout of "inode" {
        in_superblock: "i_sb_list",
        mode: "i_mode",
        number: "i_ino",
        size: "i_size",
        links: "i_nlink" | "__i_nlink",
        mapping: "i_mapping",
        names: "i_dentry",
        uid: "i_uid",
        gid: "i_gid",
    } [
        modified: "i_mtime_sec" | "__i_mtime.tv_sec" | "i_mtime.tv_sec",
        changed: "i_ctime_sec" | "__i_ctime.tv_sec" | "i_ctime.tv_sec",
        accessed: "i_atime_sec" | "__i_atime.tv_sec" | "i_atime.tv_sec",
    ]
    MappingLayout of "address_space" {
        pages: "nrpages",
    }
    DentryLayout of "dentry" {
        alias: "d_u.d_alias" | "d_alias",
    }
    PageLayout of "page" {
        flags: "flags",
    } [
        head: "compound_head",
    ]
}

pub(super) struct Layout {
    superblock: SuperLayout,
    kind: KindLayout,
    inode: InodeLayout,
    mapping: MappingLayout,
    dentry: DentryLayout,
    page: PageLayout,
    mounts: Result<Mounts, Missing>,
    superblocks: Option<VirtAddr>,
    /// `PG_dirty`, `PG_writeback`: numbers of bits.
    unwritten: [u64; 2],
}

impl Artefact for Layout {
    const NAME: &'static str = "recovered";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        let flag = |member| {
            let bit = known.value("pageflags", member).filter(|bit| *bit < 64);
            bit.ok_or(Missing { structure: "page", member })
        };
        Ok(Self {
            superblock: SuperLayout::ask(known)?,
            kind: KindLayout::ask(known)?,
            inode: InodeLayout::ask(known)?,
            mapping: MappingLayout::ask(known)?,
            dentry: DentryLayout::ask(known)?,
            page: PageLayout::ask(known)?,
            mounts: Mounts::ask(known),
            superblocks: known.symbol("super_blocks"),
            unwritten: [flag("PG_dirty")?, flag("PG_writeback")?],
        })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let system = ground.system;
        let head = self
            .superblocks
            .ok_or_else(|| Stop::Start("the kernel has no symbol super_blocks".to_owned()))?;
        let mut walk = Walk {
            layout: self,
            ground,
            roots: self.roots(ground),
            left: ground.limits.files,
            lines: 0,
            steps: Steps::new(system),
        };
        for superblock in entries(system, head, self.superblock.list, MAX_SUPERBLOCKS) {
            walk.superblock(superblock, rows)?;
        }
        let more = walk.lines.saturating_sub(MAX_LINES);
        if more > 0 { rows.miss(super::body::FILE, &format!("{more} files are left out")) } else { Ok(()) }
    }
}

/// The structures in a list, by the offset of their `list_head`; as far as it can be read, and no further
/// than to where it leads back. There may be millions of inodes: none of them has to be remembered.
fn entries(system: &System<'_>, head: VirtAddr, offset: u64, limit: usize) -> Vec<VirtAddr> {
    let mut all = Vec::new();
    let mut at = head;
    while let Ok(Some(next)) = system.pointer(at, 0, "a list") {
        // Each has to point back at the one before: a loop that does not lead to the head ends here.
        let leads_back = system.word(next, 8, "a list").is_ok_and(|back| back == at.0);
        if next == head || all.len() >= limit || !leads_back {
            break;
        }
        all.push(VirtAddr(next.0.wrapping_sub(offset)));
        at = next;
    }
    all
}

impl Layout {
    /// Where directories are mounted, by their dentries.
    fn roots(&self, ground: &Ground<'_>) -> BTreeMap<VirtAddr, String> {
        let mut roots = BTreeMap::new();
        let (Ok(layout), Some(init)) = (&self.mounts, ground.system.variables.init_task) else {
            return roots;
        };
        let _ = mounts::walk(ground.system, layout, init, MAX_SUPERBLOCKS, &mut |mount| {
            if let (Some(root), Ok(path)) = (mount.root, mount.path) {
                roots.entry(root).or_insert(path);
            }
        });
        roots
    }
}

/// Pages from `start` on, as many as belong together.
type Range = (u64, u64);

struct Walk<'a> {
    layout: &'a Layout,
    ground: &'a Ground<'a>,
    roots: BTreeMap<VirtAddr, String>,
    /// Bytes that may still be recovered.
    left: u64,
    /// Lines of `body.txt`, with those that were left out.
    lines: u64,
    steps: Steps,
}

/// A file system.
struct FileSystem {
    kind: String,
    id: String,
    device: String,
    in_memory: bool,
}

impl Walk<'_> {
    fn superblock(&mut self, at: VirtAddr, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let (system, layout) = (self.ground.system, &self.layout.superblock);
        let kind = system.pointer(at, layout.kind, "super_block.s_type").ok().flatten();
        let kind = kind.and_then(|kind| mounts::text(system, kind, self.layout.kind.name).ok());
        let id = system.bytes(at, layout.id, 32, "super_block.s_id");
        let device = system.half(at, layout.device, "super_block.s_dev");
        let files = FileSystem {
            in_memory: kind
                .as_deref()
                .is_some_and(|kind| matches!(kind, "tmpfs" | "ramfs" | "rootfs" | "devtmpfs")),
            kind: kind.unwrap_or_else(|| "unknown".to_owned()),
            id: id.map(|bytes| Fields(&bytes).text(0, 32).unwrap_or_default()).unwrap_or_default(),
            device: device.map(device_name).unwrap_or_default(),
        };
        let head = VirtAddr(at.0.wrapping_add(layout.inodes));
        for inode in entries(system, head, self.layout.inode.in_superblock, MAX_INODES) {
            rows.in_time()?;
            self.inode(&files, inode, rows)?;
        }
        Ok(())
    }

    fn inode(&mut self, files: &FileSystem, inode: VirtAddr, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let (system, layout) = (self.ground.system, &self.layout.inode);
        let mode = system.short(inode, layout.mode, "inode.i_mode").unwrap_or(0);
        let path = self.path(inode);
        self.body(inode, path.as_deref(), mode, rows)?;
        if mode & TYPE != REGULAR {
            return Ok(());
        }
        let Ok(Some(mapping)) = system.pointer(inode, layout.mapping, "inode.i_mapping") else {
            return Ok(());
        };
        let cached = system.word(mapping, self.layout.mapping.pages, "address_space.nrpages").unwrap_or(0);
        if cached == 0 {
            return Ok(());
        }
        let size = system.word(inode, layout.size, "inode.i_size").unwrap_or(0);
        let (pieces, bytes) = self.pieces(files, mapping, size);
        if pieces.is_empty() && bytes == 0 {
            return Ok(());
        }
        let mut row = Row::at(inode);
        let links = system.half(inode, layout.links, "inode.i_nlink");
        let deleted = links.as_ref().is_ok_and(|links| *links == 0);
        let path = match path {
            Some(path) if deleted => format!("{path} (deleted)"),
            Some(path) => path,
            None => format!("/[no name]/{}-{}", files.kind, inode_number(system, inode, layout.number)),
        };
        row.set("file.path", path.clone());
        row.set("file.inode", inode_number(system, inode, layout.number));
        row.set("file.size", size);
        row.set("file.mode", format!("{:04o}", mode & 0o7777));
        row.read("file.uid", system.half(inode, layout.uid, "inode.i_uid").map(|id| id.to_string()));
        row.set("file.device", files.device.clone());
        row.set("linux.filesystem.type", files.kind.clone());
        row.set("linux.filesystem.id", files.id.clone());
        row.set("linux.deleted", deleted);
        row.set(
            "linux.recovered.what",
            if files.in_memory { "whole" } else { "pages that were not written" },
        );
        let modified = self.times(inode, &path, &mut row);
        let file = Recovered { path: &path, bytes: size, ranges: &[], mode, modified };
        match self.ground.limits.leaves_out(&path, bytes, self.left) {
            Some(why) => row.set("linux.recovered.left_out", why),
            None => self.recover(&file, &pieces, &mut row, rows)?,
        }
        rows.add(&row)
    }

    /// A line of `body.txt`, if the file has a name.
    fn body(
        &mut self,
        inode: VirtAddr,
        path: Option<&str>,
        mode: u16,
        rows: &mut Rows<'_>,
    ) -> Result<(), Stop> {
        let (system, layout) = (self.ground.system, &self.layout.inode);
        let Some(path) = path else { return Ok(()) };
        self.lines = self.lines.saturating_add(1);
        if self.lines > MAX_LINES {
            return Ok(());
        }
        let half = |offset| system.half(inode, offset, "inode").unwrap_or(0);
        let word = |offset: Option<u64>| {
            offset.and_then(|offset| system.word(inode, offset, "inode").ok()).unwrap_or(0)
        };
        let deleted = if half(layout.links) == 0 { " (deleted)" } else { "" };
        let path = if path.is_empty() { "/" } else { path };
        let line = super::body::Line {
            path: &format!("{path}{deleted}"),
            inode: word(Some(layout.number)),
            mode,
            uid: half(layout.uid),
            gid: half(layout.gid),
            size: word(Some(layout.size)),
            times: [layout.accessed, layout.modified, layout.changed].map(word),
        };
        Ok(rows.output.line(super::body::FILE, &line.text())?)
    }

    /// Says when the file was used; returns when its contents were changed.
    fn times(&self, inode: VirtAddr, path: &str, row: &mut Row) -> Option<u64> {
        let layout = &self.layout.inode;
        let mut changed = None;
        for (key, offset, kind) in [
            ("file.mtime", layout.modified, "Content Modification Time"),
            ("file.ctime", layout.changed, "Metadata Modification Time"),
            ("file.accessed", layout.accessed, "Last Access Time"),
        ] {
            let seconds = offset.map(|offset| self.ground.system.word(inode, offset, "a time of an inode"));
            let Some(seconds) = seconds else { continue };
            let text = seconds.map(|at| (at, base::time::utc(at)));
            match text {
                Ok((at, Some(text))) => {
                    row.set(key, text);
                    if offset == layout.modified {
                        changed = Some(at);
                    }
                    row.happened(Moment { at, message: format!("file {path}"), kind });
                }
                Ok((at, None)) => row.error(key, &format!("{at} seconds since 1970 cannot be")),
                Err(error) => row.error(key, &base::log::chain(&error)),
            }
        }
        changed
    }

    /// The path of a file by one of its names.
    fn path(&self, inode: VirtAddr) -> Option<String> {
        let system = self.ground.system;
        let first = system.pointer(inode, self.layout.inode.names, "inode.i_dentry").ok()??;
        let mut dentry = VirtAddr(first.0.wrapping_sub(self.layout.dentry.alias));
        let mut words = Vec::new();
        for _ in 0..DEPTH {
            if let Some(mount) = self.roots.get(&dentry) {
                words.push(mount.trim_end_matches('/').to_owned());
                words.reverse();
                return Some(words.join("/"));
            }
            let name = names::name(system, dentry).ok()?;
            let parent = system.pointer(dentry, system.layout.dentry.parent, "dentry.d_parent").ok()??;
            let is_root = parent == dentry;
            if !is_root || words.is_empty() {
                words.push(String::from_utf8_lossy(&name).into_owned());
            }
            if is_root {
                break;
            }
            dentry = parent;
        }
        // In no mount that the first process sees: of another namespace, or of none at all.
        words.reverse();
        Some(format!("/[not mounted]/{}", words.join("/")))
    }

    /// Pages of the file that are to be recovered, and their bytes; only the bytes where they are too many.
    fn pieces(&self, files: &FileSystem, mapping: VirtAddr, size: u64) -> (Vec<Piece>, u64) {
        let system = self.ground.system;
        let end = size.div_ceil(PAGE).min(MAX_PAGES);
        let limit = self.ground.limits.file.min(self.left);
        let (mut all, mut bytes, mut only_lost) = (Vec::new(), 0_u64, true);
        cache::walk(system, mapping, (0, end), &self.steps, &mut |piece| {
            let wanted = match piece.cached {
                Cached::Page(_) => {
                    files.in_memory || piece.folio.is_some_and(|folio| self.is_unwritten(folio))
                }
                Cached::Value => files.in_memory,
                Cached::Lost => true,
            };
            if wanted {
                only_lost &= piece.cached == Cached::Lost;
                if matches!(piece.cached, Cached::Page(_)) {
                    bytes = bytes.saturating_add(piece.pages.saturating_mul(PAGE));
                }
                if bytes <= limit && all.len() < MAX_PIECES { all.push(piece) } else { all = Vec::new() }
            }
        });
        // What cannot be read is of interest only where something else can be, or nothing else can be.
        if !files.in_memory && only_lost { (Vec::new(), 0) } else { (all, bytes) }
    }

    /// Whether pages were written to and are not on the disk: the flags are in their first `struct page`.
    fn is_unwritten(&self, folio: VirtAddr) -> bool {
        let (system, layout) = (self.ground.system, &self.layout.page);
        // Before there were folios the cache had the page itself, which may be one behind the first.
        let head = layout.head.and_then(|offset| system.word(folio, offset, "page.compound_head").ok());
        let first = head.filter(|head| head & 1 == 1).map_or(folio, |head| VirtAddr(head & !1));
        let flags = system.word(first, layout.flags, "page.flags").unwrap_or(0);
        self.layout.unwritten.iter().any(|bit| flags >> bit & 1 == 1)
    }

    /// Writes the pages, and says which.
    fn recover(
        &mut self,
        file: &Recovered<'_>,
        pieces: &[Piece],
        row: &mut Row,
        rows: &mut Rows<'_>,
    ) -> Result<(), Stop> {
        let (mut pages, mut missing) = content::pages(pieces, file.bytes);
        let all = pages.len();
        pages.retain(|page| self.ground.held.has(page.pfn));
        missing = missing.saturating_add(to_u64(all.saturating_sub(pages.len())));
        let ranges = ranges(&pages);
        let bytes = ranges.iter().map(|(start, end)| end.saturating_sub(*start));
        let bytes = bytes.fold(0, u64::saturating_add);
        self.left = self.left.saturating_sub(bytes);
        let name = rows.output.begin(&Recovered { ranges: &ranges, ..*file })?;
        row.set("linux.recovered.name", name);
        for page in &pages {
            let mut buffer = [0; 4096];
            let read = page.read(self.ground.system, &mut buffer);
            if read.is_none() {
                missing = missing.saturating_add(1);
            }
            rows.output.write(read.unwrap_or_else(|| ZEROS.get(..page.bytes).unwrap_or_default()))?;
        }
        rows.output.end()?;
        let listed: Vec<serde_json::Value> =
            ranges.iter().take(RANGES).map(|(start, end)| serde_json::json!([start, end])).collect();
        row.set("linux.recovered.ranges", listed);
        row.set("linux.recovered.range_count", to_u64(ranges.len()));
        if missing > 0 {
            row.error("file", &format!("{missing} pages are not in the dump, swapped out or not readable"));
        }
        Ok(())
    }
}

/// Pages that follow each other, together.
fn ranges(pages: &[FilePage]) -> Vec<Range> {
    let mut ranges = Vec::<Range>::new();
    for page in pages {
        let end = page.at.saturating_add(to_u64(page.bytes));
        match ranges.last_mut() {
            Some((_, last)) if *last == page.at => *last = end,
            _ => ranges.push((page.at, end)),
        }
    }
    ranges
}

fn inode_number(system: &System<'_>, inode: VirtAddr, offset: u64) -> String {
    system
        .word(inode, offset, "inode.i_ino")
        .map_or_else(|error: KernelError| error.to_string(), |number| number.to_string())
}
