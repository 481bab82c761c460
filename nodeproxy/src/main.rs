//! The node proxy: captures this node's pods, carries their TCP over HBONE, counts it.

mod account;
mod app;
mod authorize;
mod balance;
mod budget;
mod capture;
mod config;
mod connections;
mod debug;
mod enrolment;
mod generation;
mod identify;
mod lanes;
mod pods;
mod probe;
mod resolve;
mod revoke;
mod sessions;
mod supervise;
mod trust;
mod tunnel;
mod waits;
mod worker;

use clap::Parser;

/// Returns memory to the system after a burst, which the C library's allocator does not.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<()> {
    let config = config::Config::parse();
    if config.supervise {
        return supervise(&config);
    }
    // A parent's mask is inherited.
    supervise::be_a_child()?;
    let log = underpass_runtime::telemetry::init(&config.log)?;
    let descriptors = underpass_runtime::limits::raise_descriptors();
    return_memory();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(app::run(config, log, descriptors));
    underpass_runtime::telemetry::flush();
    outcome
}

/// Has a thread of the allocator's own return what idle threads have freed: each by itself would only do so when it
/// allocates the next time.
fn return_memory() {
    if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
        tracing::warn!(%error, "memory goes back to the system late");
    }
}

fn supervise(config: &config::Config) -> anyhow::Result<()> {
    // Before there are threads: all of them must leave the signals to the one that waits for them.
    let signals = supervise::Signals::receive()?;
    let _log = underpass_runtime::telemetry::init(&config.log)?;
    let code = supervise::run(signals)?;
    underpass_runtime::telemetry::flush();
    std::process::exit(code);
}
