//! State of the kernel: keys, IPC, swap areas, namespaces, settings, BPF and probes: what /proc showed
//! of them, and what the rows say.

use super::Triage;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The key that is made: its description, and what no row may have.
pub const KEY: &str = "a key of the guest";
/// Its payload.
pub const SECRET: &str = "payload-that-stays-in-the-kernel";
/// The tracepoint that a BPF program is linked to.
pub const POINT: &str = "module_load";
/// The file that a uprobe is put on, and where in it.
pub const PROBED_FILE: &str = "probed";
#[expect(missing_docs, reason = "told above")]
pub const PROBED_OFFSET: u64 = 0x40;
/// A thread that waits and cannot be interrupted.
pub const WAITING: &str = "waits-for-ever";
/// The function that a kprobe is put on.
pub const PROBED: &str = "do_sys_openat2";

pub(super) fn text(row: &Value, path: &str) -> String {
    match row.pointer(path) {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => String::new(),
    }
}

/// The same set on both sides, which is not empty.
pub(super) fn ensure_same(of: &str, theirs: &BTreeSet<String>, ours: &BTreeSet<String>) -> Result<()> {
    let lacks: Vec<_> = theirs.difference(ours).collect();
    let more: Vec<_> = ours.difference(theirs).collect();
    ensure!(lacks.is_empty() && more.is_empty(), "{of}: rows lack {lacks:?} and have {more:?}");
    ensure!(!theirs.is_empty(), "/proc showed no {of}");
    eprintln!("{of}: {} equal", theirs.len());
    Ok(())
}

/// What the snapshot says of a kind.
pub(super) fn said<'a>(snapshot: &'a str, of: &'a str) -> impl Iterator<Item = &'a str> {
    snapshot.lines().filter_map(move |line| line.strip_prefix(of)?.strip_prefix('\t'))
}

/// Words of a line by their numbers.
pub(super) fn words(line: &str, which: &[usize]) -> String {
    let all: Vec<&str> = line.split_whitespace().collect();
    which.iter().map(|at| all.get(*at).copied().unwrap_or_default()).collect::<Vec<_>>().join(" ")
}

impl Triage<'_> {
    /// Compares all of it.
    pub fn ensure_kernel_state(&self, snapshot: &str) -> Result<()> {
        self.ensure_keys(snapshot)?;
        self.ensure_ipc(snapshot)?;
        self.ensure_swap(snapshot)?;
        self.ensure_namespaces(snapshot)?;
        self.ensure_settings(snapshot)?;
        self.ensure_bpf(snapshot)?;
        self.ensure_slabs(snapshot)?;
        self.ensure_waiting()?;
        self.ensure_rest(snapshot)
    }

    /// /proc/keys shows those that the reader may see, which root's are not all.
    fn ensure_keys(&self, snapshot: &str) -> Result<()> {
        let rows = self.rows("keyrings")?;
        let ours: BTreeSet<String> = rows
            .iter()
            .map(|row| {
                let path = ["/linux/key/serial", "/linux/key/permissions", "/user/id"];
                // It shows nine characters of a type.
                let kind: String = text(row, "/linux/key/type").chars().take(9).collect();
                let description = text(row, "/linux/key/description");
                let first = description.split_whitespace().next().unwrap_or_default().to_owned();
                format!("{} {kind} {first}", path.map(|path| text(row, path)).join(" "))
            })
            .collect();
        let theirs: BTreeSet<String> = said(snapshot, "key")
            .map(|line| {
                // Serial, flags, usage, time, permissions, uid, gid, type, description: what it holds.
                let description = words(line, &[8]);
                format!("{} {}", words(line, &[0, 4, 5, 7]), description.trim_end_matches(':'))
            })
            .collect();
        let missing: Vec<_> = theirs.difference(&ours).collect();
        ensure!(missing.is_empty() && !theirs.is_empty(), "keys: rows lack {missing:?} of {ours:?}");
        eprintln!("keys: {} of /proc, {} rows", theirs.len(), ours.len());
        let is_ours = |row: &&Value| text(row, "/linux/key/description") == KEY;
        ensure!(rows.iter().filter(is_ours).count() == 1, "no key {KEY}");
        for artefact in ["keyrings", "ipc", "kernel", "namespaces", "timeline"] {
            let rows = self.rows(artefact)?;
            ensure!(!rows.iter().any(|row| row.to_string().contains(SECRET)), "{artefact} has the payload");
        }
        Ok(())
    }

    fn ensure_ipc(&self, snapshot: &str) -> Result<()> {
        let rows = self.rows("ipc")?;
        let first = rows.iter().filter_map(|row| row.pointer("/linux/namespace/ipc")?.as_u64()).min();
        // What /proc shows is of the first namespace, whose number is the lowest of all.
        let of = |name: &str, more: &[&str]| -> BTreeSet<String> {
            let rows = rows.iter().filter(|row| {
                text(row, "/linux/ipc/type") == name
                    && row.pointer("/linux/namespace/ipc").and_then(Value::as_u64) == first
            });
            let line = |row: &Value| {
                let key = text(row, "/linux/ipc/key");
                let key = i64::from_str_radix(key.trim_start_matches("0x"), 16).unwrap_or(-1);
                let mode = text(row, "/linux/ipc/mode");
                let mode = mode.trim_start_matches('0').to_owned();
                let rest: Vec<String> = more.iter().map(|path| text(row, path)).collect();
                format!("{key} {} {mode} {}", text(row, "/linux/ipc/id"), rest.join(" "))
            };
            rows.map(line).collect()
        };
        let take = |kind: &'static str, which: &'static [usize]| -> BTreeSet<String> {
            said(snapshot, kind).map(|line| words(line, which)).collect()
        };
        // key shmid perms size cpid lpid nattch uid gid cuid cgid atime dtime ctime
        let shared = ["/linux/ipc/bytes", "/linux/ipc/creator/pid", "/linux/ipc/attached", "/user/id"];
        ensure_same("shared memory", &take("shm", &[0, 1, 2, 3, 4, 6, 7]), &of("shared memory", &shared))?;
        // key semid perms nsems uid gid cuid cgid
        let semaphores = ["/linux/ipc/count", "/user/id", "/group/id"];
        ensure_same("semaphores", &take("sem", &[0, 1, 2, 3, 4, 5]), &of("semaphores", &semaphores))?;
        // key msqid perms cbytes qnum lspid lrpid uid
        let queue = ["/linux/ipc/bytes", "/linux/ipc/messages", "/linux/ipc/sender/pid", "/user/id"];
        ensure_same("queues", &take("msg", &[0, 1, 2, 3, 4, 5, 7]), &of("message queue", &queue))?;
        let named = rows.iter().filter(|row| text(row, "/linux/ipc/name") == "/a-queue").count();
        ensure!(named == 1, "no queue of POSIX: {rows:?}");
        let elsewhere = rows.iter().filter(|row| text(row, "/linux/ipc/key") == "0x00007777").count();
        ensure!(elsewhere == 1, "nothing of the other namespace: {rows:?}");
        Ok(())
    }

    fn ensure_swap(&self, snapshot: &str) -> Result<()> {
        let line = |row: &Value| {
            let path = ["/file/path", "/linux/swap/kib", "/linux/swap/used_kib", "/linux/swap/priority"];
            path.map(|path| text(row, path)).join(" ")
        };
        let ours = self.rows("swap")?.iter().map(line).collect();
        // Filename Type Size Used Priority
        let theirs = said(snapshot, "swap").map(|line| words(line, &[0, 2, 3, 4])).collect();
        ensure_same("swap areas", &theirs, &ours)
    }

    fn ensure_namespaces(&self, snapshot: &str) -> Result<()> {
        let mut ours = BTreeSet::new();
        let kernel: BTreeSet<u64> = self
            .rows("processes")?
            .iter()
            .filter(|row| row.pointer("/linux/kernel_thread") == Some(&true.into()))
            .filter_map(|row| row.pointer("/process/pid")?.as_u64())
            .collect();
        for row in self.rows("namespaces")?.iter().filter(|row| row.pointer("/linux/namespace").is_some()) {
            let pids = row.pointer("/linux/pids").and_then(Value::as_array).context("no pids")?;
            for pid in pids.iter().filter_map(Value::as_u64).filter(|pid| !kernel.contains(pid)) {
                let name = text(row, "/linux/namespace/type");
                ours.insert(format!("{name}\t{pid}\t{name}:[{}]", text(row, "/linux/namespace/number")));
            }
        }
        let is_of_user = |line: &&str| {
            let pid = line.split('\t').nth(1).and_then(|pid| pid.parse().ok());
            // Of these the directory has a second one: for children.
            !line.contains("_for_children") && pid.is_some_and(|pid: u64| !kernel.contains(&pid))
        };
        let known: BTreeSet<String> =
            ours.iter().filter_map(|line| Some(line.split('\t').nth(1)?.to_owned())).collect();
        // Threads of the kernel that have ended since are not known to be such.
        let theirs = said(snapshot, "namespace").filter(is_of_user);
        let theirs = theirs
            .filter(|line| line.split('\t').nth(1).is_some_and(|pid| known.contains(pid)))
            .map(str::to_owned)
            .collect();
        ensure_same("namespaces", &theirs, &ours)?;
        // subsys_name hierarchy num_cgroups enabled; kernels of late do not show it.
        let rows = self.rows("namespaces")?;
        let counted = rows.iter().find_map(|row| row.pointer("/linux/cgroups/living")?.as_u64());
        let counted = counted.context("no number of control groups")?;
        for line in said(snapshot, "cgroups") {
            ensure!(words(line, &[2]) == counted.to_string(), "{counted} control groups, not {line}");
        }
        Ok(())
    }

    fn ensure_settings(&self, snapshot: &str) -> Result<()> {
        let theirs: BTreeMap<&str, &str> =
            said(snapshot, "sysctl").filter_map(|line| line.split_once('\t')).collect();
        let rows = self.rows("kernel")?;
        let mut compared = 0_u32;
        for row in &rows {
            let name = text(row, "/linux/sysctl/name");
            if let Some(value) = theirs.get(name.as_str()) {
                let ours = text(row, "/linux/sysctl/value");
                ensure!(ours == *value, "{name} is {value}, the row says {ours}");
                compared = compared.saturating_add(1);
            }
        }
        ensure!(compared >= 35, "only {compared} settings could be compared");
        eprintln!("settings: {compared} equal");
        let lines =
            rows.iter().map(|row| text(row, "/linux/kernel/command_line")).filter(|line| !line.is_empty());
        ensure_same(
            "command line",
            &said(snapshot, "cmdline").map(str::to_owned).collect(),
            &lines.collect(),
        )?;
        let hooked: Vec<_> = rows.iter().filter(|row| row.pointer("/linux/suspicious").is_some()).collect();
        ensure!(hooked.is_empty(), "nobody hooked anything: {hooked:?}");
        let checked =
            rows.iter().filter_map(|row| row.pointer("/linux/hooks/checked")?.as_u64()).sum::<u64>();
        ensure!(checked > 800, "only {checked} functions were checked");
        Ok(())
    }

    fn ensure_bpf(&self, snapshot: &str) -> Result<()> {
        let line = |row: &Value| {
            let id = text(row, "/linux/bpf/id");
            match text(row, "/linux/bpf/kind").as_str() {
                "program" => format!("prog_tag:\t{}\tprog_id:\t{id}", text(row, "/linux/bpf/tag")),
                kind => format!("{kind}_id:\t{id}"),
            }
        };
        let rows = self.rows("bpf")?;
        let ours = rows.iter().map(line).collect();
        ensure_same("BPF", &said(snapshot, "bpf").map(str::to_owned).collect(), &ours)?;
        let programs = [("a_filter", "socket_filter"), ("a_probe", "raw_tracepoint"), ("an_array", "array")];
        for (name, kind) in programs {
            let found =
                rows.iter().find(|row| text(row, "/linux/bpf/name") == name).context("no such name")?;
            ensure!(text(found, "/linux/bpf/type") == kind, "{found}");
        }
        let linked = rows.iter().find(|row| text(row, "/linux/bpf/kind") == "link").context("no link")?;
        ensure!(text(linked, "/linux/bpf/type") == "raw_tracepoint", "{linked}");
        let probe =
            rows.iter().find(|row| text(row, "/linux/bpf/name") == "a_probe").context("no program")?;
        let of = ["/linux/bpf/program/id", "/linux/bpf/id"];
        ensure!(text(linked, of[0]) == text(probe, of[1]), "{linked} is not of {probe}");
        Ok(())
    }

    fn ensure_slabs(&self, snapshot: &str) -> Result<()> {
        let rows = self.rows("memory")?;
        let named = |row: &Value| Some(text(row, "/linux/slab/name")).filter(|name| !name.is_empty());
        let ours = rows.iter().filter_map(named).collect();
        ensure_same("caches", &said(snapshot, "slab").map(|line| words(line, &[0])).collect(), &ours)
    }

    /// The thread that waits for a child, which nothing interrupts, with its stack.
    fn ensure_waiting(&self) -> Result<()> {
        let rows = self.rows("io")?;
        let tasks: Vec<_> = rows.iter().filter(|row| text(row, "/linux/io/what") == "task").collect();
        let waiting: Vec<_> = tasks.iter().filter(|row| text(row, "/process/name") == WAITING).collect();
        let [waiting] = waiting.as_slice() else { anyhow::bail!("not one {WAITING}: {tasks:?}") };
        let stack = waiting.pointer("/linux/stack").map(Value::to_string).unwrap_or_default();
        ensure!(stack.contains("kernel_clone+"), "{waiting}");
        Ok(())
    }

    /// What nothing in /proc shows.
    fn ensure_rest(&self, snapshot: &str) -> Result<()> {
        let rows = self.rows("tracing")?;
        let uprobes = rows.iter().filter(|row| text(row, "/linux/tracing/kind") == "uprobe");
        let line =
            |row: &Value| format!("{} {}", text(row, "/file/inode"), text(row, "/linux/tracing/offset"));
        let theirs = said(snapshot, "uprobe").map(str::to_owned).collect();
        ensure_same("uprobes", &theirs, &uprobes.map(line).collect())?;
        let probes = rows.iter().filter(|row| text(row, "/linux/tracing/kind") == "kprobe");
        let targets: Vec<String> = probes.map(|row| text(row, "/linux/tracing/target")).collect();
        // A function may begin with a mark for indirect branches, which the probe comes behind.
        ensure!(targets.len() == 1 && targets.iter().all(|target| target.starts_with(PROBED)), "{targets:?}");
        ensure!(
            rows.iter().any(|row| text(row, "/linux/tracing/kind") == "ftrace") || rows.len() == 3,
            "{rows:?}"
        );
        let timers = self.rows("timers")?;
        let unnamed =
            timers.iter().filter(|row| text(row, "/linux/timer/function").starts_with("0x")).count();
        ensure!(timers.len() > 10 && unnamed == 0, "{unnamed} of {} timers have no name", timers.len());
        for artefact in
            ["bpf", "keyrings", "ipc", "swap", "namespaces", "kernel", "tracing", "timers", "memory", "io"]
        {
            let errors: Vec<_> =
                self.rows(artefact)?.into_iter().filter(|row| row.get("errors").is_some()).collect();
            ensure!(errors.is_empty(), "{artefact}: {errors:?}");
        }
        Ok(())
    }
}
