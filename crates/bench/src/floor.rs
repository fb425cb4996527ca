//! The limits: what PostgreSQL, NATS and both together give to whoever does nothing else.
//!
//! The bare loop runs the store's own statements and the bus's own client calls, overlapped: one task
//! reads, one publishes, one completes. It keeps no order, holds no lease, tries nothing again,
//! chooses no route and counts nothing.

use std::time::Instant;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use posthaste_postgres::statements;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Row as _, ValueRef as _};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::bed::{Database, Layout, connect, run};
use crate::stream::{Message, PAGE_EVENTS, Stream, Window};
use crate::workload::{EVENT_TYPE, Workload};

/// Pages between two tasks.
const PAGES_BUFFERED: usize = 4;

const FLAT_AHEAD: &str = "\
    select seq, id, aggregate_id, event_type, event_data::text, created_at from outbox_events \
    where processed_at is null and seq > $1 order by seq limit $2";
const FLAT_DELIVERED: &str = "\
    update outbox_events event set processed_at = now() \
    from unnest((select $1::bigint[]), (select $2::uuid[])) as outcome (seq, id) \
    where event.processed_at is null and event.id = outcome.id";

/// What names a row.
pub(crate) type Place = (i64, Uuid);
type Page = Vec<(Place, Message)>;

/// Reads page after page, until there is none or nobody takes them.
async fn read(
    connection: &mut PgConnection,
    layout: Layout,
    pages: mpsc::Sender<Page>,
) -> Result<()> {
    let mut after = 0_i64;
    loop {
        let limit = i64::try_from(PAGE_EVENTS)?;
        let mut rows = match layout {
            Layout::Partitioned => sqlx::query(statements::AHEAD)
                .bind(limit)
                .bind(64_i64 << 20)
                .bind(after)
                .fetch(&mut *connection),
            _ => sqlx::query(FLAT_AHEAD).bind(after).bind(limit).fetch(&mut *connection),
        };
        let mut page = Vec::with_capacity(PAGE_EVENTS);
        while let Some(row) = rows.try_next().await? {
            page.push(decode(&row, layout)?);
        }
        drop(rows);
        let Some(((last, _), _)) = page.last() else { return Ok(()) };
        after = *last;
        if pages.send(page).await.is_err() {
            return Ok(());
        }
    }
}

/// Only what is sent.
pub(crate) fn decode(row: &PgRow, layout: Layout) -> Result<(Place, Message)> {
    let [key, event_type, data, created_at] = match layout {
        Layout::Partitioned => [2, 4, 5, 12],
        _ => [2, 3, 4, 5],
    };
    let id = row.try_get(1)?;
    let micros = row.try_get_raw(created_at)?;
    let micros = if micros.is_null() { &[0; 8] } else { micros.as_bytes().unwrap_or(&[0; 8]) };
    let micros = i64::from_be_bytes(micros.try_into().context("a time of eight bytes")?);
    let message = Message {
        id,
        key: row.try_get(key)?,
        event_type: row.try_get(event_type)?,
        // PostgreSQL counts from 2000.
        created_at: Timestamp::from_microsecond(micros + 946_684_800_000_000)?,
        body: Bytes::copy_from_slice(row.try_get::<&str, _>(data)?.as_bytes()),
    };
    Ok(((row.try_get(0)?, id), message))
}

async fn complete(connection: &mut PgConnection, layout: Layout, places: Vec<Place>) -> Result<()> {
    let count = places.len();
    let (seqs, ids): (Vec<i64>, Vec<Uuid>) = places.into_iter().unzip();
    let done = match layout {
        Layout::Partitioned => {
            // One lease, as a relay that works alone has; there is nothing to look up.
            let leases = vec![None::<i16>; count];
            sqlx::query(statements::DELIVERED)
                .bind(Vec::<i16>::new())
                .bind(Vec::<i64>::new())
                .bind(seqs)
                .bind(ids)
                .bind(leases)
                .execute(connection)
                .await?
        }
        _ => sqlx::query(FLAT_DELIVERED).bind(seqs).bind(ids).execute(connection).await?,
    };
    anyhow::ensure!(done.rows_affected() == count as u64, "some events were completed before");
    Ok(())
}

/// The store's statements run on connections that keep their plans, so they do here.
async fn open(database: &Database, layout: Layout) -> Result<PgConnection> {
    let mut connection = connect(&database.url).await?;
    if layout == Layout::Partitioned {
        run(&mut connection, statements::for_session()).await?;
    }
    Ok(connection)
}

/// Reads everything, completes nothing. Events a second.
pub(crate) async fn read_only(database: &Database, layout: Layout) -> Result<f64> {
    let mut connection = open(database, layout).await?;
    let begun = Instant::now();
    let mut events = 0;
    let (pages, mut taken) = mpsc::channel::<Page>(PAGES_BUFFERED);
    let reader = tokio::spawn(async move { read(&mut connection, layout, pages).await });
    while let Some(page) = taken.recv().await {
        events += page.len();
    }
    reader.await??;
    Ok(events as f64 / begun.elapsed().as_secs_f64())
}

/// Reads, publishes and completes, overlapped. Into nothing where there is no stream. When each event
/// was completed, the database knows.
pub(crate) async fn bare_loop(
    database: &Database,
    layout: Layout,
    stream: Option<&Stream>,
    window: usize,
) -> Result<()> {
    let mut reading = open(database, layout).await?;
    let mut completing = open(database, layout).await?;
    let (pages, mut to_publish) = mpsc::channel::<Page>(PAGES_BUFFERED);
    let (published, mut to_complete) = mpsc::channel::<Vec<Place>>(PAGES_BUFFERED);
    let reader = tokio::spawn(async move { read(&mut reading, layout, pages).await });
    let completer = tokio::spawn(async move {
        while let Some(places) = to_complete.recv().await {
            complete(&mut completing, layout, places).await?;
        }
        anyhow::Ok(())
    });
    match stream {
        None => {
            while let Some(page) = to_publish.recv().await {
                let places = page.into_iter().map(|(place, _)| place).collect();
                published.send(places).await.context("completing ended")?;
            }
        }
        Some(stream) => {
            let mut window = Window::new(stream, window);
            let mut done = Vec::with_capacity(PAGE_EVENTS);
            while let Some(page) = to_publish.recv().await {
                for (place, message) in page {
                    done.extend(window.send(place, message).await?);
                    if done.len() >= PAGE_EVENTS {
                        published.send(std::mem::take(&mut done)).await?;
                    }
                }
            }
            done.extend(window.rest().await?);
            published.send(done).await?;
        }
    }
    drop(published);
    reader.await??;
    completer.await?
}

/// Publishes from memory. Events a second.
pub(crate) async fn broker_only(
    stream: &Stream,
    workload: &Workload,
    window: usize,
) -> Result<f64> {
    let created_at = Timestamp::now();
    let messages: Vec<Message> = workload
        .events()
        .map(|event| Message {
            id: event.id,
            key: event.key,
            event_type: EVENT_TYPE.to_owned(),
            created_at,
            body: Bytes::from(event.data),
        })
        .collect();
    let events = messages.len();
    let begun = Instant::now();
    let mut window = Window::new(stream, window);
    for message in messages {
        window.send((), message).await?;
    }
    window.rest().await?;
    Ok(events as f64 / begun.elapsed().as_secs_f64())
}
