//! Destinations of types `stdout` and `file` in a configuration.

use std::path::PathBuf;
use std::sync::Arc;

use posthaste_bus_kit::config::{Settings as _, ValueKind, settings};
use posthaste_bus_kit::{BusKind, BusSettings, Complaint, Output};
use posthaste_core::{BusCapabilities, EventBus, Result};

use crate::{NdjsonBus, NdjsonConfig, NdjsonTarget};

/// Standard output as a kind of broker.
pub const STDOUT: BusKind = BusKind::new::<StdoutSettings>("stdout");
/// A file as a kind of broker.
pub const FILE: BusKind = BusKind::new::<FileSettings>("file");

settings! {
    /// One JSON object a line on standard output. An event counts as delivered when its line is written
    /// and flushed: what reads the pipe must do its part. When the reader goes away the relay ends. At
    /// most one destination can have this type.
    pub struct StdoutSettings {}
}

settings! {
    /// One JSON object a line, appended to a file. An event counts as delivered when its line is synced
    /// to disk. A reader skips a line that is not JSON: it is what a crash left of a write that was
    /// repeated.
    pub struct FileSettings {
        /// The file. It is created where it is missing; its folder is not. It may be renamed by a log
        /// rotation at any time.
        pub path: PathBuf = ValueKind::Text.required(),
    }
}

impl BusSettings for StdoutSettings {
    const CAPABILITIES: BusCapabilities = BusCapabilities { durable: false, ..crate::CAPABILITIES };

    fn check(&self) -> Result<(), Complaint> {
        Ok(())
    }

    fn output(&self) -> Option<Output> {
        Some(Output::Stdout)
    }

    async fn open(&self) -> Result<Arc<dyn EventBus>> {
        Ok(Arc::new(NdjsonBus::stdout()?))
    }
}

impl BusSettings for FileSettings {
    const CAPABILITIES: BusCapabilities = crate::CAPABILITIES;

    fn check(&self) -> Result<(), Complaint> {
        let config = NdjsonConfig::new(NdjsonTarget::File(self.path.clone()));
        config.validate().map_err(|error| Complaint::of(&error, Self::KEYS))
    }

    fn absence(&self) -> Option<Complaint> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty())?;
        (!folder.is_dir()).then(|| {
            let why = format!("the folder {} is not there", folder.display());
            Complaint::new("path", why, "create it: posthaste creates files, not folders")
        })
    }

    fn output(&self) -> Option<Output> {
        Some(Output::File { key: "path", path: self.path.clone() })
    }

    async fn open(&self) -> Result<Arc<dyn EventBus>> {
        Ok(Arc::new(NdjsonBus::file(&self.path)?))
    }
}
