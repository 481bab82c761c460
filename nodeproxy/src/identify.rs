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

#[cfg(test)]
mod tests {
    use underpass_discovery::testing::workload;

    use super::*;

    fn view() -> View {
        View::of(
            [
                workload("shop", "web").address("10.0.0.1").account("web").build(),
                workload("shop", "node").address("10.0.0.9").host_network().build(),
            ],
            [],
        )
    }

    fn named(caller: &Caller) -> Option<&str> {
        caller.workload.as_deref().map(|workload| &*workload.name)
    }

    #[test]
    fn a_peer_is_its_certificate_and_an_address_only_names_it_for_telemetry() {
        let (web, other) = ("spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/other");
        for (identity, address, expected) in [
            (web, "10.0.0.1", Some("web")),
            // Another's address does not lend its name.
            (other, "10.0.0.1", None),
            (web, "10.0.0.2", None),
            (web, "10.0.0.9", None),
        ] {
            let identity: Identity = identity.parse().unwrap();
            let caller = peer(&view(), &"".into(), &identity, address.parse().unwrap());
            assert_eq!(caller.source, Source::Peer(identity));
            assert_eq!(named(&caller), expected, "{address}");
        }
    }

    #[test]
    fn a_stranger_has_no_identity_whatever_its_address() {
        for (network, address, origin, expected) in [
            ("", "10.0.0.1", Origin::Remote, Some("web")),
            ("elsewhere", "10.0.0.1", Origin::Remote, None),
            ("", "10.0.0.9", Origin::Kubelet, None),
            ("", "192.0.2.1", Origin::Host, None),
        ] {
            let client = address.parse().unwrap();
            let caller = stranger(&view(), &network.into(), client, origin);
            assert_eq!(caller.source, Source::Stranger(client, origin));
            assert_eq!(named(&caller), expected, "{network} {address}");
        }
    }
}
