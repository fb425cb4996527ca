//! Installs packages, where the machine is Debian (or of its kind) and we are root.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process;

/// Programs that tests run themselves, and the packages they are in.
const PROGRAMS: [(&str, &str); 2] = [("pgbouncer", "pgbouncer"), ("python3", "python3")];

/// The same of programs without which a check is skipped.
const OPTIONAL_PROGRAMS: [(&str, &str); 1] = [("promtool", "prometheus")];

/// What is preloaded into relays whose clock jumps, and its package.
const LIBFAKETIME: (&str, &str) = ("faketime/libfaketimeMT.so.1", "libfaketime");

/// Whether missing packages can be installed here.
pub(crate) fn can_install() -> bool {
    Path::new("/etc/debian_version").exists()
        && process::find_program("apt-get").is_some()
        && process::is_root()
}

/// Installs packages; fetches the lists first only where that is needed.
///
/// # Errors
/// apt's, and where [`can_install`] is false: what to install by hand.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if !can_install() {
        bail!("install {} and try again", packages.join(" and "));
    }
    println!("     installing {} from Debian's packages", packages.join(" "));
    if apt_install(packages).is_err() {
        process::output(Command::new("apt-get").args(["update", "-qq"]))?;
        apt_install(packages)?;
    }
    Ok(())
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    // Somebody else may be installing something.
    command.args(["-o", "DPkg::Lock::Timeout=300"]);
    command.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages);
    process::output(&mut command).map(|_| ())
}

/// Sees to it that the programs tests start by themselves are there.
///
/// # Errors
/// Names every one that is missing and could not be installed. Those without which a check is skipped
/// are only said to be missing.
pub(crate) fn ensure_programs() -> Result<()> {
    ensure_required()?;
    for (program, package) in OPTIONAL_PROGRAMS {
        if process::find_program(program).is_some() {
            continue;
        }
        match install(&[package]) {
            Ok(()) => stop_service(package),
            Err(error) => println!("-    {program} is not there, optional: {error:#}"),
        }
    }
    Ok(())
}

/// Tests run their own; the one that came with a package would only take its port.
fn stop_service(package: &str) {
    // It may not have started, and there may be no services here.
    let _ = process::output(Command::new("service").args([package, "stop"]));
}

fn ensure_required() -> Result<()> {
    let mut packages: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| process::find_program(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if !packages.contains(&"python3") && !has_venv() {
        packages.push("python3-venv");
    }
    if !has_library(LIBFAKETIME.0) {
        packages.push(LIBFAKETIME.1);
    }
    if packages.is_empty() {
        return Ok(());
    }
    install(&packages)?;
    if packages.contains(&"pgbouncer") {
        stop_service("pgbouncer");
    }
    if !has_venv() {
        install(&["python3-venv"])?;
    }
    Ok(())
}

/// Whether it is in the folder of libraries, or in that of the machine's kind below it.
fn has_library(name: &str) -> bool {
    let root = Path::new("/usr/lib");
    let folders = std::fs::read_dir(root).into_iter().flatten().flatten();
    root.join(name).exists() || folders.map(|folder| folder.path()).any(|it| it.join(name).exists())
}

/// Debian keeps `ensurepip`, which virtual environments need, in a package of its own.
fn has_venv() -> bool {
    process::output(Command::new("python3").args(["-c", "import ensurepip, venv"])).is_ok()
}
