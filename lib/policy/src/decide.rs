//! The decision.

use std::net::SocketAddr;

use underpass_model::{Identity, TrustDomain, names::OWN_PORTS};

use crate::facts::{Facts, Hop, Source};

/// Leave to dial one destination for one source. Only [`authorize`] makes one.
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    destination: SocketAddr,
}

/// Why a connection may not be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Denial {
    /// The destination is one of the node proxy's own listeners: a loop or an attack.
    #[error("{0} is a port of the node proxy itself")]
    OwnPort(SocketAddr),
    /// The peer's identity is of another trust domain than this workload's.
    #[error("{peer} is not of trust domain {wanted}")]
    ForeignTrustDomain {
        /// Who called.
        peer: Identity,
        /// Whom we know.
        wanted: TrustDomain,
    },
    /// The pod's own loopback cannot be the destination of a connection that left or entered the pod.
    #[error("{0} is a loopback address")]
    Loopback(SocketAddr),
}

impl Permit {
    /// What may be dialled.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        self.destination
    }
}

impl Denial {
    /// The stable label of this denial in logs and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ForeignTrustDomain { .. } => "foreign_trust_domain",
            Self::Loopback(_) => "loopback_destination",
            Self::OwnPort(_) => "own_port",
        }
    }
}

/// Decides. Every lane asks, for every connection, before anything is dialled.
///
/// # Errors
/// [`Denial`], with the fact that stands against it.
pub fn authorize(facts: &Facts<'_>) -> Result<Permit, Denial> {
    let destination = facts.destination;
    if let Source::Peer(peer) = facts.source
        && peer.trust_domain() != facts.trust_domain
    {
        return Err(Denial::ForeignTrustDomain { peer: peer.clone(), wanted: facts.trust_domain.clone() });
    }
    if destination.ip().is_loopback() {
        return Err(Denial::Loopback(destination));
    }
    // A stranger's machine may well use 15008 for something of its own; a workload of the mesh never does.
    if facts.hop != Hop::Passthrough && OWN_PORTS.contains(&destination.port()) {
        return Err(Denial::OwnPort(destination));
    }
    Ok(Permit { destination })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Origin;

    #[test]
    fn the_table_of_decisions() {
        let ours = TrustDomain::default();
        let peer = |text: &str| Source::Peer(text.parse().unwrap());
        let friend = peer("spiffe://cluster.local/ns/a/sa/b");
        let foreign = peer("spiffe://elsewhere/ns/a/sa/b");
        let stranger = Source::Stranger("192.0.2.1".parse().unwrap(), Origin::Remote);
        for (source, hop, destination, expected) in [
            (&friend, Hop::Application, "10.0.0.1:80", None),
            (&foreign, Hop::Application, "10.0.0.1:80", Some("foreign_trust_domain")),
            (&stranger, Hop::Application, "10.0.0.1:80", None),
            (&friend, Hop::Application, "10.0.0.1:15001", Some("own_port")),
            (&friend, Hop::Application, "10.0.0.1:15006", Some("own_port")),
            (&friend, Hop::Application, "10.0.0.1:15008", Some("own_port")),
            (&stranger, Hop::Application, "10.0.0.1:15006", Some("own_port")),
            (&friend, Hop::Application, "127.0.0.1:80", Some("loopback_destination")),
            (&friend, Hop::Workload, "10.0.0.1:15008", Some("own_port")),
            (&friend, Hop::Passthrough, "192.0.2.9:15008", None),
            (&friend, Hop::Passthrough, "[::1]:80", Some("loopback_destination")),
        ] {
            let facts = Facts { source, trust_domain: &ours, hop, destination: destination.parse().unwrap() };
            let denied = authorize(&facts).err().map(|denial| denial.reason());
            assert_eq!(denied, expected, "{source:?} {hop:?} {destination}");
        }
    }
}
