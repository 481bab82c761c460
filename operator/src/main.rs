//! The operator's process.

use anyhow::Context as _;
use clap::Parser as _;
use underpass_operator::{
    app,
    config::{Config, PageAddress},
};
use underpass_runtime::{
    Shutdown,
    admin::{self, Pages, Readiness},
    limits, metrics, telemetry,
};

fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let outcome = runtime.block_on(run(config));
    telemetry::flush();
    outcome
}

async fn run(config: Config) -> anyhow::Result<()> {
    telemetry::init(&config.log)?;
    limits::raise_descriptors();
    let recorder = metrics::install().context("install the metrics recorder")?;
    let shutdown = Shutdown::on_signals().context("watch for signals")?;
    let readiness = Readiness::default();
    let running = app::start(&config, &readiness, &shutdown).await?;
    serve(config.metrics_address, Pages::new().metrics(&recorder), &shutdown).await?;
    serve(config.admin_address, running.pages(), &shutdown).await?;
    serve(config.ready_address, Pages::new().readiness(readiness), &shutdown).await?;
    running.stopped().await;
    Ok(())
}

async fn serve(address: PageAddress, pages: Pages, shutdown: &Shutdown) -> anyhow::Result<()> {
    let PageAddress(Some(address)) = address else { return Ok(()) };
    admin::serve(address, pages, shutdown.clone()).await.with_context(|| format!("serve pages on {address}"))
}
