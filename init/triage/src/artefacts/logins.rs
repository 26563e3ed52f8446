//! `logins.jsonl`: who was logged in: records of utmp and wtmp, sessions, users and seats of logind, and
//! terminals with the processes in front. `linux.login.kind` says what a row is of.

mod logind;
mod lookup;
mod terminals;
mod utmp;

use ::processes::tables::Steps;
use base::addr::VirtAddr;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;

use self::lookup::{File, Lookup};
use super::content;
use super::{Artefact, Ground, Row, Rows, Stop};

/// Bytes of a file of records, and of a file of logind, that are read.
const MAX_RECORDS: u64 = 4 << 20;
const MAX_TEXT: u64 = 64 << 10;

/// Files with records (`/run` and `/var/run` may be one).
const RECORDS: [&str; 4] = ["/run/utmp", "/var/run/utmp", "/var/log/wtmp", "/var/log/btmp"];
/// Directories of logind, and what their files are of.
const LOGIND: [(&str, &str); 3] =
    [("/run/systemd/sessions", "session"), ("/run/systemd/users", "user"), ("/run/systemd/seats", "seat")];

pub(super) struct Layout {
    lookup: Result<Lookup, Missing>,
    terminals: Result<terminals::Layout, Missing>,
}

impl Artefact for Layout {
    const NAME: &'static str = "logins";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        Ok(Self { lookup: Lookup::ask(known), terminals: terminals::Layout::ask(known) })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        match &self.terminals {
            Ok(layout) => layout.walk(ground, rows)?,
            Err(missing) => rows.add(&failed("terminal", missing))?,
        }
        let lookup = match &self.lookup {
            Ok(lookup) => lookup,
            Err(missing) => return rows.add(&failed("utmp", missing)),
        };
        let paths = lookup.start(ground);
        let steps = Steps::new(ground.system);
        let mut inodes = Vec::new();
        for path in RECORDS {
            let file = match paths.file(path) {
                Ok(Some(file)) => file,
                Ok(None) => continue,
                Err(error) => {
                    rows.add(&failed("utmp", &format!("{path}: {error}")))?;
                    continue;
                }
            };
            if inodes.contains(&file.inode) {
                continue;
            }
            inodes.push(file.inode);
            let (bytes, error) = content(ground, &file, MAX_RECORDS, &steps);
            utmp::rows(path, &file, &bytes, rows)?;
            if let Some(error) = error {
                rows.add(&failed("utmp", &format!("{path}: {error}")))?;
            }
        }
        for (directory, kind) in LOGIND {
            let files = match paths.directory(directory) {
                Ok(files) => files,
                Err(error) => {
                    rows.add(&failed(kind, &format!("{directory}: {error}")))?;
                    continue;
                }
            };
            for (name, file) in files {
                rows.in_time()?;
                let (bytes, error) = content(ground, &file, MAX_TEXT, &steps);
                let mut row = row(kind, file.inode);
                logind::fill(kind, &name, &String::from_utf8_lossy(&bytes), &mut row);
                if let Some(error) = error {
                    row.error("file", &error);
                }
                rows.add(&row)?;
            }
        }
        Ok(())
    }
}

fn row(kind: &str, address: VirtAddr) -> Row {
    let mut row = Row::at(address);
    row.set("linux.login.kind", kind);
    row
}

fn failed(kind: &str, why: &dyn core::fmt::Display) -> Row {
    let mut row = Row::default();
    row.set("linux.login.kind", kind);
    row.error(kind, why);
    row
}

/// What is there of a file, and what is not.
fn content(ground: &Ground<'_>, file: &File, limit: u64, steps: &Steps) -> (Vec<u8>, Option<String>) {
    let size = file.size.min(limit);
    let (bytes, missing) = content::whole(ground.system, file.mapping, base::addr::to_usize(size), steps);
    let mut errors = Vec::new();
    if missing > 0 {
        errors.push(format!("{missing} pages are not in memory, not in the dump or not readable"));
    }
    if size < file.size {
        errors.push(format!("of {} bytes the first {size} are read", file.size));
    }
    (bytes, Some(errors.join("; ")).filter(|text| !text.is_empty()))
}
