//! Reading memory of a process by its own addresses.

use base::addr::{PhysAddr, to_u64, to_usize};

use crate::mappings::Space;
use crate::resident::{Pages, Place};

const PAGE: u64 = 4096;

/// Why memory of a process cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// The process has nothing there.
    #[error("{0:#x} is not mapped")]
    NotMapped(u64),
    /// It has, and it is not to be had.
    #[error("{0:#x} is {1}")]
    Absent(u64, &'static str),
}

/// Fills `out` from address `start` on.
pub fn read(pages: &Pages<'_>, space: &Space, start: u64, out: &mut [u8]) -> Result<(), UserError> {
    let mut at = start;
    let mut rest = out;
    while !rest.is_empty() {
        let take = to_usize(PAGE.saturating_sub(at % PAGE)).min(rest.len());
        let (head, tail) = rest.split_at_mut(take);
        piece(pages, space, at, head)?;
        at = at.checked_add(to_u64(take)).ok_or(UserError::NotMapped(at))?;
        rest = tail;
    }
    Ok(())
}

/// Bytes of one page.
fn piece(pages: &Pages<'_>, space: &Space, at: u64, out: &mut [u8]) -> Result<(), UserError> {
    let mapping = space.mapping(at).ok_or(UserError::NotMapped(at))?;
    let inside = at % PAGE;
    let mut found = None;
    pages.each_in(
        space,
        mapping,
        (at.saturating_sub(inside), at.saturating_sub(inside).saturating_add(PAGE)),
        &mut |run| {
            found = Some(run.place);
        },
    );
    let lost = UserError::Absent(at, "not readable");
    match found.ok_or(lost)? {
        Place::Page(pfn) => {
            let memory = pages.system.kernel.memory();
            let from =
                memory.page_size().addr_of(pfn).and_then(|PhysAddr(from)| PhysAddr(from).checked_add(inside));
            from.and_then(|from| memory.read_exact_at(from, out).ok()).ok_or(lost)
        }
        Place::Kernel(from) => {
            let from = from.checked_add(inside).ok_or(lost)?;
            pages.system.kernel.read(from, out, "the vDSO").map_err(|_| lost)
        }
        Place::Untouched => {
            out.fill(0);
            Ok(())
        }
        Place::Absent(why) => Err(UserError::Absent(at, why.text())),
    }
}
