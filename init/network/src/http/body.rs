//! What is sent: a part in pieces, so that nothing of it is copied but what is on its way; or a
//! stream of unknown length.

use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll};
use std::sync::Arc;

use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use tokio::sync::mpsc::Receiver;

use base::addr::to_u64;

/// TLS copies what it seals: this much at a time.
const PIECE: usize = 64 << 10;

/// A request's body.
#[derive(Debug)]
pub(super) enum Body {
    /// Bytes that are there.
    Whole(Bytes),
    /// Bytes to come; none at all are the end. A sender that goes away before that breaks the
    /// request.
    Stream {
        /// They come here.
        pieces: Receiver<Bytes>,
        /// Whether it waits for us, not we for the host.
        hungry: Arc<AtomicBool>,
    },
}

impl Body {
    /// A stream, and where its pieces come from.
    pub(super) fn stream(pieces: Receiver<Bytes>) -> Self {
        Self::Stream { pieces, hungry: Arc::default() }
    }
}

/// The stream has no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream was given up")]
pub(super) struct GivenUp;

impl HttpBody for Body {
    type Data = Bytes;
    type Error = GivenUp;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, GivenUp>>> {
        match &mut *self {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes.split_to(bytes.len().min(PIECE)))))),
            Self::Stream { pieces, hungry } => {
                let piece = pieces.poll_recv(context);
                hungry.store(piece.is_pending(), Ordering::Relaxed);
                piece.map(|piece| match piece {
                    Some(end) if end.is_empty() => None,
                    Some(piece) => Some(Ok(Frame::data(piece))),
                    None => Some(Err(GivenUp)),
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(to_u64(bytes.len())),
            Self::Stream { .. } => SizeHint::new(),
        }
    }
}
