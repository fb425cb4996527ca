//! What the server said, for people.

use std::error::Error;
use std::fmt;

use sqlx::postgres::PgDatabaseError;

/// The server's message with its detail and hint. Without the line of the server's own source that
/// raised it, which the driver's text has and readers take for one of theirs.
#[derive(Debug)]
pub(crate) struct ServerError(pub(crate) sqlx::Error);

/// Not-null and check violations: their detail is the whole row, and with it the event's data.
const DETAIL_IS_THE_ROW: [&str; 2] = ["23502", "23514"];

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(said) = self.said() else { return write!(f, "{}", self.0) };
        f.write_str(said.message())?;
        if let Some(detail) = said.detail().filter(|_| !DETAIL_IS_THE_ROW.contains(&said.code())) {
            write!(f, "; {detail}")?;
        }
        if let Some(hint) = said.hint() {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl ServerError {
    fn said(&self) -> Option<&PgDatabaseError> {
        self.0.as_database_error()?.try_downcast_ref()
    }
}

// Without a source: its text is the driver's.
impl Error for ServerError {}
