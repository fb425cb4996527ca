//! Posting: a bounded number of requests at once, one result per event.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use posthaste_core::{
    BusCapabilities, Error, ErrorKind, ErrorStatus, EventBus, KeyPipelining, OutboxEvent,
    PublishResult, Result, Subject,
};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Request, StatusCode, Url};

use super::address::PublicResolver;
use super::answer;
use super::config::{WebhookConfig, is_reserved};
use super::signature::Signer;
use crate::envelope::Envelope;
use crate::secret::percent_decode;

/// The most events of one call.
const BATCH_EVENTS_MAX: usize = 64;

/// Posts events to an HTTP endpoint. See the [module](super) for what an answer means.
#[derive(Debug)]
pub struct WebhookBus {
    client: Client,
    /// Without user and password.
    url: Url,
    /// Of every request; authentication among them.
    headers: HeaderMap,
    envelope: Envelope,
    signer: Signer,
    max_concurrent_requests: usize,
    /// The receiver answered 410: nothing is posted any more.
    gone: AtomicBool,
}

/// What the requests of one call found out about the destination as a whole.
#[derive(Default)]
struct Outage(Mutex<Call>);

#[derive(Default)]
struct Call {
    /// An event was accepted.
    delivered: bool,
    /// The first failure that concerns all events. Those not yet posted share it.
    failure: Option<Failure>,
}

struct Failure {
    kind: ErrorKind,
    report: String,
    retry_after: Option<Duration>,
}

impl WebhookBus {
    /// A bus from settings. Nothing is resolved or connected to before the first event.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a wrong setting, or where TLS cannot be set up.
    pub fn open(config: &WebhookConfig) -> Result<Self> {
        config.validate()?;
        let mut url = config.parsed_url()?;
        let mut headers = config.header_map()?;
        if let Some(value) = basic_authentication(&url)? {
            headers.insert(reqwest::header::AUTHORIZATION, value);
        }
        // Neither fails for a URL that has a host.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        let mut builder = Client::builder()
            .user_agent(concat!("posthaste/", env!("CARGO_PKG_VERSION")))
            .timeout(config.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .pool_max_idle_per_host(config.max_concurrent_requests);
        if !config.allow_private_addresses {
            builder = builder.dns_resolver(PublicResolver);
        }
        let client = builder.build().map_err(|error| {
            Error::new(ErrorKind::Config, "configure webhook", "cannot set up the HTTP client")
                .with_source(error.without_url())
        })?;
        let envelope = Envelope::new(config.envelope, &config.cloudevents_source, is_reserved);
        Ok(Self {
            client,
            url,
            headers,
            envelope,
            signer: config.signer()?,
            max_concurrent_requests: config.max_concurrent_requests,
            gone: AtomicBool::new(false),
        })
    }

    async fn post(&self, event: &OutboxEvent, outage: &Outage) -> PublishResult {
        let request = self.request(event)?;
        outage.check()?;
        self.check_gone()?;
        let own_path = event.topic().is_some();
        let answer = self.client.execute(request).await.map_err(answer::no_answer);
        let result = match answer {
            Ok(answer) => {
                if answer.status() == StatusCode::GONE && !own_path {
                    self.gone.store(true, Ordering::Relaxed);
                }
                answer::judge(answer, own_path).await
            }
            Err(error) => Err(error),
        };
        outage.note(result.map_err(|error| self.located(error)))
    }

    fn located(&self, error: Error) -> Error {
        error.with_context("host", self.url.host_str().unwrap_or_default())
    }

    fn request(&self, event: &OutboxEvent) -> Result<Request> {
        let message = self.envelope.message(event)?;
        let mut request = Request::new(reqwest::Method::POST, self.event_url(event)?);
        let headers = request.headers_mut();
        // The event's first: what the operator configured wins.
        for (name, value) in &message.headers {
            let malformed = || {
                Error::new(ErrorKind::Malformed, "encode event", "HTTP carries no such header")
                    .with_context("header", name.escape_debug())
            };
            let name: HeaderName = name.parse().map_err(|_| malformed())?;
            let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| malformed())?;
            headers.append(name, value);
        }
        for name in self.headers.keys() {
            headers.remove(name);
        }
        for (name, value) in &self.headers {
            headers.append(name, value.clone());
        }
        if self.signer.is_active() {
            self.sign(headers, event, &message.body)?;
        }
        *request.body_mut() = Some(message.body.into());
        Ok(request)
    }

    fn sign(&self, headers: &mut HeaderMap, event: &OutboxEvent, body: &[u8]) -> Result<()> {
        let id = event.id().to_string();
        // Of this attempt, not of the event: receivers refuse what is some minutes old.
        let timestamp = Timestamp::now().as_second();
        let signature = self.signer.sign(&id, timestamp, body);
        for (name, value) in [
            ("webhook-id", id),
            ("webhook-timestamp", timestamp.to_string()),
            ("webhook-signature", signature),
        ] {
            let value = HeaderValue::try_from(value).map_err(|error| {
                Error::new(ErrorKind::Internal, "sign event", "no header value").with_source(error)
            })?;
            headers.insert(HeaderName::from_static(name), value);
        }
        Ok(())
    }

    /// The URL with the event's own topic as further parts of its path.
    fn event_url(&self, event: &OutboxEvent) -> Result<Url> {
        let mut url = self.url.clone();
        let Some(topic) = event.topic() else { return Ok(url) };
        let malformed = || {
            Error::new(
                ErrorKind::Malformed,
                "choose path",
                "a topic is a relative path without empty parts, `.` and `..`",
            )
            .with_context("topic", topic.escape_debug())
        };
        {
            let mut path = url.path_segments_mut().map_err(|()| malformed())?;
            path.pop_if_empty();
            for part in topic.split('/') {
                // The path must stay below the configured one. `%2e` means a dot to many servers.
                let plain = part.to_ascii_lowercase().replace("%2e", ".");
                if matches!(plain.as_str(), "" | "." | "..") {
                    return Err(malformed());
                }
                path.push(part);
            }
        }
        Ok(url)
    }

    fn check_gone(&self) -> Result<()> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(Error::new(
                ErrorKind::DestinationMissing,
                "post to webhook",
                "the receiver answered 410 (gone); nothing is posted until the relay is restarted",
            )
            .with_context("host", self.url.host_str().unwrap_or_default()));
        }
        Ok(())
    }
}

#[async_trait]
impl EventBus for WebhookBus {
    fn capabilities(&self) -> BusCapabilities {
        BusCapabilities {
            batch_events_max: BATCH_EVENTS_MAX,
            key_pipelining: KeyPipelining::OnePerKey,
            ..BusCapabilities::new("webhook")
        }
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        let outage = Outage::default();
        let posts: Vec<_> = events
            .iter()
            .enumerate()
            .map(|(position, event)| self.post(event, &outage).map(move |done| (position, done)))
            .collect();
        // Unordered: a slow answer must not keep a free place from being used.
        let mut results: Vec<_> = futures_util::stream::iter(posts)
            .buffer_unordered(self.max_concurrent_requests)
            .collect()
            .await;
        results.sort_unstable_by_key(|(position, _)| *position);
        results.into_iter().map(|(_, result)| result).collect()
    }

    /// Sends an OPTIONS request. Whatever the answer, the name, the address and TLS are right; more
    /// cannot be known without posting an event.
    async fn check(&self) -> Result<()> {
        self.check_gone()?;
        let request = self.client.request(reqwest::Method::OPTIONS, self.url.clone());
        match request.headers(self.headers.clone()).send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.located(answer::no_answer(error))),
        }
    }
}

impl Outage {
    /// Remembers what the result says about the whole destination.
    fn note(&self, result: PublishResult) -> PublishResult {
        let mut call = self.lock();
        match &result {
            Ok(()) => call.delivered = true,
            // Others of this call came through: the endpoint is up, and slow on this event only.
            Err(error) if error.kind() == ErrorKind::Timeout && call.delivered => {
                return result.map_err(|error| error.about(Subject::Event));
            }
            Err(error) if error.status() == ErrorStatus::Unavailable => {
                call.failure.get_or_insert_with(|| Failure {
                    kind: error.kind(),
                    report: error.report(),
                    retry_after: error.retry_after(),
                });
            }
            Err(_) => {}
        }
        result
    }

    /// # Errors
    /// The outage, where there was one: the next request would only add to it.
    fn check(&self) -> Result<()> {
        let call = self.lock();
        let Some(failure) = &call.failure else { return Ok(()) };
        let message = format!("not posted, since: {}", failure.report);
        let error = Error::new(failure.kind, "post to webhook", message);
        Err(match failure.retry_after {
            Some(delay) => error.with_retry_after(delay),
            None => error,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Call> {
        // Plain data: a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// User and password of a URL as the header they mean. The client would do the same, but would keep
/// them in the URL that its errors show.
fn basic_authentication(url: &Url) -> Result<Option<HeaderValue>> {
    if url.username().is_empty() && url.password().is_none() {
        return Ok(None);
    }
    let user = percent_decode(url.username());
    let password = percent_decode(url.password().unwrap_or_default());
    let token = STANDARD.encode(format!("{user}:{password}"));
    let mut value = HeaderValue::try_from(format!("Basic {token}")).map_err(|_| {
        Error::new(ErrorKind::Config, "configure webhook", "url: user and password are no header")
    })?;
    value.set_sensitive(true);
    Ok(Some(value))
}
