//! A process's core file, out of a dump of the whole machine.
//!
//! A segment has what is there of a mapping: bytes, with a hole in the file for zeros, or no bytes
//! where nobody has touched a long stretch. **What is absent is in no segment**: debuggers say that
//! they cannot access it, or read it from the file that is mapped there, and never show zeros for
//! it. A note of ours (owner `AFTERIMAGE`, also the section `.afterimage`) lists all mappings and
//! what is absent.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use base::addr::{PfnRange, VirtAddr, to_u64, to_usize};
use vmcore::kernel::KernelError;
use vmcore::source::{Core, PageReader};

use crate::mappings::Space;
use crate::notes::{self, Ids};
use crate::plan::{Absent, Counts, Plan};
use crate::registers::{self, Origin, Processors};
use crate::resident::{Held, Pages, Place, Run};
use crate::system::System;
use crate::tasks::{Process, Processes, Task};

const PAGE: u64 = 4096;
/// Pages that are read at a time.
const PIECE: u64 = 64;
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const SECTION_HEADER: usize = 64;
/// `PN_XNUM`: there are more segments, and section 0 says how many.
const MANY: u64 = 0xffff;
/// Bytes of our own note.
const MAX_TEXT: usize = 4 << 20;
const SECTION_NAMES: &[u8] = b"\0.afterimage\0.shstrtab\0";

/// Why there is no core.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// There is no such process.
    #[error("no process and no thread has PID {0}")]
    NoProcess(u32),
    /// It is one of the kernel's own.
    #[error("{name} (PID {pid}) is a thread of the kernel: it has no memory of its own")]
    Kernel {
        /// Which.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// It has exited.
    #[error("{name} (PID {pid}) has exited: its memory was given back")]
    Exited {
        /// Which.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// The memory.
    #[error("reading the mappings of the process")]
    Memory(#[from] KernelError),
    /// The file.
    #[error("writing the core file")]
    Write(#[from] io::Error),
}

/// What is in a core.
#[derive(Clone, Debug)]
pub struct Report {
    /// The process.
    pub process: Process,
    /// Its threads, in the order of the file, and where their registers come from.
    pub threads: Vec<(Task, Origin)>,
    /// Whether the first of them is the one that the kernel panicked in.
    pub crashed: bool,
    /// Mappings.
    pub mappings: usize,
    /// Segments of memory.
    pub segments: usize,
    /// Its pages.
    pub counts: Counts,
    /// What is absent, by address; pages that turned out not to be readable come last.
    pub absent: Vec<Absent>,
    /// Stretches of absent pages that are not in `absent`.
    pub more_absent: u64,
    /// What is wrong with the process in memory.
    pub faults: Vec<String>,
}

impl Report {
    /// Whether all is there that the process had in memory.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.counts.lost() == 0 && self.faults.is_empty()
    }
}

/// Writes the core of the process that has the thread `pid` into `file`, which is empty.
pub fn write(
    system: &System<'_>,
    core: &dyn Core,
    processes: &Processes,
    pid: u32,
    file: &File,
) -> Result<Report, CoreError> {
    let process = processes.of(pid).ok_or(CoreError::NoProcess(pid))?;
    let name = || process.leader.comm.clone();
    let mm = process.mm().ok_or_else(|| {
        if process.leader.is_kernel {
            CoreError::Kernel { pid, name: name() }
        } else {
            CoreError::Exited { pid, name: name() }
        }
    })?;
    let space = Space::read(system, mm)?;
    let held = Held::new(core);
    let pages = Pages::new(system, &held);
    let mut plan = Plan::new(&pages, &space);
    let data = data_start(&plan);
    let mut writer = Writer {
        file,
        data,
        reader: core.page_reader(),
        buffer: vec![0; to_usize(PIECE.saturating_mul(PAGE))],
    };
    for mapping in &space.mappings {
        let mut runs = Vec::new();
        pages.each(&space, mapping, &mut |run| {
            if matches!(run.place, Place::Page(_) | Place::Kernel(_)) {
                runs.push(run);
            }
        });
        for run in runs {
            writer.run(system, &mut plan, run)?;
        }
    }
    let threads = in_order(system, process, pid);
    let processors = Processors::read(core);
    let files = notes::files(system, &space);
    let arguments = notes::arguments(&pages, &space, 80);
    let (mut bytes, origins) = of_threads(system, process, &threads, &processors, &arguments);
    notes::auxv(&mut bytes, &space.auxv);
    notes::mapped_files(&mut bytes, &space, &files);
    let text = text(process, &space, &files, &plan);
    notes::own(&mut bytes, &text);
    finish(file, &plan, data, &bytes, text.len())?;
    Ok(Report {
        crashed: threads.first().is_some_and(|task| registers::crashed(system, task)),
        threads: threads.into_iter().zip(origins).collect(),
        process: process.clone(),
        mappings: space.mappings.len(),
        segments: plan.segments.len(),
        counts: plan.counts,
        absent: plan.absent,
        more_absent: plan.more_absent,
        faults: space.faults,
    })
}

/// The threads, the one first that is asked for by its own number, or else that has crashed.
fn in_order(system: &System<'_>, process: &Process, pid: u32) -> Vec<Task> {
    let mut threads = process.threads.clone();
    let named = threads.iter().position(|task| task.pid == pid && pid != process.leader.pid);
    let crashed = || threads.iter().position(|task| registers::crashed(system, task));
    let leader = || threads.iter().position(|task| task.pid == process.leader.pid);
    if let Some(first) = named.or_else(crashed).or_else(leader) {
        let task = threads.remove(first);
        threads.insert(0, task);
    }
    threads
}

/// The notes of the threads, and of the process behind those of the first one.
fn of_threads(
    system: &System<'_>,
    process: &Process,
    threads: &[Task],
    processors: &Processors,
    arguments: &[u8],
) -> (Vec<u8>, Vec<Origin>) {
    let (mut bytes, mut origins) = (Vec::new(), Vec::new());
    for task in threads {
        let registers = registers::of(system, processors, task);
        let ids = Ids::read(system, task.address);
        notes::thread(&mut bytes, task, ids, &registers);
        if origins.is_empty() {
            notes::process(&mut bytes, process, ids, arguments);
        }
        origins.push(registers.origin);
    }
    (bytes, origins)
}

/// Where the first bytes of memory lie.
fn data_start(plan: &Plan) -> u64 {
    let headers = plan.headers().saturating_mul(to_u64(PROGRAM_HEADER));
    headers.saturating_add(to_u64(HEADER)).next_multiple_of(PAGE)
}

struct Writer<'a> {
    file: &'a File,
    data: u64,
    reader: Box<dyn PageReader + 'a>,
    buffer: Vec<u8>,
}

impl Writer<'_> {
    /// Copies pages; zeros stay a hole.
    fn run(&mut self, system: &System<'_>, plan: &mut Plan, run: Run) -> io::Result<()> {
        let mut done = 0_u64;
        while let Some(left) = run.pages.checked_sub(done).filter(|left| *left > 0) {
            let count = left.min(PIECE);
            let start = run.start.saturating_add(done.saturating_mul(PAGE));
            // More than there is room for.
            let Some(at) = plan.offset(start) else { return Ok(()) };
            if self.fill(system, run.place, done, count).is_some() {
                self.put(at, count)?;
            } else {
                for one in 0..count {
                    let ahead = one.saturating_mul(PAGE);
                    match self.fill(system, run.place, done.saturating_add(one), 1) {
                        Some(()) => self.put(at.saturating_add(ahead), 1)?,
                        None => plan.lose(start.saturating_add(ahead)),
                    }
                }
            }
            done = done.saturating_add(count);
        }
        Ok(())
    }

    /// Reads pages into the buffer.
    fn fill(&mut self, system: &System<'_>, place: Place, ahead: u64, count: u64) -> Option<()> {
        let out = self.buffer.get_mut(..to_usize(count.checked_mul(PAGE)?))?;
        match place {
            Place::Page(pfn) => {
                let range = PfnRange::block(pfn.saturating_add(ahead), count);
                let from = system.kernel.page_size().addr_of(range.start())?;
                self.reader.read_exact_at(from, out).ok()
            }
            Place::Kernel(VirtAddr(from)) => {
                let from = VirtAddr(from.checked_add(ahead.checked_mul(PAGE)?)?);
                system.kernel.read(from, out, "the vDSO").ok()
            }
            Place::Untouched | Place::Absent(_) => None,
        }
    }

    /// Writes the pages in the buffer that are not all zeros.
    fn put(&mut self, at: u64, count: u64) -> io::Result<()> {
        let pages = self.buffer.chunks_exact(to_usize(PAGE)).take(to_usize(count));
        for (index, page) in (0_u64..).zip(pages) {
            if page.iter().any(|byte| *byte != 0) {
                let at = self.data.saturating_add(at).saturating_add(index.saturating_mul(PAGE));
                self.file.write_all_at(page, at)?;
            }
        }
        Ok(())
    }
}

/// Our own note: the mappings as /proc/PID/maps has them, and what is absent.
fn text(process: &Process, space: &Space, files: &[Option<Vec<u8>>], plan: &Plan) -> String {
    let counts = &plan.counts;
    let mut text = format!(
        "PID {}: {} pages are here, {} were never touched and are zeros, {} that it had are absent\n\nmappings:\n",
        process.leader.pid,
        counts.here,
        counts.untouched,
        counts.lost(),
    );
    for (mapping, name) in space.mappings.iter().zip(files) {
        let name = String::from_utf8_lossy(name.as_deref().unwrap_or_default());
        let is_vdso = space.vdso.is_some_and(|(start, ..)| start == mapping.start);
        let _ = writeln!(
            text,
            "{:x}-{:x} {} {:08x} {}",
            mapping.start,
            mapping.end,
            mapping.rights(),
            if mapping.file.is_some() { mapping.offset.saturating_mul(PAGE) } else { 0 },
            if is_vdso { "[vdso]" } else { &name },
        );
        if text.len() > MAX_TEXT {
            text.push_str("and more\n");
            break;
        }
    }
    text.push_str("\nabsent:\n");
    for absent in &plan.absent {
        let end = absent.start.saturating_add(absent.pages.saturating_mul(PAGE));
        let _ = writeln!(text, "{:x}-{end:x} {} pages: {}", absent.start, absent.pages, absent.why.text());
    }
    if plan.more_absent > 0 {
        let _ = writeln!(text, "and {} more stretches", plan.more_absent);
    }
    text
}

/// Writes everything but the memory.
fn finish(file: &File, plan: &Plan, data: u64, notes: &[u8], text: usize) -> io::Result<()> {
    let notes_at = data.saturating_add(plan.pages.saturating_mul(PAGE));
    let names_at = notes_at.saturating_add(to_u64(notes.len()));
    let sections_at = names_at.saturating_add(to_u64(SECTION_NAMES.len())).next_multiple_of(8);
    let count = plan.headers();
    let mut head = Vec::with_capacity(to_usize(data));
    head.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // ET_CORE, EM_X86_64, EV_CURRENT.
    head.extend([[4, 0], [62, 0], [1, 0], [0, 0]].as_flattened());
    head.extend([0, to_u64(HEADER), sections_at].map(u64::to_le_bytes).as_flattened());
    head.extend(0_u32.to_le_bytes());
    let short = |value: u64| u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes();
    let sizes = [HEADER, PROGRAM_HEADER].map(to_u64);
    let counts = [count.min(MANY), to_u64(SECTION_HEADER), 3, 2];
    head.extend(sizes.into_iter().chain(counts).flat_map(short));
    let mut program_header = |kind: u32, flags: u32, words: [u64; 6]| {
        head.extend([kind, flags].map(u32::to_le_bytes).as_flattened());
        head.extend(words.map(u64::to_le_bytes).as_flattened());
    };
    program_header(4, 0, [notes_at, 0, 0, to_u64(notes.len()), 0, 4]);
    for segment in &plan.segments {
        let bytes = segment.pages.saturating_mul(PAGE);
        let at = data.saturating_add(segment.at.unwrap_or(0).saturating_mul(PAGE));
        let in_file = if segment.at.is_some() { bytes } else { 0 };
        program_header(1, segment.flags, [at, segment.start, 0, in_file, bytes, PAGE]);
    }
    file.write_all_at(&head, 0)?;
    file.write_all_at(notes, notes_at)?;
    file.write_all_at(SECTION_NAMES, names_at)?;
    let padding = text.next_multiple_of(4).saturating_sub(text);
    let text_at = names_at.saturating_sub(to_u64(text.saturating_add(padding)));
    let mut sections = Vec::new();
    let mut section = |name: u32, kind: u32, at: u64, len: u64, info: u64| {
        sections.extend([name, kind].map(u32::to_le_bytes).as_flattened());
        sections.extend([0, 0, at, len, info << 32, 1, 0].map(u64::to_le_bytes).as_flattened());
    };
    section(0, 0, 0, 0, if count < MANY { 0 } else { count });
    section(1, 1, text_at, to_u64(text), 0);
    section(13, 3, names_at, to_u64(SECTION_NAMES.len()), 0);
    file.write_all_at(&sections, sections_at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Segment;
    use base::fields::Fields;
    use std::io::Read;

    #[test]
    fn more_segments_than_a_header_can_count_are_counted_in_section_0() {
        for count in [0xfffd_u64, 0xfffe, 70_000] {
            let segment = |index: u64| Segment { start: index << 13, pages: 1, flags: 4, at: None };
            let mut plan = Plan::default();
            plan.segments.extend((0..count).map(segment));
            let mut file = tempfile::tempfile().unwrap();
            finish(&file, &plan, data_start(&plan), b"noteabcd", 4).unwrap();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            let elf = Fields(&bytes);
            let sections = to_usize(elf.u64(40).unwrap());
            let told = (elf.u16(56).unwrap(), elf.u32(sections + 44).unwrap());
            let headers = u32::try_from(count + 1).unwrap();
            assert_eq!(told, if count < 0xfffe { (0xfffe, 0) } else { (0xffff, headers) });
            let own = to_usize(elf.u64(sections + 64 + 24).unwrap());
            assert_eq!(elf.bytes(own, 4), Some(b"abcd".as_slice()), "section .afterimage");
            assert_eq!(bytes.len(), sections + 3 * SECTION_HEADER);
        }
    }
}
