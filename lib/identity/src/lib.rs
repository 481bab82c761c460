//! Who a workload is and how it proves it: keys, certificates, the roots they lead to, TLS made of them, and the store
//! that has a fresh certificate ready before a connection needs it.
//!
//! What an authority or a peer sends is checked here and nowhere else. No key is ever printed, logged or serialised.

pub mod authority;
pub mod certificate;
pub mod key;
mod presented;
pub mod revocation;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;
pub mod trust;
pub mod wire;

pub use authority::{AuthorityError, CertificateAuthority, GrpcAuthority};
pub use certificate::{CertificateError, Issued, WorkloadCertificate};
pub use key::{KeyError, KeyPair};
pub use presented::Presented;
pub use revocation::{RevocationLists, Revocations};
pub use store::{CertificateStatus, CertificateStore, StoreError, StoreOptions, StoreTask, Want};
pub use tls::{Credentials, Expected, PeerError, check_peer};
pub use trust::{TrustBundle, TrustError};
