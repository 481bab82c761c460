//! The node agent's process: settings, logs, signals; everything else is the library.

use anyhow::Context as _;
use clap::Parser as _;
use underpass_agent::{
    app,
    config::{Config, UninstallOptions},
    find,
    pods::Limits,
    uninstall,
};
use underpass_runtime::{Shutdown, limits, telemetry};

fn main() -> anyhow::Result<()> {
    if std::env::args_os().nth(1).is_some_and(|verb| verb == "uninstall") {
        return uninstall(&UninstallOptions::parse_from(std::env::args_os().skip(1)));
    }
    let config = Config::parse();
    let _control = telemetry::init(&config.log)?;
    // Each pod holds four.
    limits::raise_descriptors();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let shutdown = Shutdown::on_signals().context("cannot listen for signals")?;
        Ok(Box::pin(app::run(config, Limits::default(), shutdown)).await?)
    });
    // A look-up that still blocks must not hold up the end.
    runtime.shutdown_background();
    telemetry::flush();
    result
}

fn uninstall(options: &UninstallOptions) -> anyhow::Result<()> {
    let _control = telemetry::init(&options.log)?;
    // Whatever an agent may have forgotten is found, too.
    let done = find::all().map_err(anyhow::Error::from).and_then(|all| Ok(uninstall::run(options, all)?));
    if done.is_ok() && options.stay {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            Shutdown::on_signals()?.requested().await;
            std::io::Result::Ok(())
        })?;
    }
    telemetry::flush();
    done
}
