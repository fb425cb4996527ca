//! `posthaste events`.

use std::process::ExitCode;

use posthaste_core::{EventFilter, EventPlace, EventState, Pattern};
use serde_json::json;
use uuid::Uuid;

use super::event_view::{EventView, FullEventView, HEADER, row};
use crate::arguments::{ChangeArgs, EventsCommand, FilterArgs, IdPrefix};
use crate::config::Config;
use crate::exit::{Hint, UsageError};
use crate::listing::Listing;
use crate::logs;
use crate::output::{self, Output, count};
use crate::store::{self, Store};

/// Counting stops here: the question then says "more than".
const COUNT_MAX: u64 = 1_000_000;

/// Why a delivered event is not there.
const NO_HISTORY: &str = "; with relay.retention = \"0s\" delivered events are not kept";

/// What the commands that change events have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Retry,
    Release,
    Reroute,
    Discard,
}

impl Change {
    const fn verb(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Release => "release",
            Self::Reroute => "reroute",
            Self::Discard => "discard",
        }
    }

    const fn done(self) -> &'static str {
        match self {
            Self::Retry => "retried",
            Self::Release => "released",
            Self::Reroute => "rerouted",
            Self::Discard => "discarded",
        }
    }

    /// Why it does nothing to delivered events, and what does.
    const fn refuses_delivered(self) -> &'static str {
        match self {
            Self::Retry => {
                "a delivered event cannot be retried: it has arrived. To send it again, store it \
                 again: `posthaste events show ID --output json` has all of it for `posthaste publish`"
            }
            Self::Release => "a delivered event waits for nothing: it has arrived",
            Self::Reroute => {
                "a delivered event cannot be sent elsewhere: it has arrived. To send it again, store \
                 it again: `posthaste events show ID --output json` has all of it for \
                 `posthaste publish`"
            }
            Self::Discard => {
                "a delivered event cannot be discarded; `posthaste cleanup --older-than 30d` removes \
                 old ones"
            }
        }
    }

    /// The states it changes.
    const fn states(self) -> &'static [EventState] {
        match self {
            Self::Retry => &[EventState::Retrying, EventState::Dead],
            // `Pending` includes `Retrying`.
            Self::Release => &[EventState::Pending],
            Self::Reroute | Self::Discard => &[EventState::Pending, EventState::Dead],
        }
    }
}

/// Lists, shows or changes events.
pub(crate) async fn run(
    command: EventsCommand,
    config: &Config,
    output: Output,
) -> anyhow::Result<ExitCode> {
    match command {
        EventsCommand::List { filter, limit, after } => {
            list(filter, limit, after, config, output).await
        }
        EventsCommand::Show { id } => show(id, config, output).await,
        EventsCommand::Retry(args) => change(Change::Retry, args, None, config, output).await,
        EventsCommand::Release(args) => change(Change::Release, args, None, config, output).await,
        EventsCommand::Reroute { events, to, by_routes: _ } => {
            let known = |name: &String| config.destinations.iter().any(|it| it.name == *name);
            if let Some(name) = to.as_ref().filter(|name| !known(name)) {
                let names: Vec<_> = config.destinations.iter().map(|it| &*it.name).collect();
                return Err(UsageError(format!(
                    "no destination {name:?} is configured; there is {}. Add [destinations.{name}], \
                     or give --by-routes to send them where [[routes]] say",
                    names.join(", ")
                ))
                .into());
            }
            change(Change::Reroute, events, to.as_deref(), config, output).await
        }
        EventsCommand::Discard(args) => change(Change::Discard, args, None, config, output).await,
    }
}

async fn list(
    filter: FilterArgs,
    limit: usize,
    after: Option<EventPlace>,
    config: &Config,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let store = store::open_ready(config).await?;
    let filter = EventFilter { after, ..filter_of(&*store, filter).await? };
    // One more than asked for tells whether there are more.
    let mut events = store.list_events(&filter, limit.saturating_add(1)).await?;
    let more = events.len() > limit;
    events.truncate(limit);
    let next = match events.last().filter(|_| more) {
        Some(last) => store.event_place(last.id()).await?.map(|place| place.to_string()),
        None => None,
    };
    let views: Vec<EventView> = events.iter().map(EventView::new).collect();
    output.write(&json!({ "events": views, "more": more, "next": next }), || {
        if events.is_empty() {
            let why = if config.relay.keeps_delivered() { "" } else { NO_HISTORY };
            return format!("no events match{why}");
        }
        let (header, lead) = HEADER;
        let mut listing = Listing::new(header, lead);
        for event in &events {
            listing.add(row(event));
        }
        let more = match (more, next) {
            (true, Some(next)) => format!("\nthere are more: --after {next}"),
            (true, None) => "\nthere are more; the last one is gone by now: list again".to_owned(),
            (false, _) => String::new(),
        };
        format!("{}{more}", listing.for_stdout())
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn show(id: IdPrefix, config: &Config, output: Output) -> anyhow::Result<ExitCode> {
    let store = store::open_ready(config).await?;
    let id = whole(&*store, id).await?;
    let event = store
        .find_event(id)
        .await?
        .ok_or_else(|| Hint { message: format!("there is no event {id}"), hint: absent(config) })?;
    let view = FullEventView::new(&event);
    output.write(&view, || view.human(&event))?;
    Ok(ExitCode::SUCCESS)
}

/// Why an event may not be there.
fn absent(config: &Config) -> String {
    if config.relay.keeps_delivered() {
        return "it may have been cleaned up or discarded; `posthaste events list` shows what is there"
            .into();
    }
    format!("it may have been delivered or discarded{NO_HISTORY}")
}

/// The one id that begins so. Of a whole id nobody asks whether it is there.
async fn whole(store: &dyn Store, id: IdPrefix) -> anyhow::Result<Uuid> {
    if id.first == id.last {
        return Ok(id.first);
    }
    let between = EventFilter { ids_between: Some((id.first, id.last)), ..EventFilter::all() };
    let found = store.list_events(&between, 3).await?;
    match found.as_slice() {
        [only] => Ok(only.id()),
        [] => Err(Hint {
            message: "there is no event whose id begins so".into(),
            hint: "`posthaste events list` shows what is there".into(),
        }
        .into()),
        some => {
            let ids: Vec<String> = some.iter().map(|event| event.id().to_string()).collect();
            Err(UsageError(format!("several ids begin so; give more of one: {}", ids.join(", ")))
                .into())
        }
    }
}

async fn whole_ids(store: &dyn Store, ids: &[IdPrefix]) -> anyhow::Result<Vec<Uuid>> {
    let mut whole_ids = Vec::new();
    for id in ids {
        whole_ids.push(whole(store, *id).await?);
    }
    Ok(whole_ids)
}

async fn change(
    change: Change,
    args: ChangeArgs,
    to: Option<&str>,
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
        return Err(UsageError(change.refuses_delivered().into()).into());
    }
    let store = store::open_ready(config).await?;
    let mut filter = filter_of(&*store, args.filter).await?;
    if named > 0 {
        let ids = filter.ids.get_or_insert_default();
        ids.extend(whole_ids(&*store, &args.event_ids).await?);
        ids.sort_unstable();
        ids.dedup();
    }
    if args.all_matching && !args.yes && !confirm(change, &*store, &filter, config).await? {
        logs::say("nothing was changed");
        return Ok(ExitCode::FAILURE);
    }
    let changed = match change {
        Change::Retry => store.retry_events(&filter).await?,
        Change::Release => store.release_events(&filter).await?,
        Change::Reroute => store.reroute_events(&filter, to).await?,
        Change::Discard => store.discard_events(&filter).await?,
    };
    output.write(&json!({ change.done(): changed }), || {
        format!("{} {}", change.done(), count(changed, "event"))
    })?;
    if change == Change::Reroute && changed > 0 {
        tell_of_the_dead(&*store, &filter).await?;
    }
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

/// Whoever sends a dead letter elsewhere may think that it is delivered now.
async fn tell_of_the_dead(store: &dyn Store, filter: &EventFilter) -> anyhow::Result<()> {
    if filter.state.is_some_and(|state| state != EventState::Dead) {
        return Ok(());
    }
    let dead = EventFilter { state: Some(EventState::Dead), ..filter.clone() };
    let dead = store.count_events(&dead, COUNT_MAX).await?;
    if dead > 0 {
        logs::say(&format!(
            "{} among those that match: what is dead goes there after `posthaste events retry` with the \
             same ids or filters",
            count(dead, "dead letter")
        ));
    }
    Ok(())
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
            wanted != *state && (wanted, *state) != (EventState::Retrying, EventState::Pending)
        });
        if !excluded {
            let state = filter.state.unwrap_or(*state);
            let filter = EventFilter { state: Some(state), ..filter.clone() };
            matching += store.count_events(&filter, COUNT_MAX).await?;
        }
    }
    let more = if matching >= COUNT_MAX { "more than " } else { "" };
    let what = count(matching, "event");
    output::ask(&format!("{} {more}{what} in {}?", change.verb(), config.database.address()))
}

async fn filter_of(store: &dyn Store, args: FilterArgs) -> anyhow::Result<EventFilter> {
    let ids = whole_ids(store, &args.ids).await?;
    Ok(EventFilter {
        state: args.state,
        // Without ids the other filters decide: what changes events asks for --all-matching then.
        ids: (!ids.is_empty()).then_some(ids),
        event_type: args.event_type.map(Pattern::new),
        order_key: args.key,
        created_from: args.since,
        created_before: args.until,
        ..EventFilter::all()
    })
}
