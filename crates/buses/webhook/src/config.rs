//! Settings of a webhook bus.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use posthaste_bus_kit::tls::{self, TlsFiles};
use posthaste_bus_kit::{Envelope, EnvelopeFormat, SOURCE_DEFAULT, Secret};
use posthaste_core::{Error, ErrorKind, Result};
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use rustls::ClientConfig;

use super::address::is_public;
use super::signature::Signer;

/// Settings of a [`WebhookBus`](super::WebhookBus).
#[derive(Debug, Clone)]
pub struct WebhookConfig {
    /// Where events are posted: `https://…` or `http://…`. A user and password in it are sent as
    /// basic authentication and never shown.
    pub url: Secret,
    /// Signing secrets of the Standard Webhooks form, `whsec_` and base64 (24 to 64 bytes). Each
    /// gives a signature, so a new secret can be brought in before the old one goes. Default none:
    /// requests are not signed.
    pub secrets: Vec<Secret>,
    /// Headers of every request, `Authorization` for one. Default none.
    pub headers: Vec<(String, Secret)>,
    /// What a request looks like. Default [`EnvelopeFormat::CloudEvents`].
    pub envelope: EnvelopeFormat,
    /// `source` of CloudEvents: a URI reference. Default `/posthaste`.
    pub cloudevents_source: String,
    /// The longest one request takes, from connecting to the last byte of the answer; connecting
    /// alone takes half of it at most. Default 10 s.
    pub timeout: Duration,
    /// The most requests at the same time, over all calls. Default 16. They are of different keys.
    pub max_concurrent_requests: usize,
    /// TLS settings, for `https://` only.
    pub tls: WebhookTls,
    /// Allow addresses that are not public: needed to post within one's own network. Danger:
    /// whoever can set the URL then reaches what the relay reaches. Default off.
    pub allow_private_addresses: bool,
}

/// TLS settings of a webhook. All paths name PEM files.
#[derive(Debug, Clone, Default)]
pub struct WebhookTls {
    /// Certificate authorities to trust instead of the machine's own.
    pub ca_files: Vec<PathBuf>,
    /// The client's certificate; needs `key_file`.
    pub cert_file: Option<PathBuf>,
    /// The key of `cert_file`.
    pub key_file: Option<PathBuf>,
}

fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::Config, "configure webhook", why))
}

impl WebhookConfig {
    /// Settings for `url`, defaults for the rest.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: Secret::from(url.into()),
            secrets: Vec::new(),
            headers: Vec::new(),
            envelope: EnvelopeFormat::CloudEvents,
            cloudevents_source: SOURCE_DEFAULT.to_owned(),
            timeout: Duration::from_secs(10),
            max_concurrent_requests: 16,
            tls: WebhookTls::default(),
            allow_private_addresses: false,
        }
    }

    /// Checks the settings without connecting or resolving.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming the setting. No secret, and nothing of the URL but its host,
    /// is in the text.
    pub fn validate(&self) -> Result<()> {
        self.check_tls(&self.parsed_url()?)?;
        self.signer()?;
        self.header_map()?;
        Envelope::check_source(&self.cloudevents_source)?;
        if self.timeout.is_zero() {
            return refuse("timeout must be above zero");
        }
        if self.max_concurrent_requests == 0 {
            return refuse("max_concurrent_requests must be at least 1");
        }
        Ok(())
    }

    /// Confirms that what is asked of TLS is done.
    fn check_tls(&self, url: &Url) -> Result<()> {
        let WebhookTls { ca_files, cert_file, key_file } = &self.tls;
        if cert_file.is_some() != key_file.is_some() {
            return refuse("tls_cert_file and tls_key_file belong together");
        }
        if url.scheme() == "http" && (!ca_files.is_empty() || cert_file.is_some()) {
            return refuse(
                "tls_ca_file and tls_cert_file have no effect on http://; the url must begin with \
                 https://",
            );
        }
        if url.scheme() == "https" && ca_files.is_empty() {
            tls::machine_roots("configure webhook")?;
        }
        Ok(())
    }

    /// # Errors
    /// [`ErrorKind::Config`] where a file cannot be read, or nobody is trusted.
    pub(super) fn tls(&self, url: &Url) -> Result<ClientConfig> {
        let operation = "configure webhook";
        if url.scheme() == "http" {
            return tls::none(operation);
        }
        let WebhookTls { ca_files, cert_file, key_file } = &self.tls;
        let identity = cert_file.as_deref().zip(key_file.as_deref());
        let mut config = TlsFiles { ca: ca_files, identity }.client_config(operation)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// Whether what is sent stays on this machine.
    pub(super) fn is_loopback(url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default();
        let literal = host.trim_matches(['[', ']']).parse::<IpAddr>();
        host == "localhost" || literal.is_ok_and(|address| address.is_loopback())
    }

    pub(super) fn parsed_url(&self) -> Result<Url> {
        if self.url.expose().contains(['{', '}']) {
            return refuse(
                "url: placeholders such as {event_type} are not filled in here; an event's own topic \
                 is appended to the path (write %7B and %7D for braces)",
            );
        }
        // The parser's own text says what is wrong, never what was given.
        let url = match Url::parse(self.url.expose()) {
            Ok(url) => url,
            Err(error) => return refuse(format!("url: {error}")),
        };
        if !matches!(url.scheme(), "http" | "https") {
            return refuse("url: it must begin with https:// or http://");
        }
        if url.fragment().is_some() {
            return refuse("url: a fragment (#…) is never sent");
        }
        let host = url.host_str().unwrap_or_default();
        // A literal address is never resolved, so it is checked here. The parser has turned every
        // spelling of one (hexadecimal, a single number) into the usual one.
        let literal = host.trim_matches(['[', ']']).parse::<IpAddr>();
        if !self.allow_private_addresses && literal.is_ok_and(|address| !is_public(address)) {
            return refuse(format!(
                "url: {host} is not a public address; set allow_private_addresses to post to it"
            ));
        }
        Ok(url)
    }

    pub(super) fn signer(&self) -> Result<Signer> {
        Signer::new(&self.secrets)
    }

    pub(super) fn header_map(&self) -> Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let parsed = (HeaderName::try_from(name), HeaderValue::try_from(value.expose()));
            let (Ok(parsed_name), Ok(mut parsed_value)) = parsed else {
                return refuse(format!("headers: {} is no header", name.escape_debug()));
            };
            if is_reserved(parsed_name.as_str()) && parsed_name.as_str() != "authorization" {
                return refuse(format!("headers: {parsed_name} is not yours to set"));
            }
            parsed_value.set_sensitive(true);
            headers.append(parsed_name, parsed_value);
        }
        Ok(headers)
    }
}

/// Headers that frame the message, route it or prove who sent it (in lower case): an event must not
/// set them. RFC 9110 §7.6.1 names those of one hop.
pub(super) fn is_reserved(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "host"
            | "content-length"
            | "content-encoding"
            | "expect"
            | "authorization"
            | "cookie"
    ) || name.starts_with("webhook-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_settings_are_refused_without_showing_a_secret() {
        let base = || WebhookConfig::new("https://joe:hunter2@example.com/hook");
        base().validate().unwrap();
        let cases = [
            WebhookConfig { url: "ftp://joe:hunter2@example.com".into(), ..base() },
            WebhookConfig { url: "joe:hunter2".into(), ..base() },
            WebhookConfig { url: "https://joe:hunter2@".into(), ..base() },
            WebhookConfig { url: "https://joe:hunter2@example.com/#a".into(), ..base() },
            WebhookConfig { url: "https://joe:hunter2@example.com:port".into(), ..base() },
            WebhookConfig { secrets: vec!["hunter2".into()], ..base() },
            WebhookConfig { headers: vec![("a b".into(), "hunter2".into())], ..base() },
            WebhookConfig { headers: vec![("host".into(), "hunter2".into())], ..base() },
            WebhookConfig { headers: vec![("x".into(), "hunter2\n".into())], ..base() },
            WebhookConfig { url: "https://joe:hunter2@example.com/{event_type}".into(), ..base() },
            WebhookConfig { timeout: Duration::ZERO, ..base() },
            WebhookConfig {
                tls: WebhookTls { key_file: Some("k.pem".into()), ..WebhookTls::default() },
                ..base()
            },
            WebhookConfig {
                url: "http://joe:hunter2@example.com".into(),
                tls: WebhookTls { ca_files: vec!["ca.pem".into()], ..WebhookTls::default() },
                ..base()
            },
            WebhookConfig { max_concurrent_requests: 0, ..base() },
        ];
        for config in cases {
            let error = config.validate().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{config:?}");
            assert!(!error.report().contains("hunter2"), "{}", error.report());
            assert!(!format!("{config:?}").contains("hunter2"));
        }
    }

    #[test]
    fn every_spelling_of_a_private_address_is_refused() {
        for host in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "10.1.2.3",
            "169.254.169.254",
            "0.0.0.0",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:a00:1]",
            "[fd00::1]",
            "[fe80::1]",
        ] {
            let config = WebhookConfig::new(format!("http://{host}/"));
            let error = config.validate().unwrap_err();
            assert!(error.to_string().contains("allow_private_addresses"), "{host}: {error}");
            WebhookConfig { allow_private_addresses: true, ..config }.validate().unwrap();
        }
        WebhookConfig::new("http://93.184.216.34/").validate().unwrap();
    }
}
