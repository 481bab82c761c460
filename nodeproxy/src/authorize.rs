//! Step four: whether a connection may be. The facts are gathered here; `lib/policy` decides.

use std::net::SocketAddr;

use underpass_policy::{Denial, Facts, Hop, Permit, Source};

use crate::{pods::Pod, resolve::NextHop};

/// May this pod connect there?
pub(crate) fn outbound(pod: &Pod, source: &Source, next_hop: &NextHop) -> Result<Permit, Denial> {
    let (hop, destination) = match next_hop {
        NextHop::Passthrough(to) => (Hop::Passthrough, *to),
        NextHop::Plain { to, .. } => (Hop::Workload, *to),
        NextHop::Tunnel(hop) => match hop.authority {
            underpass_model::Authority::Address(target) => (Hop::Workload, target),
            underpass_model::Authority::Host { port, .. } => (Hop::Workload, SocketAddr::new(hop.to.ip(), port)),
        },
    };
    underpass_policy::authorize(&Facts { source, trust_domain: pod.identity.trust_domain(), hop, destination })
}

/// May this caller reach the application in this pod?
pub(crate) fn inbound(pod: &Pod, source: &Source, application: SocketAddr) -> Result<Permit, Denial> {
    let trust_domain = pod.identity.trust_domain();
    underpass_policy::authorize(&Facts { source, trust_domain, hop: Hop::Application, destination: application })
}
