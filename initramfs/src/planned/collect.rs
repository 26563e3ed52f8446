//! The live collectors: what each finds out, in the order of volatility, into one archive. What one
//! does, or fails to do, stops nothing; how each ended stands in `collectors.json`.

use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base::config::{Collector, Size, Volatility};
use base::facts::Intent;
use base::time::{seconds, utc};
use serde::Serialize;

use super::archive::Archive;
use super::process::{self, Ended};

/// With less room than this in the archive no collector is started.
const LEAST: u64 = 4 << 10;
/// Kept for `collectors.json` and the archive's end.
const SPARE: u64 = 32 << 10;
/// Bytes of a collector's own name for how it ended, and headers of its files.
const HEADERS: u64 = 2 << 10;

/// How a collector did, as `collectors.json` says it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Collected {
    /// Its directory in the archive.
    pub(super) directory: String,
    /// What it looks at.
    pub(super) class: Volatility,
    /// What was run, or the patterns of the files.
    pub(super) what: Vec<String>,
    /// When it began, RFC 3339.
    pub(super) began: Option<String>,
    /// How long it took.
    pub(super) seconds: f64,
    /// How it ended.
    pub(super) ended: String,
    /// Whether a part of what it would have found is missing.
    pub(super) truncated: bool,
    /// Bytes that it found, files with their headers.
    pub(super) bytes: u64,
}

/// What goes with the archive besides: whose switch it is and of which machine.
#[derive(Debug, Serialize)]
struct About<'a> {
    host: String,
    kernel: String,
    boot_id: String,
    #[serde(flatten)]
    intent: &'a Intent,
}

/// The collectors that are used: those of the configuration, or the built-in ones; in their order.
pub(super) fn chosen(configured: &[Collector]) -> Vec<Collector> {
    let mut collectors = if configured.is_empty() { built_in() } else { configured.to_vec() };
    collectors.sort_by_key(|collector| collector.class); // stable: within a class it is the operator's order
    collectors
}

/// Runs `collectors` one after the other. `program` is this one, which copies files as a process of
/// its own. The archive has at most `limit` bytes, but for some that tell how the last collectors
/// ended. Each end is collectors to `say`.
pub(super) fn run(
    collectors: &[Collector],
    program: &Path,
    intent: &Intent,
    limit: Size,
    say: &mut dyn FnMut(&Collected),
) -> io::Result<Vec<u8>> {
    let mut archive = Archive::new();
    let about = About {
        host: crate::host::read("/proc/sys/kernel/hostname"),
        kernel: crate::host::read("/proc/sys/kernel/osrelease"),
        boot_id: crate::host::read("/proc/sys/kernel/random/boot_id"),
        intent,
    };
    archive.add_json("intent.json", &about)?;
    let mut all = Vec::new();
    for (number, collector) in (1..).zip(collectors) {
        let directory = format!("{number:02}-{}", collector.name);
        let room = limit.0.saturating_sub(archive.len()).saturating_sub(SPARE).saturating_sub(HEADERS);
        let collected = collect(collector, directory, program, room, &mut archive)?;
        say(&collected);
        all.push(collected);
    }
    archive.add_json("collectors.json", &all)?;
    archive.finish()
}

fn collect(
    collector: &Collector,
    directory: String,
    program: &Path,
    room: u64,
    archive: &mut Archive,
) -> io::Result<Collected> {
    let what = if collector.command.is_empty() { &collector.files } else { &collector.command };
    let mut collected = Collected {
        directory,
        class: collector.class,
        what: what.clone(),
        began: utc(super::now()),
        seconds: 0.0,
        ended: "not started: planned.live_limit is reached".to_owned(),
        truncated: true,
        bytes: 0,
    };
    let limit = collector.limit.0.min(room);
    if limit < LEAST.min(collector.limit.0) {
        return Ok(collected);
    }
    let ended = start(collector, program, limit);
    let before = archive.len();
    let whole = store(collector, &collected.directory, &ended, archive)?;
    collected.seconds = seconds(ended.took);
    collected.truncated = ended.is_cut() || !whole;
    collected.ended = ended.how.to_string();
    collected.bytes = archive.len().saturating_sub(before);
    Ok(collected)
}

fn start(collector: &Collector, program: &Path, limit: u64) -> Ended {
    let timeout = Duration::from_secs(collector.timeout);
    if let Some((program, arguments)) = collector.command.split_first() {
        return process::run(Command::new(program).args(arguments).current_dir("/"), timeout, limit);
    }
    let mut command = Command::new(program);
    command.args(["collect-files", "--limit", &limit.to_string(), "--"]).args(&collector.files);
    // It keeps to the limit itself; what it notes comes on top.
    process::run(&mut command, timeout, limit.saturating_add(SPARE))
}

/// Puts what a collector found into the archive; says whether that is all.
fn store(collector: &Collector, directory: &str, ended: &Ended, archive: &mut Archive) -> io::Result<bool> {
    let whole = if collector.command.is_empty() {
        archive.add_tar(directory, &ended.stdout)?
    } else {
        archive.add(format!("{directory}/stdout"), &ended.stdout)?;
        true
    };
    if !ended.stderr.is_empty() {
        archive.add(format!("{directory}/stderr"), &ended.stderr)?;
    }
    Ok(whole)
}

/// What /proc and /run tell, of the network namespace and the PID namespace of this program. No
/// other program is needed, and none is started that the production kernel does not have in memory
/// yet.
fn built_in() -> Vec<Collector> {
    let files = |name: &str, class, limit, files: &[&str]| Collector {
        name: name.to_owned(),
        command: Vec::new(),
        files: files.iter().map(|&file| file.to_owned()).collect(),
        class,
        timeout: 10,
        limit: Size(limit),
    };
    let process =
        |names: &[&str]| -> Vec<String> { names.iter().map(|name| format!("/proc/[0-9]*/{name}")).collect() };
    let processes =
        process(&["cmdline", "status", "stat", "cgroup", "loginuid", "wchan", "stack", "exe", "cwd", "root"]);
    vec![
        files(
            "sockets",
            Volatility::Network,
            4 << 20,
            &[
                "/proc/net/tcp*",
                "/proc/net/udp*",
                "/proc/net/raw*",
                "/proc/net/icmp*",
                "/proc/net/packet",
                "/proc/net/netlink",
                "/proc/net/unix",
                "/proc/net/arp",
                "/proc/net/nf_conntrack",
            ],
        ),
        files(
            "logins",
            Volatility::Logins,
            1 << 20,
            &["/run/utmp", "/run/systemd/sessions/*", "/run/systemd/users/*", "/run/systemd/seats/*"],
        ),
        Collector { files: processes, ..files("processes", Volatility::Processes, 6 << 20, &[]) },
        Collector {
            files: [process(&["fd/*"]), vec!["/proc/locks".to_owned()]].concat(),
            ..files("open-files", Volatility::Files, 2 << 20, &[])
        },
        files(
            "config",
            Volatility::Config,
            1 << 20,
            &[
                "/proc/net/route",
                "/proc/net/ipv6_route",
                "/proc/net/dev",
                "/proc/net/if_inet6",
                "/proc/net/fib_trie",
                "/proc/modules",
                "/proc/self/mountinfo",
                "/proc/swaps",
                "/proc/partitions",
                "/proc/cmdline",
                "/proc/version",
                "/proc/iomem",
                "/proc/interrupts",
                "/proc/sys/kernel/tainted",
            ],
        ),
        files("clocks", Volatility::Time, 1 << 20, &["/proc/uptime", "/proc/stat", "/proc/driver/rtc"]),
    ]
}

/// Bytes that an archive may have for this limit.
#[cfg(test)]
fn at_most(limit: Size) -> u64 {
    limit.0.saturating_add(SPARE)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::archive::testing::unpack;
    use super::*;
    use base::addr::to_u64;

    fn sh(name: &str, class: Volatility, script: &str) -> Collector {
        Collector {
            name: name.to_owned(),
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            files: Vec::new(),
            class,
            timeout: 10,
            limit: Size(1 << 16),
        }
    }

    /// What collectors find, and what is said of each.
    fn found(collectors: &[Collector], limit: u64) -> (BTreeMap<String, String>, Vec<Collected>) {
        let intent = Intent { why: "test".into(), ..Intent::default() };
        let mut listed = Vec::new();
        let run =
            run(&chosen(collectors), Path::new("/no/such/program"), &intent, Size(limit), &mut |collected| {
                listed.push(collected.clone());
            });
        let archive = run.unwrap();
        assert!(to_u64(archive.len()) <= at_most(Size(limit)), "{} bytes", archive.len());
        (unpack(&archive), listed)
    }

    #[test]
    fn what_is_volatile_is_collected_first_and_nobody_stops_the_others() {
        let hangs = Collector { timeout: 1, ..sh("hangs", Volatility::Network, "echo begun; sleep 1234") };
        let collectors = [
            sh("clock", Volatility::Time, "echo late"),
            sh("fails", Volatility::Files, "echo half; echo sorry >&2; exit 3"),
            hangs,
            sh("floods", Volatility::Logins, "exec yes"),
            Collector { command: vec!["/no/such/tool".into()], ..sh("missing", Volatility::Processes, "") },
            Collector {
                command: Vec::new(),
                files: vec!["/proc/uptime".into()],
                ..sh("no-reader", Volatility::Config, "")
            },
        ];
        let (files, listed) = found(&collectors, 1 << 20);
        let ended: Vec<_> = listed
            .iter()
            .map(|one| (one.directory.as_str(), one.ended.split(" (").next().unwrap(), one.truncated))
            .collect();
        assert_eq!(
            ended,
            [
                ("01-hangs", "killed after 1 s", true),
                ("02-floods", "killed after 65536 bytes of output", true),
                ("03-missing", "not started: No such file or directory", false),
                ("04-fails", "exit code 3", false),
                ("05-no-reader", "not started: No such file or directory", true),
                ("06-clock", "exit code 0", false),
            ]
        );
        assert_eq!(&files["01-hangs/stdout"], "begun\n");
        assert_eq!(files["02-floods/stdout"].len(), 65536);
        assert_eq!((&*files["04-fails/stdout"], &*files["04-fails/stderr"]), ("half\n", "sorry\n"));
        assert_eq!(&files["06-clock/stdout"], "late\n");
        let collectors: serde_json::Value = serde_json::from_str(&files["collectors.json"]).unwrap();
        assert_eq!(collectors[3]["ended"], "exit code 3");
        assert_eq!(collectors[0]["class"], "network");
        assert!((0.9..9.0).contains(&collectors[0]["seconds"].as_f64().unwrap()), "{collectors}");
        let intent: serde_json::Value = serde_json::from_str(&files["intent.json"]).unwrap();
        assert_eq!(intent["why"], "test");
        assert!(!intent["boot_id"].as_str().unwrap().is_empty());
    }

    #[test]
    fn all_together_stay_below_their_limit() {
        let floods = |number: u32| sh(&format!("f{number}"), Volatility::Files, "exec yes");
        let collectors: Vec<_> = (0..5).map(floods).collect();
        let (files, listed) = found(&collectors, 200 << 10);
        assert!(listed.iter().all(|one| one.truncated));
        assert_eq!(listed[0].ended, "killed after 65536 bytes of output");
        assert_eq!(listed[4].ended, "not started: planned.live_limit is reached");
        assert!(!files.contains_key("05-f4/stdout") && files.contains_key("collectors.json"));
    }

    #[test]
    fn the_built_in_ones_read_proc_and_run_only() {
        let collectors = chosen(&[]);
        assert!(collectors.iter().map(|one| one.class).is_sorted());
        for collector in &collectors {
            assert!(collector.command.is_empty() && !collector.files.is_empty());
            for file in &collector.files {
                assert!(file.starts_with("/proc/") || file.starts_with("/run/"), "{file}");
            }
        }
        let all = collectors.iter().fold(0, |sum, one| sum + one.limit.0);
        assert!(all <= base::config::Planned::default().live_limit.0);
    }
}
