//! The map as PNG: the cells without text, and under them a bar of what all memory is, in the order
//! of the legend.

use ::png::{BitDepth, ColorType, Compression, Encoder, EncodingError, Filter};
use base::addr::{to_u64, to_usize};

use crate::map::{COLUMNS, Line, Map, Shade, Tally};

/// Pixels.
const MARGIN: u64 = 8;
const CELL: u64 = 8;
const ROW: u64 = 18;
const ROW_PITCH: u64 = 20;
const GAP_PITCH: u64 = 14;
const BAR: u64 = 32;
/// Least pixels of the bar for pages that are rare and matter.
const RARE: u64 = 4;
const WIDTH: u64 = 2 * MARGIN + CELL * COLUMNS;
/// Places in the palette.
const WHITE: u8 = 0;
const GREY: u8 = 1;

/// The picture.
pub fn draw(map: &Map) -> Result<Vec<u8>, EncodingError> {
    let mut canvas = Canvas::default();
    canvas.down(MARGIN);
    for line in map.lines() {
        match line {
            Line::Row { cells, .. } => canvas.row(&cells),
            Line::Gap { .. } => canvas.gap(),
        }
    }
    canvas.down(MARGIN);
    canvas.bar(&map.total());
    canvas.down(MARGIN);
    encode(&canvas.pixels)
}

/// Lines of pixels, each a place in the palette.
#[derive(Default)]
struct Canvas {
    pixels: Vec<Vec<u8>>,
}

impl Canvas {
    fn down(&mut self, lines: u64) {
        self.pixels.extend((0..lines).map(|_| vec![WHITE; to_usize(WIDTH)]));
    }

    fn row(&mut self, cells: &[Option<Tally>]) {
        let top = to_u64(self.pixels.len());
        self.down(ROW_PITCH);
        for (cell, column) in cells.iter().zip(0_u64..) {
            let left = MARGIN.saturating_add(column.saturating_mul(CELL));
            let right = left.saturating_add(CELL);
            let Some(cell) = cell else {
                let middle = top.saturating_add(ROW / 2);
                self.fill(left..right, middle..middle.saturating_add(1), |_, _| GREY);
                continue;
            };
            for part in cell.parts(ROW) {
                let lines = top.saturating_add(part.from)..top.saturating_add(part.to);
                self.fill(left..right, lines, |x, y| colour(part.shade, x, y));
            }
        }
    }

    fn gap(&mut self) {
        let middle = to_u64(self.pixels.len()).saturating_add(GAP_PITCH / 2);
        self.down(GAP_PITCH);
        let dash = |x: u64, _| if x % 8 < 3 { GREY } else { WHITE };
        self.fill(MARGIN..WIDTH - MARGIN, middle..middle.saturating_add(1), dash);
    }

    fn bar(&mut self, total: &Tally) {
        let top = to_u64(self.pixels.len());
        self.down(BAR);
        for part in total.bar(CELL * COLUMNS, RARE) {
            let columns = MARGIN.saturating_add(part.from)..MARGIN.saturating_add(part.to);
            self.fill(columns, top..top.saturating_add(BAR), |x, y| colour(part.shade, x, y));
        }
    }

    fn fill(
        &mut self,
        xs: core::ops::Range<u64>,
        ys: core::ops::Range<u64>,
        colour: impl Fn(u64, u64) -> u8,
    ) {
        for y in ys {
            let line = self.pixels.get_mut(to_usize(y)).map(Vec::as_mut_slice).unwrap_or_default();
            let pixels = line.get_mut(to_usize(xs.start)..to_usize(xs.end)).unwrap_or_default();
            for (pixel, x) in pixels.iter_mut().zip(xs.clone()) {
                *pixel = colour(x, y);
            }
        }
    }
}

/// A pixel of a shade: the area, or a line of its hatching.
fn colour(shade: Shade, x: u64, y: u64) -> u8 {
    let lined = shade.hatch().is_some() && x.saturating_add(y).is_multiple_of(5);
    let place = shade.place().saturating_mul(2).saturating_add(2).saturating_add(usize::from(lined));
    u8::try_from(place).unwrap_or(GREY)
}

fn palette() -> Vec<u8> {
    let shades = Shade::all().flat_map(|shade| [shade.rgb(), shade.hatch().unwrap_or(shade.rgb())]);
    [[0xff; 3], [0xbb; 3]].into_iter().chain(shades).flatten().collect()
}

/// Eight bits to the pixel, with a palette.
fn encode(lines: &[Vec<u8>]) -> Result<Vec<u8>, EncodingError> {
    let side = |pixels: u64| u32::try_from(pixels).unwrap_or(u32::MAX);
    let mut out = Vec::new();
    let mut encoder = Encoder::new(&mut out, side(WIDTH), side(to_u64(lines.len())));
    encoder.set_color(ColorType::Indexed);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_palette(palette());
    encoder.set_compression(Compression::High);
    encoder.set_filter(Filter::NoFilter);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&lines.concat())?;
    writer.finish()?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::map::testing::{damaged, small, worst};

    /// The chunks, whose check sums are right.
    fn chunks(mut png: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        assert_eq!(png[..8], *b"\x89PNG\r\n\x1a\n");
        png = &png[8..];
        let mut out = Vec::new();
        while !png.is_empty() {
            let len = usize::try_from(u32::from_be_bytes(png[..4].try_into().unwrap())).unwrap();
            let crc = u32::from_be_bytes(png[8 + len..12 + len].try_into().unwrap());
            assert_eq!(crc, crc32fast::hash(&png[4..8 + len]));
            out.push((png[4..8].to_vec(), png[8..8 + len].to_vec()));
            png = &png[12 + len..];
        }
        out
    }

    /// The pixels of a picture: by column and line.
    fn pixels(png: &[u8]) -> impl Fn(usize, usize) -> [u8; 3] {
        let chunks = chunks(png);
        let mut lines = Vec::new();
        flate2::read::ZlibDecoder::new(&chunks[2].1[..]).read_to_end(&mut lines).unwrap();
        move |x: usize, y: usize| {
            let place = usize::from(lines[y * 1041 + 1 + x]);
            let rgb = &chunks[1].1[place * 3..place * 3 + 3];
            <[u8; 3]>::try_from(rgb).unwrap()
        }
    }

    #[test]
    fn pixels_of_cells_gaps_and_the_bar() {
        let png = draw(&small()).unwrap();
        let chunks = chunks(&png);
        let kinds: Vec<&[u8]> = chunks.iter().map(|(kind, _)| &kind[..]).collect();
        assert_eq!(kinds, [&b"IHDR"[..], b"PLTE", b"IDAT", b"IEND"]);
        let height = 8 + 20 + 14 + 20 + 8 + 32 + 8;
        assert_eq!(chunks[0].1, [0, 0, 4, 16, 0, 0, 0, height, 8, 3, 0, 0, 0]);
        let mut lines = Vec::new();
        flate2::read::ZlibDecoder::new(&chunks[2].1[..]).read_to_end(&mut lines).unwrap();
        assert_eq!(lines.len(), 1041 * usize::from(height));
        let pixel = pixels(&png);
        assert_eq!(pixel(0, 0), [0xff; 3]);
        assert_eq!(pixel(8, 8), Shade::Held(0).rgb());
        let user = [Shade::LeftOut(4).rgb(), Shade::Held(4).rgb()];
        assert!(user.contains(&pixel(24, 8)) && pixel(26, 9) == user[1]);
        assert_eq!((pixel(100, 8), pixel(100, 17)), ([0xff; 3], [0xbb; 3]));
        assert_eq!(pixel(8, 42), Shade::Held(1).rgb());
        assert_eq!((pixel(8, 80), pixel(1031, 80)), (Shade::Held(0).rgb(), Shade::Lost.rgb()));
    }

    #[test]
    fn poisoned_lost_and_offline_pages_are_drawn_however_few_they_are() {
        let png = draw(&damaged()).unwrap();
        let pixel = pixels(&png);
        let count = |shade: Shade, xs: core::ops::Range<usize>, ys: core::ops::Range<usize>| {
            let all = xs.flat_map(|x| ys.clone().map(move |y| (x, y)));
            let either =
                |&(x, y): &(usize, usize)| [Some(shade.rgb()), shade.hatch()].contains(&Some(pixel(x, y)));
            all.filter(either).count()
        };
        for (shade, cell) in [(Shade::LeftOut(8), 20), (Shade::Lost, 23), (Shade::LeftOut(9), 40)] {
            let left = 8 + cell * 8;
            assert_eq!(count(shade, left..left + 8, 8..26), 16, "two lines of the cell are {shade:?}");
            // Under a row, the margins and nothing else: the bar, 4 pixels of it.
            assert!(count(shade, 8..1032, 36..68) >= 4 * 32, "{shade:?} in the bar");
        }
    }

    #[test]
    fn the_size_is_bounded() {
        assert!(draw(&worst()).unwrap().len() < 300_000);
    }
}
