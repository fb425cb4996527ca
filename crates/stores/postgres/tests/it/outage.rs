//! Servers that are down, wrong, standing by or crashing.

use std::time::Duration;

use posthaste_core::{ErrorKind, ErrorStatus, OutboxMigrations, OutboxRepository};
use posthaste_postgres::{PostgresOptions, PostgresOutbox};
use posthaste_testkit::servers::{PostgresServer, free_port};
use uuid::Uuid;

use crate::common::{
    TestDatabase, delivered, event, everything, insert, pending, pending_types, run,
};

async fn connect(url: String) -> posthaste_core::Result<PostgresOutbox> {
    PostgresOutbox::connect(&PostgresOptions::from_url(url)).await
}

#[tokio::test]
async fn each_way_not_to_reach_a_database_has_its_kind_and_shows_no_password() {
    let Some(database) = TestDatabase::create().await else { return };
    let impatient = |url: String| PostgresOptions {
        connect_timeout: Duration::from_millis(300),
        ..PostgresOptions::from_url(url)
    };
    let closed = format!("postgres://root:s3cret@127.0.0.1:{}/test", free_port());
    let absent = database.url().replace(&database.name, "no_such_database");
    for (url, kind, words) in [
        (closed, ErrorKind::Unreachable, "database=127.0.0.1:"),
        (absent, ErrorKind::Unreachable, "does not exist"),
        ("http://localhost".into(), ErrorKind::Config, "postgres://"),
    ] {
        let error = PostgresOutbox::connect(&impatient(url)).await.unwrap_err();
        let report = error.report();
        assert_eq!(error.kind(), kind, "{report}");
        assert_eq!(error.status(), ErrorStatus::Unavailable, "an outage is no event's fault");
        assert!(report.contains(words), "{report}");
        assert!(!report.contains("s3cret"), "{report}");
    }
}

#[tokio::test]
async fn a_user_without_rights_and_a_wrong_password_are_unauthorized() {
    let Some(server) = PostgresServer::start(&[]).await else { return };
    let outbox = connect(server.url("postgres")).await.unwrap();
    outbox.migrate().await.unwrap();
    let mut admin = outbox.pool().acquire().await.unwrap();
    run(&mut admin, "create role nobody login").await;
    drop(admin);
    let url = server.url("postgres").replace("root@", "nobody@");
    let nobody = connect(url).await.unwrap();
    let error = nobody.backlog(0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{}", error.report());
    let url = server.url("postgres").replace("root@", "ghost@");
    let error = connect(url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{}", error.report());
}

#[tokio::test]
async fn a_prepared_transaction_is_never_lost_from_sight() {
    let Some(mut server) = PostgresServer::start(&["max_prepared_transactions=5"]).await else {
        return;
    };
    let database = TestDatabase::create_at(&server.url("postgres")).await;
    let outbox = database.outbox().await;
    let mut writer = database.connection().await;
    run(&mut writer, &format!("begin; {}", insert("prepared"))).await;
    let open = outbox.watermark().await.unwrap();
    run(&mut writer, "prepare transaction 'x'").await;
    let prepared = outbox.watermark().await.unwrap();
    assert_eq!((prepared.high, &prepared.writers), (1, &open.writers), "under the same name");

    drop(writer);
    server.restart().await;
    let outbox = PostgresOutbox::connect(&database.options()).await.unwrap();
    let restarted = outbox.watermark().await.unwrap();
    assert!(restarted.high >= 1);
    assert_eq!(restarted.writers.len(), 1, "it outlives a crash");
    assert_ne!(
        restarted.incarnation, prepared.incarnation,
        "so relays are told to read from the start"
    );

    database.run("commit prepared 'x'").await;
    let over = outbox.watermark().await.unwrap();
    assert_eq!(over.writers, []);
    assert_ne!(over.incarnation, restarted.incarnation, "and once more when it ends");
    assert_eq!(pending_types(&outbox).await, ["prepared"]);
}

#[tokio::test]
async fn a_standby_is_refused_and_once_promoted_makes_relays_read_from_the_start() {
    let Some(server) = PostgresServer::start(&["wal_level=replica", "max_wal_senders=4"]).await
    else {
        return;
    };
    let primary = connect(server.url("postgres")).await.unwrap();
    primary.migrate().await.unwrap();
    let standby = server.standby().await;
    let error = connect(standby.url("postgres")).await.unwrap().check().await.unwrap_err();
    assert!(error.to_string().contains("standby"), "{error}");
    assert_eq!(error.status(), ErrorStatus::Unavailable);

    let before = primary.watermark().await.unwrap().incarnation;
    assert_eq!(primary.watermark().await.unwrap().incarnation, before);
    let promoted = connect(standby.url("postgres")).await.unwrap();
    sqlx::query("select pg_promote(true)").execute(promoted.pool()).await.unwrap();
    assert_ne!(promoted.watermark().await.unwrap().incarnation, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_keeps_what_was_settled_and_the_store_reconnects_by_itself() {
    let Some(mut server) = PostgresServer::start(&[]).await else { return };
    let database = TestDatabase::create_at(&server.url("postgres")).await;
    let outbox = database.outbox().await;
    let events: Vec<_> = (0..10).map(|_| event(Uuid::now_v7())).collect();
    outbox.store(&events).await.unwrap();
    let half: Vec<_> = pending(&outbox).await.iter().take(5).map(delivered).collect();
    assert_eq!(outbox.settle(&half).await.unwrap(), 5);
    let hearing = [
        PostgresOptions { listen: false, ..database.options() },
        PostgresOptions { watch_interval: None, ..database.options() },
    ];
    let hearing = hearing.map(|options| PostgresOutbox::connect_lazy(&options).unwrap());
    for relay in &hearing {
        until_quiet(relay).await;
    }

    server.restart().await;

    let mut tries = 0;
    let found = loop {
        match outbox.fetch_pending(&everything()).await {
            Ok(page) => break page.events,
            Err(error) => assert_eq!(error.status(), ErrorStatus::Unavailable, "{error}"),
        }
        tries += 1;
        assert!(tries < 50);
    };
    assert_eq!(found.len(), 5);
    let before = outbox.watermark().await.unwrap().high;
    outbox.store(&[event(Uuid::now_v7())]).await.unwrap();
    assert!(pending(&outbox).await.last().unwrap().seq > before, "no number is used twice");
    for relay in &hearing {
        until_quiet(relay).await;
        outbox.store(&[event(Uuid::now_v7())]).await.unwrap();
        let woken = tokio::time::timeout(Duration::from_secs(20), relay.wait_for_events());
        woken.await.expect("it hears again");
    }
}

/// Waits until it listens or watches, and nothing more comes.
async fn until_quiet(relay: &PostgresOutbox) {
    let mut is_heard = false;
    loop {
        let wait = Duration::from_millis(if is_heard { 400 } else { 20_000 });
        match tokio::time::timeout(wait, relay.wait_for_events()).await {
            Ok(()) => is_heard = true,
            Err(_) => return assert!(is_heard, "it does not listen or watch"),
        }
    }
}

/// What a statement meets that is the server's trouble, by the code alone: its words are in the server's
/// language.
#[tokio::test]
async fn trouble_of_the_server_is_an_outage_and_no_events_fault() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    for (code, kind, words) in [
        ("53200", ErrorKind::Throttled, "max_locks_per_transaction"),
        ("57P05", ErrorKind::Unreachable, "idle for too long"),
    ] {
        let trap = format!(
            "create or replace function trap() returns trigger language plpgsql as $$ \
             begin raise exception 'weg' using errcode = '{code}'; end $$; \
             create or replace trigger trap before insert on outbox_events_pending \
             for each row execute function trap()"
        );
        database.run(&trap).await;
        let error = outbox.store(&[event(Uuid::now_v7())]).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{code}: {}", error.report());
        assert_eq!(error.status(), ErrorStatus::Unavailable, "{code}");
        assert!(error.report().contains(words), "{}", error.report());
        assert!(error.report().contains(code), "{}", error.report());
    }
}
