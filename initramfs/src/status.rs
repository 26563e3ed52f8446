//! `afterimage status`: what is armed, and what for.

use std::fmt::Write;

use base::config::FinalAction;
use base::time::utc;

use crate::boot_entry::foresee::ROOT_MEMORY;
use crate::check::{self, Verdict};
use crate::crashkernel::{advised, cma_bytes, mib};
use crate::fingerprint::crc32;
use crate::host;
use crate::image;
use crate::loader::{self, Loaded, Proof, Road};
use crate::rivals;
use crate::trusted;

/// How old a check may be to stand for this host.
const FRESH: u64 = 3600;

/// What is armed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// A line per fact.
    pub text: String,
    /// Whether a panic now would be captured and saved.
    pub saved: bool,
}

impl Status {
    /// Looks at this host. As root it checks whether a panic would be saved, if that was not done
    /// lately; others learn what the last check said.
    #[must_use]
    pub fn look() -> Self {
        let is_loaded = host::is_loaded();
        let record = loader::recorded().filter(|_| is_loaded);
        let proof = record.as_ref().map(Proof::of);
        let (armed, is_ours) = armed(is_loaded, proof.as_ref());
        let mut rows = vec![("armed", armed)];
        let mut saved = false;
        if let Some(record) = record.as_ref().filter(|_| is_ours) {
            let (text, is_saved) = says(verdict(record).as_ref(), now());
            rows.push(("saved", text));
            saved = is_saved;
        }
        let planned = planned();
        rows.push(("planned", planned));
        rows.push(match (host::reservation(), cma_bytes(&host::kexec("crash_cma_ranges"))) {
            (0, _) => ("reservation", "none (no crashkernel=)".to_owned()),
            (have, 0) => ("reservation", format!("{} MiB", mib(have))),
            (have, cma) => (
                "reservation",
                format!("{} MiB, and {} MiB that users have till then (cma)", mib(have), mib(cma)),
            ),
        });
        rows.push(("lockdown", host::lockdown()));
        rows.extend(
            rivals::list()
                .into_iter()
                .map(|rival| ("other loader", format!("{} is enabled ({})", rival.name, rival.by.display()))),
        );
        rows.extend(record.as_ref().map(of).unwrap_or_default());
        if record.is_none() && is_loaded {
            rows.push(("image", "unknown: not loaded by afterimage".to_owned()));
        }
        let mut text = String::new();
        for (name, value) in rows {
            let _ = writeln!(text, "{name:<12} {}", base::text::line(&value));
        }
        Self { text, saved }
    }
}

/// Whether what we loaded is there, and a sentence about it.
fn armed(is_loaded: bool, proof: Option<&Proof>) -> (String, bool) {
    match (is_loaded, proof) {
        (false, _) => ("NO: a panic will not be captured".to_owned(), false),
        (true, None) => ("NO: a panic starts what another program has loaded".to_owned(), false),
        (true, Some(Proof::Other(why))) => {
            (format!("NO: what is loaded is not what afterimage loaded: {why}"), false)
        }
        (true, Some(Proof::Unproved(why))) => (
            format!("yes: a panic will be captured, if nobody else has loaded anything; not proved: {why}"),
            true,
        ),
        (true, Some(Proof::Same)) => ("yes: a panic will be captured".to_owned(), true),
    }
}

/// The last verdict about this load, or a new one where that is old and we may look.
fn verdict(record: &Loaded) -> Option<Verdict> {
    let last = Verdict::last(record);
    if last.as_ref().is_some_and(|verdict| now().saturating_sub(verdict.at) <= FRESH) {
        return last;
    }
    // Who is not root learns nothing from the devices.
    let Ok(host) = check::Host::observe(&check::Options::default()) else { return last };
    let report = check::Report::of(&host);
    check::keep(&report, host.recorded.as_ref());
    Verdict::last(record).or_else(|| Some(Verdict::of(&report, host.recorded.as_ref(), now())))
}

fn says(verdict: Option<&Verdict>, now: u64) -> (String, bool) {
    let Some(verdict) = verdict else {
        return (
            "not known: nobody has run afterimage check since the load, which needs root".to_owned(),
            false,
        );
    };
    let age = match now.saturating_sub(verdict.at) {
        0..60 => "by a check just now".to_owned(),
        seconds @ 60..7200 => format!("by the check of {} minutes ago", seconds / 60),
        seconds => format!("by the check of {} hours ago", seconds / 3600),
    };
    if verdict.saved {
        return (format!("yes, {age}"), true);
    }
    (format!("NO, {age}: {}; afterimage check says what to do", verdict.failures.join(" ")), false)
}

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
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
    let now = now();
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
    fn only_what_we_loaded_is_armed() {
        let armed = |is_loaded, proof: Option<Proof>| armed(is_loaded, proof.as_ref());
        assert_eq!(armed(true, Some(Proof::Same)), ("yes: a panic will be captured".into(), true));
        let (text, is_ours) = armed(true, Some(Proof::Unproved("no kcore".into())));
        assert!(is_ours && text.starts_with("yes") && text.contains("no kcore"), "{text}");
        for (is_loaded, proof) in [
            (false, None),
            (true, None),
            (true, Some(Proof::Other("another image".into()))),
            (false, Some(Proof::Same)),
        ] {
            let (text, is_ours) = armed(is_loaded, proof);
            assert!(!is_ours && text.starts_with("NO"), "{text}");
        }
    }

    #[test]
    fn the_last_check_counts_with_its_age() {
        let verdict = |saved| Verdict {
            boot_id: String::new(),
            at: 1000,
            loaded_at: 0,
            saved,
            failures: if saved { vec![] } else { vec!["target-1".into(), "kexec".into()] },
        };
        assert_eq!(says(Some(&verdict(true)), 1010), ("yes, by a check just now".into(), true));
        assert_eq!(says(Some(&verdict(true)), 1300), ("yes, by the check of 5 minutes ago".into(), true));
        assert_eq!(says(Some(&verdict(true)), 11_000).0, "yes, by the check of 2 hours ago");
        let (text, saved) = says(Some(&verdict(false)), 1010);
        assert!(!saved && text.contains("target-1 kexec"), "{text}");
        let (text, saved) = says(None, 1010);
        assert!(!saved && text.contains("not known"), "{text}");
    }

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
