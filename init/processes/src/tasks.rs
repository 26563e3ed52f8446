//! The list of tasks: processes and their threads (`init_task.tasks`, `signal_struct.thread_head`).

use std::collections::BTreeSet;

use base::addr::{VirtAddr, to_usize};
use vmcore::kernel::KernelError;

use crate::system::{System, SystemError};

/// `PID_MAX_LIMIT`, include/linux/threads.h.
const MAX_PIDS: u64 = 4 << 20;
/// `TASK_COMM_LEN`
const COMM_LEN: usize = 16;
/// `PF_KTHREAD`, include/linux/sched.h.
const PF_KTHREAD: u32 = 0x0020_0000;

/// A thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its `task_struct`.
    pub address: VirtAddr,
    /// Its number.
    pub pid: u32,
    /// The number of its process.
    pub tgid: u32,
    /// Its name; bytes that are not UTF-8 are replaced.
    pub comm: String,
    /// Whether it is the kernel's own.
    pub is_kernel: bool,
    /// Its `mm_struct`; none of the kernel's own, and of one that has exited.
    pub mm: Option<VirtAddr>,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// The thread that it is named after.
    pub leader: Task,
    /// All its threads; the leader is among them, if the list is sound.
    pub threads: Vec<Task>,
}

impl Process {
    /// Its `mm_struct`: a leader may have exited before its threads.
    #[must_use]
    pub fn mm(&self) -> Option<VirtAddr> {
        self.leader.mm.or_else(|| self.threads.iter().find_map(|thread| thread.mm))
    }
}

/// The processes of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    /// In the order of the list, which is that of their start.
    pub all: Vec<Process>,
    /// What is wrong with the lists.
    pub faults: Vec<String>,
}

impl Processes {
    /// The process that has a thread of this number.
    #[must_use]
    pub fn of(&self, pid: u32) -> Option<&Process> {
        let leader = self.all.iter().find(|process| process.leader.pid == pid);
        leader.or_else(|| self.all.iter().find(|process| process.threads.iter().any(|task| task.pid == pid)))
    }
}

/// Reads the list of tasks. One that is torn is read from its other end, too.
pub fn all(system: &System<'_>) -> Result<Processes, SystemError> {
    let init = system.variables.init_task.ok_or(SystemError::NoTasks)?;
    Ok(from(system, init))
}

/// The tasks in the list that `init` is in.
pub(crate) fn from(system: &System<'_>, init: VirtAddr) -> Processes {
    let task = &system.layout.task;
    let head = VirtAddr(init.0.wrapping_add(task.tasks));
    let mut found = Processes::default();
    // Of all lists together: lists of threads may lead into each other.
    let mut left = to_usize(system.pages.min(MAX_PIDS)).saturating_mul(2);
    let (entries, fault) = list(system, head, &mut left);
    if let Some(fault) = fault {
        found.faults.push(format!("the list of processes {fault}"));
    }
    let mut seen = BTreeSet::new();
    for entry in entries {
        let address = VirtAddr(entry.0.wrapping_sub(task.tasks));
        match process(system, address, &mut left, &mut found.faults) {
            Ok(process) if seen.insert(process.leader.pid) => found.all.push(process),
            Ok(process) => found.faults.push(format!("PID {} is there twice", process.leader.pid)),
            Err(error) => {
                found.faults.push(format!("the task at {address}: {}", base::log::chain(&error)));
            }
        }
    }
    found
}

/// The entries of a list, each once, and what is wrong with it: each has to point back at the one
/// before it.
fn list(system: &System<'_>, head: VirtAddr, left: &mut usize) -> (Vec<VirtAddr>, Option<String>) {
    let mut seen = BTreeSet::from([head]);
    let (mut entries, fault) = follow(system, head, Direction::Forward, &mut seen, left);
    let Some(fault) = fault else { return (entries, None) };
    let (mut behind, _) = follow(system, head, Direction::Backward, &mut seen, left);
    behind.reverse();
    let text =
        format!("is torn behind {} entries ({fault}); {} more from its end", entries.len(), behind.len());
    entries.append(&mut behind);
    (entries, Some(text))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Backward,
}

/// Goes along a list up to its head. `struct list_head` is two pointers: next, prev.
fn follow(
    system: &System<'_>,
    head: VirtAddr,
    direction: Direction,
    seen: &mut BTreeSet<VirtAddr>,
    left: &mut usize,
) -> (Vec<VirtAddr>, Option<String>) {
    let (ahead, back) = if direction == Direction::Forward { (0, 8) } else { (8, 0) };
    let mut entries = Vec::new();
    let mut at = head;
    loop {
        let next = match system.word(at, ahead, "a list of tasks") {
            Ok(next) => VirtAddr(next),
            Err(error) => return (entries, Some(base::log::chain(&error))),
        };
        if next == head {
            return (entries, None);
        }
        match system.word(next, back, "a list of tasks") {
            Ok(before) if before == at.0 => {}
            Ok(_) => return (entries, Some(format!("{next} does not lead back"))),
            Err(error) => return (entries, Some(base::log::chain(&error))),
        }
        if !seen.insert(next) {
            return (entries, Some(format!("{next} comes again")));
        }
        let Some(fewer) = left.checked_sub(1) else { return (entries, Some("it does not end".to_owned())) };
        *left = fewer;
        entries.push(next);
        at = next;
    }
}

/// The process of a leader.
fn process(
    system: &System<'_>,
    address: VirtAddr,
    left: &mut usize,
    faults: &mut Vec<String>,
) -> Result<Process, KernelError> {
    let leader = read(system, address)?;
    let layout = &system.layout;
    let mut threads = Vec::new();
    let signal = system.pointer(address, layout.task.signal, "task_struct.signal")?;
    if let Some(head) = signal.and_then(|signal| signal.checked_add(layout.signal.thread_head)) {
        let (entries, fault) = list(system, head, left);
        faults.extend(fault.map(|fault| format!("the list of threads of PID {} {fault}", leader.pid)));
        for entry in entries {
            let task = read(system, VirtAddr(entry.0.wrapping_sub(layout.task.thread_node)));
            match task {
                Ok(task) if task.tgid == leader.tgid => threads.push(task),
                Ok(task) => faults.push(format!("a thread {} of PID {} is of another", task.pid, leader.pid)),
                Err(error) => {
                    faults.push(format!("a thread of PID {}: {}", leader.pid, base::log::chain(&error)));
                }
            }
        }
    }
    if threads.is_empty() {
        threads.push(leader.clone());
    }
    Ok(Process { leader, threads })
}

/// Reads the `task_struct` at `address`.
pub fn read(system: &System<'_>, address: VirtAddr) -> Result<Task, KernelError> {
    let task = &system.layout.task;
    let number = |offset, what| {
        let value = system.half(address, offset, what)?;
        let is_pid = u64::from(value) <= MAX_PIDS;
        is_pid.then_some(value).ok_or(KernelError::Absurd { what, value: value.into() })
    };
    let comm = system.bytes(address, task.comm, COMM_LEN, "task_struct.comm")?;
    let comm = comm.split(|&byte| byte == 0).next().unwrap_or_default();
    Ok(Task {
        address,
        pid: number(task.pid, "task_struct.pid")?,
        tgid: number(task.tgid, "task_struct.tgid")?,
        comm: String::from_utf8_lossy(comm).into_owned(),
        is_kernel: system.half(address, task.flags, "task_struct.flags")? & PF_KTHREAD != 0,
        mm: system.pointer(address, task.mm, "task_struct.mm")?,
    })
}
