//! Step three: where a connection goes. A pure function of the view, the caller's place and what was dialled.

pub(crate) mod inbound;

use std::{net::SocketAddr, sync::Arc};

use underpass_discovery::View;
use underpass_model::{
    Authority, GatewayAddress, GatewayDestination, Identity, IdentityError, NetworkAddress, PodUid, Service,
    ServiceName, SpreadMode, Tunnel, Workload, WorkloadUid, names::HBONE_PORT,
};

use crate::balance::{self, Client, Load, Place, Session};

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NextHop {
    /// To an address that the mesh does not know, as it was dialled.
    Passthrough(SocketAddr),
    /// To a workload that takes no tunnels.
    Plain {
        /// Its application.
        to: SocketAddr,
        /// Who it is.
        endpoint: Arc<Workload>,
    },
    /// Through a tunnel.
    Tunnel(TunnelHop),
}

/// A tunnel to a workload or to a waypoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TunnelHop {
    /// Where the tunnel ends.
    pub(crate) to: SocketAddr,
    /// Who ends it.
    pub(crate) endpoint: Arc<Workload>,
    /// The identities under which it may answer.
    pub(crate) expect: Arc<[Identity]>,
    /// What it shall connect to.
    pub(crate) authority: Authority,
    /// Whether it may be joined without a tunnel, if its pod is served here.
    pub(crate) may_join: bool,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// Where to.
    pub(crate) next_hop: NextHop,
    /// The service that was dialled, if it was one.
    pub(crate) service: Option<Arc<Service>>,
}

/// What a resolution is asked about.
pub(crate) struct Question<'a> {
    /// The mesh as this connection sees it.
    pub(crate) view: &'a View,
    /// What the application dialled.
    pub(crate) original_dst: SocketAddr,
    /// The caller's namespace: services of its own come first.
    pub(crate) namespace: &'a str,
    /// The caller, as those know it who keep endpoints for it.
    pub(crate) pod: &'a PodUid,
    /// The endpoint that the caller has of a service with session affinity.
    pub(crate) kept: &'a dyn Fn(&Service) -> Option<WorkloadUid>,
    /// Where the caller is.
    pub(crate) place: &'a Place,
    /// Whether the caller may be joined with a pod of its node.
    pub(crate) may_join: bool,
    /// Endpoints that failed this very connection already.
    pub(crate) avoid: &'a [WorkloadUid],
}

/// Why there is nowhere to go.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ResolveError {
    /// The service has no endpoint that could take the connection.
    #[error("service {0} has no usable endpoint")]
    NoEndpoint(ServiceName),
    /// The service has no such port.
    #[error("service {0} has no TCP port {1}")]
    NoPort(ServiceName, u16),
    /// Traffic must go through a waypoint that is not there.
    #[error("waypoint {0} is not known or has no usable endpoint")]
    NoWaypoint(String),
    /// The endpoint's names cannot be an identity, so nobody could be recognised there.
    #[error("endpoint {uid}")]
    Identity {
        /// Whose.
        uid: WorkloadUid,
        /// Why.
        #[source]
        source: IdentityError,
    },
}

impl ResolveError {
    /// The stable label of this failure in logs and metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Identity { .. } => "endpoint_identity",
            Self::NoEndpoint(_) => "no_endpoint",
            Self::NoPort(..) => "no_service_port",
            Self::NoWaypoint(_) => "no_waypoint",
        }
    }
}

impl NextHop {
    /// Whose load this connection adds to.
    pub(crate) fn endpoint(&self) -> Option<&Arc<Workload>> {
        match self {
            Self::Passthrough(_) => None,
            Self::Plain { endpoint, .. } => Some(endpoint),
            Self::Tunnel(hop) => Some(&hop.endpoint),
        }
    }
}

/// Service first, then workload, else the address itself (the field's order of look-ups).
pub(crate) fn resolve(
    question: &Question<'_>,
    load: impl Fn(&WorkloadUid) -> Load,
    chance: impl FnMut() -> f64,
) -> Result<Resolved, ResolveError> {
    let dialled = question.original_dst;
    let address = NetworkAddress { network: question.place.network.clone(), address: dialled.ip() };
    if let Some(service) = question.view.service_at(&address, question.namespace) {
        let next_hop = to_service(question, service, load, chance)?;
        return Ok(Resolved { next_hop, service: Some(Arc::clone(service)) });
    }
    let Some(workload) = question.view.workload_at(&address) else {
        return Ok(Resolved { next_hop: NextHop::Passthrough(dialled), service: None });
    };
    let next_hop = match &workload.waypoint {
        Some(waypoint) => to_waypoint(question, waypoint, load, chance)?,
        None => to_workload(question, workload, dialled, &[])?,
    };
    Ok(Resolved { next_hop, service: None })
}

fn to_service(
    question: &Question<'_>,
    service: &Arc<Service>,
    load: impl Fn(&WorkloadUid) -> Load,
    chance: impl FnMut() -> f64,
) -> Result<NextHop, ResolveError> {
    let dialled = question.original_dst;
    if service.load_balancing.mode == SpreadMode::Passthrough {
        return Ok(NextHop::Passthrough(dialled));
    }
    if let Some(waypoint) = &service.waypoint {
        return to_waypoint(question, waypoint, load, chance);
    }
    let (endpoint, port) = pick(question, service, dialled.port(), load, chance)?;
    let address = same_family(endpoint, dialled).ok_or_else(|| ResolveError::NoEndpoint(service.name.clone()))?;
    to_workload(question, endpoint, SocketAddr::new(address, port), &service.subject_alt_names)
}

fn to_workload(
    question: &Question<'_>,
    workload: &Arc<Workload>,
    target: SocketAddr,
    also: &[Identity],
) -> Result<NextHop, ResolveError> {
    if workload.tunnel == Tunnel::None {
        return Ok(NextHop::Plain { to: target, endpoint: Arc::clone(workload) });
    }
    Ok(NextHop::Tunnel(TunnelHop {
        to: SocketAddr::new(target.ip(), HBONE_PORT),
        expect: expected(workload, also)?,
        endpoint: Arc::clone(workload),
        authority: Authority::Address(target),
        may_join: question.may_join && workload.joinable && workload.node == question.place.node,
    }))
}

/// The authority stays what was dialled: the waypoint routes by it.
fn to_waypoint(
    question: &Question<'_>,
    waypoint: &GatewayAddress,
    load: impl Fn(&WorkloadUid) -> Load,
    chance: impl FnMut() -> f64,
) -> Result<NextHop, ResolveError> {
    let missing = || ResolveError::NoWaypoint(named(&waypoint.destination));
    let service = match &waypoint.destination {
        GatewayDestination::Service(name) => Some(question.view.service(name).ok_or_else(missing)?),
        GatewayDestination::Address(address) => question.view.service_at(address, question.namespace),
    };
    let (endpoint, port, also) = match (service, &waypoint.destination) {
        (Some(service), _) => {
            let picked = pick(question, service, waypoint.port, load, chance).map_err(|_| missing())?;
            (picked.0, picked.1, service.subject_alt_names.as_slice())
        }
        (None, GatewayDestination::Address(address)) => {
            (question.view.workload_at(address).ok_or_else(missing)?, waypoint.port, [].as_slice())
        }
        (None, GatewayDestination::Service(_)) => return Err(missing()),
    };
    let address = same_family(endpoint, question.original_dst).ok_or_else(missing)?;
    Ok(NextHop::Tunnel(TunnelHop {
        to: SocketAddr::new(address, port),
        expect: expected(endpoint, also)?,
        endpoint: Arc::clone(endpoint),
        authority: Authority::Address(question.original_dst),
        may_join: false,
    }))
}

/// An endpoint of a service, and the port there.
fn pick<'a>(
    question: &Question<'a>,
    service: &Service,
    service_port: u16,
    load: impl Fn(&WorkloadUid) -> Load,
    chance: impl FnMut() -> f64,
) -> Result<(&'a Arc<Workload>, u16), ResolveError> {
    if !service.ports.iter().any(|port| port.service_port == service_port) {
        return Err(ResolveError::NoPort(service.name.clone(), service_port));
    }
    let usable = |endpoint: &&Arc<Workload>| {
        !question.avoid.contains(&endpoint.uid)
            && !endpoint.addresses.is_empty()
            && target_port(service, endpoint, service_port).is_some()
    };
    let endpoints = question.view.endpoints(&service.name).filter(usable);
    let nobody = || ResolveError::NoEndpoint(service.name.clone());
    let keeps = service.load_balancing.affinity.is_some();
    let session = keeps.then(|| Session { client: question.pod, kept: (question.kept)(service) });
    let endpoint = balance::choose(service, endpoints, &Client { place: question.place, session }, load, chance);
    let endpoint = endpoint.ok_or_else(nobody)?;
    let port = target_port(service, endpoint, service_port).ok_or_else(nobody)?;
    Ok((endpoint, port))
}

/// The endpoint's own mapping (it resolved named ports for itself), then the service's number.
pub(crate) fn target_port(service: &Service, endpoint: &Workload, service_port: u16) -> Option<u16> {
    let own = endpoint.services.get(&service.name).map_or(&[][..], Vec::as_slice);
    own.iter()
        .chain(&service.ports)
        .find(|port| port.service_port == service_port && port.target_port != 0)
        .map(|port| port.target_port)
}

fn same_family(workload: &Workload, like: SocketAddr) -> Option<std::net::IpAddr> {
    let same = workload.addresses.iter().find(|address| address.is_ipv4() == like.is_ipv4());
    same.or_else(|| workload.addresses.first()).copied()
}

fn expected(workload: &Workload, also: &[Identity]) -> Result<Arc<[Identity]>, ResolveError> {
    let own = workload.identity().map_err(|source| ResolveError::Identity { uid: workload.uid.clone(), source })?;
    Ok(std::iter::once(own).chain(also.iter().cloned()).collect())
}

fn named(destination: &GatewayDestination) -> String {
    match destination {
        GatewayDestination::Address(address) => address.to_string(),
        GatewayDestination::Service(name) => name.to_string(),
    }
}

#[cfg(test)]
mod tests;
