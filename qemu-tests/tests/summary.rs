//! The summary that a capture saves before the first page, and triage of the dump: what they say is what
//! the machine was, and what was in memory only is found again.

use anyhow::{Context, Result, ensure};
use qemu_tests::binaries::Binaries;
use qemu_tests::command::{Run, command};
use qemu_tests::extra_disk::{Content, ExtraDisk};
use qemu_tests::initramfs;
use qemu_tests::kernel::Kernel;
use qemu_tests::last_words::network::LINKS;
use qemu_tests::last_words::{Triage, UNSYNCED, UNSYNCED_LINES, unsynced_line};
use qemu_tests::network::Card;
use qemu_tests::outcome::{Dump, Outcome};
use qemu_tests::scenario::{HOST, Scenario};
use serde_json::Value;
use std::fs;
use std::process::{Command, Stdio};

/// Bytes that both files may have together.
const LIMIT: u64 = 256 << 10;

#[test]
fn a_summary_stands_beside_the_log() -> Result<()> {
    judge("6.1", 1, Levels::Five)
}

#[test]
#[ignore = "full: kernel 5.10, the oldest; four levels of page tables"]
fn a_summary_stands_beside_the_log_of_5_10() -> Result<()> {
    judge("5.10", 1, Levels::Four)
}

#[test]
#[ignore = "full: kernel 6.12; four CPUs, four levels of page tables"]
fn a_summary_stands_beside_the_log_of_6_12() -> Result<()> {
    judge("6.12", 4, Levels::Four)
}

#[test]
#[ignore = "full: kernel 7.2, the newest; four CPUs"]
fn a_summary_stands_beside_the_log_of_7_2() -> Result<()> {
    judge("7.2", 4, Levels::Five)
}

/// Levels of page tables.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Levels {
    Four,
    Five,
}

fn judge(series: &str, cpus: u32, levels: Levels) -> Result<()> {
    let kernel = Kernel::of_series(series)?;
    let mut scenario = Scenario::new(&format!("summary-{series}"), &kernel);
    scenario.memory_mib = 512;
    scenario.cpus = cpus;
    if levels == Levels::Four {
        scenario.shape.cpu = "la57=off".into();
    }
    scenario.config.level = 1;
    "auto".clone_into(&mut scenario.config.triage);
    scenario.extra = ["xfs", "btrfs"].map(|kind| ExtraDisk::of(kind, 384, Content::Filesystem(kind))).into();
    scenario.extra.push(ExtraDisk::of("below", 16, Content::Empty));
    scenario.files = initramfs::modules(&kernel, "stacked", &["dm_mod", "md_mod"])?;
    scenario.layout =
        ["mount /dev/vdb /x xfs nouuid", "mount /dev/vdc /b btrfs subvolid=5"].map(str::to_owned).into();
    "prod.last=/disk,/x,/b".clone_into(&mut scenario.append);
    scenario.shape.cards = vec![Card::user()];
    scenario.network.ip = LINKS.map(str::to_owned).into();
    let outcome = scenario.run()?;
    let dump = outcome.dump()?;
    ensure_summary(series, &kernel, dump, cpus)?;
    ensure_triage(&outcome, dump)?;
    outcome.discard()
}

/// What triage brings out of the dump.
fn ensure_triage(outcome: &Outcome, dump: &Dump) -> Result<()> {
    let out = outcome.scratch("triage");
    command(&Binaries::get()?.afterimage.to_string_lossy())
        .args(["triage", "-o"])
        .args([&out, &dump.file("vmcore")])
        .run()?;
    let triage = Triage(&out);
    triage.ensure_like_proc()?;
    ensure_archive(outcome, dump, &triage)?;
    let lines: String = (0..UNSYNCED_LINES).map(|number| unsynced_line(&outcome.seed, number)).collect();
    for directory in ["/disk", "/x", "/b"] {
        let path = format!("{directory}/{UNSYNCED}");
        let found = triage.recovered(&path)?;
        ensure!(found == lines.as_bytes(), "{path}: {} bytes instead of {}", found.len(), lines.len());
    }
    for image in ["disk.img", "extra-xfs.img", "extra-btrfs.img"].map(|name| outcome.scratch(name)) {
        let needle = unsynced_line(&outcome.seed, UNSYNCED_LINES / 2);
        let grep = Command::new("grep").args(["-q", "-a", "-F", needle.trim_end()]).arg(&image).status()?;
        ensure!(grep.code() == Some(1), "{} has {needle:?}, or cannot be read: {grep}", image.display());
    }
    Ok(())
}

/// What the capture itself brought out: the same rows and files as come out of the dump.
fn ensure_archive(outcome: &Outcome, dump: &Dump, offline: &Triage<'_>) -> Result<()> {
    let out = outcome.scratch("archive");
    fs::create_dir(&out)?;
    let packed = dump.file("triage.tar.zst");
    let file = fs::File::open(&packed).with_context(|| format!("opening {}", packed.display()))?;
    let mut tar = Command::new("tar").args(["-x", "-C"]).arg(&out).stdin(Stdio::piped()).spawn()?;
    let to = tar.stdin.take().context("no pipe to tar")?;
    zstd::stream::copy_decode(file, to).context("triage.tar.zst")?;
    ensure!(tar.wait()?.success(), "tar does not take {}", packed.display());
    let online = Triage(&out);
    online.ensure_like_proc().context("triage.tar.zst")?;
    online.ensure_like(offline)?;
    ensure!(!out.join("INCOMPLETE.txt").exists(), "triage is not whole");
    let result = dump.result()?;
    let degradations = result.pointer("/degradations").and_then(Value::as_array).context("no list")?;
    ensure!(degradations.iter().all(|one| one["step"] != "triage"), "{degradations:?}");
    let bytes = result.pointer("/triage_bytes").and_then(Value::as_u64);
    ensure!(bytes == Some(fs::metadata(&packed)?.len()), "{bytes:?}");
    let seconds = result.pointer("/seconds/triage").and_then(Value::as_f64).context("no time")?;
    let index: Value = serde_json::from_str(&fs::read_to_string(out.join("index.json"))?)?;
    for artefact in index.pointer("/artefacts").and_then(Value::as_array).context("no artefacts")? {
        eprintln!("{} took {} s", artefact["artefact"], artefact["seconds"]);
    }
    let memory = index.pointer("/peak_memory_bytes").and_then(Value::as_u64).context("no peak memory")?;
    eprintln!("triage took {seconds} s and {memory} bytes, and has {} bytes", bytes.unwrap_or(0));
    ensure!(memory <= 24 << 20, "triage took {memory} bytes of memory");
    Ok(())
}

fn ensure_summary(series: &str, kernel: &Kernel, dump: &Dump, cpus: u32) -> Result<()> {
    let names: Vec<String> = dump.files().into_iter().map(|(name, _)| name).collect();
    for name in ["dmesg.txt", "summary.txt", "summary.json", "vmcore", "result.json"] {
        ensure!(names.iter().any(|found| found == name), "no {name} in {names:?}");
    }
    let size =
        |wanted: &str| dump.files().iter().find(|(name, _)| name == wanted).map_or(0, |(_, size)| *size);
    ensure!(size("summary.txt").saturating_add(size("summary.json")) <= LIMIT, "{:?}", dump.files());
    let text = fs::read_to_string(dump.file("summary.json")).context("summary.json")?;
    let summary: Value = serde_json::from_str(&text)?;
    let is = |path: &str, wanted: &Value| {
        let found = summary.pointer(path);
        ensure!(found == Some(wanted), "{path} is {found:?} instead of {wanted}\n{text}");
        Ok(())
    };
    is("/complete", &true.into())?;
    is("/missing", &Value::Array(Vec::new()))?;
    is("/cause/kind", &"sysrq".into())?;
    is("/about/host", &HOST.into())?;
    is("/about/release", &kernel.version().into())?;
    is("/panicking/pid", &1.into())?;
    // Nobody keeps its clock: the limit that the kernel begins with (NTP_PHASE_LIMIT).
    is("/numbers/clock/synchronised", &false.into())?;
    is("/numbers/clock/estimated_error_us", &16_000_000.into())?;
    is("/panicking/argv/0", &"/init".into())?;
    is("/cpus/0/crashed", &true.into())?;
    let stacks = summary.pointer("/cpus").and_then(Value::as_array).map_or(0, Vec::len);
    ensure!(stacks == usize::try_from(cpus)?, "{stacks} CPUs instead of {cpus}");
    let functions = summary.pointer("/cpus/0/stack").and_then(Value::as_array).context("no stack")?;
    let functions = functions.iter().filter_map(|frame| frame.get("function")?.as_str());
    ensure!(functions.clone().any(|name| name == "sysrq_handle_crash"), "{text}");
    ensure!(functions.clone().any(|name| name.starts_with("entry_SYSCALL_64")), "{text}");
    let result = dump.result()?;
    ensure!(result.pointer("/cause") == Some(&"sysrq".into()), "{result:#}");
    ensure!(result.pointer("/signature") == summary.pointer("/signature/hash"), "{result:#}");
    let seconds = result.pointer("/seconds/summary").and_then(Value::as_f64).context("no time")?;
    ensure!(seconds <= 2.0, "the summary took {seconds} s");
    eprintln!("{series}: the summary took {seconds} s");
    Ok(())
}
