//! What the mesh costs, measured on one machine: `underpass-bench run` brings labs up, offers load with and without the
//! mesh in interleaved rounds, and tells ratios. The other commands are the load itself, which it runs in pods.

mod case;
mod cpu;
mod grow;
mod load;
mod measure;
mod memory;
mod plan;
mod run;
mod scale;
mod serve;
mod summary;
mod times;
mod world;

use std::{net::SocketAddr, path::PathBuf};

use clap::Parser;

#[derive(Debug, Parser)]
#[command(name = "underpass-bench", version, about = "What the mesh costs, measured on this machine")]
enum Command {
    /// Measures, prints a table and writes a summary
    Run(plan::Options),
    /// Measures how cost grows with pairs, pods, workloads and policies, and draws it
    Grow(grow::Options),
    /// Measures the operator in a large cluster: a real API server, simulated nodes
    Scale(scale::Options),
    /// Draws the charts of figures that were measured before
    Plot {
        /// What `grow` wrote
        growth: PathBuf,
        /// Where the charts go
        to: PathBuf,
    },
    /// Sees whether a command line can be used, and does nothing
    #[command(hide = true)]
    Check {
        /// The rest of it
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Answers HTTP requests at a port, and echoes bytes at the next one
    #[command(hide = true)]
    Serve {
        /// The port; on all addresses
        port: u16,
    },
    /// Offers load to a server
    #[command(hide = true)]
    Load {
        /// The server
        to: SocketAddr,
        /// What to do
        #[command(subcommand)]
        kind: load::Kind,
    },
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Check { arguments } => {
            // Ends here if it cannot be used.
            drop(Command::parse_from(std::iter::once("underpass-bench".to_owned()).chain(arguments)));
            Ok(())
        }
        Command::Run(options) => run::run(&options),
        Command::Grow(options) => grow::run(&options),
        Command::Scale(options) => scale::run(&options),
        Command::Plot { growth, to } => grow::plot(&growth, &to),
        Command::Serve { port } => serve::serve(port),
        Command::Load { to, kind } => load::run(to, &kind),
    }
}
