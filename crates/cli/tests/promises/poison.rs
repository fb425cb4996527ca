//! Events that can never be delivered, and keys that are slow, beside others that can and are not.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use async_nats::jetstream;
use posthaste_testkit::servers::NatsServer;
use sqlx::{Connection as _, Row as _};
use uuid::Uuid;

use crate::support::{
    Database, Figures, Receiver, Relay, RelayConfig, Reply, Stream, eventually, read_back, sized,
};

/// One kind of poison: what is written, and what its dead letter must say.
struct Poison {
    event_type: &'static str,
    topic: Option<String>,
    destination: Option<&'static str>,
    payload_bytes: usize,
    /// A part of `error_message`.
    reason: &'static str,
}

impl Poison {
    const fn of(event_type: &'static str, reason: &'static str) -> Self {
        Self { event_type, topic: None, destination: None, payload_bytes: 10, reason }
    }
}

/// What the receiver does with each kind, however often it comes.
const REPLIES: [(&str, Reply); 5] = [
    ("poison.403", Reply::Status(403)),
    ("poison.413", Reply::Status(413)),
    ("poison.500", Reply::Status(500)),
    ("poison.504", Reply::Status(504)),
    ("poison.reset", Reply::Reset),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_at_a_webhook_dies_with_its_reason_and_delays_nobody() {
    let Some(database) = Database::create().await else { return };
    let figures = Figures::of("poison at a webhook");
    let receiver = Receiver::start(&REPLIES).await;
    let relay = webhook_relay(&database, &receiver);
    let kinds = [
        Poison::of("poison.403", "403"),
        Poison::of("poison.413", "413"),
        Poison::of("poison.500", "500"),
        Poison::of("poison.504", "504"),
        Poison::of("poison.reset", "connection"),
        Poison { destination: Some("nowhere"), ..Poison::of("poison.unknown", "nowhere") },
    ];
    let written = write_with_poison(&database, &kinds).await;
    all_delivered(&database).await;
    dead_with_reasons(&database, &kinds).await;
    report(figures, &database, &written, &receiver.taken()).await;
    drop(relay);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_at_a_stream_dies_with_its_reason_and_delays_nobody() {
    let Some(nats) = NatsServer::start("").await else { return };
    let Some(database) = Database::create().await else { return };
    let figures = Figures::of("poison at a stream");
    let stream = Stream::named(&nats.url());
    let max_message_size = 10_000;
    stream.make(jetstream::stream::Config { max_message_size, ..Default::default() }).await;
    let config = RelayConfig {
        relay: relay_lines(),
        destination: "allow_topic = \">\"",
        ..RelayConfig::default()
    };
    let relay = Relay::started(&database, &stream, &config);
    let topic = |topic: &str| Some(topic.to_owned());
    let kinds = [
        Poison { topic: topic("not a subject"), ..Poison::of("poison.subject", "subject") },
        Poison { topic: topic("nowhere.at.all"), ..Poison::of("poison.stream", "stream") },
        Poison { payload_bytes: 20_000, ..Poison::of("poison.large", "maximum") },
        Poison { payload_bytes: 2_000_000, ..Poison::of("poison.huge", "max_payload") },
        Poison { destination: Some("nowhere"), ..Poison::of("poison.unknown", "nowhere") },
    ];
    let written = write_with_poison(&database, &kinds).await;
    all_delivered(&database).await;
    dead_with_reasons(&database, &kinds).await;
    let arrived = read_back(&stream).await;
    let arrived = arrived.iter().map(|delivery| (delivery.id, delivery.stored_at)).collect();
    report(figures, &database, &written, &arrived).await;
    drop(relay);
}

/// Beside the outages of a broker: refused connections, over HTTP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_is_away_costs_no_attempt_and_delivery_resumes_by_itself() {
    let down_for = sized(Duration::from_secs(4), Duration::from_secs(120));
    let Some(database) = Database::create().await else { return };
    let mut figures = Figures::of("receiver away");
    let mut receiver = Receiver::start(&[]).await;
    let mut relay = webhook_relay(&database, &receiver);
    database.fill(200).await;
    all_delivered(&database).await;
    receiver.stop().await;
    database.fill(200).await;
    tokio::time::sleep(down_for).await;
    assert_eq!(database.pending().await, 200);
    receiver.restart().await;
    let up = Instant::now();
    all_delivered(&database).await;
    let blamed = database.blamed().await;
    figures
        .add("down for s", down_for.as_secs())
        .add("events blamed", blamed)
        .add("all delivered after s", format!("{:.1}", up.elapsed().as_secs_f64()))
        .print();
    assert_eq!(blamed, 0);
    assert!(!relay.has_ended(), "the same relay all the time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_whose_receiver_is_slow_holds_up_itself_alone() {
    let answers_after = sized(Duration::from_secs(3), Duration::from_secs(8));
    let (ticks, keys) = (sized(100, 400), 100);
    let Some(database) = Database::create().await else { return };
    let mut figures = Figures::of("a slow key");
    let receiver = Receiver::start(&[("slow", Reply::Slow(answers_after))]).await;
    let relay = webhook_relay(&database, &receiver);
    eventually("a relay that is ready", async || relay.is_ready().await).await;
    let mut written = HashMap::new();
    let slow = Poison::of("slow", "");
    for tick in 0..ticks {
        if tick % 40 == 0 {
            store(&database, "slow key", &slow).await;
        }
        written.extend(store_good(&database, tick, 5, keys).await);
        tokio::time::sleep(TICK).await;
    }
    all_delivered(&database).await;
    let late = latencies(&written, &receiver.taken());
    let p99 = percentile(&late, 99);
    figures
        .add("events of others", late.len())
        .add("answers after s", answers_after.as_secs())
        .add("p99 of others ms", p99.as_millis())
        .print();
    assert!(p99 < answers_after / 2, "the others waited for the slow one: {p99:?}");
}

fn webhook_relay(database: &Database, receiver: &Receiver) -> Relay {
    let url = format!("http://{}/hook", receiver.address);
    let mut relay = Relay::configured(|ops| {
        format!(
            "[database]\nurl = \"{}\"\n[relay]\n{}\n\
             [ops]\nlisten = \"{ops}\"\n[destinations.default]\ntype = \"webhook\"\n\
             url = \"{url}\"\nallow_private_addresses = true\n",
            database.url(),
            relay_lines()
        )
    });
    relay.start();
    relay
}

/// Defaults but for what an unknown destination means, and in the short form for a poison's patience.
fn relay_lines() -> &'static str {
    sized(
        "unknown_destination = \"dead\"\noutage_patience = \"5s\"",
        "unknown_destination = \"dead\"",
    )
}

const TICK: Duration = Duration::from_millis(50);

/// Half of the poison comes before anything good, the rest among it. Each is a key of its own.
/// Returns when each good event was committed.
async fn write_with_poison(database: &Database, kinds: &[Poison]) -> HashMap<Uuid, SystemTime> {
    let (good, poison) = (sized(1_000, 10_000), sized(2 * kinds.len(), 50));
    let (per_tick, keys) = (25, 1_000);
    let ticks = good / per_tick;
    let mut kinds = (0..poison).map(|nth| (nth, &kinds[nth % kinds.len()]));
    for (nth, kind) in kinds.by_ref().take(poison / 2) {
        store(database, &format!("poison {nth}"), kind).await;
    }
    let mut written = HashMap::new();
    let mut interval = tokio::time::interval(TICK);
    for tick in 0..ticks {
        interval.tick().await;
        if tick % (2 * ticks / poison).max(1) == 0
            && let Some((nth, kind)) = kinds.next()
        {
            store(database, &format!("poison {nth}"), kind).await;
        }
        written.extend(store_good(database, tick, per_tick, keys).await);
    }
    assert!(kinds.next().is_none(), "all poison was written");
    written
}

async fn store(database: &Database, key: &str, poison: &Poison) {
    let mut connection = database.connection().await;
    sqlx::query(
        "insert into outbox_events (aggregate_id, partition_key, event_type, event_data, topic, destination) \
         values (gen_random_uuid(), $1, $2, jsonb_build_object('pad', repeat('x', $3)), $4, $5)",
    )
    .bind(key)
    .bind(poison.event_type)
    .bind(i32::try_from(poison.payload_bytes).unwrap())
    .bind(&poison.topic)
    .bind(poison.destination)
    .execute(&mut connection)
    .await
    .unwrap();
    connection.close().await.unwrap();
}

/// One transaction of `events` good ones.
async fn store_good(
    database: &Database,
    tick: usize,
    events: usize,
    keys: usize,
) -> Vec<(Uuid, SystemTime)> {
    let first = tick * events;
    let rows = database
        .rows(&format!(
            "insert into outbox_events (aggregate_id, partition_key, event_type, event_data) \
             select gen_random_uuid(), 'good ' || n % {keys}, 'good', jsonb_build_object('number', n + 1) \
               from generate_series({first}, {first} + {events} - 1) as n returning id"
        ))
        .await;
    let committed = SystemTime::now();
    rows.iter().map(|row| (row.get(0), committed)).collect()
}

async fn all_delivered(database: &Database) {
    let waiting = "select count(*) from outbox_events \
                    where processed_at is null and event_type not like 'poison%'";
    eventually("good events to be delivered", async || database.count(waiting).await == 0).await;
}

async fn dead_with_reasons(database: &Database, kinds: &[Poison]) {
    let waiting = "select count(*) from outbox_events \
                    where event_type like 'poison%' and dead_at is null";
    let limit = Duration::from_secs(300);
    let begun = Instant::now();
    while database.count(waiting).await > 0 {
        if begun.elapsed() > limit {
            let alive = database
                .rows(
                    "select event_type, retry_count, error_message from outbox_events \
                        where event_type like 'poison%' and dead_at is null",
                )
                .await;
            let alive: Vec<(String, i32, Option<String>)> =
                alive.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
            panic!("alive after {limit:?}: {alive:#?}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for kind in kinds {
        let untrue = database
            .rows(&format!(
                "select error_message from outbox_events \
                  where event_type = '{}' and error_message not ilike '%{}%'",
                kind.event_type, kind.reason
            ))
            .await;
        let untrue: Vec<Option<String>> = untrue.iter().map(|row| row.get(0)).collect();
        assert!(untrue.is_empty(), "{} does not say {}: {untrue:?}", kind.event_type, kind.reason);
    }
}

async fn report(
    mut figures: Figures,
    database: &Database,
    written: &HashMap<Uuid, SystemTime>,
    arrived: &HashMap<Uuid, SystemTime>,
) {
    let late = latencies(written, arrived);
    let (median, p99) = (percentile(&late, 50), percentile(&late, 99));
    let dead = "select count(*) from outbox_events where dead_at is not null";
    let seconds = "select coalesce(max(extract(epoch from dead_at - created_at)), 0)::bigint \
                     from outbox_events where dead_at is not null";
    let tried = "select count(*) from outbox_events where event_type = 'good' and retry_count > 0";
    let tried = database.count(tried).await;
    figures
        .add("good", late.len())
        .add("p50 ms", median.as_millis())
        .add("p99 ms", p99.as_millis())
        .add("good with an attempt", tried)
        .add("dead", database.count(dead).await)
        .add("the last of them after s", database.count(seconds).await)
        .print();
    assert_eq!(late.len(), written.len(), "good events arrived");
    assert_eq!(tried, 0, "good events that failed");
    let limit = sized(Duration::from_secs(10), Duration::from_secs(1));
    assert!(p99 < limit, "good events waited for poison: p99 {p99:?}");
}

/// How long each event took from its commit, sorted.
fn latencies(
    written: &HashMap<Uuid, SystemTime>,
    arrived: &HashMap<Uuid, SystemTime>,
) -> Vec<Duration> {
    let mut late: Vec<Duration> = written
        .iter()
        .filter_map(|(id, committed)| Some(arrived.get(id)?.duration_since(*committed)))
        // One may arrive before its writer hears of its commit.
        .map(Result::unwrap_or_default)
        .collect();
    late.sort_unstable();
    late
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}
