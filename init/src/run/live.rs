//! What live collectors found before a planned switch: bytes in pages of the production kernel's
//! memory, which index pages name.
//!
//! Every number in those pages may be wrong: what is read is bounded by the record's length, and
//! each page must be memory. A page that cannot be read is written as zeros, so that what follows
//! stays where an archiver looks for it.

use std::io::{self, BufWriter, Write};

use sha2::{Digest, Sha256};

use base::addr::{PhysAddr, to_u64, to_usize};
use base::beat;
use base::facts::Live;
use vmcore::report::{Degradation, LiveOutput, Summary};
use vmcore::sink::Append;
use vmcore::source::PhysicalMemory;
use vmcore::target::{Artifact, Target};

/// Most bytes that are believed: twice what the host side lets collectors find, and its archive's
/// headers.
const MAX_LEN: u64 = 64 << 20;
/// The pages in the record are of this size, whatever the production kernel's is.
const PAGE: usize = 4096;

/// Saves them as an artifact, published only if it is what the record says.
pub(super) fn save(memory: &dyn PhysicalMemory, live: &Live, target: &mut dyn Target, summary: &mut Summary) {
    let artifact = Artifact::Live;
    let mut found = None;
    let mut save = || -> Result<(), Box<dyn core::error::Error>> {
        let mut sink = target.create(artifact)?;
        let mut out = BufWriter::with_capacity(64 << 10, Append::new(sink.as_mut()));
        let output = found.insert(copy(memory, live, &mut out)?);
        out.flush()?;
        drop(out);
        sink.sync()?;
        drop(sink);
        match damage(output, live) {
            None => Ok(target.publish(artifact)?),
            Some(damage) => Err(damage.into()),
        }
    };
    match save() {
        Ok(()) => log::info!("output of the live collectors saved: {} bytes", live.len),
        Err(error) => summary.degrade(Degradation::Live { cause: base::log::chain(error.as_ref()) }),
    }
    summary.live = found;
}

/// Copies the bytes to `out`, as many as the record says and this allows.
fn copy(memory: &dyn PhysicalMemory, live: &Live, out: &mut impl Write) -> io::Result<LiveOutput> {
    let mut output = LiveOutput::default();
    let mut hash = Sha256::new();
    let (mut page, mut index) = (vec![0; PAGE], vec![0; PAGE]);
    let mut left = live.len.min(MAX_LEN);
    for &index_pfn in &live.index {
        if left == 0 {
            break;
        }
        if !read_page(memory, index_pfn, &mut index) {
            index.fill(0xff); // no page has this number: its pages are missing
        }
        for entry in index.chunks_exact(8) {
            if left == 0 {
                break;
            }
            let pfn = entry.try_into().map_or(u64::MAX, u64::from_le_bytes);
            if !read_page(memory, pfn, &mut page) {
                page.fill(0);
                output.missing_pages = output.missing_pages.saturating_add(1);
            }
            let piece = page.get(..to_usize(left)).unwrap_or(&page);
            hash.update(piece);
            out.write_all(piece)?;
            let len = to_u64(piece.len());
            left = left.saturating_sub(len);
            output.bytes = output.bytes.saturating_add(len);
        }
        beat::alive();
    }
    output.sha256 = format!("{:x}", hash.finalize());
    output.intact = output.bytes == live.len && output.sha256 == live.sha256;
    Ok(output)
}

/// Reads a page, which must lie in the core; whether that went well.
fn read_page(memory: &dyn PhysicalMemory, pfn: u64, page: &mut [u8]) -> bool {
    let address = pfn.checked_mul(to_u64(PAGE)).map(PhysAddr);
    address.is_some_and(|address| memory.read_exact_at(address, page).is_ok())
}

/// What is wrong with the output, if it is not what the record says.
fn damage(output: &LiveOutput, live: &Live) -> Option<String> {
    let LiveOutput { bytes, missing_pages, sha256, intact } = output;
    let message = || {
        format!(
            "{bytes} of {} bytes, {missing_pages} pages not readable, SHA-256 {sha256} where the record says {}",
            live.len,
            live.sha256.escape_debug()
        )
    };
    (!intact).then(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmcore::source::testing::CoreFile;
    use vmcore::source::{Access, Vmcore};

    const FIRST: u64 = 0x100;

    fn sha256(bytes: &[u8]) -> String {
        format!("{:x}", Sha256::digest(bytes))
    }

    /// Memory in which `bytes` lie in pages of descending numbers, and the record of them.
    fn placed(bytes: &[u8]) -> (Vmcore, Live) {
        let pages: Vec<&[u8]> = bytes.chunks(PAGE).collect();
        let count = to_u64(pages.len());
        let indices = count.div_ceil(512);
        let mut memory = vec![0; to_usize(count + indices) * PAGE];
        let pfn_of = |page: u64| FIRST + count - 1 - page;
        for (page, bytes) in (0..).zip(&pages) {
            let at = to_usize(pfn_of(page) - FIRST) * PAGE;
            memory[at..at + bytes.len()].copy_from_slice(bytes);
            let at = to_usize(count) * PAGE + to_usize(page) * 8;
            memory[at..at + 8].copy_from_slice(&pfn_of(page).to_le_bytes());
        }
        let file = CoreFile::new().segment(FIRST * 4096, &memory).write();
        let index = (0..indices).map(|index| FIRST + count + index).collect();
        let live = Live { len: to_u64(bytes.len()), sha256: sha256(bytes), index };
        (Vmcore::open(file.path(), Access::Pread).unwrap(), live)
    }

    fn copied(memory: &Vmcore, live: &Live) -> (Vec<u8>, LiveOutput) {
        let mut out = Vec::new();
        let output = copy(memory, live, &mut out).unwrap();
        (out, output)
    }

    fn sample(len: usize) -> Vec<u8> {
        (0..len).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect()
    }

    #[test]
    fn bytes_are_found_through_several_index_pages() {
        for len in [1, PAGE, PAGE + 1, 700 * PAGE + 5] {
            let bytes = sample(len);
            let (memory, live) = placed(&bytes);
            let (out, output) = copied(&memory, &live);
            assert!(out == bytes, "{len} bytes");
            assert_eq!((output.bytes, output.missing_pages, output.intact), (live.len, 0, true));
            assert_eq!(damage(&output, &live), None);
        }
    }

    #[test]
    fn a_missing_page_is_zeros_and_told() {
        let bytes = sample(3 * PAGE);
        let (memory, mut live) = placed(&bytes);
        let index = live.index[0];
        // The last data page serves as the index: what it names is no memory.
        live.index = vec![FIRST];
        let (out, output) = copied(&memory, &live);
        assert_eq!((out.len(), output.missing_pages, output.intact), (3 * PAGE, 3, false));
        assert!(out.iter().all(|&byte| byte == 0));
        // An index page that is no memory.
        live.index = vec![1 << 60, index];
        let (out, output) = copied(&memory, &live);
        assert_eq!((out.len(), output.missing_pages), (3 * PAGE, 3));
        assert!(damage(&output, &live).unwrap().contains("3 pages not readable"));
    }

    #[test]
    fn a_record_that_lies_is_bounded() {
        let bytes = sample(2 * PAGE);
        let (memory, live) = placed(&bytes);
        let longer = Live { len: u64::MAX, index: vec![live.index[0]; 40], ..live.clone() };
        let (out, output) = copied(&memory, &longer);
        assert_eq!((to_u64(out.len()), output.intact), (MAX_LEN, false));
        let none = Live { index: Vec::new(), ..live.clone() };
        let (out, output) = copied(&memory, &none);
        assert_eq!((out.len(), output.intact), (0, false));
        let other = Live { sha256: "00".repeat(32), ..live };
        let (out, output) = copied(&memory, &other);
        assert!(out == bytes && !output.intact, "what could be read is written all the same");
        assert!(damage(&output, &other).unwrap().contains(&sha256(&bytes)));
    }
}
