//! A socket that minds its end.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::connection::Writes;

/// How long, and for how many bytes, a closed connection is still read, so that a client that is still sending gets
/// to read the answer instead of a reset.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 8 * 1024 * 1024;
/// What a client with prior knowledge of HTTP/2 sends first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes that are read in one go while the protocol is found out; an ordinary request's head fits.
const FIRST_READ: usize = 2 * 1024;

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// A socket that minds its end.
///
/// - When its writing side is shut down, it still reads what the client sends, for a while: closing with unread bytes
///   makes the kernel send a reset, which can overtake the answer (a 413 to a client that is still sending).
/// - A client that reads nothing for `patience` while there is something to write is cut off, or it would keep the
///   connection for ever.
/// - When the answer was cut off, it closes with a reset.
pub(super) struct Lingering {
    stream: TcpStream,
    /// What was read while the protocol was found out, and is read once more.
    first: Bytes,
    shut: bool,
    left: usize,
    timer: Option<Pin<Box<Sleep>>>,
    patience: Duration,
    stuck: Option<Pin<Box<Sleep>>>,
    reset: Arc<AtomicBool>,
    writes: Arc<Writes>,
}

impl Lingering {
    /// `patience` is how long a write may make no progress. Setting `reset` makes the socket close with a reset.
    pub(super) fn new(
        stream: TcpStream,
        patience: Duration,
        reset: Arc<AtomicBool>,
        writes: Arc<Writes>,
    ) -> Self {
        Self {
            stream,
            first: Bytes::new(),
            shut: false,
            left: LINGER_BYTES,
            timer: None,
            patience,
            stuck: None,
            reset,
            writes,
        }
    }

    /// Wait for the first bytes and say what they are the beginning of. They stay to be read.
    ///
    /// # Errors
    /// The connection failed, or ended before it was clear.
    pub(super) async fn sniff(&mut self) -> io::Result<Protocol> {
        let mut seen = BytesMut::with_capacity(FIRST_READ);
        let found = loop {
            if self.stream.read_buf(&mut seen).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let known = seen.len().min(PREFACE.len());
            if seen.get(..known) != PREFACE.get(..known) {
                break Protocol::Http1;
            }
            if known == PREFACE.len() {
                break Protocol::Http2;
            }
        };
        self.first = seen.freeze();
        Ok(found)
    }

    /// Keep the time of a write that can't go on.
    fn timed<T>(&mut self, cx: &mut Context<'_>, write: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.writes.touch();
            self.stuck = None;
            return write;
        }
        let patience = self.patience;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stuck.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed) {
            // If it can't be set, the client sees an ordinary end; there is nothing else left to do.
            let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for Lingering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let take = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first.split_to(take));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.timed(cx, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.timed(cx, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.shut {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            this.shut = true;
        }
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut scratch = [0; 4096];
        while this.left > 0 && timer.as_mut().poll(cx).is_pending() {
            let mut buf = ReadBuf::new(&mut scratch);
            // An error here is a client that is gone: nothing is left to wait for.
            if ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buf)).is_err() || buf.filled().is_empty()
            {
                break;
            }
            this.left = this.left.saturating_sub(buf.filled().len());
        }
        Poll::Ready(Ok(()))
    }
}
