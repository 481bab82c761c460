//! Decides whether a connection may be: facts in, a [`Permit`] or a [`Denial`] out.
//!
//! Pure: no I/O, no clock, no lock. A permit has no public constructor, and whoever dials asks for one (through a lease),
//! so nothing is dialled that was not decided here.

mod decide;
mod facts;

pub use decide::{Denial, Permit, authorize};
pub use facts::{Facts, Hop, Origin, Source};
