//! Health and metrics over HTTP.

use std::time::{Duration, Instant};

use crate::common::{Cli, Running};

/// A relay with a listener on a free port, and the base of its URLs.
fn started(cli: &Cli) -> (Running, String) {
    let running = cli.start(&["run"]);
    let line = running.wait_for_log("health and metrics at");
    let url = line.split("at ").last().unwrap().split_whitespace().next().unwrap();
    (running, url.trim_end_matches('/').to_owned())
}

async fn get(url: &str) -> (u16, String) {
    let answer = reqwest::get(url).await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// Asks until the answer is `wanted` and gives its text.
async fn wait_for(url: &str, wanted: u16) -> String {
    let deadline = Instant::now() + Duration::from_secs(25);
    loop {
        let (status, text) = get(url).await;
        if status == wanted {
            return text;
        }
        assert!(Instant::now() < deadline, "{url} still answers {status}: {text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Asks for metrics until a line of them is `wanted`, and gives them all.
async fn metrics_with(url: &str, wanted: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let text = wait_for(&format!("{url}/metrics"), 200).await;
        if text.lines().any(|line| line == wanted) {
            return text;
        }
        assert!(Instant::now() < deadline, "{wanted} is not in: {text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn rows_that_cannot_be_read_are_counted_as_dead_letters() {
    let cli = Cli::migrated().env("POSTHASTE_OPS__LISTEN", "127.0.0.1:0");
    cli.publish("a", "1");
    let file = sqlx::sqlite::SqliteConnectOptions::new().filename(cli.path("posthaste.db"));
    let mut connection = sqlx::ConnectOptions::connect(&file).await.unwrap();
    let spoil = "update outbox_events set headers = '[]'";
    sqlx::query(spoil).execute(&mut connection).await.unwrap();
    let (_running, url) = started(&cli);
    metrics_with(&url, "outbox_dead_lettered_total{reason=\"corrupt\"} 1").await;
}

#[tokio::test]
async fn an_idle_relay_is_live_and_ready_and_counts_what_it_delivers() {
    let cli = Cli::migrated().env("POSTHASTE_OPS__LISTEN", "127.0.0.1:0");
    cli.publish("a", "1");
    let (_running, url) = started(&cli);
    assert_eq!(get(&format!("{url}/livez")).await, (200, "ok\n".into()));
    wait_for(&format!("{url}/readyz"), 200).await;
    let text = metrics_with(&url, "outbox_events_published_total{destination=\"default\"} 1").await;
    for part in [
        "outbox_build_info{version=",
        "outbox_delivery_latency_seconds_bucket{le=",
        "outbox_batch_size_events_bucket{le=\"100\"}",
        "outbox_storage_op_duration_seconds_bucket{op=\"fetch\"",
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    let (status, index) = get(&url).await;
    assert!(status == 200 && index.contains("/metrics"));
    assert_eq!(get(&format!("{url}/nothing")).await.0, 404);
}

#[tokio::test]
async fn a_backlog_that_nobody_delivers_is_not_ready_however_alive_the_process() {
    let cli = Cli::migrated()
        .env("POSTHASTE_OPS__LISTEN", "127.0.0.1:0")
        .env("POSTHASTE_OPS__STALL_AFTER", "1ms")
        .env("POSTHASTE_DESTINATIONS__LOG__TYPE", "file")
        .env("POSTHASTE_DESTINATIONS__LOG__PATH", "missing/out.ndjson");
    cli.publish("a", "1");
    let (_running, url) = started(&cli);
    let why = wait_for(&format!("{url}/readyz"), 503).await;
    assert!(!why.is_empty());
    let deadline = Instant::now() + Duration::from_secs(25);
    loop {
        let (status, why) = get(&format!("{url}/readyz")).await;
        if status == 503 && why.contains("destination log is paused") {
            break;
        }
        assert!(Instant::now() < deadline, "{status} {why}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(get(&format!("{url}/livez")).await.0, 200);
    std::fs::create_dir(cli.path("missing")).unwrap();
    wait_for(&format!("{url}/readyz"), 200).await;
    assert!(std::fs::read_to_string(cli.path("missing/out.ndjson")).unwrap().contains("\"a\""));
}

#[tokio::test]
async fn a_relay_that_waits_for_its_database_is_live_and_not_ready() {
    // Nothing listens on port 1.
    let cli = Cli::new()
        .env("POSTHASTE_OPS__LISTEN", "127.0.0.1:0")
        .env("DATABASE_URL", "postgres://joe:hunter2hunter2@127.0.0.1:1/x");
    let (mut running, url) = started(&cli);
    let why = wait_for(&format!("{url}/readyz"), 503).await;
    assert!(why.contains("database has not answered"), "{why}");
    assert_eq!(get(&format!("{url}/livez")).await.0, 200);
    let line = running.wait_for_log("trying again");
    assert!(!line.contains("hunter2"), "{line}");
    running.signal("TERM");
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
}

#[tokio::test]
async fn connections_that_say_nothing_take_neither_all_places_nor_descriptors() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let cli = Cli::migrated().env("POSTHASTE_OPS__LISTEN", "127.0.0.1:0");
    let (running, url) = started(&cli);
    let address = url.trim_start_matches("http://").to_owned();
    let mut silent = Vec::new();
    for _ in 0..100 {
        let mut connection = tokio::net::TcpStream::connect(&address).await.unwrap();
        connection.write_all(b"GET /metr").await.unwrap();
        silent.push(connection);
    }
    let descriptors = format!("/proc/{}/fd", running.child.id());
    let sockets = || {
        let links = std::fs::read_dir(&descriptors)
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    };
    assert!(sockets() < 100, "{} sockets", sockets());
    // Each head has five seconds; then others get their turn.
    assert_eq!(get(&format!("{url}/livez")).await.0, 200);
    let mut answer = Vec::new();
    let _ = silent[0].read_to_end(&mut answer).await;
    assert!(sockets() < 100, "{} sockets", sockets());
}
