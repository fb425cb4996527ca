//! What `posthaste doctor` looks at in the database: what keeps events from being delivered though the
//! server answers. Each look reads only, waits for locks briefly, and is by itself: one that fails says so,
//! and the others go on.

mod guards;
mod locks;
mod rows;
mod schema;
mod statements;

use std::future::Future;
use std::time::Duration;

use posthaste_core::{Finding, Result, Severity};

use crate::error::failed;
use crate::outbox::PostgresOutbox;
use crate::rights;
use crate::session::Session;

pub(crate) use guards::sequence_fault;
pub(crate) use schema::schemas_with_an_outbox;

const LOOK: &str = "look at the outbox";

/// No look has a right to load the database for longer.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) async fn diagnose(outbox: &PostgresOutbox) -> Vec<Finding> {
    let mut findings = vec![one(outbox, "writes", schema::look_at_writes(outbox)).await];
    let schema = outbox.bounded(LOOK, schema::look(outbox)).await;
    let is_there = !matches!(&schema, Ok(schema) if !schema.is_there);
    let is_of_another_version = matches!(&schema, Ok(schema) if schema.is_of_another_version);
    findings.push(match schema {
        Ok(schema) => schema.finding,
        Err(error) => Finding::unknown("schema", &error),
    });
    if !is_there {
        return findings;
    }
    let rights = one(outbox, "rights", look_at_rights(outbox)).await;
    let has_rights = rights.severity == Severity::Fine;
    findings.push(rights);
    // Each would be refused for a column that is not there, which the version has told.
    if !is_of_another_version {
        findings.push(one(outbox, "statements", statements::look(outbox, has_rights)).await);
    }
    findings.push(one(outbox, "row level security", guards::look_at_row_security(outbox)).await);
    findings.push(one(outbox, "replica identity", guards::look_at_identities(outbox)).await);
    findings.push(one(outbox, "subscriptions", guards::look_at_subscriptions(outbox)).await);
    findings.push(one(outbox, "sequence", guards::look_at_sequence(outbox)).await);
    findings.push(one(outbox, "rows", rows::look(outbox)).await);
    findings.push(one(outbox, "locks", locks::look(outbox)).await);
    findings
}

async fn one(
    outbox: &PostgresOutbox,
    about: &'static str,
    look: impl Future<Output = Result<Finding>> + Send,
) -> Finding {
    let found = outbox.bounded(LOOK, look).await;
    found.unwrap_or_else(|error| Finding::unknown(about, &error))
}

/// A transaction that reads only, and waits for nobody long.
async fn reading(outbox: &PostgresOutbox) -> Result<Session> {
    let mut session = outbox.transaction(PATIENCE, LOOK).await?;
    sqlx::raw_sql("set transaction read only; set local lock_timeout = '2s'")
        .execute(session.connection())
        .await
        .map_err(failed(LOOK))?;
    Ok(session)
}

async fn look_at_rights(outbox: &PostgresOutbox) -> Result<Finding> {
    const ABOUT: &str = "rights";
    let mut session = reading(outbox).await?;
    let missing = rights::missing(&mut session, LOOK).await?;
    session.finish().await?;
    if missing.is_empty() {
        return Ok(Finding::fine(ABOUT, "this user has all that a relay needs"));
    }
    let message = format!("this user lacks: {}", rights::by_object(&missing));
    Ok(Finding::new(ABOUT, Severity::Error, message)
        .with_hint("`posthaste migrate sql --roles` has the grants for each role"))
}
