//! `underpass`: the command line. Every group of verbs has a module of its own; this file only picks one.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod check;
mod cluster;
mod install;
mod lab;
mod manifests;
mod screen;
mod status;
mod uninstall;
mod version;

/// Underpass: a service mesh without sidecars.
#[derive(Parser)]
#[command(name = "underpass", version, propagate_version = true, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Check(check::Arguments),
    Install(install::Arguments),
    Uninstall(uninstall::Arguments),
    Status(status::Arguments),
    Version(version::Arguments),
    /// Run the mesh on this machine, without a cluster: nodes and pods are network namespaces.
    Lab(lab::Arguments),
}

/// Exit codes: 0 fine, 1 failed, 2 wrong usage, 3 warnings with `check --strict`; `lab exec` ends as its program does.
fn main() -> ExitCode {
    let done = match Arguments::parse().verb {
        Verb::Check(arguments) => check::run(&arguments),
        Verb::Install(arguments) => install::run(&arguments),
        Verb::Uninstall(arguments) => uninstall::run(&arguments),
        Verb::Status(arguments) => status::run(&arguments),
        Verb::Version(arguments) => version::run(&arguments),
        Verb::Lab(arguments) => lab::run(arguments),
    };
    done.unwrap_or_else(|error| {
        screen::complain(&format!("{error:#}"));
        ExitCode::FAILURE
    })
}
