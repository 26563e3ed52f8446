//! How the production system comes to its end.

use crate::console::Line;
use crate::end::Way;
use crate::fault::Action;
use crate::vm::Vm;
use anyhow::Result;
use std::time::Duration;

/// The last thing that production does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trigger {
    /// It panics.
    #[default]
    Panic,
    /// It comes to one of many ends.
    End(&'static Way),
    /// It waits, and an NMI from outside panics it: `unknown_nmi_panic` has to be on its command line.
    Nmi,
    /// It runs `afterimage switch` with these arguments, which does not return.
    Planned(Vec<String>),
    /// It stages a switch, and asks the kernel for a kexec itself, as `systemctl kexec` does.
    Staged,
    /// It does not: `afterimage` is to refuse these, see production-init's `refusals.rs`. Then it
    /// powers off.
    Refusals(Vec<String>),
}

impl Trigger {
    /// A switch for a reason.
    #[must_use]
    pub fn planned() -> Self {
        Self::Planned(["--why", "drill of the guest tests", "--ticket", "T-1"].map(str::to_owned).into())
    }

    /// The same with another argument.
    #[must_use]
    pub fn with(self, argument: &str) -> Self {
        match self {
            Self::Planned(mut arguments) => {
                arguments.push(argument.to_owned());
                Self::Planned(arguments)
            }
            other => other,
        }
    }

    /// What the kernel command line says of it: see production-init's `steps.rs`. `panic_cpu`
    /// panics.
    pub(crate) fn word(&self, panic_cpu: u32) -> String {
        match self {
            Self::Panic => format!("prod.panic=cpu{panic_cpu}"),
            Self::End(way) => format!("prod.end={}", way.name),
            Self::Nmi => "prod.nmi".to_owned(),
            Self::Planned(arguments) => format!("prod.capture={}", in_a_word(arguments)),
            Self::Staged => "prod.staged".to_owned(),
            Self::Refusals(cases) => format!("prod.refuse={}", in_a_word(cases)),
        }
    }

    /// Waits for it; gives the line with which the system that is to be saved ends.
    pub(crate) fn expect(&self, vm: &mut Vm, timeout: Duration) -> Result<Line> {
        match self {
            Self::Panic => {
                vm.console.expect("production: panicking", timeout)?;
                vm.console.expect("Kernel panic", timeout)
            }
            Self::End(way) => {
                vm.console.expect("production: ending by", timeout)?;
                way.outside.iter().try_for_each(|action| vm.act(action))?;
                // Some ends leave nothing on the console, and some much.
                vm.console.expect("Linux version", timeout)
            }
            Self::Nmi => {
                vm.console.expect("production: waiting for an NMI", timeout)?;
                vm.act(&Action::Nmi)?;
                // What is printed in an NMI does not reach the console before the jump.
                vm.console.expect("Linux version", timeout)
            }
            Self::Planned(_) | Self::Staged => vm.console.expect("production: switching", timeout),
            Self::Refusals(_) => vm.console.expect("production: refusing", timeout),
        }
    }
}

/// Arguments as one word of a command line; none may hold a comma or an underscore.
fn in_a_word(arguments: &[String]) -> String {
    arguments.join(",").replace(' ', "_")
}

/// The arguments in such a word.
#[must_use]
pub fn out_of_a_word(word: &str) -> Vec<String> {
    word.split(',').map(|argument| argument.replace('_', " ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_pass_through_a_command_line() {
        let Trigger::Planned(arguments) = Trigger::planned().with("--dry-run") else { panic!("a panic") };
        let word = in_a_word(&arguments);
        assert!(!word.contains(' '), "{word}");
        assert_eq!(out_of_a_word(&word), arguments);
        assert_eq!(Trigger::Panic.word(3), "prod.panic=cpu3");
    }
}
