//! `posthaste`: the relay and the command-line tool. The only place that knows all stores and
//! buses.

mod arguments;
mod commands;
mod config;
mod demo;
mod destinations;
mod exit;
mod kinds;
mod listing;
mod logs;
mod ops;
mod output;
mod plain;
mod store;

use std::process::ExitCode;

use clap::Parser;
use config::{Problem, Problems};

/// A seventh less of the processor's time per event than with the C library's, which hands memory from
/// thread to thread slowly; for some 20 MB more. Version 3 of it takes 60 MB more and is no faster.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let code = run();
    logs::flush();
    code
}

fn run() -> ExitCode {
    // First of all: two providers in one build panic at the first TLS connection. An error means
    // that it is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments = match arguments::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return exit::parsed(&error),
    };
    if let Err(problem) = worker_threads() {
        return exit::report(&Problems(vec![problem]).into());
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(&error.into()),
    };
    let result = runtime.block_on(async {
        let result = commands::run(arguments).await;
        store::close().await;
        result
    });
    // A read of standard input may still block a thread: do not wait for it.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| exit::report(&error))
}

/// The runtime reads the variable itself, and panics at what it cannot use.
fn worker_threads() -> Result<(), Problem> {
    const VARIABLE: &str = "TOKIO_WORKER_THREADS";
    const THREADS_MAX: usize = 1_024;
    let Some(given) = std::env::var_os(VARIABLE) else { return Ok(()) };
    match given.to_str().and_then(|text| text.parse().ok()) {
        Some(1..=THREADS_MAX) => Ok(()),
        _ => Err(Problem {
            path: String::new(),
            place: Some(VARIABLE.to_owned()),
            message: format!("must be a number from 1 to {THREADS_MAX}"),
            help: "correct or unset it; without it there is a thread for each processor".into(),
        }),
    }
}
