//! The options of `afterimage switch`, and what they mean together with the configuration.

use base::config::{Config, Via};

/// What an operator asks for.
#[derive(Clone, Debug, Default, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of the command line")]
pub struct Options {
    /// Why: goes into the dump's result.json and into the file of intents. Needed where
    /// planned.evidence is set
    #[arg(long, value_name = "TEXT")]
    pub why: Option<String>,
    /// Ticket or case number
    #[arg(long, value_name = "ID")]
    pub ticket: Option<String>,
    /// kexec (devices are shut down in order, no CPU registers in the dump) or panic (the other way
    /// round) [default: planned.via]
    #[arg(long, value_parser = parse_via, value_name = "HOW")]
    pub via: Option<Via>,
    /// Write dirty data to the disks before the switch [default: planned.sync]
    #[arg(long, overrides_with = "no_sync")]
    pub sync: bool,
    /// Leave dirty data in memory: it is in the dump, and the disks lack it
    #[arg(long, overrides_with = "sync")]
    pub no_sync: bool,
    /// Check everything and say what would be done; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not switch now: prepare that any kexec from now on, as by `systemctl kexec`, is a switch
    #[arg(long, conflicts_with_all = ["dry_run", "unstage"])]
    pub stage: bool,
    /// Take that back: no kernel is loaded for kexec then
    #[arg(long, conflicts_with_all = ["why", "ticket", "via", "sync", "no_sync", "dry_run"])]
    pub unstage: bool,
}

impl Options {
    pub(super) fn why(&self) -> &str {
        self.why.as_deref().unwrap_or_default().trim()
    }

    pub(super) fn via(&self, config: &Config) -> Via {
        self.via.unwrap_or(config.planned.via)
    }

    pub(super) fn sync(&self, config: &Config) -> bool {
        if self.sync || self.no_sync { self.sync } else { config.planned.sync }
    }
}

fn parse_via(text: &str) -> Result<Via, String> {
    let known = [Via::Kexec, Via::Panic];
    known.into_iter().find(|via| via.to_string() == text).ok_or_else(|| "write kexec or panic".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_go_before_the_configuration() {
        let config = |text: &str| Config::parse(&format!("[planned]\n{text}")).unwrap();
        let none = Options::default();
        let no_sync = Options { no_sync: true, ..Options::default() };
        let sync = Options { sync: true, ..Options::default() };
        assert!(none.sync(&config("")) && !none.sync(&config("sync = false")));
        assert!(!no_sync.sync(&config("")) && sync.sync(&config("sync = false")));
        assert_eq!(none.via(&config("via = \"panic\"")), Via::Panic);
        let kexec = Options { via: Some(parse_via("kexec").unwrap()), ..Options::default() };
        assert_eq!(kexec.via(&config("via = \"panic\"")), Via::Kexec);
        assert!(parse_via("reset").is_err());
    }
}
