//! The table of pages by class, and the map for a terminal: half blocks in colours, or letters. 100
//! columns at most.

use std::collections::BTreeSet;
use std::fmt::Write;

use base::addr::to_usize;

use crate::map::{COLUMNS, Fate, LOST_ANSI, Line, Map, PAINTS, Paint, Shade, Tally, bytes_text};

/// Cells that share a character.
const CELLS: usize = 2;
/// Entries of the legend in a line.
const LEGEND: usize = 5;
/// The sign of lost pages on terminals without colours.
const LOST: char = 'x';

/// The table.
#[must_use]
pub fn table(map: &Map) -> String {
    let total = map.total();
    let mut out = format!("{:<14}{:>12}{:>10}", "class", "pages", "MiB");
    let fates = if map.is_dump() { &Fate::ALL[..] } else { &[] };
    for fate in fates {
        let _ = write!(out, "{:>12}", fate.name());
    }
    out.push('\n');
    let mut row = |name: &str, pages: u64, fate: &dyn Fn(Fate) -> u64| {
        let mib = pages.saturating_mul(map.page_bytes()) >> 20;
        let _ = write!(out, "{name:<14}{pages:>12}{mib:>10}");
        for each in fates {
            let _ = write!(out, "{:>12}", fate(*each));
        }
        out.push('\n');
    };
    for (place, paint) in PAINTS.iter().enumerate() {
        row(paint.class.name(), total.of_class(place), &|fate| total.of(place, fate));
    }
    row("all", total.pages(), &|fate| total.of_fate(fate));
    out
}

/// The map, in ANSI colours or in letters.
#[must_use]
pub fn draw(map: &Map, colours: bool) -> String {
    let mut out = format!(
        "{} to the character, {} to the row\n",
        bytes_text(map.cell_bytes().saturating_mul(2)),
        bytes_text(map.row_bytes())
    );
    let mut drawn = BTreeSet::new();
    for line in map.lines() {
        match line {
            Line::Row { start, cells } => {
                let signs = signs(&cells, if colours { 1 } else { CELLS });
                drawn.extend(signs.iter().flatten().copied());
                let row = if colours { blocks(&signs) } else { letters(&signs) };
                let _ = writeln!(out, "{start:#014x} {row}");
            }
            Line::Gap { start, end } => {
                let _ = writeln!(out, "{start:#014x} (no memory: {})", bytes_text(end.saturating_sub(start)));
            }
        }
    }
    legend(map, colours, &drawn, &mut out);
    out
}

/// What each few cells are.
fn signs(cells: &[Option<Tally>], few: usize) -> Vec<Option<Shade>> {
    let sign = |cells: &[Option<Tally>]| {
        let mut all = Tally::default();
        cells.iter().flatten().for_each(|cell| all.merge(cell));
        all.sign()
    };
    cells.chunks(few).map(sign).collect()
}

/// A half block per cell.
fn blocks(signs: &[Option<Shade>]) -> String {
    let mut out = String::with_capacity(to_usize(COLUMNS));
    let mut last = (None, None);
    for pair in signs.chunks(CELLS) {
        let shade = |index: usize| pair.get(index).copied().flatten();
        let (sign, front, back) = match (shade(0), shade(1)) {
            (None, None) => (' ', None, None),
            (Some(left), right) => ('▌', Some(left), right),
            (None, right) => ('▐', right, None),
        };
        if (front, back) != last {
            out.push_str("\x1b[0");
            for (shade, layer) in [(front, 38), (back, 48)] {
                if let Some(shade) = shade {
                    let _ = write!(out, ";{layer};5;{}", shade.ansi());
                }
            }
            out.push('m');
            last = (front, back);
        }
        out.push(sign);
    }
    out.push_str("\x1b[0m");
    out
}

fn letters(signs: &[Option<Shade>]) -> String {
    let row: String = signs.iter().map(|sign| sign.map_or(' ', Shade::letter)).collect();
    row.trim_end().to_owned()
}

/// The signs that are drawn, and the classes that have none.
fn legend(map: &Map, colours: bool, drawn: &BTreeSet<Shade>, out: &mut String) {
    let total = map.total();
    let is_drawn =
        |place| [Shade::Held(place), Shade::LeftOut(place)].iter().any(|shade| drawn.contains(shade));
    let there = PAINTS.iter().enumerate().filter(|(place, _)| total.of_class(*place) > 0);
    let (classes, hidden): (Vec<_>, Vec<_>) = there.partition(|(place, _)| is_drawn(*place));
    let entry = |(place, paint): (usize, &Paint)| {
        if !colours {
            return format!("{} {}", paint.letter, paint.class.name());
        }
        let shades = [Some(Shade::Held(place)), map.is_dump().then_some(Shade::LeftOut(place))];
        let blocks = shades.iter().flatten().map(|shade| format!("\x1b[38;5;{}m██", shade.ansi()));
        format!("{}\x1b[0m {}", blocks.collect::<String>(), paint.class.name())
    };
    let entries: Vec<String> = classes.into_iter().map(entry).collect();
    for line in entries.chunks(LEGEND) {
        let _ = writeln!(out, "{}", line.join("  "));
    }
    if !hidden.is_empty() {
        let names: Vec<&str> = hidden.iter().map(|(_, paint)| paint.class.name()).collect();
        let _ = writeln!(out, "nowhere the most, so not drawn: {}", names.join(", "));
    }
    if map.is_dump() {
        if colours {
            let _ =
                writeln!(out, "second colour: left out of the dump  \x1b[38;5;{LOST_ANSI}m██\x1b[0m lost");
        } else {
            let _ = writeln!(out, "small letter, or comma for free: left out of the dump  {LOST} lost");
        }
    }
}

impl Fate {
    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Zero => "zero",
            Self::LeftOut => "left out",
            Self::Lost => "lost",
        }
    }
}

impl Shade {
    fn letter(self) -> char {
        let of = |place: usize| PAINTS.get(place).map_or(LOST, |paint| paint.letter);
        match self {
            Self::Held(place) => of(place),
            Self::LeftOut(place) => match of(place) {
                '.' => ',',
                letter => letter.to_ascii_lowercase(),
            },
            Self::Lost => LOST,
        }
    }

    fn ansi(self) -> u8 {
        match self {
            Self::Held(place) => PAINTS.get(place).map_or(LOST_ANSI, |paint| paint.ansi.0),
            Self::LeftOut(place) => PAINTS.get(place).map_or(LOST_ANSI, |paint| paint.ansi.1),
            Self::Lost => LOST_ANSI,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::testing::{damaged, small, worst};

    #[test]
    fn letters_and_the_table() {
        let expected = "\
8 KiB to the character, 512 KiB to the row
0x000000000000 Kux
0x000000080000 (no memory: 1536 KiB)
0x000000200000 SS
K kernel  S slab  U user
nowhere the most, so not drawn: cache, free
small letter, or comma for free: left out of the dump  x lost
";
        assert_eq!(draw(&small(), false), expected);
        let table = table(&small());
        let row = |name: &str| table.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert_eq!(
            row("user"),
            "user                     2         0           0           0           2           0"
        );
        assert_eq!(
            row("all"),
            "all                     10         0           6           1           2           1"
        );
        assert_eq!(table.lines().count(), 13);
    }

    #[test]
    fn half_blocks() {
        let drawn = draw(&small(), true);
        let row = drawn.lines().nth(1).unwrap();
        let (kernel, user, free) = (Shade::Held(0).ansi(), Shade::LeftOut(4).ansi(), Shade::Held(6).ansi());
        let start = format!(
            "0x000000000000 \x1b[0;38;5;{kernel};48;5;{kernel}m▌\x1b[0;38;5;{user};48;5;{user}m▌\x1b[0;38;5;{free};48;5;{LOST_ANSI}m▌\x1b[0m "
        );
        assert!(row.starts_with(&start) && row.ends_with(" \x1b[0m"), "{row:?}");
    }

    #[test]
    fn poisoned_and_lost_pages_are_drawn_however_few_they_are() {
        let map = damaged();
        let letters = draw(&map, false);
        let row = letters.lines().nth(1).unwrap();
        assert_eq!(row, format!("0x000000000000 {}!x{}", "K".repeat(10), "K".repeat(50)));
        assert!(
            letters.contains(
                "\nK kernel  ! poisoned\nnowhere the most, so not drawn: cache, offline, reserved\n"
            )
        );
        let blocks = draw(&map, true);
        let row = blocks.lines().nth(1).unwrap();
        let front = |shade: Shade| format!("38;5;{}", shade.ansi());
        let back = |shade: Shade| format!("48;5;{}", shade.ansi());
        assert!(row.contains(&front(Shade::LeftOut(8))), "{row:?}");
        assert!(row.contains(&back(Shade::Lost)) && !row.contains(&front(Shade::LeftOut(9))), "{row:?}");
        assert!(blocks.contains("poisoned"));
    }

    #[test]
    fn a_hundred_columns_are_enough() {
        for colours in [true, false] {
            for line in draw(&worst(), colours).lines().chain(table(&worst()).lines()) {
                let mut shown = 0;
                let mut escape = false;
                for character in line.chars() {
                    escape |= character == '\x1b';
                    shown += usize::from(!escape);
                    escape &= character != 'm';
                }
                assert!(shown <= 100, "{shown}: {line}");
            }
        }
    }
}
