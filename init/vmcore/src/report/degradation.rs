//! What went wrong during a capture and did not stop it.

use core::fmt;
use serde::Serialize;

use crate::filter::Contradiction;
use crate::kernel::info::Origin;
use crate::kernel::memmap::BadSection;
use crate::source::Anomaly;
use crate::target::Detour;
use base::attempt::Earlier;

/// Something that was made do with. The capture went on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Degradation {
    /// A module could not be loaded.
    Module {
        /// Its file in the image.
        path: String,
        /// Cause.
        cause: String,
    },
    /// The core's headers lie.
    Vmcore(Anomaly),
    /// VMCOREINFO is not the one of the vmcore's note.
    Vmcoreinfo(Origin),
    /// Page types cannot be told: no page is left out by its type.
    NoPageTypes {
        /// Cause.
        cause: String,
    },
    /// A page class claims pages that cannot be of it: its pages are kept.
    ClassNotUsed(Contradiction),
    /// The struct pages of a section are not found: its pages are kept.
    BadSection {
        /// First page.
        pfn: u64,
        /// Pages.
        pages: u64,
        /// What is wrong with it.
        why: BadSection,
    },
    /// Struct pages that contradict each other or cannot be read; the pages are kept.
    DamagedStructPages {
        /// Not readable.
        unreadable: u64,
        /// Free blocks whose order cannot be, or that hold a page in use.
        bad_heads: u64,
        /// Tails that lead to no head.
        stray_tails: u64,
        /// Of the kernel's own pages, claiming to be something else.
        vital: u64,
    },
    /// The kernel's name could not be read.
    Utsname {
        /// Cause.
        cause: String,
    },
    /// The kernel log could not be saved.
    Dmesg {
        /// Cause.
        cause: String,
    },
    /// The summary was not saved, or is not whole.
    Summary {
        /// Cause.
        cause: String,
    },
    /// Triage was not saved, or is not whole.
    Triage {
        /// Cause.
        cause: String,
    },
    /// The oldest part of the kernel log was left out: the target has no room for it, or the old
    /// kernel's page tables make more text of it than there can be.
    LogCut {
        /// Descriptors of the ring.
        left_out: u64,
    },
    /// A target could not be used.
    Target {
        /// Which.
        target: String,
        /// Cause.
        cause: String,
    },
    /// A target takes the dump, but not at the place that was asked for.
    Place(Detour),
    /// A target is too small for all that was to be saved.
    NoRoom {
        /// Bytes that it would take.
        needed: u64,
        /// Bytes that there are.
        room: u64,
        /// What is saved instead.
        instead: &'static str,
    },
    /// The machine crashes again and again: there is no dump until an operator has seen to it.
    CrashLoop {
        /// The target that has counted the crashes.
        target: String,
        /// How many it remembers.
        crashes: usize,
        /// What ends the loop.
        until: String,
    },
    /// Older captures could not be removed.
    Retire {
        /// Cause.
        cause: String,
    },
    /// A hook failed.
    Hook {
        /// Its program.
        path: String,
        /// How.
        cause: String,
    },
    /// An attempt at the capture came to a bad end.
    Attempt(Earlier),
    /// The handover page does not say why the capture kernel runs: taken for a panic.
    Handover {
        /// Its physical address.
        address: u64,
        /// What is wrong with it.
        cause: String,
    },
    /// The output of the live collectors is missing or damaged.
    Live {
        /// Cause.
        cause: String,
    },
    /// The notes could not be saved.
    Notes {
        /// Cause.
        cause: String,
    },
    /// The dump ends early.
    Dump {
        /// Cause.
        cause: String,
    },
    /// The dump is made of a file that is not whole.
    IncompleteInput {
        /// Why, a sentence for each reason.
        faults: Vec<String>,
    },
    /// Pages that could not be read.
    UnreadablePages {
        /// How many.
        pages: u64,
    },
    /// The configuration or the facts in the image could not be used.
    Config {
        /// Cause.
        cause: String,
    },
}

impl fmt::Display for Degradation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Module { path, cause } => write!(f, "module {path} not loaded: {cause}"),
            Self::Vmcore(anomaly) => write!(f, "vmcore: {anomaly}"),
            Self::Vmcoreinfo(Origin::Nowhere) => {
                f.write_str("there is no VMCOREINFO: no kernel log, no page types, 4 KiB pages assumed")
            }
            Self::Vmcoreinfo(Origin::Copy) => {
                f.write_str("the vmcore's VMCOREINFO is missing or of no use: the loader's copy is used")
            }
            Self::Vmcoreinfo(Origin::DamagedNote { keys }) => {
                write!(f, "{keys} keys of the vmcore's VMCOREINFO are damaged: the loader's copy is used")
            }
            Self::Vmcoreinfo(Origin::Memory { address }) => {
                write!(f, "the vmcore has no VMCOREINFO: the one found in memory at {address:#x} is used")
            }
            Self::NoPageTypes { cause } => write!(f, "page types unknown, all are kept: {cause}"),
            Self::ClassNotUsed(Contradiction { class, claimed, of, .. }) => {
                let class = class.name();
                write!(f, "{claimed} of {of} kernel pages claim to be {class}: {class} pages are kept")
            }
            Self::BadSection { pfn, pages, why } => {
                write!(f, "no struct pages for {pages} pages from {pfn:#x} ({why}): they are kept")
            }
            Self::DamagedStructPages { unreadable, bad_heads, stray_tails, vital } => write!(
                f,
                "damaged struct pages: {unreadable} unreadable, {bad_heads} free blocks and {stray_tails} \
                 tails that contradict others, {vital} of the kernel's own; the pages are kept"
            ),
            Self::Utsname { cause } => write!(f, "kernel name not read: {cause}"),
            Self::Dmesg { cause } => write!(f, "kernel log not saved: {cause}"),
            Self::Summary { cause } => write!(f, "summary not whole: {cause}"),
            Self::Triage { cause } => write!(f, "triage not whole: {cause}"),
            Self::LogCut { left_out } => write!(
                f,
                "the end of the kernel log is saved, and its oldest {left_out} records are not: there is no \
                 room for them, or more text than a log can have"
            ),
            Self::Target { target, cause } => write!(f, "target {target} not usable: {cause}"),
            Self::Place(detour) => write!(f, "{detour}"),
            Self::NoRoom { needed, room, instead } => {
                write!(f, "the dump takes about {needed} bytes and there are {room}: {instead} instead")
            }
            Self::CrashLoop { target, crashes, until } => write!(
                f,
                "CRASH LOOP: {target} remembers {crashes} crashes, too many in too short a time: only the \
                 log and the notes are saved until {until}"
            ),
            Self::Retire { cause } => write!(f, "older captures not removed: {cause}"),
            Self::Hook { path, cause } => write!(f, "hook {path} {cause}"),
            Self::Attempt(earlier) => write!(f, "{earlier}"),
            Self::Handover { address, cause } => {
                write!(f, "handover page at {address:#x}, taken for one of zeros: {cause}")
            }
            Self::Live { cause } => write!(f, "output of the live collectors not saved whole: {cause}"),
            Self::Notes { cause } => write!(f, "notes not saved: {cause}"),
            Self::Dump { cause } => write!(f, "the dump ends early: {cause}"),
            Self::IncompleteInput { faults } => {
                write!(f, "the input is not whole, and so is this dump: {}", faults.join("; "))
            }
            Self::UnreadablePages { pages } => {
                write!(f, "{pages} pages could not be read and are marked as lost")
            }
            Self::Config { cause } => write!(f, "configuration: {cause}"),
        }
    }
}
