//! A page of the table that the server cannot read stops nothing but the rows on it.

use posthaste_core::{
    HeadSelection, OrderKey, OutboxRepository, PendingPage, PendingQuery, PendingSelection, Seq,
};
use posthaste_postgres::PostgresOutbox;
use posthaste_testkit::servers::PostgresServer;

use crate::common::{TestDatabase, everything};

const ROWS: Seq = 200;

/// A dead letter every twenty, two keys.
const FILL: &str = "\
    insert into outbox_events (aggregate_id, event_type, event_data, partition_key, dead_at) \
    select gen_random_uuid(), 'n' || n, '{}', 'k' || n % 2, case when n % 20 = 0 then now() end \
    from generate_series(1, 200) as n";

fn places(page: &PendingPage) -> Vec<Seq> {
    page.events.iter().map(|found| found.seq).collect()
}

/// Asks until there is no more to come.
async fn read(outbox: &PostgresOutbox, selection: PendingSelection) -> Vec<Seq> {
    let mut found = Vec::new();
    let mut query = PendingQuery { selection, ..everything() };
    for _ in 0..20 {
        let page = outbox.fetch_pending(&query).await.unwrap();
        found.extend(places(&page));
        if !page.more {
            return found;
        }
        let Some(last) = found.last() else { continue };
        match &mut query.selection {
            PendingSelection::Forward { after, .. } | PendingSelection::Key { after, .. } => {
                *after = *last;
            }
            PendingSelection::At(places) => places.retain(|place| place > last),
        }
    }
    panic!("reading never comes to its end");
}

#[tokio::test]
async fn rows_on_a_damaged_page_are_left_out_and_the_rest_is_read() {
    let Some(mut server) = PostgresServer::start(&["autovacuum=off"]).await else { return };
    let database = TestDatabase::create_at(&server.url("postgres")).await;
    let outbox = database.outbox().await;
    database.run(FILL).await;
    let on_page = "select array_agg(seq order by seq) from outbox_events_pending where ctid >= '(1,0)' and ctid < '(2,0)'";
    let damaged: Vec<Seq> = database.value(on_page).await;
    assert!(damaged.len() > 20 && damaged.last() < Some(&ROWS), "{damaged:?}");
    let file: String = database.value("select pg_relation_filepath('outbox_events_pending')").await;
    database.run("checkpoint").await;
    server.kill();
    let page = server.overwrite_page(&file, 1, &[0xa5; 8_192]);
    server.restart().await;

    let is_left = |seq: &Seq| !damaged.contains(seq) && seq % 20 != 0;
    let left: Vec<Seq> = (1..=ROWS).filter(is_left).collect();
    let forward = |gaps, after| PendingSelection::Forward { gaps, after };
    assert_eq!(read(&outbox, forward(Vec::new(), 0)).await, left);
    // As a gap, of a relay that passed them; and by others, each with a way of its own to find out.
    assert_eq!(read(&outbox, forward(vec![(1, ROWS)], ROWS)).await, left);
    let other = PostgresOutbox::connect(&database.options()).await.unwrap();
    assert_eq!(read(&other, PendingSelection::At((1..=ROWS).collect())).await, left);
    let key = OrderKey::named("k1").unwrap();
    let other = PostgresOutbox::connect(&database.options()).await.unwrap();
    let of_key: Vec<Seq> = left.iter().copied().filter(|seq| seq % 2 == 1).collect();
    assert_eq!(read(&other, PendingSelection::Key { key, after: 0, up_to: ROWS }).await, of_key);

    let other = PostgresOutbox::connect(&database.options()).await.unwrap();
    let dead = other.dead_heads(0, 100).await.unwrap();
    let expected: Vec<Seq> =
        (1..=ROWS).filter(|seq| !damaged.contains(seq) && seq % 20 == 0).collect();
    assert_eq!(dead.iter().map(|head| head.seq).collect::<Vec<_>>(), expected);
    let other = PostgresOutbox::connect(&database.options()).await.unwrap();
    for selection in
        [HeadSelection::Between { after: 0, up_to: ROWS }, HeadSelection::At((1..=ROWS).collect())]
    {
        let heads = other.heads(&selection, 1_000).await.unwrap();
        assert_eq!(heads.len() + damaged.len(), 200);
    }

    // What can be read again is there again for whoever starts.
    server.kill();
    server.overwrite_page(&file, 1, &page);
    server.restart().await;
    let other = PostgresOutbox::connect(&database.options()).await.unwrap();
    assert_eq!(read(&other, forward(Vec::new(), 0)).await.len(), 190);
}
