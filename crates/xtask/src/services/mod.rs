//! The servers that tests talk to: found, and on Debian as root installed and started.

mod debian;
mod nats;
mod postgres;
mod probe;
mod url;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use probe::Health;
use url::Url;

/// A server, where it is looked for, and how it is asked.
struct Service {
    name: &'static str,
    /// Names the server to tests; overrules the default.
    variable: &'static str,
    default_url: &'static str,
    default_port: u16,
    probe: fn(&Url) -> Health,
    /// Tests of what exists need it. The others are for brokers and databases yet to come.
    required: bool,
}

const POSTGRES: Service = Service {
    name: "PostgreSQL",
    variable: "POSTHASTE_TEST_POSTGRES_URL",
    default_url: "postgres://root@127.0.0.1:5432/test",
    default_port: 5432,
    probe: probe::postgres,
    required: true,
};

const NATS: Service = Service {
    name: "NATS",
    variable: "POSTHASTE_TEST_NATS_URL",
    default_url: "nats://127.0.0.1:4222",
    default_port: 4222,
    probe: probe::nats,
    required: true,
};

const SERVICES: [Service; 6] = [
    POSTGRES,
    NATS,
    Service {
        name: "MariaDB",
        variable: "POSTHASTE_TEST_MARIADB_URL",
        default_url: "mysql://root@127.0.0.1:3306/test",
        default_port: 3306,
        probe: probe::mariadb,
        required: false,
    },
    Service {
        name: "Redis",
        variable: "POSTHASTE_TEST_REDIS_URL",
        default_url: "redis://127.0.0.1:6379",
        default_port: 6379,
        probe: probe::redis,
        required: false,
    },
    Service {
        name: "RabbitMQ",
        variable: "POSTHASTE_TEST_RABBITMQ_URL",
        default_url: "amqp://127.0.0.1:5672",
        default_port: 5672,
        probe: probe::rabbitmq,
        required: false,
    },
    Service {
        name: "Mosquitto",
        variable: "POSTHASTE_TEST_MOSQUITTO_URL",
        default_url: "mqtt://127.0.0.1:1883",
        default_port: 1883,
        probe: probe::mosquitto,
        required: false,
    },
];

impl Service {
    /// Where to look, and whether the environment says so.
    fn url(&self) -> Result<(Url, bool)> {
        let (text, chosen) = match std::env::var(self.variable) {
            Ok(text) if !text.is_empty() => (text, true),
            _ => (self.default_url.to_owned(), false),
        };
        let url = Url::parse(&text, self.default_port)
            .with_context(|| format!("{} does not hold a URL", self.variable))?;
        Ok((url, chosen))
    }
}

/// Shows what answers. Fails when a required service does not.
pub(crate) fn status() -> Result<()> {
    let mut missing = Vec::new();
    for service in &SERVICES {
        let (url, _) = service.url()?;
        let health = (service.probe)(&url);
        report(service, &url, &health);
        if service.required && !health.is_ready() {
            missing.push(service.name);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("{} cannot be used; run `cargo xtask services up`", missing.join(" and "))
}

/// Brings up what is required, shows the rest, and returns the environment that leads tests to
/// the servers.
pub(crate) fn up() -> Result<Vec<(&'static str, String)>> {
    let mut environment = Vec::new();
    let mut problems = Vec::new();
    for service in &SERVICES {
        let (url, chosen) = service.url()?;
        let health = (service.probe)(&url);
        if health.is_ready() || !service.required {
            report(service, &url, &health);
            environment
                .extend(health.is_ready().then(|| (service.variable, url.as_str().to_owned())));
            continue;
        }
        match start(service, &url, chosen, &health) {
            Ok(started) => {
                report(service, &started, &(service.probe)(&started));
                if started != url {
                    println!(
                        "    to run tests by hand: export {}={}",
                        service.variable,
                        started.as_str()
                    );
                }
                environment.push((service.variable, started.as_str().to_owned()));
            }
            Err(error) => {
                report(service, &url, &health);
                problems.push(format!("{}: {error:#}", service.name));
            }
        }
    }
    problems.extend(debian::ensure_programs().err().map(|error| format!("{error:#}")));
    if problems.is_empty() {
        return Ok(environment);
    }
    bail!("not all services are there\n  - {}", problems.join("\n  - "))
}

/// Stops what `up` started.
pub(crate) fn down() -> Result<()> {
    nats::stop()?;
    postgres::stop()
}

/// Starts a required service and returns where it is.
fn start(service: &Service, url: &Url, chosen: bool, health: &Health) -> Result<Url> {
    if chosen {
        // Whoever named a server wants that one and no other.
        bail!("{} names a server that cannot be used; correct it or unset it", service.variable);
    }
    if !debian::can_install() {
        bail!(
            "start it on {url} (`docker compose up -d` starts all), or name one that runs in {}; \
             as root on Debian this command installs it",
            service.variable
        );
    }
    match service.variable {
        variable if variable == POSTGRES.variable => postgres::start(url, health),
        _ => nats::start(url, health),
    }
}

fn report(service: &Service, url: &Url, health: &Health) {
    let (mark, text) = match health {
        Health::Ready(text) => ("ok  ", text.as_str()),
        Health::Unusable(text) if service.required => ("FAIL", text.as_str()),
        Health::Absent(text) if service.required => ("FAIL", text.as_str()),
        Health::Unusable(_) | Health::Absent(_) => {
            ("-   ", "not there; optional, no test needs it yet")
        }
    };
    println!("{mark} {:<11} {url}  {text}", service.name);
}

/// Asks until the server is ready; `limit` bounds the wait. A refusal ends it at once.
fn wait_until_ready(service: &Service, url: &Url, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let why = match (service.probe)(url) {
            Health::Ready(_) => return Ok(()),
            // PostgreSQL says so while it recovers.
            Health::Unusable(why) if !why.contains("starting up") => bail!("started, but {why}"),
            Health::Unusable(why) | Health::Absent(why) => why,
        };
        if Instant::now() >= deadline {
            bail!("started, but not usable after {} s: {why}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The first port from `from` on that nothing listens on.
pub(crate) fn free_port(from: u16) -> Result<u16> {
    (from..from.saturating_add(100))
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .with_context(|| format!("no free port from {from} on"))
}
