//! One connection that keeps itself up, and what is known about it.

use std::collections::VecDeque;
use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::{Client, ClientError, Event, ReconnectToServer, Server, ServerAddr, ServerError};
use posthaste_core::{Error, ErrorKind, Result, Subject};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::config::NatsConfig;

/// The most refusals that are remembered.
const REFUSALS_MAX: usize = 32;
/// The longest opening waits for the first connection: a relay that starts with its broker should
/// not begin with an error.
const FIRST_CONNECT_WAIT: Duration = Duration::from_secs(2);

/// What the client says where the log-in, and not the network, is wrong.
const LOG_IN_REFUSED: [&str; 2] = ["authorization violation", "failed signing nonce"];
/// The longest wait between two attempts to connect: an outage must not last much longer than it is.
const RECONNECT_DELAY_MAX: Duration = Duration::from_millis(200);
/// The same, where the log-in is refused: that needs somebody to mend it, and fills the server's log.
const LOG_IN_DELAY: Duration = Duration::from_secs(2);
/// How long an answer about the server's limits is good for.
const LIMITS_AGE_MAX: Duration = Duration::from_secs(5);

/// A client that connects, and connects again, by itself.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) jetstream: Context,
    monitor: Arc<Monitor>,
    /// The largest payload as a connection of its own was told, and when.
    max_payload: tokio::sync::Mutex<Option<(Instant, usize)>>,
}

/// What the client told us.
#[derive(Debug)]
struct Monitor {
    /// Counts lost connections, and the failed attempts of a first one.
    losses: watch::Sender<u64>,
    /// Whether the first connection, or the first failure, has come.
    begun: watch::Sender<bool>,
    /// Counts what was refused for lack of rights.
    refused: watch::Sender<u64>,
    recovered: Notify,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// Why the last attempt to connect failed.
    connect_error: Option<String>,
    /// What the server refused for lack of rights: never answered to the publish itself.
    refusals: VecDeque<(Instant, String)>,
    /// The server that was tried last, and how many attempts came before.
    tried: Option<ServerAddr>,
    attempts: u32,
}

impl Connection {
    /// Starts connecting and waits a moment for it. Does not fail where the server is down.
    pub(super) async fn open(config: &NatsConfig) -> Result<Self> {
        let addresses = config.addresses()?;
        let monitor = Arc::new(Monitor {
            losses: watch::Sender::new(0),
            begun: watch::Sender::new(false),
            refused: watch::Sender::new(0),
            recovered: Notify::new(),
            memory: Mutex::default(),
        });
        let (listener, chooser) = (Arc::clone(&monitor), Arc::clone(&monitor));
        let client = config
            .connect_options(&addresses)
            .await?
            .retry_on_initial_connect()
            .reconnect_to_server_callback(move |servers, _| {
                std::future::ready(chooser.next_server(&servers))
            })
            .event_callback(move |event| {
                listener.note(event);
                std::future::ready(())
            })
            .connect(without_users(addresses))
            .await
            .map_err(|error| {
                Error::new(ErrorKind::Config, "configure nats", "the client refuses its settings")
                    .with_source(error)
            })?;
        let jetstream = ContextBuilder::new().timeout(config.ack_timeout).build(client.clone());
        let mut begun = monitor.begun.subscribe();
        // Neither a timeout nor a dead sender matters: publishing says what is wrong.
        let _ = timeout(FIRST_CONNECT_WAIT, begun.wait_for(|begun| *begun)).await;
        Ok(Self { client, jetstream, monitor, max_payload: tokio::sync::Mutex::default() })
    }

    /// Ends when the client has connected since this ended last.
    pub(super) async fn recovered(&self) {
        self.monitor.recovered.notified().await;
    }

    /// The largest payload that the server takes now: the client knows what it was when it connected.
    /// `None` where the server does not tell.
    pub(super) async fn max_payload_now(&self, config: &NatsConfig) -> Option<usize> {
        let mut known = self.max_payload.lock().await;
        if let Some((_, limit)) = known.filter(|(at, _)| at.elapsed() < LIMITS_AGE_MAX) {
            return Some(limit);
        }
        let addresses = config.addresses().ok()?;
        let options = config.connect_options(&addresses).await.ok()?;
        let connecting = options.connect(without_users(addresses));
        let client = timeout(config.connect_timeout, connecting).await.ok()?.ok()?;
        let limit = client.server_info().max_payload;
        *known = Some((Instant::now(), limit));
        Some(limit)
    }

    /// A receiver that changes when the server refuses something for lack of rights.
    pub(super) fn refusals(&self) -> watch::Receiver<u64> {
        self.monitor.refused.subscribe()
    }

    /// Confirms that there is a connection now.
    ///
    /// # Errors
    /// [`ErrorKind::Unauthorized`] where the server refused the log-in, else
    /// [`ErrorKind::Unreachable`]; both with the last attempt's reason.
    pub(super) fn ready(&self) -> Result<()> {
        // The server's greeting sets the payload limit; without it nothing may be judged by it.
        let greeted = self.client.try_server_info().is_some();
        if greeted && self.client.connection_state() == State::Connected {
            return Ok(());
        }
        Err(self.lost("not connected", Subject::Connection))
    }

    /// The error for a connection that is not there.
    pub(super) fn lost(&self, message: &'static str, subject: Subject) -> Error {
        let reason = self.monitor.memory().connect_error.clone();
        let kind = match reason.as_deref() {
            Some(reason) if LOG_IN_REFUSED.iter().any(|text| reason.contains(text)) => {
                ErrorKind::Unauthorized
            }
            _ => ErrorKind::Unreachable,
        };
        let error = Error::new(kind, "publish to nats", message).about(subject);
        match reason {
            Some(reason) => error.with_context("last attempt", reason),
            None => error,
        }
    }

    /// Waits for the answer to a question that is published to `subject`. `None` where there is none
    /// in time, or the right to ask is missing: nobody answers then.
    pub(super) async fn answer<T>(
        &self,
        subject: &str,
        wait: Duration,
        question: impl Future<Output = T>,
    ) -> Option<T> {
        let (start, mut refusals) = (Instant::now(), self.refusals());
        let refused = async {
            while self.refusal(subject, start).is_none() && refusals.changed().await.is_ok() {}
        };
        tokio::select! {
            biased;
            answer = timeout(wait, question) => answer.ok(),
            () = refused => None,
        }
    }

    /// A receiver that changes when the connection is lost.
    pub(super) fn losses(&self) -> watch::Receiver<u64> {
        self.monitor.losses.subscribe()
    }

    /// What the server refused since `start` for lack of rights that concerns `subject`.
    pub(super) fn refusal(&self, subject: &str, start: Instant) -> Option<String> {
        let quoted = format!("\"{subject}\"");
        let memory = self.monitor.memory();
        let concerns = |(when, text): &&(Instant, String)| {
            // A refused subscription is that of our inbox: no answer can ever come.
            let inbox = text.contains("for subscription to");
            inbox || (*when >= start && text.contains(&quoted.to_lowercase()))
        };
        memory.refusals.iter().rev().find(concerns).map(|(_, text)| text.clone())
    }
}

/// Addresses without user and password: the options have them by now, and the client logs
/// addresses.
fn without_users(addresses: Vec<ServerAddr>) -> Vec<ServerAddr> {
    let strip = |address: ServerAddr| {
        let mut url = address.clone().into_inner();
        let stripped = url.set_username("").and_then(|()| url.set_password(None)).is_ok();
        if stripped { ServerAddr::from_url(url).unwrap_or(address) } else { address }
    };
    addresses.into_iter().map(strip).collect()
}

impl Monitor {
    fn note(&self, event: Event) {
        match event {
            Event::Connected => {
                let mut memory = self.memory();
                *memory = Memory { tried: memory.tried.take(), ..Memory::default() };
                drop(memory);
                self.begun.send_replace(true);
                self.recovered.notify_one();
            }
            Event::Disconnected | Event::Closed => self.losses.send_modify(|losses| *losses += 1),
            Event::ClientError(ClientError::Other(reason)) => {
                // What the client says of the server, when it tries the next one, says more.
                self.memory().connect_error.get_or_insert_with(|| reason.to_lowercase());
            }
            Event::ServerError(ServerError::AuthorizationViolation) => {
                self.memory().connect_error = Some("authorization violation".to_owned());
            }
            Event::ServerError(ServerError::Other(text)) => self.note_refusal(&text),
            _ => {}
        }
    }

    fn note_refusal(&self, text: &str) {
        let text = text.to_lowercase();
        if !text.contains("permissions violation") {
            return;
        }
        let mut memory = self.memory();
        if memory.refusals.len() == REFUSALS_MAX {
            memory.refusals.pop_front();
        }
        memory.refusals.push_back((Instant::now(), text));
        drop(memory);
        self.refused.send_modify(|refused| *refused += 1);
    }

    /// The server to try next, and when. Not the one that was lost or failed last, where there are
    /// others: one that is frozen takes connections and says nothing.
    fn next_server(&self, servers: &[Server]) -> Option<ReconnectToServer> {
        let mut memory = self.memory();
        let failure = |server: &&Server| Some(&server.addr) == memory.tried.as_ref();
        let failure = servers.iter().find(failure).and_then(|server| server.last_error.clone());
        if let Some(failure) = failure {
            memory.connect_error = Some(failure.to_lowercase());
            self.begun.send_replace(true);
        }
        let random = std::hash::RandomState::new();
        let next = servers.iter().min_by_key(|server| {
            let is_last = Some(&server.addr) == memory.tried.as_ref();
            (is_last, server.failed_attempts, random.hash_one(&server.addr))
        })?;
        let refused = |text: &String| LOG_IN_REFUSED.iter().any(|refused| text.contains(refused));
        let delay = match memory.attempts {
            0 => Duration::ZERO,
            _ if memory.connect_error.as_ref().is_some_and(refused) => LOG_IN_DELAY,
            attempts => RECONNECT_DELAY_MAX.min(Duration::from_millis(10) * attempts),
        };
        memory.attempts = memory.attempts.saturating_add(1);
        memory.tried = Some(next.addr.clone());
        Some(ReconnectToServer { addr: next.addr.clone(), delay: Some(delay) })
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Plain data: a panic elsewhere leaves nothing half done.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_given_to_the_client_hold_no_password() {
        let address = "nats://joe:hunter2@example.com:4333".parse().unwrap();
        let stripped = without_users(vec![address]);
        assert_eq!(stripped[0].as_url_str(), "nats://example.com:4333");
    }
}
