//! Between the protocol's messages and the model, both ways.
//!
//! What the protocol leaves empty gets its meaning here (`cluster.local`, `default`, `Kubernetes`, capacity 1). A value
//! that decides how traffic is carried must be understood, else the resource is refused; what only telemetry reads is
//! taken leniently. Fields that the model has no noun for are dropped.

mod address;
mod authorization;
mod revocation;
mod service;
mod workload;

use underpass_model::{Service, Workload};

use crate::wire::workload as wire;

pub use authorization::{policy_from_wire, policy_to_wire, policy_unread};
pub use revocation::{revocation_from_wire, revocation_to_wire};
pub use service::service_to_wire;
pub use workload::workload_to_wire;

/// Why a resource was refused: which one, which field, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{resource}: field {field}: {problem}")]
pub struct ConvertError {
    /// The resource's own name, or what is known of it.
    pub resource: String,
    /// The field, as the protocol spells it.
    pub field: &'static str,
    /// What is wrong.
    pub problem: Problem,
}

/// What can be wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// An address has another length than 4 or 16 bytes.
    #[error("an address has 4 or 16 bytes, not {0}")]
    AddressLength(usize),
    /// It must not be empty.
    #[error("is empty")]
    Empty,
    /// Something further is asked for that is not known.
    #[error("{0:?} is not known")]
    Extension(String),
    /// A name has a form that the field does not allow.
    #[error("{0:?} is not of the form that is wanted here")]
    Form(String),
    /// A time is missing or cannot be read.
    #[error("has no time that can be read")]
    NoTime,
    /// A number is no port.
    #[error("{0} is no port")]
    Port(u32),
    /// A prefix is longer than the address.
    #[error("a prefix of {0} bits is longer than the address")]
    PrefixLength(u32),
    /// A number stands for nothing that is known.
    #[error("value {0} is not known")]
    Unknown(i32),
}

impl ConvertError {
    /// A stable label of the problem.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self.problem {
            Problem::AddressLength(_) => "address_length",
            Problem::Empty => "empty",
            Problem::Extension(_) => "unknown_extension",
            Problem::Form(_) => "form",
            Problem::NoTime => "no_time",
            Problem::Port(_) => "port",
            Problem::PrefixLength(_) => "prefix_length",
            Problem::Unknown(_) => "unknown_value",
        }
    }
}

/// What an `Address` resource holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressed {
    /// A service.
    Service(Service),
    /// A workload.
    Workload(Workload),
}

/// Reads an `Address` resource; `None` if it holds a kind that is not known (yet).
///
/// # Errors
/// [`ConvertError`] if it cannot be understood.
pub fn address_from_wire(message: &wire::Address) -> Result<Option<Addressed>, ConvertError> {
    match &message.r#type {
        None => Ok(None),
        Some(wire::address::Type::Service(service)) => service::from_wire(service).map(Addressed::Service).map(Some),
        Some(wire::address::Type::Workload(workload)) => {
            workload::from_wire(workload).map(Addressed::Workload).map(Some)
        }
    }
}

/// A field that is wrong; the caller adds whose it is.
struct Wrong {
    field: &'static str,
    problem: Problem,
}

impl Wrong {
    fn new(field: &'static str, problem: Problem) -> Self {
        Self { field, problem }
    }

    fn of(self, resource: &str) -> ConvertError {
        ConvertError { resource: shorten(resource), field: self.field, problem: self.problem }
    }
}

/// What an error repeats of a text that somebody else chose.
fn shorten(text: &str) -> String {
    const KEPT: usize = 300;
    text.chars().take(KEPT).collect()
}

#[cfg(test)]
mod tests;
