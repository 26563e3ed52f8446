//! The lower limit of a dump's time: the kept pages lie in memory already, and are compressed and
//! nothing else.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow};
use base::addr::{Pfn, PfnRange, to_u64};
use storage::targets::file::FileSink;
use vmcore::sink::Sink;
use vmcore::source::{Core, Kdump, PhysicalMemory};

use super::job::Job;

/// Bytes that a thread takes at a time, as the pipeline does.
const PIECE: usize = 1 << 20;
const PAGE: usize = 4096;

/// The pages of `core` that a dump keeps, one after the other, without those that are zero.
pub fn kept_pages(core: &dyn Core, job: &Job) -> Result<Vec<u8>> {
    let file = tempfile::NamedTempFile::new().context("making a temporary file")?;
    write(core, job, file.path())?;
    let dump = Kdump::open(file.path()).context("opening the dump")?;
    let mut reader = dump.page_reader();
    let (mut pages, mut page) = (Vec::new(), vec![0; dump.page_size().in_memory()]);
    for &range in dump.ranges() {
        let mut absent = Vec::new();
        dump.absent(range, &mut |gone| absent.push(gone));
        for kept in without(range, &absent) {
            for pfn in (kept.start().0..kept.end().0).map(Pfn) {
                reader.read_page(pfn, &mut page).with_context(|| format!("reading page {pfn}"))?;
                if page.iter().any(|&byte| byte != 0) {
                    pages.extend_from_slice(&page);
                }
            }
        }
    }
    Ok(pages)
}

fn write(core: &dyn Core, job: &Job, path: &Path) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path).context("opening a temporary file")?;
    let mut dumped = job.dump(core, || FileSink::new(file));
    dumped.result.context("dumping to a temporary file")?;
    dumped.sink.sync().context("writing a temporary file")
}

/// The parts of `range` that are in none of `gone`, which are sorted.
fn without(range: PfnRange, gone: &[PfnRange]) -> Vec<PfnRange> {
    let (mut at, mut left) = (range.start(), Vec::new());
    for gap in gone.iter().filter_map(|gap| gap.intersect(range)) {
        left.extend(PfnRange::new(at, gap.start()));
        at = gap.end();
    }
    left.extend(PfnRange::new(at, range.end()));
    left
}

/// Compresses each page of `pages`, with `threads` threads and a context each. Returns how many
/// bytes come out; of a page that does not get smaller, its own.
pub fn compress(pages: &[u8], threads: usize, level: i32) -> Result<u64> {
    let (next, bytes) = (AtomicUsize::new(0), AtomicU64::new(0));
    let work = || -> Result<()> {
        let mut context = zstd::bulk::Compressor::new(level).context("making a compression context")?;
        let mut scratch = vec![0; zstd::zstd_safe::compress_bound(PAGE)];
        loop {
            let from = next.fetch_add(PIECE, Ordering::Relaxed).min(pages.len());
            let piece = pages.get(from..from.saturating_add(PIECE).min(pages.len())).unwrap_or_default();
            if piece.is_empty() {
                return Ok(());
            }
            for page in piece.chunks(PAGE) {
                let len = context.compress_to_buffer(page, &mut scratch).context("compressing a page")?;
                bytes.fetch_add(to_u64(len.min(PAGE)), Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut results = vec![work()];
        results.extend(others.into_iter().map(|one| one.join().map_err(|_| anyhow!("a thread panicked"))?));
        results.into_iter().collect::<Result<()>>()
    })?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_left_out() {
        let range = |from, to| PfnRange::new(Pfn(from), Pfn(to)).unwrap();
        assert_eq!(without(range(2, 9), &[]), [range(2, 9)]);
        assert_eq!(
            without(range(2, 9), &[range(0, 3), range(5, 6), range(8, 12)]),
            [range(3, 5), range(6, 8)]
        );
    }

    #[test]
    fn every_page_is_compressed_once() {
        let pages = vec![7; PIECE + 3 * PAGE];
        let one = compress(&pages[..PAGE], 1, 1).unwrap();
        assert_eq!(compress(&pages, 2, 1).unwrap(), one * (256 + 3));
    }
}
