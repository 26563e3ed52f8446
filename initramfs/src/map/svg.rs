//! The map as SVG: one file without references to others. The size is bounded by the number of rows
//! and cells.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::map::{COLUMNS, Fate, Line, Map, PAINTS, Shade, Tally, bytes_text};

/// Pixels.
const WIDTH: u64 = 1200;
const MARGIN: u64 = 24;
const CELL: u64 = 8;
const ROW: u64 = 18;
const ROW_PITCH: u64 = 20;
const GAP_PITCH: u64 = 26;
/// Left edge of the cells; the addresses stand before them.
const LEFT: u64 = WIDTH - MARGIN - CELL * COLUMNS;
/// Upper edge of the first line.
const TOP: u64 = 104;
/// Characters of a text from the old kernel that are shown.
const MAX_TEXT: usize = 64;

/// What stands over the map.
#[derive(Clone, Debug, Default)]
pub struct Caption {
    /// The host's name: hostile, as all text from the old kernel is.
    pub host: String,
    /// The kernel's release: hostile.
    pub release: String,
    /// When it crashed.
    pub crash_time: Option<String>,
    /// A dump's level.
    pub dump_level: Option<u32>,
}

/// The picture.
#[must_use]
pub fn draw(map: &Map, caption: &Caption) -> String {
    let (lines, total) = (map.lines(), map.total());
    let pitch = |line: &Line| if matches!(line, Line::Gap { .. }) { GAP_PITCH } else { ROW_PITCH };
    let map_height = lines.iter().fold(0_u64, |sum, line| sum.saturating_add(pitch(line)));
    let legend_top = TOP.saturating_add(map_height).saturating_add(24);
    let (legend, legend_height) = legend(map, &total, legend_top);
    let height = legend_top.saturating_add(legend_height).saturating_add(MARGIN);
    let mut out = String::new();
    head(&mut out, map, caption, &total, height);
    axis(&mut out, map);
    let mut top = TOP;
    for line in &lines {
        match line {
            Line::Row { start, cells } => row(&mut out, map, *start, cells, top),
            Line::Gap { start, end } => gap(&mut out, *start, *end, top),
        }
        top = top.saturating_add(pitch(line));
    }
    out.push_str(&legend);
    out.push_str("</svg>\n");
    out
}

fn head(out: &mut String, map: &Map, caption: &Caption, total: &Tally, height: u64) {
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">"
    );
    let host = if caption.host.is_empty() { "unknown host".to_owned() } else { escape(&caption.host) };
    let _ = writeln!(out, "<title>Physical memory of {host}</title>");
    out.push_str(
        "<style>.a{font-family:monospace;font-size:12px;fill:#555}.n{text-anchor:end}</style>\n<defs>",
    );
    for shade in Shade::all() {
        let Some(line) = shade.hatch() else { continue };
        let _ = write!(
            out,
            "<pattern id=\"{}\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\"><path fill=\"{}\" \
             d=\"M0 0h6v6h-6z\"/>\
             <path stroke=\"{}\" d=\"M-1 1l2 -2M0 6L6 0M5 7l2 -2\"/></pattern>",
            pattern(shade),
            hex(shade.rgb()),
            hex(line)
        );
    }
    out.push_str("</defs>\n");
    let _ = writeln!(out, "<path fill=\"#fff\" d=\"M0 0h{WIDTH}v{height}h-{WIDTH}z\"/>");
    let _ = writeln!(
        out,
        "<text x=\"{MARGIN}\" y=\"40\" font-size=\"22\" font-weight=\"bold\">Physical memory of {host}</text>"
    );
    let release = escape(&caption.release);
    let mut line = if release.is_empty() { "unknown kernel".to_owned() } else { format!("Linux {release}") };
    match &caption.crash_time {
        Some(time) => {
            let _ = write!(line, ", crashed {}", escape(time));
        }
        None => line.push_str(", time of the crash unknown"),
    }
    if let Some(level) = caption.dump_level {
        let _ = write!(line, "; dump level {level}");
    }
    let _ = write!(
        line,
        "; {} MiB, {} to the cell, {} to the row",
        mib(map, total.pages()),
        bytes_text(map.cell_bytes()),
        bytes_text(map.row_bytes())
    );
    let _ = writeln!(out, "<text x=\"{MARGIN}\" y=\"64\">{line}</text>");
}

/// Offsets within a row, at every quarter.
fn axis(out: &mut String, map: &Map) {
    let y = TOP.saturating_sub(8);
    for quarter in 0..4_u64 {
        let x = LEFT.saturating_add(quarter.saturating_mul(CELL * COLUMNS / 4));
        let offset = bytes_text((map.row_bytes() / 4).saturating_mul(quarter));
        let _ = writeln!(
            out,
            "<path stroke=\"#999\" d=\"M{x}.5 {TOP}v-6\"/><text class=\"a\" x=\"{}\" \
             y=\"{y}\">+{offset}</text>",
            x.saturating_add(4)
        );
    }
}

fn row(out: &mut String, map: &Map, start: u64, cells: &[Option<Tally>], top: u64) {
    let mut total = Tally::default();
    cells.iter().flatten().for_each(|cell| total.merge(cell));
    let last = start.saturating_add(map.row_bytes().saturating_sub(1));
    let _ = write!(out, "<g transform=\"translate({LEFT} {top})\"><title>{start:#014x}..{last:#014x}");
    for (shade, pages) in total.shades() {
        let _ = write!(out, ", {} {pages}", name(shade));
    }
    let _ = write!(
        out,
        "</title><text class=\"a n\" x=\"-10\" y=\"13\">{start:#014x}</text><path fill=\"none\" \
         stroke=\"#ddd\" d=\"M0 9.5h{}\"/>",
        CELL * COLUMNS
    );
    for (shade, path) in paths(cells).values() {
        let _ = write!(out, "<path fill=\"{}\" d=\"{path}\"/>", fill(*shade));
    }
    out.push_str("</g>\n");
}

/// The rectangles of a row by shade. Neighbours that are alike are one.
fn paths(cells: &[Option<Tally>]) -> BTreeMap<usize, (Shade, String)> {
    let mut open: BTreeMap<(usize, u64, u64), (Shade, u64)> = BTreeMap::new();
    let mut paths: BTreeMap<usize, (Shade, String)> = BTreeMap::new();
    let mut close = |(place, from, to): (usize, u64, u64), (shade, x): (Shade, u64), end: u64| {
        let (width, height) = (end.saturating_sub(x), to.saturating_sub(from));
        let path = &mut paths.entry(place).or_insert_with(|| (shade, String::new())).1;
        let _ = write!(path, "M{x} {from}h{width}v{height}h-{width}z");
    };
    let nothing = [None];
    for (cell, column) in cells.iter().chain(&nothing).zip(0_u64..) {
        let x = column.saturating_mul(CELL);
        let parts = cell.as_ref().map(|cell| cell.parts(ROW)).unwrap_or_default();
        let keys = || parts.iter().map(|part| ((part.shade.place(), part.from, part.to), part.shade));
        open.retain(|key, value| {
            let stays = keys().any(|(other, _)| other == *key);
            if !stays {
                close(*key, *value, x);
            }
            stays
        });
        for (key, shade) in keys() {
            open.entry(key).or_insert((shade, x));
        }
    }
    paths
}

fn gap(out: &mut String, start: u64, end: u64, top: u64) {
    let y = top.saturating_add(GAP_PITCH / 2);
    let _ = writeln!(
        out,
        "<text class=\"a\" x=\"{LEFT}\" y=\"{}\">{start:#014x}..{:#014x}: no memory, {}</text>",
        y.saturating_add(3),
        end.saturating_sub(1),
        bytes_text(end.saturating_sub(start))
    );
    let _ = writeln!(
        out,
        "<path stroke=\"#999\" stroke-dasharray=\"2 4\" d=\"M{} {y}.5H{}\"/>",
        LEFT.saturating_add(440),
        WIDTH - MARGIN
    );
}

/// The legend, which is the table of pages by class, and its height.
fn legend(map: &Map, total: &Tally, top: u64) -> (String, u64) {
    const NUMBERS: u64 = 110;
    const LINE: u64 = 20;
    let first = LEFT.saturating_add(250);
    let x = |column: u64| first.saturating_add(column.saturating_mul(NUMBERS));
    let mut out = String::new();
    let mut y = top.saturating_add(10);
    let fates = map.is_dump().then_some([Fate::Stored, Fate::Zero, Fate::LeftOut, Fate::Lost]);
    let heads = ["pages", "MiB", "stored", "zero", "left out", "lost"];
    for (column, head) in (0..).zip(heads.iter().take(if fates.is_some() { 6 } else { 2 })) {
        let _ = writeln!(
            out,
            "<text class=\"n\" font-weight=\"bold\" x=\"{}\" y=\"{y}\">{head}</text>",
            x(column)
        );
    }
    for (place, paint) in PAINTS.iter().enumerate().filter(|(place, _)| total.of_class(*place) > 0) {
        y = y.saturating_add(LINE);
        let shades: &[Shade] = if fates.is_some() {
            &[Shade::Held(place), Shade::LeftOut(place)]
        } else {
            &[Shade::Held(place)]
        };
        for (shade, at) in shades.iter().zip([0_u64, 36]) {
            let _ = write!(
                out,
                "<path fill=\"{}\" d=\"M{} {}h32v14h-32z\"/>",
                fill(*shade),
                LEFT.saturating_add(at),
                y.saturating_sub(11)
            );
        }
        let _ =
            writeln!(out, "<text x=\"{}\" y=\"{y}\">{}</text>", LEFT.saturating_add(80), paint.class.name());
        let pages = total.of_class(place);
        let numbers = [pages, mib(map, pages)].into_iter();
        let numbers = numbers.chain(fates.iter().flatten().map(|fate| total.of(place, *fate)));
        for (column, number) in (0..).zip(numbers) {
            let _ = writeln!(out, "<text class=\"n\" x=\"{}\" y=\"{y}\">{number}</text>", x(column));
        }
    }
    if fates.is_some() {
        y = y.saturating_add(LINE);
        let _ = writeln!(
            out,
            "<path fill=\"{}\" d=\"M{LEFT} {}h32v14h-32z\"/><text x=\"{}\" y=\"{y}\">lost: the dump should \
             have it and does not. Plain colours are in the dump, hatched ones are left out.</text>",
            fill(Shade::Lost),
            y.saturating_sub(11),
            LEFT.saturating_add(80)
        );
    }
    (out, y.saturating_sub(top))
}

fn mib(map: &Map, pages: u64) -> u64 {
    pages.saturating_mul(map.page_bytes()) >> 20
}

fn name(shade: Shade) -> String {
    let class = |place: usize| PAINTS.get(place).map_or("", |paint| paint.class.name());
    match shade {
        Shade::Held(place) => class(place).to_owned(),
        Shade::LeftOut(place) => format!("{} left out", class(place)),
        Shade::Lost => "lost".to_owned(),
    }
}

fn pattern(shade: Shade) -> String {
    format!("p{}", shade.place())
}

fn fill(shade: Shade) -> String {
    if shade.hatch().is_some() { format!("url(#{})", pattern(shade)) } else { hex(shade.rgb()) }
}

fn hex([red, green, blue]: [u8; 3]) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// Text that may stand in SVG, whatever it was: letters, digits and ASCII signs as they are, all
/// else as numbers.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for (character, index) in text.chars().zip(0..) {
        match character {
            _ if index >= MAX_TEXT => {
                out.push_str("...");
                break;
            }
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            ' '..='~' => out.push(character),
            _ if character.is_alphanumeric() => out.push(character),
            _ => out.extend(character.escape_unicode()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::testing::{damaged, small, worst};

    #[test]
    fn rows_gaps_and_legend() {
        let caption = Caption {
            host: "web1".into(),
            release: "6.1.0".into(),
            crash_time: Some("2026-01-02T03:04:05Z".into()),
            dump_level: Some(31),
        };
        let drawn = draw(&small(), &caption);
        let expected = [
            ">Physical memory of web1</text>",
            ">Linux 6.1.0, crashed 2026-01-02T03:04:05Z; dump level 31; 0 MiB, 4 KiB to the cell, 512 KiB to \
             the row<",
            "<title>0x000000000000..0x00000007ffff, kernel 2, user left out 2, free 1, lost 1</title>",
            "<path fill=\"#0072b2\" d=\"M0 0h16v18h-16z\"/>",
            "<path fill=\"url(#p9)\" d=\"M16 0h16v18h-16z\"/>",
            ">0x000000080000..0x0000001fffff: no memory, 1536 KiB<",
            ">+384 KiB<",
        ];
        for part in expected {
            assert!(drawn.contains(part), "{part} in {drawn}");
        }
        assert_eq!(drawn, draw(&small(), &caption));
    }

    #[test]
    fn poisoned_lost_and_offline_pages_are_drawn_however_few_they_are() {
        let drawn = draw(&damaged(), &Caption::default());
        for (shade, cell) in [(Shade::LeftOut(8), 20), (Shade::Lost, 23), (Shade::LeftOut(9), 40)] {
            // Two of the 18 pixels of the cell's height, somewhere in the row.
            let row = format!("<path fill=\"{}\" d=\"M{} ", fill(shade), cell * CELL);
            let found = drawn.split_once(&row).unwrap_or_else(|| panic!("{row} in {drawn}")).1;
            assert!(found.split_once('h').unwrap().1.starts_with("8v2h-8z\"/>"), "{shade:?}: {found}");
        }
        assert!(drawn.contains(", poisoned left out 1, offline left out 1, reserved 117, lost 1</title>"));
    }

    #[test]
    fn text_from_the_old_kernel_is_text() {
        let hostile = "</text><script>alert('1')</script>&\"\u{0}\u{1b}[2J\u{202e}\u{ffff}\u{fffe}é";
        let caption = Caption { host: hostile.into(), release: "]]>".repeat(100), ..Caption::default() };
        let drawn = draw(&small(), &caption);
        assert!(!drawn.contains("<script") && !drawn.contains("]]>"));
        assert!(drawn.contains(
            "&lt;/text&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;&quot;\\u{0}\\u{1b}[2J"
        ));
        assert!(drawn.contains("\\u{202e}\\u{ffff}\\u{fffe}é</title>"));
        assert!(drawn.chars().all(|c| c == '\n' || !c.is_control()));
        assert_eq!(escape(&"<".repeat(65)), "&lt;".repeat(64) + "...");
    }

    #[test]
    fn the_size_is_bounded() {
        let drawn = draw(&worst(), &Caption::default());
        assert!((150_000..300_000).contains(&drawn.len()), "{} bytes", drawn.len());
    }
}
