//! What scenarios on real Kubernetes share: the cluster they run on, a namespace of each, load, and captures.
//!
//! The cluster is the one that `./x cluster up` brings up, or the user's own, see [`config`]. Whatever a scenario makes
//! lies in a [`Namespace`] of its own, which goes when the scenario ends; if it failed, what the cluster says about it is
//! printed first.

pub mod capture;
pub mod cluster;
pub mod config;
pub mod images;
pub mod load;
pub mod mesh;
pub mod namespace;
pub mod workload;

pub use capture::Capture;
pub use cluster::{Cluster, cluster};
pub use load::Load;
pub use mesh::{Mesh, mesh};
pub use namespace::Namespace;
pub use workload::{Workload, container};

use std::time::Duration;

/// Long enough for anything that a cluster does with a pod, images present, on a busy machine.
pub const SHORT: Duration = Duration::from_secs(120);
