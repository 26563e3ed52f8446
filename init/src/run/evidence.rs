//! What proves that a capture is what was captured: events, arm record, manifest and its signature, written
//! last, when nothing changes any more.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use ::evidence::arm::ArmRecord;
use ::evidence::manifest::{
    self, Asked, Digest, Event, Host, Manifest, OldClock, Pages, Range, Source, Times, Tools,
};
use ::evidence::minisign::SecretKey;
use ::evidence::sums::Sum;
use ::evidence::witness::Witness;
use ::evidence::{canonical, events, hex, sha256};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::run::{Job, PAGE, pages, summary};
use base::facts;
use base::time::utc;
use vmcore::report::{self, Degradation, Outcome, Summary};
use vmcore::source::PhysicalMemory;
use vmcore::target::{Artifact, Target};

/// What is put down first: who armed the machine, and when.
pub(super) fn begin(facts: &facts::Facts, summary: &mut Summary) {
    if let Some(arm) = facts.evidence.as_ref().and_then(read_arm) {
        let at = utc(arm.at).unwrap_or_default();
        summary.journal.note(format!("armed by {} at {at}, load {}", arm.by, arm.id));
    }
}

/// Writes the evidence of what is on a target now. If that fails the capture is what it was, without proof.
pub(super) fn save(job: &Job<'_>, target: &mut Witness, summary: &mut Summary) {
    if !job.config.evidence.save {
        return;
    }
    if let Err(error) = write(job, target, summary) {
        let cause = base::log::chain(error.as_ref());
        log::error!("the capture has no manifest, so nobody can check it: {cause}");
    }
}

fn write(
    job: &Job<'_>,
    target: &mut Witness,
    summary: &mut Summary,
) -> Result<(), Box<dyn core::error::Error>> {
    target.leave_rest();
    let signer = job.facts.evidence.as_ref().and_then(Signer::new);
    let arm = signer.as_ref().map(|signer| signer.arm.as_str()).unwrap_or_default();
    let arm_sum = if arm.is_empty() { String::new() } else { hex(&sha256(arm.as_bytes())) };
    for (artifact, text) in [
        (Artifact::Arm, arm),
        (Artifact::ArmSignature, signer.as_ref().map_or("", |signer| signer.arm_signature.as_str())),
    ] {
        if !text.is_empty() {
            summary::write(target, artifact, text)?;
        }
    }
    let lost = summary.journal.lost();
    summary.journal.note(match lost {
        0 => format!("the capture ends: {}", summary.outcome),
        lost => format!("the capture ends: {}; {lost} events are not told", summary.outcome),
    });
    let told = summary.journal.events().iter();
    let told = told.map(|event| (event.ms, utc(event.at).unwrap_or_default(), event.what.as_str()));
    let (text, chain) = events::chain(&arm_sum, told)?;
    summary::write(target, Artifact::Events, &text)?;

    let id = signer.as_ref().map(|signer| signer.record.id.clone()).unwrap_or_default();
    let manifest = Manifest {
        evidence: evidence_id(&arm_sum, job, target, summary),
        files: target.files(),
        events: chain,
        arm: signer.as_ref().map(|_| Digest { id, sha256: arm_sum }),
        public_key: signer.as_ref().map(|signer| signer.key.public().to_string()),
        ..describe(job, signer.as_ref().map(|signer| &signer.record), summary)
    };
    let text = manifest.to_json()?;
    let signature = signer.as_ref().map(|signer| {
        let time = manifest.times.ended.as_deref().unwrap_or("an unknown time");
        signer.key.sign(text.as_bytes(), &format!("evidence {} of {time}", manifest.evidence))
    });
    // The manifest comes when its signature is there: one without the other is a fault.
    if let Some(signature) = &signature {
        summary::write(target, Artifact::Signature, signature)?;
    }
    let mut sums: Vec<_> =
        manifest.files.iter().filter_map(|file| Some((file.sha256.clone()?, file.name.clone()))).collect();
    sums.push((hex(&sha256(text.as_bytes())), Artifact::Manifest.name().to_owned()));
    let sums = manifest::sums_file(sums.iter().map(|(sum, name)| (sum.as_str(), name.as_str())));
    summary::write(target, Artifact::Sums, &sums)?;
    summary::write(target, Artifact::Manifest, &text)?;
    log::info!(
        "evidence {}: {} files, {} events",
        manifest.evidence,
        manifest.files.len(),
        manifest.events.count
    );
    Ok(())
}

/// The key of this load, and what the loader wrote down.
struct Signer<'a> {
    key: SecretKey,
    arm: &'a String,
    arm_signature: &'a String,
    record: ArmRecord,
}

impl<'a> Signer<'a> {
    /// `None` where the facts have no key, or where what they have is damaged.
    fn new(facts: &'a facts::Evidence) -> Option<Self> {
        let record = read_arm(facts)?;
        let key = SecretKey::from_seed(&*seed(facts.seed.expose())?);
        if key.public().to_string() != record.public_key {
            log::error!("the load key is not the one of the arm record: the capture is not signed");
            return None;
        }
        Some(Self { key, arm: &facts.arm, arm_signature: &facts.arm_signature, record })
    }
}

fn read_arm(facts: &facts::Evidence) -> Option<ArmRecord> {
    serde_json::from_str(&facts.arm).inspect_err(|error| log::error!("the arm record: {error}")).ok()
}

/// 32 bytes from hex.
fn seed(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut seed = Zeroizing::new([0; 32]);
    if text.len() != 64 {
        return None;
    }
    for (byte, at) in seed.iter_mut().zip((0_usize..).step_by(2)) {
        let end = at.checked_add(2)?;
        *byte = u8::from_str_radix(text.get(at..end)?, 16).ok()?;
    }
    Some(seed)
}

/// A number that no other capture has: of this load, this boot, this target and this attempt.
fn evidence_id(arm: &str, job: &Job<'_>, target: &Witness, summary: &Summary) -> String {
    let begun = summary.journal.begun_at();
    let of = format!("{arm} {} {} {begun} {}", job.name, target.location(), summary.sequence);
    let sum: Sum = sha256(of.as_bytes());
    hex(sum.get(..16).unwrap_or_default())
}

/// All of the manifest but the files and their proof.
fn describe(job: &Job<'_>, arm: Option<&ArmRecord>, summary: &Summary) -> Manifest {
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let intent = job.planned.map(|planned| planned.intent.clone());
    let trigger = summary.trigger.and_then(|trigger| serde_json::to_value(trigger).ok());
    Manifest {
        schema: manifest::SCHEMA.to_owned(),
        capture: job.name.clone(),
        verdict: summary.outcome.to_string(),
        host: Host {
            name: summary.host.clone(),
            machine_id: arm.and_then(|arm| some(&arm.machine_id)),
            boot_id: summary.boot_id.clone(),
            dmi: arm.map(|arm| arm.dmi.clone()).unwrap_or_default(),
        },
        asked: Asked {
            armed_by: arm.and_then(|arm| some(&arm.by)),
            armed_at: arm.map(|arm| arm.at),
            intent,
            case: some(&job.config.evidence.case),
            exclude: summary.exclude.iter().map(|&name| name.to_owned()).collect(),
            format: summary.format.to_owned(),
            compress: summary.compress.clone(),
        },
        event: Event {
            trigger: trigger.and_then(|trigger| trigger.as_str().map(str::to_owned)),
            cause: summary.cause.clone(),
            signature: summary.signature.clone(),
        },
        times: times(job, summary),
        tools: tools(summary),
        source: source(job, summary),
        pages: account(job, summary),
        degradations: summary.degradations.iter().filter_map(plain).collect(),
        ..Manifest::default()
    }
}

/// A degradation without fractions, which the canonical form does not have.
fn plain(degradation: &Degradation) -> Option<serde_json::Value> {
    let value = serde_json::to_value(degradation).ok()?;
    let is_plain = canonical::to_string(&value).is_ok();
    Some(if is_plain { value } else { degradation.to_string().into() })
}

fn times(job: &Job<'_>, summary: &Summary) -> Times {
    let took_ms = summary.journal.elapsed_ms();
    let begun = summary.journal.begun_at();
    Times {
        crash: utc(job.time),
        begun: utc(begun),
        ended: utc(begun.saturating_add(took_ms / 1000)),
        took_ms,
        old_clock: job.findings().numbers.as_ref().and_then(|numbers| numbers.clock).map(|clock| OldClock {
            synchronised: clock.synchronised,
            estimated_error_us: clock.estimated_error_us.min(canonical::LARGEST),
            largest_error_us: clock.largest_error_us.min(canonical::LARGEST),
        }),
    }
}

fn tools(summary: &Summary) -> Tools {
    let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned());
    Tools {
        afterimage: summary.afterimage.to_owned(),
        init_sha256: sum_of_file(Path::new("/proc/self/exe"))
            .inspect_err(|error| log::warn!("the sum of this program: {error}"))
            .ok(),
        capture_kernel: read("/proc/sys/kernel/osrelease"),
        cmdline: read("/proc/cmdline"),
    }
}

fn sum_of_file(path: &Path) -> io::Result<String> {
    let (mut file, mut hash, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 64 << 10]);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(buffer.get(..read).unwrap_or_default());
    }
}

fn source(job: &Job<'_>, summary: &Summary) -> Source {
    let bytes = |pages: u64| pages.saturating_mul(PAGE);
    let run = |run: &report::Run| Range { address: bytes(run.pfn), bytes: bytes(run.pages) };
    let ranges = job.core.map(PhysicalMemory::ranges).unwrap_or_default();
    Source {
        kernel: summary.kernel.clone(),
        build_id: summary.build_id.clone(),
        vmcoreinfo_sha256: Some(hex(&sha256(job.info.to_text().as_bytes()))).filter(|_| !job.info.is_empty()),
        ranges: ranges.iter().copied().map(report::Run::from).map(|range| run(&range)).collect(),
        not_read: summary.not_read.iter().map(run).collect(),
        reserved: summary.user_pages_lost.iter().map(run).collect(),
    }
}

/// The account of all pages of the machine, as far as the loader has recorded its memory.
fn account(job: &Job<'_>, summary: &Summary) -> Pages {
    let in_core = job.core.map(|core| base::addr::PfnRange::count(core.ranges())).unwrap_or_default();
    let is_ram = |range: &&facts::MemoryRange| range.kind.starts_with("System RAM");
    let ram = job.facts.memory_map.iter().filter(is_ram).filter_map(pages);
    let ram = ram.map(base::addr::PfnRange::pages).fold(0, u64::saturating_add);
    let reserved = ram.saturating_sub(in_core);
    let has_dump = summary.outcome >= Outcome::Incomplete;
    let counts = if has_dump { summary.pages } else { report::PageCounts::default() };
    let by_class = || summary.left_out.iter().map(|(name, pages)| ((*name).to_owned(), *pages));
    let mut left_out: BTreeMap<String, u64> =
        if counts.excluded > 0 { by_class().collect() } else { BTreeMap::new() };
    let known = left_out.values().fold(0, |sum: u64, pages| sum.saturating_add(*pages));
    match counts.excluded.checked_sub(known) {
        Some(0) => {}
        Some(rest) => drop(left_out.insert("other".to_owned(), rest)),
        // Classes were counted of more pages than were left out: some were kept for another reason.
        None => left_out = [("all".to_owned(), counts.excluded)].into(),
    }
    Pages {
        size: PAGE,
        total: in_core.saturating_add(reserved),
        written: counts.written,
        zero: counts.zero,
        left_out,
        unreadable: counts.unreadable,
        reserved,
        missing: in_core.saturating_sub(counts.total()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_64_hex_digits() {
        assert_eq!(seed(&"0f".repeat(32)).as_deref(), Some(&[15; 32]));
        for text in ["", "0f", &"zz".repeat(32), &"é".repeat(32)] {
            assert!(seed(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_key_that_is_not_the_one_of_the_arm_record_signs_nothing() {
        let key = SecretKey::from_seed(&[15; 32]).public().to_string();
        let facts = |seed: &str, key: &str| facts::Evidence {
            seed: facts::Secret::new(seed.repeat(32)),
            arm: ArmRecord { public_key: key.into(), ..ArmRecord::default() }.to_json().unwrap(),
            ..facts::Evidence::default()
        };
        assert!(Signer::new(&facts("0f", &key)).is_some());
        assert!(Signer::new(&facts("0e", &key)).is_none());
        assert!(Signer::new(&facts::Evidence { arm: "{".into(), ..facts("0f", &key) }).is_none());
    }

    #[test]
    fn the_sum_of_a_file_is_that_of_its_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), b"abc").unwrap();
        assert_eq!(
            sum_of_file(file.path()).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
