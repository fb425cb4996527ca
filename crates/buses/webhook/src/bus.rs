//! Posting: one request for each event, and no more at once than are configured.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use posthaste_bus_kit::{Envelope, Redactor, percent_decode};
use posthaste_core::{
    BusCapabilities, Error, ErrorKind, EventBus, KeyPipelining, OutboxEvent, Outcomes,
    PublishResult, Result,
};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Request, Url};
use tokio::sync::Semaphore;

use super::clients::{Addresses, Clients, Recipe};
use super::config::{WebhookConfig, is_reserved};
use super::signature::Signer;
use super::{answer, path};

/// What every webhook can do.
pub(super) const CAPABILITIES: BusCapabilities = BusCapabilities {
    batch_events_max: 1,
    key_pipelining: KeyPipelining::OnePerKey,
    ..BusCapabilities::new("webhook")
};

/// Posts events to an HTTP endpoint. See the [crate] for what an answer means.
#[derive(Debug)]
pub struct WebhookBus {
    clients: Clients,
    /// Without user and password.
    url: Url,
    /// Of every request; authentication among them.
    headers: HeaderMap,
    envelope: Envelope,
    signer: Signer,
    redactor: Redactor,
    /// One permit for each request under way, over all calls.
    requests: Semaphore,
    max_concurrent_requests: usize,
    last_answer: Mutex<Option<String>>,
}

impl WebhookBus {
    /// A bus from settings. Nothing is resolved or connected to before the first event.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a wrong setting or an unreadable file, or where an `https://` URL is
    /// given and there is no certificate authority to trust.
    pub fn open(config: &WebhookConfig) -> Result<Self> {
        config.validate()?;
        let mut url = config.parsed_url()?;
        let mut headers = config.header_map()?;
        let basic = basic_authentication(&url)?;
        let redactor = Redactor::new(secrets(config, &url, basic.as_deref()).iter().map(|s| &**s));
        if let Some(basic) = basic {
            headers.insert(reqwest::header::AUTHORIZATION, sensitive(&basic)?);
        }
        // Neither fails for a URL that has a host.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        if !headers.is_empty() && url.scheme() == "http" && !WebhookConfig::is_loopback(&url) {
            let host = url.host_str().unwrap_or_default();
            tracing::warn!(
                host,
                "credentials are sent in the clear: use https:// instead of http://"
            );
        }
        let envelope = Envelope::new(config.envelope, &config.cloudevents_source, is_reserved);
        Ok(Self {
            clients: Clients::new(Recipe {
                tls: config.tls(&url)?,
                timeout: config.timeout,
                idle_connections_max: config.max_concurrent_requests,
                addresses: if config.allow_private_addresses {
                    Addresses::All
                } else {
                    Addresses::PublicOnly
                },
            })?,
            url,
            headers,
            envelope,
            signer: config.signer()?,
            redactor,
            requests: Semaphore::new(config.max_concurrent_requests.min(Semaphore::MAX_PERMITS)),
            max_concurrent_requests: config.max_concurrent_requests,
            last_answer: Mutex::default(),
        })
    }

    async fn post(&self, event: &OutboxEvent) -> PublishResult {
        let request = self.request(event)?;
        let own_path = event.topic().is_some();
        let _permit = self.requests.acquire().await.map_err(|error| {
            Error::new(ErrorKind::Internal, "post to webhook", "the bus is closed")
                .with_source(error)
        })?;
        let result = match self.execute(request).await {
            Ok(answer) => answer::judge(answer, own_path, &self.redactor).await,
            Err(error) => Err(answer::no_answer(error, own_path)),
        };
        result.map_err(|error| self.located(error))
    }

    async fn execute(&self, request: Request) -> reqwest::Result<reqwest::Response> {
        let (client, generation) = self.clients.get();
        let answer = client.execute(request).await;
        let timed_out = answer.as_ref().is_err_and(reqwest::Error::is_timeout);
        if timed_out || answer.is_ok() {
            self.clients.note(generation, timed_out);
        }
        answer
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

    fn event_url(&self, event: &OutboxEvent) -> Result<Url> {
        match event.topic() {
            Some(topic) => path::below(&self.url, topic),
            None => Ok(self.url.clone()),
        }
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
}

#[async_trait]
impl EventBus for WebhookBus {
    fn capabilities(&self) -> BusCapabilities {
        BusCapabilities { in_flight_events_max: Some(self.max_concurrent_requests), ..CAPABILITIES }
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        futures_util::future::join_all(events.iter().map(|event| self.post(event))).await
    }

    async fn publish_each(&self, events: &[OutboxEvent], outcomes: Outcomes<'_>) {
        let post = |(position, event)| async move { (position, self.post(event).await) };
        let mut posts: FuturesUnordered<_> = events.iter().enumerate().map(post).collect();
        while let Some(known) = posts.next().await {
            outcomes.known(vec![known]);
        }
    }

    /// Sends an OPTIONS request. Whatever the answer, the name, the address and TLS are right; more
    /// cannot be known without posting an event. [`last_answer`](EventBus::last_answer) tells it.
    async fn check(&self) -> Result<()> {
        let mut request = Request::new(reqwest::Method::OPTIONS, self.url.clone());
        *request.headers_mut() = self.headers.clone();
        match self.execute(request).await {
            Ok(answer) => {
                let words = answer::in_words(answer, &self.redactor).await;
                let mut last = self.last_answer.lock().unwrap_or_else(PoisonError::into_inner);
                *last = Some(format!("OPTIONS is answered {words}"));
                Ok(())
            }
            Err(error) => Err(self.located(answer::no_answer(error, false))),
        }
    }

    fn last_answer(&self) -> Option<String> {
        self.last_answer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// User and password of a URL as the header they mean. The client would do the same, but would keep
/// them in the URL that its errors show.
fn basic_authentication(url: &Url) -> Result<Option<String>> {
    if url.username().is_empty() && url.password().is_none() {
        return Ok(None);
    }
    let user = percent_decode(url.username());
    let password = percent_decode(url.password().unwrap_or_default());
    Ok(Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))))
}

fn sensitive(value: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::try_from(value).map_err(|_| {
        Error::new(ErrorKind::Config, "configure webhook", "url: user and password are no header")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// A shorter part of a path is no secret: `v1`, `hooks`.
const PATH_PART_BYTES_MIN: usize = 6;

/// All that a request carries and no answer may bring into an error: many receivers repeat the
/// request in their error page. Of the URL, too: the path of a webhook often is the secret.
fn secrets(config: &WebhookConfig, url: &Url, basic: Option<&str>) -> Vec<String> {
    let headers = config.headers.iter().map(|(_, value)| value.expose());
    let mut known = Vec::new();
    for value in headers.chain(basic) {
        known.push(value.to_owned());
        // Behind its scheme: `Bearer`, `Basic`.
        known.extend(value.split_once(' ').map(|(_, credentials)| credentials.trim().to_owned()));
    }
    for part in [url.username(), url.password().unwrap_or_default()] {
        known.extend([part.to_owned(), percent_decode(part)]);
    }
    let path = url.path().trim_end_matches('/');
    known.extend([path.to_owned(), percent_decode(path)]);
    // Many a path is a secret (`/services/T0/B0/s3cr3t`), and receivers name its last part alone.
    for part in path.split('/').filter(|part| part.len() >= PATH_PART_BYTES_MIN) {
        known.extend([part.to_owned(), percent_decode(part)]);
    }
    if let Some(query) = url.query() {
        known.push(query.to_owned());
        for (_, value) in url.query_pairs() {
            known.push(value.into_owned());
        }
    }
    known
}
