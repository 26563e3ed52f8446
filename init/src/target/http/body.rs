//! What is sent: a part in pieces, so that nothing of it is copied but what is on its way; or a stream of unknown length.

use core::pin::Pin;
use core::task::{Context, Poll};

use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use tokio::sync::mpsc::Receiver;

use crate::addr::to_u64;

/// TLS copies what it seals: this much at a time.
const PIECE: usize = 64 << 10;

/// A request's body.
#[derive(Debug)]
pub(super) enum Body {
    /// Bytes that are there.
    Whole(Bytes),
    /// Bytes to come; none at all are the end. A sender that goes away before that breaks the request.
    Stream(Receiver<Bytes>),
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
            Self::Stream(pieces) => pieces.poll_recv(context).map(|piece| match piece {
                Some(end) if end.is_empty() => None,
                Some(piece) => Some(Ok(Frame::data(piece))),
                None => Some(Err(GivenUp)),
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(to_u64(bytes.len())),
            Self::Stream(_) => SizeHint::new(),
        }
    }
}
