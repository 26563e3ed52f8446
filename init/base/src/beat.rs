//! What the capture child tells PID 1 while it works: a line each, through its standard output.
//!
//! PID 1 reads these lines even after the child was killed, so they are how it knows what the child
//! was at. Telling never fails and waits for nobody: outside a capture kernel it does nothing.

use core::fmt;
use core::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::addr::{Pfn, PfnRange};
use crate::facts::Trigger;

/// Longest line: more than the longest location on a target, and short enough that a pipe takes it
/// in one piece (PIPE_BUF).
pub const MAX_LINE: usize = 1024;

static LISTENED_TO: AtomicBool = AtomicBool::new(false);
static ALIVE: AtomicU64 = AtomicU64::new(0);

/// Something that PID 1 should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beat {
    /// The capture has come further.
    Alive,
    /// Why the capture kernel runs.
    Trigger(Trigger),
    /// A step begins.
    Step {
        /// Which.
        step: Step,
        /// Seconds that it may take; 0 for one that may go on as long as it comes further.
        limit: u64,
    },
    /// From now on this target is in use, by its index in the configuration.
    Target(usize),
    /// The capture's name, the same for every attempt.
    Name(String),
    /// What is saved is saved there.
    Location(String),
    /// A module is being loaded.
    Module(String),
    /// What is saved is saved: whatever happens from here on, another attempt would not make it
    /// better.
    Saved(String),
    /// A worker reads these pages.
    Reading(usize, PfnRange),
    /// It has read them.
    Read(usize),
}

/// A step of the capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Loading modules.
    Modules,
    /// Opening the vmcore, and finding out what is in it.
    Vmcore,
    /// A hook of the user's.
    Hook,
    /// Opening a target.
    Open,
    /// Saving the log and the notes.
    Log,
    /// Looking through the memory for the summary.
    Summary,
    /// Writing the dump.
    Dump,
    /// Looking through the memory for triage.
    Triage,
    /// Writing result.json and letting go of the target.
    Close,
    /// Preparing the final action.
    Handoff,
}

const STEPS: [(Step, &str); 10] = [
    (Step::Modules, "modules"),
    (Step::Vmcore, "vmcore"),
    (Step::Hook, "hook"),
    (Step::Open, "open"),
    (Step::Log, "log"),
    (Step::Summary, "summary"),
    (Step::Dump, "dump"),
    (Step::Triage, "triage"),
    (Step::Close, "close"),
    (Step::Handoff, "handoff"),
];

/// From now on somebody listens at the other end of standard output.
pub fn listened_to() {
    LISTENED_TO.store(true, Ordering::Relaxed);
}

/// Tells PID 1 that the capture has come further, or waits for something that has a limit of time of
/// its own. PID 1 gives a capture up when this stays away too long.
pub fn alive() {
    ALIVE.fetch_add(1, Ordering::Relaxed);
    tell(&Beat::Alive);
}

/// How often [`alive`] was called in this process: for tests of what waits.
#[must_use]
pub fn alive_count() -> u64 {
    ALIVE.load(Ordering::Relaxed)
}

/// Tells PID 1. Unbuffered: a message that waits in a buffer comes too late.
pub fn tell(beat: &Beat) {
    if LISTENED_TO.load(Ordering::Relaxed) {
        // PID 1 may be gone, or have more to do: no reason to stop.
        let _ = nix::unistd::write(std::io::stdout(), format!("{beat}\n").as_bytes());
    }
}

impl fmt::Display for Beat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alive => f.write_str("."),
            Self::Trigger(trigger) => write!(f, "trigger {trigger}"),
            Self::Step { step, limit } => write!(f, "step {step} {limit}"),
            Self::Target(index) => write!(f, "target {index}"),
            Self::Name(name) => write!(f, "name {}", one_line(name)),
            Self::Location(at) => write!(f, "at {}", one_line(at)),
            Self::Module(path) => write!(f, "module {}", one_line(path)),
            Self::Saved(outcome) => write!(f, "saved {}", one_line(outcome)),
            Self::Reading(worker, pages) => {
                write!(f, "reading {worker} {} {}", pages.start().0, pages.end().0)
            }
            Self::Read(worker) => write!(f, "read {worker}"),
        }
    }
}

fn one_line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_LINE / 8).collect()
}

/// A line that is no [`Beat`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no message of a capture")]
pub struct NoBeat;

impl FromStr for Beat {
    type Err = NoBeat;

    fn from_str(line: &str) -> Result<Self, NoBeat> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let number = |text: &str| text.parse::<u64>().map_err(|_| NoBeat);
        let index = |text: &str| text.parse::<usize>().map_err(|_| NoBeat);
        let pair = |text| str::split_once(text, ' ').ok_or(NoBeat);
        match word {
            "." => Ok(Self::Alive),
            "trigger" => {
                let known = [Trigger::Panic, Trigger::Planned];
                known.into_iter().find(|known| known.to_string() == rest).map(Self::Trigger).ok_or(NoBeat)
            }
            "step" => {
                let (name, limit) = pair(rest)?;
                let (step, _) = STEPS.iter().find(|(_, known)| *known == name).ok_or(NoBeat)?;
                Ok(Self::Step { step: *step, limit: number(limit)? })
            }
            "target" => Ok(Self::Target(index(rest)?)),
            "name" => Ok(Self::Name(rest.to_owned())),
            "at" => Ok(Self::Location(rest.to_owned())),
            "module" => Ok(Self::Module(rest.to_owned())),
            "saved" => Ok(Self::Saved(rest.to_owned())),
            "reading" => {
                let (worker, pages) = pair(rest)?;
                let (start, end) = pair(pages)?;
                let pages = PfnRange::new(Pfn(number(start)?), Pfn(number(end)?)).ok_or(NoBeat)?;
                Ok(Self::Reading(index(worker)?, pages))
            }
            "read" => Ok(Self::Read(index(rest)?)),
            _ => Err(NoBeat),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = STEPS.iter().find(|(step, _)| step == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_understood() {
        let pages = PfnRange::new(Pfn(5), Pfn(261)).unwrap();
        let beats = [
            Beat::Alive,
            Beat::Trigger(Trigger::Panic),
            Beat::Trigger(Trigger::Planned),
            Beat::Step { step: Step::Dump, limit: 0 },
            Beat::Step { step: Step::Modules, limit: 60 },
            Beat::Target(2),
            Beat::Name("2026-host-x".into()),
            Beat::Location("/dev/vda1:/var/crash/a b".into()),
            Beat::Module("/lib/modules/nvme.ko".into()),
            Beat::Saved("complete".into()),
            Beat::Reading(3, pages),
            Beat::Read(3),
        ];
        for beat in beats {
            assert_eq!(beat.to_string().parse(), Ok(beat));
        }
        for rubbish in
            ["", "step", "step x 1", "step dump", "reading 0 9 5", "target -1", "read x", "..", "reading 0 1"]
        {
            assert_eq!(rubbish.parse::<Beat>(), Err(NoBeat), "{rubbish}");
        }
    }

    #[test]
    fn a_name_cannot_break_its_line() {
        let line = Beat::Name(format!("a\nread 0{}", "x".repeat(5000))).to_string();
        assert!(!line.contains('\n') && line.len() < MAX_LINE, "{line}");
    }
}
