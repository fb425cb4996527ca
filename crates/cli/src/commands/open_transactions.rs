//! The transactions that hold events back, for `status` and `doctor`.

use std::collections::HashSet;
use std::time::Duration;

use posthaste_core::{OpenTransaction, Result, TransactionHolder};
use serde_json::{Value, json};

use crate::config::units;
use crate::plain;
use crate::store::Store;

/// A transaction that ends sooner is every service's daily work.
pub(crate) const OPEN_FOR_MIN: Duration = Duration::from_secs(1);

/// So many are enough to see whose they are.
const SHOWN_MAX: usize = 5;

/// A statement can be as long as it likes; its beginning tells which one it is.
const QUERY_CHARS_MAX: usize = 120;

const NOT_PERMITTED: &str = "not permitted to see (grant pg_read_all_stats to this user)";

/// The oldest transactions that have been open for [`OPEN_FOR_MIN`] or longer.
///
/// Where we may not see a transaction's age, we look twice: what is still there then is as old as
/// the time between.
///
/// # Errors
/// The store's.
pub(crate) async fn find(store: &dyn Store) -> Result<Vec<OpenTransaction>> {
    // Without a right to see ages, all of a moment's short transactions are among them.
    const LOOKED_AT_MAX: usize = 1_000;
    let mut found = store.open_transactions(OPEN_FOR_MIN, LOOKED_AT_MAX).await?;
    if found.iter().any(|open| open.age.is_none()) {
        let before: HashSet<Box<str>> = found.into_iter().map(|open| open.token).collect();
        tokio::time::sleep(OPEN_FOR_MIN).await;
        found = store.open_transactions(OPEN_FOR_MIN, LOOKED_AT_MAX).await?;
        found.retain(|open| open.age.is_some() || before.contains(&open.token));
    }
    found.truncate(SHOWN_MAX);
    Ok(found)
}

/// One transaction as JSON. What we may not see is null, and `permitted` says so.
pub(crate) fn as_json(open: &OpenTransaction) -> Value {
    let age = open.age.map(|age| age.as_secs_f64());
    match &open.holder {
        TransactionHolder::Session { pid, application, client, activity } => json!({
            "kind": "session",
            "pid": pid,
            "prepared": null,
            "user": open.user,
            "application": application,
            "client": client,
            "age_seconds": age,
            "permitted": activity.is_some(),
            "state": activity.as_ref().map(|activity| &activity.state),
            "state_seconds": activity.as_ref().map(|activity| activity.state_for.as_secs_f64()),
            "query": activity.as_ref().map(|activity| shortened(&activity.query)),
        }),
        TransactionHolder::Prepared { name } => json!({
            "kind": "prepared",
            "pid": null,
            "prepared": name,
            "user": open.user,
            "application": null,
            "client": null,
            "age_seconds": age,
            "permitted": true,
            "state": null,
            "state_seconds": null,
            "query": null,
        }),
    }
}

/// One transaction in a line for people.
pub(crate) fn as_line(open: &OpenTransaction) -> String {
    let age = open.age.map_or_else(
        || format!("over {}", units::format_duration(OPEN_FOR_MIN)),
        units::format_duration,
    );
    let user = open.user.as_deref().unwrap_or("unknown");
    let line = match &open.holder {
        TransactionHolder::Prepared { name } => format!(
            "prepared transaction {name:?}, user {user}, for {age}: commit prepared or rollback \
             prepared"
        ),
        TransactionHolder::Session { pid, application, client, activity } => {
            let application = application.as_deref().unwrap_or("without a name");
            let client = client.as_deref().unwrap_or("local");
            let doing = activity.as_ref().map_or_else(
                || NOT_PERMITTED.to_owned(),
                |activity| {
                    let since = units::format_duration(activity.state_for);
                    format!("{} for {since}: {}", activity.state, shortened(&activity.query))
                },
            );
            format!(
                "pid {pid}, user {user}, application {application}, from {client}, open for {age}; \
                 {doing}"
            )
        }
    };
    plain::line(&line)
}

/// On one line, and not longer than needed to recognise it.
fn shortened(query: &str) -> String {
    let words: Vec<&str> = query.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(QUERY_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_one_short_line() {
        assert_eq!(shortened("select 1\n   from\tt"), "select 1 from t");
        let long = shortened(&"ü".repeat(500));
        assert_eq!(long.chars().count(), QUERY_CHARS_MAX + 1);
        assert!(long.ends_with('…'));
    }

    #[test]
    fn what_we_may_not_see_is_said_and_not_guessed() {
        let open = OpenTransaction {
            token: "3/7".into(),
            holder: TransactionHolder::Session {
                pid: 42,
                application: Some("shop\u{1b}[31m".into()),
                client: None,
                activity: None,
            },
            user: Some("shop".into()),
            age: None,
        };
        let line = as_line(&open);
        assert!(line.contains("pid 42") && line.contains("pg_read_all_stats"), "{line}");
        assert!(line.contains("over 1 s") && !line.contains('\u{1b}'), "{line}");
        let value = as_json(&open);
        assert_eq!((&value["permitted"], &value["age_seconds"]), (&json!(false), &Value::Null));
    }
}
