//! `afterimage symbols`: volatility3's symbols of the kernel in a dump, made of the dump alone.

use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use liblzma::write::XzEncoder;
use symbols::isf::{self, IsfError, Report};
use tempfile::NamedTempFile;
use vmcore::format::vmcoreinfo::VmcoreInfo;
use vmcore::source::Form;

use crate::beside;
use crate::input::{Input, InputError};
use crate::unreadable::Unreadable;

/// Level 6 makes the file a quarter smaller, in 14 times the time and with 95 MiB of memory.
const XZ_LEVEL: u32 = 0;
/// Bytes that are written at a time.
const BUFFER: usize = 1 << 18;
/// The names that volatility3 looks for, as far as they are written here.
const NAMES: [&str; 2] = [".json", ".json.xz"];
/// Newest kernel on which volatility3 has been seen to agree with drgn, and volatility3's version.
const NEWEST: (u32, u32) = (6, 12);
const VOLATILITY: &str = "2.28.2";

/// Why there is no file of symbols.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The dump.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A name that volatility3 does not look at.
    #[error("volatility3 finds its symbols only in files that end in .json or .json.xz, and {0} does not")]
    Name(PathBuf),
    /// What is needed is not in it.
    #[error("making {path}")]
    Make {
        /// The file of symbols.
        path: PathBuf,
        /// Cause.
        source: Unreadable,
    },
    /// What volatility3 needs is not in it.
    #[error("making {path}")]
    Symbols {
        /// The file of symbols.
        path: PathBuf,
        /// Cause.
        source: IsfError,
    },
    /// The file.
    #[error("writing {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// What was made.
#[derive(Clone, Debug, Default)]
pub struct Made {
    /// What is in the file.
    pub report: Report,
    /// What volatility3 cannot do with this dump, each with the remedy if there is one.
    pub limits: Vec<String>,
}

/// Makes the file `out` of the dump in `files`. It appears under its name when it is whole.
pub fn make(files: &[PathBuf], out: &Path) -> Result<Made, MakeError> {
    let failed = |source| MakeError::Write { path: out.to_owned(), source };
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    if !NAMES.iter().any(|end| name.ends_with(end)) {
        return Err(MakeError::Name(out.to_owned()));
    }
    let input = Input::open_x86_64(files)?;
    let file = beside::begin(out, files).map_err(failed)?;
    let write = |out: &mut dyn Write| isf::write(&input.kernel(), out);
    let (file, report) = if name.ends_with(".xz") { compressed(file, write) } else { plain(file, write) }
        .map_err(|error| match error {
            IsfError::Model(cause) => {
                MakeError::Make { path: out.to_owned(), source: Unreadable::new(&cause, input.info()) }
            }
            source => MakeError::Symbols { path: out.to_owned(), source },
        })?;
    // Not synced: it can be made again at any time.
    beside::publish(file, out).map_err(failed)?;
    Ok(Made { report, limits: limits(input.info(), input.form(), files) })
}

type Written = Result<(NamedTempFile, Report), IsfError>;

fn plain(file: NamedTempFile, write: impl Fn(&mut dyn Write) -> Result<Report, IsfError>) -> Written {
    let mut writer = BufWriter::with_capacity(BUFFER, file);
    let report = write(&mut writer)?;
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok((file, report))
}

fn compressed(file: NamedTempFile, write: impl Fn(&mut dyn Write) -> Result<Report, IsfError>) -> Written {
    let mut writer = BufWriter::with_capacity(BUFFER, XzEncoder::new(file, XZ_LEVEL));
    let report = write(&mut writer)?;
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?.finish()?;
    Ok((file, report))
}

/// What volatility3 cannot do with a dump of this kernel, in files of this form (none: it is a dump).
fn limits(info: &VmcoreInfo, form: Option<Form>, files: &[PathBuf]) -> Vec<String> {
    let mut limits = Vec::new();
    if info.number("pgtable_l5_enabled").is_some_and(|enabled| enabled != 0) {
        limits.push(
            "volatility3 cannot read this memory: the kernel ran with five-level page tables (LA57), which \
             volatility3 does not know; use drgn or crash, or boot with no5lvl"
                .to_owned(),
        );
    }
    let release = info.get("OSRELEASE").unwrap_or_default();
    if version(release).is_some_and(|version| version > NEWEST) {
        let (major, minor) = NEWEST;
        limits.push(format!(
            "volatility3 {VOLATILITY} was seen to agree with drgn on kernels up to {major}.{minor}, and this \
             one is {release}: where structures have changed since, it fails (lsmod on 7.2) or leaves out \
             what is there; check with drgn"
        ));
    }
    if form.is_none() {
        let names: Vec<String> = files.iter().map(|file| quoted(&file.display().to_string())).collect();
        let first = files.first().map(|file| file.display().to_string()).unwrap_or_default();
        limits.push(format!(
            "volatility3 does not read kdump-compressed dumps; what it reads is made by: afterimage dump \
             --format lime {} {}",
            names.join(" "),
            quoted(&format!("{first}.lime"))
        ));
    }
    limits
}

/// A name as a shell takes it.
fn quoted(name: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+".contains(letter);
    if name.chars().all(is_plain) { name.to_owned() } else { format!("'{}'", name.replace('\'', "'\\''")) }
}

/// Major and minor number of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers =
        release.split(|letter: char| !letter.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// What is in the file, for people.
#[must_use]
pub fn text(made: &Made, out: &Path) -> String {
    let Made { report, limits } = made;
    let mut text = format!(
        "{}: {} symbols ({} with types), {} structures, {} enumerations ({} modules)\n",
        out.display(),
        report.symbols,
        report.typed,
        report.structures,
        report.enumerations,
        report.modules,
    );
    for what in &report.without_types {
        let _ = writeln!(text, "missing: {what}");
    }
    if !report.unresolved.is_empty() {
        let names = report.unresolved.join(", ");
        let _ = writeln!(
            text,
            "the types of these variables are not known, and what needs them fails in volatility3: {names}"
        );
    }
    for limit in limits {
        let _ = writeln!(text, "note: {limit}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits_of(info: &str, form: Option<Form>) -> Vec<String> {
        limits(&VmcoreInfo::parse(info.as_bytes()), form, &["a 1".into(), "b".into()])
    }

    #[test]
    fn what_volatility3_cannot_do_is_said() {
        let known = "OSRELEASE=6.12.5-amd64\nNUMBER(pgtable_l5_enabled)=0\n";
        assert_eq!(limits_of(known, Some(Form::Elf)), Vec::<String>::new());
        assert_eq!(limits_of("", Some(Form::Lime)), Vec::<String>::new());
        let five = limits_of("OSRELEASE=6.1.0\nNUMBER(pgtable_l5_enabled)=1\n", Some(Form::Elf));
        assert!(
            matches!(five.as_slice(), [text] if text.contains("five-level page tables (LA57)")),
            "{five:?}"
        );
        let newer = limits_of("OSRELEASE=6.13.0\n", Some(Form::Lime));
        assert!(matches!(newer.as_slice(), [text] if text.contains("this one is 6.13.0")), "{newer:?}");
        let dump = limits_of(known, None);
        let line = "afterimage dump --format lime 'a 1' b 'a 1.lime'";
        assert!(matches!(dump.as_slice(), [text] if text.ends_with(line)), "{dump:?}");
    }

    #[test]
    fn names_that_volatility3_does_not_look_at_are_refused() {
        let refused =
            |out: &str| matches!(make(&["/absent".into()], Path::new(out)), Err(MakeError::Name(_)));
        assert_eq!(
            ["a.json.zst", "json.xz", "a", "", "a.json", "b.json.xz"].map(refused),
            [true, true, true, true, false, false]
        );
    }

    #[test]
    fn versions_are_read_from_releases() {
        assert_eq!(version("6.1.0-57-cloud-amd64"), Some((6, 1)));
        assert_eq!(version("7.2-rc3"), Some((7, 2)));
        assert_eq!((version("6"), version("linux"), version("")), (None, None, None));
    }
}
