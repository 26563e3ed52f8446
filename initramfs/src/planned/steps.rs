//! The steps of a switch, in their order.

use std::io::Write;
use std::path::{Path, PathBuf};

use base::config::{Config, Via};
use base::facts::handover;
use base::facts::{Intent, Live, Planned};
use nix::sys::signal::{SigSet, Signal};

use super::intent::{self, Event};
use super::locked::{self, Locked};
use super::machine::Machine;
use super::quiet::{self, Places, Quiet};
use super::{Options, PlannedError, collect, now};
use crate::check::observe::memory::Memory;
use crate::crashkernel::mib;
use crate::loader::Staged;
use crate::who;

/// How often pages of live.tar may move before the switch is given up.
const TRIES: u32 = 3;
/// What a record says that nobody made for this switch.
const STAGED: &str = "staged";

/// A switch, and what it is done with.
pub(super) struct Job<'a> {
    pub(super) options: &'a Options,
    pub(super) config: &'a Config,
    pub(super) machine: &'a mut dyn Machine,
    pub(super) places: Places,
    /// This program, to copy files with.
    pub(super) program: PathBuf,
    /// Where each step is told.
    pub(super) out: Box<dyn Write + 'a>,
}

impl Job<'_> {
    /// Switches. Comes back with an error, or at once if it is only to say what it would do.
    pub(super) fn switch(&mut self) -> Result<(), PlannedError> {
        let intent = self.intent();
        // The longest record there can be: what people wrote is refused before anything is done.
        let index = vec![u64::from(u32::MAX); locked::index_pages(self.config.planned.live_limit.0)];
        let live = Live { len: u64::from(u32::MAX), sha256: "0".repeat(64), index };
        handover::encode(&Planned { intent: intent.clone(), live: Some(live) })?;
        if self.options.dry_run {
            self.preview(&intent);
            return Ok(());
        }
        self.record(Event::Intent, &intent)?;
        let Err(error) = self.steps(intent.clone()) else { return Ok(()) };
        let cause = base::log::chain(&error);
        if let Err(error) = intent::record(self.intents(), Event::Failed, &intent, Some(&cause)) {
            log::warn!("{}: {error}", self.intents().display());
        }
        Err(error)
    }

    /// Loads the page for whoever switches later.
    pub(super) fn stage(&mut self) -> Result<(), PlannedError> {
        let mut intent = self.intent();
        intent.who = format!("{STAGED} by {}", intent.who);
        if intent.why.is_empty() {
            STAGED.clone_into(&mut intent.why);
        }
        // When, and whether data is synced before, is known to whoever switches.
        (intent.at, intent.synced, intent.via_panic) = (0, false, false);
        let planned = Planned { intent, live: None };
        handover::encode(&planned)?;
        self.record(Event::Staged, &planned.intent)?;
        let staged = self.machine.stage(&planned)?;
        self.say_staged(Some(staged));
        self.say("staged", "any kexec from now on, as by `systemctl kexec`, is captured");
        Ok(())
    }

    /// Takes the page back.
    pub(super) fn unstage(&mut self) -> Result<(), PlannedError> {
        self.machine.unstage()?;
        let intent = Intent { at: now(), ..who::intent() };
        if let Err(error) = intent::record(self.intents(), Event::Unstaged, &intent, None) {
            log::warn!("{}: {error}", self.intents().display());
        }
        self.say("unstaged", "no kernel is loaded for kexec; a panic is captured as before");
        Ok(())
    }

    fn steps(&mut self, mut intent: Intent) -> Result<(), PlannedError> {
        let mut live = self.collect(&intent)?;
        // From here on nobody's Ctrl-C may leave units stopped and cgroups frozen.
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT]);
        let _ = signals.thread_block();
        let mut quiet = Quiet::new(self.places.clone());
        let switched = self.quieten(&mut quiet).and_then(|()| {
            intent.synced = self.sync();
            let via = self.options.via(self.config);
            self.load(&intent, via, &mut live)?;
            self.say("jump", &format!("by {via}"));
            let _ = self.out.flush();
            let source = self.machine.jump(via);
            self.unload(via);
            Err(PlannedError::Jump { via, source })
        });
        for left in quiet.undo() {
            self.say("LEFT", &left);
        }
        let _ = signals.thread_unblock();
        switched
    }

    fn collect(&mut self, intent: &Intent) -> Result<Locked, PlannedError> {
        let collectors = collect::chosen(&self.config.collector);
        let (program, limit) = (self.program.clone(), self.config.planned.live_limit);
        let mut say = |one: &collect::Collected| {
            let cut = if one.truncated { ", not all of it" } else { "" };
            let text =
                format!("{}: {}, {} bytes in {:.1} s{cut}", one.directory, one.ended, one.bytes, one.seconds);
            self.say("collector", &text);
        };
        let archive = collect::run(&collectors, &program, intent, limit, &mut say);
        let archive = archive.map_err(PlannedError::Archive)?;
        let locked = Locked::new(&archive)?;
        let live = locked.live();
        let text = format!("{} bytes in {} locked pages, SHA-256 {}", live.len, locked.pages(), live.sha256);
        self.say("live.tar", &text);
        Ok(locked)
    }

    fn quieten(&mut self, quiet: &mut Quiet) -> Result<(), PlannedError> {
        for unit in &self.config.planned.stop {
            let was_active = quiet.stop(unit)?;
            self.say("stop", &format!("{unit}{}", if was_active { "" } else { ": was not active" }));
        }
        for cgroup in &self.config.planned.freeze {
            quiet.freeze(cgroup)?;
            self.say("freeze", cgroup);
        }
        Ok(())
    }

    fn sync(&mut self) -> bool {
        let wanted = self.options.sync(self.config);
        let synced = wanted && quiet::sync();
        self.say(
            "sync",
            match (wanted, synced) {
                (true, true) => "dirty data is on the disks; the dump has it, too, but not as dirty",
                (true, false) => "NOT DONE in time: a disk does not answer; what it lacks is in the dump",
                _ => "none: dirty data stays in memory; it is in the dump, and the disks lack it",
            },
        );
        synced
    }

    /// Loads the record. Pages that have moved meanwhile are told anew.
    fn load(&mut self, intent: &Intent, via: Via, live: &mut Locked) -> Result<(), PlannedError> {
        for _ in 0..TRIES {
            let planned = Planned { intent: intent.clone(), live: Some(live.live().clone()) };
            let staged = match via {
                Via::Kexec => Some(self.machine.stage(&planned)?),
                Via::Panic => self.machine.rearm(Some(&planned)).map(|()| None)?,
            };
            match live.has_moved() {
                Ok(false) => {
                    self.say_staged(staged);
                    return Ok(());
                }
                Ok(true) => self.say("load", "pages of live.tar have moved: once more"),
                Err(error) => {
                    self.unload(via);
                    return Err(error.into());
                }
            }
            live.index().inspect_err(|_| self.unload(via))?;
        }
        self.unload(via);
        Err(PlannedError::Moves(TRIES))
    }

    /// After this a panic is a panic again, and a kexec finds nothing.
    fn unload(&mut self, via: Via) {
        let unloaded = match via {
            Via::Kexec => self.machine.unstage(),
            Via::Panic => self.machine.rearm(None),
        };
        if let Err(error) = unloaded {
            let text = format!("the record of the switch is still loaded: {}", base::log::chain(&error));
            self.say("LEFT", &text);
        }
    }

    fn intent(&self) -> Intent {
        Intent {
            why: self.options.why().to_owned(),
            ticket: self.options.ticket.as_deref().unwrap_or_default().trim().to_owned(),
            at: now(),
            synced: self.options.sync(self.config),
            via_panic: self.options.via(self.config) == Via::Panic,
            ..who::intent()
        }
    }

    fn intents(&self) -> &Path {
        Path::new(&self.config.planned.intents)
    }

    /// Writes the intent down, in the kernel log and on a disk. Without evidence mode, a full disk
    /// may be why there is a switch.
    fn record(&mut self, event: Event, intent: &Intent) -> Result<(), PlannedError> {
        if let Err(source) = intent::record(self.intents(), event, intent, None) {
            let path = self.intents().to_owned();
            if self.config.planned.evidence {
                return Err(PlannedError::Intents { path, source });
            }
            log::warn!("the intent is not written to {}: {source}", path.display());
        }
        if let Err(error) = self.machine.log(intent) {
            log::warn!("the intent is not in the kernel log: {error}");
        }
        self.say("intent", &message(intent));
        Ok(())
    }

    fn preview(&mut self, intent: &Intent) {
        let planned = &self.config.planned;
        self.say("intent", &format!("would be recorded in {}: {}", planned.intents, message(intent)));
        for (number, one) in (1..).zip(collect::chosen(&self.config.collector)) {
            let text = format!(
                "{number:02}-{}: {}, at most {} s and {}",
                one.name, one.class, one.timeout, one.limit
            );
            self.say("collector", &text);
        }
        planned.stop.iter().for_each(|unit| self.say("stop", unit));
        planned.freeze.iter().for_each(|cgroup| self.say("freeze", cgroup));
        self.say("sync", if intent.synced { "yes" } else { "no" });
        self.preview_capture();
        self.say("jump", &format!("by {}; nothing of this was done", self.options.via(self.config)));
    }

    /// Where the memory goes, how much it is at most, and for how long the machine serves nobody.
    fn preview_capture(&mut self) {
        for (number, target) in (1..).zip(&self.config.target) {
            self.say("target", &format!("{number}: {target}"));
        }
        let read = crate::host::read;
        let Some(memory) = Memory::parse(&read("/proc/meminfo"), &read("/proc/iomem")) else {
            return self.say("dump", "its size is not known: /proc/meminfo cannot be read");
        };
        let bytes = memory.bound(self.config.dump.exclude);
        let text = format!(
            "at most {} MiB of {} MiB of memory, before compression; level {}",
            mib(bytes),
            mib(memory.ram),
            self.config.dump.exclude
        );
        self.say("dump", &text);
        let seconds = |per_second: u64| bytes.checked_div(per_second).unwrap_or(0);
        let limit = match self.config.deadline(memory.ram) {
            Some(seconds) => format!("given up after {seconds} s in any case (capture.deadline)"),
            None => "without a limit (capture.deadline = 0)".to_owned(),
        };
        let text = format!(
            "no service from the jump until the machine has started again: both kernels' starts, and the dump, \
             at most {} s at 100 MB/s or {} s at 1 GB/s; {limit}",
            seconds(100_000_000),
            seconds(1_000_000_000)
        );
        self.say("downtime", &text);
    }

    fn say_staged(&mut self, staged: Option<Staged>) {
        let text = match staged {
            Some(Staged { handover, len, about_pages }) => format!(
                "{len} bytes at {handover:#x}, in the reservation; of the memory that is saved, the kernel \
                 has taken about {about_pages} free pages for the load, and what they held before is lost"
            ),
            None => "the image anew, in the reservation; nothing of the memory that is saved is overwritten"
                .to_owned(),
        };
        self.say("load", &text);
    }

    /// Tells a step. Nobody's closed pipe stops a switch.
    pub(super) fn say(&mut self, step: &str, text: &str) {
        let _ = writeln!(self.out, "{step:<11} {}", base::text::line(text));
    }
}

fn message(intent: &Intent) -> String {
    let why = if intent.why.is_empty() { "no reason given" } else { &intent.why };
    let ticket = if intent.ticket.is_empty() { String::new() } else { format!(" ({})", intent.ticket) };
    format!("{}: {why}{ticket}", intent.who)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::LoadError;
    use std::io;

    /// A machine that never jumps, and remembers what was asked of it.
    #[derive(Default)]
    struct Stays(Vec<String>);

    impl Machine for Stays {
        fn stage(&mut self, planned: &Planned) -> Result<Staged, LoadError> {
            self.0.push(format!("stage {}", planned.live.as_ref().map_or(0, |live| live.index.len())));
            Ok(Staged { handover: 0x5000, len: 4096, about_pages: 9 })
        }

        fn unstage(&mut self) -> Result<(), LoadError> {
            self.0.push("unstage".into());
            Ok(())
        }

        fn rearm(&mut self, planned: Option<&Planned>) -> Result<(), LoadError> {
            self.0.push(format!("rearm {}", planned.is_some()));
            Ok(())
        }

        fn log(&mut self, intent: &Intent) -> io::Result<()> {
            self.0.push(format!("log {}", intent.why));
            Ok(())
        }

        fn jump(&mut self, via: Via) -> io::Error {
            self.0.push(format!("jump {via}"));
            io::Error::other("it stays")
        }
    }

    /// What is asked of the machine, what is said, and how it ends. The file of intents is in
    /// `dir`.
    fn switched(
        options: &Options,
        config: &str,
        dir: &Path,
    ) -> (Vec<String>, String, Result<(), PlannedError>) {
        let config = format!(
            "[planned]\nintents = \"{}\"\n{config}\n[[collector]]\nname = \"names\"\nclass = \"time\"\nfiles \
             = [\"/proc/version\"]\n",
            dir.join("intents.jsonl").display()
        );
        let config = Config::parse(&config).unwrap();
        let (mut machine, mut out) = (Stays::default(), Vec::new());
        let places = Places::default();
        let program = PathBuf::from("/bin/false"); // files are then not copied, which is no reason to stop
        let mut job =
            Job { options, config: &config, machine: &mut machine, places, program, out: Box::new(&mut out) };
        let result = if options.stage { job.stage() } else { job.switch() };
        drop(job);
        (machine.0, String::from_utf8(out).unwrap(), result)
    }

    fn options(via: Via) -> Options {
        Options { why: Some("drill".into()), via: Some(via), no_sync: true, ..Options::default() }
    }

    /// Only root learns where its pages are.
    fn is_root() -> bool {
        nix::unistd::geteuid().is_root()
    }

    #[test]
    fn a_switch_that_fails_is_undone_and_told() {
        for (via, calls) in [
            (Via::Kexec, ["log drill", "stage 1", "jump kexec", "unstage"]),
            (Via::Panic, ["log drill", "rearm true", "jump panic", "rearm false"]),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let (asked, message, result) = switched(&options(via), "", dir.path());
            let error = result.unwrap_err();
            if !is_root() {
                assert!(matches!(error, PlannedError::Locked(_)), "{error}");
                return;
            }
            assert_eq!(asked, calls);
            assert!(matches!(error, PlannedError::Jump { .. }), "{error}");
            let steps: Vec<_> = message.lines().filter_map(|line| line.split_whitespace().next()).collect();
            assert_eq!(steps, ["intent", "collector", "live.tar", "sync", "load", "jump"], "{message}");
            let intents = std::fs::read_to_string(dir.path().join("intents.jsonl")).unwrap();
            assert_eq!(intents.lines().count(), 2, "the intent, and that it failed: {intents}");
            assert!(intents.contains("it stays"), "{intents}");
        }
    }

    #[test]
    fn a_dry_run_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let dry = Options { dry_run: true, ..options(Via::Kexec) };
        let (asked, message, result) = switched(
            &dry,
            "stop = [\"nginx.service\"]\n[[target]]\ntype = \"raw\"\ndevice = \"/dev/sda3\"",
            dir.path(),
        );
        result.unwrap();
        assert!(asked.is_empty() && !dir.path().join("intents.jsonl").exists());
        for step in ["intent", "collector", "stop", "sync", "target", "dump", "downtime", "jump"] {
            assert!(message.lines().any(|line| line.starts_with(step)), "{step}: {message}");
        }
    }

    #[test]
    fn a_staged_record_has_no_time_and_no_output_of_collectors() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Options { stage: true, ..options(Via::Kexec) };
        let (asked, message, result) = switched(&staging, "", dir.path());
        result.unwrap();
        assert_eq!(asked, ["log drill", "stage 0"]);
        assert!(message.contains("staged") && message.contains("0x5000"), "{message}");
    }

    #[test]
    fn in_evidence_mode_an_intent_that_cannot_be_written_stops_the_switch() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("intents.jsonl")).unwrap();
        let (asked, _, result) = switched(&options(Via::Kexec), "evidence = true", dir.path());
        assert!(matches!(result.unwrap_err(), PlannedError::Intents { .. }));
        assert!(asked.is_empty(), "{asked:?}");
    }

    #[test]
    fn a_reason_that_does_not_fit_is_refused_before_anything_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let long = Options { why: Some("x".repeat(5000)), ..options(Via::Kexec) };
        let (asked, _, result) = switched(&long, "", dir.path());
        assert!(matches!(result.unwrap_err(), PlannedError::TooLarge(_)));
        assert!(asked.is_empty() && !dir.path().join("intents.jsonl").exists());
    }
}
