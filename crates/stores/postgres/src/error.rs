//! What a failure of the database means for the outbox.

use posthaste_core::{Error, ErrorKind};
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::server_error::ServerError;

/// Turns sqlx's error into ours. For `map_err`.
pub(crate) fn failed(operation: &'static str) -> impl Fn(sqlx::Error) -> Error {
    move |error| classify(operation, error)
}

/// Whether repeating the statement at once is likely to succeed: the other party has won.
pub(crate) fn is_conflict(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    matches!(code.as_deref(), Some("40001" | "40P01"))
}

/// The SQLSTATE that the server gave, where it was the server.
pub(crate) fn sqlstate(error: &Error) -> Option<String> {
    let source = std::error::Error::source(error)?.downcast_ref::<ServerError>()?;
    source.0.as_database_error()?.code().map(Into::into)
}

/// Whether the pool had no connection, of which it does not say why.
pub(crate) fn is_pool_timeout(error: &Error) -> bool {
    let source = std::error::Error::source(error);
    let source = source.and_then(|source| source.downcast_ref::<ServerError>());
    source.is_some_and(|source| matches!(source.0, sqlx::Error::PoolTimedOut))
}

fn classify(operation: &'static str, error: sqlx::Error) -> Error {
    let (kind, message) = match &error {
        sqlx::Error::Database(database) => classify_state(database.as_ref()),
        sqlx::Error::Io(error) if error.to_string().contains("invalid peer certificate") => (
            ErrorKind::Unreachable,
            "the server's certificate is not trusted: name its authority with sslrootcert, and the \
             host as the certificate has it"
                .into(),
        ),
        sqlx::Error::Io(_) => (ErrorKind::Unreachable, "the connection failed".into()),
        sqlx::Error::Tls(_) => (ErrorKind::Unreachable, "the TLS handshake failed".into()),
        sqlx::Error::PoolTimedOut => (
            ErrorKind::Unreachable,
            "no connection in time: the server is down, or the pool is too small".into(),
        ),
        sqlx::Error::PoolClosed => (ErrorKind::Unreachable, "the pool is closed".into()),
        sqlx::Error::Protocol(_) => {
            (ErrorKind::Unreachable, "the server answered in an unexpected way".into())
        }
        sqlx::Error::Configuration(_) => {
            (ErrorKind::Config, "the connection settings are wrong".into())
        }
        sqlx::Error::Encode(_) => (ErrorKind::Malformed, "a value has no form in SQL".into()),
        // sqlx has no kind of its own for it. It concerns the column, and so every row.
        sqlx::Error::ColumnDecode { index, source }
            if source.to_string().starts_with("mismatched types") =>
        {
            (
                ErrorKind::Schema,
                format!("column {index} of the answer has another type than expected"),
            )
        }
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
            (ErrorKind::Corrupt, "a stored value cannot be read".into())
        }
        sqlx::Error::TypeNotFound { .. } | sqlx::Error::ColumnNotFound(_) => {
            (ErrorKind::Schema, "the schema is not the expected one".into())
        }
        _ => (ErrorKind::Internal, "an unexpected failure of the database client".into()),
    };
    Error::new(kind, operation, message).with_source(ServerError(error))
}

/// By SQLSTATE (PostgreSQL, appendix A): the text of a message depends on the server's language.
fn classify_state(error: &dyn DatabaseError) -> (ErrorKind, String) {
    let code = error.code().unwrap_or_default();
    let (kind, hint) = match &*code {
        "57P05" => {
            (ErrorKind::Unreachable, "the server ended a session that was idle for too long")
        }
        "53200" => (
            ErrorKind::Throttled,
            "the server is out of memory, or of places for locks (max_locks_per_transaction)",
        ),
        "57P01" | "57P02" | "57P03" => (ErrorKind::Unreachable, "the server is restarting"),
        "57014" => (ErrorKind::Timeout, "the statement was cancelled or ran out of time"),
        // It may be on its way: renamed, restored or swapped while a relay starts.
        "3D000" => (ErrorKind::Unreachable, "this database does not exist"),
        "42501" => (
            ErrorKind::Unauthorized,
            "this user lacks a right; `posthaste migrate sql --roles` has the grants",
        ),
        "42P01" | "42703" | "42883" => {
            (ErrorKind::Schema, "the outbox is not there; run `posthaste migrate up`")
        }
        "42P05" | "26000" => (
            ErrorKind::Config,
            "a pooler mixes up prepared statements; set `transaction_pooler = true`",
        ),
        "08P01" if error.message().contains("startup parameter") => {
            (ErrorKind::Config, "a pooler refuses our settings; set `transaction_pooler = true`")
        }
        "25006" => (
            ErrorKind::Unreachable,
            "the database takes no writes: it is a standby, or default_transaction_read_only is on",
        ),
        "3F000" => (
            ErrorKind::Config,
            "no schema of the search_path exists; create it, or correct schema= in the address",
        ),
        "53300" => (ErrorKind::Throttled, "there is no connection left for this user"),
        "55P03" | "40001" | "40P01" => (ErrorKind::Conflict, "another session is in the way"),
        "25P02" => (
            ErrorKind::Rejected,
            "an earlier statement of this transaction failed, so that nothing of it is stored",
        ),
        // The code is that of a value which a check refuses; here no value of any event could pass.
        "23514" if has_no_partition(error) => (
            ErrorKind::Schema,
            "a part of outbox_events was detached; run `posthaste migrate up`, which puts it back",
        ),
        "23505" => (ErrorKind::Rejected, "the event is stored already"),
        // `allow_connections` is off, as it is while a copy is made. Told apart from other faults of
        // state by where it is met: only a server that refuses a connection is fatal to it.
        "55000" if is_fatal(error) => (ErrorKind::Unreachable, "the database takes no connections"),
        _ => match code.get(..2).unwrap_or_default() {
            "08" => (ErrorKind::Unreachable, "the connection failed"),
            "28" => (ErrorKind::Unauthorized, "the server refuses these credentials"),
            "53" => (ErrorKind::Throttled, "the server is out of room"),
            "22" | "23" => (ErrorKind::Malformed, "the database refuses a value"),
            _ => (ErrorKind::Internal, "the statement failed"),
        },
    };
    (kind, format!("{hint} (SQLSTATE {code})"))
}

/// Whether a table has no part for a row. Only the place in the server tells it from a check.
fn has_no_partition(error: &dyn DatabaseError) -> bool {
    let error = error.try_downcast_ref::<PgDatabaseError>();
    error.is_some_and(|error| error.routine() == Some("ExecFindPartition"))
}

/// Whether the server ended the connection over it.
fn is_fatal(error: &dyn DatabaseError) -> bool {
    let error = error.try_downcast_ref::<PgDatabaseError>();
    error.is_some_and(|error| matches!(error.severity(), PgSeverity::Fatal))
}
