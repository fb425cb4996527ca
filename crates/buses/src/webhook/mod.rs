//! HTTP webhooks.
