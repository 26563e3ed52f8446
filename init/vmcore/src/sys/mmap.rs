//! Read-only windows over a file, and the one function that copies out of them.
//!
//! Two things make a mapped vmcore unlike ordinary memory. Devices that the crash did not stop may
//! still write to it, so every byte is read exactly once, volatile, and all work is done on the
//! copy. And a page can be gone (a file cut short, a failing disk), which the kernel reports as
//! SIGBUS. A machine check in old memory is another matter: it has no address that we could mend,
//! and ends the process or, with `mce=off`, the machine.
//!
//! The SIGBUS handler puts a zero page under the faulting address and marks the window; the copy
//! then runs to its end and reports [`Fault`]. This needs no jump out of the handler: `mmap` is a
//! plain system call and the bookkeeping is lock-free atomics. A fault outside every window gets
//! the default action (the process dies and PID 1 goes on).

use std::fs::File;
use std::io;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, compiler_fence};

use memmap2::{Mmap, MmapOptions};
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{SysconfVar, sysconf};

/// Windows that can be open at one time in a process; one per worker, so far more than there are
/// CPUs.
const SLOTS: usize = 256;
/// Page size of the kernel that we run on, which the SIGBUS handler cannot ask for.
static HOST_PAGE: AtomicUsize = AtomicUsize::new(4096);

/// A window's address range, as the SIGBUS handler sees it; `start == 0` is a free slot.
struct Slot {
    taken: AtomicBool,
    start: AtomicUsize,
    end: AtomicUsize,
    faulted: AtomicBool,
}

static WINDOWS: [Slot; SLOTS] = [const {
    Slot {
        taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        faulted: AtomicBool::new(false),
    }
}; SLOTS];

/// Memory under a window was gone while it was copied. The window is of no more use: drop it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault;

/// A read-only mapping of a part of a file.
#[derive(Debug)]
pub(crate) struct Window {
    map: Mmap,
    offset: u64,
    slot: usize,
}

impl Window {
    /// Maps `len` bytes of `file` from `offset`; the kernel wants `offset` to be a multiple of its
    /// page size.
    pub(crate) fn map(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(|| {
            if let Err(error) = install_handler() {
                log::warn!("no SIGBUS handler ({error}): a lost page will end this attempt");
            }
        });
        let slot = WINDOWS
            .iter()
            .position(|slot| !slot.taken.swap(true, Ordering::AcqRel))
            .ok_or_else(|| io::Error::other("all mapping slots are in use"))?;
        // SAFETY:
        // - No `&[u8]` to the mapping is ever made: `copy_out` reads it through raw pointers,
        //   volatile, so that bytes may change under it.
        // - If the file shrinks, access raises SIGBUS, which the handler above turns into `Fault`.
        let mapped = unsafe { MmapOptions::new().offset(offset).len(len).map(file) };
        let map = mapped.inspect_err(|_| release(slot))?;
        if let Some(place) = WINDOWS.get(slot) {
            let start = map.as_ptr().addr();
            place.faulted.store(false, Ordering::Relaxed);
            place.end.store(start.saturating_add(len), Ordering::Relaxed);
            place.start.store(start, Ordering::Release);
        }
        Ok(Self { map, offset, slot })
    }

    /// Whether the window holds `len` bytes from file offset `offset`.
    #[must_use]
    pub(crate) fn covers(&self, offset: u64, len: usize) -> bool {
        self.place(offset, len).is_some()
    }

    /// Copies the bytes at file offset `offset` into `out`. Each byte is read once.
    ///
    /// The caller checks [`Window::covers`] first; bytes outside the window are a [`Fault`] too.
    pub(crate) fn copy_out(&self, offset: u64, out: &mut [u8]) -> Result<(), Fault> {
        let at = self.place(offset, out.len()).ok_or(Fault)?;
        let slot = WINDOWS.get(self.slot).ok_or(Fault)?;
        // SAFETY:
        // - `place` has checked that `at + out.len()` lies inside the mapping, which lives as long
        //   as `self`.
        // - `out` is exclusive and cannot overlap a mapping that nobody can write through.
        // - Concurrent writers to the mapped memory exist only outside this process (devices, the
        //   old kernel's file), and volatile reads do not assume otherwise.
        unsafe { copy_volatile(self.map.as_ptr().add(at), out) };
        compiler_fence(Ordering::SeqCst); // the handler runs on this thread, between the two lines above
        if slot.faulted.load(Ordering::Relaxed) { Err(Fault) } else { Ok(()) }
    }

    /// Asks the CPU to fetch bytes that are going to be copied. Never faults: what is not mapped
    /// yet stays where it is.
    pub(crate) fn prefetch(&self, offset: u64, len: usize) {
        #[cfg(target_arch = "x86_64")]
        if let Some(at) = self.place(offset, len) {
            use core::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            for line in (at..at.saturating_add(len)).step_by(64) {
                // SAFETY: `place` has checked that the line lies inside the mapping; a prefetch has
                // no effect that a program can see.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(self.map.as_ptr().add(line).cast()) };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (offset, len);
    }

    fn place(&self, offset: u64, len: usize) -> Option<usize> {
        let at = usize::try_from(offset.checked_sub(self.offset)?).ok()?;
        (at.checked_add(len)? <= self.map.len()).then_some(at)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        release(self.slot);
    }
}

fn release(slot: usize) {
    if let Some(slot) = WINDOWS.get(slot) {
        slot.start.store(0, Ordering::Relaxed);
        slot.end.store(0, Ordering::Relaxed);
        slot.taken.store(false, Ordering::Release);
    }
}

/// Copies `out.len()` bytes from `from`, in 8-byte volatile reads where both sides allow it.
///
/// # Safety
/// `from` must be readable for `out.len()` bytes.
#[expect(clippy::cast_ptr_alignment, reason = "words are read only where `from` is aligned")]
unsafe fn copy_volatile(from: *const u8, out: &mut [u8]) {
    let words = if from.addr().is_multiple_of(8) { out.len() / 8 } else { 0 };
    let (body, tail) = out.split_at_mut(words.saturating_mul(8));
    let (words, rest) = (from.cast::<u64>(), from.wrapping_add(body.len()));
    for (index, word) in body.chunks_exact_mut(8).enumerate() {
        // SAFETY: in bounds by the contract; aligned, since there are no words otherwise.
        let value = unsafe { ptr::read_volatile(words.add(index)) };
        word.copy_from_slice(&value.to_ne_bytes());
    }
    for (index, byte) in tail.iter_mut().enumerate() {
        // SAFETY: in bounds by the contract.
        *byte = unsafe { ptr::read_volatile(rest.add(index)) };
    }
}

fn install_handler() -> nix::Result<()> {
    if let Some(size) = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|size| usize::try_from(size).ok()) {
        HOST_PAGE.store(size, Ordering::Relaxed);
    }
    let action = SigAction::new(
        SigHandler::SigAction(on_sigbus),
        SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK,
        SigSet::empty(),
    );
    // SAFETY: `on_sigbus` only calls async-signal-safe functions and touches only atomics.
    unsafe { sigaction(Signal::SIGBUS, &action) }.map(drop)
}

extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo_t to an SA_SIGINFO handler, and SIGBUS fills
    // si_addr.
    let addr = unsafe { (*info).si_addr() }.addr();
    for slot in &WINDOWS {
        let (start, end) = (slot.start.load(Ordering::Acquire), slot.end.load(Ordering::Relaxed));
        if start != 0 && start <= addr && addr < end {
            slot.faulted.store(true, Ordering::Relaxed);
            let host_page = HOST_PAGE.load(Ordering::Relaxed);
            let page = ptr::without_provenance_mut(addr & !host_page.wrapping_sub(1));
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            // SAFETY: the page lies in a live mapping of ours (the slot is released before the
            // mapping goes), and replacing it only takes away memory that is read through raw
            // pointers.
            let mapped = unsafe { libc::mmap(page, host_page, libc::PROT_READ, flags, -1, 0) };
            if mapped != libc::MAP_FAILED {
                return;
            }
        }
    }
    // Not ours, or not curable: returning with the default action set makes the access fault again
    // and die. SAFETY: signal(2) is async-signal-safe and SIG_DFL is a valid disposition.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const HOST_PAGE: usize = 4096;

    fn file(len: usize) -> File {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
        file.write_all(&bytes).unwrap();
        file
    }

    #[test]
    fn copies_any_alignment() {
        let file = file(3 * HOST_PAGE);
        let window = Window::map(&file, 4096, 2 * HOST_PAGE).unwrap();
        for (offset, len) in [(4096, 8), (4097, 17), (5000, 4096), (4096, 2 * HOST_PAGE)] {
            let mut out = vec![0; len];
            window.copy_out(u64::try_from(offset).unwrap(), &mut out).unwrap();
            let expected: Vec<u8> = (offset..offset + len).map(|i| u8::try_from(i % 251).unwrap()).collect();
            assert_eq!(out, expected);
        }
        assert!(!window.covers(4095, 1) && !window.covers(4096, 2 * HOST_PAGE + 1));
        assert_eq!(window.copy_out(0, &mut [0]), Err(Fault));
    }

    #[test]
    fn a_page_that_vanishes_is_a_fault_not_a_death() {
        let file = file(4 * HOST_PAGE);
        let window = Window::map(&file, 0, 4 * HOST_PAGE).unwrap();
        file.set_len(4096).unwrap();
        let mut page = vec![0; HOST_PAGE];
        assert_eq!(window.copy_out(0, &mut page), Ok(()));
        assert_eq!(window.copy_out(2 * 4096, &mut page), Err(Fault));
        drop(window);
        let again = Window::map(&file, 0, HOST_PAGE).unwrap();
        assert_eq!(again.copy_out(0, &mut page), Ok(()), "a fault stays with its window");
    }
}
