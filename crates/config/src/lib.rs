//! Settings: declared once, as typed structs whose fields have their docs and defaults beside them.
//!
//! ```
//! use std::time::Duration;
//!
//! use posthaste_config::{ValueKind, settings};
//!
//! settings! {
//!     /// A kettle. It is on when water boils.
//!     pub struct KettleSettings {
//!         /// The name it answers to.
//!         pub name: String = ValueKind::Text.required(),
//!         /// The longest it boils.
//!         pub timeout: Duration = ValueKind::POSITIVE_DURATION.or("5m"),
//!         /// Who may switch it on.
//!         pub owner: Option<String> = ValueKind::Text.optional("everybody"),
//!     }
//! }
//! ```
//!
//! From such structs come what is read ([`Settings::read`]), the names of environment variables, the
//! suggestion for a misspelt key, the reference, and what is never shown. The feature `load` has what a
//! program needs besides: files, the environment, and who may have written a file.

pub mod bounded;
mod given;
mod key;
mod problem;
mod secret;
pub mod secrets;
mod suggest;
mod typed;
pub mod units;
pub mod value;

#[cfg(feature = "load")]
pub mod environment;
#[cfg(feature = "load")]
pub mod file;
#[cfg(feature = "load")]
pub mod resolve;
#[cfg(feature = "load")]
pub mod trust;

pub use given::{FromValue, Given};
pub use key::{Declared, DefaultValue, Key, Schema, Section, ValueKind, section_of};
pub use problem::{Problem, Problems};
pub use secret::Secret;
pub use suggest::nearest;
pub use typed::Settings;
