use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use posthaste_core::{Error, ErrorKind, Result};

/// The right to deliver from one database file. Given back when dropped, and by the operating
/// system when the process ends, however it ends.
#[derive(Debug)]
pub struct RelayLock {
    path: PathBuf,
    /// The lock is this open file's; closing it gives the lock back.
    _file: File,
}

impl RelayLock {
    /// The lock's file. It stays behind, empty; what counts is who holds it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn acquire(database: &Path) -> Result<Self> {
        // Two names of one file must lead to one lock.
        let database = database.canonicalize().unwrap_or_else(|_| database.to_owned());
        let mut name = database.into_os_string();
        name.push(".relay-lock");
        let path = PathBuf::from(name);
        let fail = |kind, message: &str| {
            Error::new(kind, "lock relay", message).with_context("path", path.display())
        };
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(
                |error| {
                    fail(ErrorKind::Config, "the lock's file cannot be opened").with_source(error)
                },
            )?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path, _file: file }),
            Err(TryLockError::WouldBlock) => Err(fail(
                ErrorKind::Conflict,
                "another relay delivers from this database; SQLite takes one at a time",
            )),
            Err(TryLockError::Error(error)) => {
                Err(fail(ErrorKind::Config, "the file system does not lock files")
                    .with_source(error))
            }
        }
    }
}
