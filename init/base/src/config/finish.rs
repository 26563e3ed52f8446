//! `[finish]`: what becomes of the machine when the capture is over.

use core::fmt;

use serde::{Deserialize, Serialize};

use super::checked;

/// `[finish]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Finish {
    /// For every end that has no action of its own below. After a failure [`FinalAction::Kexec`]
    /// means a reboot.
    pub action: FinalAction,
    /// After a capture that is not complete, whatever its trigger. `kexec` is refused: what was not
    /// saved is still in memory, and the next kernel would be written over it.
    #[serde(deserialize_with = "checked::failure", skip_serializing_if = "Option::is_none")]
    pub failure: Option<FinalAction>,
    /// CPUs that the next kernel must be able to start; with fewer a kexec becomes a reboot. 0: any
    /// number will do.
    pub min_cpus: u32,
    /// Seconds that the hardware watchdog gives the next kernel after a kexec; 0: it is switched
    /// off before.
    #[serde(deserialize_with = "checked::short_duration")]
    pub guard: u32,
    /// After a panic.
    pub panic: AfterTrigger,
    /// After a planned switch.
    pub planned: AfterTrigger,
}

/// Why the capture kernel runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trigger {
    /// The production kernel panicked by itself.
    #[default]
    Panic,
    /// An operator switched kernels on purpose.
    Planned,
}

/// `panic` and `planned` of `[finish]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AfterTrigger {
    /// After a complete capture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success: Option<FinalAction>,
}

/// What becomes of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalAction {
    /// Restart through the firmware.
    #[default]
    Reboot,
    /// Switch off.
    Poweroff,
    /// Stop and stay.
    Halt,
    /// The root file system's `/bin/sh` on the console, where one is attached; then restart.
    Shell,
    /// Start the next kernel, without the firmware.
    Kexec,
    /// Start the real root's init in the capture kernel, with the memory that was reserved for it.
    SwitchRoot,
}

impl Default for Finish {
    fn default() -> Self {
        Self {
            action: FinalAction::default(),
            failure: None,
            min_cpus: 0,
            guard: 180,
            panic: AfterTrigger::default(),
            planned: AfterTrigger::default(),
        }
    }
}

impl Finish {
    /// What happens after a capture that was started by `trigger`, and was complete or not.
    #[must_use]
    pub fn choose(&self, trigger: Trigger, complete: bool) -> FinalAction {
        let success = match trigger {
            Trigger::Panic => self.panic.success,
            Trigger::Planned => self.planned.success,
        };
        match (complete, self.failure) {
            (true, _) => success.unwrap_or(self.action),
            (false, Some(action)) => action,
            (false, None) if self.action == FinalAction::Kexec => FinalAction::Reboot,
            (false, None) => self.action,
        }
    }

    /// The three that may be chosen: after a panic, after a planned switch, after a failure.
    #[must_use]
    pub fn choices(&self) -> [FinalAction; 3] {
        let success = |trigger| self.choose(trigger, true);
        [success(Trigger::Panic), success(Trigger::Planned), self.choose(Trigger::Panic, false)]
    }

    /// Whether an action may be chosen.
    #[must_use]
    pub fn may(&self, action: FinalAction) -> bool {
        self.choices().contains(&action)
    }

    /// Makes `action` the only one.
    pub(super) fn always(&mut self, action: FinalAction) {
        *self = Self { action, min_cpus: self.min_cpus, guard: self.guard, ..Self::default() };
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Panic => "panic",
            Self::Planned => "planned",
        })
    }
}

/// The actions, for people.
impl fmt::Display for Finish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [panic, planned, failure] = self.choices();
        if panic == planned && planned == failure {
            return write!(f, "{panic}");
        }
        write!(f, "{panic} after a panic, {planned} after a planned switch, {failure} after a failure")
    }
}

impl fmt::Display for FinalAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reboot => "reboot",
            Self::Poweroff => "poweroff",
            Self::Halt => "halt",
            Self::Shell => "shell",
            Self::Kexec => "kexec",
            Self::SwitchRoot => "switch_root",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn finish(text: &str) -> Finish {
        let config = Config::parse(&format!("[finish]\n{text}")).unwrap();
        assert_eq!(Config::parse(&config.to_toml()).unwrap(), config);
        config.finish
    }

    #[test]
    fn trigger_and_outcome_choose() {
        use FinalAction::{Halt, Kexec, Poweroff, Reboot, Shell};
        assert_eq!(finish("").choices(), [Reboot; 3]);
        assert_eq!(finish("action = \"halt\"").choices(), [Halt; 3]);
        let all = finish("panic.success = \"poweroff\"\nplanned.success = \"kexec\"\nfailure = \"shell\"");
        assert_eq!(all.choices(), [Poweroff, Kexec, Shell]);
        assert_eq!(all.choose(Trigger::Planned, false), Shell);
        assert!(all.may(Shell) && !all.may(Reboot));
        assert_eq!(
            finish("action = \"kexec\"").choices(),
            [Kexec, Kexec, Reboot],
            "unsaved memory stays as it is"
        );
    }

    #[test]
    fn one_word_where_one_is_enough() {
        assert_eq!(finish("").to_string(), "reboot");
        let text = finish("planned.success = \"switch_root\"").to_string();
        assert_eq!(text, "reboot after a panic, switch_root after a planned switch, reboot after a failure");
    }

    #[test]
    fn memory_that_is_not_saved_is_not_written_over() {
        let error = Config::parse("[finish]\n\nfailure = \"kexec\"\n").unwrap_err().to_string();
        assert!(error.contains("line 3,") && error.contains("not saved"), "{error}");
        assert!(Config::parse("[finish]\npanic.success = \"explode\"\n").is_err());
        assert!(Config::parse("[finish]\npanic.failure = \"reboot\"\n").is_err());
    }
}
