//! Kubernetes objects from an API server or from a directory of ordinary manifests, and how node agents and the operator
//! tell each other what is captured.
//!
//! `cluster` (a feature) and [`directory`] keep an immutable [`Snapshot`] up to date; [`manifest`] reads one file;
//! [`report`] (on pods) and [`status`] (in files) are the reports' homes; [`enrolment`] decides which pods belong into the
//! mesh; [`pod`] answers common questions about a pod; [`policy`] has the mesh's own kinds. What the objects mean to the
//! mesh is the operator's business (its `translate`), not this crate's. `testing` (a feature) has an API server for tests.

pub mod changes;
#[cfg(feature = "cluster")]
pub mod cluster;
pub mod directory;
pub mod enrolment;
pub mod files;
pub mod guarded;
pub mod manifest;
pub mod mesh_config;
mod object;
pub mod pod;
pub mod policy;
pub mod report;
mod snapshot;
pub mod status;
#[cfg(feature = "testing")]
pub mod testing;

pub use directory::{Directory, DirectoryTask};
pub use enrolment::{Enrolment, NotEnrolled};
pub use guarded::NetworkPolicies;
pub use object::{Kind, Object, ObjectKey, ObjectName, Objects};
pub use snapshot::{KindError, Origin, Problem, Snapshot, SourceError};
pub use status::{CaptureReport, CaptureState, Status, StatusDirectory};
