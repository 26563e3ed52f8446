//! A directory on a web server, or a prefix in a bucket of an object store.
//!
//! Neither can be written at offsets or renamed in, so the dump is a stream in the flattened
//! format, and a name appears when what it names is whole. Nothing that is there is ever read:
//! there is no ledger, and crash loops are not seen.

mod body;
mod client;
mod filling;
mod index;
mod insist;
mod object;
mod parts;
mod pool;
mod s3;
mod sinks;
mod store;
mod stream;
mod tls;
mod web;

use core::fmt::Write;
use core::future::Future;
use core::pin::pin;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::timeout;

use crate::Host;
use crate::retry::Retry;
use crate::runtime::Runtime;
use base::beat;
use base::config::{self, KnownBy, Scheme, Url};
use base::facts::Remote;
use base::lock::lock;
use vmcore::sink::Sink;
use vmcore::target::{Artifact, Capture, Ledger, Sent, Target, TargetError};

use client::{Client, SendError};
use insist::UploadError;
use parts::Upload;
use pool::{Plan, Pool};
use sinks::{Flow, InOrder, Small};
use store::Store;
use stream::Stream;
use tls::Trust;
use web::Web;

/// How long nothing may move in a request.
const SILENCE: Duration = Duration::from_secs(30);

/// Why a sink takes nothing.
#[derive(Debug, thiserror::Error)]
enum SinkProblem {
    /// What was sent did not arrive.
    #[error(transparent)]
    Upload(Arc<UploadError>),
    /// There is no memory for a part.
    #[error("no memory for a part")]
    Memory(#[source] io::Error),
    /// A stream goes from its beginning to its end.
    #[error("a stream at {at} cannot take bytes for {offset}")]
    Order {
        /// Where it is.
        at: u64,
        /// Where the bytes belong.
        offset: u64,
    },
    /// It is finished.
    #[error("it is not open any more")]
    Closed,
}

impl From<SinkProblem> for io::Error {
    fn from(problem: SinkProblem) -> Self {
        let kind = match &problem {
            SinkProblem::Upload(error) => error.kind(),
            SinkProblem::Memory(_) => io::ErrorKind::OutOfMemory,
            SinkProblem::Order { .. } | SinkProblem::Closed => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, problem)
    }
}

/// A target on the web.
pub(super) struct Http {
    /// URL of the capture's directory.
    location: String,
    runtime: Arc<Runtime>,
    store: Arc<Store>,
    upload: config::Upload,
    expected: u64,
    /// Artifacts that are being made.
    open: Vec<(Artifact, Arc<Mutex<Option<Flow>>>)>,
    sent: Arc<Mutex<Vec<Sent>>>,
    ledger: Ledger,
}

impl Http {
    /// A web server. Finds out that the host is there, and is who was meant. Nothing is stored yet.
    pub(super) fn web(
        wanted: &config::Https,
        host: &Host<'_>,
        capture: Capture<'_>,
    ) -> Result<Self, TargetError> {
        let client = client(host, &wanted.known_by)?;
        let directory = directory(capture);
        let store = Store::Web(Web {
            client: Arc::clone(&client),
            patience: host.retry,
            authority: host.url.authority(),
            path: format!("{}/{directory}", host.url.path),
            token: host.remote.map(|remote| remote.token.clone()).unwrap_or_default(),
        });
        Self::start(host, &client, store, wanted.upload, &directory)
    }

    /// An object store, likewise.
    pub(super) fn s3(
        wanted: &config::S3,
        host: &Host<'_>,
        capture: Capture<'_>,
    ) -> Result<Self, TargetError> {
        let client = client(host, &wanted.known_by)?;
        let directory = directory(capture);
        let keys = host.remote.and_then(|remote| remote.keys.as_ref());
        let store = s3::S3::new(Arc::clone(&client), host.retry, host.url, &wanted.region, keys, &directory);
        let store = Store::S3(store.map_err(host.failed("preparing requests"))?);
        Self::start(host, &client, store, config::Upload::Parts(wanted.parts), &directory)
    }

    fn start(
        host: &Host<'_>,
        client: &Client,
        store: Store,
        upload: config::Upload,
        directory: &str,
    ) -> Result<Self, TargetError> {
        let runtime = Runtime::start().map_err(host.failed("starting a thread"))?;
        reach(&runtime, client, host.wait).map_err(host.failed("reaching it"))?;
        Ok(Self {
            location: format!("{}/{directory}/", host.url),
            runtime: Arc::new(runtime),
            store: Arc::new(store),
            upload,
            expected: 0,
            open: Vec::new(),
            sent: Arc::default(),
            ledger: Ledger::default(),
        })
    }

    fn flow(&self, artifact: Artifact) -> Flow {
        let is_dump = artifact == Artifact::Vmcore;
        let name = file_name(artifact);
        let (runtime, store) = (Arc::clone(&self.runtime), Arc::clone(&self.store));
        let parts = match self.upload {
            config::Upload::Stream if is_dump => {
                return Flow::Stream(Box::new(Stream::start(runtime, store, name)));
            }
            config::Upload::Stream => config::Parts::default(),
            config::Upload::Parts(parts) => parts,
        };
        let expected = if is_dump { self.expected } else { 0 };
        let plan = Plan::measure(parts.min_size.0, expected, parts.max_count);
        log::debug!("{name} goes in parts of {} bytes, {} of them in memory", plan.part, plan.buffers);
        // Whoever collects dumps from a web server always finds them in the same shape.
        let may_be_one = !(is_dump && store.keeps_parts());
        Flow::Parts(Box::new(Upload::new(runtime, store, name, Pool::new(plan), parts.max_count, may_be_one)))
    }

    fn failed(&self, what: &str, problem: SinkProblem) -> TargetError {
        TargetError::doing(format!("{}: {what}", self.location), problem)
    }
}

/// Whether what the loader recorded for a target can be used: certificates, keys, the token.
pub(super) fn verify(url: &Url, known_by: &KnownBy, remote: &Remote) -> Result<(), TargetError> {
    trust(url, known_by, remote)?;
    web::bearer(&remote.token).map(drop).map_err(|_| {
        // The error of the library would show the token.
        TargetError::doing(
            format!("{url}: preparing requests"),
            "the token has characters that no header can have",
        )
    })
}

fn trust(url: &Url, known_by: &KnownBy, remote: &Remote) -> Result<Option<Trust>, TargetError> {
    if url.scheme == Scheme::Http {
        return Ok(None);
    }
    let trust = Trust::new(&url.host, remote, &known_by.pin);
    trust.map(Some).map_err(|error| TargetError::doing(format!("{url}: preparing TLS"), error))
}

fn client(host: &Host<'_>, known_by: &KnownBy) -> Result<Arc<Client>, TargetError> {
    let unknown = Remote::default();
    let trust = trust(host.url, known_by, host.remote.unwrap_or(&unknown))?;
    Ok(Arc::new(Client::new(host.peer.clone(), trust, SILENCE.min(host.retry), host.pace())))
}

/// The directory of a capture below the URL.
fn directory(capture: Capture<'_>) -> String {
    format!("{}/{}", encoded(capture.host), encoded(capture.name))
}

/// Connects again and again until the host has proved who it is. A host with the wrong certificate is
/// not asked again: its certificate will not change.
fn reach(runtime: &Runtime, client: &Client, patience: Duration) -> Result<(), SendError> {
    let mut retry = Retry::new(patience);
    loop {
        let Err(error) = wait(runtime, client.probe()) else { return Ok(()) };
        match retry.pause(None) {
            Some(pause) if !error.is_final() => {
                log::warn!("{}; again in {} ms", base::log::chain(&error), pause.as_millis());
                wait(runtime, async { tokio::time::sleep(pause).await });
            }
            _ => return Err(error),
        }
    }
}

/// Waits for something that ends by its own limits of time, and says meanwhile that it is waited
/// for.
fn wait<F: Future>(runtime: &Runtime, future: F) -> F::Output {
    runtime.block_on(async {
        let mut future = pin!(future);
        loop {
            match timeout(Duration::from_secs(1), &mut future).await {
                Ok(done) => return done,
                Err(_) => beat::alive(),
            }
        }
    })
}

/// A dump that goes as a stream is in the flattened format, and is named so.
fn file_name(artifact: Artifact) -> &'static str {
    match artifact {
        Artifact::Vmcore => "vmcore.flat",
        other => other.name(),
    }
}

/// A name as a segment of a path: what stands for something else there, percent-encoded (RFC 3986).
fn encoded(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

impl Target for Http {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn room(&self) -> Option<u64> {
        None
    }

    fn is_stream(&self) -> bool {
        true
    }

    fn expect(&mut self, bytes: u64) {
        self.expected = bytes;
    }

    fn sent(&self) -> Vec<Sent> {
        lock(&self.sent).clone()
    }

    fn remarks(&self) -> Vec<String> {
        self.store.remarks()
    }

    fn create(&mut self, artifact: Artifact) -> Result<Box<dyn Sink>, TargetError> {
        let (runtime, store, sent) =
            (Arc::clone(&self.runtime), Arc::clone(&self.store), Arc::clone(&self.sent));
        if artifact == Artifact::Result {
            return Ok(Box::new(Small::new(runtime, store, artifact, sent)));
        }
        self.open.retain(|(other, _)| *other != artifact); // one that was not finished is given up
        let flow = Arc::new(Mutex::new(Some(self.flow(artifact))));
        self.open.push((artifact, Arc::clone(&flow)));
        Ok(Box::new(InOrder::new(flow)))
    }

    fn publish(&mut self, artifact: Artifact) -> Result<(), TargetError> {
        if artifact == Artifact::Result {
            return Ok(()); // it was there, whole, when it was synced
        }
        let name = file_name(artifact);
        let at = self.open.iter().position(|(other, _)| *other == artifact);
        let flow = at.and_then(|at| {
            let (_, flow) = self.open.swap_remove(at);
            lock(&flow).take()
        });
        let Some(mut flow) = flow else {
            return Err(self.failed(&format!("publishing {name}"), SinkProblem::Closed));
        };
        let finished = flow.finish();
        let retries = flow.retries();
        drop(flow);
        let (bytes, sha256) =
            finished.map_err(|problem| self.failed(&format!("publishing {name}"), problem))?;
        sinks::record(
            &self.sent,
            Sent { artifact: name, bytes, sha256: Some(sha256), retries, ..Sent::default() },
        );
        Ok(())
    }

    fn name_of(&self, artifact: Artifact) -> &'static str {
        file_name(artifact)
    }

    fn leave(&mut self, artifact: Artifact) -> Option<String> {
        let at = self.open.iter().position(|(other, _)| *other == artifact);
        let flow = at.map(|at| self.open.swap_remove(at).1);
        flow.and_then(|flow| lock(&flow).take())?.leave()
    }

    fn close(self: Box<Self>) -> Result<(), TargetError> {
        Ok(()) // what is not published is given up when it is dropped
    }
}
