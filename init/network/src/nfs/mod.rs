//! A directory that an NFS server exports: `<export>/<path>/<host>/<capture>/{dmesg.txt,vmcore,…}`.

mod mount;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use crate::Host;
use crate::pace::Pace;
use base::addr::to_u64;
use base::config;
use base::lock::lock;
use storage::mount::Mounted;
use storage::targets::mounted::{self, MountedTarget};
use vmcore::sink::{Sink, SinkError};
use vmcore::target::{Artifact, Capture, Ledger, Sent, Target, TargetError};

/// An export that is mounted.
#[derive(Debug)]
pub(super) struct Nfs {
    mounted: MountedTarget,
    /// Artifacts that were begun.
    begun: Vec<Artifact>,
    gone: Gone,
    pace: Arc<Mutex<Pace>>,
}

/// Whether the server has not answered for as long as it is waited for. The kernel waits anew in
/// each call, also in those that close files and unmount: once is enough.
#[derive(Clone, Debug, Default)]
struct Gone(Arc<AtomicBool>);

impl Nfs {
    pub(super) fn open(
        wanted: &config::Nfs,
        host: &Host<'_>,
        capture: Capture<'_>,
    ) -> Result<Self, TargetError> {
        mount::introduce(capture);
        let name = format!("{}:{}", host.url.host, host.url.path);
        let at = mounted::place(capture);
        mount::mount_export(wanted, host, &name, &at)?;
        log::info!("target {} is mounted (NFS {})", host.url, mount::version(wanted.version));
        let path = format!("{}/{}", wanted.path.trim_end_matches('/'), capture.host);
        let paths = [path.as_str(), wanted.path.as_str(), "/"];
        let mounted = MountedTarget::open(Mounted::adopt(at, name), &paths, wanted.share, capture)?;
        let pace = Arc::new(Mutex::new(host.pace()));
        Ok(Self { mounted, begun: Vec::new(), gone: Gone::default(), pace })
    }
}

impl Target for Nfs {
    fn location(&self) -> String {
        self.mounted.location()
    }

    fn directory(&self) -> Option<PathBuf> {
        self.gone.check().ok().and_then(|()| self.mounted.directory())
    }

    fn detours(&self) -> Vec<String> {
        self.mounted.detours()
    }

    fn ledger(&self) -> &Ledger {
        self.mounted.ledger()
    }

    fn end_of_loop(&self) -> String {
        "`afterimage reset DIRECTORY` is run by root on the file server, or on a host that has the export \
         mounted without root_squash"
            .to_owned()
    }

    fn room(&self) -> Option<u64> {
        self.gone.check().ok().and_then(|()| self.mounted.room())
    }

    fn sent(&self) -> Vec<Sent> {
        let sent = |artifact: &Artifact| Sent { artifact: artifact.name(), ..Sent::default() };
        self.begun.iter().map(sent).collect()
    }

    fn create(&mut self, artifact: Artifact) -> Result<Box<dyn Sink>, TargetError> {
        let sink = self.gone.unless("creating", artifact, || self.mounted.create_file(artifact))?;
        let sink = Waiting { sink: Some(sink), gone: self.gone.clone(), pace: Arc::clone(&self.pace) };
        self.begun.retain(|other| *other != artifact);
        self.begun.push(artifact);
        Ok(Box::new(sink))
    }

    fn publish(&mut self, artifact: Artifact) -> Result<(), TargetError> {
        let Self { mounted, gone, .. } = self;
        gone.unless("publishing", artifact, || mounted.publish(artifact))
    }

    fn read_back(&mut self, artifact: Artifact, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let Self { mounted, gone, .. } = self;
        gone.check()?;
        mounted.read_back(artifact, offset, buffer).inspect_err(|error| gone.watch(Some(error)))
    }

    fn retire(&mut self) -> Result<(), TargetError> {
        if self.gone.check().is_err() {
            return Ok(()); // it would be waited for once more
        }
        self.mounted.retire()
    }

    fn close(self: Box<Self>) -> Result<(), TargetError> {
        let Self { mounted, gone, .. } = *self;
        let name = mounted.location();
        match gone.check() {
            Ok(()) => Box::new(mounted).close(),
            Err(source) => {
                mounted.abandon();
                Err(TargetError::file("closing", name, source))
            }
        }
    }
}

impl Gone {
    fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the server has not answered before"));
        }
        Ok(())
    }

    fn watch<'a>(&self, error: Option<&'a (dyn core::error::Error + 'static)>) {
        let mut error: Option<&'a (dyn core::error::Error + 'static)> = error;
        while let Some(cause) = error {
            let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
            if kind == Some(io::ErrorKind::TimedOut) {
                self.0.store(true, Ordering::Relaxed);
            }
            error = cause.source();
        }
    }

    /// Does something with an artifact, unless the server is gone.
    fn unless<T>(
        &self,
        what: &'static str,
        artifact: Artifact,
        doing: impl FnOnce() -> Result<T, TargetError>,
    ) -> Result<T, TargetError> {
        let name = artifact.name().to_owned();
        self.check().map_err(|source| TargetError::file(what, name, source))?;
        doing().inspect_err(|error| self.watch(Some(error)))
    }
}

/// A file on a server that may be gone.
struct Waiting<S: Sink + Send + 'static> {
    /// `None` when it is dropped.
    sink: Option<S>,
    gone: Gone,
    pace: Arc<Mutex<Pace>>,
}

impl<S: Sink + Send + 'static> Drop for Waiting<S> {
    fn drop(&mut self) {
        let sink = self.sink.take();
        if self.gone.check().is_err() {
            // Closing a file writes what is left of it, until all such calls are ended: see
            // `Mounted::abandon`.
            let closing = thread::Builder::new().name("closing".to_owned()).spawn(move || drop(sink));
            if let Err(error) = closing {
                log::warn!("a file on a server that is gone is waited for: {error}");
            }
        }
    }
}

impl<S: Sink + Send + 'static> Waiting<S> {
    fn unless(
        &mut self,
        bytes: usize,
        failed: impl Fn(io::Error) -> SinkError,
        doing: impl FnOnce(&mut dyn Sink) -> Result<(), SinkError>,
    ) -> Result<(), SinkError> {
        let there = self.gone.check().and(self.sink.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into()));
        let start = Instant::now();
        let done = doing(there.map_err(&failed)?);
        // Bytes are in the cache first; who is slow makes a later write wait, or the sync.
        let took = lock(&self.pace).took(to_u64(bytes), start.elapsed());
        let done = done.and_then(|()| took.map_err(|slow| failed(slow.into())));
        done.inspect_err(|error| self.gone.watch(Some(error)))
    }
}

impl<S: Sink + Send + 'static> Sink for Waiting<S> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let failed = |source| SinkError::Write { offset, len: bytes.len(), source };
        self.unless(bytes.len(), failed, |sink| sink.write_at(offset, bytes))
    }

    fn sync(&mut self) -> Result<(), SinkError> {
        self.unless(0, SinkError::Sync, |sink| sink.sync())
    }

    fn reserve(&mut self, len: u64) -> Result<(), SinkError> {
        let failed = |source| SinkError::Write { offset: 0, len: base::addr::to_usize(len), source };
        self.unless(0, failed, |sink| sink.reserve(len))
    }

    fn truncate(&mut self, len: u64) -> Result<(), SinkError> {
        self.unless(0, |source| SinkError::Truncate { len, source }, |sink| sink.truncate(len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    /// A server that fails each write, and counts them.
    struct Failing(Errno, Arc<AtomicU32>);

    impl Sink for Failing {
        fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Err(SinkError::Write { offset, len: bytes.len(), source: self.0.into() })
        }

        fn sync(&mut self) -> Result<(), SinkError> {
            Ok(())
        }
    }

    /// A server that takes its time.
    struct Slow;

    impl Sink for Slow {
        fn write_at(&mut self, _: u64, _: &[u8]) -> Result<(), SinkError> {
            thread::sleep(Duration::from_millis(5));
            Ok(())
        }

        fn sync(&mut self) -> Result<(), SinkError> {
            Ok(())
        }
    }

    #[test]
    fn a_server_that_takes_a_byte_now_and_then_is_gone_and_a_slow_one_is_not() {
        for (floor, is_given_up) in [(1 << 20, true), (100, false)] {
            let pace = Arc::new(Mutex::new(Pace::new(floor, Duration::from_millis(50))));
            let mut file = Waiting { sink: Some(Slow), gone: Gone::default(), pace };
            let written = (0..40).map(|at| file.write_at(at, b"page")).find_map(Result::err);
            let said = written.map(|error| base::log::chain(&error)).unwrap_or_default();
            assert_eq!(said.contains("min_rate"), is_given_up, "{said}");
            assert_eq!(file.sync().is_err(), is_given_up, "it is not waited for once more");
        }
    }

    #[test]
    fn a_server_that_is_gone_is_waited_for_once_and_one_whose_disk_fails_is_not_gone() {
        for (errno, waits) in [(Errno::ETIMEDOUT, 1), (Errno::EIO, 2)] {
            let gone = Gone::default();
            let asked = Arc::new(AtomicU32::new(0));
            let pace = Arc::new(Mutex::new(Pace::new(0, Duration::ZERO)));
            let file = || Waiting {
                sink: Some(Failing(errno, Arc::clone(&asked))),
                gone: gone.clone(),
                pace: Arc::clone(&pace),
            };
            let (mut dump, mut result) = (file(), file());
            assert!(dump.write_at(0, b"page").is_err() && result.write_at(0, b"{}").is_err());
            assert_eq!(asked.load(Ordering::Relaxed), waits, "{errno}");
            assert_eq!(result.sync().is_err(), errno == Errno::ETIMEDOUT);
            let created = gone.unless("creating", Artifact::Notes, || Ok(()));
            assert_eq!(created.is_err(), errno == Errno::ETIMEDOUT);
        }
    }
}
