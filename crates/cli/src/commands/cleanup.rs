//! `posthaste cleanup`.

use std::time::Duration;

use serde_json::json;

use crate::config::Config;
use crate::output::{Output, count};
use crate::store;

/// Removes events delivered longer ago than `older_than`.
pub(crate) async fn run(
    older_than: Duration,
    config: &Config,
    output: Output,
) -> anyhow::Result<()> {
    let removed = store::open_ready(config).await?.cleanup_processed(older_than).await?;
    output.write(&json!({ "removed": removed }), || {
        format!("removed {}", count(removed, "delivered event"))
    })
}
