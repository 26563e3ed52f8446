//! Where the capture goes on the server, and what the directories of earlier ones tell: the
//! collector keeps no ledger.

use std::collections::BTreeSet;

use super::error::SshError;
use super::session::Session;
use base::config::CrashLoop;
use vmcore::target::{Capture, Ledger};

/// Captures with the same name at most: attempts at one crash.
const MAX_TRIES: u32 = 100;
/// Names that are read of a host's directory.
const MAX_NAMES: usize = 100_000;
/// Crashes that are counted: more than any limit that makes sense.
const MAX_CRASHES: usize = 64;

/// The directory of the capture.
#[derive(Debug)]
pub(super) struct Place {
    /// Absolute, or from the directory in which the server starts.
    pub(super) path: String,
    pub(super) ledger: Ledger,
}

impl Place {
    /// Makes it, in the host's directory below `path`.
    pub(super) async fn make(
        session: &mut Session,
        path: &str,
        capture: Capture<'_>,
    ) -> Result<Self, SshError> {
        let parent =
            if path.is_empty() { capture.host.to_owned() } else { format!("{path}/{}", capture.host) };
        make_path(session, &parent).await?;
        let mut past = Past::default();
        if let Err(error) = session.list(&parent, MAX_NAMES, |name| past.see(name, capture)).await {
            if !error.is_final() {
                return Err(error);
            }
            log::warn!("earlier captures are not counted: {}", base::log::chain(&error));
            past = Past::default();
        }
        for turn in 1..=MAX_TRIES {
            let number = if turn == 1 { String::new() } else { format!("-{turn}") };
            let path = format!("{parent}/{}{number}", capture.name);
            if session.make_directory(&path).await? {
                return Ok(Self {
                    path,
                    ledger: past.ledger(capture.name, capture.time, capture.crash_loop),
                });
            }
        }
        Err(SshError::Protocol(format!("{parent} has {MAX_TRIES} captures called {}", capture.name)))
    }
}

/// Makes what is missing of a path.
async fn make_path(session: &mut Session, path: &str) -> Result<(), SshError> {
    if session.exists(path).await? {
        return Ok(());
    }
    let ends = path.char_indices().filter(|&(at, c)| c == '/' && at > 0).map(|(at, _)| at);
    for end in ends.chain([path.len()]) {
        let some = path.get(..end).unwrap_or_default();
        if !session.exists(some).await? {
            session.make_directory(some).await?; // another host may have made it meanwhile
        }
    }
    Ok(())
}

/// What the names in a host's directory tell.
#[derive(Debug, Default)]
struct Past {
    names: u64,
    /// When it crashed, near the crash that is captured now.
    crashes: BTreeSet<u64>,
}

impl Past {
    fn see(&mut self, name: &str, capture: Capture<'_>) {
        if name.starts_with('.') {
            return;
        }
        self.names = self.names.saturating_add(1);
        // Attempts at this crash, and at another one, have one time.
        if let Some(time) = crash_time(name)
            && time.abs_diff(capture.time) <= capture.crash_loop.within
            && time != capture.time
            && self.crashes.len() < MAX_CRASHES
        {
            self.crashes.insert(time);
        }
    }

    fn ledger(self, name: &str, time: u64, limit: CrashLoop) -> Ledger {
        let crashes = self.crashes.into_iter().collect();
        let mut ledger = Ledger { sequence: self.names, crashes, ..Ledger::default() };
        ledger.count(name, time, limit);
        ledger
    }
}

/// The time at the beginning of a capture's name: `2025-11-23T12-13-20Z-…`.
fn crash_time(name: &str) -> Option<u64> {
    let (date, rest) = name.split_once('T')?;
    let (time, _) = rest.split_once('Z')?;
    let time = humantime::parse_rfc3339(&format!("{date}T{}Z", time.replace('-', ":"))).ok()?;
    time.duration_since(std::time::UNIX_EPOCH).ok().map(|since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmcore::target::name;

    fn ledger(names: &[String], time: u64) -> Ledger {
        let limit = CrashLoop { crashes: 3, within: 100 };
        let name = name::directory(time, "web", "0123abcd");
        let capture = Capture::new(&name, time, limit);
        let mut past = Past::default();
        [".", ".."].into_iter().chain(names.iter().map(String::as_str)).for_each(|it| past.see(it, capture));
        past.ledger(&name, time, limit)
    }

    #[test]
    fn crashes_are_counted_by_the_times_in_names() {
        let now = 1_763_900_000;
        let at = |ago: u64| name::directory(now - ago, "web", "0123abcd");
        assert_eq!(crash_time(&at(7)), Some(now - 7));
        let three = [at(10), at(20), at(30)];
        assert!(ledger(&three, now).looping, "the fourth within 100 s");
        assert_eq!(ledger(&three, now).sequence, 4);
        assert!(!ledger(&three[..2], now).looping);
        let old = [at(10), at(20), at(101), at(5000)];
        assert!(!ledger(&old, now).looping, "what is long ago does not count");
        let attempts =
            [at(10), format!("{}-2", at(10)), format!("{}-3", at(10)), at(0), format!("{}-2", at(0))];
        assert!(!ledger(&attempts, now).looping, "attempts at one crash are one");
        let others = ["", "lost+found", "T", "TZ", "Z-T", "9999-99-99T99-99-99Z-x", "unknown-time-web-1"];
        let others = ledger(&others.map(str::to_owned), now);
        assert_eq!((others.looping, others.sequence, others.crashes.len()), (false, 8, 1));
        assert_eq!(ledger(&[], now).sequence, 1);
    }

    #[test]
    fn a_hostile_directory_takes_no_memory() {
        let now = 1_763_900_000;
        let many: Vec<_> = (1..2000).map(|ago| name::directory(now - ago % 99 - 1, "web", "0")).collect();
        let ledger = ledger(&many, now);
        assert!(ledger.crashes.len() <= MAX_CRASHES && ledger.looping);
    }
}
