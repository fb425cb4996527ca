//! Events in transactions of the application's own: in one, or not at all.

use posthaste_core::ErrorKind;
use posthaste_sqlite::store_events;
use sqlx::{Connection, SqliteConnection};

use crate::support::{event, outbox, pending};

#[tokio::test]
async fn events_are_refused_where_they_would_be_committed_alone() {
    let (_directory, outbox) = outbox().await;
    let url = format!("sqlite://{}", outbox.path().display());
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    let error = store_events(&mut connection, &[event()]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.to_string().contains("in no transaction"), "{error}");
    assert!(pending(&outbox).await.is_empty());
}

#[tokio::test]
async fn events_are_taken_in_a_transaction_whoever_began_it() {
    let (_directory, outbox) = outbox().await;
    let url = format!("sqlite://{}", outbox.path().display());
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    store_events(&mut transaction, &[event()]).await.unwrap();
    transaction.commit().await.unwrap();
    for (end, expected) in [("rollback", 1), ("commit", 2)] {
        sqlx::raw_sql("begin immediate").execute(&mut connection).await.unwrap();
        store_events(&mut connection, &[event()]).await.unwrap();
        sqlx::raw_sql(end).execute(&mut connection).await.unwrap();
        assert_eq!(pending(&outbox).await.len(), expected, "{end}");
    }
}
