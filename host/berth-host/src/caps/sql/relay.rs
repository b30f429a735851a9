//! What a plugin's server may send.
//!
//! The driver makes room for a whole message as soon as it knows how long it will be, up to the 1 GiB that Postgres sends
//! in one, and only then can anybody look at it. So the connections of plugins don't lead to the server, but to a relay
//! within this process, which knows the length of every message before the driver does and counts what the server sends.
//! More than [`BUDGET`] bytes between two things that the driver says, and it cuts the connection.
//!
//! A relay has one Unix socket for one connection, which is gone once that is there. It is in a folder that is the host's
//! alone, and only this process may use it.
//!
//! TLS is between the driver and the server, so the relay can't read what is within it: it counts bytes then, and the
//! driver has made room before they come.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::run::MAX_BYTES;

/// Bytes that the server may send before it is the driver's turn again: a result at its cap, and what comes with it. Its
/// rows count there as they are sent, with what each row and each value takes beside. Beyond that there are the columns,
/// of which there are 1664 at most, with some 80 bytes each, and notices.
const BUDGET: u64 = MAX_BYTES as u64 + 1024 * 1024;
/// Bytes that a relay holds in each direction.
const BUFFER: usize = 16 * 1024;
/// How long a relay may go on once its connection is no longer used: what was said last is passed on.
const LINGER: Duration = Duration::from_secs(5);
/// How a connection begins that asks for TLS: its length, and a number that is no version (protocol, chapter 55.7).
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// The server's answer to that if it will.
const TLS_ACCEPTED: u8 = b'S';

/// Numbers of relays, as of ports: the driver names a socket after one. There are never so many at once.
static NUMBER: AtomicU16 = AtomicU16::new(0);

/// Where the server is.
#[derive(Clone)]
enum Server {
    Socket(PathBuf),
    Address(String, u16),
}

/// Makes the relays of a plugin's connections.
pub(super) struct Relays {
    folder: PathBuf,
    server: Server,
    options: PgConnectOptions,
}

/// A connection's relay. Dropped, it ends.
pub(super) struct Relay {
    cut: Arc<AtomicBool>,
    _used: DropGuard,
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("cut", &self.was_cut()).finish()
    }
}

impl Relay {
    /// Whether the server sent too much.
    pub(super) fn was_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }
}

impl Relays {
    /// To the server that the options name, by sockets in a folder that is the host's alone.
    pub(super) fn new(folder: &Path, options: PgConnectOptions) -> Self {
        let file = |folder: &Path| folder.join(format!(".s.PGSQL.{}", options.get_port()));
        let host = options.get_host();
        let server = match options.get_socket() {
            Some(folder) => Server::Socket(file(folder)),
            None if host.starts_with('/') => Server::Socket(file(Path::new(host))),
            // An address of version 6 is in brackets in a URL.
            None => Server::Address(host.trim_matches(['[', ']']).to_owned(), options.get_port()),
        };
        Self {
            folder: folder.to_owned(),
            server,
            options,
        }
    }

    /// A relay that waits for the driver, and how the driver comes to it.
    ///
    /// # Errors
    /// There can't be a socket.
    pub(super) fn open(&self) -> io::Result<(Waiting, PgConnectOptions)> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!(".s.PGSQL.{number}"));
        // Of a berth that was killed: the data folder is one berth's at a time.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        let file = SocketFile(path);
        std::fs::set_permissions(&file.0, std::fs::Permissions::from_mode(0o600))?;
        let waiting = Waiting {
            listener,
            _file: file,
            server: self.server.clone(),
        };
        // The host stays, so that a certificate is compared with it.
        Ok((waiting, self.options.clone().socket(&self.folder).port(number)))
    }
}

/// A socket's file. Dropped, it is removed.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(target: "berth::sql", %error, "a relay's socket can't be removed");
        }
    }
}

/// A relay to which nobody has come yet.
pub(super) struct Waiting {
    listener: UnixListener,
    _file: SocketFile,
    server: Server,
}

impl Waiting {
    /// Wait for the driver, connect to the server, and go on in a task.
    ///
    /// # Errors
    /// The server can't be reached.
    pub(super) async fn begin(self) -> io::Result<Relay> {
        let client = loop {
            let (client, _) = self.listener.accept().await?;
            let pid = client.peer_cred()?.pid();
            if pid.is_some_and(|pid| u32::try_from(pid) == Ok(std::process::id())) {
                break client;
            }
            tracing::warn!(target: "berth::sql", pid, "another process came to a relay, and was turned away");
        };
        let used = CancellationToken::new();
        let relay = Relay {
            cut: Arc::default(),
            _used: used.clone().drop_guard(),
        };
        let cut = Arc::clone(&relay.cut);
        match self.server {
            Server::Socket(path) => {
                let (from, to) = UnixStream::connect(path).await?.into_split();
                tokio::spawn(carry(client, from, to, cut, used));
            }
            Server::Address(host, port) => {
                let server = TcpStream::connect((host.as_str(), port)).await?;
                server.set_nodelay(true)?;
                let (from, to) = server.into_split();
                tokio::spawn(carry(client, from, to, cut, used));
            }
        }
        Ok(relay)
    }
}

/// How a relay ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// One side has closed.
    Closed,
    /// The server sent too much.
    Cut,
}

/// Pass on what both say, until one of them closes, the server sends too much, or nobody uses the connection.
async fn carry(
    mut client: UnixStream,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    cut: Arc<AtomicBool>,
    used: CancellationToken,
) {
    let meter = Meter::default();
    let (client_says, client_hears) = client.split();
    let abandoned = async {
        used.cancelled().await;
        sleep(LINGER).await;
    };
    let end = tokio::select! {
        end = up(client_says, &mut to, &meter) => end,
        end = down(&mut from, client_hears, &meter) => end,
        () = abandoned => Ok(End::Closed),
    };
    match end {
        Ok(End::Closed) => {}
        Ok(End::Cut) => {
            // Before the driver notices.
            cut.store(true, Ordering::Release);
            drop(client);
            // As long as the server's end is open, its process is there and can be ended by its number.
            used.cancelled().await;
        }
        Err(error) => tracing::debug!(target: "berth::sql", %error, "a relay broke"),
    }
}

/// What both directions of a relay know.
#[derive(Debug)]
struct Meter {
    /// Bytes that the server may still send.
    left: AtomicU64,
    /// The driver has asked for TLS, and there is no answer yet.
    asked: AtomicBool,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            left: AtomicU64::new(BUDGET),
            asked: AtomicBool::new(false),
        }
    }
}

/// From the driver to the server.
async fn up(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    meter: &Meter,
) -> io::Result<End> {
    let mut buffer = vec![0; BUFFER];
    let mut first = true;
    loop {
        let read = from.read(&mut buffer).await?;
        let said = buffer.get(..read).unwrap_or_default();
        if said.is_empty() {
            return Ok(End::Closed);
        }
        if std::mem::take(&mut first) && said == TLS_REQUEST {
            meter.asked.store(true, Ordering::Relaxed);
        }
        meter.left.store(BUDGET, Ordering::Relaxed);
        to.write_all(said).await?;
    }
}

/// From the server to the driver.
async fn down(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    meter: &Meter,
) -> io::Result<End> {
    let mut buffer = vec![0; BUFFER];
    let mut messages = Some(Messages::default());
    loop {
        let read = from.read(&mut buffer).await?;
        let said = buffer.get(..read).unwrap_or_default();
        if said.is_empty() {
            return Ok(End::Closed);
        }
        let left = meter.left.load(Ordering::Relaxed);
        let mut of_messages = said;
        if meter.asked.swap(false, Ordering::Relaxed) {
            // One byte, which is no message.
            let (answer, rest) = said.split_at(1);
            of_messages = rest;
            if answer == [TLS_ACCEPTED] {
                messages = None;
            }
        }
        let needed = match &mut messages {
            Some(messages) => messages.needed(of_messages),
            None => 0,
        };
        let read = read as u64;
        if read.saturating_add(needed) > left {
            return Ok(End::Cut);
        }
        meter.left.store(left - read, Ordering::Relaxed);
        to.write_all(said).await?;
    }
}

/// Where one message ends and the next begins.
#[derive(Debug, Default)]
struct Messages {
    /// Bytes of the message that are still to come.
    rest: u64,
    /// What there is of the next one's head: its type, and its length without the type.
    head: [u8; 5],
    known: usize,
}

impl Messages {
    /// Read on. How many more bytes it takes to end the message that these bytes have begun or gone on with.
    fn needed(&mut self, mut bytes: &[u8]) -> u64 {
        while !bytes.is_empty() {
            if self.rest > 0 {
                let passed = bytes.len().min(usize::try_from(self.rest).unwrap_or(usize::MAX));
                self.rest -= passed as u64;
                bytes = bytes.get(passed..).unwrap_or_default();
                continue;
            }
            let missing = self.head.get_mut(self.known..).unwrap_or_default();
            let taken = missing.len().min(bytes.len());
            for (to, from) in missing.iter_mut().zip(bytes) {
                *to = *from;
            }
            bytes = bytes.get(taken..).unwrap_or_default();
            self.known += taken;
            if self.known == self.head.len() {
                let [_, length @ ..] = self.head;
                // The length counts itself.
                self.rest = u64::from(u32::from_be_bytes(length)).saturating_sub(length.len() as u64);
                self.known = 0;
            }
        }
        self.rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let mut message = vec![b'D'];
        message.extend(u32::try_from(length + 4).unwrap().to_be_bytes());
        message.resize(5 + length, b'x');
        message
    }

    #[test]
    fn messages_end_where_they_do_however_they_are_cut() {
        let all: Vec<u8> = [0, 1, 300, 7].into_iter().flat_map(message).collect();
        for size in 1..all.len() {
            let mut messages = Messages::default();
            let mut needed = 0;
            for chunk in all.chunks(size) {
                needed = messages.needed(chunk);
            }
            assert_eq!((needed, messages.known), (0, 0), "{size}");
        }
        let mut messages = Messages::default();
        assert_eq!(messages.needed(&all[..3]), 0);
        assert_eq!(messages.needed(&all[3..12]), 0);
        assert_eq!(messages.needed(&all[12..16]), 300);
        assert_eq!(messages.needed(&all[16..20]), 296);
    }

    /// What comes out of the way down at its other end, and how it ended.
    async fn sent(meter: &Meter, said: &[u8]) -> (Vec<u8>, End) {
        let (mut out, to) = tokio::io::duplex(64);
        let mut heard = Vec::new();
        let (end, read) = tokio::join!(down(said, to, meter), out.read_to_end(&mut heard));
        read.unwrap();
        (heard, end.unwrap())
    }

    #[tokio::test]
    async fn message_that_is_too_long_is_not_even_begun() {
        let mut said = message(100);
        let (heard, end) = sent(&Meter::default(), &said).await;
        assert_eq!((heard.len(), end), (said.len(), End::Closed));
        said.extend(u8::to_be_bytes(b'D'));
        said.extend(u32::to_be_bytes(u32::try_from(BUDGET).unwrap()));
        let (heard, end) = sent(&Meter::default(), &said).await;
        assert_eq!((heard.len(), end), (0, End::Cut));
    }

    #[tokio::test]
    async fn many_messages_use_the_budget_up_and_the_drivers_turn_renews_it() {
        let meter = Meter::default();
        let half = message(usize::try_from(BUDGET / 2).unwrap());
        assert_eq!(sent(&meter, &half).await.1, End::Closed);
        assert_eq!(sent(&meter, &half).await.1, End::Cut);
        let mut server = Vec::new();
        assert_eq!(up(&b"S"[..], &mut server, &meter).await.unwrap(), End::Closed);
        assert_eq!(server, b"S");
        assert_eq!(sent(&meter, &half).await, (half, End::Closed));
    }

    #[tokio::test]
    async fn within_tls_bytes_are_counted() {
        for (answer, end) in [(b'S', End::Closed), (b'N', End::Cut)] {
            let meter = Meter::default();
            up(&TLS_REQUEST[..], Vec::new(), &meter).await.unwrap();
            // Read as a message, it would be too long.
            let mut said = vec![answer];
            said.extend([0xff; 100]);
            assert_eq!(sent(&meter, &said).await.1, end);
        }
        let meter = Meter::default();
        up(&TLS_REQUEST[..], Vec::new(), &meter).await.unwrap();
        let mut said = vec![b'S'];
        said.resize(usize::try_from(BUDGET).unwrap() + 1, 0xff);
        assert_eq!(sent(&meter, &said).await.1, End::Cut);
    }

    #[tokio::test]
    async fn connection_that_is_cut_stays_open_on_the_server_until_it_is_let_go() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("relay");
        std::fs::create_dir(&own).unwrap();
        let postgres = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap();
        let options = PgConnectOptions::new_without_pgpass()
            .socket(folder.path())
            .port(5432);
        let (waiting, options) = Relays::new(&own, options).open().unwrap();
        let path = options
            .get_socket()
            .unwrap()
            .join(format!(".s.PGSQL.{}", options.get_port()));
        let (relay, client, server) = tokio::join!(
            waiting.begin(),
            UnixStream::connect(path.clone()),
            postgres.accept()
        );
        let (relay, mut client, (mut server, _)) = (relay.unwrap(), client.unwrap(), server.unwrap());
        assert!(!path.exists());

        let mut byte = [0];
        client.write_all(b"Q").await.unwrap();
        server.read_exact(&mut byte).await.unwrap();
        assert_eq!((byte, relay.was_cut()), (*b"Q", false));
        server.write_all(&[b'D', 0xff, 0xff, 0xff, 0xff]).await.unwrap();
        assert_eq!(client.read(&mut byte).await.unwrap(), 0);
        assert!(relay.was_cut());
        {
            let mut read = std::pin::pin!(server.read(&mut byte));
            assert!(futures::poll!(&mut read).is_pending());
            drop(relay);
            assert_eq!(read.await.unwrap(), 0);
        }
    }
}
