//! Buffers of parts: as many as there is memory for, and never another one. A buffer is free again
//! when the last reference to what is in it is gone, so that a part that was not acknowledged can
//! be sent again, byte for byte.

use std::fs;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use hyper::body::Bytes;

use base::addr::to_usize;
use vmcore::budget;

/// Memory for parts, unless a single one of the configured size needs more.
const MOST_MEMORY: u64 = 16 << 20;
/// One is filled while two are sent: the pause between two requests costs nothing then.
const MOST_BUFFERS: u64 = 3;

/// How large parts are, and how many are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) part: u64,
    pub(super) buffers: u64,
}

impl Plan {
    /// Parts so large that `max_parts` hold what is expected, as far as a quarter of the available
    /// memory goes; but not below `least`, which the other side insists on.
    pub(super) fn new(least: u64, expected: u64, max_parts: u32, available: Option<u64>) -> Self {
        let memory = available.map_or(MOST_MEMORY, |available| available / 4);
        // Two, so that one is filled while the other is sent.
        let limit = (memory.min(MOST_MEMORY) / 2).max(least);
        let part = expected.div_ceil(u64::from(max_parts.max(1))).clamp(least, limit);
        let buffers = memory.min(MOST_MEMORY.max(part.saturating_mul(2))).checked_div(part).unwrap_or(0);
        Self { part, buffers: buffers.clamp(1, MOST_BUFFERS) }
    }

    /// The same for this machine now.
    pub(super) fn measure(least: u64, expected: u64, max_parts: u32) -> Self {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self::new(least, expected, max_parts, budget::mem_available(&meminfo))
    }
}

/// The buffers.
#[derive(Debug)]
pub(super) struct Pool {
    plan: Plan,
    free: Receiver<Vec<u8>>,
    home: Sender<Vec<u8>>,
}

impl Pool {
    /// None takes memory before it is used.
    pub(super) fn new(plan: Plan) -> Self {
        let (home, free) = channel();
        for _ in 0..plan.buffers {
            let _ = home.send(Vec::new()); // the receiver is right here
        }
        Self { plan, free, home }
    }

    /// Bytes in a buffer.
    pub(super) fn part(&self) -> usize {
        to_usize(self.plan.part)
    }

    /// An empty buffer that holds a part; `None` if none became free in time.
    pub(super) fn take(&self, wait: Duration) -> io::Result<Option<Vec<u8>>> {
        match self.free.recv_timeout(wait) {
            Ok(mut buffer) => {
                let reserved = buffer.try_reserve_exact(self.part());
                if let Err(error) = reserved {
                    let _ = self.home.send(buffer);
                    return Err(io::Error::new(io::ErrorKind::OutOfMemory, error));
                }
                Ok(Some(buffer))
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(None),
        }
    }

    /// What is in a buffer, to be sent.
    pub(super) fn lend(&self, bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { bytes, home: self.home.clone() })
    }
}

/// Bytes that return to the pool.
struct Lent {
    bytes: Vec<u8>,
    home: Sender<Vec<u8>>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut bytes = core::mem::take(&mut self.bytes);
        bytes.clear();
        let _ = self.home.send(bytes); // without a pool there is nobody to want it
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST_PART: u64 = base::config::Parts::MIN_SIZE.0;

    const MIB: u64 = 1 << 20;

    #[test]
    fn parts_grow_with_the_dump_as_far_as_memory_goes() {
        let plan = |expected, max_parts, available: u64| {
            let plan = Plan::new(LEAST_PART, expected, max_parts, Some(available * MIB));
            assert!(
                plan.part * plan.buffers <= (available * MIB / 4).clamp(LEAST_PART, 16 * MIB),
                "{plan:?}"
            );
            (plan.part, plan.buffers)
        };
        assert_eq!(plan(0, 10_000, 1024), (5 * MIB, 3));
        assert_eq!(plan(40 << 30, 10_000, 1024), (5 * MIB, 3));
        assert_eq!(plan(60 << 30, 10_000, 1024), ((60_u64 << 30).div_ceil(10_000), 2));
        assert_eq!(plan(1 << 40, 10_000, 1024), (8 * MIB, 2), "what does not fit becomes further objects");
        assert_eq!(plan(1 << 40, 10_000, 44), (11 * MIB / 2, 2), "there is not memory for more");
        assert_eq!(plan(1 << 40, 10_000, 24), (5 * MIB, 1));
        assert_eq!(plan(100 << 20, 2, 1024), (8 * MIB, 2));
        assert_eq!(Plan::new(LEAST_PART, 1 << 40, 0, None), Plan { part: 8 * MIB, buffers: 2 });
        assert_eq!(Plan::new(32 * MIB, 0, 10_000, Some(1 << 30)), Plan { part: 32 * MIB, buffers: 2 });
        assert_eq!(Plan::new(64 * MIB, 0, 10_000, Some(96 * MIB)), Plan { part: 64 * MIB, buffers: 1 });
    }

    #[test]
    fn there_is_never_another_buffer() {
        let pool = Pool::new(Plan { part: 100, buffers: 2 });
        let take = || pool.take(Duration::from_millis(1)).unwrap();
        let (mut first, second) = (take().unwrap(), take().unwrap());
        assert_eq!(take(), None);
        first.extend([7; 100]);
        let (place, sent) = (first.as_ptr(), pool.lend(first));
        let again = sent.slice(..50);
        drop(sent);
        assert_eq!(take(), None, "a piece of it is still on its way");
        drop(again);
        let first = take().unwrap();
        assert!(first.is_empty() && first.as_ptr() == place, "the same memory serves again");
        drop(pool.lend(second));
        assert!(take().is_some());
        assert_eq!(take(), None);
    }
}
