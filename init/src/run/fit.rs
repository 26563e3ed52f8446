//! How much of the dump a target has room for.

use base::config::{DumpLevel, Exclude, WhenFull};
use vmcore::dump::Request;
use vmcore::dump::estimate::{DumpSize, estimate};
use vmcore::filter::PageFilter;
use vmcore::report::Degradation;
use vmcore::source::{Core, PhysicalMemory};

/// The level of the stricter plan.
const STRICTER: u32 = 31;
/// What an estimate may be wrong by: a sample stands for all pages of its class.
const MARGIN: u64 = 16;
const MARGIN_BYTES: u64 = 1 << 20;

/// What is to be saved on a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// The dump as configured, or as much of it as there is room for.
    Whole,
    /// A dump that leaves out more.
    Stricter(Exclude, Degradation),
    /// No dump.
    LogOnly(Degradation),
    /// Not even the log: the next target has to do.
    Nothing(Degradation),
}

/// Compares a target's room with the sizes that dumps would have. Page types unknown, nothing can
/// be told: then all is tried, and the dump ends where the room ends.
pub(super) fn fit(
    core: &dyn Core,
    filter: Option<&PageFilter<'_>>,
    request: &Request,
    room: Option<u64>,
    when_full: WhenFull,
) -> Fit {
    let (Some(room), Some(_)) = (room, filter) else { return Fit::Whole };
    if when_full == WhenFull::Part || room >= largest_dump(core) {
        return Fit::Whole;
    }
    let sizes = estimate(core, filter, request).sizes;
    decide(&sizes, request.exclude, room, when_full)
}

/// More than any dump of this memory: every page as it is, bitmaps and descriptors.
fn largest_dump(core: &dyn PhysicalMemory) -> u64 {
    let memory = vmcore::dump::memory_bytes(core);
    memory.saturating_add(memory / 64).saturating_add(MARGIN_BYTES)
}

fn decide(sizes: &[(Exclude, DumpSize)], exclude: Exclude, room: u64, when_full: WhenFull) -> Fit {
    let needs = |wanted: Exclude| {
        let found = sizes.iter().find(|(exclude, _)| *exclude == wanted);
        let size = found.map_or(u64::MAX, |(_, size)| size.bytes);
        size.saturating_add(size / MARGIN).saturating_add(MARGIN_BYTES)
    };
    let needed = needs(exclude);
    if needed <= room {
        return Fit::Whole;
    }
    let Ok(level) = DumpLevel::new(STRICTER) else { return Fit::Whole };
    let stricter = Exclude::from(level).reading_poisoned(exclude.reads_poisoned());
    let fits = when_full == WhenFull::Stricter && needs(Exclude::from(level)) <= room;
    let no_room = |instead| Degradation::NoRoom { needed, room, instead };
    match when_full {
        _ if fits => Fit::Stricter(stricter, no_room("a dump of level 31")),
        WhenFull::Nothing => Fit::Nothing(no_room("nothing")),
        _ => Fit::LogOnly(no_room("the log and the notes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(level: u32) -> Exclude {
        Exclude::from(DumpLevel::new(level).unwrap())
    }

    fn sizes() -> Vec<(Exclude, DumpSize)> {
        vec![
            (level(1), DumpSize { pages: 0, bytes: 100 << 20 }),
            (level(31), DumpSize { pages: 0, bytes: 20 << 20 }),
        ]
    }

    #[test]
    fn less_is_saved_where_not_everything_fits() {
        let fit = |room: u64, when_full| match decide(&sizes(), level(1), room << 20, when_full) {
            Fit::Whole => "whole",
            Fit::Stricter(exclude, _) => {
                assert_eq!(exclude, level(31));
                "stricter"
            }
            Fit::LogOnly(_) => "log",
            Fit::Nothing(_) => "nothing",
        };
        assert_eq!(fit(110, WhenFull::Stricter), "whole");
        assert_eq!(fit(105, WhenFull::Stricter), "stricter");
        assert_eq!(fit(25, WhenFull::Stricter), "stricter");
        assert_eq!(fit(20, WhenFull::Stricter), "log");
        assert_eq!(fit(0, WhenFull::Stricter), "log");
        assert_eq!(fit(105, WhenFull::Log), "log");
        assert_eq!(fit(105, WhenFull::Nothing), "nothing");
    }

    #[test]
    fn the_numbers_are_told() {
        let Fit::LogOnly(why) = decide(&sizes(), level(1), 5 << 20, WhenFull::Log) else { panic!("fits") };
        let text = why.to_string();
        assert!(
            text.contains(&(5_u64 << 20).to_string()) && text.contains("the log and the notes"),
            "{text}"
        );
    }
}
