//! What every long-running program of the mesh needs, and nothing that only one of them does.
//!
//! Only `main` functions call [`telemetry::init`] and [`metrics::install`]: a library never installs anything global.

pub mod admin;
pub mod backoff;
pub mod chain;
#[cfg(feature = "control")]
pub mod control;
pub mod limits;
pub mod metrics;
pub mod shutdown;
pub mod tasks;
pub mod telemetry;

pub use backoff::Backoff;
pub use chain::Chain;
pub use shutdown::Shutdown;
