//! The mesh as it is now, and how it gets here.
//!
//! A control plane publishes workloads and services as resources of the discovery protocol ([`wire`], `server`); each
//! subscriber keeps them in one [`store`] with one writer, fed by the [`client`], and looks them up in an immutable
//! [`view`] that it takes once per connection.

pub mod wire;

pub mod view;

pub mod store;

pub mod client;

pub mod kept;

#[cfg(feature = "server")]
pub mod server;

#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use store::{AskError, Delta, Mesh, Resource, Store};
pub use view::{Counts, View};
