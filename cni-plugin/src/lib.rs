//! The CNI plugin, chained after those that make a pod's network. The container runtime runs it when a pod starts
//! (ADD) and ends (DEL), and now and then in between (CHECK, STATUS, GC).
//!
//! It knows nothing of labels and programs nothing: it asks the node agent, and waits until the agent says that the
//! pod is captured, or which link is missing. What it decides alone is what to do while the agent is away
//! ([`decide`]). It lives for milliseconds: no runtime, no threads, one connection.

mod agent;
mod config;
mod decide;
mod error;
mod log;
pub mod network;
mod pods;
pub mod result;

pub use error::InvocationError;

use std::{
    io::{self, Read as _, Write as _},
    process::ExitCode,
};

use crate::{
    config::{Command, Environment},
    error::Failure,
    log::Log,
    network::{NetworkConfig, Settings},
};

/// Does what the container runtime wants of the process.
#[must_use]
pub fn answer() -> ExitCode {
    let (input, run) = match read_input() {
        Ok(input) => {
            let run = run(&Environment::of_process(), &input);
            (input, run)
        }
        Err(failure) => (Vec::new(), Err(failure)),
    };
    let (output, code) = match run {
        Ok(output) => (output, ExitCode::SUCCESS),
        Err(failure) => (failure.to_json(&network::declared_version(&input)), ExitCode::FAILURE),
    };
    // The runtime may have gone; then there is nobody to tell.
    let told = io::stdout().write_all(output.as_bytes());
    if told.is_ok() { code } else { ExitCode::FAILURE }
}

/// The network configuration of a large cluster with the attachments of a large node is a hundredth of this.
const INPUT_LIMIT: u64 = 4 << 20;

fn read_input() -> Result<Vec<u8>, Failure> {
    let io_error = |source| InvocationError::Io { what: "standard input", source };
    let mut input = Vec::new();
    let read = io::stdin().lock().take(INPUT_LIMIT + 1).read_to_end(&mut input).map_err(io_error)?;
    if u64::try_from(read).is_ok_and(|read| read <= INPUT_LIMIT) {
        Ok(input)
    } else {
        Err(InvocationError::Decode(format!("standard input is longer than {INPUT_LIMIT} bytes")).into())
    }
}

/// Does what the runtime wants; the answer is what goes to standard output.
fn run(environment: &Environment, input: &[u8]) -> Result<String, Failure> {
    let command = Command::parse(environment)?;
    if matches!(command, Command::Version) {
        return Ok(network::version_answer(input));
    }
    if matches!(command, Command::Status) {
        // That this program could be run is all that there is to say: pods outside the mesh start also while the agent
        // is away, so the node's network is ready. What is wrong with the configuration fails the pods it concerns.
        return Ok(String::new());
    }
    let network = NetworkConfig::parse(input)?;
    let settings = match Settings::parse(&network) {
        Ok(settings) => settings,
        // A pod must be able to end, whatever happened to the configuration since it started.
        Err(error) if matches!(command, Command::Del(_)) => {
            Log::default().note(&format!("DEL passes without the agent: {error}"));
            return Ok(String::new());
        }
        Err(error) => return Err(error.into()),
    };
    let log = Log::new(settings.log_file.clone());
    let done = match &command {
        Command::Add(sandbox) => pods::add(sandbox, &network, &settings, &log),
        Command::Check(sandbox) => pods::check(sandbox, &network, &settings, &log).map(|()| String::new()),
        Command::Del(sandbox) => {
            pods::del(sandbox, &settings, &log);
            Ok(String::new())
        }
        Command::Gc => pods::collect(&network, &settings, &log).map(|()| String::new()),
        Command::Status | Command::Version => Ok(String::new()),
    };
    if let Err(failure) = &done {
        log.note(&format!("{} failed: {failure}", command.name()));
    }
    done
}
