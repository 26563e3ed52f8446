//! `afterimage inspect --pages`: what the pages of a vmcore or dump are, and which of them a dump
//! holds.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use base::addr::{Pfn, PfnRange, to_u64, to_usize};
use base::config::Config;
use base::lock::lock;
use vmcore::filter::{PageClass, units};
use vmcore::report::Summary;
use vmcore::source::Kdump;

use crate::image;
use crate::input::{Input, is_input};
use crate::inspect;
use crate::map::svg::Caption;
use crate::map::{Fate, Map, png, svg};
use crate::offline::with_request;

/// Why there is no map.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// The page descriptors of a dump.
    #[error("reading the page descriptors")]
    Descriptors(#[source] io::Error),
    /// The name of the file does not say what it is to be.
    #[error("{0}: a map is a .svg or a .png file")]
    Kind(PathBuf),
    /// The map would replace the vmcore.
    #[error("{0} is the input: name another file for the map")]
    Input(PathBuf),
    /// The pixels could not be packed.
    #[error("drawing {path}")]
    Draw {
        /// The map.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The file.
    #[error(transparent)]
    Write(#[from] image::ImageError),
}

/// Classifies all pages.
pub fn survey(input: &Input) -> Result<(Map, Caption), SurveyError> {
    let dump = input.kdump();
    let zeros = dump.map(inspect::zero_blocks).transpose().map_err(SurveyError::Descriptors)?;
    let zeros = zeros.unwrap_or_default();
    let config = Config::default();
    let mut summary = Summary::new(&config);
    let found = with_request(input, &config, &mut summary, |core, filter, request, summary| {
        let map = Map::new(core.ranges(), core.page_size().bytes(), dump.is_some());
        let map = Mutex::new(map);
        let scanned = units::of(core.ranges());
        let each = |unit: PfnRange, classes: &[PageClass]| {
            let fates = dump.map(|dump| fates(dump, unit, &zeros));
            let first = core.ranges().partition_point(|range| range.end() <= unit.start());
            let runs = core.ranges().iter().skip(first).map_while(|range| range.intersect(unit));
            let mut map = lock(&map);
            for run in runs {
                count(&mut map, unit, run, classes, fates.as_deref());
            }
        };
        units::scan(filter, &scanned, request.budget.workers, each);
        let caption = Caption {
            host: request.utsname.nodename.clone(),
            release: request.utsname.release.clone(),
            crash_time: summary.crash_time.clone(),
            dump_level: dump.map(|dump| dump.header().dump_level),
        };
        (map.into_inner().unwrap_or_else(PoisonError::into_inner), caption)
    });
    Ok(found)
}

/// Draws the map into a file, as its name says.
pub fn write_map(map: &Map, caption: &Caption, path: &Path, input: &[PathBuf]) -> Result<(), SurveyError> {
    check_map(path, input)?;
    let bytes = if is_svg(path) {
        svg::draw(map, caption).into_bytes()
    } else {
        png::draw(map).map_err(|error| SurveyError::Draw { path: path.to_owned(), source: error.into() })?
    };
    Ok(image::publish(&bytes, path)?)
}

/// Whether a map can be written to `path`; told before all memory is scanned.
pub fn check_map(path: &Path, input: &[PathBuf]) -> Result<(), SurveyError> {
    if is_input(path, input) {
        return Err(SurveyError::Input(path.to_owned()));
    }
    let is_png = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
    if is_svg(path) || is_png { Ok(()) } else { Err(SurveyError::Kind(path.to_owned())) }
}

fn is_svg(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("svg"))
}

/// The fate of each page of a unit.
fn fates(dump: &Kdump, unit: PfnRange, zeros: &[Option<u64>]) -> Vec<Fate> {
    let mut fates = Vec::with_capacity(to_usize(unit.pages()));
    dump.for_each_page(unit, |_, found| {
        fates.push(match found {
            Ok(None) => Fate::LeftOut,
            Ok(Some((_, desc))) if desc.offset == 0 => Fate::Lost,
            Ok(Some((file, desc))) if zeros.get(file).copied().flatten() == Some(desc.offset) => Fate::Zero,
            Ok(Some(_)) => Fate::Stored,
            Err(_) => Fate::Lost,
        });
    });
    fates
}

/// Counts the pages of `run`, which lies in `unit`, by what is the same from page to page.
fn count(map: &mut Map, unit: PfnRange, run: PfnRange, classes: &[PageClass], fates: Option<&[Fate]>) {
    let kind = |pfn: u64| {
        let index = to_usize(pfn.saturating_sub(unit.start().0));
        let class = classes.get(index).copied().unwrap_or(PageClass::Unknown);
        (class, fates.map_or(Fate::Stored, |fates| fates.get(index).copied().unwrap_or(Fate::Lost)))
    };
    let kinds: Vec<(PageClass, Fate)> = (run.start().0..run.end().0).map(kind).collect();
    let mut at = run.start();
    for same in kinds.chunk_by(|a, b| a == b) {
        let end: Pfn = at.saturating_add(to_u64(same.len()));
        if let (Some(&(class, fate)), Some(pages)) = (same.first(), PfnRange::new(at, end)) {
            map.add(pages, class, fate);
        }
        at = end;
    }
}
