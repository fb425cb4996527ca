//! Transactions that hold events back: what an operator is shown of them.

use std::time::Duration;

/// An open transaction that has stored events, or may have. Nobody sees them before it ends, and
/// vacuum removes nothing that died since it began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenTransaction {
    /// The store's name for it: the same in two answers means the same transaction.
    pub token: Box<str>,
    /// Who holds it open.
    pub holder: TransactionHolder,
    /// The database user; `None` where that is not known.
    pub user: Option<Box<str>>,
    /// How long it is open; `None` where we may not see that.
    pub age: Option<Duration>,
}

/// Who holds a transaction open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransactionHolder {
    /// A session.
    Session {
        /// The database's process for it.
        pid: i32,
        /// The name that the client gave itself.
        application: Option<Box<str>>,
        /// Where the client is; `None` on a local socket, too.
        client: Option<Box<str>>,
        /// What else is known; `None` where we may not see it.
        activity: Option<SessionActivity>,
    },
    /// Nobody: it was prepared for a commit in two phases and waits for the second. It outlives
    /// its session and restarts of the server.
    Prepared {
        /// The name to commit it or roll it back by.
        name: Box<str>,
    },
}

/// What a session is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionActivity {
    /// `active`, `idle in transaction` and so on, as the database calls it.
    pub state: Box<str>,
    /// For how long.
    pub state_for: Duration,
    /// Its present or last statement. The text can hold data.
    pub query: Box<str>,
}
