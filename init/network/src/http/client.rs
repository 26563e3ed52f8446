//! One request, and an answer to it within limits of time and size. Connections are kept for the
//! next request; what is sent again, and when, is not decided here.

use core::error::Error as _;
use core::future::Future;
use core::pin::{Pin, pin};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::task::{Context, Poll};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::dial::{DialError, Peer};
use crate::pace::{Pace, TooSlow};
use base::addr::to_u64;
use base::lock::lock;

use super::body::Body;
use super::tls::Trust;

/// Bytes of an answer that are looked at: it is an error's text at most, or a list of some hundred
/// bytes.
const ANSWER_BYTES: usize = 64 << 10;
/// Bytes that hyper holds of a request on its way.
const BUFFER: usize = 128 << 10;
/// A request in which a byte moves now and then ends all the same: 16 MiB at 20 KB/s take less.
const LONGEST: Duration = Duration::from_mins(15);
/// Bytes of a request from which on its pace counts.
const LARGE: u64 = 1 << 20;
/// How often it is looked whether anything moves.
const LOOK: Duration = Duration::from_millis(250);

/// Where requests go, and the connections to there.
pub(super) struct Client {
    peer: Peer,
    trust: Option<Trust>,
    /// How long nothing may move in a request.
    silence: Duration,
    idle: Mutex<Vec<Connection>>,
    /// The host did not answer for as long as there was patience. The next one who asks tries once:
    /// a target that is dead is waited for once, not once for each artifact.
    pub(super) is_dead: AtomicBool,
    /// How fast it takes what is large.
    pace: Mutex<Pace>,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Its beginning.
    pub(super) body: Vec<u8>,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// There is no connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The host is not who was meant, or does not want us, or the connection broke.
    #[error("TLS with {host}")]
    Tls {
        /// Which host.
        host: String,
        /// Cause; it holds a [`rustls::Error`] if that is one.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to {host} broke")]
    Broken {
        /// Which host.
        host: String,
        /// Cause.
        source: hyper::Error,
    },
    /// The host takes nothing and says nothing.
    #[error("{host} neither took nor sent a byte for {} seconds", .limit.as_secs())]
    Silent {
        /// Which host.
        host: String,
        /// For how long.
        limit: Duration,
    },
    /// The host takes less than it must.
    #[error("{host} is too slow")]
    BelowFloor {
        /// Which host.
        host: String,
        /// How slow.
        source: TooSlow,
    },
    /// The host is too slow to come to an end.
    #[error("{host} did not finish a request in {} seconds", LONGEST.as_secs())]
    Slow {
        /// Which host.
        host: String,
    },
}

impl SendError {
    /// Whether it is the same the next time: the host is somebody else, or does not know us.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::BelowFloor { .. } => true,
            Self::Tls { source, .. } => matches!(
                tls(source),
                Some(
                    rustls::Error::InvalidCertificate(_)
                        | rustls::Error::General(_)
                        | rustls::Error::AlertReceived(_)
                        | rustls::Error::PeerIncompatible(_)
                )
            ),
            // In TLS 1.3 a client's certificate is refused when the client takes the handshake for
            // done (RFC 8446, 4.4.2.4).
            Self::Broken { source, .. } => {
                let mut cause = source.source();
                while let Some(error) = cause {
                    let alert = error.downcast_ref::<io::Error>().and_then(tls);
                    if matches!(alert, Some(rustls::Error::AlertReceived(alert)) if is_refusal(*alert)) {
                        return true;
                    }
                    cause = error.source();
                }
                false
            }
            _ => false,
        }
    }
}

/// The TLS error in an error of input or output.
fn tls(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Whether an alert says that we are not who may come in.
fn is_refusal(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
    )
}

impl Client {
    /// Of a host; without `trust` in the clear.
    pub(super) fn new(peer: Peer, trust: Option<Trust>, silence: Duration, pace: Pace) -> Self {
        let (idle, is_dead) = (Mutex::new(Vec::new()), AtomicBool::new(false));
        Self { peer, trust, silence, idle, is_dead, pace: Mutex::new(pace) }
    }

    /// What was wrong with the clock.
    pub(super) fn remark(&self) -> Option<String> {
        self.trust.as_ref().and_then(Trust::remark)
    }

    /// Finds out whether the host is there and is who was meant. The connection is kept.
    pub(super) async fn probe(&self) -> Result<(), SendError> {
        let connection = self.connect().await?;
        self.keep(connection);
        Ok(())
    }

    /// Sends a request and waits for the answer. An old connection may have come to its end
    /// unnoticed: `fresh` asks for a new one.
    pub(super) async fn send(&self, request: Request<Body>, fresh: bool) -> Result<Answer, SendError> {
        let idle = if fresh { None } else { self.take().await };
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let moved = Arc::clone(&connection.moved);
        let hungry = match request.body() {
            Body::Stream { hungry, .. } => Some(Arc::clone(hungry)),
            Body::Whole(_) => None,
        };
        // What is small takes its time at the server, not on the way.
        let is_large = request.body().size_hint().exact().is_none_or(|bytes| bytes >= LARGE);
        let exchange = async {
            let response = connection.sender.send_request(request).await?;
            read(response).await
        };
        let (answer, is_whole) = self.watch(exchange, &moved, hungry.as_deref(), is_large).await?;
        // After a refusal the rest of the body may be on its way still: that connection is dropped.
        if answer.status.is_success() && is_whole {
            self.keep(connection);
        }
        Ok(answer)
    }

    /// Waits for an exchange as long as bytes move. A stream takes as long as it takes, and while
    /// it has nothing to send that is not the host's fault.
    async fn watch<T>(
        &self,
        exchange: impl Future<Output = Result<T, hyper::Error>>,
        moved: &AtomicU64,
        hungry: Option<&AtomicBool>,
        is_large: bool,
    ) -> Result<T, SendError> {
        let host = || self.peer.host.clone();
        let (start, mut since, mut seen) = (Instant::now(), Instant::now(), moved.load(Ordering::Relaxed));
        let mut exchange = pin!(exchange);
        loop {
            if let Ok(done) = timeout(LOOK, &mut exchange).await {
                return done.map_err(|source| SendError::Broken { host: host(), source });
            }
            let now = moved.load(Ordering::Relaxed);
            let is_hungry = hungry.is_some_and(|hungry| hungry.load(Ordering::Relaxed));
            if is_large {
                let look = lock(&self.pace).look(now.saturating_sub(seen), !is_hungry);
                look.map_err(|source| SendError::BelowFloor { host: host(), source })?;
            }
            if now != seen || is_hungry {
                (seen, since) = (now, Instant::now());
            }
            if since.elapsed() >= self.silence {
                return Err(SendError::Silent { host: host(), limit: self.silence });
            }
            if hungry.is_none() && start.elapsed() >= LONGEST {
                return Err(SendError::Slow { host: host() });
            }
        }
    }

    async fn connect(&self) -> Result<Connection, SendError> {
        let stream = self.peer.connect().await?;
        let moved = Arc::new(AtomicU64::new(0));
        let stream = Counted { stream, moved: Arc::clone(&moved) };
        let host = || self.peer.host.clone();
        let Some(trust) = &self.trust else { return self.speak(stream, moved).await };
        let securing = trust.connector.connect(trust.name.clone(), stream);
        let secured = timeout(self.silence, securing).await;
        let secured = secured.map_err(|_| SendError::Silent { host: host(), limit: self.silence })?;
        let secured = secured.map_err(|source| SendError::Tls { host: host(), source })?;
        self.speak(secured, moved).await
    }

    async fn speak<S>(&self, stream: S, moved: Arc<AtomicU64>) -> Result<Connection, SendError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let broken = |source| SendError::Broken { host: self.peer.host.clone(), source };
        let mut builder = http1::Builder::new();
        builder.max_buf_size(BUFFER);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let task = tokio::spawn(async move {
            let _ = connection.await; // the request that is under way gets the error
        });
        Ok(Connection { sender, task, moved })
    }

    /// A connection that is still there.
    async fn take(&self) -> Option<Connection> {
        loop {
            let mut connection = lock(&self.idle).pop()?;
            // Ready once the last byte of the last request has gone out, which its answer has
            // shown.
            if let Ok(Ok(())) = timeout(LOOK, connection.sender.ready()).await {
                return Some(connection);
            }
        }
    }

    fn keep(&self, connection: Connection) {
        lock(&self.idle).push(connection);
    }
}

/// Reads an answer, and whether that is all of it.
async fn read(response: Response<Incoming>) -> Result<(Answer, bool), hyper::Error> {
    let (parts, mut incoming) = response.into_parts();
    let mut answer = Answer { status: parts.status, headers: parts.headers, body: Vec::new() };
    while let Some(frame) = incoming.frame().await {
        let Ok(bytes) = frame?.into_data() else { continue };
        let room = ANSWER_BYTES.saturating_sub(answer.body.len());
        answer.body.extend(bytes.iter().take(room));
        if bytes.len() > room {
            return Ok((answer, false));
        }
    }
    Ok((answer, true))
}

/// A connection, and the task that drives it.
struct Connection {
    sender: SendRequest<Body>,
    task: JoinHandle<()>,
    moved: Arc<AtomicU64>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort(); // and with it what it was sending
    }
}

/// A stream that counts the bytes that the kernel took or gave.
struct Counted {
    stream: TcpStream,
    moved: Arc<AtomicU64>,
}

impl Counted {
    fn count(&self, bytes: usize) {
        self.moved.fetch_add(to_u64(bytes), Ordering::Relaxed);
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        self.count(into.filled().len().saturating_sub(before));
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(bytes)) = written {
            self.count(bytes);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
