//! Looking, on the server's side, for what was stored and not announced.
//!
//! A writer that knows nothing but the table wakes nobody. To find what it stored within milliseconds,
//! an idle relay would have to ask a hundred times a second. Instead it asks a few times, and each
//! time the server looks again and again before it answers: at the sequence, whose page is always in
//! memory, and which shows a number that was drawn before its transaction commits. So this is a hint
//! like any other, and the reader then looks for the commit.
//!
//! It reads the sequence as a table. `pg_sequence_last_value` would lock it as a writer does, and the
//! watermark would take the relay for one.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row};

use crate::waker::{ANSWER_WITHIN, within};

/// How long a statement goes on that finds nothing. As long as it does, it keeps `vacuum` from what
/// died meanwhile.
const LOOKS_FOR: Duration = Duration::from_millis(100);
/// The server's clock for sleeping has no finer steps.
const INTERVAL_MIN: Duration = Duration::from_millis(1);
/// After a number was drawn: the reader looks often by itself then.
const REST: Duration = Duration::from_millis(50);

/// A connection on which the server looks whether numbers are drawn.
pub(crate) struct Watch {
    connection: PgConnection,
    /// Between two looks.
    interval: Duration,
    /// The greatest number that was drawn when it last looked.
    drawn: i64,
}

impl Watch {
    /// With a connection of the pool's making, which does not come back to it.
    pub(crate) async fn open(pool: &PgPool, interval: Duration) -> sqlx::Result<Self> {
        let connection = pool.acquire().await?.detach();
        // The first look finds a number, whatever came while nobody watched.
        Ok(Self { connection, interval: interval.max(INTERVAL_MIN), drawn: -1 })
    }

    /// To be called after a number was drawn, before it looks again.
    pub(crate) async fn rest() {
        tokio::time::sleep(REST).await;
    }

    /// Whether a number was drawn since it last was. Looks for a tenth of a second, and where the interval
    /// is longer once after it.
    pub(crate) async fn look(&mut self) -> sqlx::Result<bool> {
        let looks = LOOKS_FOR.as_micros() / self.interval.as_micros();
        if looks == 0 {
            tokio::time::sleep(self.interval).await;
        }
        // `offset 0` has the server sleep before each look, not only before one that finds something, and
        // `look > 0` has it look anew each time. Of one message, so that a pooler may stand between.
        let sql = format!(
            "select drawn from (\
                 select pg_sleep(case when look = 1 then 0 else {interval} end), \
                     (select case when is_called then last_value else 0 end \
                      from outbox_events_seq where look > 0) as drawn \
                 from generate_series(1, {looks}) as look offset 0\
             ) as looks where drawn <> {drawn} limit 1",
            interval = self.interval.as_secs_f64(),
            looks = looks.max(1),
            drawn = self.drawn,
        );
        let looked = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_optional(&mut self.connection);
        let found = within(ANSWER_WITHIN, looked).await?;
        if let Some(row) = &found {
            self.drawn = row.try_get(0)?;
        }
        Ok(found.is_some())
    }
}
