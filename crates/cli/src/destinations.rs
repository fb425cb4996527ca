//! The buses: from settings to destinations.

mod outputs;

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use posthaste_bus_kit::{Complaint, Output};
use posthaste_core::{
    BusCapabilities, Error, ErrorKind, EventBus, OutboxEvent, PublishResult, Result, RetryPolicy,
};
use posthaste_processor::Destination;
use rustix::fs::OFlags;
use tokio::sync::Notify;

use crate::config::{Config, DestinationSettings, Draft, Inputs, Problem, Problems};

/// Reads the configuration and asks the buses what they say of it: every problem at once.
///
/// # Errors
/// All problems that can be found without connecting to anything.
pub(crate) fn load(inputs: Inputs) -> Result<Config, Problems> {
    checked(inputs).finish()
}

/// As [`load`], with what is not there yet: see [`absences`].
///
/// # Errors
/// As [`load`].
pub(crate) fn load_strictly(inputs: Inputs) -> Result<Config, Problems> {
    let mut draft = checked(inputs);
    if let Some(config) = &draft.config {
        draft.problems.extend(absences(&config.destinations));
    }
    draft.finish()
}

fn checked(inputs: Inputs) -> Draft {
    let mut draft = inputs.draft();
    if let Some(config) = &draft.config {
        let found = problems(config, &draft.problems);
        draft.problems.extend(found);
    }
    draft
}

/// What is wrong with the destinations, found without connecting to anything, besides what is `known`.
pub(crate) fn problems(config: &Config, known: &[Problem]) -> Vec<Problem> {
    let mut problems = outputs::clashes(config);
    let refused: HashSet<&str> = known
        .iter()
        .filter_map(|problem| problem.path.strip_prefix("destinations.")?.split('.').next())
        .collect();
    for destination in &config.destinations {
        let Some(kind) = destination.kind else { continue };
        let mut complaints = kind.unusable_files(&destination.given);
        // A bus would complain of what is refused already, in other words.
        if complaints.is_empty() && !refused.contains(&*destination.name) {
            complaints = kind.complaints(&destination.given);
        }
        problems.extend(complaints.iter().map(|complaint| problem(destination, complaint)));
    }
    problems
}

/// What will keep a destination waiting as things are now, and may be there when the relay starts.
fn absences(destinations: &[DestinationSettings]) -> Vec<Problem> {
    let absent = |destination: &DestinationSettings| {
        Some(problem(destination, &destination.settings.as_ref()?.absence()?))
    };
    destinations.iter().filter_map(absent).collect()
}

fn problem(destination: &DestinationSettings, complaint: &Complaint) -> Problem {
    destination.problem(complaint.key, &complaint.why, complaint.help.as_str())
}

/// Makes the buses. They connect by themselves: one whose other side is down is no error.
///
/// `output_closed` is notified when the reader of standard output goes away.
///
/// # Errors
/// The bus's, for a wrong setting.
pub(crate) async fn open(
    destinations: &[DestinationSettings],
    output_closed: &Arc<Notify>,
) -> Result<Vec<OpenDestination>> {
    let mut open = Vec::new();
    refuse_closed_output(destinations)?;
    for destination in destinations {
        let settings = destination.settings.as_ref().ok_or_else(|| {
            let why = format!("destinations.{} lacks a value", destination.name);
            Error::new(ErrorKind::Config, "open destinations", why)
        })?;
        let mut bus = settings.open().await?;
        if settings.output() == Some(Output::Stdout) {
            bus = Arc::new(StandardOutput { bus, closed: Arc::clone(output_closed) });
        }
        open.push(OpenDestination {
            name: destination.name.clone(),
            bus,
            dead_head: destination.dead_head,
            max_attempts: destination.max_attempts,
            retry_policy: destination.retry_policy,
        });
    }
    Ok(open)
}

/// The runtime opens what was closed at the start as /dev/null, for reading, too: whoever sends output
/// there on purpose opens it for writing.
fn refuse_closed_output(destinations: &[DestinationSettings]) -> Result<()> {
    const NULL: &str = "/dev/null";
    let writes_there = |destination: &&DestinationSettings| {
        let settings = destination.settings.as_ref();
        settings.and_then(|settings| settings.output()) == Some(Output::Stdout)
    };
    let Some(output) = destinations.iter().find(writes_there) else {
        return Ok(());
    };
    let stdout = std::io::stdout();
    let is_null = || {
        let (here, null) = (rustix::fs::fstat(&stdout).ok()?, rustix::fs::stat(NULL).ok()?);
        Some(here.st_rdev == null.st_rdev && here.st_rdev != 0)
    };
    let reads = || Some(rustix::fs::fcntl_getfl(&stdout).ok()?.contains(OFlags::RDWR));
    if is_null() == Some(true) && reads() == Some(true) {
        let why = format!(
            "destinations.{} writes to standard output, which is closed: events would be lost",
            output.name
        );
        return Err(Error::new(ErrorKind::Config, "open destinations", why));
    }
    Ok(())
}

/// A bus with what the configuration says of it.
pub(crate) struct OpenDestination {
    /// Its name.
    pub(crate) name: String,
    /// The bus.
    pub(crate) bus: Arc<dyn EventBus>,
    dead_head: posthaste_processor::DeadHeadPolicy,
    max_attempts: Option<u32>,
    retry_policy: RetryPolicy,
}

impl OpenDestination {
    /// For the processor.
    pub(crate) fn destination(&self) -> Destination {
        let destination = Destination::new(&self.name, Arc::clone(&self.bus))
            .dead_head(self.dead_head)
            .retry_policy(self.retry_policy);
        match self.max_attempts {
            Some(attempts) => destination.max_attempts(attempts),
            None => destination,
        }
    }
}

/// Standard output, which ends with its reader: a pipe that was closed never opens again, and a
/// relay that waited for it would wait for ever.
struct StandardOutput {
    bus: Arc<dyn EventBus>,
    closed: Arc<Notify>,
}

#[async_trait]
impl EventBus for StandardOutput {
    fn capabilities(&self) -> BusCapabilities {
        self.bus.capabilities()
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        let results = self.bus.publish(events).await;
        if results.iter().any(|result| result.as_ref().is_err_and(is_broken_pipe)) {
            self.closed.notify_one();
        }
        results
    }

    async fn check(&self) -> Result<()> {
        self.bus.check().await
    }

    async fn close(&self) -> Result<()> {
        self.bus.close().await
    }
}

fn is_broken_pipe(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref());
    source.is_some_and(|source: &io::Error| source.kind() == io::ErrorKind::BrokenPipe)
}
