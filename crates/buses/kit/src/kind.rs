//! A kind of broker as one value: all that a program must know to offer it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use posthaste_config::{Given, Key, Section, Settings, ValueKind, bounded};
use posthaste_core::{BusCapabilities, EventBus, Result};

use crate::Complaint;

/// The settings of one kind of broker: declared by [`posthaste_config::settings!`], and what follows from
/// them.
pub trait BusSettings: Settings + fmt::Debug + Send + Sync + 'static {
    /// What every bus of this kind can do. One that has asked its broker may know of more.
    const CAPABILITIES: BusCapabilities;

    /// Confirms that a bus can be made from them, without connecting to anything and without waiting.
    ///
    /// # Errors
    /// What is wrong first. Whoever asks takes that away and asks again, so that all is told at once.
    fn check(&self) -> Result<(), Complaint>;

    /// What will keep the destination waiting as things are now, and may be there when a relay starts: a
    /// folder, for one. Default: nothing.
    fn absence(&self) -> Option<Complaint> {
        None
    }

    /// What events are written to on this machine, so that nothing else writes there. Default: nothing.
    fn output(&self) -> Option<Output> {
        None
    }

    /// Makes the bus. It connects, and connects again, by itself: that the other side is down is no error.
    ///
    /// # Errors
    /// A wrong setting ([`posthaste_core::ErrorKind::Config`]), an unreadable file for one.
    fn open(&self) -> impl Future<Output = Result<Arc<dyn EventBus>>> + Send;
}

/// What a destination writes to on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// The standard output of the process, which ends when its reader goes away.
    Stdout,
    /// The file that the key of this name gives.
    File {
        /// The key.
        key: &'static str,
        /// The file.
        path: PathBuf,
    },
}

/// A kind of broker. A program has a list of them, and each crate of a bus one constant:
///
/// ```ignore
/// pub const KAFKA: BusKind = BusKind::new::<KafkaSettings>("kafka");
/// ```
#[derive(Clone, Copy)]
pub struct BusKind {
    name: &'static str,
    doc: &'static str,
    keys: &'static [Key],
    capabilities: BusCapabilities,
    read: fn(&Given) -> Option<BusDestination>,
}

impl BusKind {
    /// The kind of broker with these settings; `name` is the value of `type` in a configuration.
    #[must_use]
    pub const fn new<S: BusSettings>(name: &'static str) -> Self {
        Self { name, doc: S::DOC, keys: S::KEYS, capabilities: S::CAPABILITIES, read: read::<S> }
    }

    /// The value of `type` in a configuration.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Its name, its doc and its keys: what a reference and a reader of files need.
    #[must_use]
    pub const fn section(&self) -> Section {
        Section { name: self.name, doc: self.doc, keys: self.keys }
    }

    /// What every bus of this kind can do.
    #[must_use]
    pub const fn capabilities(&self) -> &BusCapabilities {
        &self.capabilities
    }

    /// Reads the settings of a destination, once; `None` where a value is missing that must be there.
    #[must_use]
    pub fn read(&self, given: &Given) -> Option<BusDestination> {
        (self.read)(given)
    }

    /// Files that cannot be used. A client would miss them again and again while it connects, and mention
    /// it in a log only.
    #[must_use]
    pub fn unusable_files(&self, given: &Given) -> Vec<Complaint> {
        self.keys.iter().filter_map(|key| unusable_file(key, given)).collect()
    }

    /// All that is wrong with what was given for a destination, but for [files](Self::unusable_files). The
    /// settings say one thing at a time: the next shows without that one.
    #[must_use]
    pub fn complaints(&self, given: &Given) -> Vec<Complaint> {
        let mut complaints: Vec<Complaint> = Vec::new();
        let mut rest = given.clone();
        while let Some(complaint) = self.read(&rest).and_then(|found| found.check().err()) {
            let is_known = complaints.iter().any(|known| known.key == complaint.key);
            // That a value has its default is a consequence of what was taken away.
            if is_known || (!complaints.is_empty() && !rest.is_given(complaint.key)) {
                break;
            }
            rest = rest.without(complaint.key, self.keys);
            complaints.push(complaint);
        }
        complaints
    }
}

impl fmt::Debug for BusKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BusKind({})", self.name)
    }
}

fn read<S: BusSettings>(given: &Given) -> Option<BusDestination> {
    S::read(given).map(|settings| BusDestination(Box::new(settings)))
}

fn unusable_file(key: &Key, given: &Given) -> Option<Complaint> {
    let ValueKind::FileWith(content) = key.kind else { return None };
    let path: PathBuf = given.get(key.path)?;
    let why = match bounded::read(&path, bounded::CERTIFICATES_BYTES_MAX) {
        Ok(bytes) if String::from_utf8_lossy(&bytes).contains(content) => return None,
        Ok(_) => format!("{} has no line -----BEGIN {content}", path.display()),
        Err(error) => format!("{} cannot be read: {error}", path.display()),
    };
    Some(Complaint::new(key.path, why, "correct the path, or let posthaste's user read it"))
}

/// A destination as its settings describe it.
#[derive(Debug)]
pub struct BusDestination(Box<dyn Erased>);

impl BusDestination {
    /// See [`BusSettings::check`].
    ///
    /// # Errors
    /// As there.
    pub fn check(&self) -> Result<(), Complaint> {
        self.0.check()
    }

    /// See [`BusSettings::absence`].
    #[must_use]
    pub fn absence(&self) -> Option<Complaint> {
        self.0.absence()
    }

    /// See [`BusSettings::output`].
    #[must_use]
    pub fn output(&self) -> Option<Output> {
        self.0.output()
    }

    /// See [`BusSettings::open`].
    ///
    /// # Errors
    /// As there.
    pub async fn open(&self) -> Result<Arc<dyn EventBus>> {
        self.0.open().await
    }
}

/// [`BusSettings`] of any type.
#[async_trait]
trait Erased: fmt::Debug + Send + Sync {
    fn check(&self) -> Result<(), Complaint>;
    fn absence(&self) -> Option<Complaint>;
    fn output(&self) -> Option<Output>;
    async fn open(&self) -> Result<Arc<dyn EventBus>>;
}

#[async_trait]
impl<S: BusSettings> Erased for S {
    fn check(&self) -> Result<(), Complaint> {
        BusSettings::check(self)
    }

    fn absence(&self) -> Option<Complaint> {
        BusSettings::absence(self)
    }

    fn output(&self) -> Option<Output> {
        BusSettings::output(self)
    }

    async fn open(&self) -> Result<Arc<dyn EventBus>> {
        BusSettings::open(self).await
    }
}

#[cfg(test)]
mod tests {
    use posthaste_config::settings;
    use posthaste_core::memory::MemoryBus;

    use super::*;

    settings! {
        /// A broker of tests.
        struct TestSettings {
            /// A name.
            name: String = ValueKind::Text.required(),
            /// Another one.
            other: Option<String> = ValueKind::Text.optional("none"),
            /// A file.
            ca_file: Option<PathBuf> = ValueKind::FileWith("CERTIFICATE-----").optional("none"),
        }
    }

    impl BusSettings for TestSettings {
        const CAPABILITIES: BusCapabilities = BusCapabilities::new("test");

        fn check(&self) -> Result<(), Complaint> {
            if self.other.as_deref() == Some("bad") {
                return Err(Complaint::new("other", "is bad", "do better"));
            }
            if self.name == "bad" {
                return Err(Complaint::new("name", "is bad", "do better"));
            }
            Ok(())
        }

        async fn open(&self) -> Result<Arc<dyn EventBus>> {
            Ok(Arc::new(MemoryBus::new()))
        }
    }

    const TEST: BusKind = BusKind::new::<TestSettings>("test");

    fn keys_of(given: &Given) -> Vec<&'static str> {
        TEST.complaints(given).iter().map(|complaint| complaint.key).collect()
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let defaults = Given::with_defaults(TestSettings::KEYS);
        assert_eq!(keys_of(&defaults.clone().with("name", "good")), [""; 0]);
        let given = defaults.with("name", "bad").with("other", "bad");
        assert_eq!(keys_of(&given), ["other", "name"]);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_told_by_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let path = file.to_str().unwrap();
        let given = Given::with_defaults(TestSettings::KEYS).with("ca_file", path);
        let complaints = || TEST.unusable_files(&given);
        assert_eq!(complaints()[0].key, "ca_file");
        std::fs::write(&file, "nothing").unwrap();
        let found = complaints();
        assert!(found[0].why.contains("has no line -----BEGIN CERTIFICATE-----"), "{found:?}");
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----").unwrap();
        assert_eq!(complaints(), []);
    }
}
