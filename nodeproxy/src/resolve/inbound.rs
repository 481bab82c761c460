//! What a peer's CONNECT means in this pod: always this pod's own address, and a port.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use underpass_discovery::View;
use underpass_model::{Authority, Service, Workload, WorkloadUid};

use super::target_port;

/// The application that a peer means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Application {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// The service that the peer named, if it named one.
    pub(crate) service: Option<Arc<Service>>,
}

/// Why a CONNECT means nothing here.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ResolveInboundError {
    /// The authority names another address than the one that was dialled: another pod's.
    #[error("authority {authority} is not the address {local} that was dialled")]
    NotThisPod {
        /// What the peer asked for.
        authority: SocketAddr,
        /// Where it did.
        local: IpAddr,
    },
    /// The authority names no service that this pod backs.
    #[error("authority {0} names no service of this pod")]
    UnknownService(Authority),
    /// The service has no such port here.
    #[error("authority {0} names a port that the service does not have here")]
    UnknownPort(Authority),
}

impl ResolveInboundError {
    /// The stable label of this failure in logs and metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NotThisPod { .. } => "authority_not_this_pod",
            Self::UnknownPort(_) => "authority_unknown_port",
            Self::UnknownService(_) => "authority_unknown_service",
        }
    }

    /// Whether the request itself is wrong (400), rather than what we know (503).
    pub(crate) fn is_peers_fault(&self) -> bool {
        match self {
            Self::NotThisPod { .. } => true,
            Self::UnknownPort(_) | Self::UnknownService(_) => false,
        }
    }
}

/// Resolves. A host name may only be a service that this pod backs: the tunnel ends in this pod, whatever it asks for.
pub(crate) fn resolve(
    view: &View,
    pod: &WorkloadUid,
    local: IpAddr,
    authority: &Authority,
) -> Result<Application, ResolveInboundError> {
    match authority {
        Authority::Address(target) if target.ip() == local => {
            Ok(Application { address: SocketAddr::new(local, target.port()), service: None })
        }
        Authority::Address(target) => Err(ResolveInboundError::NotThisPod { authority: *target, local }),
        Authority::Host { host, port } => {
            let unknown = || ResolveInboundError::UnknownService(authority.clone());
            let workload: &Workload = view.workload(pod).ok_or_else(unknown)?;
            let service = backed_service(view, pod, host).ok_or_else(unknown)?;
            let port = target_port(&service, workload, *port)
                .ok_or_else(|| ResolveInboundError::UnknownPort(authority.clone()))?;
            Ok(Application { address: SocketAddr::new(local, port), service: Some(service) })
        }
    }
}

/// The service of this host name, if the pod backs it.
pub(crate) fn backed_service(view: &View, pod: &WorkloadUid, host: &str) -> Option<Arc<Service>> {
    let name = view.workload(pod)?.services.keys().find(|name| &*name.hostname == host)?;
    view.service(name).cloned()
}
