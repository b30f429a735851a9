//! Reading a file whole, while others may be writing or replacing it.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;

use super::GRAIN;
use super::stamp::Stamp;

/// How often a file is read that is another one after reading than before, and how long the first pause is; each is
/// twice as long as the one before, a quarter of a second in all.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(16);

/// Why a file was not read. Its text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ReadFault {
    /// Nothing is there, or a symlink leads nowhere.
    #[error("{}: there is no such file; build it, or correct the path", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// A folder, a pipe, a device.
    #[error("{}: this is {what}, not a file; name a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is, with its article.
        what: &'static str,
    },
    /// Too large to be read into memory.
    #[error("{}: the file has {} ({size} bytes); at most {} ({max} bytes) are read", path.display(), ByteSize::b(*size), ByteSize::b(*max))]
    TooLarge {
        /// The path.
        path: PathBuf,
        /// Bytes.
        size: u64,
        /// Bytes that would have been read.
        max: u64,
    },
    /// Not ours to read.
    #[error("{}: the file may not be read ({error}); let the user that berth runs as read it and pass the folders it is in", path.display())]
    Forbidden {
        /// The path.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
    /// It was another file after reading than before, each time.
    #[error("{}: the file was changed while it was read, {TRIES} times; write it under another name and rename it when it is whole", path.display())]
    Restless {
        /// The path.
        path: PathBuf,
    },
    /// Something else.
    #[error("{}: the file can't be read: {error}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
}

/// Reads a regular file whole: the bytes that were in it at one moment, or a fault. It is the same file, with the same
/// size and times, before and after, by its descriptor and by its path; else this tries again, a few times. Nothing is read
/// of a file with more than `max` bytes.
///
/// For a blocking thread: it pauses between tries, and before a file that was changed within the last 12 ms.
///
/// # Errors
/// See [`ReadFault`].
pub fn read_whole(path: &Path, max: u64) -> Result<Vec<u8>, ReadFault> {
    let mut pause = PAUSE;
    for again in (0..TRIES).rev() {
        if let Some(bytes) = read_once(path, max)? {
            return Ok(bytes);
        }
        if again > 0 {
            std::thread::sleep(pause);
            pause *= 2;
        }
    }
    Err(ReadFault::Restless {
        path: path.to_owned(),
    })
}

/// Nothing if it was another file afterwards.
fn read_once(path: &Path, max: u64) -> Result<Option<Vec<u8>>, ReadFault> {
    match Opened::open(path, max)? {
        Some(opened) => opened.read(path),
        None => Ok(None),
    }
}

/// A file that may be read, with what it was before.
struct Opened {
    file: File,
    before: Stamp,
    size: u64,
}

impl Opened {
    /// Nothing if it is being changed all the time.
    fn open(path: &Path, max: u64) -> Result<Option<Self>, ReadFault> {
        let fault = |error| ReadFault::of(path, error);
        // Looked at before opening, because opening is an act to some devices; and after it, because it may be another
        // one.
        is_file(path, &std::fs::metadata(path).map_err(fault)?)?;
        let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path)
            .map_err(fault)?;
        let Some((before, size)) = settled(path, &file)? else {
            return Ok(None);
        };
        if size > max {
            return Err(ReadFault::TooLarge {
                path: path.to_owned(),
                size,
                max,
            });
        }
        Ok(Some(Self { file, before, size }))
    }

    /// Nothing if it is another file afterwards.
    fn read(mut self, path: &Path) -> Result<Option<Vec<u8>>, ReadFault> {
        let fault = |error| ReadFault::of(path, error);
        let mut bytes = Vec::new();
        // One more than the size, to see that it ends there.
        let most = self.size.saturating_add(1);
        usize::try_from(most)
            .map_err(io::Error::other)
            .and_then(|most| bytes.try_reserve_exact(most).map_err(io::Error::other))
            .and_then(|()| self.file.by_ref().take(most).read_to_end(&mut bytes))
            .map_err(fault)?;
        let after = Stamp::from(&self.file.metadata().map_err(fault)?);
        let same = bytes.len() as u64 == self.size && after == self.before && Stamp::of(path) == self.before;
        Ok(same.then_some(bytes))
    }
}

/// The file's stamp, from which every later change will differ, and its size; nothing if it is being changed all the
/// time. The kernel's clock ticks, and what is written twice in one tick has the same times; so this waits until the tick
/// of the last change is over. It also is when the stamp was the same for that long, whatever the file's clock says.
fn settled(path: &Path, file: &File) -> Result<Option<(Stamp, u64)>, ReadFault> {
    let mut last = None;
    for _ in 0..TRIES {
        let metadata = file.metadata().map_err(|error| ReadFault::of(path, error))?;
        is_file(path, &metadata)?;
        let stamp = Stamp::from(&metadata);
        let left = GRAIN.saturating_sub(age(&stamp));
        if left.is_zero() || last == Some(stamp) {
            return Ok(Some((stamp, metadata.len())));
        }
        last = Some(stamp);
        std::thread::sleep(left);
    }
    Ok(None)
}

/// How long ago a file was changed; no time at all for one that was changed in the future.
fn age(stamp: &Stamp) -> Duration {
    let Stamp::There { changed, .. } = stamp else {
        return Duration::MAX;
    };
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(changed.0), u32::try_from(changed.1)) else {
        return Duration::MAX;
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default()
        .saturating_sub(Duration::new(seconds, nanos))
}

fn is_file(path: &Path, metadata: &Metadata) -> Result<(), ReadFault> {
    let kind = metadata.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    Err(ReadFault::NotAFile {
        path: path.to_owned(),
        what,
    })
}

impl ReadFault {
    fn of(path: &Path, error: io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            io::ErrorKind::PermissionDenied => Self::Forbidden { path, error },
            _ => Self::Io { path, error },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::io::Write;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use rustix::fs::{CWD, Mode, mkfifoat};
    use rustix::process::Uid;

    use super::*;

    const MAX: u64 = 1 << 20;

    fn said(path: &Path) -> String {
        let fault = read_whole(path, MAX).unwrap_err().to_string();
        fault
            .strip_prefix(&format!("{}: ", path.display()))
            .unwrap()
            .to_owned()
    }

    #[test]
    fn file_is_read_whole_through_symlinks_and_under_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(OsStr::from_bytes(b"\xff\xfe.wasm"));
        let link = folder.path().join("link");
        let bytes: Vec<u8> = (0..MAX).map(|n| n as u8).collect();
        std::fs::write(&file, &bytes).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(read_whole(&file, MAX).unwrap(), bytes);
        assert_eq!(read_whole(&link, MAX).unwrap(), bytes);
        std::fs::write(&file, "").unwrap();
        assert_eq!(read_whole(&link, MAX).unwrap(), b"");
    }

    /// None of these is opened: a pipe would hang, a device may act.
    #[test]
    fn what_is_no_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let says = |what: &str| format!("this is {what}, not a file; name a regular file");
        assert_eq!(said(&pipe), says("a pipe"));
        assert_eq!(said(&socket), says("a socket"));
        assert_eq!(said(folder.path()), says("a folder"));
        assert_eq!(said(Path::new("/dev/null")), says("a device"));
    }

    #[test]
    fn missing_file_and_dangling_symlink_are_missing() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        let words = "there is no such file; build it, or correct the path";
        assert_eq!(said(&folder.path().join("none/file")), words);
        assert_eq!(said(&link), words);
    }

    #[test]
    fn too_large_file_is_refused_by_its_size() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        // Sparse, and too large to be read by mistake.
        File::create(&file).unwrap().set_len(1 << 42).unwrap();
        assert_eq!(
            said(&file),
            "the file has 4.0 TiB (4398046511104 bytes); at most 1.0 MiB (1048576 bytes) are read"
        );
        File::create(&file).unwrap().set_len(MAX + 1).unwrap();
        assert!(
            matches!(read_whole(&file, MAX), Err(ReadFault::TooLarge { size, max: MAX, .. }) if size == MAX + 1)
        );
        File::create(&file).unwrap().set_len(MAX).unwrap();
        assert_eq!(read_whole(&file, MAX).unwrap().len() as u64, MAX);
    }

    #[test]
    fn forbidden_file_is_told_as_that() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "secret").unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o000)).unwrap();
        let read = || {
            // To root nothing is forbidden; on Linux a thread can stop being root by itself.
            if rustix::process::geteuid().is_root() {
                let nobody = Uid::from_raw(65534);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            said(&file)
        };
        let words = std::thread::scope(|scope| scope.spawn(read).join().unwrap());
        assert_eq!(
            words,
            "the file may not be read (Permission denied (os error 13)); let the user that berth runs as read it and pass the folders it is in"
        );
    }

    /// What is done to a file between its opening and the last look at it.
    #[test]
    fn file_that_is_changed_while_it_is_read_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let (path, new) = (folder.path().join("file"), folder.path().join("new"));
        let read = |meanwhile: &dyn Fn()| {
            std::fs::write(&path, "first").unwrap();
            std::fs::write(&new, "other").unwrap();
            let opened = Opened::open(&path, MAX).unwrap().unwrap();
            meanwhile();
            opened.read(&path).unwrap()
        };
        assert_eq!(read(&|| {}).unwrap(), b"first");
        // As long as before, so that only the times tell it.
        assert_eq!(read(&|| std::fs::write(&path, "again").unwrap()), None);
        assert_eq!(read(&|| std::fs::write(&path, "longer text").unwrap()), None);
        assert_eq!(read(&|| std::fs::write(&path, "").unwrap()), None);
        // The descriptor shows nothing of a deletion but the number of names, and that only in its time of change.
        assert_eq!(read(&|| std::fs::rename(&new, &path).unwrap()), None);
        assert_eq!(read(&|| std::fs::rename(&path, &new).unwrap()), None);
        assert_eq!(read(&|| std::fs::remove_file(&path).unwrap()), None);
        // And nothing of a symlink that leads elsewhere.
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        std::fs::write(&path, "first").unwrap();
        let opened = Opened::open(&link, MAX).unwrap().unwrap();
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&new, &link).unwrap();
        assert_eq!(opened.read(&link).unwrap(), None);
    }

    /// A file that grows all the time is never read in part; when it rests it is read whole.
    #[test]
    fn growing_file_is_read_when_it_rests() {
        const BYTES: usize = 200;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut file = File::create(&path).unwrap();
        let resting = AtomicBool::new(false);
        let refused = std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..BYTES {
                    file.write_all(b"x").unwrap();
                    std::thread::sleep(Duration::from_millis(2));
                }
                resting.store(true, Ordering::Release);
            });
            let mut refused = 0;
            loop {
                let rested = resting.load(Ordering::Acquire);
                match read_whole(&path, MAX) {
                    Ok(bytes) if bytes.len() == BYTES => break refused,
                    // The writer was held up.
                    Ok(_) => {}
                    Err(ReadFault::Restless { .. }) => refused += 1,
                    Err(fault) => panic!("{fault}"),
                }
                assert!(!rested, "it rests, and is not read");
            }
        });
        eprintln!("refused {refused} times while it grew");
    }

    /// The number of tries has an end, if the changes have none.
    #[test]
    fn file_that_never_rests_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "begins").unwrap();
        let over = AtomicBool::new(false);
        let fault = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut file = File::options().append(true).open(&path).unwrap();
                while !over.load(Ordering::Relaxed) {
                    file.write_all(b"x").unwrap();
                }
            });
            // Before the writer begins, and where it is held up for long, the file is read.
            let deadline = Instant::now() + Duration::from_secs(20);
            let mut fault = None;
            while fault.is_none() && Instant::now() < deadline {
                fault = read_whole(&path, u64::MAX).err();
            }
            over.store(true, Ordering::Relaxed);
            fault
        });
        assert!(matches!(fault, Some(ReadFault::Restless { .. })), "{fault:?}");
    }

    /// The bytes are those of one moment, whichever file the path led to.
    #[test]
    fn replaced_file_is_read_as_one_of_both() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let whole = |byte: u8| vec![byte; 100_000];
        std::fs::write(&path, whole(0)).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let new = folder.path().join("new");
                for byte in (0..=u8::MAX).cycle() {
                    std::fs::write(&new, whole(byte)).unwrap();
                    std::fs::rename(&new, &path).unwrap();
                    std::thread::sleep(Duration::from_millis(15));
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            let mut read = 0;
            for _ in 0..20 {
                if let Ok(bytes) = read_whole(&path, MAX) {
                    assert_eq!(bytes, whole(bytes[0]));
                    read += 1;
                }
            }
            over.store(true, Ordering::Relaxed);
            eprintln!("read {read} of 20 times");
        });
    }
}
