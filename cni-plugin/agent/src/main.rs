//! The node agent's process: settings, logs, signals; everything else is the library.

use anyhow::Context as _;
use clap::Parser as _;
use underpass_agent::{app, config::Config, pods::Limits};
use underpass_runtime::{Shutdown, limits, telemetry};

fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    let _control = telemetry::init(&config.log)?;
    // Each pod holds four.
    limits::raise_descriptors();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let shutdown = Shutdown::on_signals().context("cannot listen for signals")?;
        Ok(app::run(config, Limits::default(), shutdown).await?)
    });
    // A look-up that still blocks must not hold up the end.
    runtime.shutdown_background();
    telemetry::flush();
    result
}
