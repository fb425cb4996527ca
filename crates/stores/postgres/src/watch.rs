//! Looking, on the server's side, for what was stored and not announced.
//!
//! A writer that knows nothing but the table wakes nobody. To find what it stored within milliseconds,
//! an idle relay would have to ask hundreds of times a second. Instead it asks a few times, and each
//! time the server looks again and again before it answers: at the sequence, whose page is always in
//! memory, and which shows a number that was drawn before its transaction commits. So this is a hint
//! like any other, and the reader then looks for the commit.
//!
//! It reads the sequence as a table. `pg_sequence_last_value` would lock it as a writer does, and the
//! watermark would take the relay for one.

use std::io;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection, Row};

/// How long a statement goes on that finds nothing. As long as it does, it keeps `vacuum` from what
/// died meanwhile.
const LOOKS_FOR: Duration = Duration::from_millis(200);
/// After a number was drawn: the reader looks often by itself then.
const REST: Duration = Duration::from_millis(50);
/// A statement that takes longer has failed.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A connection on which the server looks whether numbers are drawn.
pub(crate) struct Watch {
    connection: PgConnection,
    /// Between two looks.
    interval: Duration,
    /// The greatest number that was drawn when it last looked.
    drawn: i64,
}

impl Watch {
    pub(crate) async fn open(options: &PgConnectOptions, interval: Duration) -> sqlx::Result<Self> {
        let connection = options.connect().await?;
        let mut watch = Self { connection, interval, drawn: -1 };
        watch.look().await?;
        Ok(watch)
    }

    /// Completes when a number was drawn since it last did.
    pub(crate) async fn next(&mut self) -> sqlx::Result<()> {
        tokio::time::sleep(REST).await;
        while !self.look().await? {}
        Ok(())
    }

    /// Whether a number was drawn before the statement ended.
    async fn look(&mut self) -> sqlx::Result<bool> {
        // `offset 0` has the server sleep before each look, and not only before one that finds something.
        // Of one message, so that a pooler may stand between.
        let sql = format!(
            "select drawn from (\
                 select pg_sleep(case when look = 1 then 0 else {interval} end), \
                     (select case when is_called then last_value else 0 end \
                      from outbox_events_seq where look > 0) as drawn \
                 from generate_series(1, {looks}) as look offset 0\
             ) as looks where drawn <> {drawn} limit 1",
            interval = self.interval.as_secs_f64(),
            looks = (LOOKS_FOR.as_micros() / self.interval.as_micros().max(1)).max(2),
            drawn = self.drawn,
        );
        let looked = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_optional(&mut self.connection);
        let answer = tokio::time::timeout(ANSWER_WITHIN, looked).await;
        let found = answer.map_err(|_| sqlx::Error::Io(io::ErrorKind::TimedOut.into()))??;
        if let Some(row) = &found {
            self.drawn = row.try_get(0)?;
        }
        Ok(found.is_some())
    }
}
