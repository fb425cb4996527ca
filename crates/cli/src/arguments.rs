//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::TypedValueParser as _;
use clap::{Args, Parser, Subcommand};
use jiff::Timestamp;
use jiff::civil::Date;
use posthaste_core::{EventPlace, EventState};
use uuid::Uuid;

use crate::config::units;
use crate::demo::DemoArgs;
use crate::output::OutputFormat;

const EXIT_CODES: &str = "\
Data goes to standard output, logs and progress to standard error.
Exit codes: 0 done, 1 failed, 2 wrong usage, 78 bad configuration.";

/// A transactional outbox: stores events with the data, delivers each at least once, in order per
/// key.
#[derive(Debug, Parser)]
#[command(name = "posthaste", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
pub(crate) struct GlobalArgs {
    /// Configuration file [default: posthaste.toml where it exists]
    #[arg(
        short,
        long,
        global = true,
        value_name = "FILE",
        env = "POSTHASTE_CONFIG",
        // An empty variable is one that nobody set.
        value_parser = clap::builder::OsStringValueParser::new().map(PathBuf::from)
    )]
    pub(crate) config: Option<PathBuf>,
    /// The outbox: postgres://USER@HOST/DATABASE or sqlite:PATH; overrules all other places
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) database_url: Option<String>,
    /// Form of results on standard output
    #[arg(short, long, global = true, value_name = "FORM", default_value = "human")]
    pub(crate) output: OutputFormat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows the outbox doing its job, with failures on purpose; needs no server
    Demo(DemoArgs),
    /// Runs the relay: delivers events until it is stopped
    Run(RunArgs),
    /// Creates and upgrades the schema
    Migrate {
        #[command(subcommand)]
        command: MigrateCommand,
    },
    /// Stores events
    Publish(Box<PublishArgs>),
    /// Shows the schema's version, what waits, and which transactions hold events back
    Status,
    /// Finds what keeps events from being delivered: configuration, database, destinations, dead
    /// letters, transactions left open
    Doctor,
    /// Lists, shows, retries and discards events
    Events {
        #[command(subcommand)]
        command: EventsCommand,
    },
    /// Lists keys that wait for an operator or a retry
    Keys {
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Removes delivered events; never a pending or dead one
    Cleanup {
        /// Those delivered longer ago than this: 30d, 12h
        #[arg(long, value_name = "DURATION", value_parser = units::parse_duration)]
        older_than: Duration,
    },
    /// Checks, shows and explains the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Writes a completion script to standard output
    Completions {
        /// The shell it is for
        shell: clap_complete::Shell,
    },
}

/// Without a configuration, reads the SQLite file posthaste.db in the working directory and writes
/// events to standard output. A first SIGTERM, SIGINT or SIGHUP stops fetching and waits for
/// acknowledgements; a second one exits at once.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Offer every event that is due once, then exit
    #[arg(long, conflicts_with = "drain")]
    pub(crate) once: bool,
    /// Deliver until nothing is due, waiting for retries and outages, then exit
    #[arg(long)]
    pub(crate) drain: bool,
    /// With --once or --drain: exit with 1 when the database cannot be reached for so long
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, default_value = "1m")]
    give_up_after: Duration,
}

impl RunArgs {
    /// How long a run that ends by itself waits for the database; `None` for one that goes on.
    pub(crate) fn patience(&self) -> Option<Duration> {
        (self.once || self.drain).then_some(self.give_up_after)
    }
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum MigrateCommand {
    /// Applies what is missing
    Up,
    /// Shows what the database has and what this version wants
    Status,
    /// Writes migrations as SQL, for reviewers, alembic, Flyway, goose and Liquibase
    Sql(MigrateSqlArgs),
    /// Turns an outbox_events table of your own into posthaste's, keeping its rows (PostgreSQL)
    Adopt {
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct MigrateSqlArgs {
    /// From this version on, which the database has; with --down, back to this one
    #[arg(long, value_name = "VERSION", default_value_t = 0, hide_default_value = true)]
    pub(crate) from: u32,
    /// For this database [default: the one of the configuration]
    #[arg(long, value_name = "NAME")]
    pub(crate) dialect: Option<SqlDialect>,
    /// How statements are written
    #[arg(long, value_name = "FORM", default_value = "plain")]
    pub(crate) format: SqlFormat,
    /// The way back; without --from it drops the outbox with all events
    #[arg(long)]
    pub(crate) down: bool,
    /// Roles and rights for writers, relays, operators and the migrator, instead
    #[arg(long, conflicts_with_all = ["from", "down"])]
    pub(crate) roles: bool,
}

/// Whose SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum SqlDialect {
    /// PostgreSQL's
    Postgres,
    /// SQLite's
    Sqlite,
}

/// How statements are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum SqlFormat {
    /// With comments and line breaks
    Plain,
    /// One statement a line, without comments and dollar quotes: for asyncpg, goose and Liquibase
    Statements,
}

const BULK: &str = "\
Bulk: --from FILE.ndjson reads one JSON object a line, with the keys
  aggregate_id         UUID; required
  type                 required (also: event_type)
  data                 any JSON; required unless data_base64 is given (also: event_data)
  data_base64          bytes instead of JSON, with content_type
  key                  order key (also: order_key, partition_key)
  aggregate_type, destination, topic, id, headers {name: value},
  available_at         RFC 3339
  max_retries          whole number
created_at is taken and ignored, so that lines the relay wrote can be stored again.
Batches of 500 are stored, each in one transaction. At the first bad line it stops, says how many
lines were stored, and --skip N goes on from there.";

#[derive(Debug, Args)]
#[command(after_help = BULK)]
pub(crate) struct PublishArgs {
    /// What happened: order.placed
    #[arg(value_name = "TYPE", required_unless_present = "from", conflicts_with = "from")]
    pub(crate) event_type: Option<String>,
    /// What it is about
    #[arg(long, value_name = "UUID", required_unless_present = "from", conflicts_with = "from")]
    pub(crate) aggregate_id: Option<Uuid>,
    /// The kind of thing it is about
    #[arg(long, value_name = "NAME", conflicts_with = "from")]
    pub(crate) aggregate_type: Option<String>,
    /// What orders it, instead of the aggregate's id
    #[arg(long, value_name = "KEY", conflicts_with = "from")]
    pub(crate) key: Option<String>,
    /// Name of a configured destination, instead of what the routes choose
    #[arg(long, value_name = "NAME", conflicts_with = "from")]
    pub(crate) destination: Option<String>,
    /// Subject, topic, queue or path within the destination
    #[arg(long, value_name = "NAME", conflicts_with = "from")]
    pub(crate) topic: Option<String>,
    /// A header that travels along; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = parse_header, conflicts_with = "from")]
    pub(crate) headers: Vec<(String, String)>,
    /// Identity of your own [default: a new UUIDv7]
    #[arg(long, value_name = "UUID", conflicts_with = "from")]
    pub(crate) id: Option<Uuid>,
    /// Not to be delivered before this time (RFC 3339)
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with_all = ["delay", "from"])]
    pub(crate) available_at: Option<Timestamp>,
    /// Not to be delivered before so long from now: 10m
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, conflicts_with = "from")]
    pub(crate) delay: Option<Duration>,
    /// Failed attempts after which it becomes a dead letter [default: 3]
    #[arg(long, value_name = "N", conflicts_with = "from")]
    pub(crate) max_retries: Option<u32>,
    /// Media type; the data is then taken as bytes, not as JSON
    #[arg(long, value_name = "TYPE", conflicts_with = "from")]
    pub(crate) content_type: Option<String>,
    #[command(flatten)]
    pub(crate) body: BodyArgs,
    /// Store one event for each line of this file; - reads standard input
    #[arg(long, value_name = "FILE.ndjson")]
    pub(crate) from: Option<PathBuf>,
    /// With --from: skip so many lines, which an earlier run has stored
    #[arg(
        long,
        value_name = "N",
        requires = "from",
        default_value_t = 0,
        hide_default_value = true
    )]
    pub(crate) skip: u64,
}

/// Where the body of a single event comes from: exactly one.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct BodyArgs {
    /// The body itself
    #[arg(long, value_name = "JSON", conflicts_with = "from", allow_hyphen_values = true)]
    pub(crate) data: Option<String>,
    /// A file with the body; - reads standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "from")]
    pub(crate) file: Option<PathBuf>,
    /// A single dash: the body is on standard input
    #[arg(value_name = "-", value_parser = ["-"], conflicts_with = "from")]
    pub(crate) dash: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EventsCommand {
    /// Lists events: pending and dead in their order, delivered ones latest first
    List {
        #[command(flatten)]
        filter: FilterArgs,
        /// The most events to list
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = parse_limit)]
        limit: usize,
        /// Only events behind this place, which the page before names
        #[arg(long, value_name = "PLACE", value_parser = parse_place)]
        after: Option<EventPlace>,
    },
    /// Shows one event with its body
    Show {
        /// Its id, or enough of its beginning
        #[arg(value_parser = parse_id)]
        id: IdPrefix,
    },
    /// Gives dead letters a fresh set of retries, and makes waiting retries due at once
    Retry(ChangeArgs),
    /// Makes pending events due now: delayed ones, and those that wait for a retry
    Release(ChangeArgs),
    /// Sends pending and dead events to another destination than they were meant for; a dead letter
    /// stays dead until `events retry`
    Reroute {
        #[command(flatten)]
        events: ChangeArgs,
        /// The name of a configured destination
        #[arg(long, value_name = "NAME", required_unless_present = "by_routes")]
        to: Option<String>,
        /// Where the configured routes send them
        #[arg(long, conflicts_with = "to")]
        by_routes: bool,
    },
    /// Deletes pending and dead events, undelivered
    Discard(ChangeArgs),
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum KeysCommand {
    /// Lists keys with a dead letter, then keys that wait for a retry, by the place of that event
    List {
        /// Only keys that wait for this
        #[arg(long, value_name = "WHAT")]
        by: Option<KeysBy>,
        /// The most keys to list
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = parse_limit)]
        limit: usize,
        /// Only keys whose event is after this place: the next page
        #[arg(
            long,
            value_name = "PLACE",
            requires = "by",
            default_value_t = 0,
            hide_default_value = true
        )]
        after: i64,
    },
}

/// What a key waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum KeysBy {
    /// An operator: one of its events is a dead letter
    Dead,
    /// The next attempt of an event that failed
    Retry,
}

/// Which events; every filter that is given must match.
#[derive(Debug, Args)]
pub(crate) struct FilterArgs {
    /// In this state; pending includes retrying
    #[arg(long, value_parser = parse_state)]
    pub(crate) state: Option<EventState>,
    /// Of this event type; * stands for any run of characters, as in routes
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) event_type: Option<String>,
    /// Of this order key, or of this aggregate
    #[arg(long)]
    pub(crate) key: Option<String>,
    /// Stored at or after: 2h (ago), 2026-01-31, or RFC 3339
    #[arg(long, value_name = "TIME", value_parser = parse_when)]
    pub(crate) since: Option<Timestamp>,
    /// Stored before
    #[arg(long, value_name = "TIME", value_parser = parse_when)]
    pub(crate) until: Option<Timestamp>,
    /// With this id, or enough of its beginning; may be repeated
    #[arg(long = "id", value_name = "UUID", value_parser = parse_id)]
    pub(crate) ids: Vec<IdPrefix>,
}

#[derive(Debug, Args)]
pub(crate) struct ChangeArgs {
    /// The events with these ids, or enough of their beginnings
    #[arg(value_name = "ID", value_parser = parse_id)]
    pub(crate) event_ids: Vec<IdPrefix>,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    /// All events that match the filters (all there are, without filters)
    #[arg(long, conflicts_with = "event_ids")]
    pub(crate) all_matching: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Checks everything and connects to nothing
    Check,
    /// Shows every value in force and where it came from; secrets are hidden
    Show,
    /// Writes the reference of all keys as Markdown
    Reference,
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a header has the form NAME=VALUE")?;
    // The same rules as for every other writer, told at the place of the mistake.
    posthaste_core::Headers::new().insert(name, value).map_err(|error| error.report())?;
    Ok((name.to_owned(), value.to_owned()))
}

fn parse_state(text: &str) -> Result<EventState, String> {
    EventState::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
        let names: Vec<&str> = EventState::ALL.iter().map(|state| state.as_str()).collect();
        format!("one of: {}", names.join(", "))
    })
}

/// The ids that begin alike: one, where all of it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdPrefix {
    pub(crate) first: Uuid,
    pub(crate) last: Uuid,
}

/// Fewer signs of an id say nothing.
const ID_DIGITS_MIN: usize = 4;

fn parse_id(text: &str) -> Result<IdPrefix, String> {
    if let Ok(id) = text.parse::<Uuid>() {
        return Ok(IdPrefix { first: id, last: id });
    }
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let filled = |sign: &str| {
        let zeros = sign.repeat(32_usize.saturating_sub(digits.len()));
        Uuid::try_parse(&format!("{digits}{zeros}")).ok()
    };
    match (filled("0"), filled("f")) {
        (Some(first), Some(last)) if digits.len() >= ID_DIGITS_MIN => Ok(IdPrefix { first, last }),
        _ => Err(format!("an id, or at least the first {ID_DIGITS_MIN} of its hexadecimal digits")),
    }
}

fn parse_place(text: &str) -> Result<EventPlace, String> {
    text.parse().map_err(|_| "the place that `posthaste events list` named last".to_owned())
}

fn parse_limit(text: &str) -> Result<usize, String> {
    let limit: u32 = text.parse().map_err(|_| "a limit is a whole number from 1 on".to_owned())?;
    if limit == 0 {
        return Err("a limit is a whole number from 1 on".to_owned());
    }
    usize::try_from(limit).map_err(|error| error.to_string())
}

fn parse_time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| "a time has the form 2026-01-31T12:00:00Z".to_owned())
}

/// A time, a date (its start in UTC), or a duration before now.
fn parse_when(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Ok(date) = text.parse::<Date>()
        && let Ok(start) = format!("{date}T00:00:00Z").parse()
    {
        return Ok(start);
    }
    let ago = units::parse_duration(text)
        .map_err(|_| "a time has the form 2h (ago), 2026-01-31 or 2026-01-31T12:00:00Z")?;
    Timestamp::now().checked_sub(ago).map_err(|_| "that is too long ago".to_owned())
}

#[cfg(test)]
mod tests;
