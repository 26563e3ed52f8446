//! `processes.jsonl`: processes with their threads, who they are, what they were started with.

use ::processes::mappings::Space;
use ::processes::names;
use ::processes::resident::Pages;
use ::processes::tasks::{Process, Task};
use ::processes::user;
use base::addr::{VirtAddr, to_u64, to_usize};
use serde_json::Value;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use symbols::layouts;
use vmcore::kernel::KernelError;

use super::groups::{Groups, container};
use super::namespaces::Namespaces;
use super::timeline::Moment;
use super::{Artefact, Ground, Row, Rows, Stop};

/// Bytes of arguments, and of the environment, that are read.
const TEXT: u64 = 32 << 10;
/// Threads that are listed.
const THREADS: usize = 4096;
/// The process that all threads of the kernel are children of (kthreadd).
const KTHREADD: u32 = 2;

layouts! {
    TaskLayout of "task_struct" {
        parent: "real_parent",
        cred: "cred",
    } [
        start: "start_boottime",
        fs: "fs",
        seccomp: "seccomp.mode",
        tracer: "ptrace",
        exit_state: "exit_state",
        login: "loginuid",
        session: "sessionid",
    ]
    CredLayout of "cred" {
        uid: "uid",
        gid: "gid",
        euid: "euid",
        egid: "egid",
        effective: "cap_effective",
    }
    MmLayout of "mm_struct" {
        exe: "exe_file",
        arg_start: "arg_start",
        arg_end: "arg_end",
        env_start: "env_start",
        env_end: "env_end",
    }
    FsLayout of "fs_struct" {
        pwd_mount: "pwd.mnt",
        pwd: "pwd.dentry",
        root_mount: "root.mnt",
        root: "root.dentry",
    }
}

pub(super) struct Layout {
    task: TaskLayout,
    cred: CredLayout,
    mm: MmLayout,
    fs: FsLayout,
    groups: Option<Groups>,
    namespaces: Namespaces,
}

impl Artefact for Layout {
    const NAME: &'static str = "processes";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        Ok(Self {
            task: TaskLayout::ask(known)?,
            cred: CredLayout::ask(known)?,
            mm: MmLayout::ask(known)?,
            fs: FsLayout::ask(known)?,
            groups: Groups::ask(known),
            namespaces: Namespaces::ask(known)?,
        })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        for process in &ground.processes.all {
            rows.add(&self.row(ground, process))?;
        }
        for fault in ground.processes.faults.iter().take(64) {
            let mut row = Row::default();
            row.error("the list of tasks", fault);
            rows.add(&row)?;
        }
        Ok(())
    }
}

impl Layout {
    fn row(&self, ground: &Ground<'_>, process: &Process) -> Row {
        let (system, task) = (ground.system, &process.leader);
        let mut row = Row::at(task.address);
        row.set("process.pid", task.pid);
        row.set("process.name", task.comm.clone());
        row.set("linux.kernel_thread", task.is_kernel);
        let parent = self.parent(ground, task.address);
        match &parent {
            Ok(pid) => row.set("process.parent.pid", *pid),
            Err(error) => row.error("process.parent.pid", &base::log::chain(error)),
        }
        self.start(ground, task, &mut row);
        self.who(ground, task.address, &mut row);
        if let Some(offset) = system.layout.task.state {
            let exit = self.task.exit_state.map(|at| system.half(task.address, at, "task_struct.exit_state"));
            let exit = exit.and_then(Result::ok).unwrap_or(0);
            let state = system.half(task.address, offset, "task_struct.state");
            row.read("linux.state", state.map(|state| state_name(state, exit)));
        }
        for (key, offset) in [("linux.seccomp", self.task.seccomp), ("linux.ptrace", self.task.tracer)] {
            let value = offset.map(|offset| system.half(task.address, offset, "task_struct"));
            if let Some(value) = value {
                row.read(key, value);
            }
        }
        self.places(ground, task.address, &mut row);
        self.groups(ground, task.address, &mut row);
        let threads = process.threads.iter().take(THREADS).map(|thread| {
            let mut inner = Row::at(thread.address);
            inner.set("id", thread.pid);
            inner.set("name", thread.comm.clone());
            serde_json::to_value(inner).unwrap_or_default()
        });
        row.set("linux.threads", Value::Array(threads.collect()));
        if let Some(mm) = process.mm() {
            self.memory(ground, mm, &mut row);
        }
        let suspicions = suspicions(task, parent.ok(), row.get("process.args"));
        if !suspicions.is_empty() {
            row.set("linux.suspicious", suspicions);
        }
        row
    }

    fn parent(&self, ground: &Ground<'_>, task: VirtAddr) -> Result<u32, KernelError> {
        let what = "task_struct.real_parent";
        let parent = ground.system.follow(task, self.task.parent, what)?;
        ground.system.half(parent, ground.system.layout.task.tgid, "task_struct.tgid")
    }

    fn start(&self, ground: &Ground<'_>, task: &Task, row: &mut Row) {
        let Some(offset) = self.task.start else { return };
        let start = ground.system.word(task.address, offset, "task_struct.start_boottime");
        let at = start.as_ref().ok().and_then(|start| ground.clock.since_boot(*start));
        row.read("linux.start_boottime", start);
        let Some(at) = at else { return };
        row.put("process.start", base::time::utc(at).ok_or("the clock is damaged"));
        let message = format!("process {} ({}) started", task.pid, task.comm);
        row.happened(Moment { at, message, kind: "Process Start Time" });
    }

    fn who(&self, ground: &Ground<'_>, task: VirtAddr, row: &mut Row) {
        let system = ground.system;
        let what = "task_struct.cred";
        let cred = match system.pointer(task, self.task.cred, what) {
            Ok(Some(cred)) => cred,
            Ok(None) => return row.error("user", &"there are no credentials"),
            Err(error) => return row.error("user", &base::log::chain(&error)),
        };
        for (key, offset) in [
            ("user.id", self.cred.uid),
            ("group.id", self.cred.gid),
            ("user.effective.id", self.cred.euid),
            ("user.effective.group.id", self.cred.egid),
        ] {
            // Ids are keywords in the schema.
            row.read(key, system.half(cred, offset, "cred").map(|id| id.to_string()));
        }
        let capabilities = system.word(cred, self.cred.effective, "cred.cap_effective");
        row.read("linux.capabilities.effective", capabilities.map(|mask| format!("{mask:#x}")));
        for (key, offset) in [("linux.loginuid", self.task.login), ("linux.sessionid", self.task.session)] {
            let id = offset.and_then(|offset| system.half(task, offset, "task_struct").ok());
            // All ones: not set.
            if let Some(id) = id.filter(|id| *id != u32::MAX) {
                row.set(key, id);
            }
        }
    }

    /// Where it works, and what its root is.
    fn places(&self, ground: &Ground<'_>, task: VirtAddr, row: &mut Row) {
        let system = ground.system;
        let fs = self.task.fs.and_then(|at| system.pointer(task, at, "task_struct.fs").ok().flatten());
        let Some(fs) = fs else { return };
        let keys = [
            ("process.working_directory", self.fs.pwd, self.fs.pwd_mount),
            ("linux.root", self.fs.root, self.fs.root_mount),
        ];
        for (key, dentry, mount) in keys {
            let path = names::in_mount(system, (fs, dentry), (fs, mount));
            row.read(key, path.map(|path| text(&path)));
        }
    }

    fn groups(&self, ground: &Ground<'_>, task: VirtAddr, row: &mut Row) {
        let system = ground.system;
        for (name, number) in self.namespaces.of(system, task) {
            row.set(&format!("linux.namespace.{name}"), number);
        }
        let Some(groups) = &self.groups else { return };
        let path = groups.of(system, task).and_then(|group| groups.path(system, group));
        if let Some(id) = path.as_ref().ok().and_then(|path| container(path)) {
            row.set("container.id", id);
        }
        row.read("linux.cgroup", path);
    }

    /// Arguments, environment and program.
    fn memory(&self, ground: &Ground<'_>, mm: VirtAddr, row: &mut Row) {
        let system = ground.system;
        match system.pointer(mm, self.mm.exe, "mm_struct.exe_file") {
            Ok(Some(file)) => {
                let path = names::path(system, file).map(|path| text(&path));
                let deleted = path.as_ref().is_ok_and(|path| path.ends_with(" (deleted)"));
                row.read("process.executable", path);
                if deleted {
                    row.set("linux.executable_deleted", true);
                }
            }
            Ok(None) => {}
            Err(error) => row.error("process.executable", &base::log::chain(&error)),
        }
        let space = match Space::read(system, mm) {
            Ok(space) => space,
            Err(error) => return row.error("process.args", &base::log::chain(&error)),
        };
        let pages = Pages::new(system, ground.held);
        let words = |start, end, what| -> Result<Vec<String>, String> {
            let word = |offset| system.word(mm, offset, what).map_err(|error| base::log::chain(&error));
            let (start, end) = (word(start)?, word(end)?);
            let len = end.checked_sub(start).ok_or_else(|| format!("{start:#x} to {end:#x} cannot be"))?;
            let mut bytes = vec![0; to_usize(len.min(TEXT))];
            user::read(&pages, &space, start, &mut bytes).map_err(|error| error.to_string())?;
            let all = bytes.strip_suffix(&[0]).unwrap_or(&bytes);
            Ok(all.split(|byte| *byte == 0).map(text).collect())
        };
        row.put("process.args", words(self.mm.arg_start, self.mm.arg_end, "mm_struct.arg_start"));
        let args = row.get("process.args").and_then(Value::as_array).map(|args| {
            let words: Vec<&str> = args.iter().filter_map(Value::as_str).collect();
            (words.len(), words.join(" "))
        });
        if let Some((count, line)) = args {
            row.set("process.args_count", to_u64(count));
            row.set("process.command_line", line);
        }
        if !ground.limits.contents {
            return row.set("linux.env_left_out", true);
        }
        row.put("process.env_vars", words(self.mm.env_start, self.mm.env_end, "mm_struct.env_start"));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// As ps has it (fs/proc/array.c).
fn state_name(state: u32, exit: u32) -> &'static str {
    match (state & 0x7f, exit) {
        (_, 0x20) => "zombie",
        (_, 0x10) => "dead",
        (0, _) => "running",
        (state, _) if state & 2 != 0 => "uninterruptible",
        (state, _) if state & 1 != 0 => "sleeping",
        (state, _) if state & 4 != 0 => "stopped",
        (state, _) if state & 8 != 0 => "traced",
        _ => "other",
    }
}

/// What an analyst should look at.
fn suspicions(task: &Task, parent: Option<u32>, args: Option<&Value>) -> Vec<&'static str> {
    let first = args.and_then(|args| args.get(0)).and_then(Value::as_str).unwrap_or_default();
    let looks_like_thread = first.starts_with('[') || task.comm.starts_with("kworker/");
    let mut all = Vec::new();
    if !task.is_kernel && looks_like_thread {
        all.push("is called like a thread of the kernel, and is none");
    }
    let is_child = parent.is_none_or(|parent| parent == KTHREADD || parent == 0);
    if task.is_kernel && task.pid != KTHREADD && !is_child {
        all.push("is a thread of the kernel, and no child of kthreadd");
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(comm: &str, is_kernel: bool) -> Task {
        Task { address: VirtAddr(0), pid: 77, tgid: 77, comm: comm.to_owned(), is_kernel, mm: None }
    }

    #[test]
    fn impostors_are_marked() {
        let args = Value::from(vec!["[kworker/0:1]"]);
        assert_eq!(suspicions(&task("sh", false), Some(1), Some(&args)).len(), 1);
        assert_eq!(suspicions(&task("kworker/0:1", false), Some(1), None).len(), 1);
        assert_eq!(suspicions(&task("kworker/0:1", true), Some(2), None).len(), 0);
        assert_eq!(suspicions(&task("kworker/0:1", true), Some(1), None).len(), 1);
        assert_eq!(suspicions(&task("sh", false), Some(1), Some(&Value::from(vec!["sh"]))).len(), 0);
    }

    #[test]
    fn states_are_those_of_ps() {
        assert_eq!(state_name(0, 0), "running");
        assert_eq!(state_name(1, 0), "sleeping");
        assert_eq!(state_name(0x402, 0), "uninterruptible");
        assert_eq!(state_name(0, 0x20), "zombie");
    }
}
