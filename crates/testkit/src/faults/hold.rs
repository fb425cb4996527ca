//! Lets calls wait until a test releases them.

use tokio::sync::watch;

/// Counts releases; a held call waits for the next one.
#[derive(Debug)]
pub(super) struct Hold {
    releases: watch::Sender<u64>,
    held: watch::Sender<usize>,
}

impl Default for Hold {
    fn default() -> Self {
        Self { releases: watch::Sender::new(0), held: watch::Sender::new(0) }
    }
}

/// Counts a held call for as long as it lives, even when the call is dropped.
struct Held<'a>(&'a watch::Sender<usize>);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|held| *held -= 1);
    }
}

impl Hold {
    /// Pends until the next release.
    pub(super) async fn wait(&self) {
        let mut releases = self.releases.subscribe();
        self.held.send_modify(|held| *held += 1);
        let _held = Held(&self.held);
        // The sender lives in `self`, so it cannot be closed.
        let _ = releases.changed().await;
    }

    pub(super) fn release(&self) {
        self.releases.send_modify(|releases| *releases += 1);
    }

    /// Completes when `count` calls or more are held.
    pub(super) async fn until_held(&self, count: usize) {
        let mut held = self.held.subscribe();
        let _ = held.wait_for(|held| *held >= count).await;
    }
}
