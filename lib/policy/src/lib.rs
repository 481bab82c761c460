//! Decides whether a connection may be: facts in, a [`Permit`] or a [`Denial`] out.
//!
//! Pure: no I/O, no clock, no lock. A permit has no public constructor, and whoever dials asks for one (through a lease),
//! so nothing is dialled that was not decided here. Closed on doubt: a policy that is named but not known, or known but
//! not understood, refuses.

mod decide;
mod facts;
mod matcher;
mod refusal;
mod rule;

pub use decide::{Denial, Permit, PolicySet};
pub use facts::{Facts, Hop, Origin, Source};
pub use matcher::Pattern;
pub use refusal::{Objection, Refusal};
pub use rule::{Action, AllOf, AnyOf, Clause, Field, Match, Policy, PolicyName, Rule, Scope, ServiceAccount};
