//! When a call that goes on reports what it knows.

use std::pin::Pin;
use std::time::Duration;

use async_nats::{Message, Subscriber};
use futures_util::StreamExt as _;
use tokio::time::{Instant, Sleep, sleep_until};

/// How long what is known is kept to be reported with more: most calls are over by then, and make one
/// report.
const REPORT_WAIT: Duration = Duration::from_millis(20);

/// A clock that runs while something is known and not reported.
pub(super) struct Pace {
    due: Pin<Box<Sleep>>,
    is_running: bool,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { due: Box::pin(sleep_until(Instant::now())), is_running: false }
    }

    /// Something is known.
    pub(super) fn begin(&mut self) {
        if !self.is_running {
            self.is_running = true;
            self.due.as_mut().reset(Instant::now() + REPORT_WAIT);
        }
    }

    /// The next answer. Calls `report` when it is time to, meanwhile.
    pub(super) async fn wait(
        &mut self,
        answers: &mut Subscriber,
        mut report: impl FnMut(),
    ) -> Option<Message> {
        loop {
            tokio::select! {
                biased;
                answer = answers.next() => return answer,
                () = &mut self.due, if self.is_running => {
                    self.is_running = false;
                    report();
                }
            }
        }
    }
}
