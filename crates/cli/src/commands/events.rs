//! `posthaste events`.

use std::process::ExitCode;

use posthaste_core::{EventFilter, EventState};
use serde_json::json;
use uuid::Uuid;

use super::event_view::{EventView, FullEventView, row};
use crate::arguments::{ChangeArgs, EventsCommand, FilterArgs};
use crate::config::Config;
use crate::exit::{Hint, UsageError};
use crate::logs;
use crate::output::{self, Output, count, table};
use crate::store::{self, Store};

/// Counting stops here: the question then says "more than".
const COUNT_MAX: u64 = 1_000_000;

/// Why a delivered event is not there.
const NO_HISTORY: &str = "; with relay.retention = \"0s\" delivered events are not kept";

/// What `retry` and `discard` have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Retry,
    Discard,
}

impl Change {
    const fn verb(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Discard => "discard",
        }
    }

    const fn done(self) -> &'static str {
        match self {
            Self::Retry => "retried",
            Self::Discard => "discarded",
        }
    }

    /// The states it changes.
    const fn states(self) -> [EventState; 2] {
        match self {
            Self::Retry => [EventState::Retrying, EventState::Dead],
            // `Pending` includes `Retrying`.
            Self::Discard => [EventState::Pending, EventState::Dead],
        }
    }
}

/// Lists, shows, retries or discards events.
pub(crate) async fn run(
    command: EventsCommand,
    config: &Config,
    output: Output,
) -> anyhow::Result<ExitCode> {
    match command {
        EventsCommand::List { filter, limit } => list(filter, limit, config, output).await,
        EventsCommand::Show { id } => show(id, config, output).await,
        EventsCommand::Retry(args) => change(Change::Retry, args, config, output).await,
        EventsCommand::Discard(args) => change(Change::Discard, args, config, output).await,
    }
}

async fn list(
    filter: FilterArgs,
    limit: usize,
    config: &Config,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let store = store::open_ready(config).await?;
    // One more than asked for tells whether there are more.
    let mut events = store.list_events(&filter_of(filter), limit.saturating_add(1)).await?;
    let more = events.len() > limit;
    events.truncate(limit);
    let views: Vec<EventView> = events.iter().map(EventView::new).collect();
    output.write(&json!({ "events": views, "more": more }), || {
        if events.is_empty() {
            let why = if config.relay.keeps_delivered() { "" } else { NO_HISTORY };
            return format!("no events match{why}");
        }
        let mut table = table(["id", "state", "type", "key", "created", "failed"]);
        for event in &events {
            table.add_row(row(event));
        }
        let more = if more { "\nthere are more; raise --limit or narrow the filters" } else { "" };
        format!("{table}{more}")
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn show(id: Uuid, config: &Config, output: Output) -> anyhow::Result<ExitCode> {
    let event = store::open_ready(config).await?.find_event(id).await?.ok_or_else(|| Hint {
        message: format!("there is no event {id}"),
        hint: if config.relay.keeps_delivered() {
            "it may have been cleaned up or discarded; `posthaste events list` shows what is there"
                .into()
        } else {
            format!("it may have been delivered or discarded{NO_HISTORY}")
        },
    })?;
    let view = FullEventView::new(&event);
    output.write(&view, || view.human(&event))?;
    Ok(ExitCode::SUCCESS)
}

async fn change(
    change: Change,
    args: ChangeArgs,
    config: &Config,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let named = args.event_ids.len();
    if named == 0 && !args.all_matching {
        return Err(UsageError(format!(
            "name the events to {0} by their ids, or give filters and --all-matching",
            change.verb()
        ))
        .into());
    }
    if args.filter.state == Some(EventState::Delivered) {
        return Err(UsageError(format!(
            "a delivered event cannot be {}; `posthaste cleanup` removes old ones",
            change.done()
        ))
        .into());
    }
    let mut filter = filter_of(args.filter);
    if named > 0 {
        let ids = filter.ids.get_or_insert_default();
        ids.extend(args.event_ids);
        ids.sort_unstable();
        ids.dedup();
    }
    let store = store::open_ready(config).await?;
    if args.all_matching && !args.yes && !confirm(change, &*store, &filter, config).await? {
        logs::say("nothing was changed");
        return Ok(ExitCode::FAILURE);
    }
    let changed = match change {
        Change::Retry => store.retry_events(&filter).await?,
        Change::Discard => store.discard_events(&filter).await?,
    };
    output.write(&json!({ change.done(): changed }), || {
        format!("{} {}", change.done(), count(changed, "event"))
    })?;
    let rest = (filter.ids.map_or(0, |ids| ids.len()) as u64).saturating_sub(changed);
    if named > 0 && rest > 0 {
        logs::say(&format!(
            "{} of the ids given could not be {}: not there, delivered, or nothing to change",
            rest,
            change.done()
        ));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows how many events are meant and asks; refuses where nobody can answer.
async fn confirm(
    change: Change,
    store: &dyn Store,
    filter: &EventFilter,
    config: &Config,
) -> anyhow::Result<bool> {
    if !output::can_ask() {
        return Err(UsageError(format!(
            "--all-matching asks whether to {0}, and there is no terminal to ask on; give --yes",
            change.verb()
        ))
        .into());
    }
    let mut matching = 0;
    for state in change.states() {
        // A state that the filter excludes has nothing to count.
        let excluded = filter.state.is_some_and(|wanted| {
            wanted != state && (wanted, state) != (EventState::Retrying, EventState::Pending)
        });
        if !excluded {
            let state = filter.state.unwrap_or(state);
            let filter = EventFilter { state: Some(state), ..filter.clone() };
            matching += store.count_events(&filter, COUNT_MAX).await?;
        }
    }
    let more = if matching >= COUNT_MAX { "more than " } else { "" };
    let what = count(matching, "event");
    output::ask(&format!("{} {more}{what} in {}?", change.verb(), config.database.address()))
}

fn filter_of(args: FilterArgs) -> EventFilter {
    EventFilter {
        state: args.state,
        // Without ids the other filters decide: what changes events asks for --all-matching then.
        ids: (!args.ids.is_empty()).then_some(args.ids),
        event_type: args.event_type,
        order_key: args.key,
        created_from: args.since,
        created_before: args.until,
        after: None,
    }
}
