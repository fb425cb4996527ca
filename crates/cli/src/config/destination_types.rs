//! The keys that only one type of destination has.

use super::schema::{Default, DestinationType, Key, Kind};

const fn key(path: &'static str, kind: Kind, default: Default, doc: &'static str) -> Key {
    Key { path, kind, default, doc }
}

const ENVELOPE: Kind = Kind::Choice(&["plain", "cloudevents", "cloudevents-structured"]);
const POSITIVE: Kind = Kind::Duration { min_ms: 1, none: None };
const SOURCE_DOC: &str = "`source` of CloudEvents: a URI reference.";

const MACHINES_AUTHORITIES: Default =
    Default::Absent("the machine's authorities, or those of `SSL_CERT_FILE`");
const TLS_KEY_FILE: Key =
    key("tls_key_file", Kind::Text, Default::Absent("none"), "The key of `tls_cert_file` (PEM).");

/// All types of destination, in the order of the reference.
pub(crate) const DESTINATION_TYPES: &[DestinationType] = &[
    DestinationType {
        name: "stdout",
        doc: "One JSON object a line on standard output. An event counts as delivered when its \
              line is written and flushed: what reads the pipe must do its part. When the reader \
              goes away the relay ends. At most one destination can have this type.",
        keys: &[],
    },
    DestinationType {
        name: "file",
        doc: "One JSON object a line, appended to a file. An event counts as delivered when its \
              line is synced to disk. A reader skips a line that is not JSON: it is what a crash \
              left of a write that was repeated.",
        keys: &[key(
            "path",
            Kind::Text,
            Default::Required,
            "The file. It is created where it is missing; its folder is not. It may be renamed by \
             a log rotation at any time.",
        )],
    },
    DestinationType {
        name: "nats",
        doc: "NATS JetStream. An event counts as delivered when a stream has acknowledged it. The \
              stream must exist: without one, events wait for it, and no attempt is counted.",
        keys: NATS,
    },
    DestinationType {
        name: "webhook",
        doc: "One HTTP POST for each event. An event counts as delivered when the answer is 200 \
              to 299. Redirects are not followed.",
        keys: WEBHOOK,
    },
];

const NATS: &[Key] = &[
    key(
        "url",
        Kind::SecretUrl,
        Default::Value("nats://127.0.0.1:4222"),
        "The server, or several with commas between: `nats://host:4222`, `tls://host:4222`. A \
         cluster's other servers are found by themselves.",
    ),
    key(
        "subject",
        Kind::Text,
        Default::Value("events.{event_type}"),
        "Where events go, with the placeholders `{event_type}`, `{aggregate_type}`, \
         `{aggregate_id}` and `{key}`. An event's own topic takes its place, within `allow_topic`.",
    ),
    key(
        "allow_topic",
        Kind::Text,
        Default::Absent("what begins as `subject` does before its first placeholder"),
        "Which topics events may choose for themselves besides: subject filters with commas between, \
         `orders.>, bills.*`. Danger: whoever can write a row publishes there with the relay's rights. \
         Subjects that begin with `$` only count where the filter begins with the same: \
         `$KV.bucket.>`.",
    ),
    key(
        "stream",
        Kind::Text,
        Default::Absent("any stream that covers the subject"),
        "The stream that must take the events. Given, an event that another stream covers is \
         refused instead of stored there. Many events of a key are on their way at once only where \
         the stream is named, and allows batches (`allow_batched`, nats-server 2.14 or later), or has \
         a single replica in an account without limits of storage, little in it from others, and a \
         relay that may publish to `$JS.API.INFO`. Elsewhere the next event of a key waits for the \
         acknowledgement of the one before. Before a stream without batches is given replicas, stop \
         its relays for a moment.",
    ),
    key("user", Kind::Text, Default::Absent("none"), "The user; needs `password`."),
    key("password", Kind::Secret, Default::Absent("none"), "The password of `user`."),
    key("token", Kind::Secret, Default::Absent("none"), "A token, instead of a user."),
    key("nkey", Kind::Secret, Default::Absent("none"), "An NKey seed (`SU…`), instead of a user."),
    key(
        "credentials_file",
        Kind::Text,
        Default::Absent("none"),
        "The path of a `.creds` file, instead of a user.",
    ),
    key(
        "tls_required",
        Kind::Bool,
        Default::Value("false"),
        "Refuse a connection without TLS. Otherwise the server decides, unless `tls_ca_file` or \
         `tls_cert_file` is given, which mean the same.",
    ),
    key(
        "tls_first",
        Kind::Bool,
        Default::Value("false"),
        "Begin with the TLS handshake (the server's `handshake_first`).",
    ),
    key(
        "tls_ca_file",
        Kind::Text,
        MACHINES_AUTHORITIES,
        "Certificate authorities to trust instead of the machine's (PEM). Implies `tls_required`.",
    ),
    key(
        "tls_cert_file",
        Kind::Text,
        Default::Absent("none"),
        "The client's certificate (PEM); needs `tls_key_file`. Implies `tls_required`.",
    ),
    TLS_KEY_FILE,
    key("envelope", ENVELOPE, Default::Value("plain"), "What a message looks like."),
    key("cloudevents_source", Kind::Text, Default::Value("/posthaste"), SOURCE_DOC),
    key(
        "ack_timeout",
        POSITIVE,
        Default::Value("5s"),
        "The longest wait for the acknowledgements of a batch. What is unacknowledged then is \
         sent again; the stream drops repetitions within its duplicate window.",
    ),
    key(
        "connect_timeout",
        POSITIVE,
        Default::Value("2s"),
        "The longest one attempt to connect takes.",
    ),
    key(
        "max_ack_inflight",
        Kind::Integer { min: 1, max: 1_000_000 },
        Default::Value("4000"),
        "The most events that wait for an acknowledgement. `relay.max_concurrent_events` bounds \
         them, too.",
    ),
];

const WEBHOOK: &[Key] = &[
    key(
        "url",
        Kind::OpaqueUrl,
        Default::Required,
        "The address that events are posted to. A user and password in it are sent as basic \
         authentication. Only its scheme and host are ever shown: the path of many receivers is a \
         secret. Proxies are not used, whatever `HTTP_PROXY` and its like say. \
         Placeholders are not filled in; an event's own topic is appended to the path.",
    ),
    key(
        "secret",
        Kind::Secret,
        Default::Absent("requests are not signed"),
        "A signing secret of the Standard Webhooks form: `whsec_` and base64. Several, with commas \
         between, give a signature each, so that a new one can be brought in before the old one \
         goes.",
    ),
    key(
        "headers",
        Kind::Secret,
        Default::Absent("none"),
        "Headers of every request, one `Name: value` a line: `Authorization`, for one.",
    ),
    key("envelope", ENVELOPE, Default::Value("cloudevents"), "What a request looks like."),
    key("cloudevents_source", Kind::Text, Default::Value("/posthaste"), SOURCE_DOC),
    key(
        "timeout",
        POSITIVE,
        Default::Value("10s"),
        "The longest one request takes, from connecting to the last byte of the answer; connecting \
         alone takes half of it at most.",
    ),
    key(
        "max_concurrent_requests",
        Kind::Integer { min: 1, max: 1_000 },
        Default::Value("16"),
        "The most requests to this destination at the same time; they are of different keys. \
         `relay.max_concurrent_events` bounds them, too.",
    ),
    key(
        "tls_ca_file",
        Kind::Text,
        MACHINES_AUTHORITIES,
        "Certificate authorities to trust instead of the machine's (PEM); with `https://` only.",
    ),
    key(
        "tls_cert_file",
        Kind::Text,
        Default::Absent("none"),
        "The client's certificate (PEM); needs `tls_key_file`, and `https://`.",
    ),
    TLS_KEY_FILE,
    key(
        "allow_private_addresses",
        Kind::Bool,
        Default::Value("false"),
        "Post to addresses that are not public: needed within one's own network. Danger: whoever \
         can set the URL then reaches what the relay reaches.",
    ),
];
