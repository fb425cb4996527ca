//! Opening files and making the schema, and what is refused.

use std::path::PathBuf;

use crate::support::{event, outbox, pending, run_sql};
use posthaste_core::{Error, ErrorKind, OutboxAdmin, OutboxMigrations, OutboxRepository, Severity};
use posthaste_sqlite::{SqliteOptions, SqliteOutbox};

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
    assert_eq!((status.current, status.wanted, status.pending.len()), (0, 2, 2));
    let error = outbox.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.report().contains("there is no outbox"), "{}", error.report());
    assert_eq!(outbox.migrate().await.unwrap().len(), 2);
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
        assert_eq!(applied, 2);
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
        "drop trigger outbox_events_refused; drop trigger outbox_events_as_meant;
         alter table outbox_events drop column topic",
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
async fn migrate_makes_again_whatever_is_missing() {
    let (_directory, outbox) = outbox().await;
    let whole = schema(&outbox).await;
    for (loss, is_needed, named) in [
        ("drop index outbox_events_pending", true, "index outbox_events_pending"),
        ("drop index outbox_events_processed", true, "index outbox_events_processed"),
        ("drop trigger outbox_events_refused", false, "trigger outbox_events_refused"),
        ("drop trigger outbox_events_revived", false, "trigger outbox_events_revived"),
        ("drop table outbox_signal", true, "table outbox_signal"),
        ("delete from outbox_signal", true, "the row of outbox_signal"),
        ("drop table outbox_relays", true, "table outbox_relays"),
        ("drop table outbox_events", true, "table outbox_events"),
        (
            "alter table outbox_events rename to events_before",
            true,
            "table outbox_events, index outbox_events_pending",
        ),
    ] {
        run_sql(&outbox, loss).await.unwrap();
        let found = outbox.diagnose().await;
        let found = found.iter().find(|finding| &*finding.about == "schema").unwrap();
        let severity = if is_needed { Severity::Error } else { Severity::Warning };
        assert_eq!(found.severity, severity, "{loss}: {found:?}");
        assert!(found.message.contains(named), "{loss}: {found:?}");
        match outbox.check().await {
            Err(error) => assert!(
                is_needed && error.kind() == ErrorKind::Schema && error.report().contains(named),
                "{loss}: {}",
                error.report()
            ),
            Ok(()) => assert!(!is_needed, "{loss}"),
        }
        assert_eq!(outbox.migrate().await.unwrap(), [], "{loss}");
        outbox.check().await.unwrap();
        run_sql(&outbox, "drop table if exists events_before").await.unwrap();
        assert_eq!(schema(&outbox).await, whole, "{loss}");
        outbox.store(&[event()]).await.unwrap();
        assert_eq!(pending(&outbox).await.len(), 1, "{loss}");
        run_sql(&outbox, "delete from outbox_events").await.unwrap();
    }
}

#[tokio::test]
async fn a_table_that_was_rebuilt_without_its_numbers_is_refused() {
    let (_directory, outbox) = outbox().await;
    let rebuilt = include_str!("../../migrations/0001_outbox.sql");
    let end = rebuilt.find("create index").unwrap();
    let rebuilt = rebuilt[..end].replace("primary key autoincrement", "primary key");
    run_sql(&outbox, &format!("drop table outbox_events; {rebuilt}")).await.unwrap();
    outbox.migrate().await.unwrap();
    let error = outbox.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.report().contains("without autoincrement"), "{}", error.report());
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

/// Whether file permissions bind this user at all.
#[cfg(unix)]
fn is_bound_by_permissions(folder: &std::path::Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let probe = folder.join("probe");
    std::fs::write(&probe, "").unwrap();
    std::fs::set_permissions(&probe, PermissionsExt::from_mode(0o000)).unwrap();
    std::fs::File::open(&probe).is_err()
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_without_rights_says_which_and_what_to_do() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    if !is_bound_by_permissions(directory.path()) {
        println!("skipped: root may write everything");
        return;
    }
    let path = directory.path().join("shop.db");
    let outbox = SqliteOutbox::open(&path).await.unwrap();
    outbox.migrate().await.unwrap();
    outbox.close().await;
    let allow = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    for (file, folder) in [(0o000, 0o700), (0o400, 0o700), (0o400, 0o500), (0o600, 0o500)] {
        allow(&path, file);
        allow(directory.path(), folder);
        let met = match SqliteOutbox::open(&path).await {
            Ok(outbox) => outbox.store(&[event()]).await,
            Err(error) => Err(error),
        };
        allow(directory.path(), 0o700);
        let error = met.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Config | ErrorKind::Unauthorized),
            "{file:o} {folder:o}: {}",
            error.report()
        );
        assert!(error.report().contains("this user"), "{}", error.report());
    }
}

#[tokio::test]
async fn damage_is_told_with_what_to_do() {
    use std::io::{Seek, SeekFrom, Write};
    let (directory, outbox) = outbox().await;
    let events: Vec<_> = (0..2_000).map(|_| event()).collect();
    outbox.store(&events).await.unwrap();
    outbox.close().await;
    let path = directory.path().join("outbox.db");
    let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let size = file.metadata().unwrap().len();
    // All but the schema.
    file.seek(SeekFrom::Start(4_096 * 16)).unwrap();
    file.write_all(&vec![0xa5; usize::try_from(size - 4_096 * 16).unwrap()]).unwrap();
    let damaged = SqliteOutbox::open(&path).await.unwrap();
    let error = damaged.fetch_pending(&crate::support::forward()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema, "{}", error.report());
    for expected in ["damaged", "pragma integrity_check", "restore a backup", ".recover"] {
        assert!(error.report().contains(expected), "{}", error.report());
    }
}

#[tokio::test]
async fn an_outbox_of_the_first_version_is_mended_by_the_second() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = SqliteOutbox::open(directory.path().join("old.db")).await.unwrap();
    let first = include_str!("../../migrations/0001_outbox.sql");
    let odd = "create table outbox_migrations (version integer primary key, name text not null, \
         applied_at text); insert into outbox_migrations values (1, 'outbox', 'x'); \
         insert into outbox_events (seq, id, aggregate_id, event_type, event_data) values \
         (7, '00000000-0000-0000-0000-000000000000', '018f0000-0000-7000-8000-000000000000', 't', '1'), \
         (-3, 'x', '018f0000-0000-7000-8000-000000000000', 'low', '1')";
    run_sql(&outbox, &format!("{first}\n{odd}")).await.unwrap();
    assert_eq!(outbox.migrate().await.unwrap().len(), 1);
    outbox.check().await.unwrap();
    assert_eq!(outbox.watermark().await.unwrap().high, 8);
    run_sql(&outbox, "update outbox_events set id = lower(hex(randomblob(16))) where id = 'x'")
        .await
        .unwrap();
    let found = pending(&outbox).await;
    assert_eq!(found.iter().map(|found| found.seq).collect::<Vec<_>>(), [7, 8]);
    assert!(!found[0].event.id().is_nil());
}

#[tokio::test]
async fn a_current_schema_waits_for_nobodys_write_lock() {
    let (_directory, outbox) = outbox().await;
    let options =
        SqliteOptions::new(outbox.path()).busy_timeout(std::time::Duration::from_millis(50));
    let unit = outbox.begin().await.unwrap();
    let starting = SqliteOutbox::open_with(options).await.unwrap();
    assert_eq!(starting.migrate().await.unwrap(), []);
    starting.check().await.unwrap();
    let _claim = starting.claim().await.unwrap();
    assert!(pending(&starting).await.is_empty());
    unit.rollback().await.unwrap();
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
    assert!(error.report().contains("or it is encrypted; name another one"), "{}", error.report());
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
