//! What SQLite's errors mean.

use posthaste_core::{Error, ErrorKind};
use sqlx::sqlite::SqliteError;

/// An error of the domain from one of sqlx.
pub(crate) fn database(operation: &'static str, error: sqlx::Error) -> Error {
    let (kind, message) = classify(&error);
    Error::new(kind, operation, message).with_source(error)
}

/// Whether another connection stands in the way, for now.
pub(crate) fn is_busy(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(_)) && classify(error).0 == ErrorKind::Conflict
}

fn classify(error: &sqlx::Error) -> (ErrorKind, &'static str) {
    match error {
        sqlx::Error::Database(error) => {
            let code = error.try_downcast_ref::<SqliteError>().and_then(|error| {
                // The trait gives SQLite's extended result code as text.
                sqlx::error::DatabaseError::code(error)?.parse::<i32>().ok()
            });
            code.map_or((ErrorKind::Internal, "an error without a code"), |code| {
                classify_code(code, error.message())
            })
        }
        sqlx::Error::PoolTimedOut => (
            ErrorKind::Conflict,
            "no connection became free: a unit of work of this process is still open",
        ),
        sqlx::Error::PoolClosed => (ErrorKind::Unreachable, "the outbox was closed"),
        sqlx::Error::Io(_) => (ErrorKind::Unreachable, "the database file cannot be used"),
        sqlx::Error::WorkerCrashed => (ErrorKind::Unreachable, "the connection's thread ended"),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
            (ErrorKind::Schema, "a column holds what this version does not expect")
        }
        _ => (ErrorKind::Internal, "the database client failed"),
    }
}

/// Unique index or primary key violated, among the extended codes.
const CONSTRAINT_UNIQUE: i32 = 2067;
const CONSTRAINT_PRIMARY_KEY: i32 = 1555;

/// Codes of <https://www.sqlite.org/rescode.html>.
fn classify_code(extended: i32, message: &str) -> (ErrorKind, &'static str) {
    if matches!(extended, CONSTRAINT_UNIQUE | CONSTRAINT_PRIMARY_KEY) {
        return (ErrorKind::Rejected, "the event is stored already");
    }
    match extended & 0xff {
        1 if message.starts_with("no such ") || message.contains("has no column") => {
            (ErrorKind::Schema, "the outbox's tables are missing or of an unknown shape")
        }
        3 | 23 => (ErrorKind::Unauthorized, "access to the database file is denied"),
        5 | 6 => (ErrorKind::Conflict, "another connection is writing"),
        7 => (ErrorKind::Throttled, "out of memory"),
        8 => (
            ErrorKind::Unauthorized,
            "the database file or its folder is read-only; this user must be able to write both",
        ),
        10 => (ErrorKind::Unreachable, "reading or writing the database file failed"),
        11 => (
            ErrorKind::Schema,
            "the database file is damaged; stop what uses it, see with `pragma integrity_check` what is \
             wrong, then restore a backup or save what is left with `.recover` of the sqlite3 shell",
        ),
        13 => (ErrorKind::Throttled, "the disk is full"),
        14 => (
            ErrorKind::Config,
            "the database file cannot be opened or created; check the path, and that this user may \
             write the file and its folder",
        ),
        18 => (ErrorKind::TooLarge, "a value is over SQLite's limit"),
        19 => (ErrorKind::Rejected, "a constraint refused the row"),
        26 => (
            ErrorKind::Schema,
            "the file is not an SQLite database, or it is encrypted; name another one, or move it away",
        ),
        _ => (ErrorKind::Internal, "SQLite refused the statement"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use posthaste_core::ErrorStatus;

    #[test]
    fn a_busy_or_full_database_is_never_an_events_fault() {
        for code in [5, 6, 261, 517, 7, 8, 10, 13, 14, 26] {
            let (kind, _) = classify_code(code, "");
            assert_eq!(kind.status(), ErrorStatus::Unavailable, "code {code} is {kind}");
        }
    }

    #[test]
    fn a_duplicate_and_a_broken_constraint_will_not_pass() {
        for code in [2067, 1555, 275, 1299] {
            let (kind, _) = classify_code(code, "");
            assert_eq!(kind.status(), ErrorStatus::Permanent, "code {code} is {kind}");
        }
    }
}
