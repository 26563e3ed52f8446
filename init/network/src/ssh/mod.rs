//! A directory on a host that is reached by SFTP: `<path>/<host>/<capture>/{dmesg.txt,vmcore,…}`.
//!
//! What it asks of the account: open, write, read, stat, mkdir, readdir and a rename that replaces
//! nothing. It removes nothing and changes nothing that is there, so the account needs no right to.
//!
//! | file | idea |
//! |---|---|
//! | [`login`] | TCP, SSH, keys |
//! | [`session`] | SFTP packets, one request at a time |
//! | [`pool`] | bytes that are not durable yet; what is sent next |
//! | [`driver`], [`shared`] | the thread that talks, and how the others meet it |
//! | [`sink`] | a file |
//! | [`back`] | what lies in one, read for its digest |
//! | [`place`] | the directory of the capture, and what earlier captures tell |

mod back;
mod driver;
mod error;
mod login;
mod place;
mod pool;
mod session;
mod shared;
mod sink;
#[cfg(test)]
mod tests;

use core::hash::{BuildHasher, Hasher};
use std::collections::hash_map::RandomState;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use russh_sftp::protocol::{OpenFlags, Packet, Rename, Stat};

use crate::Host;
use crate::retry::Retry;
use crate::runtime::Runtime;
use base::addr::to_usize;
use base::beat;
use base::config;
use vmcore::budget::MemoryUse;
use vmcore::sink::Sink;
use vmcore::target::{Artifact, Capture, Ledger, Sent, Target, TargetError};

use back::ReadBack;
use error::{SshError, io_error};
use login::Login;
use place::{Place, Sealer};
use pool::Pool;
use session::{Session, is_ok, status_of};
use shared::Shared;
use sink::SftpSink;

/// For each step of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(20);
/// For the last answers.
const CLOSE: Duration = Duration::from_secs(5);
/// Room that no dump takes: `result.json` comes after it.
const SPARE: u64 = 1 << 20;
/// What the heart beats at while something is waited for.
const BEAT: Duration = Duration::from_secs(1);

/// A directory on a server, and the connection to it.
#[derive(Debug)]
pub(super) struct Ssh {
    shared: Arc<Shared>,
    runtime: Runtime,
    url: String,
    place: Place,
    keeps_free: bool,
    /// The file that was read last.
    back: Option<ReadBack>,
}

impl Ssh {
    pub(super) fn open(
        wanted: &config::Ssh,
        host: &Host<'_>,
        capture: Capture<'_>,
    ) -> Result<Self, TargetError> {
        let Host { url, retry: patience, .. } = *host;
        let identity = host.remote.map(|remote| &remote.identity);
        let login = Login::new(url, host.peer.clone(), &wanted.host_key, identity, HANDSHAKE.min(patience))
            .map_err(host.failed("reading its keys"))?;
        let runtime = Runtime::start().map_err(host.failed("starting a thread"))?;
        let sealer = Sealer::new(identity.map_or("", |identity| identity.expose()));
        let (session, place) = runtime
            .block_on(reach(&login, &url.path, host.wait, capture, &sealer))
            .map_err(host.failed("reaching it by SFTP"))?;
        log::info!("target {url} is there: {}", session.offers);
        let keeps_free = session.offers.statvfs;
        let shared = Arc::new(Shared::new(Pool::new(pool_bytes(), session.offers)));
        runtime.handle().spawn(driver::drive(shared.clone(), login, session, patience, host.pace()));
        let of_user = url.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        let url = format!("ssh://{of_user}{}", url.authority());
        Ok(Self { shared, runtime, url, place, keeps_free, back: None })
    }

    /// Free bytes of the server's file system.
    fn free(&self) -> io::Result<u64> {
        let path = self.place.path.clone();
        let (answer, _) = self.shared.ask(move |_, id| session::statvfs(id, &path))?;
        match answer {
            Packet::ExtendedReply(reply) => {
                session::free_bytes(&reply.data).ok_or_else(|| io::ErrorKind::InvalidData.into())
            }
            other => Err(io_error(&status_of(other))),
        }
    }

    fn create_file(&self, artifact: Artifact, limit: u64) -> io::Result<SftpSink> {
        let path = format!("{}/{}-{:08x}", self.place.path, artifact.temporary(), random());
        // The first time it must not be there; after a lost answer it may be, and is ours.
        let mut again = false;
        loop {
            let name = path.clone();
            let open = move |attempt: u32, id| {
                let new = if attempt > 0 || again { OpenFlags::empty() } else { OpenFlags::EXCLUDE };
                session::open(id, &name, OpenFlags::WRITE | OpenFlags::CREATE | new)
            };
            let (answer, generation) = self.shared.ask(open)?;
            let Packet::Handle(handle) = answer else { return Err(io_error(&status_of(answer))) };
            let file = self.shared.lock().add(artifact, &path, handle.handle, generation);
            if let Some(file) = file {
                return Ok(SftpSink::new(self.shared.clone(), file, limit));
            }
            again = true;
        }
    }

    fn rename(&self, artifact: Artifact) -> io::Result<()> {
        let new = format!("{}/{}", self.place.path, artifact.name());
        let found = {
            let mut pool = self.shared.lock();
            let mut files = pool.files.iter_mut().enumerate();
            files.rfind(|(_, entry)| entry.artifact == artifact && entry.path != new).map(|(file, entry)| {
                entry.next_path = Some(new.clone());
                (file, entry.path.clone())
            })
        };
        let (file, old) = found.ok_or(io::ErrorKind::NotFound)?;
        self.shared.sync(file)?;
        let (oldpath, newpath) = (old, new.clone());
        let attempts = Arc::new(core::sync::atomic::AtomicU32::new(0));
        let counted = attempts.clone();
        let rename = move |attempt, id| {
            counted.store(attempt, core::sync::atomic::Ordering::Relaxed);
            Packet::Rename(Rename { id, oldpath: oldpath.clone(), newpath: newpath.clone() })
        };
        let (answer, _) = self.shared.ask(rename)?;
        // After a lost answer it may have been done before: the directory is ours alone.
        let was_lost = attempts.load(core::sync::atomic::Ordering::Relaxed) > 0;
        let done = is_ok(&answer) || (was_lost && self.exists(&new)?);
        if !done {
            return Err(io_error(&status_of(answer)));
        }
        if let Some(entry) = self.shared.lock().files.get_mut(file) {
            (entry.path, entry.next_path) = (new, None);
        }
        Ok(())
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        let path = path.to_owned();
        let (answer, _) = self.shared.ask(move |_, id| Packet::Stat(Stat { id, path: path.clone() }))?;
        Ok(matches!(answer, Packet::Attrs(_)))
    }
}

impl Target for Ssh {
    fn location(&self) -> String {
        let slash = if self.place.path.starts_with('/') { "" } else { "/" };
        format!("{}{slash}{}", self.url, self.place.path)
    }

    fn ledger(&self) -> &Ledger {
        &self.place.ledger
    }

    fn end_of_loop(&self) -> String {
        "fewer than `crash_loop.crashes` of this host's captures there are younger than `crash_loop.within`: \
         wait for that, or move the host's directory away on the collector"
            .to_owned()
    }

    fn room(&self) -> Option<u64> {
        let free = self.keeps_free.then(|| self.free())?;
        let free = free.inspect_err(|error| log::warn!("its room is not known: {}", base::log::chain(error)));
        free.ok().map(|free| free.saturating_sub(SPARE))
    }

    fn sent(&self) -> Vec<Sent> {
        self.shared.lock().sent()
    }

    fn create(&mut self, artifact: Artifact) -> Result<Box<dyn Sink>, TargetError> {
        let limit = if artifact == Artifact::Vmcore { self.room().unwrap_or(u64::MAX) } else { u64::MAX };
        let sink = self.create_file(artifact, limit);
        let name = artifact.temporary();
        let sink = sink.map_err(|source| TargetError::file("creating", name, source))?;
        Ok(Box::new(sink))
    }

    fn publish(&mut self, artifact: Artifact) -> Result<(), TargetError> {
        let name = artifact.name().to_owned();
        self.rename(artifact).map_err(|source| TargetError::file("publishing", name, source))
    }

    fn leave(&mut self, artifact: Artifact) -> Option<String> {
        let path = self.shared.lock().path_of(artifact)?;
        path.rsplit('/').next().map(str::to_owned)
    }

    fn read_back(&mut self, artifact: Artifact, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let path = self.shared.lock().path_of(artifact).ok_or(io::ErrorKind::NotFound)?;
        if !self.back.as_ref().is_some_and(|back| back.is_of(&path)) {
            self.back = Some(ReadBack::new(Arc::clone(&self.shared), path));
        }
        self.back.as_mut().map_or(Ok(()), |back| back.read(offset, buffer))
    }

    fn close(self: Box<Self>) -> Result<(), TargetError> {
        let Self { shared, runtime, url, .. } = *self;
        let closed = shared.close(CLOSE);
        let pool = shared.lock();
        log::debug!("what was not durable took {} of {} bytes at most", pool.peak(), pool.limit());
        drop(pool);
        drop(runtime);
        closed.map_err(|source| TargetError::file("closing", url, source))
    }
}

/// Connects and finds the place of the capture, again and again while there is time.
async fn reach(
    login: &Login,
    path: &str,
    wait: Duration,
    capture: Capture<'_>,
    sealer: &Sealer,
) -> Result<(Session, Place), SshError> {
    let mut retry = Retry::new(wait);
    loop {
        let attempt = async {
            let mut session = login.connect().await?;
            let place = Place::make(&mut session, path, capture, sealer).await?;
            Ok((session, place))
        };
        let error: SshError = match beating(attempt).await {
            Ok(reached) => return Ok(reached),
            Err(error) => error,
        };
        match retry.pause(None) {
            Some(pause) if !error.is_final() => {
                log::warn!("{}; another attempt follows", base::log::chain(&error));
                beating(tokio::time::sleep(pause)).await;
            }
            _ => return Err(error),
        }
    }
}

/// Waits for something that has deadlines of its own, and tells PID 1 meanwhile.
async fn beating<T>(doing: impl Future<Output = T>) -> T {
    tokio::pin!(doing);
    loop {
        beat::alive();
        if let Ok(done) = tokio::time::timeout(BEAT, &mut doing).await {
            return done;
        }
    }
}

/// A quarter of what memory there is, as all buffers get, within [`pool::BYTES`].
fn pool_bytes() -> usize {
    let mut memory = MemoryUse::default();
    memory.look();
    let quarter = memory.least_available_bytes.unwrap_or(0) / 4;
    to_usize(quarter.clamp(*pool::BYTES.start(), *pool::BYTES.end()))
}

/// The hasher's keys are of the kernel's random numbers (getrandom(2)).
fn random() -> u32 {
    u32::try_from(RandomState::new().build_hasher().finish() >> 32).unwrap_or(0)
}
