use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use posthaste_core::{Error, ErrorKind, Result};

use crate::database_file::{identity, identity_of};

const OPERATION: &str = "claim outbox";

/// The right to deliver from one database file. Given back when dropped, and by the operating
/// system when the process ends, however it ends.
///
/// Not a lock on the database file itself: on some systems that would be in the way of SQLite's own
/// locks, and closing such a file would end them.
#[derive(Debug)]
pub(crate) struct RelayLock {
    path: PathBuf,
    /// The lock is this open file's; closing it gives the lock back.
    file: Mutex<File>,
}

impl RelayLock {
    /// # Errors
    /// [`ErrorKind::Conflict`] where another relay has it.
    pub(crate) fn acquire(database: &Path) -> Result<Self> {
        // Two names of one file must lead to one lock.
        let database = database.canonicalize().unwrap_or_else(|_| database.to_owned());
        let mut name = database.into_os_string();
        name.push(".relay-lock");
        let path = PathBuf::from(name);
        let file = locked(&path)?;
        Ok(Self { path, file: Mutex::new(file) })
    }

    /// That nobody removed the lock's file, after which others could take the right as well. A removed
    /// one is made anew; returns whether it had to be.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] where another relay was faster.
    pub(crate) fn confirm(&self) -> Result<bool> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if is_at(&file, &self.path) {
            return Ok(false);
        }
        *file = locked(&self.path)?;
        tracing::warn!(
            path = %self.path.display(),
            "somebody removed the file that keeps other relays away; it is made anew: leave it alone"
        );
        Ok(true)
    }
}

fn locked(path: &Path) -> Result<File> {
    let fail = |kind, message: &str| {
        Error::new(kind, OPERATION, message).with_context("path", path.display())
    };
    loop {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, crate::options::FILE_MODE);
        let file = options.open(path).map_err(|error| {
            let message = "the lock's file cannot be opened; the relay's user must be able to write \
                           it and its folder";
            fail(ErrorKind::Config, message).with_source(error)
        })?;
        match file.try_lock() {
            // Of a file that was removed before it was locked, the lock is worth nothing.
            Ok(()) if !is_at(&file, path) => {}
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                return Err(fail(
                    ErrorKind::Conflict,
                    "another relay delivers from this database, and SQLite takes one at a time; \
                     stop that one first",
                ));
            }
            Err(TryLockError::Error(error)) => {
                return Err(fail(
                    ErrorKind::Config,
                    "the file system does not lock files; put the database on a local disk",
                )
                .with_source(error));
            }
        }
    }
}

/// Whether a file still has its name.
fn is_at(file: &File, path: &Path) -> bool {
    let open = file.metadata().map(|metadata| identity_of(&metadata));
    matches!((open, identity(path)), (Ok(open), Ok(named)) if open == named)
}
