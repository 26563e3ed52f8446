//! `afterimage status`: what is armed, and what for.

use std::fmt::Write;

use base::config::FinalAction;
use base::time::utc;

use crate::boot_entry::foresee::ROOT_MEMORY;
use crate::crashkernel::{advised, mib};
use crate::fingerprint::crc32;
use crate::host;
use crate::image;
use crate::loader::{self, Loaded, Road};
use crate::trusted;

/// A line per fact.
#[must_use]
pub fn text() -> String {
    let is_loaded = host::is_loaded();
    let record = loader::recorded().filter(|_| is_loaded);
    let mut rows = vec![
        (
            "armed",
            if is_loaded { "yes: a panic will be captured" } else { "NO: a panic will not be captured" }
                .to_owned(),
        ),
        ("planned", planned()),
    ];
    rows.push(match host::reservation() {
        0 => ("reservation", "none (no crashkernel=)".to_owned()),
        have => ("reservation", format!("{} MiB", mib(have))),
    });
    rows.push(("lockdown", host::lockdown()));
    match &record {
        Some(record) => rows.extend(of(record)),
        None if is_loaded => rows.push(("image", "unknown: not loaded by afterimage".to_owned())),
        None => (),
    }
    let mut out = String::new();
    for (name, value) in rows {
        let _ = writeln!(out, "{name:<12} {}", base::text::line(&value));
    }
    out
}

/// Whether `afterimage switch` can switch without a panic; and whether every kexec is such a
/// switch already.
fn planned() -> String {
    match loader::why_not_planned() {
        Some(why) => format!("no: {why}"),
        None if loader::recorded().is_some_and(|record| record.staged) => {
            "yes, and it is staged: any kexec, whoever asks for it, is a capture".to_owned()
        }
        None => "yes: afterimage switch switches kernels and saves the memory of this one".to_owned(),
    }
}

fn of(record: &Loaded) -> Vec<(&'static str, String)> {
    let road = record.road.name();
    let mut rows = vec![
        ("kernel", format!("{} ({})", record.kernel, record.kernel_file.display())),
        ("image", format!("{} (crc32 {})", record.image_file.display(), record.image_crc32)),
        ("config", format!("crc32 {}", record.config_crc32)),
        (
            "loaded",
            format!(
                "{} by {}, with {road}",
                utc(record.at).as_deref().unwrap_or("at a time unknown"),
                record.by
            ),
        ),
        ("recommended", format!("crashkernel={}M", advised(mib(record.recommended)))),
        (
            "hot-plug",
            if record.updates_header {
                "the kernel keeps the core header up to date".to_owned()
            } else {
                "after CPUs or memory have come or gone: afterimage load --again".to_owned()
            },
        ),
        ("command line", record.cmdline.clone()),
    ];
    rows.extend(afterwards(record).map(|text| ("afterwards", text)));
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    rows.extend(record.expiries.iter().map(|expiry| {
        let state = if expiry.at <= now { "EXPIRED at" } else { "good until" };
        ("credentials", format!("{}: {state} {}", expiry.target, utc(expiry.at).unwrap_or_default()))
    }));
    if record.keys_in_image {
        let copy = "kexec_file_load leaves a copy of it in freed kernel memory until that is used again";
        rows.push((
            "keys",
            match record.road {
                Road::Own => "went with the image into the reservation".to_owned(),
                Road::FileLoad => format!("went with the image; {copy}"),
            },
        ));
    }
    rows
}

/// What the machine goes on to, if the image that was loaded is still there to be read.
fn afterwards(record: &Loaded) -> Option<String> {
    let image =
        trusted::read_regular(&record.image_file).ok().filter(|image| crc32(image) == record.image_crc32)?;
    let finish = image::read_contents(&image, &record.image_file).ok()?.config.finish;
    let needs = if finish.may(FinalAction::SwitchRoot) {
        let (have, need) = (mib(host::reservation()), mib(ROOT_MEMORY));
        format!("; switch_root has the reservation of {have} MiB for all of its system, and needs {need} MiB")
    } else {
        String::new()
    };
    Some(format!("{finish}{needs}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::Expiry;

    #[test]
    fn a_record_says_what_is_loaded_and_by_whom() {
        let record = Loaded {
            by: "root, logged in as ada".into(),
            at: 1_700_000_000,
            image_crc32: "00c0ffee".into(),
            keys_in_image: true,
            expiries: vec![Expiry { target: "s3 https://x/b".into(), at: 5 }],
            ..Loaded::default()
        };
        let rows = of(&record);
        let row = |name: &str| rows.iter().find(|row| row.0 == name).unwrap().1.clone();
        assert_eq!(row("loaded"), "2023-11-14T22:13:20Z by root, logged in as ada, with kexec_file_load");
        assert!(row("image").contains("00c0ffee") && row("keys").contains("kexec_file_load"));
        assert_eq!(row("credentials"), "s3 https://x/b: EXPIRED at 1970-01-01T00:00:05Z");
        assert!(row("hot-plug").contains("load --again"));
    }
}
