//! A simulated device as a sink: it drains at a rate, behind a queue; or it takes everything at
//! once.
//!
//! The bytes go nowhere. The sink also tells the phases of a dump apart: room is reserved when the
//! plan is made, and the first sync comes behind headers and bitmaps.

use std::io;
use std::num::NonZeroU64;
use std::thread;
use std::time::{Duration, Instant};

use base::addr::to_u64;
use vmcore::sink::{Sink, SinkError};

use super::meter::Meter;

/// What a device is like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kind {
    /// MB/s; without it bytes are dropped at once.
    pub rate: Option<NonZeroU64>,
    /// Bytes that it holds at most until they are drained.
    pub buffer: u64,
    /// It fails behind headers and bitmaps, to measure what comes before the pages.
    pub ends_with_headers: bool,
}

/// The device.
#[derive(Debug)]
pub struct Device<'m> {
    kind: Kind,
    /// When everything in the queue will have been written.
    idle_at: Instant,
    meter: &'m mut Meter,
    reached: Reached,
    /// Bytes that were written, those written twice counted twice.
    pub written: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Reached {
    Nothing,
    Plan,
    Headers,
}

impl<'m> Device<'m> {
    /// A device that has nothing to do yet.
    pub fn new(kind: Kind, meter: &'m mut Meter) -> Self {
        Self { kind, idle_at: Instant::now(), meter, reached: Reached::Nothing, written: 0 }
    }

    /// Puts bytes into the queue; waits until they fit.
    fn take(&mut self, bytes: u64) {
        self.written = self.written.saturating_add(bytes);
        if self.kind.rate.is_some() {
            let now = Instant::now();
            let from = self.idle_at.max(now);
            self.idle_at = from.checked_add(self.time(bytes)).unwrap_or(from);
            let queue = self.time(self.kind.buffer);
            thread::sleep(self.idle_at.saturating_duration_since(now).saturating_sub(queue));
        }
    }

    /// How long the device takes for `bytes`: at 1 MB/s a byte takes 1000 ns.
    fn time(&self, bytes: u64) -> Duration {
        let nanos = |rate| Duration::from_nanos(bytes.saturating_mul(1000) / rate);
        self.kind.rate.map_or(Duration::ZERO, nanos)
    }
}

impl Sink for Device<'_> {
    fn write_at(&mut self, _offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.take(to_u64(bytes.len()));
        Ok(())
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        thread::sleep(self.idle_at.saturating_duration_since(Instant::now()));
        if self.reached == Reached::Plan {
            self.reached = Reached::Headers;
            self.meter.lap("headers");
            if self.kind.ends_with_headers {
                return Err(SinkError::Sync(io::Error::other("this was to end here")));
            }
        }
        Ok(())
    }

    fn reserve(&mut self, _len: u64) -> Result<(), SinkError> {
        if self.reached == Reached::Nothing {
            self.reached = Reached::Plan;
            self.meter.lap("plan");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_waits_for_room_and_a_sync_for_all() {
        let mut meter = Meter::start().unwrap();
        let kind = Kind { rate: NonZeroU64::new(10), buffer: 1_000_000, ..Kind::default() };
        let megabyte = vec![0; 1_000_000];
        let start = Instant::now();
        let mut device = Device::new(kind, &mut meter);
        device.write_at(0, &megabyte).unwrap();
        assert!(start.elapsed() < Duration::from_millis(90), "there is room");
        device.write_at(0, &megabyte).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(100));
        device.sync().unwrap();
        assert!(start.elapsed() >= Duration::from_millis(200));
        assert_eq!(device.written, 2_000_000);
    }
}
