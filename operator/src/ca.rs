//! The mesh's certificate authority.
//!
//! A root lives in the [`state`] and signs nothing but issuing certificates; an issuing key lives in memory only,
//! is made anew at each start and at half of its life, and signs workloads' certificates. Each answer carries its own
//! chain, so issuing certificates overlap by themselves. Roots overlap by time, see [`roots`].
//!
//! Who may have which certificate is decided by others ([`Authenticate`], [`Attest`]); names never come from a request.

pub mod attest;
pub mod authority;
pub mod connection;
pub mod kubernetes;
pub mod prepare;
pub mod request;
pub mod revoked;
pub mod roots;
pub mod service;
pub mod serving;
pub mod state;

pub use attest::{Attest, Authenticate, Authenticator, NodeName, NotAttested, Unauthenticated, bearer};
pub use authority::{Authority, AuthorityOptions, AuthorityStatus, OpenError, SignError, Told};
pub use connection::{Caller, Connection, Limits, admit};
pub use prepare::{Preparation, Prepare};
pub use revoked::Revoke;
pub use service::CertificateService;
pub use serving::{Serving, accept};
pub use state::{FileState, SharedStore};
