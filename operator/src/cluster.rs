//! What is different when the operator runs on Kubernetes: several of them serve, and one leads ([`lease`]); each says how
//! far its subscribers have come ([`member`]), so that the one that leads can answer agents whose pods leave
//! ([`withdrawal`]) and tell people what has become of their objects ([`status`]) and of
//! their namespaces ([`namespaces`]), and open nodes on which the mesh is ready ([`taints`]).

pub mod lease;
pub mod member;
pub mod namespaces;
pub mod status;
pub mod taints;
pub mod withdrawal;

/// As whom the API server records the operator's writes.
pub const FIELD_MANAGER: &str = "underpass-operator";

/// Who and where this operator is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its namespace.
    pub namespace: String,
    /// Its own name among the operators: that of its pod.
    pub name: String,
}
