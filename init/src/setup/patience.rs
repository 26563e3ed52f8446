//! Asking a device that may never answer.
//!
//! A read from a hung disk comes back when the disk does, or never. So it is done in a thread of its own, and after some seconds
//! without it. The thread stays; until it comes back, its device is not asked again, which bounds them to one for each device.
//! They wait where they can be killed (`folio_wait_locked_killable()`, mm/filemap.c), so the process can still end.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How long a device may take. A disk that spins up takes longer and is asked again by who waits for it.
const PATIENCE: Duration = Duration::from_secs(3);

/// Devices that are being asked and have not answered in time.
static SILENT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// What `ask` finds out about the device at `node`; `None` if that takes too long, now or since an earlier question.
pub fn ask<T: Send + 'static>(node: &Path, ask: impl FnOnce(&Path) -> T + Send + 'static) -> Option<T> {
    ask_within(PATIENCE, node, ask)
}

fn ask_within<T: Send + 'static>(
    patience: Duration,
    node: &Path,
    ask: impl FnOnce(&Path) -> T + Send + 'static,
) -> Option<T> {
    if silent().contains(node) {
        return None;
    }
    let (answer, answered) = sync_channel(1);
    let device = node.to_owned();
    let asking = move || {
        let _ = answer.send(ask(&device)); // nobody may be waiting any more
        silent().remove(&device);
    };
    if let Err(error) = thread::Builder::new().spawn(asking) {
        log::warn!("{}: no thread to look at it: {error}", node.display());
        return None;
    }
    let found = answered.recv_timeout(patience).ok();
    if found.is_none() {
        silent().insert(node.to_owned());
        // It may have answered in this very moment.
        if let Ok(found) = answered.try_recv() {
            silent().remove(node);
            return Some(found);
        }
        log::warn!("{} does not answer: left alone until it does", node.display());
    }
    found
}

fn silent() -> std::sync::MutexGuard<'static, BTreeSet<PathBuf>> {
    SILENT.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Instant;

    #[test]
    fn who_does_not_answer_is_left_alone_until_it_does() {
        let (node, other) = (Path::new("/dev/silent"), Path::new("/dev/answers"));
        let within = Duration::from_millis(100);
        let (release, hold) = channel::<()>();
        let start = Instant::now();
        assert_eq!(ask_within(within, node, move |_| hold.recv().is_ok()), None);
        assert_eq!(ask_within(within, node, |_| true), None, "it is not asked a second time");
        assert_eq!(ask_within(within, other, Path::to_owned), Some(other.to_owned()));
        assert!(start.elapsed() < Duration::from_secs(3));
        release.send(()).unwrap();
        while silent().contains(node) {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "it has answered and is still taken for silent"
            );
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(ask_within(within, node, |_| 5), Some(5));
    }
}
