//! No room on the disk of the database.

use std::collections::HashMap;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use posthaste_testkit::servers::{PostgresServer, SmallDisk, shared_nats};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection as _, Row as _};
use uuid::Uuid;

use crate::common::Cli;
use crate::rig::{RELAYS, Rig};
use crate::support::{Figures, Stream, Verdict, account_id, eventually, read_back, sized};

/// What was delivered cannot be recorded, and what is written is refused; with room, both go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_postgresql_costs_no_attempt_and_no_event() {
    let rounds = sized(2, 4);
    let lasts = sized(Duration::from_secs(2), Duration::from_secs(15));
    let Some(disk) = SmallDisk::mount() else { return };
    let Some(server) = PostgresServer::start_on(&disk, &[]).await else { return };
    let Some(mut rig) = Rig::start_at("disk of PostgreSQL full", &server).await else { return };
    rig.database.run("create table ballast (text text)").await;
    for _ in 0..rounds {
        rig.burst().await;
        disk.fill(512);
        let mut connection = rig.database.connection().await;
        // Whatever is left is used up.
        let more =
            "insert into ballast select repeat(n::text, 100) from generate_series(1, 5000) n";
        let refused = loop {
            if let Err(error) = sqlx::raw_sql(more).execute(&mut connection).await {
                break error;
            }
        };
        let code = refused.as_database_error().and_then(|error| error.code());
        assert_eq!(code.as_deref(), Some("53100"), "{refused}");
        rig.interrupt(RELAYS);
        tokio::time::sleep(lasts).await;
        disk.make_room();
        rig.recover().await;
        rig.progress().await;
    }
    let seconds = lasts.as_secs();
    rig.finish(&format!("{rounds} times no space for data for {seconds} s; then space again"))
        .await;
}

/// One relay, as always on SQLite; a writer that goes on as soon as it can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_sqlite_costs_no_attempt_and_no_event() {
    let rounds = sized(2, 4);
    let lasts = sized(Duration::from_secs(2), Duration::from_secs(15));
    let Some(nats) = shared_nats().await else { return };
    let Some(disk) = SmallDisk::mount() else { return };
    let stream = Stream::create_forgetful(&nats).await;
    let mut figures = Figures::of_fault("disk of SQLite full");
    let file = disk.path().join("outbox.db");
    let cli = Cli::new();
    cli.write(
        "posthaste.toml",
        format!(
            "[database]\nurl = \"sqlite:{}\"\n[ops]\nlisten = \"off\"\n\
             [relay]\nbatch_size = 100\nmax_concurrent_events = 100\n\
             [destinations.default]\ntype = \"nats\"\nurl = \"{nats}\"\nstream = \"{}\"\n\
             subject = \"{}\"\n",
            file.display(),
            stream.name,
            stream.subject(),
        ),
    );
    cli.run(&["migrate", "up"]).succeeded();
    let mut relay = cli.start(&["run"]);
    let options = SqliteConnectOptions::from_str(&format!("sqlite:{}", file.display())).unwrap();
    let options = options.busy_timeout(Duration::from_secs(30));
    let (stop, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writer = tokio::spawn(write(options.clone(), Arc::clone(&stop), Arc::clone(&refused)));
    let mut reader = SqliteConnection::connect_with(&options).await.unwrap();
    let mut slowest = Duration::ZERO;
    for _ in 0..rounds {
        let (before, enough) =
            (refused.load(Ordering::Relaxed), delivered(&mut reader).await + 500);
        eventually("deliveries", async || delivered(&mut reader).await >= enough).await;
        disk.fill(64);
        eventually("no space", async || refused.load(Ordering::Relaxed) > before).await;
        tokio::time::sleep(lasts).await;
        disk.make_room();
        let begun = Instant::now();
        let last = last_place(&mut reader).await;
        eventually("recovery", async || waiting(&mut reader, last).await == 0).await;
        slowest = slowest.max(begun.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    let last = i64::MAX;
    eventually("an empty outbox", async || waiting(&mut reader, last).await == 0).await;
    relay.signal("TERM");
    assert_eq!(relay.child.wait().unwrap().code(), Some(0));
    let rows = sqlx::query("select id, event_data ->> 'number', retry_count from outbox_events");
    let rows = rows.fetch_all(&mut reader).await.unwrap();
    let committed: HashMap<Uuid, i64> =
        rows.iter().map(|row| (row.get::<String, _>(0).parse().unwrap(), row.get(1))).collect();
    let blamed = rows.iter().filter(|row| row.get::<i64, _>(2) != 0).count();
    let verdict = Verdict::of(&committed, &read_back(&stream).await);
    let duplicates_max = rounds * 400;
    verdict.add_to(&mut figures);
    figures
        .add("allowed duplicates", duplicates_max)
        .add("recovered in s", format!("{:.1}", slowest.as_secs_f64()))
        .add("transactions of unknown outcome", refused.load(Ordering::Relaxed))
        .add("relays", 1)
        .add("done", format!("{rounds} times no space for {} s; then space again", lasts.as_secs()))
        .print();
    verdict.assert_kept(duplicates_max);
    assert_eq!(blamed, 0, "no event's own fault");
}

/// Transactions of three events for one of 50 keys, each key's numbered from 1.
async fn write(options: SqliteConnectOptions, stop: Arc<AtomicBool>, refused: Arc<AtomicU64>) {
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let mut numbers = [0_i64; 50];
    for key in (0..numbers.len()).cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        match store_three(&mut connection, key, numbers[key]).await {
            Ok(()) => numbers[key] += 3,
            Err(_) => {
                refused.fetch_add(1, Ordering::Relaxed);
                // Whatever is left of the transaction goes with its connection.
                tokio::time::sleep(Duration::from_millis(50)).await;
                if let Ok(new) = SqliteConnection::connect_with(&options).await {
                    connection = new;
                }
                numbers[key] = last_number(&mut connection, key).await.unwrap_or(numbers[key]);
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn store_three(
    connection: &mut SqliteConnection,
    key: usize,
    last: i64,
) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin_with("begin immediate").await?;
    for number in last + 1..=last + 3 {
        sqlx::query(
            "insert into outbox_events (aggregate_id, event_type, event_data) \
             values ($1, 'account.changed', json_object('number', $2, 'note', $3))",
        )
        .bind(account_id(key as u128).to_string())
        .bind(number)
        .bind("x".repeat(400))
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await
}

/// The commit may have happened though it failed.
async fn last_number(connection: &mut SqliteConnection, key: usize) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "select coalesce(max(event_data ->> 'number'), 0) from outbox_events where aggregate_id = $1",
    )
    .bind(account_id(key as u128).to_string())
    .fetch_one(connection)
    .await
}

async fn number(connection: &mut SqliteConnection, sql: &'static str, bound: i64) -> i64 {
    sqlx::query_scalar(sql).bind(bound).fetch_one(connection).await.unwrap()
}

async fn delivered(connection: &mut SqliteConnection) -> i64 {
    number(connection, "select count(processed_at) + 0 * $1 from outbox_events", 0).await
}

async fn last_place(connection: &mut SqliteConnection) -> i64 {
    number(connection, "select coalesce(max(seq), $1) from outbox_events", 0).await
}

/// Events up to that place that are neither delivered nor dead.
async fn waiting(connection: &mut SqliteConnection, last: i64) -> i64 {
    let waiting = "select count(*) from outbox_events \
                    where processed_at is null and dead_at is null and seq <= $1";
    number(connection, waiting, last).await
}
