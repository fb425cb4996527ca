//! What operators take from here as it is: alert rules and the systemd unit.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{process, target_dir, workspace_root};

/// Rates of `systemd-analyze security` go from 0 to 100, lower is better. The unit has 14, of which 2
/// are for an allow list of addresses that only its user can write.
const EXPOSURE_MAX: &str = "20";

/// Checks both with the programs that will read them. One that is not installed is said to be skipped.
///
/// # Errors
/// When a rule does not fire as its test says, or the unit is wrong or open.
pub(super) fn check() -> Result<()> {
    check_alerts()?;
    check_unit()
}

fn check_alerts() -> Result<()> {
    let Some(promtool) = process::find_program("promtool") else {
        println!("skipped: promtool is not installed (Debian: prometheus)");
        return Ok(());
    };
    let folder = workspace_root().join("monitoring");
    for arguments in [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]] {
        process::output(Command::new(&promtool).args(arguments).current_dir(&folder))?;
    }
    Ok(())
}

fn check_unit() -> Result<()> {
    let Some(analyze) = process::find_program("systemd-analyze") else {
        println!("skipped: systemd-analyze is not installed");
        return Ok(());
    };
    let unit = workspace_root().join("packaging/posthaste.service");
    let mut security = Command::new(&analyze);
    security.args(["security", "--offline=true", "--no-pager", "--threshold", EXPOSURE_MAX]);
    process::output(security.arg(&unit))?;
    // Programs must be there to be verified: any will do.
    let text = std::fs::read_to_string(&unit).with_context(|| unit.display().to_string())?;
    let copy = copy_of(&text)?;
    process::output(Command::new(&analyze).arg("verify").arg(&copy)).map(|_| ())
}

fn copy_of(unit: &str) -> Result<PathBuf> {
    let folder = target_dir().join("operations");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let copy = folder.join("posthaste.service");
    std::fs::write(&copy, unit.replace("/usr/local/bin/posthaste", "/bin/true"))
        .with_context(|| copy.display().to_string())?;
    Ok(copy)
}
