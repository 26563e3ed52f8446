//! Random numbers, before anybody asks for them: SSH and TLS wait for the kernel's generator, and on
//! a machine without RDRAND nothing ever feeds it here.
//!
//! The loader puts random bytes of the host into each image that it loads. Where there are none,
//! the kernel makes its own of the jitter of its clocks (5.4: "random: try to actively add entropy
//! rather than passively wait for it"), for as long as [`LIMIT`] allows; and where it cannot, numbers
//! that others might guess are better than no dump.

use std::fs::{self, File};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use base::config::{SEED_LEN, SEED_PATH};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::sys::random;

/// How long the kernel may gather random bits of its own.
const LIMIT: Duration = Duration::from_secs(10);
/// The nodes that libraries read, where devtmpfs has not made them.
const NODES: [(&str, u64); 2] = [("/dev/random", 8), ("/dev/urandom", 9)];
/// Memory devices (Documentation/admin-guide/devices.txt).
const MAJOR: u64 = 1;

/// Sees to it that nobody waits for random numbers from here on.
pub(super) fn prepare() {
    make_nodes();
    match seed(Path::new(SEED_PATH)) {
        Some(seed) if credited(&seed) => log::debug!("random numbers begin with those of the host"),
        _ if is_ready_within(LIMIT, random::wait) => log::debug!("the kernel has random numbers of its own"),
        _ => {
            log::warn!(
                "no random bits after {} s: keys of this capture are made of the clock alone, and others \
                 might guess them",
                LIMIT.as_secs()
            );
            credited(&of_the_clock());
        }
    }
}

fn make_nodes() {
    for (path, minor) in NODES {
        if Path::new(path).exists() {
            continue;
        }
        let mode = Mode::from_bits_truncate(0o666);
        if let Err(errno) = mknod(path, SFlag::S_IFCHR, mode, makedev(MAJOR, minor)) {
            log::warn!("{path} is missing and cannot be made: {}", errno.desc());
        }
    }
}

/// The host's random bytes, which are used once.
fn seed(path: &Path) -> Option<[u8; SEED_LEN]> {
    let bytes = fs::read(path).ok()?;
    let _ = fs::remove_file(path);
    let seed = bytes.first_chunk::<SEED_LEN>().copied();
    seed.filter(|seed| seed.iter().any(|&byte| byte != 0))
}

fn credited(seed: &[u8; SEED_LEN]) -> bool {
    let (path, _) = NODES[1];
    let done = File::options().write(true).open(path).and_then(|file| random::credit(&file, seed));
    done.inspect_err(|error| log::warn!("{path}: {error}: random numbers cannot be added")).is_ok()
}

/// Whether `wait` comes back within `limit`. If not, its thread stays behind and waits on.
fn is_ready_within(limit: Duration, wait: fn() -> std::io::Result<()>) -> bool {
    let (ready, is_ready) = mpsc::channel();
    let waits = move || {
        let _ = ready.send(wait().is_ok()); // nobody listens any more if it took too long
    };
    let started = thread::Builder::new().name("random".to_owned()).spawn(waits);
    started.is_ok() && is_ready.recv_timeout(limit).unwrap_or(false)
}

/// What the clock says many times, folded.
fn of_the_clock() -> [u8; SEED_LEN] {
    let mut seed = [0_u8; SEED_LEN];
    for round in 0..64_u8 {
        for byte in &mut seed {
            let start = Instant::now();
            let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos());
            let [low, next, ..] = now.to_le_bytes();
            let [jitter, ..] = start.elapsed().subsec_nanos().to_le_bytes();
            *byte = u8::rotate_left(*byte, 3) ^ low ^ next.rotate_left(4) ^ jitter ^ round;
        }
    }
    seed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_used_once_and_only_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed");
        assert_eq!(seed(&path), None);
        for (bytes, usable) in
            [(vec![7; 64], true), (vec![7; 63], false), (vec![0; 64], false), (vec![7; 99], true)]
        {
            fs::write(&path, &bytes).unwrap();
            assert_eq!(seed(&path).is_some(), usable, "{} bytes", bytes.len());
            assert!(!path.exists());
        }
    }

    #[test]
    fn nobody_waits_longer_than_the_limit() {
        let start = Instant::now();
        let never = || -> std::io::Result<()> {
            thread::sleep(Duration::from_mins(10));
            Ok(())
        };
        assert!(!is_ready_within(Duration::from_millis(100), never));
        assert!(start.elapsed() < Duration::from_mins(1));
        assert!(is_ready_within(Duration::from_mins(1), || Ok(())));
        assert!(!is_ready_within(Duration::from_mins(1), || Err(std::io::ErrorKind::Other.into())));
    }

    #[test]
    fn the_clock_does_not_say_the_same_twice() {
        assert_ne!(of_the_clock(), of_the_clock());
    }
}
