//! Where the capture goes on the server, and what the directories of earlier ones tell: the
//! collector keeps no ledger.
//!
//! Hosts may share an account, and then each can make directories in those of the others. A
//! directory counts as a crash of this host only if it has the seal of it, which nobody can make
//! without this host's private key.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::error::SshError;
use super::session::Session;
use crate::retry::random;
use vmcore::target::{Capture, Ledger};

/// Captures with the same name at most: attempts at one crash.
const MAX_TRIES: u32 = 100;
/// Names with a random number behind them that are tried then.
const RANDOM_TRIES: u32 = 20;
/// Names that are read of a host's directory.
const MAX_NAMES: usize = 100_000;
/// Crashes that are counted: more than any limit that makes sense.
const MAX_CRASHES: usize = 64;
/// Names whose seal is asked for, one request each. Others may have made more of them; then crashes
/// are missed, which saves a dump too many.
const MAX_CANDIDATES: usize = 512;
/// Hex digits of a seal.
const SEAL: usize = 32;

/// Makes seals.
pub(super) struct Sealer(Zeroizing<[u8; 32]>);

impl Sealer {
    /// Of the host with this private key.
    pub(super) fn new(identity: &str) -> Self {
        Self(Zeroizing::new(Sha256::digest(identity).into()))
    }

    /// The name of the directory that seals the one called `name`, inside it. What is hashed has one
    /// length, so that nothing can be appended to it.
    fn seal(&self, name: &str) -> String {
        let name: [u8; 32] = Sha256::digest(name).into();
        let hash = Sha256::new().chain_update(*self.0).chain_update(name).finalize();
        let seal: String = format!("{hash:x}").chars().take(SEAL).collect();
        format!(".afterimage-{seal}")
    }
}

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
        sealer: &Sealer,
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
        let crashes = past.confirm(session, &parent, sealer).await?;
        let numbered = (2..=MAX_TRIES).map(|turn| format!("{}-{turn}", capture.name));
        // Who guesses our names may have made all of them.
        let random = (0..RANDOM_TRIES).map(|_| format!("{}-{:016x}", capture.name, random()));
        for name in core::iter::once(capture.name.to_owned()).chain(numbered).chain(random) {
            let path = format!("{parent}/{name}");
            if session.make_directory(&path).await? {
                let seal = format!("{path}/{}", sealer.seal(&name));
                if let Err(error) = session.make_directory(&seal).await {
                    if !error.is_final() {
                        return Err(error);
                    }
                    log::warn!("later captures will not count this one: {}", base::log::chain(&error));
                }
                let ledger = past.ledger(crashes, capture);
                return Ok(Self { path, ledger });
            }
        }
        Err(SshError::Protocol(format!(
            "{parent} has {MAX_TRIES} captures called {}: move them away on the collector",
            capture.name
        )))
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
    /// Names of captures near the crash that is captured now, with when it crashed.
    candidates: Vec<(u64, String)>,
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
            && capture.crash_loop.crashes > 0
            && self.candidates.len() < MAX_CANDIDATES
        {
            self.candidates.push((time, name.to_owned()));
        }
    }

    /// When this host crashed: what has its seal.
    async fn confirm(
        &self,
        session: &mut Session,
        parent: &str,
        sealer: &Sealer,
    ) -> Result<BTreeSet<u64>, SshError> {
        let mut crashes = BTreeSet::new();
        for (time, name) in &self.candidates {
            if crashes.len() >= MAX_CRASHES || crashes.contains(time) {
                continue;
            }
            match session.exists(&format!("{parent}/{name}/{}", sealer.seal(name))).await {
                Ok(true) => drop(crashes.insert(*time)),
                Ok(false) => (),
                Err(error) if error.is_final() => log::debug!("{name}: {}", base::log::chain(&error)),
                Err(error) => return Err(error),
            }
        }
        Ok(crashes)
    }

    fn ledger(&self, crashes: BTreeSet<u64>, capture: Capture<'_>) -> Ledger {
        let crashes = crashes.into_iter().collect();
        let mut ledger = Ledger { sequence: self.names, crashes, ..Ledger::default() };
        ledger.count(capture.name, capture.time, capture.crash_loop);
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
    use base::config::CrashLoop;
    use vmcore::target::name;

    fn ledger(names: &[String], time: u64) -> Ledger {
        let limit = CrashLoop { crashes: 3, within: 100 };
        let name = name::directory(time, "web", "0123abcd");
        let capture = Capture::new(&name, time, limit);
        let mut past = Past::default();
        [".", ".."].into_iter().chain(names.iter().map(String::as_str)).for_each(|it| past.see(it, capture));
        let crashes = past.candidates.iter().map(|(time, _)| *time).take(MAX_CRASHES).collect();
        past.ledger(crashes, capture)
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
    fn a_seal_is_of_one_host_and_one_name() {
        let (ours, theirs) = (Sealer::new("key"), Sealer::new("another key"));
        let seal = ours.seal("a");
        assert_eq!(seal, Sealer::new("key").seal("a"));
        assert!(
            seal.len() == ".afterimage-".len() + 32 && seal != theirs.seal("a") && seal != ours.seal("b")
        );
    }

    #[test]
    fn a_hostile_directory_takes_no_memory() {
        let now = 1_763_900_000;
        let many: Vec<_> = (1..2000).map(|ago| name::directory(now - ago % 99 - 1, "web", "0")).collect();
        let ledger = ledger(&many, now);
        assert!(ledger.crashes.len() <= MAX_CRASHES && ledger.looping);
    }
}
