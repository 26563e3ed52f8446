//! Made-up memory: sound, torn and random.

use std::fs;

use base::addr::{Pfn, PhysAddr, VirtAddr, to_usize};
use base::fields::Fields;
use proptest::prelude::*;

use crate::cache::{self, Cached, Piece};
use crate::core_file;
use crate::layout::Layout;
use crate::maple;
use crate::mappings::Space;
use crate::resident::{Held, Pages, Place, Why};
use crate::system::System;
use crate::tables::{self, Entry, Run, Steps};
use crate::tasks::{self, Process, Processes, Task};
use crate::testing::{DIRECT, LEN, Made, PAGE, VMEMMAP, virt};
use crate::user;
use crate::xarray;

/// Tables at 0x1000 (top), 0x2000, 0x3000, 0x4000; with five levels the top one is at 0x5000. They
/// map addresses from 0 on.
fn tables(made: &mut Made, levels: u8) -> PhysAddr {
    made.put(0x1000, &[0x2007]).put(0x2000, &[0x3007]).put(0x3000, &[0x4007]);
    if levels == 5 {
        made.put(0x5000, &[0x1007]);
    }
    PhysAddr(if levels == 5 { 0x5000 } else { 0x1000 })
}

fn walk(system: &System<'_>, top: PhysAddr, range: (u64, u64)) -> Vec<(u64, u64, Entry)> {
    let mut found = Vec::new();
    tables::walk(system, top, range, &Steps::new(system), &mut |Run { start, pages, entry }| {
        found.push((start, pages, entry));
    });
    found
}

#[test]
fn page_tables_tell_pages_from_what_is_not_there() {
    for levels in [4, 5] {
        let mut made = Made::new();
        let top = tables(&mut made, levels);
        // A page, one that nobody may use (inverted), one in swap, a mark, nothing, a page.
        let inverted = !0x7000_u64 & 0x000f_ffff_ffff_f000 | 0x100;
        made.put(0x4000, &[0x6007, inverted, 0x1234 << 14, 31 << 59 | 2, 0, 0x9007]);
        // 2 MiB; a table that is not in memory.
        made.put(0x3008, &[0x80_0087, 0x7fff_f000_0007]);
        made.with(levels, |system, _| {
            assert_eq!(
                walk(system, top, (0, 6 * PAGE))[..],
                [
                    (0, 1, Entry::Page(Pfn(6))),
                    (PAGE, 1, Entry::Page(Pfn(7))),
                    (2 * PAGE, 1, Entry::Swapped),
                    (3 * PAGE, 1, Entry::Special),
                    (5 * PAGE, 1, Entry::Page(Pfn(9))),
                ]
            );
            assert_eq!(walk(system, top, (0x20_3000, 0x20_5000)), [(0x20_3000, 2, Entry::Page(Pfn(0x803)))]);
            assert_eq!(
                walk(system, top, (0x3f_f000, 0x50_0000)),
                [(0x3f_f000, 1, Entry::Page(Pfn(0x9ff))), (0x40_0000, 256, Entry::Lost),]
            );
            assert_eq!(walk(system, top, (0x1000_0000, 0x2000_0000)), []);
        });
    }
}

#[test]
fn tables_that_lead_into_themselves_end() {
    let mut made = Made::new();
    made.put(0x1000, &[0x1007; 512]);
    made.with(4, |system, _| {
        let (mut calls, mut lost) = (0_u64, 0_u64);
        let steps = Steps::new(system);
        tables::walk(system, PhysAddr(0x1000), (0, 1 << 47), &steps, &mut |run| {
            calls += 1;
            lost += u64::from(run.entry == Entry::Lost);
        });
        assert!(!steps.take() && lost > 0, "{calls} calls");
        assert!(calls < 600 * ((1 << 10) + 16 * LEN as u64 / PAGE), "{calls} calls");
    });
}

/// A tree of two levels at 0x8000: a node at 0x9000, leaves at 0x9100 and 0x9200; its mappings at
/// 0xa000, 0xa100, 0xa200.
fn tree(made: &mut Made) {
    let node = |at: u64, kind: u64| (DIRECT + at) | kind << 3 | 4 | 2;
    made.put(0x8000, &[node(0x9000, 3)]);
    made.put(0x9008, &[0xffff, u64::MAX]).put(0x9020, &[node(0x9100, 1), node(0x9200, 1)]);
    made.put(0x9108, &[0xfff, 0x2fff, 0x7fff]).put(0x9120, &[0, DIRECT + 0xa000, 0, DIRECT + 0xa100]);
    made.put(0x9208, &[0x1_0fff, 0]).put(0x9220, &[DIRECT + 0xa200, 0]);
    for (at, start, end, file) in
        [(0xa000, 0x1000, 0x3000, 0), (0xa100, 0x8000, 0x1_0000, 0), (0xa200, 0x1_0000, 0x1_1000, 0xb000)]
    {
        let file = if file == 0 { 0 } else { DIRECT + file };
        made.put(at, &[start, end, 3, file, 2, 0]);
    }
}

/// An mm at 0xf000 whose page tables begin at 0x1000.
fn mm(made: &mut Made, root: u64, list: u64) {
    made.put(0xf000, &[DIRECT + 0x1000, root, 0, list, 3]);
}

#[test]
fn mappings_are_those_of_the_tree() {
    let mut made = Made::new();
    tree(&mut made);
    let root = u64::from_le_bytes(made.0[0x8000..0x8008].try_into().unwrap());
    mm(&mut made, root, 0);
    let read = |made: &Made| made.with(4, |system, _| Space::read(system, virt(0xf000)).unwrap());
    let space = read(&made);
    let starts: Vec<_> = space.mappings.iter().map(|mapping| (mapping.start, mapping.end)).collect();
    assert_eq!(starts, [(0x1000, 0x3000), (0x8000, 0x1_0000), (0x1_0000, 0x1_1000)]);
    assert_eq!(space.faults, [""; 0]);
    assert_eq!((space.mapping(0x2fff).unwrap().start, space.mapping(0x3000)), (0x1000, None));
    // A mapping that says that it is elsewhere.
    made.put(0xa100, &[0x9000]);
    let space = read(&made);
    assert_eq!((space.mappings.len(), space.faults.len()), (2, 2), "{:?}", space.faults);
    assert!(space.faults[0].contains("0x9000 to 0x10000 cannot be"), "{:?}", space.faults);
    // A node that leads to the one above it.
    made.put(0x9028, &[root]);
    let space = read(&made);
    assert!(space.faults.iter().any(|fault| fault.contains("back into itself")), "{:?}", space.faults);
}

#[test]
fn a_list_of_mappings_ends_where_it_does_not_ascend() {
    let mut made = Made::new();
    made.put(0xa000, &[0x1000, 0x3000, 3, 0, 0, 0, DIRECT + 0xa100]);
    made.put(0xa100, &[0x3000, 0x4000, 3, 0, 0, 0, DIRECT + 0xa000]);
    mm(&mut made, 0, DIRECT + 0xa000);
    made.with(4, |system, _| {
        let System { kernel, variables, paging, vmemmap, pages, .. } = *system;
        let layout = Layout { maple: None, ..system.layout };
        let old = System { kernel, variables, layout, paging, vmemmap, pages };
        let space = Space::read(&old, virt(0xf000)).unwrap();
        assert_eq!((space.mappings.len(), space.faults.len()), (2, 2), "{:?}", space.faults);
        assert!(space.faults[1].contains("2 of 3 mappings"), "{:?}", space.faults);
    });
}

/// The struct page of a frame: of the file whose cache is at 0xc000.
fn page(made: &mut Made, pfn: u64, index: u64) -> u64 {
    made.put(VMEMMAP - DIRECT + pfn * 64, &[DIRECT + 0xc000, index]);
    VMEMMAP + pfn * 64
}

/// A file at 0xb000, its cache at 0xc000: page 1 is frame 0x20, pages 8 to 23 are frames 0x30 on in
/// one huge page, 24 is a value, and 32 belongs to another file.
fn file(made: &mut Made) {
    let (one, huge, foreign) = (page(made, 0x20, 1), page(made, 0x30, 8), page(made, 0x22, 32));
    made.put(foreign - DIRECT, &[DIRECT + 0xc100]);
    made.put(0xb000, &[DIRECT + 0xc000]).put(0xc000, &[DIRECT + 0xd000 + 2]);
    // Eight slots of eight pages each.
    made.put(0xd000, &[3, DIRECT + 0xd100 + 2, huge, 1 << 2 | 2, DIRECT + 0xd200 + 2, foreign]);
    made.put(0xd100, &[0, 0, one]).put(0xd200, &[0, 0x11]);
}

#[test]
fn an_idr_gives_its_pointers_by_their_numbers() {
    let mut made = Made::new();
    let (one, two) = (DIRECT + 0x4000, DIRECT + 0x5000);
    made.put(0xc000, &[0, DIRECT + 0xd000 + 2]);
    // Eight slots of eight numbers each: a node, a node that leads back, and one that is not there.
    made.put(0xd000, &[3, DIRECT + 0xd100 + 2, DIRECT + 0xd000 + 2, (1 << 46) + 2]);
    made.put(0xd100, &[0, 0, one, 0, 0, 0, two]);
    let found = |made: &Made, limit| {
        made.with(4, |system, _| xarray::pointers(system, virt(0xc000), 8, limit).unwrap())
    };
    let all = vec![(1, VirtAddr(one)), (5, VirtAddr(two))];
    assert_eq!(found(&made, 100), (all.clone(), 2));
    assert_eq!(found(&made, 1), (Vec::new(), 3), "no more nodes than pointers");
    made.put(0xd000, &[3, DIRECT + 0xd100 + 2, 0, 0]);
    assert_eq!(found(&made, 100), (all, 0));
    made.put(0xc000, &[0, one]);
    assert_eq!(found(&made, 100), (vec![(0, VirtAddr(one))], 0), "the first one needs no node");
    made.put(0xc000, &[0, 0]);
    assert_eq!(found(&made, 100), (Vec::new(), 0));
}

fn cached(system: &System<'_>, range: (u64, u64)) -> Vec<(u64, u64, Cached)> {
    let mut found = Vec::new();
    cache::walk(
        system,
        virt(0xc000),
        range,
        &Steps::new(system),
        &mut |Piece { index, pages, cached, .. }| {
            found.push((index, pages, cached));
        },
    );
    found
}

#[test]
fn the_page_cache_has_single_pages_huge_ones_and_values() {
    let mut made = Made::new();
    file(&mut made);
    made.with(4, |system, _| {
        assert_eq!(
            cached(system, (0, 40))[..],
            [
                (1, 1, Cached::Page(Pfn(0x20))),
                (8, 8, Cached::Page(Pfn(0x30))),
                (16, 8, Cached::Page(Pfn(0x38))),
                (24, 1, Cached::Value),
                (32, 8, Cached::Lost),
            ]
        );
        assert_eq!(cached(system, (18, 20)), [(18, 2, Cached::Page(Pfn(0x3a)))]);
        assert_eq!(cached(system, (2, 8)), []);
    });
    // A node that leads to itself: its shift does not fall.
    made.put(0xd008, &[DIRECT + 0xd000 + 2]);
    made.with(4, |system, _| assert_eq!(cached(system, (0, 8)), [(0, 8, Cached::Lost)]));
}

/// A process: an anonymous page at 0x1000, of which the next one is untouched, and one of a file at
/// 0x10000, its page 2, which is not in memory; of 0x8000 on a page is in swap, one not in the dump.
fn process(made: &mut Made) -> Processes {
    tables(made, 4);
    tree(made);
    file(made);
    let root = u64::from_le_bytes(made.0[0x8000..0x8008].try_into().unwrap());
    mm(made, root, 0);
    made.put(0x4008, &[0x1_0007]).put(0x4000 + 8 * 8, &[0x10 << 14, 0x7_7777_7007]);
    made.fill(0x1_0000, 0xab);
    let task = Task {
        address: virt(0xe000),
        pid: 7,
        tgid: 7,
        comm: "made-up".to_owned(),
        is_kernel: false,
        mm: Some(virt(0xf000)),
    };
    made.put(0xe000 + 72, &[DIRECT + 0x1_1000]);
    // What the entry into the kernel left at the top of the stack: ip, cs, flags, sp, ss; FRED keeps
    // more in the word of cs, and two words above.
    made.put(0x1_2000 - 16 - 40, &[0x1234, 0x3_0033, 0x246, 0x1800, 0x2b]);
    Processes { all: vec![Process { leader: task.clone(), threads: vec![task] }], faults: Vec::new() }
}

#[test]
fn a_core_has_what_is_there_and_no_segment_for_what_is_not() {
    let mut made = Made::new();
    let processes = process(&mut made);
    let file = tempfile::NamedTempFile::new().unwrap();
    let report = made.with(4, |system, core| {
        let held = Held::new(core);
        let (pages, space) = (Pages::new(system, &held), Space::read(system, virt(0xf000)).unwrap());
        let mut bytes = [0; 4];
        user::read(&pages, &space, 0x1ffe, &mut bytes).unwrap();
        assert_eq!(bytes, [0xab, 0xab, 0, 0]);
        assert!(user::read(&pages, &space, 0x8000, &mut bytes).is_err());
        let mut of_file = Vec::new();
        pages.each(&space, &space.mappings[2], &mut |run| of_file.push(run.place));
        assert_eq!(of_file, [Place::Absent(Why::InFile)]);
        core_file::write(system, core, &processes, 7, file.as_file()).unwrap()
    });
    assert_eq!((report.counts.here, report.counts.untouched, report.counts.lost()), (1, 7, 2));
    assert!(!report.is_whole());
    let bytes = fs::read(file.path()).unwrap();
    let elf = Fields(&bytes);
    assert_eq!((elf.u16(16), elf.u16(18), elf.u16(56)), (Some(4), Some(62), Some(3)));
    // Notes; a page of bytes and a hole behind it; six untouched pages behind those that are absent.
    let header = |index: usize| [8, 16, 32, 40].map(|at| elf.u64(64 + index * 56 + at).unwrap());
    let data = PAGE;
    assert_eq!(header(1), [data, 0x1000, 2 * PAGE, 2 * PAGE]);
    assert_eq!((header(2)[1], header(2)[2], header(2)[3]), (0xa000, 0, 6 * PAGE));
    let at = to_usize(data);
    assert!(bytes[at..at + 4096].iter().all(|byte| *byte == 0xab));
    assert!(bytes[at + 4096..at + 8192].iter().all(|byte| *byte == 0));
    let notes = to_usize(header(0)[0]);
    assert_eq!(elf.u32(notes + 20 + 32), Some(7), "pr_pid");
    let register = |index: usize| elf.u64(notes + 20 + 112 + index * 8);
    assert_eq!((register(16), register(17), register(19)), (Some(0x1234), Some(0x33), Some(0x1800)));
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("8000-9000 1 pages: swapped out"), "the list of what is absent");
    assert!(text.contains("9000-a000 1 pages: not in the dump"), "the list of what is absent");
}

#[test]
fn who_has_no_memory_is_told() {
    let mut made = Made::new();
    let mut processes = process(&mut made);
    processes.all[0].leader.mm = None;
    processes.all[0].threads[0].mm = None;
    let file = tempfile::tempfile().unwrap();
    made.with(4, |system, core| {
        let error = |pid| core_file::write(system, core, &processes, pid, &file).unwrap_err().to_string();
        assert!(error(7).contains("has exited"));
        assert!(error(8).contains("no process and no thread"));
    });
}

/// Tasks at 0x1_0000, 0x1_1000, ... in a list whose head is that of `init_task` at 0xe000.
fn list(made: &mut Made, count: u64) -> Vec<u64> {
    let places: Vec<u64> =
        std::iter::once(0xe000).chain((0..count).map(|index| 0x1_0000 + index * 0x1000)).collect();
    for (index, at) in places.iter().enumerate() {
        let next = places[(index + 1) % places.len()];
        let before = places[(index + places.len() - 1) % places.len()];
        made.put(*at, &[DIRECT + next, DIRECT + before]);
        made.put(*at + 32, &[index as u64 | (index as u64) << 32]);
    }
    places
}

#[test]
fn a_torn_list_of_tasks_is_read_from_both_ends() {
    let mut made = Made::new();
    let places = list(&mut made, 6);
    let pids = |made: &Made| {
        made.with(4, |system, _| {
            let found = tasks::from(system, virt(0xe000));
            (found.all.iter().map(|process| process.leader.pid).collect::<Vec<_>>(), found.faults)
        })
    };
    assert_eq!(pids(&made), ((1..=6).collect(), vec![]));
    // The third leads into nothing, then back to the first.
    for target in [0x10, DIRECT + places[1]] {
        made.put(places[3], &[target]);
        let (found, faults) = pids(&made);
        assert_eq!(found, (1..=6).collect::<Vec<_>>(), "{faults:?}");
        assert!(faults[0].contains("torn behind 3 entries"), "{faults:?}");
    }
    // A number that no task has.
    made.put(places[2] + 32, &[u64::MAX]);
    let (found, faults) = pids(&made);
    assert_eq!((found, faults.len()), (vec![1, 3, 4, 5, 6], 2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever lies in memory: all ends, and what is handed out lies in the range that was asked for.
    #[test]
    fn nothing_in_memory_is_believed(
        words in prop::collection::vec((0_u64..(LEN as u64 / 8), any::<u64>(), 0_u8..6), 1..400),
        top in 0_u64..16,
        start in 0_u64..(1 << 36),
    ) {
        let mut made = Made::new();
        process(&mut made);
        for (at, value, kind) in words {
            // Words that look like what is expected, more than any others.
            let place = value % LEN as u64;
            let value = match kind {
                0 => value,
                1 => place & !0xfff | 7,
                2 => (DIRECT + (place & !0xff)) | 0x1e,
                3 => (DIRECT + (place & !7)) | 2,
                4 => DIRECT + (place & !7),
                _ => place,
            };
            made.put(at * 8, &[value]);
        }
        made.with(4, |system, core| {
            let steps = Steps::new(system);
            let range = (start * PAGE, start * PAGE + (1 << 30));
            for range in [range, (0, 1 << 30)] {
                let mut last = range.0;
                tables::walk(system, PhysAddr(top * PAGE), range, &steps, &mut |run| {
                    assert!(run.start >= last && run.pages > 0);
                    last = run.start + run.pages * PAGE;
                    assert!(last <= range.1);
                });
            }
            let mut last = 0;
            cache::walk(system, virt(0xc000), (0, 1 << 20), &steps, &mut |piece| {
                assert!(piece.index >= last && piece.pages > 0);
                last = piece.index + piece.pages;
                assert!(last <= 1 << 20);
            });
            let _ = maple::entries(system, &system.layout.maple.unwrap(), virt(0x8000));
            let _ = tasks::from(system, virt(0xe000));
            let Ok(space) = Space::read(system, VirtAddr(DIRECT + 0xf000)) else { return };
            assert!(space.mappings.windows(2).all(|pair| pair[0].end <= pair[1].start));
            let held = Held::new(core);
            let pages = Pages::new(system, &held);
            for mapping in &space.mappings {
                let mut at = mapping.start;
                let mut calls = 0;
                pages.each(&space, mapping, &mut |run| {
                    assert_eq!(run.start, at);
                    at += run.pages * PAGE;
                    calls += 1;
                });
                assert_eq!(at, mapping.end, "{calls} calls");
            }
        });
    }
}
