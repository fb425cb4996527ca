//! A PostgreSQL cluster that tests may use, through Debian's own tools and no service manager.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::probe::Health;
use super::{POSTGRES, Url, debian, free_port, wait_until_ready};
use crate::process;

/// The cluster that is ours. Nobody else's is ever changed.
const CLUSTER: &str = "posthaste";

/// A line of `pg_lsclusters`.
#[derive(Debug, PartialEq, Eq)]
struct Cluster {
    version: String,
    name: String,
    port: u16,
    online: bool,
}

/// Starts the cluster that belongs to the port of `url`, or one of our own.
///
/// A cluster that exists is started, not changed. Where it refuses us, and where there is none,
/// a cluster `posthaste` is made that trusts local connections; on another port if need be.
///
/// # Errors
/// When packages cannot be installed or the cluster does not come up.
pub(crate) fn start(url: &Url, health: &Health) -> Result<Url> {
    if process::find_program("pg_createcluster").is_none() {
        install()?;
    }
    let clusters = clusters()?;
    if matches!(health, Health::Absent(_))
        && let Some(cluster) = clusters.iter().find(|cluster| cluster.port == url.port)
    {
        if !cluster.online {
            start_cluster(cluster)?;
        }
        if wait_until_ready(&POSTGRES, url, Duration::from_secs(20)).is_ok() {
            return Ok(url.clone());
        }
        println!("     cluster {} on {url} lets no test in; making one that does", cluster.name);
    }
    let port = match clusters.iter().find(|cluster| cluster.name == CLUSTER) {
        Some(ours) if ours.online => ours.port,
        Some(ours) => {
            start_cluster(ours)?;
            ours.port
        }
        None => create(&clusters, url.port)?,
    };
    let started = Url::parse(&format!("postgres://root@127.0.0.1:{port}/test"), port)?;
    ensure_database(port)?;
    wait_until_ready(&POSTGRES, &started, Duration::from_secs(20))?;
    Ok(started)
}

/// Stops our own cluster, if it runs.
///
/// # Errors
/// When it runs and cannot be stopped.
pub(crate) fn stop() -> Result<()> {
    if process::find_program("pg_lsclusters").is_none() {
        return Ok(());
    }
    for cluster in clusters()?.iter().filter(|cluster| cluster.name == CLUSTER && cluster.online) {
        control(cluster, &["stop", "--", "-m", "fast"])?;
        println!("stopped PostgreSQL (cluster {CLUSTER})");
    }
    Ok(())
}

/// Installs the server, without the empty cluster that the package would start on our port.
fn install() -> Result<()> {
    debian::install(&["postgresql-common"])?;
    let settings = Path::new("/etc/postgresql-common/createcluster.conf");
    let before = std::fs::read_to_string(settings).unwrap_or_default();
    std::fs::write(settings, format!("{before}\ncreate_main_cluster = false\n"))
        .context("tell postgresql-common to create no cluster")?;
    let installed = debian::install(&["postgresql"]);
    std::fs::write(settings, before).context("restore the settings of postgresql-common")?;
    installed
}

/// Makes and starts our cluster; returns its port.
fn create(clusters: &[Cluster], wanted: u16) -> Result<u16> {
    // A cluster that is down still owns its port.
    let mut port = free_port(wanted)?;
    while clusters.iter().any(|cluster| cluster.port == port) {
        port = free_port(port + 1)?;
    }
    let version = newest_version().context("no PostgreSQL is installed")?;
    process::output(Command::new("pg_createcluster").args([
        &version,
        CLUSTER,
        "--port",
        &port.to_string(),
        // Off by default; tests of open writers use them.
        "--pgoption",
        "max_prepared_transactions=10",
        // Many tests run at once, some with several relays and a pool of writers each.
        "--pgoption",
        "max_connections=300",
        "--",
        "--auth-local=trust",
        "--auth-host=trust",
        "--encoding=UTF8",
    ]))?;
    start_cluster(&Cluster { version, name: CLUSTER.into(), port, online: false })?;
    Ok(port)
}

fn start_cluster(cluster: &Cluster) -> Result<()> {
    println!("     starting PostgreSQL {} cluster {}", cluster.version, cluster.name);
    control(cluster, &["start"])
}

fn control(cluster: &Cluster, action: &[&str]) -> Result<()> {
    let mut command = Command::new("pg_ctlcluster");
    command.args(["--skip-systemctl-redirect", &cluster.version, &cluster.name]).args(action);
    process::output(&mut command).map(|_| ())
}

/// The role `root` and the database `test` of our own cluster.
fn ensure_database(port: u16) -> Result<()> {
    let port = port.to_string();
    for (exists, program, arguments) in [
        ("select 1 from pg_roles where rolname = 'root'", "createuser", ["--superuser", "root"]),
        ("select 1 from pg_database where datname = 'test'", "createdb", ["--owner=root", "test"]),
    ] {
        let server = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres"];
        let found = process::output(
            Command::new("psql").args(server).args(["-d", "postgres", "-Atc", exists]),
        )?;
        if found.trim().is_empty() {
            process::output(Command::new(program).args(server).args(arguments))?;
        }
    }
    Ok(())
}

fn clusters() -> Result<Vec<Cluster>> {
    Ok(parse_clusters(&process::output(Command::new("pg_lsclusters").arg("--no-header"))?))
}

fn parse_clusters(text: &str) -> Vec<Cluster> {
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        Some(Cluster {
            version: words.next()?.to_owned(),
            name: words.next()?.to_owned(),
            port: words.next()?.parse().ok()?,
            online: words.next()?.starts_with("online"),
        })
    };
    text.lines().filter_map(parse).collect()
}

/// The newest installed server version.
fn newest_version() -> Option<String> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    versions
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|version| {
            Path::new("/usr/lib/postgresql").join(version).join("bin/postgres").exists()
        })
        .max_by_key(|version| version.parse::<u32>().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_are_read_from_debians_list() {
        let text = "15 main      5432 online          postgres /var/lib/postgresql/15/main log\n\
                    15 posthaste 5433 down,binaries_missing postgres /var/lib/x log\n";
        let clusters = parse_clusters(text);
        assert_eq!(clusters.len(), 2);
        assert_eq!((clusters[0].port, clusters[0].online), (5432, true));
        assert_eq!((clusters[1].name.as_str(), clusters[1].online), (CLUSTER, false));
    }
}
