//! Step two: who speaks. An address is never an identity; it may name a workload for telemetry.

use std::{net::IpAddr, sync::Arc};

use underpass_discovery::View;
use underpass_model::{Identity, Network, NetworkAddress, Workload};
use underpass_policy::{Origin, Source};

use crate::pods::Pod;

/// Who speaks, and what telemetry calls them.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// What decisions look at.
    pub(crate) source: Source,
    /// What logs and baggage look at; nothing is decided by it.
    pub(crate) workload: Option<Arc<Workload>>,
}

/// The pod whose namespace the socket is in.
pub(crate) fn local(view: &View, pod: &Pod) -> Caller {
    Caller { source: Source::Local(pod.identity.clone()), workload: view.workload(&pod.workload).cloned() }
}

/// The holder of the certificate that ended the handshake.
pub(crate) fn peer(view: &View, network: &Network, identity: &Identity, client: IpAddr) -> Caller {
    let speaks_as = |workload: &Arc<Workload>| workload.identity().is_ok_and(|named| named == *identity);
    Caller { source: Source::Peer(identity.clone()), workload: at(view, network, client).filter(speaks_as) }
}

/// Whoever sends plaintext.
pub(crate) fn stranger(view: &View, network: &Network, client: IpAddr, origin: Origin) -> Caller {
    Caller { source: Source::Stranger(client, origin), workload: at(view, network, client) }
}

fn at(view: &View, network: &Network, address: IpAddr) -> Option<Arc<Workload>> {
    view.workload_at(&NetworkAddress { network: network.clone(), address }).cloned()
}
