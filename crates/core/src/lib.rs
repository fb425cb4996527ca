//! The domain of a transactional outbox: what an event is, when it is retried, and the contracts
//! that stores and buses keep.
//!
//! This crate knows no SQL, no broker and no runtime. Everything else depends on it, and it
//! depends on nothing of posthaste's.
//!
//! | contract | kept by |
//! |---|---|
//! | [`OutboxRepository`], [`OutboxAdmin`] | one adapter per database |
//! | [`OutboxTransaction`] (under a [`UnitOfWork`]) | one binding per database client |
//! | [`EventBus`] | one adapter per broker, or a few lines of the user's own |

mod admin;
mod bus;
mod claim;
mod error;
mod event;
mod event_builder;
mod finding;
mod headers;
mod key;
mod lease;
pub mod memory;
mod migration;
mod open_transaction;
mod pattern;
mod payload;
mod reminder;
mod repository;
mod retry;
mod shard;
mod stuck_key;
mod unit_of_work;

pub use admin::{EventFilter, EventPlace, EventState, OutboxAdmin, RelayView};
pub use bus::{BusCapabilities, EventBus, KeyPipelining, Outcomes, PublishResult};
pub use claim::Claim;
pub use error::{Error, ErrorKind, ErrorStatus, RETRY_AFTER_MAX, Result, Subject};
pub use event::{DEFAULT_MAX_RETRIES, EventRecord, OutboxEvent};
pub use event_builder::{EVENT_TYPE_CHARS_MAX, OutboxEventBuilder, check_destination};
pub use finding::{Finding, Severity};
pub use headers::{HEADER_NAME_BYTES_MAX, HEADERS_BYTES_MAX, Headers};
pub use key::{ORDER_KEY_BYTES_MAX, OrderKey};
pub use lease::{Lease, LeaseRequest, ShardLease, fair_share};
pub use migration::{Migration, MigrationStatus, OutboxMigrations};
pub use open_transaction::{OpenTransaction, SessionActivity, TransactionHolder};
pub use pattern::Pattern;
pub use payload::{JSON_CONTENT_TYPE, Payload};
pub use reminder::Reminder;
pub use repository::{
    Backlog, DeadHead, Head, HeadSelection, OpenWriter, OutboxRepository, PendingEvent,
    PendingPage, PendingQuery, PendingSelection, RepositoryCapabilities, Seq, Settlement,
    SettlementOutcome, Unsettled, Watermark,
};
pub use retry::{RetryDecision, RetryPolicy};
pub use shard::{Shard, ShardSet};
pub use stuck_key::{StuckBy, StuckKey, StuckKeyPage, StuckKeyQuery};
pub use unit_of_work::{OutboxTransaction, UnitOfWork};
