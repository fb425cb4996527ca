//! Events in transactions of the application's own: in one, or not at all.

use posthaste_core::ErrorKind;
use posthaste_postgres::store_events;
use sqlx::Connection;
use uuid::Uuid;

use crate::common::{TestDatabase, event, pending_types, run};

#[tokio::test]
async fn events_are_refused_where_they_would_be_committed_alone() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let mut connection = database.connection().await;
    let events = [event(Uuid::now_v7())];
    for refused in [
        store_events(&mut connection, &events).await,
        outbox.store_in(&mut connection, &events).await,
        store_events(&mut outbox.pool().acquire().await.unwrap(), &events).await,
    ] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Rejected);
        assert!(error.to_string().contains("in no transaction"), "{error}");
    }
    assert!(pending_types(&outbox).await.is_empty());
}

#[tokio::test]
async fn events_are_taken_in_a_transaction_whoever_began_it() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let mut connection = database.connection().await;

    let mut transaction = connection.begin().await.unwrap();
    store_events(&mut transaction, &[event(Uuid::now_v7())]).await.unwrap();
    transaction.commit().await.unwrap();

    run(&mut connection, "begin").await;
    store_events(&mut connection, &[event(Uuid::now_v7())]).await.unwrap();
    run(&mut connection, "rollback").await;
    assert_eq!(pending_types(&outbox).await.len(), 1, "the second was rolled back with its data");

    run(&mut connection, "begin").await;
    store_events(&mut connection, &[event(Uuid::now_v7())]).await.unwrap();
    run(&mut connection, "commit").await;
    assert_eq!(pending_types(&outbox).await.len(), 2);
}

#[tokio::test]
async fn a_unit_of_work_in_which_a_statement_failed_does_not_say_that_it_was_committed() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    for with_event in [false, true] {
        let mut work = outbox.begin().await.unwrap();
        let ignored = sqlx::query("select 1 / 0").execute(&mut *work.connection()).await;
        assert!(ignored.is_err());
        if with_event {
            work.add_event(event(Uuid::now_v7()));
        }
        let error = work.commit().await.unwrap_err();
        assert!(error.to_string().contains("an earlier statement"), "{error}");
    }
    assert!(pending_types(&outbox).await.is_empty());
}
