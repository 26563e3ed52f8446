//! The walks of triage over hostile memory: they end, what they say is JSON that no terminal acts upon, and
//! the archive is one that ends properly behind each of its parts.
//!
//! Input: an image, which lies where a made-up kernel's does. Where its variables and the members of its
//! structures are follows from their names alone, so that every walk has somewhere to start and each word of
//! the image may be a pointer.

use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read};
use std::time::Duration;

use symbols::kallsyms::Nameless;
use symbols::knowledge::{Knowledge, Question};
use symbols::testing::{RELEASE, START};
use triage::archive::{self, Archive, Chunk, Head};
use triage::artefacts::{self, Limits, Output, Recovered};
use triage::places::ROOT;
use vmcore::kernel::Kernel;
use vmcore::source::{Access, Core, Vmcore};

use crate::Scratch;
use crate::build::{Load, elf_core, note};

const PADDR: u64 = 0x1000;
/// `__START_KERNEL_map`
const MAP: u64 = 0xffff_ffff_8000_0000;

/// Answers every question.
struct Guess {
    image: u64,
}

impl Knowledge for Guess {
    fn ask(&self, question: Question<'_>) -> Option<u64> {
        let mut hash = DefaultHasher::new();
        hash.write(question.to_string().as_bytes());
        let number = hash.finish();
        Some(match question {
            Question::Symbol(_) => START + number % self.image.max(8) / 8 * 8,
            Question::Offset(..) => number % 32 * 8,
            Question::Size(_) | Question::MemberSize(..) => 8 + number % 32 * 8,
            Question::Elements(..) => 1 + number % 16,
            Question::Value(..) => number % 24,
        })
    }
}

/// Reads these bytes; panics where a promise is broken.
pub(crate) fn check(data: &[u8]) {
    walk(data);
}

/// Says how many rows there were; none where there is nothing to start from.
fn walk(data: &[u8]) -> Option<u64> {
    let phys_base = PADDR.wrapping_sub(START - MAP).cast_signed();
    let info = format!(
        "OSRELEASE={RELEASE}\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)={START:x}\nNUMBER(phys_base)={phys_base}\n"
    );
    let notes = note("VMCOREINFO", 0, info.as_bytes());
    let file = Scratch::new(&elf_core(&notes, &[Load { vaddr: START, paddr: PADDR, bytes: data }]));
    let core = Vmcore::open(&file.path(), Access::Pread).ok()?;
    let kernel = Kernel::new(&core, core.info(), core.mappings());
    let known = Guess { image: u64::try_from(data.len()).expect("64-bit lengths") };
    let limits =
        Limits { file: 1 << 20, files: 4 << 20, time: Duration::from_millis(20), ..Limits::default() };
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut send = |chunk| {
        chunks.push(chunk);
        Ok(())
    };
    let mut output = Checked(Archive::new(0, &mut send).expect("an archive"));
    let done = artefacts::walk_with(&kernel, &Nameless, &known, &limits, &mut output).ok()?;
    output.0.finish().expect("its end");
    let owed = chunks.iter().rev().nth(1).map_or(0, |chunk| chunk.owed);
    let all: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.frame.clone()).collect();
    read_back(&all);
    for chunk in &chunks {
        assert_eq!(Head::parse(&Head::of(chunk).to_bytes()), Head::of(chunk));
    }
    // Of an archive whose last part did not come.
    let cut = all.len() - chunks.last().map_or(0, |chunk| chunk.frame.len());
    let ending = archive::ending(owed, "it was ended", 0).expect("an ending").concat();
    read_back(&[&all[..cut], &ending].concat());
    Some(done.iter().map(|done| done.rows).sum())
}

/// Every file of an archive can be read, and lies where it should.
fn read_back(bytes: &[u8]) {
    let plain = zstd::stream::decode_all(bytes).expect("frames of zstd");
    let mut archive = tar::Archive::new(plain.as_slice());
    for entry in archive.entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a name").into_owned();
        assert!(
            path.is_relative() && path.components().all(|part| part.as_os_str() != ".."),
            "{}",
            path.display()
        );
        let mut contents = Vec::new();
        entry.read_to_end(&mut contents).expect("its contents");
        if path.extension().is_some_and(|ending| ending == "jsonl") {
            let text = String::from_utf8(contents).expect("UTF-8");
            assert!(
                text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()),
                "{}",
                path.display()
            );
        }
    }
}

/// Looks at what it passes on.
struct Checked<'a>(Archive<'a>);

impl Output for Checked<'_> {
    fn line(&mut self, file: &str, line: &str) -> io::Result<()> {
        let text = line.strip_suffix('\n').expect("a whole line");
        assert!(!text.contains(base::text::is_unsafe), "a terminal shows it: {line:?}");
        self.0.line(file, line)
    }

    fn done(&mut self, file: &str) -> io::Result<()> {
        self.0.done(file)
    }

    fn begin(&mut self, file: &Recovered<'_>) -> io::Result<String> {
        let mut at = 0;
        for (start, end) in file.ranges {
            assert!(at <= *start && start < end && *end <= file.bytes, "{:?}", file.ranges);
            at = *end;
        }
        let name = self.0.begin(file)?;
        assert!(name.starts_with(ROOT), "{name}");
        Ok(name)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write(bytes)
    }

    fn end(&mut self) -> io::Result<()> {
        self.0.end()
    }
}

/// Words that are pointers into the image, in some orders.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    [1_u64, 7, 61, 509]
        .into_iter()
        .map(|step| (0..1024_u64).flat_map(|word| (START + word * step % 1024 * 8).to_le_bytes()).collect())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_is_walked() {
        let rows: Vec<_> = seeds().iter().map(|seed| walk(seed)).collect();
        assert!(rows.iter().all(|rows| rows.is_some_and(|rows| rows > 0)), "{rows:?}");
    }
}
