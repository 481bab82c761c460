//! The nouns of the mesh: who speaks ([`identity`]), what runs ([`workload`]), what is called ([`service`]), where
//! ([`addr`]), who is no longer believed ([`revocation`]), and what a pod asks for ([`exclusions`], [`limits`]).
//!
//! Values only: nothing here does I/O, reads a clock or holds a lock, so every program can depend on it.

pub mod addr;
pub mod exclusions;
pub mod identity;
pub mod label;
pub mod limits;
pub mod names;
pub mod revocation;
pub mod service;
pub mod workload;

pub use addr::{AddressPair, Authority, AuthorityError, Network, NetworkAddress, NetworkRange};
pub use identity::{Identity, IdentityError, TrustDomain};
pub use revocation::{Revocation, SerialNumber, SerialNumberError};
pub use service::{
    HealthPolicy, LoadBalancing, LocalityScope, Service, ServiceName, ServicePort, SpreadMode, Visibility,
};
pub use workload::{
    GatewayAddress, GatewayDestination, Health, Locality, NetworkMode, PodUid, Tunnel, Workload, WorkloadKind,
    WorkloadUid,
};
