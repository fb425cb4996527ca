//! Where bytes go, and when they are safe there. Blocking: lives on the writer's thread.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The target of all lines.
pub(super) enum Sink {
    File(FileSink),
    Stream(StreamSink),
}

/// A file known by its path; opened again after any failure.
pub(super) struct FileSink {
    path: PathBuf,
    file: Option<File>,
}

/// Anything that can only be written to.
pub(super) struct StreamSink {
    output: Box<dyn Write + Send>,
    /// Standard output that is a regular file: synced after each write.
    synced: Option<File>,
    /// The last write failed and may have left part of a line.
    torn: bool,
}

impl Sink {
    pub(super) fn stdout() -> Self {
        let synced = stdout_file();
        Self::Stream(StreamSink { output: Box::new(io::stdout()), synced, torn: false })
    }

    pub(super) fn writer(output: Box<dyn Write + Send>) -> Self {
        Self::Stream(StreamSink { output, synced: None, torn: false })
    }

    pub(super) fn file(path: PathBuf) -> Self {
        Self::File(FileSink { path, file: None })
    }

    /// Whether what was written survives a crash of the machine.
    pub(super) fn is_durable(&self) -> bool {
        match self {
            Self::File(file) => !is_special(&file.path),
            Self::Stream(stream) => stream.synced.is_some(),
        }
    }

    /// Writes whole lines and makes them safe. After an error any part of them may be written.
    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.write(lines),
            Self::Stream(stream) => stream.write(lines),
        }
    }
}

impl FileSink {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        // A file that was moved away or deleted would take our events with it.
        let current = self.file.take().filter(|file| is_at(file, &self.path));
        let mut file = match current {
            Some(file) => file,
            None => open(&self.path)?,
        };
        if !lines.is_empty() {
            file.write_all(lines)?;
            sync(&file)?;
        }
        // Kept only after success: a failure opens it again, and that repairs a torn line.
        self.file = Some(file);
        Ok(())
    }
}

impl StreamSink {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        if self.torn {
            self.output.write_all(b"\n")?;
            self.torn = false;
        }
        let written = self.output.write_all(lines).and_then(|()| self.output.flush());
        self.torn = written.is_err();
        written?;
        self.synced.as_ref().map_or(Ok(()), File::sync_data)
    }
}

/// Opens or creates the file and ends a torn last line.
fn open(path: &Path) -> io::Result<File> {
    if is_special(path) {
        // For writing only: a pipe opened for reading too would never be without a reader, and
        // would swallow events that nobody reads.
        return OpenOptions::new().append(true).open(path);
    }
    let existed = path.exists();
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true);
    // Events are the application's data: nothing for other users of the machine. The process's umask can
    // take away more.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o640);
    let mut file = options.open(path)?;
    if file.seek(SeekFrom::End(0))? > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != [b'\n'] {
            tracing::warn!(path = %path.display(), "the last line was torn; it is ended here");
            file.write_all(b"\n")?;
        }
    }
    if !existed {
        sync_folder(path)?;
    }
    Ok(file)
}

/// Whether something is there that is not a regular file: a pipe or a device.
fn is_special(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file())
}

/// Pipes and devices cannot be synced and need not be.
fn sync(file: &File) -> io::Result<()> {
    if file.metadata()?.is_file() { file.sync_data() } else { Ok(()) }
}

/// Makes the entry of a new file survive a crash.
#[cfg(unix)]
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// Whether `path` still names `file`.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_at(_file: &File, path: &Path) -> bool {
    path.exists()
}

/// Standard output, where it is a regular file.
#[cfg(unix)]
fn stdout_file() -> Option<File> {
    use std::os::fd::AsFd as _;
    let file = File::from(io::stdout().as_fd().try_clone_to_owned().ok()?);
    file.metadata().is_ok_and(|metadata| metadata.is_file()).then_some(file)
}

#[cfg(not(unix))]
fn stdout_file() -> Option<File> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes `left` bytes in all, then fails.
    struct Full {
        left: usize,
        written: std::sync::Arc<std::sync::Mutex<Vec<u8>>>,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.left == 0 {
                self.left = usize::MAX;
                return Err(io::ErrorKind::StorageFull.into());
            }
            let taken = bytes.len().min(self.left);
            self.left -= taken;
            self.written.lock().unwrap().extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn after_a_torn_write_the_next_line_is_on_its_own() {
        let written = std::sync::Arc::default();
        let output = Full { left: 5, written: std::sync::Arc::clone(&written) };
        let mut sink = Sink::writer(Box::new(output));
        assert!(sink.write(b"{\"a\":1}\n").is_err());
        sink.write(b"{\"a\":1}\n").unwrap();
        sink.write(b"{\"a\":2}\n").unwrap();
        assert_eq!(*written.lock().unwrap(), b"{\"a\":\n{\"a\":1}\n{\"a\":2}\n");
    }

    #[test]
    fn a_file_ending_in_a_torn_line_is_repaired_when_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.ndjson");
        std::fs::write(&path, "{\"a\":0}\n{\"a\":").unwrap();
        let mut sink = Sink::file(path.clone());
        sink.write(b"{\"a\":1}\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"a\":0}\n{\"a\":\n{\"a\":1}\n");
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_may_read_a_file_that_is_created() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        Sink::file(path.clone()).write(b"1\n").unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o007, 0, "{mode:o}");
    }

    #[cfg(unix)]
    #[test]
    fn a_file_moved_away_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("events"), folder.path().join("events.1"));
        let mut sink = Sink::file(path.clone());
        sink.write(b"1\n").unwrap();
        std::fs::rename(&path, &old).unwrap();
        sink.write(b"2\n").unwrap();
        std::fs::remove_file(&path).unwrap();
        sink.write(b"3\n").unwrap();
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "1\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "3\n");
    }
}
