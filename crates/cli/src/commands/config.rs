//! `posthaste config`.

use std::process::ExitCode;

use serde_json::json;

use crate::arguments::ConfigCommand;
use crate::config::{Config, Inputs, Problems, reference, secrets};
use crate::destinations;
use crate::exit;
use crate::listing::Listing;
use crate::output::{Output, write_text};

/// Checks, shows or explains the configuration.
pub(crate) fn run(
    command: ConfigCommand,
    inputs: Inputs,
    output: Output,
) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Reference => write_text(&reference())?,
        ConfigCommand::Show => show(&inputs.load()?, output)?,
        ConfigCommand::Check => return check(inputs, output),
    }
    Ok(ExitCode::SUCCESS)
}

fn check(inputs: Inputs, output: Output) -> anyhow::Result<ExitCode> {
    match destinations::load_strictly(inputs) {
        Ok(config) => {
            let file = config.file.as_ref().map(|file| file.display().to_string());
            let result = json!({ "ok": true, "file": file, "problems": [] });
            output.write(&result, || {
                format!("ok: {}", file.as_deref().unwrap_or("no file; environment and defaults"))
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Err(problems) => {
            if output.is_json() {
                output.write(&problems_json(&problems), String::new)?;
            }
            Ok(exit::report(&problems.into()))
        }
    }
}

fn show(config: &Config, output: Output) -> anyhow::Result<()> {
    let values: Vec<_> = config
        .values
        .iter()
        .map(|value| {
            json!({
                "path": value.path,
                "value": value.shown,
                "origin": value.origin.to_string(),
            })
        })
        .collect();
    let result = json!({
        "file": config.file.as_ref().map(|file| file.display().to_string()),
        "database": { "kind": config.database.kind(), "address": config.database.address() },
        "values": values,
    });
    output.write(&result, || {
        let mut listing = Listing::new(["key", "from", "value"], 1);
        for value in &config.values {
            let shown = value.shown.as_deref().unwrap_or("(none)");
            listing.add([value.path.clone(), value.origin.to_string(), shown.to_owned()]);
        }
        format!("{}\n\ndatabase: {}", listing.for_stdout(), config.database.address())
    })
}

fn problems_json(problems: &Problems) -> serde_json::Value {
    let problems: Vec<_> = problems
        .0
        .iter()
        .map(|problem| {
            json!({
                "path": problem.path,
                "place": problem.place,
                "message": secrets::redact(&problem.message),
                "help": problem.help,
            })
        })
        .collect();
    json!({ "ok": false, "problems": problems })
}
