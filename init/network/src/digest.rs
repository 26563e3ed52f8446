//! SHA-256 of files that are written at offsets.
//!
//! Bytes that come in order are hashed on their way. The pages of a kdump file do; its header,
//! bitmaps and descriptors, which stand in front of them, do not, and are read back when all of it
//! is durable. So such a file has two sums, one for each piece: the sum of the whole would take all
//! of it to be read back.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use base::addr::{to_u64, to_usize};
use base::beat;
use base::lock::lock;
use vmcore::report::{Piece, Sent};
use vmcore::sink::{Sink, SinkError};
use vmcore::target::Artifact;

/// At most this fraction (1/8) of a file is read back. The front of a kdump file is a few hundredths
/// of it.
const LARGEST_FRONT: u64 = 8;
/// Reading back may take a tenth of the time that the dump took, or this time if that is longer: the
/// machine cannot restart before it has ended.
const LEAST_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes that are read at a time.
const READ: u64 = 128 << 10;

/// The artifacts of a target.
#[derive(Debug, Default)]
pub(super) struct Digests(Vec<Followed>);

#[derive(Debug)]
struct Followed {
    artifact: Artifact,
    running: Arc<Mutex<Running>>,
    since: Instant,
    /// Sum of what stands before what was hashed on its way.
    front: Option<String>,
}

impl Digests {
    /// Hashes what is written to a new artifact.
    pub(super) fn follow(&mut self, artifact: Artifact, sink: Box<dyn Sink>) -> Box<dyn Sink> {
        let running = Arc::new(Mutex::new(Running::from(0)));
        self.0.push(Followed { artifact, running: running.clone(), since: Instant::now(), front: None });
        Box::new(Hashed { sink, running })
    }

    /// Reads back the front of an artifact that is durable and has its name: no sum is worth
    /// either. `read` fills a buffer from an offset.
    pub(super) fn complete(
        &mut self,
        artifact: Artifact,
        mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) {
        let Some(followed) = self.0.iter_mut().rfind(|followed| followed.artifact == artifact) else {
            return;
        };
        let Some(front) = lock(&followed.running).front() else { return };
        let mut hash = Sha256::new();
        let mut buffer = vec![0; to_usize(front.min(READ))];
        let mut at = 0;
        let patience = followed.since.elapsed().div_f64(10.0).max(LEAST_PATIENCE);
        let start = Instant::now();
        while at < front {
            beat::alive(); // bounded by patience
            if start.elapsed() > patience {
                log::warn!("{} has no SHA-256: reading back {front} bytes takes too long", artifact.name());
                return;
            }
            let some = buffer.get_mut(..to_usize(front.saturating_sub(at).min(READ))).unwrap_or_default();
            if let Err(error) = read(at, some) {
                log::warn!("{} has no SHA-256: reading it back at {at}: {error}", artifact.name());
                return;
            }
            hash.update(&*some);
            at = at.saturating_add(to_u64(some.len()));
        }
        followed.front = Some(format!("{:x}", hash.finalize()));
    }

    /// Length and sums of each artifact that has any bytes.
    pub(super) fn sent(&self) -> Vec<Sent> {
        self.0.iter().map(Followed::sent).filter(|sent| sent.bytes > 0).collect()
    }
}

impl Followed {
    fn sent(&self) -> Sent {
        let running = lock(&self.running);
        let Running { from, end, .. } = *running;
        let sum = (!running.is_broken).then(|| format!("{:x}", running.hash.clone().finalize()));
        let (sha256, pieces) = match (sum, &self.front) {
            (sum, _) if from == 0 => (sum, Vec::new()),
            (Some(sum), Some(front)) => {
                let back = Piece { offset: from, bytes: end.saturating_sub(from), sha256: sum };
                (None, vec![Piece { offset: 0, bytes: from, sha256: front.clone() }, back])
            }
            _ => (None, Vec::new()),
        };
        Sent { artifact: self.artifact.name(), bytes: end, sha256, pieces, retries: 0 }
    }
}

/// The last piece of a file that is written in order.
#[derive(Debug)]
struct Running {
    from: u64,
    end: u64,
    hash: Sha256,
    /// Not all of it is what was hashed.
    is_broken: bool,
}

impl Running {
    fn from(offset: u64) -> Self {
        Self { from: offset, end: offset, hash: Sha256::new(), is_broken: false }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset.saturating_add(to_u64(bytes.len()));
        let is_anew = offset == 0 && end >= self.end;
        if offset > self.end || is_anew {
            *self = Self::from(offset);
        }
        if offset == self.end {
            self.hash.update(bytes);
            self.end = end;
        } else if end > self.from {
            self.is_broken = true;
            self.end = self.end.max(end);
        }
    }

    /// Bytes to be read back, if the sums are worth that.
    fn front(&self) -> Option<u64> {
        let is_small = self.from <= self.end / LARGEST_FRONT;
        (self.from > 0 && is_small && !self.is_broken).then_some(self.from)
    }
}

/// A sink that hashes what it hands on.
struct Hashed {
    sink: Box<dyn Sink>,
    running: Arc<Mutex<Running>>,
}

impl Hashed {
    /// Whatever fails: what lies there is not what was hashed.
    fn or_broken<T>(&self, result: Result<T, SinkError>) -> Result<T, SinkError> {
        result.inspect_err(|_| lock(&self.running).is_broken = true)
    }
}

impl Sink for Hashed {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let written = self.sink.write_at(offset, bytes);
        self.or_broken(written)?;
        lock(&self.running).write(offset, bytes);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        let synced = self.sink.sync();
        self.or_broken(synced)
    }

    fn is_rewritable(&self) -> bool {
        self.sink.is_rewritable()
    }

    fn reserve(&mut self, len: u64) -> Result<(), SinkError> {
        self.sink.reserve(len)
    }

    fn truncate(&mut self, len: u64) -> Result<(), SinkError> {
        let mut running = lock(&self.running);
        (running.is_broken, running.end) = (true, running.end.min(len));
        drop(running);
        self.sink.truncate(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use storage::targets::file::FileSink;

    /// Writes this in this order, and says what the digests say of it, and what is in the file.
    fn written(writes: &[(u64, &[u8])]) -> (Sent, Vec<u8>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut digests = Digests::default();
        let sink = FileSink::new(file.reopen().unwrap()).limited(1 << 20);
        let mut sink = digests.follow(Artifact::Vmcore, Box::new(sink));
        for (offset, bytes) in writes {
            let _ = sink.write_at(*offset, bytes);
        }
        sink.sync().unwrap();
        digests.complete(Artifact::Vmcore, |at, buffer| file.as_file().read_exact_at(buffer, at));
        (digests.sent().remove(0), std::fs::read(file.path()).unwrap())
    }

    fn sum(bytes: &[u8]) -> String {
        format!("{:x}", Sha256::digest(bytes))
    }

    #[test]
    fn what_comes_in_order_has_the_sum_of_the_whole() {
        let (sent, bytes) = written(&[(0, b"a log"), (5, b", whole")]);
        assert_eq!((sent.bytes, sent.sha256, sent.pieces), (12, Some(sum(&bytes)), vec![]));
        let (sent, bytes) = written(&[(0, b"a result"), (0, b"a longer result")]);
        assert_eq!((sent.bytes, sent.sha256), (15, Some(sum(&bytes))), "all of it anew");
        let (sent, _) = written(&[(0, b"a result"), (0, b"less")]);
        assert_eq!((sent.bytes, sent.sha256), (8, None), "its end is still there");
    }

    #[test]
    fn a_file_whose_front_comes_last_has_two_sums() {
        let page = [7; 4096];
        let mut writes: Vec<(u64, &[u8])> = vec![(0, b"header"), (100, b"bitmap"), (0x300, &page)];
        for at in [0x1300, 0x2300, 0x3300, 0x4300] {
            writes.extend([(at, &page[..]), (200 + at / 100, b"descriptor")]);
        }
        writes.push((0, b"HEADER"));
        let (sent, bytes) = written(&writes);
        let piece = |offset: usize, bytes: &[u8]| Piece {
            offset: offset.try_into().unwrap(),
            bytes: bytes.len().try_into().unwrap(),
            sha256: sum(bytes),
        };
        let (front, back) = bytes.split_at(0x300);
        assert_eq!(sent.pieces, [piece(0, front), piece(0x300, back)]);
        assert_eq!((sent.bytes, sent.sha256), (0x5300, None));
    }

    #[test]
    fn what_cannot_be_told_is_not_told() {
        let page = [7; 4096];
        let none = |writes: &[(u64, &[u8])]| {
            let (sent, _) = written(writes);
            assert_eq!((sent.sha256, sent.pieces), (None, vec![]), "{writes:?}");
        };
        none(&[(0, &page), (8192, &page)]); // half of it would have to be read
        none(&[(64, &page), (100, b"again")]);
        none(&[(0, &page), (4096, &page), (2 << 20, b"no room")]);
        none(&[(64, &page), (60, b"into the back")]);
    }
}
