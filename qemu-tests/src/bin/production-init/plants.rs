//! What is planted on request (`prod.plant=`) for a page filter to judge, and the report on where
//! it is.

use crate::hotplug;
use crate::pagemap::{KPageFlags, of_file, of_memory};
use crate::say::say;
use crate::user_memory::set;
use crate::{kernel_memory, swap, user_memory};
use anyhow::{Context, Result, ensure};
use memmap2::{MmapMut, MmapRaw};
use qemu_tests::page_flags::{Flag, Flags};
use qemu_tests::planted::{Plant, Planted, pages};
use std::path::Path;

/// Something planted, held until the panic.
pub(crate) enum Held {
    /// Memory of this process that has its pages until the end.
    Memory(MmapMut),
    /// A file that is mapped.
    File(MmapRaw),
    /// Page cache, to be written at the last moment with this seed: other plants push it out of memory,
    /// and a page that is read again has lost its buffers.
    ToBeWritten(String),
    /// Memory to be given back at the last moment, so that nobody takes it.
    ToBeFreed(MmapMut),
    /// Page frames that are known already.
    Frames(Vec<u64>),
    /// Wherever the kernel's flags say: a side effect of another plant.
    Everywhere,
    /// Kept by the kernel at a place that it does not tell.
    Unknown,
}

/// All that was planted on request.
pub(crate) struct Plants(Vec<(Plant, Held)>);

/// How much of memory the per-CPU lists may hold: one part of so many (5.14).
const PER_CPU_PAGES: &str = "/proc/sys/vm/percpu_pagelist_high_fraction";

impl Plants {
    /// Plants what `names` say.
    pub(crate) fn plant<'a>(seed: &str, names: impl Iterator<Item = &'a str>) -> Result<Self> {
        let wanted: Vec<Plant> = names.map(str::parse).collect::<Result<_, _>>()?;
        let mut plants = Vec::new();
        for plant in wanted {
            let held = match plant {
                Plant::Anonymous => user_memory::anonymous(seed),
                Plant::Tmpfs => user_memory::tmpfs(seed),
                Plant::Cache | Plant::CachePrivate => Ok(Held::ToBeWritten(seed.to_owned())),
                Plant::Thp => user_memory::thp(seed),
                Plant::Hugetlb => user_memory::hugetlb(seed),
                Plant::Hugetlb1g => user_memory::hugetlb_1g(seed),
                Plant::Ksm => user_memory::ksm(seed),
                Plant::Swapped => swap::swapped(seed),
                Plant::SwapReadahead => Ok(Held::Everywhere),
                Plant::Freed => user_memory::to_be_freed(seed),
                Plant::Poisoned => user_memory::poisoned(seed),
                Plant::Slab => kernel_memory::slab(seed),
                Plant::Zram => kernel_memory::zram(seed),
                Plant::Offline => hotplug::offline_one().map(Held::Frames),
            };
            plants.push((plant, held.with_context(|| format!("planting {plant}"))?));
            say(format!("production: planted {plant}"));
        }
        Ok(Self(plants))
    }

    /// Whether nothing was asked for.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Gives back what is to be free at the panic, and says where everything is. The plants stay.
    pub(crate) fn locate(&mut self) -> Result<Planted> {
        let mut planted = Planted::default();
        // A CPU may keep tens of megabytes of free pages in a list of its own. They are free to
        // nobody else, and not marked as such: with this it keeps a few. Linux 5.10 has no such
        // switch, and keeps few.
        if Path::new(PER_CPU_PAGES).exists() {
            set(PER_CPU_PAGES, "1000000")?;
        }
        let flags = KPageFlags::open()?;
        // Last, what is to be free: the lists of the others take memory, too.
        self.0.sort_by_key(|(_, held)| matches!(held, Held::ToBeFreed(_)));
        for (plant, held) in &mut self.0 {
            if let Held::ToBeWritten(seed) = held {
                *held = match plant {
                    Plant::Cache => user_memory::cache(seed)?,
                    _ => user_memory::cache_private(seed)?,
                };
            }
            let frames = match held {
                Held::Memory(memory) => of_memory(memory)?,
                Held::File(mapping) => of_file(mapping)?,
                Held::ToBeFreed(memory) => {
                    let frames = of_memory(memory)?;
                    *held = Held::Unknown;
                    frames
                }
                Held::Frames(frames) => frames.clone(),
                Held::Everywhere => flags.pfns()?.collect(),
                Held::Unknown | Held::ToBeWritten(_) => continue,
            };
            let mut sure = Vec::new();
            for pfn in frames {
                // Of some requests the kernel grants a part only: no huge page where memory is in
                // pieces, a free page that waits in a list of its CPU.
                if is(*plant, flags.of(pfn)?) {
                    sure.push(pfn);
                }
            }
            ensure!(!sure.is_empty(), "no page of {plant} is where it was planted");
            planted.add(*plant, sure);
            say(format!("production: {plant}: {} pages", pages(planted.of(*plant))));
        }
        Ok(planted)
    }
}

/// Whether a page with these flags can be one of a kind.
fn is(plant: Plant, flags: Flags) -> bool {
    match plant {
        Plant::Thp => flags.has(Flag::Thp),
        Plant::Hugetlb | Plant::Hugetlb1g => flags.has(Flag::Huge),
        Plant::Ksm => flags.has(Flag::Ksm),
        Plant::Swapped => flags.has(Flag::SwapCache) && flags.has(Flag::Anon),
        Plant::SwapReadahead => flags.has(Flag::SwapCache) && !flags.has(Flag::Anon),
        Plant::Freed => flags.has(Flag::Buddy),
        Plant::CachePrivate => flags.has(Flag::Private),
        Plant::Poisoned => flags.has(Flag::HwPoison),
        _ => true,
    }
}
