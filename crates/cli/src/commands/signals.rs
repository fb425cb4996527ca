//! Signals that ask the relay to stop.

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind, signal};

/// Lets a write beyond the limit of a file's size (`LimitFSIZE=`, `ulimit -f`) fail, as one to a full disk
/// does. Without it the system ends the process, and with it the delivery to all other destinations.
/// Must be called within a runtime.
///
/// # Errors
/// When the system refuses the handler.
pub(crate) fn survive_file_size_limit() -> std::io::Result<()> {
    // The handler stays when the listener goes.
    signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map(drop)
}

/// SIGTERM, SIGINT and SIGHUP, heard from the moment it is made.
#[derive(Debug)]
pub(crate) struct StopSignals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    hangup: unix::Signal,
}

impl StopSignals {
    /// Starts to listen: from now on a signal no longer ends the process by itself.
    ///
    /// # Errors
    /// When the system refuses the handlers.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            // Its terminal is closed: as good a reason to stop, and none to be killed.
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one and gives its name.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}
