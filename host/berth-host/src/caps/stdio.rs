//! A guest's standard output and standard error: one log line per line, at `info` and `warn`.
//!
//! Lines count against the same bound as `berth:host/log`. A last line without an end is written when the store is
//! dropped.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use tracing::level_filters::LevelFilter;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use super::bindings::berth::host::log::Level;
use super::log::{emit, heard};
use crate::runtime::instance::CurrentOrigin;

/// The longest line; the rest of a longer one is dropped.
const MAX_LINE: usize = 4 * 1024;
/// What a guest may write in one go.
const PERMIT: usize = 64 * 1024;

/// One of the two streams of a store.
pub struct GuestOutput {
    current: Arc<CurrentOrigin>,
    level: Level,
    /// Whether the plugin's `log` setting lets this level through.
    is_heard: bool,
}

impl GuestOutput {
    /// Standard output, of a plugin that is heard up to `log`.
    pub fn stdout(current: &Arc<CurrentOrigin>, log: LevelFilter) -> Self {
        Self::new(current, Level::Info, log)
    }

    /// Standard error.
    pub fn stderr(current: &Arc<CurrentOrigin>, log: LevelFilter) -> Self {
        Self::new(current, Level::Warn, log)
    }

    fn new(current: &Arc<CurrentOrigin>, level: Level, log: LevelFilter) -> Self {
        Self {
            current: Arc::clone(current),
            level,
            is_heard: heard(level) <= log,
        }
    }

    fn lines(&self) -> Lines {
        Lines {
            current: Arc::clone(&self.current),
            level: self.level,
            is_heard: self.is_heard,
            rest: Vec::new(),
        }
    }
}

impl IsTerminal for GuestOutput {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestOutput {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.lines())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.lines())
    }
}

/// Cuts what is written into lines.
struct Lines {
    current: Arc<CurrentOrigin>,
    level: Level,
    is_heard: bool,
    rest: Vec<u8>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) {
        if !self.is_heard {
            return;
        }
        for part in bytes.split_inclusive(|&b| b == b'\n') {
            let room = MAX_LINE.saturating_sub(self.rest.len());
            self.rest.extend_from_slice(part.get(..room).unwrap_or(part));
            if part.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.rest);
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if !text.is_empty() {
            let origin = self.current.get();
            if origin.take_line() {
                emit(&origin, self.level, text, &[]);
            }
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.end_line();
    }
}

impl OutputStream for Lines {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.push(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PERMIT)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Lines {
    async fn ready(&mut self) {}
}

impl AsyncWrite for Lines {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.push(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
