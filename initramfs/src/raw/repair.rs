//! Making a kdump-compressed dump true again of which parts are lost: a page whose descriptor or
//! data is not all there becomes a lost page, and the header says INCOMPLETE.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use base::addr::to_u64;
use vmcore::format::kdump::{self, DESC_LEN, Header, Layout, PageDesc, SUB_HEADER_LEN};

use super::cover::Cover;

/// Descriptors that are read at a time.
const DESCS: u64 = 4096;

/// What became of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// It opens; so many of its pages are lost.
    Pages(u64),
    /// The header is lost, or it never was a kdump-compressed dump.
    NoHeader,
    /// It opens, but a part of bitmap 2 is lost: which page a descriptor is of is not known from
    /// there on, so no later page is left in the bitmap.
    Cut {
        /// The first page that is not known.
        pfn: u64,
        /// Pages before it that are lost.
        pages: u64,
    },
    /// Bitmap 2 is lost, or nobody knows which part of it: no page is left in it.
    NoBitmap,
}

/// Repairs the dump in `file`, of which `cover` is there and `holes` are known to be lost. `intact`
/// is how far that is all there is to know: the end of the furthest byte of the records before the
/// first one that is missing without a trace. `written` is `cover` with what an older record wrote
/// where a newer one is lost.
pub(super) fn repair(
    file: &File,
    cover: &Cover,
    written: &Cover,
    holes: &Cover,
    intact: u64,
) -> io::Result<Repair> {
    let Some((layout, header)) = read_headers(file)? else { return Ok(Repair::NoHeader) };
    let bs = layout.page_size.bytes();
    // The headers are written first and last, and differ only in what they say of the end: the
    // older ones do.
    if !written.has(0, to_u64(kdump::HEADER_LEN))
        || !written.has(bs, bs.saturating_add(to_u64(SUB_HEADER_LEN)))
    {
        return Ok(Repair::NoHeader);
    }
    let (block0, _) = layout.emit_headers(&Header { incomplete: true, ..header });
    file.write_all_at(&block0, 0)?;
    // The writer writes notes and bitmaps, without their zeros, before anything behind them. So a
    // record behind them without a gap before it says that all of them are there but for the holes.
    let (bitmap, descs) = (layout.bitmap2_offset(), layout.descs_offset());
    let lost = holes.within(bitmap, descs).first().map(|&(start, _)| start);
    let known = if intact > descs { lost.unwrap_or(descs) } else { bitmap };
    for (start, end) in written.within(known, descs) {
        each_piece(start, end, |at, len| file.write_all_at(&vec![0; len], at))?;
    }
    let mut kept = 0_u64;
    for (start, end) in cover.within(bitmap, known) {
        each_piece(start, end, |at, len| {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, at)?;
            kept = bytes.iter().fold(kept, |sum, byte| sum.saturating_add(u64::from(byte.count_ones())));
            Ok(())
        })?;
    }
    if known < descs && kept == 0 {
        return Ok(Repair::NoBitmap);
    }
    let mut good = 0_u64;
    let mut next = descs;
    let end = layout.desc_offset(kept).unwrap_or(u64::MAX);
    for (start, end) in written.within(descs, end) {
        // Whole descriptors, those too of which only a part is there; a range may begin in one that
        // was looked at.
        let skipped = start.saturating_sub(descs);
        let first = start.saturating_sub(skipped.checked_rem(to_u64(DESC_LEN)).unwrap_or(0)).max(next);
        let count = end.saturating_sub(first).div_ceil(to_u64(DESC_LEN));
        good = good.saturating_add(check_descs(file, cover, first, count)?);
        next = first.saturating_add(count.saturating_mul(to_u64(DESC_LEN)));
    }
    let pages = kept.saturating_sub(good);
    let pfn = known.saturating_sub(bitmap).saturating_mul(8);
    Ok(if known < descs { Repair::Cut { pfn, pages } } else { Repair::Pages(pages) })
}

fn read_headers(file: &File) -> io::Result<Option<(Layout, Header)>> {
    let mut block0 = [0; kdump::HEADER_LEN];
    if file.read_at(&mut block0, 0)? != block0.len() || !kdump::has_signature(&block0) {
        return Ok(None);
    }
    let Ok(size) = kdump::block_size(&block0) else { return Ok(None) };
    let mut sub_header = [0; SUB_HEADER_LEN];
    if file.read_at(&mut sub_header, size.bytes())? != sub_header.len() {
        return Ok(None);
    }
    Ok(kdump::parse_headers(&block0, &sub_header).ok())
}

/// Zeroes the descriptors, of `count` from the offset `first` on, that point to what is not there.
/// Gives how many of the others have data.
fn check_descs(file: &File, cover: &Cover, first: u64, count: u64) -> io::Result<u64> {
    let len = to_u64(DESC_LEN);
    let (mut at, mut left, mut good) = (first, count, 0_u64);
    while left > 0 {
        let now = left.min(DESCS);
        let mut bytes = vec![0; base::addr::to_usize(now).saturating_mul(DESC_LEN)];
        let mut have = 0_usize;
        while let Some(rest) = bytes.get_mut(have..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, at.saturating_add(to_u64(have)))? {
                0 => break, // the rest is zero
                got => have = have.saturating_add(got),
            }
        }
        let mut changed = false;
        let mut place = at;
        for slot in bytes.chunks_exact_mut(DESC_LEN) {
            let desc = PageDesc::parse(slot).unwrap_or_default();
            let data = desc.offset.checked_add(u64::from(desc.size));
            let true_desc = cover.has(place, place.saturating_add(len))
                && desc.size > 0
                && data.is_some_and(|end| cover.has(desc.offset, end));
            if desc.offset != 0 && true_desc {
                good = good.saturating_add(1);
            } else if slot.iter().any(|&byte| byte != 0) {
                slot.fill(0);
                changed = true;
            }
            place = place.saturating_add(len);
        }
        if changed {
            file.write_all_at(&bytes, at)?;
        }
        at = place;
        left = left.saturating_sub(now);
    }
    Ok(good)
}

fn each_piece(start: u64, end: u64, mut work: impl FnMut(u64, usize) -> io::Result<()>) -> io::Result<()> {
    let mut at = start;
    while at < end {
        let len = end.saturating_sub(at).min(1 << 20);
        work(at, base::addr::to_usize(len))?;
        at = at.saturating_add(len);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::addr::PageSize;

    #[test]
    fn a_hole_in_the_bitmap_costs_the_pages_behind_it() {
        let layout = Layout::new(PageSize::FOUR_KIB, 100_000, 0).unwrap();
        let (bitmap, descs) = (layout.bitmap2_offset(), layout.descs_offset());
        let data = layout.data_offset(9).unwrap();
        // Eight pages before the hole, one behind it; the data of the second is lost.
        let make = || {
            let file = tempfile::tempfile().unwrap();
            let (block0, sub) = layout.emit_headers(&Header::default());
            file.write_all_at(&block0, 0).unwrap();
            file.write_all_at(&sub, 4096).unwrap();
            file.write_all_at(&[0xff], bitmap + 1).unwrap();
            file.write_all_at(&[1], bitmap + 5001).unwrap();
            for rank in 0..9 {
                let desc = PageDesc { offset: data + rank * 4096, size: 4096, flags: 0 };
                file.write_all_at(&desc.emit(), layout.desc_offset(rank).unwrap()).unwrap();
            }
            file
        };
        let end = data + 9 * 4096;
        let mut cover = Cover::default();
        cover.add(0, end);
        cover.remove(data + 4096, data + 8192);
        let bits = |file: &File| {
            let mut bits = [0; 2];
            file.read_exact_at(&mut bits[..1], bitmap + 1).unwrap();
            file.read_exact_at(&mut bits[1..], bitmap + 5001).unwrap();
            bits
        };
        let mut holes = Cover::default();
        holes.add(layout.bitmap1_offset(), bitmap);
        let file = make();
        assert_eq!(
            repair(&file, &cover, &cover, &holes, end).unwrap(),
            Repair::Pages(1),
            "bitmap 1 says nothing of ranks"
        );
        assert_eq!(bits(&file), [0xff, 1]);

        cover.remove(bitmap + 5000, bitmap + 5001);
        holes.add(bitmap + 5000, bitmap + 5001);
        let file = make();
        assert_eq!(
            repair(&file, &cover, &cover, &holes, end).unwrap(),
            Repair::Cut { pfn: 40_000, pages: 1 }
        );
        assert_eq!(bits(&file), [0xff, 0]);

        let file = make();
        assert_eq!(
            repair(&file, &cover, &cover, &holes, descs).unwrap(),
            Repair::NoBitmap,
            "more may be missing"
        );
        assert_eq!(bits(&file), [0, 0]);
        holes.add(bitmap + 1, bitmap + 2);
        assert_eq!(repair(&make(), &cover, &cover, &holes, end).unwrap(), Repair::NoBitmap);
    }
}
