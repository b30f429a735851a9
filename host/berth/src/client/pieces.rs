//! A request's body in pieces, so that somebody can watch it go.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// Bytes of a piece.
const PIECE: usize = 128 * 1024;

/// How many bytes of a body are on their way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent(Arc<AtomicUsize>);

impl Sent {
    /// So far.
    pub(crate) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The body.
#[derive(Debug)]
pub(super) struct Pieces {
    rest: Bytes,
    sent: Sent,
}

impl Pieces {
    pub(super) fn new(bytes: Bytes, sent: &Sent) -> Self {
        Self {
            rest: bytes,
            sent: sent.clone(),
        }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(length);
        self.sent.0.fetch_add(length, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    /// Known, so it is sent with its length and not in chunks.
    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn every_byte_is_sent_once_and_counted() {
        let bytes: Bytes = (0..PIECE * 2 + 1).map(|n| (n % 251) as u8).collect();
        let sent = Sent::default();
        let mut body = Pieces::new(bytes.clone(), &sent);
        assert_eq!(body.size_hint().exact(), Some(bytes.len() as u64));
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!((first.len(), sent.bytes()), (PIECE, PIECE));
        let rest = body.collect().await.unwrap().to_bytes();
        assert_eq!([first, rest].concat(), bytes);
        assert_eq!(sent.bytes(), bytes.len());
        assert!(Pieces::new(Bytes::new(), &sent).is_end_stream());
    }
}
