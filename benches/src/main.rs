//! What the mesh costs, measured on one machine: `underpass-bench run` brings labs up, offers load with and without the
//! mesh in interleaved rounds, and tells ratios. The other commands are the load itself, which it runs in pods.

mod case;
mod cpu;
mod load;
mod measure;
mod memory;
mod plan;
mod run;
mod serve;
mod summary;
mod times;
mod world;

use std::net::SocketAddr;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(name = "underpass-bench", version, about = "What the mesh costs, measured on this machine")]
enum Command {
    /// Measures, prints a table and writes a summary
    Run(plan::Options),
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
        Command::Run(options) => run::run(&options),
        Command::Serve { port } => serve::serve(port),
        Command::Load { to, kind } => load::run(to, &kind),
    }
}
