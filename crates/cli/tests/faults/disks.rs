//! No room on the disk of the database.

use std::time::Duration;

use posthaste_testkit::servers::{PostgresServer, SmallDisk};

use crate::rig::{RELAYS, Rig};
use crate::support::sized;

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
