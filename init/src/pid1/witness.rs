//! What PID 1 has heard from a child: the step it is at, the target it uses, the pages it reads.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base::addr::PfnRange;
use base::beat::{Beat, MAX_LINE, Step};
use base::facts::Trigger;

/// Workers that are listened to; the budget allows fewer.
const MOST_WORKERS: usize = 1024;

/// All that is known of one attempt.
#[derive(Debug)]
pub(super) struct Witness {
    /// Why the capture kernel runs.
    pub(super) trigger: Trigger,
    /// The step that it is at, if it has begun one.
    pub(super) step: Option<Step>,
    /// The target in use, by index.
    pub(super) target: Option<usize>,
    /// The capture's name.
    pub(super) name: Option<String>,
    /// Where it saves to.
    pub(super) location: Option<String>,
    /// The module that it is loading.
    pub(super) module: Option<String>,
    /// How it ended, if it has done what it could: it only has to let go.
    pub(super) saved: Option<String>,
    reading: BTreeMap<usize, PfnRange>,
    step_ends: Option<Instant>,
    /// When it last came further.
    pub(super) progress: Instant,
    line: Vec<u8>,
}

impl Default for Witness {
    fn default() -> Self {
        Self {
            trigger: Trigger::Panic,
            step: None,
            target: None,
            name: None,
            location: None,
            module: None,
            saved: None,
            reading: BTreeMap::new(),
            step_ends: None,
            progress: Instant::now(),
            line: Vec::new(),
        }
    }
}

impl Witness {
    /// Takes in bytes from the pipe. A line that makes no sense is a sign of life and nothing more.
    pub(super) fn listen(&mut self, bytes: &[u8]) {
        self.progress = Instant::now();
        for &byte in bytes {
            if byte != b'\n' {
                if self.line.len() < MAX_LINE {
                    self.line.push(byte);
                }
                continue;
            }
            let line = core::mem::take(&mut self.line);
            if let Some(beat) = core::str::from_utf8(&line).ok().and_then(|line| line.parse().ok()) {
                self.hear(&beat);
            }
        }
    }

    /// Takes in one message.
    pub(super) fn hear(&mut self, beat: &Beat) {
        match beat {
            Beat::Alive => (),
            Beat::Trigger(trigger) => self.trigger = *trigger,
            Beat::Step { step, limit } => {
                self.step = Some(*step);
                let limit = Some(Duration::from_secs(*limit)).filter(|limit| !limit.is_zero());
                self.step_ends = limit.and_then(|limit| Instant::now().checked_add(limit));
                self.reading.clear();
                if *step != Step::Modules {
                    self.module = None;
                }
            }
            Beat::Target(index) => {
                self.target = Some(*index);
                self.location = None;
            }
            Beat::Name(name) => self.name = Some(name.clone()),
            Beat::Location(location) => self.location = Some(location.clone()),
            Beat::Module(path) => self.module = Some(path.clone()),
            Beat::Saved(outcome) => self.saved = Some(outcome.clone()),
            Beat::Reading(worker, pages) => {
                if *worker < MOST_WORKERS {
                    self.reading.insert(*worker, *pages);
                }
            }
            Beat::Read(worker) => {
                self.reading.remove(worker);
            }
        }
    }

    /// Pages that are being read: (first, the one after the last).
    pub(super) fn reading(&self) -> impl Iterator<Item = (u64, u64)> {
        self.reading.values().map(|pages| (pages.start().0, pages.end().0))
    }

    /// Whether the step has taken longer than it may.
    pub(super) fn is_step_late(&self) -> bool {
        self.step_ends.is_some_and(|end| Instant::now() >= end)
    }

    /// The step and the target, for a message.
    pub(super) fn place(&self) -> String {
        let step =
            self.step.map_or_else(|| "before its first step".to_owned(), |step| format!("in step {step}"));
        match (&self.module, &self.location, self.target) {
            (Some(module), ..) => format!("{step}, loading {module}"),
            (_, Some(location), _) => format!("{step}, saving to {location}"),
            (_, _, Some(target)) => format!("{step}, target {}", target.saturating_add(1)),
            _ => step,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_may_come_in_pieces_and_rubbish_is_no_harm() {
        let mut witness = Witness::default();
        for bytes in
            [&b"step du"[..], b"mp 0\ntarg", b"et 1\n\xff\xfe\nname x\nat /dev/vd", b"a:/y\nreading 0 5 9\n"]
        {
            witness.listen(bytes);
        }
        witness.listen(&[b'z'; 10 * MAX_LINE]);
        witness.listen(b"\nreading 7 1 2\nread 0\n");
        assert_eq!((witness.step, witness.target), (Some(Step::Dump), Some(1)));
        assert_eq!(witness.reading().collect::<Vec<_>>(), [(1, 2)]);
        assert_eq!(witness.place(), "in step dump, saving to /dev/vda:/y");
        assert!(!witness.is_step_late());
        assert!(witness.line.capacity() <= 2 * MAX_LINE);
    }

    #[test]
    fn a_step_with_a_limit_can_be_late() {
        let mut witness = Witness::default();
        witness.hear(&Beat::Step { step: Step::Open, limit: 1 });
        assert!(!witness.is_step_late());
        witness.step_ends = Some(Instant::now());
        assert!(witness.is_step_late());
        witness.hear(&Beat::Step { step: Step::Dump, limit: 0 });
        assert!(!witness.is_step_late());
    }
}
