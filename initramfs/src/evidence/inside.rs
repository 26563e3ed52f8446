//! Whether the dump is of the kernel that the manifest is about: what it says of itself, and its log.

use std::io::{self, Write};
use std::path::Path;

use evidence::manifest::{File, Manifest};
use evidence::verify::{Check, Holds, Report};
use evidence::{hex, sha256};
use sha2::{Digest, Sha256};
use vmcore::kernel::dmesg;

use crate::input::Input;

/// What is checked, as the report calls it.
const WHAT: &str = "what is in the dump";

/// Looks into the dump, if it is one file and its sums hold.
pub(super) fn check(directory: &Path, manifest: &Manifest, report: &mut Report) {
    let file = |role: &str| manifest.files.iter().find(|file| file.role == role);
    let Some(dump) = file("memory").filter(|dump| holds(report, dump)) else { return };
    let path = directory.join(&dump.name);
    if !path.is_file() {
        return; // in the parts that a server keeps
    }
    let input = match Input::open(&[path]) {
        Ok(input) => input,
        Err(error) if dump.incomplete => return add(report, Holds::Unknown, base::log::chain(&error)),
        Err(error) => return add(report, Holds::No, base::log::chain(&error)),
    };
    let info = hex(&sha256(input.info().to_text().as_bytes()));
    let release = input.info().get("OSRELEASE");
    if manifest.source.vmcoreinfo_sha256.as_ref().is_some_and(|wanted| *wanted != info) {
        return add(
            report,
            Holds::No,
            "its VMCOREINFO is not the one of the kernel in the manifest".to_owned(),
        );
    }
    if manifest.source.kernel.is_some() && release.is_some() && manifest.source.kernel.as_deref() != release {
        let release = base::text::line(release.unwrap_or_default());
        return add(
            report,
            Holds::No,
            format!("it is of the kernel {release}, which the manifest does not name"),
        );
    }
    let log = file("log").filter(|log| !dump.incomplete && holds(report, log));
    let wanted = log.and_then(|log| log.sha256.as_ref());
    let found = wanted.map(|_| sum_of_log(&input));
    let (holds, text) = match (wanted, found) {
        (Some(wanted), Some(Ok(found))) if *wanted != found => {
            (Holds::No, "its log is not the one that was saved before it".to_owned())
        }
        (_, Some(Err(error))) => (Holds::Unknown, format!("its log: {}", base::log::chain(&error))),
        (_, Some(Ok(_))) => (Holds::Yes, "VMCOREINFO, release and log are those of the manifest".to_owned()),
        (_, None) => (Holds::Yes, "VMCOREINFO and release are those of the manifest".to_owned()),
    };
    add(report, holds, text);
}

/// Whether the sums of a file hold.
fn holds(report: &Report, file: &File) -> bool {
    let name = base::text::line(&file.name);
    report.checks.iter().any(|check| check.what == name && check.holds == Holds::Yes)
}

fn add(report: &mut Report, holds: Holds, found: String) {
    report.checks.push(Check { what: WHAT.to_owned(), holds, found });
}

fn sum_of_log(input: &Input) -> Result<String, dmesg::DmesgError> {
    let mut out = Sum(Sha256::new());
    dmesg::write(&input.kernel(), &mut out)?;
    Ok(hex(&out.0.finalize()))
}

struct Sum(Sha256);

impl Write for Sum {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
