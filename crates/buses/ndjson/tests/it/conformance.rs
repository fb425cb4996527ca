//! The NDJSON bus passes the suite of buses.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use posthaste_ndjson::NdjsonBus;
use posthaste_testkit::{BusHarness, Received, bus_suite};
use serde::Deserialize;
use serde_json::value::RawValue;

struct Files {
    folder: tempfile::TempDir,
    opened: AtomicUsize,
}

#[derive(Deserialize)]
struct Line {
    id: uuid::Uuid,
    #[serde(rename = "type")]
    event_type: String,
    key: String,
    content_type: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    data: Option<Box<RawValue>>,
    data_base64: Option<String>,
}

impl Files {
    fn path(&self) -> std::path::PathBuf {
        let number = self.opened.load(Ordering::Relaxed);
        self.folder.path().join(format!("{number}.ndjson"))
    }
}

fn read(line: &str) -> Result<Received> {
    let line: Line = serde_json::from_str(line)?;
    let body = match (line.data, line.data_base64) {
        (Some(data), None) => Bytes::from(data.get().to_owned()),
        (None, Some(data)) => Bytes::from(STANDARD.decode(data)?),
        _ => anyhow::bail!("neither data nor data_base64, or both"),
    };
    Ok(Received {
        id: line.id,
        key: line.key,
        event_type: line.event_type,
        content_type: line.content_type,
        headers: line.headers,
        body,
    })
}

#[async_trait]
impl BusHarness for Files {
    type Bus = NdjsonBus;

    async fn fresh(&self) -> Result<NdjsonBus> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        Ok(NdjsonBus::file(self.path())?)
    }

    async fn received(&self, _bus: &NdjsonBus) -> Result<Vec<Received>> {
        let text = match std::fs::read_to_string(self.path()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        text.lines().map(read).collect()
    }

    async fn unreachable(&self) -> Result<Option<NdjsonBus>> {
        Ok(Some(NdjsonBus::file(self.folder.path().join("missing").join("file"))?))
    }
}

#[tokio::test]
async fn ndjson_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let harness = Files { folder, opened: AtomicUsize::new(0) };
    bus_suite(&harness).await.assert_passed();
}
