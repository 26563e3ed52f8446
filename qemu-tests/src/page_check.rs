//! Counts the self-checking pages in a dump. drgn reads the dump; what a page has to hold comes
//! from [`crate::pages`].

use crate::command::command;
use crate::pages::{Kind, PAGE, fill, head};
use crate::readers::drgn_python;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;

/// What is found of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Pages of different index that are whole.
    pub whole: usize,
    /// Pages that begin as one of the kind and go on otherwise.
    pub broken: usize,
    seen: Vec<bool>,
}

/// What is found in a dump.
#[derive(Clone, Debug, Default)]
pub struct Tally(BTreeMap<Kind, Found>);

impl Tally {
    /// Reads all memory below `end` in a dump or an ELF core.
    pub fn of(dump: &Path, end: u64, seed: &str) -> Result<Self> {
        let tags = Kind::ALL.map(|kind| (kind, kind.tag(seed)));
        let mut reader = command(&drgn_python()?.to_string_lossy())
            .args(["-c", include_str!("pages.py")])
            .arg(dump)
            .arg(end.to_string())
            .args(tags.map(|(_, tag)| format!("{:016x}", tag.swap_bytes())))
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the reader of pages")?;
        let mut pages = BufReader::with_capacity(1 << 20, reader.stdout.take().context("no output")?);
        let mut tally = Self::default();
        let mut page = vec![0; PAGE];
        let mut expected = vec![0; PAGE];
        while read_page(&mut pages, &mut page)? {
            let (tag, index) = head(&page).context("a page without a head")?;
            let kind = tags.iter().find_map(|&(kind, of)| (of == tag).then_some(kind));
            fill(&mut expected, tag, index);
            tally
                .0
                .entry(kind.context("a page that was not asked for")?)
                .or_default()
                .add(usize::try_from(index).unwrap_or(usize::MAX), page == expected);
        }
        let status = reader.wait().context("waiting for the reader of pages")?;
        ensure!(status.success(), "reading the pages of {}: {status}", dump.display());
        Ok(tally)
    }

    /// Of one kind.
    #[must_use]
    pub fn found(&self, kind: Kind) -> Found {
        self.0.get(&kind).cloned().unwrap_or_default()
    }

    /// Fails unless all of `count` pages of each of these kinds are there and whole, and no other.
    pub fn ensure_whole(&self, kinds: &[Kind], count: usize) -> Result<()> {
        for kind in kinds {
            let Found { whole, broken, seen } = self.found(*kind);
            ensure!(
                whole == count && broken == 0 && seen.len() == count,
                "of {count} {kind} pages {whole} are whole, {broken} are broken, the last one is {}",
                seen.len()
            );
        }
        Ok(())
    }
}

impl Found {
    /// No index is that large that is not the consequence of damage.
    const MOST: usize = 1 << 24;

    fn add(&mut self, index: usize, whole: bool) {
        if !whole || index > Self::MOST {
            self.broken = self.broken.saturating_add(1);
            return;
        }
        if self.seen.len() <= index {
            self.seen.resize(index.saturating_add(1), false);
        }
        if let Some(seen @ false) = self.seen.get_mut(index) {
            *seen = true;
            self.whole = self.whole.saturating_add(1);
        }
    }
}

/// Where the file of an ELF core ends by its own program headers.
pub fn elf_end(core: &Path) -> Result<u64> {
    let context = || format!("reading the headers of {}", core.display());
    let file = File::open(core).with_context(context)?;
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0).with_context(context)?;
    ensure!(header.starts_with(b"\x7fELF\x02\x01"), "{} is no ELF64 file", core.display());
    // Elf64_Ehdr: e_phoff at 32, e_phentsize at 54, e_phnum at 56.
    let table = number(&header, 32, 8)?;
    let (size, count) = (number(&header, 54, 2)?, number(&header, 56, 2)?);
    let mut end = 0;
    for index in 0..count {
        let mut entry = [0; 56];
        let at = table.saturating_add(index.saturating_mul(size));
        file.read_exact_at(&mut entry, at).with_context(context)?;
        // Elf64_Phdr: p_offset at 8, p_filesz at 32.
        end = end.max(number(&entry, 8, 8)?.saturating_add(number(&entry, 32, 8)?));
    }
    Ok(end)
}

/// A little-endian number of `size` bytes.
fn number(bytes: &[u8], at: usize, size: usize) -> Result<u64> {
    let bytes = bytes.get(at..at.saturating_add(size)).context("a header is short")?;
    Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

/// Whether there was another page.
fn read_page(pages: &mut impl Read, page: &mut [u8]) -> Result<bool> {
    let mut size = 0;
    while size < page.len() {
        let read = pages.read(page.get_mut(size..).unwrap_or_default()).context("reading pages")?;
        if read == 0 {
            ensure!(size == 0, "a page of {size} bytes");
            return Ok(false);
        }
        size = size.saturating_add(read);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_counts_once_and_damage_counts() {
        let mut found = Found::default();
        for (index, whole) in [(0, true), (2, true), (2, true), (1, false), (usize::MAX, true)] {
            found.add(index, whole);
        }
        assert_eq!((found.whole, found.broken), (2, 2));
        let tally = Tally([(Kind::Dirty, found.clone())].into());
        assert!(tally.ensure_whole(&[Kind::Dirty], 3).is_err());
        found.broken = 0;
        found.add(1, true);
        let tally = Tally([(Kind::Dirty, found)].into());
        tally.ensure_whole(&[Kind::Dirty], 3).unwrap();
        for (kinds, count) in [([Kind::Dirty], 2), ([Kind::Dirty], 4), ([Kind::Clean], 3)] {
            assert!(tally.ensure_whole(&kinds, count).is_err());
        }
    }

    #[test]
    fn the_end_is_that_of_the_last_segment() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut elf = vec![0; 64 + 2 * 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 2;
        elf[64 + 8 + 1] = 0x20; // p_offset 0x2000
        elf[64 + 32] = 5; // p_filesz
        elf[64 + 56 + 8] = 0xb0;
        std::fs::write(file.path(), &elf).unwrap();
        assert_eq!(elf_end(file.path()).unwrap(), 0x2005);
        std::fs::write(file.path(), "no ELF").unwrap();
        assert!(elf_end(file.path()).is_err());
    }
}
