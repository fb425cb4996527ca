//! Other outboxes, each as its documentation says it is used.

use std::time::{Duration, Instant};

use anyhow::Result;
use sqlx::{AssertSqlSafe, Row as _};

use crate::bed::{Completions, Layout, connect};
use crate::floor::decode;
use crate::stream::{PAGE_EVENTS, Stream, Window};

/// The poller that most services begin with: `workers` transactions at a time, each of them
/// `begin; select … limit batch for update skip locked; publish; update; commit`. Into nothing where
/// there is no stream. Ends when nothing waits, or pauses and looks again.
pub(crate) async fn skip_locked_poller(
    url: &str,
    stream: Option<&Stream>,
    workers: usize,
    batch: usize,
    pause: Option<Duration>,
) -> Result<()> {
    let select = format!(
        "select seq, id, aggregate_id, event_type, event_data::text, created_at \
         from outbox_events where processed_at is null order by seq limit {batch} \
         for update skip locked"
    );
    let one_worker = async || {
        let mut connection = connect(url).await?;
        loop {
            let mut transaction = sqlx::Connection::begin(&mut connection).await?;
            let rows =
                sqlx::query(AssertSqlSafe(select.as_str())).fetch_all(&mut *transaction).await?;
            if rows.is_empty() {
                transaction.rollback().await?;
                let Some(pause) = pause else { return anyhow::Ok(()) };
                tokio::time::sleep(pause).await;
                continue;
            }
            let mut ids = Vec::with_capacity(rows.len());
            let mut answers = Vec::with_capacity(rows.len());
            for row in &rows {
                let ((_, id), message) = decode(row, Layout::Flat)?;
                if let Some(stream) = stream {
                    answers.push(stream.send(message).await?);
                }
                ids.push(id);
            }
            // All of a batch are under way together: the order within a key is nobody's business.
            for answer in answers {
                answer.await?;
            }
            sqlx::query("update outbox_events set processed_at = now() where id = any($1)")
                .bind(ids)
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await?;
        }
    };
    futures_util::future::try_join_all((0..workers).map(|_| one_worker())).await?;
    Ok(())
}

/// A consumer of PgQ, the queue of Skype's tools: batch after batch, each as large as the ticker made
/// it. A batch ends when all of it is acknowledged; PgQ hands out no other one meanwhile. Ends when there is
/// none, or pauses and asks again.
pub(crate) async fn pgq_consumer(
    url: &str,
    stream: &Stream,
    pause: Option<Duration>,
) -> Result<Completions> {
    let mut connection = connect(url).await?;
    let begun = Instant::now();
    let mut steps = Vec::new();
    loop {
        let batch = sqlx::query("select pgq.next_batch('events', 'relay')");
        let Some(batch) = batch.fetch_one(&mut connection).await?.try_get::<Option<i64>, _>(0)?
        else {
            let Some(pause) = pause else { return Ok(Completions::of(steps)) };
            tokio::time::sleep(pause).await;
            continue;
        };
        let rows = sqlx::query(
            "select ev_id, ev_extra1::uuid, ev_extra2::uuid, ev_type, ev_data, ev_time \
             from pgq.get_batch_events($1)",
        )
        .bind(batch)
        .fetch_all(&mut connection)
        .await?;
        let mut window = Window::new(stream, PAGE_EVENTS);
        for row in &rows {
            let (_, message) = decode(row, Layout::Flat)?;
            window.send((), message).await?;
        }
        window.rest().await?;
        sqlx::query("select pgq.finish_batch($1)").bind(batch).execute(&mut connection).await?;
        steps.push((begun.elapsed().as_secs_f64(), i64::try_from(rows.len())?));
    }
}
