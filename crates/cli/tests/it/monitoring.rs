//! What monitoring/ asks of a relay is what a relay says.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{AGGREGATE, Cli, Running};
use posthaste_testkit::servers::free_port;
use serde_json::Value;

fn monitoring(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../monitoring")
        .join(file)
        .canonicalize()
        .unwrap()
}

/// A query of the dashboard, and the labels that its legend shows.
struct Query {
    panel: String,
    expression: String,
    legend: BTreeSet<String>,
}

fn dashboard() -> Vec<Query> {
    let text = std::fs::read_to_string(monitoring("dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            let expression = expression.replace("$__rate_interval", "1m").replace("$job", ".*");
            let legend = target["legendFormat"].as_str().unwrap().split("{{").skip(1);
            let legend = legend.map(|rest| rest.split("}}").next().unwrap().to_owned()).collect();
            let panel = panel["title"].as_str().unwrap().to_owned();
            queries.push(Query { panel, expression, legend });
        }
    }
    queries
}

/// The metrics that a text names.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("outbox_"))
        .collect()
}

/// A relay that has met success, a destination that is away, and a row that cannot be read.
async fn experienced_relay(cli: &Cli, port: u16) -> (Running, String) {
    let config = format!(
        "[ops]\nlisten = \"127.0.0.1:{port}\"\n\
         [destinations.main]\ntype = \"file\"\npath = \"events.ndjson\"\n\
         [destinations.away]\ntype = \"webhook\"\nurl = \"http://127.0.0.1:1/\"\n\
         allow_private_addresses = true\n\
         [[routes]]\nevent_type = \"away.*\"\ndestination = \"away\"\n\
         [[routes]]\nevent_type = \"*\"\ndestination = \"main\"\n"
    );
    cli.write("posthaste.toml", config);
    cli.publish("order.placed", "1");
    let away = "insert into outbox_events (aggregate_id, event_type, event_data, available_at)
                values ('$1', 'away.order', '1', null), ('$2', 'corrupt', '1', '9999-12-31')";
    let other = AGGREGATE.replace('0', "1");
    let away = away.replace("$1", &AGGREGATE.replace('0', "2")).replace("$2", &other);
    let file = sqlx::sqlite::SqliteConnectOptions::new().filename(cli.path("posthaste.db"));
    let mut connection = sqlx::ConnectOptions::connect(&file).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(away)).execute(&mut connection).await.unwrap();
    let relay = cli.start(&["run"]);
    let url = format!("http://127.0.0.1:{port}/metrics");
    let wanted = [
        "outbox_events_published_total{destination=\"main\"} 1",
        "outbox_publish_failures_total{destination=\"away\"",
        "outbox_dead_lettered_total{reason=\"corrupt\"} 1",
        "outbox_dead_events 1",
    ];
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = reqwest::get(&url).await;
        let text =
            if let Ok(answer) = answer { answer.text().await.unwrap() } else { String::new() };
        if wanted.iter().all(|line| text.contains(line)) {
            return (relay, text);
        }
        assert!(Instant::now() < deadline, "not all of {wanted:?} in {text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn alerts_and_dashboard_ask_for_metrics_and_labels_that_a_relay_has() {
    let cli = Cli::migrated();
    let (_relay, text) = experienced_relay(&cli, free_port()).await;
    let has = |metric: &str| {
        text.lines()
            .any(|line| line.strip_prefix(metric).is_some_and(|rest| rest.starts_with(['{', ' '])))
    };
    let rules = std::fs::read_to_string(monitoring("alerts.yaml")).unwrap();
    for metric in metrics_in(&rules) {
        assert!(has(metric), "alerts.yaml names {metric}, which no relay has: {text}");
    }
    for Query { panel, expression, legend } in dashboard() {
        for metric in metrics_in(&expression) {
            assert!(has(metric), "{panel}: {metric} is not in {text}");
            for label in legend.iter().filter(|label| *label != "instance") {
                let with_label =
                    |line: &str| line.starts_with(metric) && line.contains(&format!("{label}=\""));
                assert!(text.lines().any(with_label), "{panel}: {metric} has no {label}: {text}");
            }
        }
    }
}

/// Prometheus itself: each query is understood and finds something, each rule can be evaluated.
#[tokio::test]
async fn prometheus_answers_each_query_of_the_dashboard_and_evaluates_each_rule() {
    if Command::new("prometheus").arg("--version").output().is_err() {
        eprintln!("skipped: prometheus is not installed");
        return;
    }
    let cli = Cli::migrated();
    let port = free_port();
    let (_relay, _) = experienced_relay(&cli, port).await;
    let prometheus = Prometheus::start(&cli, port);
    for Query { panel, expression, legend } in dashboard() {
        let found = prometheus.wait_for("query", &expression, |data| {
            data["result"].as_array().is_some_and(|found| !found.is_empty())
        });
        let found = found.await;
        for series in found["result"].as_array().unwrap() {
            let labels = series["metric"].as_object().unwrap();
            let missing = legend.iter().find(|label| !labels.contains_key(*label));
            assert_eq!(missing, None, "{panel}: {expression} gives {series}");
        }
    }
    let rules = std::fs::read_to_string(monitoring("alerts.yaml")).unwrap();
    let expected = rules.matches("- alert: ").count();
    assert!(expected > 0);
    prometheus
        .wait_for("rules", "", |data| {
            let rules = data["groups"][0]["rules"].as_array();
            rules.is_some_and(|rules| {
                rules.len() == expected && rules.iter().all(|rule| rule["health"] == "ok")
            })
        })
        .await;
}

/// A Prometheus that scrapes one relay each second. Killed when dropped.
struct Prometheus {
    child: Child,
    url: String,
}

impl Prometheus {
    fn start(cli: &Cli, relay: u16) -> Self {
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
             rule_files: [{:?}]\n\
             scrape_configs:\n\
             - job_name: shop\n  static_configs: [{{ targets: [\"127.0.0.1:{relay}\"] }}]\n",
            monitoring("alerts.yaml")
        );
        cli.write("prometheus.yml", config);
        let address = format!("127.0.0.1:{}", free_port());
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", cli.path("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", cli.path("prometheus").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(cli.path("prometheus.log")).unwrap())
            .spawn()
            .unwrap();
        Self { child, url: format!("http://{address}/api/v1") }
    }

    /// Asks until the data of the answer is as wanted. An error in a query is no reason to wait.
    async fn wait_for(&self, what: &str, query: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let url = format!("{}/{what}", self.url);
        let url = reqwest::Url::parse_with_params(&url, [("query", query)]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(40);
        loop {
            let answer = match reqwest::get(url.clone()).await {
                Ok(answer) => answer.text().await.unwrap(),
                Err(error) => error.to_string(),
            };
            let answer: Value = serde_json::from_str(&answer).unwrap_or(Value::String(answer));
            assert_ne!(answer["errorType"], "bad_data", "{query}: {answer}");
            if wanted(&answer["data"]) {
                return answer["data"].clone();
            }
            assert!(Instant::now() < deadline, "{query} finds nothing: {answer}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
