//! A destination of type `nats` in a configuration.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nkeys::KeyPair;
use posthaste_bus_kit::config::{Settings as _, ValueKind, settings};
use posthaste_bus_kit::{BusKind, BusSettings, Complaint, EnvelopeFormat, Secret};
use posthaste_core::{BusCapabilities, Error, ErrorKind, EventBus, Result};

use crate::{NatsAuth, NatsBus, NatsConfig, NatsTls};

/// NATS JetStream as a kind of broker.
pub const NATS: BusKind = BusKind::new::<NatsSettings>("nats");

const CERTIFICATES: ValueKind = ValueKind::FileWith("CERTIFICATE-----");

settings! {
    /// NATS JetStream. An event counts as delivered when a stream has acknowledged it. The stream must
    /// exist: without one, events wait for it, and no attempt is counted.
    pub struct NatsSettings {
        /// The server, or several with commas between: `nats://host:4222`, `tls://host:4222`. A
        /// cluster's other servers are found by themselves.
        pub url: Secret = ValueKind::SecretUrl.or("nats://127.0.0.1:4222"),
        /// Where events go, with the placeholders `{event_type}`, `{aggregate_type}`, `{aggregate_id}`
        /// and `{key}`. An event's own topic takes its place, within `allow_topic`.
        pub subject: String = ValueKind::Text.or("events.{event_type}"),
        /// Which topics events may choose for themselves besides: subject filters with commas between,
        /// `orders.>, bills.*`. Danger: whoever can write a row publishes there with the relay's
        /// rights. Subjects that begin with `$` only count where the filter begins with the same:
        /// `$KV.bucket.>`.
        pub allow_topic: Vec<String> = ValueKind::Text.optional(
            "what begins as `subject` does before its first placeholder"
        ),
        /// The stream that must take the events. Given, an event that another stream covers is refused
        /// instead of stored there. Many events of a key are on their way at once only where the stream
        /// is named, and allows batches (`allow_batched`, nats-server 2.14 or later), or has a single
        /// replica in an account without limits of storage, little in it from others, and a relay that
        /// may publish to `$JS.API.INFO`. Elsewhere the next event of a key waits for the
        /// acknowledgement of the one before. Before a stream without batches is given replicas, stop
        /// its relays for a moment.
        pub stream: Option<String> = ValueKind::Text.optional("any stream that covers the subject"),
        /// The user; needs `password`.
        pub user: Option<String> = ValueKind::Text.optional("none"),
        /// The password of `user`.
        pub password: Option<Secret> = ValueKind::Secret.optional("none"),
        /// A token, instead of a user.
        pub token: Option<Secret> = ValueKind::Secret.optional("none"),
        /// An NKey seed (`SU…`), instead of a user.
        pub nkey: Option<Secret> = ValueKind::Secret.optional("none"),
        /// The path of a `.creds` file, instead of a user.
        pub credentials_file: Option<PathBuf> =
            ValueKind::FileWith("NATS USER JWT-----").optional("none"),
        /// Refuse a connection without TLS. Otherwise the server decides, unless `tls_ca_file` or
        /// `tls_cert_file` is given, which mean the same.
        pub tls_required: bool = ValueKind::Bool.or("false"),
        /// Begin with the TLS handshake (the server's `handshake_first`).
        pub tls_first: bool = ValueKind::Bool.or("false"),
        /// Certificate authorities to trust instead of the machine's (PEM). Implies `tls_required`.
        pub tls_ca_file: Option<PathBuf> =
            CERTIFICATES.optional("the machine's authorities, or those of `SSL_CERT_FILE`"),
        /// The client's certificate (PEM); needs `tls_key_file`. Implies `tls_required`.
        pub tls_cert_file: Option<PathBuf> = CERTIFICATES.optional("none"),
        /// The key of `tls_cert_file` (PEM).
        pub tls_key_file: Option<PathBuf> =
            ValueKind::FileWith("PRIVATE KEY-----").optional("none"),
        /// What a message looks like.
        pub envelope: EnvelopeFormat = EnvelopeFormat::KIND.or("plain"),
        /// `source` of CloudEvents: a URI reference.
        pub cloudevents_source: String = ValueKind::Text.or("/posthaste"),
        /// The longest wait for the acknowledgements of a batch. What is unacknowledged then is sent
        /// again; the stream drops repetitions within its duplicate window.
        pub ack_timeout: Duration = ValueKind::POSITIVE_DURATION.or("5s"),
        /// The longest one attempt to connect takes.
        pub connect_timeout: Duration = ValueKind::POSITIVE_DURATION.or("2s"),
        /// The most events that wait for an acknowledgement. `relay.max_concurrent_events` bounds them,
        /// too.
        pub max_ack_inflight: usize = ValueKind::Integer { min: 1, max: 1_000_000 }.or("4000"),
    }
}

impl BusSettings for NatsSettings {
    const CAPABILITIES: BusCapabilities = crate::bus::CAPABILITIES;

    fn check(&self) -> Result<(), Complaint> {
        // The client would fail with it at each attempt to connect.
        if let Some(error) =
            self.nkey.as_ref().and_then(|seed| KeyPair::from_seed(seed.expose()).err())
        {
            let why = format!("is no NKey seed: {error}");
            return Err(Complaint::new("nkey", why, "give the seed, which begins with SU"));
        }
        self.config().and_then(|config| config.validate()).map_err(|error| {
            let mut complaint = Complaint::of(&error, Self::KEYS);
            if complaint.why.starts_with("servers") {
                complaint.key = "url";
            }
            complaint
        })
    }

    async fn open(&self) -> Result<Arc<dyn EventBus>> {
        Ok(Arc::new(NatsBus::connect(self.config()?).await?))
    }
}

impl NatsSettings {
    /// The bus's own settings.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] where several ways to log in are given, or half of one.
    pub fn config(&self) -> Result<NatsConfig> {
        Ok(NatsConfig {
            servers: self
                .url
                .expose()
                .split(',')
                .map(|server| Secret::from(server.trim()))
                .collect(),
            subject: self.subject.clone(),
            allow_topic: self.allow_topic.clone(),
            stream: self.stream.clone(),
            auth: self.auth()?,
            tls: NatsTls {
                required: self.tls_required,
                first: self.tls_first,
                ca_files: self.tls_ca_file.iter().cloned().collect(),
                cert_file: self.tls_cert_file.clone(),
                key_file: self.tls_key_file.clone(),
            },
            envelope: self.envelope,
            cloudevents_source: self.cloudevents_source.clone(),
            ack_timeout: self.ack_timeout,
            connect_timeout: self.connect_timeout,
            max_ack_inflight: self.max_ack_inflight,
            ..NatsConfig::default()
        })
    }

    fn auth(&self) -> Result<NatsAuth> {
        let refuse = |why: String| Err(Error::new(ErrorKind::Config, "configure nats", why));
        let ways = [
            ("user", self.user.is_some()),
            ("token", self.token.is_some()),
            ("nkey", self.nkey.is_some()),
            ("credentials_file", self.credentials_file.is_some()),
        ];
        let given: Vec<&str> =
            ways.into_iter().filter_map(|(key, is_given)| is_given.then_some(key)).collect();
        if given.len() > 1 {
            return refuse(format!("{} exclude each other; keep one", given.join(" and ")));
        }
        Ok(match (&self.user, &self.password) {
            (Some(user), Some(password)) => {
                NatsAuth::UserPassword { user: user.clone(), password: password.clone() }
            }
            (None, None) => {
                let token = self.token.clone().map(NatsAuth::Token);
                let nkey = || self.nkey.clone().map(NatsAuth::Nkey);
                let file = || self.credentials_file.clone().map(NatsAuth::CredentialsFile);
                token.or_else(nkey).or_else(file).unwrap_or_default()
            }
            _ => return refuse("user and password belong together".into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use posthaste_bus_kit::config::Given;

    use super::*;

    fn defaults() -> Given {
        Given::with_defaults(NatsSettings::KEYS)
    }

    #[test]
    fn the_defaults_are_those_of_the_library() {
        let settings = NatsSettings::read(&defaults()).unwrap();
        let (ours, theirs) = (settings.config().unwrap(), NatsConfig::default());
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
        assert_eq!(ours.servers, theirs.servers);
    }

    #[test]
    fn a_complaint_names_the_key_that_it_is_about() {
        for (key, value, about, why) in [
            ("url", "http://h", "url", "servers[0]: not of the form"),
            ("subject", "events.{type}", "subject", "is not one of"),
            ("cloudevents_source", "a b", "cloudevents_source", "URI reference"),
            ("stream", "A.B", "stream", "a stream's name"),
            ("password", "x", "user", "user and password belong together"),
            ("nkey", "SUX", "nkey", "is no NKey seed"),
        ] {
            let found = NATS.complaints(&defaults().with(key, value));
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].key, about, "{found:?}");
            assert!(found[0].why.contains(why), "{found:?}");
        }
        let given = defaults().with("token", "t").with("user", "u").with("stream", "A.B");
        let found = NATS.complaints(&given);
        assert!(found[0].why.contains("exclude each other"), "{found:?}");
    }
}
