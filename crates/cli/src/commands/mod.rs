//! One module for each command.

mod bulk;
mod cleanup;
mod completions;
mod config;
mod doctor;
mod event_view;
mod events;
mod keys;
mod migrate;
mod open_transactions;
mod publish;
mod relays;
mod run;
mod signals;
mod status;

use std::process::ExitCode;

use crate::arguments::{Arguments, Command, GlobalArgs};
use crate::config::{Config, Inputs};
use crate::output::Output;
use crate::{demo, destinations, logs};

/// Carries out what the command line asks for.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    signals::survive_file_size_limit()?;
    let Arguments { global, command } = arguments;
    let output = Output::new(global.output);
    match command {
        Command::Demo(args) => return demo::run(args, output).await,
        Command::Completions { shell } => completions::run(shell)?,
        Command::Config { command } => return config::run(command, inputs(global), output),
        Command::Run(args) => {
            let config = destinations::load(inputs(global))?;
            logs::install(&config.log.level, config.log.format);
            return run::run(&args, config).await;
        }
        Command::Migrate { command } => migrate::run(command, &quiet(global)?, output).await?,
        Command::Publish(args) => publish::run(*args, &quiet(global)?, output).await?,
        Command::Status => status::run(&quiet(global)?, output).await?,
        Command::Doctor => return doctor::run(&quiet(global)?, output).await,
        Command::Keys { command } => keys::run(command, &quiet(global)?, output).await?,
        Command::Events { command } => {
            return events::run(command, &quiet(global)?, output).await;
        }
        Command::Cleanup { older_than } => {
            cleanup::run(older_than, &quiet(global)?, output).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn inputs(global: GlobalArgs) -> Inputs {
    Inputs::of_process(global.config, global.database_url)
}

/// The configuration for a command that answers and ends: what it does is its output, so only
/// warnings are logged.
fn quiet(global: GlobalArgs) -> anyhow::Result<Config> {
    let config = inputs(global).load()?;
    let level = if config.log.level == "info" { "warn" } else { &config.log.level };
    logs::install(level, config.log.format);
    if let Some(file) = config.file.as_ref().filter(|_| config.file_was_found) {
        logs::say(&format!("configuration: {}", file.display()));
    }
    Ok(config)
}
