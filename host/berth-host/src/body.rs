//! Bodies: the answer's, and the request's on its way into a guest.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::channel::oneshot;
use futures::stream::{BoxStream, StreamExt};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::task::unconstrained;
use tokio::time::Sleep;
use wasmtime_wasi_http::{Error as WasiError, WasiBody};

use crate::dispatch::concurrent::Seat;
use crate::error::{Error, Fault, Trap};
use crate::headers::without_forbidden_trailers;
use crate::listen::StreamGuard;
use crate::runtime::plugin::Version;
use crate::serve::Record;

/// Frames that are taken from a body before its reader asks for them.
const MAX_AHEAD: usize = 4;

/// An answer's body could not be finished; hyper aborts the connection, so that the caller sees a broken body.
#[derive(Debug, thiserror::Error)]
#[error("the response body was cut off: {0}")]
pub struct Truncated(&'static str);

/// The body of an answer: bytes at hand, or a stream that a guest is still writing.
#[derive(Debug)]
pub struct ReplyBody {
    inner: Inner,
    /// The HTTP/2 stream that it goes out on is open as long as this is here.
    stream: Option<StreamGuard>,
}

enum Inner {
    Full(Option<Bytes>),
    Guest(Box<GuestBody>),
    Live(BoxStream<'static, Bytes>),
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full(bytes) => f.debug_tuple("Full").field(bytes).finish(),
            Self::Guest(body) => f.debug_tuple("Guest").field(body).finish(),
            Self::Live(_) => f.write_str("Live"),
        }
    }
}

impl ReplyBody {
    fn new(inner: Inner) -> Self {
        Self { inner, stream: None }
    }

    /// Keep the mark of the stream that it goes out on.
    pub(crate) fn hold(&mut self, stream: StreamGuard) {
        self.stream = Some(stream);
    }

    /// No bytes at all.
    pub fn empty() -> Self {
        Self::new(Inner::Full(None))
    }

    /// These bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::new(Inner::Full((!bytes.is_empty()).then_some(bytes)))
    }

    /// A guest's stream.
    pub fn guest(body: GuestBody) -> Self {
        Self::new(Inner::Guest(Box::new(body)))
    }

    /// Bytes as they come, of the host itself.
    pub fn live(stream: BoxStream<'static, Bytes>) -> Self {
        Self::new(Inner::Live(stream))
    }

    /// Let the log line of the request wait for the end of the stream. Returned when there is nothing to wait for.
    pub fn attach(&mut self, record: Record) -> Option<Record> {
        match &mut self.inner {
            Inner::Full(_) | Inner::Live(_) => Some(record),
            // A body without bytes: hyper won't ask for its end.
            Inner::Guest(body) if body.is_at_end() => {
                body.stream.lock().ends(End::Complete);
                Some(record)
            }
            Inner::Guest(body) => {
                body.record = Some(record);
                None
            }
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Truncated;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Truncated>>> {
        let this = self.get_mut();
        if let Some(stream) = &this.stream {
            stream.moved();
        }
        match &mut this.inner {
            Inner::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Inner::Guest(body) => body.poll_frame(cx),
            Inner::Live(stream) => stream
                .poll_next_unpin(cx)
                .map(|next| next.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Full(bytes) => bytes.is_none(),
            Inner::Guest(body) => body.is_at_end(),
            Inner::Live(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Inner::Guest(body) => body.size.map_or_else(SizeHint::default, SizeHint::with_exact),
            Inner::Live(_) => SizeHint::default(),
        }
    }
}

/// What the two ends of a guest's response body share: the connection that reads it, and the driver that runs the
/// guest. A body that ends because its guest died must not look finished: the driver calls [`Stream::die`] *before*
/// it drops the store, and an end of file after that is an error.
#[derive(Debug, Default)]
pub struct Stream {
    inner: Mutex<StreamInner>,
    /// Milliseconds since the driver's start at which the body last moved, in either direction.
    moved: AtomicU64,
}

#[derive(Default)]
struct StreamInner {
    body: Option<WasiBody>,
    /// Bytes of its `Content-Length` that haven't come yet; nothing if it promised none.
    left: Option<u64>,
    /// Frames that were ready when the guest died: they were written by it and are sent.
    kept: VecDeque<Frame<Bytes>>,
    end: End,
    upload: Upload,
    /// The end came from the body itself; nobody has reported it yet.
    untold: bool,
    /// The reader, while it waits for a frame.
    waker: Option<Waker>,
    /// The driver, while it waits for the end.
    driver: Option<Waker>,
}

/// How the request's own body came in, as far as that is an excuse for a guest.
#[derive(Clone, Copy, Debug, Default)]
enum Upload {
    #[default]
    Fine,
    /// The client left, or broke its framing.
    Broken,
    /// Nothing came for so long.
    Stalled(Duration),
}

#[derive(Debug, Default)]
enum End {
    /// The guest lives, or has ended well.
    #[default]
    Open,
    /// Finished by the guest.
    Complete,
    /// The guest died before the body was finished.
    Died(Fault),
}

impl std::fmt::Debug for StreamInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamInner")
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl Stream {
    fn lock(&self) -> MutexGuard<'_, StreamInner> {
        // A panic while the lock is held leaves at worst an unfinished body, which reads as one.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Note that bytes moved.
    pub fn touch(&self, since: Instant) {
        self.moved.store(
            u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }

    /// How long ago bytes last moved.
    pub fn idle(&self, since: Instant) -> Duration {
        since
            .elapsed()
            .saturating_sub(Duration::from_millis(self.moved.load(Ordering::Relaxed)))
    }

    /// The body that came with the response head, and how many bytes of it the head promised.
    pub fn attach(&self, body: WasiBody, promised: Option<u64>) {
        let mut inner = self.lock();
        inner.body = Some(body);
        inner.left = promised;
    }

    fn upload(&self, how: Upload) {
        self.lock().upload = how;
    }

    /// Whose fault a guest's failure is: one whose client broke off its upload is not to blame.
    pub fn blame(&self, error: Error) -> Error {
        match (self.lock().upload, error) {
            (Upload::Broken, Error::Guest(fault)) if !fault.trap.is_blameless() => {
                Error::Guest(Fault::new(Trap::ClientGone, fault.cause))
            }
            (Upload::Stalled(after), Error::Guest(fault))
                if matches!(fault.trap, Trap::Refused | Trap::NoResponse) =>
            {
                Error::BodyTimeout { after }
            }
            (_, error) => error,
        }
    }

    /// Whether the body was read to the end that the guest gave it.
    pub fn is_complete(&self) -> bool {
        matches!(self.lock().end, End::Complete)
    }

    /// Whether its guest died, or nobody reads it any more.
    pub fn is_dead(&self) -> bool {
        matches!(self.lock().end, End::Died(_))
    }

    /// Wait until the guest has died. Only as long as nobody reads the body.
    pub async fn death(&self) -> Fault {
        poll_fn(|cx| {
            let mut inner = self.lock();
            if let End::Died(fault) = &inner.end {
                return Poll::Ready(fault.clone());
            }
            inner.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// The guest has died. What it had written so far is kept; a body it had finished stands.
    ///
    /// Called while the store is still alive: an end of file is then one that the guest meant.
    pub fn die(&self, fault: Fault) {
        self.end_with(|| fault);
    }

    /// The guest has returned, and nothing can be written any more. A body that it left open is not a finished one.
    ///
    /// # Errors
    /// Why the body is not whole, unless its reader has found out already and said so.
    pub fn settle(&self) -> Result<(), Fault> {
        let left_open = || {
            Fault::new(
                Trap::Refused,
                "the handler returned without finishing its response body",
            )
        };
        self.end_with(left_open).map_or(Ok(()), Err)
    }

    /// Wait for the end of the body. A few frames are taken on the way, so that a short body is whole in one go; then
    /// it is the reader's to find the end.
    pub fn poll_end(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if matches!(inner.end, End::Open) && inner.kept.len() < MAX_AHEAD {
            // What is taken here the reader finds in `kept`.
            if let Poll::Ready(fault) = inner.take_all(cx, MAX_AHEAD) {
                inner.untold = fault.is_some();
                inner.finish(fault);
                return Poll::Ready(());
            }
        }
        if !matches!(inner.end, End::Open) {
            return Poll::Ready(());
        }
        inner.driver = Some(cx.waker().clone());
        inner.wake_reader();
        Poll::Pending
    }

    /// Take what is there of a body whose end nobody has seen yet. If its end isn't there, it ends with this fault; if
    /// it ends with a fault of its own, with that. Returns the fault.
    fn end_with(&self, fault: impl FnOnce() -> Fault) -> Option<Fault> {
        let mut inner = self.lock();
        let untold = std::mem::take(&mut inner.untold);
        match &inner.end {
            End::Open => {}
            End::Died(fault) if untold => return Some(fault.clone()),
            End::Died(_) | End::Complete => return None,
        }
        // Without tokio's budget: a task that has used it up would find every channel empty, and a whole body open.
        let all = pin!(unconstrained(poll_fn(|cx| inner.take_all(cx, usize::MAX))));
        let found = match all.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(found) => found,
            Poll::Pending => Some(fault()),
        };
        inner.finish(found.clone());
        found
    }
}

/// The reading end of a guest's response body.
#[derive(Debug)]
pub struct GuestBody {
    stream: Arc<Stream>,
    since: Instant,
    size: Option<u64>,
    read: u64,
    /// Dropped with the body: the driver then knows that nobody reads any more.
    _reader: oneshot::Sender<()>,
    finished: bool,
    record: Option<Record>,
    /// Of a request that shares its instance with others.
    seat: Option<(Seat, Duration)>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl GuestBody {
    /// Keep the seat of a request that shares its instance with others. Nobody watches over such a body, so it fails by
    /// itself when nothing comes for `patience`.
    pub fn sit(&mut self, seat: Seat, patience: Duration) {
        self.seat = Some((seat, patience));
    }

    /// Read the body that was attached to a stream. `size` is the `Content-Length` that the guest gave. The receiver
    /// resolves when the reader is gone.
    pub fn new(stream: Arc<Stream>, since: Instant, size: Option<u64>) -> (Self, oneshot::Receiver<()>) {
        let (reader, gone) = oneshot::channel();
        (
            Self {
                stream,
                since,
                size,
                read: 0,
                _reader: reader,
                finished: false,
                record: None,
                seat: None,
                timer: None,
            },
            gone,
        )
    }

    /// Read to the end, or to `bytes`, and let nobody see it: the body of an answer that has none (`HEAD`, 204, 304).
    /// Dropping it instead would fail the guest's writes.
    pub async fn drain(mut self, bytes: usize) {
        let mut read = 0;
        while let Some(Ok(frame)) = poll_fn(|cx| self.poll_frame(cx)).await {
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > bytes {
                return;
            }
        }
    }

    /// Nothing is left to send: the guest's end of file, all of its `Content-Length`, or its trailers. hyper doesn't
    /// ask for more after the latter two.
    fn is_at_end(&self) -> bool {
        self.finished || self.size == Some(self.read)
    }

    /// The line is written now, not when hyper lets go of the body.
    fn finish(&mut self) {
        self.finished = true;
        self.record = None;
        self.seat = None;
    }

    /// Nothing has come. Fails the stream when that has been so for too long.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let Some((_, patience)) = &self.seat else {
            return Poll::Pending;
        };
        let patience = *patience;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(timer.as_mut().poll(cx));
        let text = format!(
            "the response body made no progress after {} ms",
            patience.as_millis()
        );
        let fault = Fault::new(Trap::Wall, text);
        self.stream.die(fault.clone());
        Poll::Ready(Some(Err(fault)))
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Truncated>>> {
        if self.finished {
            return Poll::Ready(None);
        }
        let (mut polled, mut untold) = {
            let mut inner = self.stream.lock();
            let polled = inner.poll(cx);
            (polled, std::mem::take(&mut inner.untold))
        };
        if polled.is_pending() {
            polled = self.wait(cx);
            untold = polled.is_ready();
        } else {
            self.timer = None;
        }
        let result = ready!(polled);
        self.stream.touch(self.since);
        match &result {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                self.read += bytes as u64;
                if let Some(record) = &mut self.record {
                    record.sent(bytes);
                }
                if frame.is_trailers() || self.size == Some(self.read) {
                    self.stream.lock().ends(End::Complete);
                    self.complete();
                }
            }
            Some(Err(fault)) => {
                if let Some(record) = &mut self.record {
                    record.cut(fault, untold);
                }
                self.finish();
            }
            None => self.complete(),
        }
        Poll::Ready(result.map(|r| r.map_err(|fault| Truncated(fault.trap.label()))))
    }

    fn complete(&mut self) {
        if let Some(record) = &mut self.record {
            record.complete();
        }
        self.finish();
    }
}

impl StreamInner {
    /// Move frames to `kept` until the end, the fault, or `most` of them are there.
    fn take_all(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<Option<Fault>> {
        while self.left != Some(0) {
            if self.kept.len() >= most {
                return Poll::Pending;
            }
            match ready!(self.next(cx)) {
                Some(Ok(frame)) => self.kept.push_back(frame),
                Some(Err(fault)) => return Poll::Ready(Some(fault)),
                None if self.body.is_some() => break,
                None => return Poll::Pending,
            }
        }
        Poll::Ready(None)
    }

    fn finish(&mut self, fault: Option<Fault>) {
        self.end = fault.map_or(End::Complete, End::Died);
        self.body = None;
        self.wake_reader();
    }

    fn wake_reader(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The reader has come to the end; a driver that waits for that may go on.
    fn ends(&mut self, end: End) {
        self.end = end;
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        if let Some(frame) = self.kept.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        match (&self.end, &mut self.body) {
            (End::Died(fault), _) => Poll::Ready(Some(Err(fault.clone()))),
            (End::Complete, _) | (End::Open, None) => Poll::Ready(None),
            (End::Open, Some(_)) => match self.next(cx) {
                Poll::Pending => {
                    if !self.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                        self.waker = Some(cx.waker().clone());
                    }
                    Poll::Pending
                }
                Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(frame))),
                Poll::Ready(Some(Err(fault))) => {
                    self.ends(End::Died(fault.clone()));
                    self.untold = true;
                    Poll::Ready(Some(Err(fault)))
                }
                Poll::Ready(None) => {
                    self.ends(End::Complete);
                    Poll::Ready(None)
                }
            },
        }
    }

    /// The body's next frame. One that is longer or shorter than promised is faulty.
    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let length = |what| {
            Fault::new(
                Trap::Refused,
                format!("the response body is {what} than its Content-Length"),
            )
        };
        Poll::Ready(match ready!(Pin::new(body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
                match self.left.map(|left| left.checked_sub(bytes)) {
                    Some(None) => Some(Err(length("longer"))),
                    left => {
                        self.left = left.flatten();
                        Some(Ok(frame))
                    }
                }
            }
            Some(Err(error)) => {
                let trap = match self.upload {
                    Upload::Fine => Trap::Refused,
                    Upload::Broken | Upload::Stalled(_) => Trap::ClientGone,
                };
                let cause = format!("the guest gave up its response body: {error}");
                Some(Err(Fault::new(trap, cause)))
            }
            None if self.left.is_some_and(|left| left > 0) => Some(Err(length("shorter"))),
            None => None,
        })
    }
}

/// A request's body on its way into a guest: counts as progress, and fails when nothing comes for too long.
pub struct RequestBody {
    body: Incoming,
    version: Arc<Version>,
    stream: Arc<Stream>,
    since: Instant,
    patience: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    /// For a guest of this version. `patience` is how long the client may send nothing while the guest waits for it.
    pub fn new(
        body: Incoming,
        version: Arc<Version>,
        stream: Arc<Stream>,
        since: Instant,
        patience: Duration,
    ) -> Self {
        Self {
            body,
            version,
            stream,
            since,
            patience,
            timer: None,
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = WasiError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WasiError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                this.timer = None;
                this.stream.touch(this.since);
                match &frame {
                    Some(Ok(frame)) => {
                        let bytes = frame.data_ref().map_or(0, Bytes::len);
                        this.version.metrics.received(bytes);
                    }
                    Some(Err(_)) => this.stream.upload(Upload::Broken),
                    None => {}
                }
                Poll::Ready(frame.map(|f| f.map(without_forbidden_trailers).map_err(WasiError::Hyper)))
            }
            Poll::Pending => {
                let patience = this.patience;
                let timer = this
                    .timer
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
                ready!(timer.as_mut().poll(cx));
                this.stream.upload(Upload::Stalled(patience));
                Poll::Ready(Some(Err(WasiError::ConnectionReadTimeout)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;
    use http_body_util::BodyExt;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;

    /// What a 0.2 guest's body is: a channel.
    struct Written(UnboundedReceiver<Bytes>);

    impl Body for Written {
        type Data = Bytes;
        type Error = WasiError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, WasiError>>> {
            self.0
                .poll_recv(cx)
                .map(|bytes| bytes.map(|b| Ok(Frame::data(b))))
        }
    }

    fn stream(pieces: &[&'static str], promised: Option<u64>, is_closed: bool) -> Stream {
        let (sender, receiver) = unbounded_channel();
        for piece in pieces {
            sender.send(Bytes::from_static(piece.as_bytes())).unwrap();
        }
        if !is_closed {
            std::mem::forget(sender);
        }
        let stream = Stream::default();
        stream.attach(Written(receiver).boxed_unsync(), promised);
        stream
    }

    #[test]
    fn body_settles_as_its_guest_left_it() {
        let settled = |pieces, promised, is_closed| {
            let settled = stream(pieces, promised, is_closed).settle();
            settled.map_err(|fault| fault.cause)
        };
        assert_eq!(settled(&["one", "two"], None, true), Ok(()));
        assert_eq!(settled(&[], None, true), Ok(()));
        assert_eq!(
            settled(&["one"], Some(3), false),
            Ok(()),
            "all that was promised is there"
        );
        let open = Err("the handler returned without finishing its response body".to_owned());
        assert_eq!(settled(&["one"], None, false), open);
        assert_eq!(settled(&["one"], Some(4), false), open);
        let length = |what| Err(format!("the response body is {what} than its Content-Length"));
        assert_eq!(settled(&["one"], Some(4), true), length("shorter"));
        assert_eq!(settled(&["one", "two"], Some(4), true), length("longer"));
    }

    #[tokio::test]
    async fn whole_body_is_whole_for_a_task_without_budget() {
        let (sender, mut receiver) = unbounded_channel();
        for _ in 0..1_000 {
            sender.send(()).unwrap();
        }
        while poll!(Box::pin(receiver.recv())).is_ready() {}
        assert!(
            !receiver.is_empty(),
            "tokio's budget is used up, the channel isn't empty"
        );
        let whole = stream(&["one"], None, true);
        assert!(whole.settle().is_ok());
        let whole = stream(&["one"], None, true);
        whole.die(Fault::new(Trap::Unreachable, "a panic afterwards"));
        assert!(whole.is_complete());
    }
}
