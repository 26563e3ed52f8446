//! What to do when an attempt at the capture came to a bad end. Values in, values out: nothing is
//! done here.
//!
//! - It died (signal, abort, OOM killer, an exit code that is none of ours): the next rung, and the
//!   pages that were being read are left alone.
//! - It came no further and let itself be killed: pages, if some were being read, as above;
//!   otherwise the target is to blame, and the next one gets its turn on the same rung.
//! - It came no further and cannot be killed: a device hangs under it. No second attempt on that
//!   device.
//! - While it loaded a module: the next attempt leaves that module out.
//! - It had said before that what it could save is saved: there is nothing to repeat, however it
//!   ended.
//! - The last rung is an attempt without targets: the end of the log goes where no disk is needed.
//!
//! There are few rungs, few targets and few modules that may hang, and each attempt uses up one of
//! them: the ladder ends.

use core::fmt;

use crate::pid1::witness::Witness;
use base::attempt::{Attempt, Earlier, Rung};
use vmcore::report::Outcome;

/// Page ranges that are remembered: a worker each, an attempt each.
const MOST_RANGES: usize = 1024;
/// Modules that are left out; if more hang, it is not the modules.
const MOST_MODULES: usize = 3;

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It said how: complete, incomplete, failed. It has done what can be done.
    Done(Outcome),
    /// It died.
    Died(String),
    /// It was killed, since it came no further.
    Stalled(String),
    /// It could not be killed.
    Stuck(String),
    /// The time for all attempts is over; whether it could be killed.
    Late {
        /// It could not.
        stuck: bool,
    },
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(outcome) => write!(f, "{outcome}"),
            Self::Died(how) | Self::Stalled(how) | Self::Stuck(how) => f.write_str(how),
            Self::Late { .. } => f.write_str("reached its deadline"),
        }
    }
}

/// The attempts so far and what comes next.
#[derive(Debug)]
pub(super) struct Ladder {
    targets: usize,
    attempt: Attempt,
    /// A child stands in the kernel and cannot be killed: an orderly shutdown would hang in the
    /// same place.
    pub(super) stuck: bool,
}

impl Ladder {
    /// The first attempt, with so many targets.
    pub(super) fn new(targets: usize) -> Self {
        Self { targets, attempt: Attempt::default(), stuck: false }
    }

    /// What the next attempt is to be.
    pub(super) fn attempt(&self) -> &Attempt {
        &self.attempt
    }

    /// Takes note of an attempt's end. Says whether there is to be another one.
    pub(super) fn ended(&mut self, end: End, seen: &Witness) -> bool {
        if seen.saved.is_some() {
            self.stuck |= matches!(end, End::Stuck(_) | End::Late { stuck: true });
            return false;
        }
        let (how, blame_target) = match end {
            End::Done(_) => return false,
            End::Late { stuck } => {
                self.stuck |= stuck;
                return false;
            }
            End::Died(how) => (how, false),
            End::Stalled(how) => (how, seen.reading().next().is_none()),
            End::Stuck(how) => {
                self.stuck = true;
                (how, true)
            }
        };
        self.attempt.name = seen.name.clone().or(self.attempt.name.take());
        self.attempt.earlier.push(Earlier {
            rung: self.attempt.rung,
            end: how,
            step: seen.step.map(|step| step.to_string()),
            location: seen.location.clone(),
        });
        let room = MOST_RANGES.saturating_sub(self.attempt.skip_pages.len());
        self.attempt.skip_pages.extend(seen.reading().take(room));
        if let Some(module) = seen.module.as_ref().filter(|_| self.attempt.skip_modules.len() < MOST_MODULES)
        {
            self.attempt.skip_modules.push(module.clone());
            return true;
        }
        let target = seen.target.filter(|_| blame_target);
        match target {
            Some(target) if self.blame(target) => true,
            _ => self.descend(),
        }
    }

    /// Leaves a target out. Says whether that makes a difference.
    fn blame(&mut self, target: usize) -> bool {
        if self.attempt.skip_targets.contains(&target) {
            return false;
        }
        let last = self.targets.saturating_sub(self.attempt.skip_targets.len()) <= 1;
        if last && !self.stuck {
            return false; // there is no other: less of it may still work
        }
        self.attempt.skip_targets.push(target);
        if self.attempt.skip_targets.len() >= self.targets {
            self.attempt.rung = Rung::LogOnly; // what is left needs no target
        }
        true
    }

    fn descend(&mut self) -> bool {
        match self.attempt.rung.next() {
            Some(rung) => {
                self.attempt.rung = rung;
                true
            }
            // The end of the log still goes where no target is needed.
            None if self.attempt.skip_targets.len() < self.targets => {
                self.attempt.skip_targets = (0..self.targets).collect();
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::beat::{Beat, Step};

    fn seen(beats: &[Beat]) -> Witness {
        let mut witness = Witness::default();
        for beat in beats {
            witness.hear(beat);
        }
        witness
    }

    fn dumping_to(target: usize) -> Vec<Beat> {
        vec![Beat::Target(target), Beat::Step { step: Step::Dump, limit: 0 }]
    }

    fn died() -> End {
        End::Died("was killed by SIGBUS".into())
    }

    #[test]
    fn each_death_leads_one_rung_down_and_the_last_to_the_end() {
        let mut ladder = Ladder::new(1);
        for rung in [Rung::Careful, Rung::Unfiltered, Rung::LogOnly] {
            assert!(ladder.ended(died(), &Witness::default()));
            assert_eq!(ladder.attempt().rung, rung);
        }
        assert!(ladder.ended(died(), &Witness::default()), "one without a target is left");
        assert_eq!((ladder.attempt().rung, &ladder.attempt().skip_targets[..]), (Rung::LogOnly, &[0][..]));
        assert!(!ladder.ended(died(), &Witness::default()));
        assert_eq!(ladder.attempt().earlier.len(), 5);
    }

    #[test]
    fn a_capture_that_says_how_it_ended_is_not_repeated() {
        assert!(!Ladder::new(2).ended(End::Done(Outcome::Failed), &Witness::default()));
        let mut ladder = Ladder::new(2);
        assert!(!ladder.ended(End::Late { stuck: true }, &Witness::default()) && ladder.stuck);
    }

    #[test]
    fn what_is_saved_is_not_saved_again_however_the_child_ends() {
        for (end, stuck) in
            [(died(), false), (End::Stuck("x".into()), true), (End::Late { stuck: true }, true)]
        {
            let mut ladder = Ladder::new(2);
            let mut beats = dumping_to(0);
            beats.push(Beat::Saved("complete".into()));
            assert!(!ladder.ended(end, &seen(&beats)));
            assert_eq!(ladder.stuck, stuck);
        }
    }

    #[test]
    fn a_module_that_hangs_is_left_out() {
        let mut ladder = Ladder::new(1);
        let loading = |path: &str| {
            let modules = Beat::Step { step: Step::Modules, limit: 5 };
            seen(&[modules, Beat::Module(path.into())])
        };
        for path in ["a", "b", "c"] {
            assert!(ladder.ended(End::Stuck("x".into()), &loading(path)));
            assert_eq!(ladder.attempt().rung, Rung::Full);
        }
        assert_eq!(ladder.attempt().skip_modules, ["a", "b", "c"]);
        assert!(ladder.ended(End::Stuck("x".into()), &loading("d")));
        assert_eq!(ladder.attempt().rung, Rung::Careful);
    }

    #[test]
    fn pages_that_were_being_read_are_left_alone() {
        let pages =
            |start, end| base::addr::PfnRange::new(base::addr::Pfn(start), base::addr::Pfn(end)).unwrap();
        let mut beats = dumping_to(0);
        beats.extend([Beat::Reading(0, pages(0, 256)), Beat::Reading(1, pages(256, 512))]);
        beats.extend([Beat::Read(0), Beat::Reading(0, pages(512, 600))]);
        let mut ladder = Ladder::new(2);
        assert!(ladder.ended(End::Stalled("made no progress".into()), &seen(&beats)));
        assert_eq!(ladder.attempt().skip_pages, [(512, 600), (256, 512)]);
        assert_eq!((ladder.attempt().rung, &ladder.attempt().skip_targets[..]), (Rung::Careful, &[][..]));
    }

    #[test]
    fn a_target_that_hangs_gives_way_to_the_next() {
        let mut ladder = Ladder::new(2);
        assert!(ladder.ended(End::Stalled("x".into()), &seen(&dumping_to(0))));
        assert_eq!((ladder.attempt().rung, &ladder.attempt().skip_targets[..]), (Rung::Full, &[0][..]));
        // The last one: less may still work on it.
        assert!(ladder.ended(End::Stalled("x".into()), &seen(&dumping_to(1))));
        assert_eq!((ladder.attempt().rung, &ladder.attempt().skip_targets[..]), (Rung::Careful, &[0][..]));
        assert!(!ladder.stuck);
    }

    #[test]
    fn no_second_attempt_on_a_device_that_holds_the_child() {
        let mut ladder = Ladder::new(1);
        assert!(ladder.ended(End::Stuck("x".into()), &seen(&dumping_to(0))));
        // An attempt without targets: the end of the log on the console.
        assert_eq!(ladder.attempt().skip_targets, [0]);
        assert!(ladder.stuck);
        assert_eq!(ladder.attempt().rung, Rung::LogOnly);
        assert!(!ladder.ended(died(), &Witness::default()));
    }
}
