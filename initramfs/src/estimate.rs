//! `afterimage dump --dry-run`: what memory holds and how large dumps of it would be, as text for
//! people.

use std::fmt::Write;

use base::config::Config;
use vmcore::dump::estimate::Estimate;
use vmcore::filter::PageClass;

/// The text. The line of what `config` asks for is marked.
#[must_use]
pub fn text(estimate: &Estimate, config: &Config, page_bytes: u64) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{:<16} {:>12} {:>10} {:>8} {:>8}", "class", "pages", "MiB", "zero", "packed");
    for class in &estimate.classes {
        let percent = |part: u64, whole: u64| part.saturating_mul(100).checked_div(whole);
        let zero = percent(class.zero, class.sampled);
        let full = class.sampled.saturating_sub(class.zero).saturating_mul(page_bytes);
        let _ = writeln!(
            out,
            "{:<16} {:>12} {:>10} {:>8} {:>8}",
            class.class.name(),
            class.pages,
            class.pages.saturating_mul(page_bytes) >> 20,
            zero.map_or_else(|| "-".to_owned(), |zero| format!("{zero}%")),
            percent(class.packed, full).map_or_else(|| "-".to_owned(), |packed| format!("{packed}%")),
        );
    }
    let dump = &config.dump;
    let packing = if dump.format.is_compressed() { format!(", {}", dump.compress) } else { String::new() };
    let _ = writeln!(out, "\n{:<16} {:>12} {:>10}   {}{packing}", "level", "pages", "MiB", dump.format);
    for (exclude, size) in &estimate.sizes {
        let mark = if *exclude == dump.exclude { "  <- asked for" } else { "" };
        let level = exclude.to_string();
        let _ = writeln!(out, "{level:<16} {:>12} {:>10}{mark}", size.pages, size.bytes.div_ceil(1 << 20));
    }
    if config.dump.exclude.unused_vmemmap() {
        let _ = writeln!(out, "\nunused-vmemmap is not estimated: the dump will be smaller");
    }
    if estimate.found.classes.of(PageClass::Unknown) > 0 {
        let _ = writeln!(
            out,
            "\nunknown pages have no struct page that can be used or believed: every level keeps them"
        );
    }
    out
}
