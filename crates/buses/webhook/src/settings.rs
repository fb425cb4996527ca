//! A destination of type `webhook` in a configuration.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use posthaste_bus_kit::config::{Settings as _, ValueKind, settings};
use posthaste_bus_kit::{BusKind, BusSettings, Complaint, EnvelopeFormat, Secret};
use posthaste_core::{BusCapabilities, Error, ErrorKind, EventBus, Result};

use crate::{WebhookBus, WebhookConfig, WebhookTls};

/// Webhooks as a kind of broker.
pub const WEBHOOK: BusKind = BusKind::new::<WebhookSettings>("webhook");

const CERTIFICATES: ValueKind = ValueKind::FileWith("CERTIFICATE-----");

settings! {
    /// One HTTP POST for each event. An event counts as delivered when the answer is 200 to 299.
    /// Redirects are not followed.
    pub struct WebhookSettings {
        /// The address that events are posted to. A user and password in it are sent as basic
        /// authentication. Only its scheme and host are ever shown: the path of many receivers is a
        /// secret. Proxies are not used, whatever `HTTP_PROXY` and its like say. Placeholders are not
        /// filled in; an event's own topic is appended to the path.
        pub url: Secret = ValueKind::OpaqueUrl.required(),
        /// A signing secret of the Standard Webhooks form: `whsec_` and base64. Several, with commas
        /// between, give a signature each, so that a new one can be brought in before the old one goes.
        pub secret: Vec<Secret> = ValueKind::Secret.optional("requests are not signed"),
        /// Headers of every request, one `Name: value` a line: `Authorization`, for one.
        pub headers: Option<Secret> = ValueKind::Secret.optional("none"),
        /// What a request looks like.
        pub envelope: EnvelopeFormat = EnvelopeFormat::KIND.or("cloudevents"),
        /// `source` of CloudEvents: a URI reference.
        pub cloudevents_source: String = ValueKind::Text.or("/posthaste"),
        /// The longest one request takes, from connecting to the last byte of the answer; connecting
        /// alone takes half of it at most.
        pub timeout: Duration = ValueKind::POSITIVE_DURATION.or("10s"),
        /// The most requests to this destination at the same time; they are of different keys.
        /// `relay.max_concurrent_events` bounds them, too.
        pub max_concurrent_requests: usize = ValueKind::Integer { min: 1, max: 1_000 }.or("16"),
        /// Certificate authorities to trust instead of the machine's (PEM); with `https://` only.
        pub tls_ca_file: Option<PathBuf> =
            CERTIFICATES.optional("the machine's authorities, or those of `SSL_CERT_FILE`"),
        /// The client's certificate (PEM); needs `tls_key_file`, and `https://`.
        pub tls_cert_file: Option<PathBuf> = CERTIFICATES.optional("none"),
        /// The key of `tls_cert_file` (PEM).
        pub tls_key_file: Option<PathBuf> =
            ValueKind::FileWith("PRIVATE KEY-----").optional("none"),
        /// Post to addresses that are not public: needed within one's own network. Danger: whoever can
        /// set the URL then reaches what the relay reaches.
        pub allow_private_addresses: bool = ValueKind::Bool.or("false"),
    }
}

impl BusSettings for WebhookSettings {
    const CAPABILITIES: BusCapabilities = crate::bus::CAPABILITIES;

    fn check(&self) -> Result<(), Complaint> {
        let checked = self.config().and_then(|config| config.validate());
        checked.map_err(|error| Complaint::of(&error, Self::KEYS))
    }

    async fn open(&self) -> Result<Arc<dyn EventBus>> {
        Ok(Arc::new(WebhookBus::open(&self.config()?)?))
    }
}

impl WebhookSettings {
    /// The bus's own settings.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] where a line of `headers` is none.
    pub fn config(&self) -> Result<WebhookConfig> {
        Ok(WebhookConfig {
            url: self.url.clone(),
            secrets: self.secret.clone(),
            headers: headers(self.headers.as_ref().map_or("", Secret::expose))?,
            envelope: self.envelope,
            cloudevents_source: self.cloudevents_source.clone(),
            timeout: self.timeout,
            max_concurrent_requests: self.max_concurrent_requests,
            tls: WebhookTls {
                ca_files: self.tls_ca_file.iter().cloned().collect(),
                cert_file: self.tls_cert_file.clone(),
                key_file: self.tls_key_file.clone(),
            },
            allow_private_addresses: self.allow_private_addresses,
        })
    }
}

/// Headers, one `Name: value` a line.
fn headers(text: &str) -> Result<Vec<(String, Secret)>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .enumerate()
        .map(|(position, line)| match line.split_once(':') {
            Some((name, value)) => Ok((name.trim().to_owned(), Secret::from(value.trim()))),
            // The line is not repeated: it may hold a secret.
            None => Err(Error::new(
                ErrorKind::Config,
                "configure webhook",
                format!("headers: line {} is not of the form Name: value", position + 1),
            )),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use posthaste_bus_kit::config::Given;

    use super::*;

    fn given() -> Given {
        Given::with_defaults(WebhookSettings::KEYS).with("url", "https://example.com/hook")
    }

    #[test]
    fn the_defaults_are_those_of_the_library() {
        let ours = WebhookSettings::read(&given()).unwrap().config().unwrap();
        let theirs = WebhookConfig::new("https://example.com/hook");
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
    }

    #[test]
    fn a_complaint_names_the_key_that_it_is_about() {
        for (key, value, why) in [
            ("url", "ftp://example.com", "it must begin with https://"),
            ("headers", "Authorization hunter2", "line 1 is not of the form"),
            ("secret", "hunter2", "whsec_"),
        ] {
            let found = WEBHOOK.complaints(&given().with(key, value));
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].key, key, "{found:?}");
            assert!(found[0].why.contains(why), "{found:?}");
            assert!(!found[0].why.contains("hunter2"), "{found:?}");
        }
    }
}
