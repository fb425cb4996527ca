//! HTTP webhooks: one POST per event.
//!
//! Only an answer of 200 to 299 is success. The request carries the event as its
//! [envelope](crate::EnvelopeFormat) says (CloudEvents in binary mode unless configured), and, where
//! a secret is configured, a [Standard Webhooks](https://www.standardwebhooks.com) signature:
//! `webhook-id` (the event's id), `webhook-timestamp` (seconds) and `webhook-signature`.
//!
//! An event's own topic is appended to the path of the URL: `orders/placed` on
//! `https://example.com/hooks` is posted to `https://example.com/hooks/orders/placed`.
//!
//! # What an answer means
//!
//! | answer | kind | status |
//! |---|---|---|
//! | 2xx | | delivered |
//! | no connection, TLS failure, connection lost | `Unreachable` | unavailable |
//! | nothing within the timeout | `Timeout` | unavailable; transient where another event of the call was accepted before |
//! | 1xx, 3xx (redirects are not followed) | `DestinationMissing` | unavailable |
//! | 401, 403, 407 | `Unauthorized` | unavailable |
//! | 404, 410 | `DestinationMissing` | unavailable; transient where the event chose its own path |
//! | 408, 409, 423, 425 | `Failed` | transient |
//! | 413, 431 | `TooLarge` | permanent |
//! | 429, 502, 503, 504 | `Throttled` | unavailable |
//! | any other 4xx | `Rejected` | permanent |
//! | any other 5xx | `Failed` | transient |
//!
//! `Retry-After` (seconds or a date) is passed on, at most one hour. A 500 may be this event's own
//! doing as well as the server's, so it costs an attempt and holds back its key only. After a 410
//! for the URL itself **nothing is posted any more** until the bus is made anew: the receiver said
//! that it will never come back.
//!
//! # Addresses
//!
//! Private, loopback, link-local and other non-public addresses are refused unless
//! `allow_private_addresses` is set: whoever may choose a URL must not reach the inside of a
//! network with the relay's position. Names are checked by the addresses they resolve to, at every
//! connection, so a name that changes its address gains nothing. Proxies of the environment are not
//! used, since they would resolve names on their own.

mod address;
mod answer;
mod bus;
mod config;
mod signature;

pub use bus::WebhookBus;
pub use config::WebhookConfig;
