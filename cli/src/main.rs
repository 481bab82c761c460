//! `underpass`: the command line. Every group of verbs has a module of its own; this file only picks one.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod lab;
mod screen;

/// Underpass: a service mesh without sidecars.
#[derive(Parser)]
#[command(name = "underpass", version, propagate_version = true, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the mesh on this machine, without a cluster: nodes and pods are network namespaces.
    Lab(lab::Arguments),
}

/// Exit codes: 0 fine, 1 failed, 2 wrong usage; `lab exec` ends as its program does.
fn main() -> ExitCode {
    let done = match Arguments::parse().verb {
        Verb::Lab(arguments) => lab::run(arguments),
    };
    done.unwrap_or_else(|error| {
        screen::complain(&format!("{error:#}"));
        ExitCode::FAILURE
    })
}
