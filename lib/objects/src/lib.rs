//! Kubernetes objects from a directory of ordinary manifests, and the status directory through which node agents and
//! the operator tell each other what is captured.
//!
//! [`directory`] keeps an immutable [`Objects`] up to date with the files; [`manifest`] reads one file; [`status`] is
//! the reports' home; [`enrolment`] decides which pods belong into the mesh; [`pod`] answers common questions about a
//! pod; [`policy`] has the mesh's own kinds. What the objects mean to the mesh is the operator's business (its `translate`), not this crate's.

pub mod changes;
pub mod directory;
pub mod enrolment;
pub mod files;
pub mod manifest;
mod object;
pub mod pod;
pub mod policy;
pub mod status;

pub use directory::{Directory, DirectoryTask, Problem, Snapshot};
pub use enrolment::{Enrolment, NotEnrolled};
pub use object::{Kind, Object, ObjectKey, ObjectName, Objects};
pub use status::{CaptureReport, CaptureState, Status, StatusDirectory};
