//! What policies have against a connection.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use underpass_model::Identity;

use crate::{facts::Facts, rule::PolicyName};

/// A connection that policies refuse: which of them, why, and who wanted to speak with whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub objection: Objection,
    /// The policy that objects; of several the first by name.
    pub policy: PolicyName,
    /// The source's identity; none for plaintext.
    pub source: Option<Identity>,
    /// The address that the connection came from.
    pub client: IpAddr,
    /// The destination's identity.
    pub destination: Identity,
    /// The address that it was for.
    pub address: SocketAddr,
    /// The policies in dry run would let it pass.
    pub dry_run_allows: bool,
}

/// Why policies refuse a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Objection {
    /// A policy denies it.
    Denied,
    /// Policies allow some connections, and this is none of them.
    NotAllowed,
    /// The destination is under a policy that is not known (yet).
    Unknown,
    /// The destination is under a policy that was not understood.
    Unreadable,
}

impl Refusal {
    pub(crate) fn new(objection: Objection, policy: &PolicyName, facts: &Facts<'_>) -> Self {
        Self {
            objection,
            policy: policy.clone(),
            source: facts.source.identity().cloned(),
            client: facts.client,
            destination: facts.own.clone(),
            address: facts.destination,
            dry_run_allows: false,
        }
    }

    /// The stable label of this refusal in logs and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self.objection {
            Objection::Denied => "policy_denied",
            Objection::NotAllowed => "policy_not_allowed",
            Objection::Unknown => "policy_unknown",
            Objection::Unreadable => "policy_unreadable",
        }
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(identity) => write!(f, "{identity}")?,
            None => write!(f, "plaintext from {}", self.client)?,
        }
        let Self { policy, destination, address, .. } = self;
        write!(f, " may not reach {destination} at {address}: ")?;
        match self.objection {
            Objection::Denied => write!(f, "policy {policy} denies it"),
            Objection::NotAllowed => write!(f, "no policy allows it, and policy {policy} allows others"),
            Objection::Unknown => write!(f, "its policy {policy} is not known"),
            Objection::Unreadable => write!(f, "its policy {policy} was not understood"),
        }
    }
}
