//! Asking a device that may never answer.
//!
//! A read from a hung disk comes back when the disk does, or never. So it is done in a thread of
//! its own, and after some seconds without it. The thread stays; until it comes back, its device is
//! not asked again, which bounds them to one for each device. They wait where they can be killed
//! (`folio_wait_locked_killable()`, mm/filemap.c), so the process can still end.

use base::lock::lock;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long a device may take. A disk that spins up takes longer and is asked again by who waits
/// for it.
const PATIENCE: Duration = Duration::from_secs(3);

/// Devices that are being asked and have not answered in time.
static SILENT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Devices that are asked at the same time.
const AT_ONCE: usize = 32;

/// What `ask` finds out about each device; `None` if that takes too long, now or since an earlier
/// question.
pub(crate) fn ask<T, F>(nodes: &[PathBuf], ask: F) -> Vec<Option<T>>
where
    T: Send + 'static,
    F: Fn(&Path) -> T + Clone + Send + 'static,
{
    nodes.chunks(AT_ONCE).flat_map(|some| ask_within(PATIENCE, some, &ask)).collect()
}

/// The same within a time for all of them together.
fn ask_within<T, F>(patience: Duration, nodes: &[PathBuf], ask: &F) -> Vec<Option<T>>
where
    T: Send + 'static,
    F: Fn(&Path) -> T + Clone + Send + 'static,
{
    let start = Instant::now();
    let asked: Vec<_> = nodes.iter().map(|node| begin(node, ask.clone())).collect();
    let wait = |(node, answer): (&PathBuf, Option<Receiver<T>>)| {
        let answer = answer?;
        let left = patience.saturating_sub(start.elapsed());
        answer.recv_timeout(left).ok().or_else(|| give_up(node, &answer))
    };
    nodes.iter().zip(asked).map(wait).collect()
}

/// Asks a device in a thread of its own, unless it has not answered the last time.
fn begin<T: Send + 'static>(
    node: &Path,
    ask: impl FnOnce(&Path) -> T + Send + 'static,
) -> Option<Receiver<T>> {
    if silent().contains(node) {
        return None;
    }
    let (answer, answered) = sync_channel(1);
    let device = node.to_owned();
    let asking = move || {
        let _ = answer.send(ask(&device)); // nobody may be waiting any more
        silent().remove(&device);
    };
    match thread::Builder::new().spawn(asking) {
        Ok(_) => Some(answered),
        Err(error) => {
            log::warn!("{}: no thread to look at it: {error}", node.display());
            None
        }
    }
}

/// Leaves a device alone until it answers; gives the answer if that comes in this very moment.
fn give_up<T>(node: &Path, answered: &Receiver<T>) -> Option<T> {
    silent().insert(node.to_owned());
    if let Ok(found) = answered.try_recv() {
        silent().remove(node);
        return Some(found);
    }
    log::warn!("{} does not answer: left alone until it does", node.display());
    None
}

fn silent() -> std::sync::MutexGuard<'static, BTreeSet<PathBuf>> {
    lock(&SILENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn who_does_not_answer_is_left_alone_until_it_does() {
        let (node, other) = (PathBuf::from("/dev/silent"), PathBuf::from("/dev/answers"));
        let within = Duration::from_millis(200);
        let (release, hold) = channel::<()>();
        let hold = std::sync::Arc::new(Mutex::new(hold));
        let ask = move |node: &Path| {
            if node == Path::new("/dev/silent") {
                let _ = hold.lock().unwrap().recv();
            }
            node.to_owned()
        };
        let both = [node.clone(), other.clone()];
        let start = Instant::now();
        assert_eq!(ask_within(within, &both, &ask), [None, Some(other.clone())]);
        assert_eq!(
            ask_within(within, &both, &|_: &Path| 1),
            [None, Some(1)],
            "it is not asked a second time"
        );
        assert!(start.elapsed() < Duration::from_secs(3));
        release.send(()).unwrap();
        while silent().contains(&node) {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "it has answered and is still taken for silent"
            );
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(ask_within(within, &both, &|_: &Path| 5), [Some(5), Some(5)]);
    }
}
