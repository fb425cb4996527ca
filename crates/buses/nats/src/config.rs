//! Settings of a NATS bus.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::{ConnectOptions, ServerAddr};
use posthaste_bus_kit::tls::{self, TlsFiles};
use posthaste_bus_kit::{
    Envelope, EnvelopeFormat, SOURCE_DEFAULT, Secret, TopicTemplate, percent_decode,
};
use posthaste_core::{Error, ErrorKind, Result};

use super::subject;

/// After so long without a word from the server it is asked for one. When two questions are open and
/// the third is due, the client takes another server: within two seconds.
const PING_INTERVAL: Duration = Duration::from_millis(600);

/// Settings of a [`NatsBus`](super::NatsBus).
#[derive(Debug, Clone)]
pub struct NatsConfig {
    /// Server addresses: `nats://host:4222`, `tls://host:4222`, `host`. A cluster's other servers
    /// are found by themselves. `user:password@` or `token@` in an address is used where `auth`
    /// is [`NatsAuth::None`]. Default `nats://127.0.0.1:4222`.
    pub servers: Vec<Secret>,
    /// Where events go, as a [`TopicTemplate`]. Default `events.{event_type}`. An event's own
    /// topic takes its place, within `allow_topic`.
    pub subject: String,
    /// What topics events may choose for themselves, besides those below the beginning of `subject`
    /// before its first placeholder: subject filters, `orders.>`. Default none. Danger: whoever may
    /// write an event publishes there with this client's rights. Subjects that begin with `$`
    /// (`$KV.bucket.>`) only count where the filter begins with the same.
    pub allow_topic: Vec<String>,
    /// The stream that must take the events. Default none: any stream that covers the subject.
    /// Given, a message that another stream covers is refused instead of stored there.
    pub stream: Option<String>,
    /// How to log in. Default: not at all.
    pub auth: NatsAuth,
    /// TLS settings. Default: TLS where the server asks for it, system certificates.
    pub tls: NatsTls,
    /// What a message looks like. Default [`EnvelopeFormat::Plain`].
    pub envelope: EnvelopeFormat,
    /// `source` of CloudEvents: a URI reference. Default `/posthaste`.
    pub cloudevents_source: String,
    /// The longest a call waits for all its acknowledgements. Default 5 s. It bounds every call,
    /// whatever the connection does.
    pub ack_timeout: Duration,
    /// The longest one attempt to connect takes. Default 2 s: a server that is frozen takes the
    /// connection and says nothing, and another one may be there.
    pub connect_timeout: Duration,
    /// The most events that wait for an acknowledgement, over all calls. Default 4,000; a call
    /// takes at most 1,000 of them. More use memory (each up to the largest payload), not less
    /// time.
    pub max_ack_inflight: usize,
    /// The connection's name in the server's monitoring. Default `posthaste`.
    pub client_name: String,
}

/// How to log in.
#[derive(Debug, Clone, Default)]
pub enum NatsAuth {
    /// Not at all, or as the server addresses say.
    #[default]
    None,
    /// User and password.
    UserPassword {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A token.
    Token(Secret),
    /// The path of a credentials file (`.creds`: a JWT and an NKey seed).
    CredentialsFile(PathBuf),
    /// An NKey seed (`SU…`).
    Nkey(Secret),
}

/// TLS settings. All paths name PEM files.
#[derive(Debug, Clone, Default)]
pub struct NatsTls {
    /// Refuse a connection without TLS. Default off: the server decides, unless a file is given here.
    pub required: bool,
    /// Begin with the TLS handshake instead of waiting for the server's greeting (its
    /// `handshake_first`). Default off.
    pub first: bool,
    /// Certificate authorities to trust instead of the machine's own.
    pub ca_files: Vec<PathBuf>,
    /// The client's certificate; needs `key_file`.
    pub cert_file: Option<PathBuf>,
    /// The key of `cert_file`.
    pub key_file: Option<PathBuf>,
}

impl Default for NatsConfig {
    fn default() -> Self {
        Self {
            servers: vec![Secret::from("nats://127.0.0.1:4222")],
            subject: "events.{event_type}".to_owned(),
            allow_topic: Vec::new(),
            stream: None,
            auth: NatsAuth::None,
            tls: NatsTls::default(),
            envelope: EnvelopeFormat::Plain,
            cloudevents_source: SOURCE_DEFAULT.to_owned(),
            ack_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
            max_ack_inflight: 4_000,
            client_name: "posthaste".to_owned(),
        }
    }
}

fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::Config, "configure nats", why))
}

impl NatsConfig {
    /// Settings for one server and subject template, defaults for the rest.
    #[must_use]
    pub fn new(server: impl Into<String>, subject: impl Into<String>) -> Self {
        Self {
            servers: vec![Secret::from(server.into())],
            subject: subject.into(),
            ..Self::default()
        }
    }

    /// Checks the settings without connecting, and without reading a file but the machine's authorities.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming the setting. No address or secret is in the text.
    pub fn validate(&self) -> Result<()> {
        let addresses = self.addresses()?;
        let template = TopicTemplate::parse(&self.subject)?;
        subject::check_template(&template)?;
        subject::Allowed::new(template, &self.allow_topic)?;
        Envelope::check_source(&self.cloudevents_source)?;
        if let Some(stream) = &self.stream
            && (stream.is_empty() || stream.contains(['.', '*', '>', ' ', '/', '\\']))
        {
            return refuse("stream: a stream's name has no spaces and none of . * > / \\");
        }
        if self.ack_timeout.is_zero() || self.connect_timeout.is_zero() {
            return refuse("ack_timeout and connect_timeout must be above zero");
        }
        if self.max_ack_inflight == 0 {
            return refuse("max_ack_inflight must be at least 1");
        }
        if self.tls.cert_file.is_some() != self.tls.key_file.is_some() {
            return refuse("tls_cert_file and tls_key_file belong together");
        }
        if self.speaks_tls(&addresses) && self.tls.ca_files.is_empty() {
            tls::machine_roots("configure nats")?;
        }
        Ok(())
    }

    /// A file for TLS means TLS.
    fn requires_tls(&self) -> bool {
        self.tls.required || !self.tls.ca_files.is_empty() || self.tls.cert_file.is_some()
    }

    /// Whether it is known before the server is asked that TLS is spoken.
    fn speaks_tls(&self, addresses: &[ServerAddr]) -> bool {
        self.requires_tls() || self.tls.first || addresses.iter().any(ServerAddr::tls_required)
    }

    /// Whether who listens learns what is needed to log in. With a key, only a signature is sent.
    fn sends_secrets(&self, addresses: &[ServerAddr]) -> bool {
        match self.auth {
            NatsAuth::None => addresses.iter().any(ServerAddr::has_user_pass),
            NatsAuth::UserPassword { .. } | NatsAuth::Token(_) => true,
            NatsAuth::CredentialsFile(_) | NatsAuth::Nkey(_) => false,
        }
    }

    pub(super) fn addresses(&self) -> Result<Vec<ServerAddr>> {
        if self.servers.is_empty() {
            return refuse("servers: at least one address is needed");
        }
        let parse = |(position, server): (usize, &Secret)| {
            // The parser's own text may repeat the address and with it a password.
            let address = server.expose().parse::<ServerAddr>().ok();
            match address.filter(|address| !address.host().is_empty()) {
                Some(address) if !address.is_websocket() => Ok(address),
                _ => refuse(format!("servers[{position}]: not of the form nats://host:4222")),
            }
        };
        self.servers.iter().enumerate().map(parse).collect()
    }

    /// The client's options but for callbacks. Reads the credentials file.
    pub(super) async fn connect_options(&self, addresses: &[ServerAddr]) -> Result<ConnectOptions> {
        let mut options = ConnectOptions::new()
            .name(&self.client_name)
            .connection_timeout(self.connect_timeout)
            .request_timeout(Some(self.ack_timeout))
            .ping_interval(PING_INTERVAL)
            .require_tls(self.requires_tls());
        if self.tls.first {
            options = options.tls_first();
        }
        if self.speaks_tls(addresses) {
            let NatsTls { ca_files, cert_file, key_file, .. } = &self.tls;
            let identity = cert_file.as_deref().zip(key_file.as_deref());
            let files = TlsFiles { ca: ca_files, identity };
            options = options.tls_client_config(files.client_config("configure nats")?);
        } else if self.sends_secrets(addresses) {
            let host = addresses.iter().map(ServerAddr::host).find(|host| !is_loopback(host));
            if let Some(host) = host {
                tracing::warn!(
                    host,
                    "credentials are sent in the clear where the server does not ask for TLS: set \
                     tls_required, or tls:// instead of nats://"
                );
            }
        }
        match &self.auth {
            NatsAuth::None => Ok(log_in_by_address(options, addresses)),
            NatsAuth::UserPassword { user, password } => {
                Ok(options.user_and_password(user.clone(), password.expose().to_owned()))
            }
            NatsAuth::Token(token) => Ok(options.token(token.expose().to_owned())),
            NatsAuth::Nkey(seed) => Ok(options.nkey(seed.expose().to_owned())),
            NatsAuth::CredentialsFile(path) => {
                options.credentials_file(path).await.map_err(|error| {
                    Error::new(ErrorKind::Config, "configure nats", "cannot read credentials file")
                        .with_context("path", path.display())
                        .with_source(error)
                })
            }
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let literal = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || literal.is_ok_and(|address| address.is_loopback())
}

/// The client ignores what an address says about the user.
fn log_in_by_address(options: ConnectOptions, addresses: &[ServerAddr]) -> ConnectOptions {
    let Some(address) = addresses.iter().find(|address| address.has_user_pass()) else {
        return options;
    };
    let user = percent_decode(address.username().unwrap_or_default());
    match address.password() {
        Some(password) => options.user_and_password(user, percent_decode(password)),
        None => options.token(user),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_settings_are_refused_without_showing_a_secret() {
        let base = || NatsConfig::new("nats://joe:hunter2@example.com", "events");
        base().validate().unwrap();
        let cases = [
            NatsConfig { servers: vec![], ..base() },
            NatsConfig { servers: vec!["http://joe:hunter2@h".into()], ..base() },
            NatsConfig { servers: vec!["nats://joe:hunter2@h:port".into()], ..base() },
            NatsConfig { subject: "events.{type}".into(), ..base() },
            NatsConfig { subject: "events.>".into(), ..base() },
            NatsConfig { allow_topic: vec!["a.>.b".into()], ..base() },
            NatsConfig { stream: Some("A.B".into()), ..base() },
            NatsConfig { ack_timeout: Duration::ZERO, ..base() },
            NatsConfig { max_ack_inflight: 0, ..base() },
            NatsConfig { cloudevents_source: String::new(), ..base() },
            NatsConfig {
                tls: NatsTls { cert_file: Some("c.pem".into()), ..NatsTls::default() },
                ..base()
            },
        ];
        for config in cases {
            let error = config.validate().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{config:?}");
            assert!(!error.report().contains("hunter2"), "{}", error.report());
            assert!(!format!("{config:?}").contains("hunter2"));
        }
    }
}
