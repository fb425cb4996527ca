//! HTTP webhooks: one POST per event.
//!
//! Only an answer of 200 to 299 is success. The request carries the event as its
//! [envelope](posthaste_bus_kit::EnvelopeFormat) says (CloudEvents in binary mode unless configured), and, where
//! a secret is configured, a [Standard Webhooks](https://www.standardwebhooks.com) signature:
//! `webhook-id` (the event's id), `webhook-timestamp` (seconds) and `webhook-signature`.
//!
//! An event's own topic is appended to the path of the URL: `orders/placed` on
//! `https://example.com/hooks` is posted to `https://example.com/hooks/orders/placed`. It has letters,
//! digits, `-`, `.`, `_` and `~` between its slashes, nothing else, and no part `.` or `..`: whoever
//! writes a row reaches nothing beside what is configured.
//!
//! # What an answer means
//!
//! | met | kind | about |
//! |---|---|---|
//! | 2xx, whatever becomes of the body | | delivered |
//! | the name is not resolved, no connection, TLS failure | `Unreachable`, or `Timeout` | connection |
//! | sent, and the connection broke, or what came is not HTTP | `Unreachable` | destination |
//! | sent, and nothing within the timeout | `Timeout` | destination |
//! | 1xx, 3xx (redirects are not followed), 404, 410, 421, 426 | `DestinationMissing` | destination |
//! | 401, 402, 403, 407, 511 | `Unauthorized` | destination |
//! | 429, 502, 503, 504, 507, 520 to 530 | `Throttled` | destination |
//! | 408, 409, 423, 425 | `Failed` | event |
//! | 413, 431 | `TooLarge` | event |
//! | any other 4xx | `Rejected` | event |
//! | any other 5xx | `Failed` | event |
//!
//! Where the event chose its own path, what the table says of the destination is said of the route:
//! a 403 there is nothing against the URL itself. What follows for the event, the relay decides from
//! what others meet; this bus has no rules for that, and none for a 410 either, which many receivers
//! answer for one object that is gone.
//!
//! `Retry-After` (seconds or a date) is passed on with every answer that has one.
//!
//! # Connections
//!
//! Connections are used for a minute at most, so that a name that moves is followed, and are left
//! behind after two time-outs in a row: over HTTP/2 all requests share one, and what it leads to may
//! hang. Over HTTP/2 a connection with requests under way is pinged. A request of which the receiver
//! says that it was not processed (`GOAWAY`, `REFUSED_STREAM`) is sent again at once, as RFC 9113 §8.7
//! allows; nothing else is. Half of the timeout is for connecting, divided among the addresses of the
//! name.
//!
//! Authorities that are trusted are the machine's (`SSL_CERT_FILE`, `SSL_CERT_DIR`), or those of
//! `tls_ca_file`. Plain `http://` needs none.
//!
//! # Addresses
//!
//! Private, loopback, link-local and other non-public addresses are refused unless
//! `allow_private_addresses` is set: whoever may choose a URL must not reach the inside of a
//! network with the relay's position. Names are checked by the addresses they resolve to, at every
//! connection, so a name that changes its address gains nothing. Proxies of the environment
//! (`HTTPS_PROXY` and its like) are not used, since they would resolve names on their own.
//!
//! # Secrets
//!
//! Nothing of the URL but its host, no header's value and no password is in an error, whatever the
//! receiver answers: it is taken out of what is kept of an answer.

mod address;
mod answer;
mod bus;
mod clients;
mod config;
mod path;
mod settings;
mod signature;

pub use bus::WebhookBus;
pub use config::{WebhookConfig, WebhookTls};
pub use settings::{WEBHOOK, WebhookSettings};
