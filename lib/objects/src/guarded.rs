//! Whether somebody may look at pods' packets where they cross an interface.
//!
//! Whoever enforces NetworkPolicies does it there: Kubernetes' own, Calico's, Cilium's and Antrea's, the cluster-wide
//! ones too. What they select is not looked at, for selectors of other projects' kinds are not ours to understand.

use std::fmt;

/// Whether there are NetworkPolicies, of whoever's kind and whomever they select.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkPolicies {
    /// There are none.
    Absent,
    /// There is at least one, of this kind (`Kind.group`).
    Present(String),
    /// There may be; this is why nobody knows.
    Unknown(String),
}

/// Whether objects of a kind (`Kind`, or `Kind.group`) are enforced at the interfaces of pods.
#[must_use]
pub fn is_network_policy(kind: &str) -> bool {
    kind.split('.').next().is_some_and(|kind| kind.ends_with("NetworkPolicy"))
}

impl Default for NetworkPolicies {
    fn default() -> Self {
        Self::Unknown("not asked yet".into())
    }
}

impl fmt::Display for NetworkPolicies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("none"),
            Self::Present(kind) => write!(f, "some: {kind}"),
            Self::Unknown(why) => write!(f, "unknown: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_network_policy_of_anybody_counts() {
        for (kind, counts) in [
            ("NetworkPolicy.networking.k8s.io", true),
            ("GlobalNetworkPolicy.crd.projectcalico.org", true),
            ("CiliumClusterwideNetworkPolicy.cilium.io", true),
            ("AdminNetworkPolicy.policy.networking.k8s.io", true),
            ("ClusterNetworkPolicy.crd.antrea.io", true),
            ("Deployment.apps", false),
            ("AuthorizationPolicy.security.istio.io", false),
            ("Tier.networkpolicy.example", false),
        ] {
            assert_eq!(is_network_policy(kind), counts, "{kind}");
        }
    }
}
