//! Opening files and making the schema, and what is refused.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::PathBuf;

use posthaste_core::{Error, ErrorKind, OutboxMigrations, OutboxRepository};
use posthaste_sqlite::{SqliteOptions, SqliteOutbox};
use support::{event, outbox, pending, run_sql};

/// The whole schema, as SQLite keeps it.
async fn schema(outbox: &SqliteOutbox) -> Vec<String> {
    let mut unit = outbox.begin().await.unwrap();
    let sql = "select coalesce(sql, name) from sqlite_master order by name";
    sqlx::query_scalar(sql).fetch_all(unit.connection()).await.unwrap()
}

#[tokio::test]
async fn migrating_twice_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = SqliteOutbox::open(directory.path().join("new.db")).await.unwrap();
    let status = outbox.migration_status().await.unwrap();
    assert_eq!((status.current, status.wanted, status.pending.len()), (0, 1, 1));
    let error = outbox.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.report().contains("there is no outbox"), "{}", error.report());
    assert_eq!(outbox.migrate().await.unwrap().len(), 1);
    outbox.store(&[event()]).await.unwrap();
    assert_eq!(outbox.migrate().await.unwrap(), []);
    assert_eq!(outbox.migration_status().await.unwrap().pending, []);
    outbox.check().await.unwrap();
    assert_eq!(pending(&outbox).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_that_start_at_once_one_migrates() {
    // Who meets whom is chance: the switch to WAL of a new file collides about once in ten rounds.
    for _ in 0..40 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new.db");
        let start = |_| tokio::spawn(open_and_migrate(path.clone()));
        let mut applied = 0;
        for task in (0..8).map(start).collect::<Vec<_>>() {
            applied += task.await.unwrap().unwrap();
        }
        assert_eq!(applied, 1);
    }
}

async fn open_and_migrate(path: PathBuf) -> Result<usize, Error> {
    let outbox = SqliteOutbox::open(path).await?;
    let applied = outbox.migrate().await?.len();
    outbox.check().await?;
    Ok(applied)
}

#[tokio::test]
async fn the_printed_sql_makes_the_same_schema() {
    let (_directory, migrated) = outbox().await;
    let other = tempfile::tempdir().unwrap();
    let printed = SqliteOutbox::open(other.path().join("printed.db")).await.unwrap();
    run_sql(&printed, &printed.migration_sql()).await.unwrap();
    assert_eq!(schema(&printed).await, schema(&migrated).await);
    assert_eq!(printed.migrate().await.unwrap(), []);
    printed.check().await.unwrap();
}

#[tokio::test]
async fn a_newer_database_is_refused() {
    let (_directory, outbox) = outbox().await;
    run_sql(&outbox, "insert into outbox_migrations values (99, 'later', 'x')").await.unwrap();
    for error in [outbox.check().await.unwrap_err(), outbox.migrate().await.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Schema);
        let report = error.report();
        assert!(report.contains("later version") && report.contains("99"), "{report}");
    }
    assert!(outbox.migration_status().await.unwrap().is_newer_than_program());
}

#[tokio::test]
async fn a_table_of_somebody_elses_is_not_touched() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = SqliteOutbox::open(directory.path().join("theirs.db")).await.unwrap();
    run_sql(&outbox, "create table outbox_events (x text)").await.unwrap();
    let error = outbox.migrate().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.report().contains("posthaste did not make"), "{}", error.report());
    assert_eq!(outbox.migration_status().await.unwrap().current, 0);
}

#[tokio::test]
async fn an_altered_table_is_found_before_anything_runs() {
    for sql in [
        "alter table outbox_events drop column topic",
        "drop table outbox_signal",
        "drop table outbox_events",
    ] {
        let (_directory, outbox) = outbox().await;
        run_sql(&outbox, sql).await.unwrap();
        let error = outbox.check().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Schema, "{sql}: {}", error.report());
    }
}

#[tokio::test]
async fn a_bad_path_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("nowhere").join("outbox.db");
    let absent = directory.path().join("absent.db");
    for (options, kind, text) in [
        (SqliteOptions::new(&missing), ErrorKind::Config, "the directory does not exist"),
        (SqliteOptions::new(directory.path()), ErrorKind::Config, "is a directory"),
        (SqliteOptions::new(""), ErrorKind::Config, "the path is empty"),
        (SqliteOptions::new(&absent).create(false), ErrorKind::Config, "no such database file"),
    ] {
        let path = options.path.display().to_string();
        let error = SqliteOutbox::open_with(options).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{}", error.report());
        assert!(error.report().contains(text), "{}", error.report());
        assert!(error.report().contains(&path), "{}", error.report());
    }
    assert!(!absent.exists());
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes.txt");
    let text = "just some notes, longer than the head of a database\n".repeat(40);
    std::fs::write(&path, &text).unwrap();
    let error = SqliteOutbox::open(&path).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema, "{}", error.report());
    assert!(error.report().contains("notes.txt"), "{}", error.report());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[tokio::test]
async fn every_commit_is_flushed_to_disk() {
    let (_directory, outbox) = outbox().await;
    let mut unit = outbox.begin().await.unwrap();
    let mode: String =
        sqlx::query_scalar("pragma journal_mode").fetch_one(unit.connection()).await.unwrap();
    // 2 is FULL.
    let synchronous: i64 =
        sqlx::query_scalar("pragma synchronous").fetch_one(unit.connection()).await.unwrap();
    assert_eq!((mode.as_str(), synchronous), ("wal", 2));
}
