//! Conversion never panics, whatever a control plane sends, and loses nothing of the model on the way there and back.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::{collection::btree_map, collection::vec, option, prelude::*, sample::select};
use prost::Message;
use underpass_discovery::wire::{
    convert::{Addressed, address_from_wire, service_to_wire, workload_to_wire},
    workload::{Address, address::Type},
};
use underpass_model::*;

fn text() -> impl Strategy<Value = std::sync::Arc<str>> {
    "[a-z0-9.-]{1,12}".prop_map(Into::into)
}

fn ip() -> impl Strategy<Value = IpAddr> {
    any::<IpAddr>().prop_map(|address| address.to_canonical())
}

fn network_address() -> impl Strategy<Value = NetworkAddress> {
    ("[a-z]{0,4}", ip()).prop_map(|(network, address)| NetworkAddress { network: network.into(), address })
}

fn network_range() -> impl Strategy<Value = NetworkRange> {
    // Shorter than an address, else it is one; and none that reads as IPv4 within IPv6.
    let v4 = (any::<[u8; 4]>(), 0..32u8).prop_map(|(bytes, bits)| (IpAddr::from(bytes), bits));
    let v6 = (any::<[u8; 15]>(), 0..128u8).prop_map(|(rest, bits)| {
        let mut bytes = [0x20; 16];
        bytes[1..].copy_from_slice(&rest);
        (IpAddr::from(bytes), bits.max(8))
    });
    ("[a-z]{0,4}", prop_oneof![v4, v6]).prop_map(|(network, (address, bits))| NetworkRange {
        network: network.into(),
        range: IpNet::new(address, bits).unwrap().trunc(),
    })
}

fn service_name() -> impl Strategy<Value = ServiceName> {
    (text(), text()).prop_map(|(namespace, hostname)| ServiceName { namespace, hostname })
}

fn gateway() -> impl Strategy<Value = GatewayAddress> {
    let destination = prop_oneof![
        network_address().prop_map(GatewayDestination::Address),
        service_name().prop_map(GatewayDestination::Service)
    ];
    (destination, 1..=u16::MAX).prop_map(|(destination, port)| GatewayAddress { destination, port })
}

fn ports() -> impl Strategy<Value = Vec<ServicePort>> {
    vec(
        (1..=u16::MAX, any::<u16>()).prop_map(|(service_port, target_port)| ServicePort { service_port, target_port }),
        0..3,
    )
}

prop_compose! {
    fn workload()(
        (uid, name, namespace, network) in ("[a-zA-Z/-]{1,30}", text(), text(), "[a-z]{0,4}"),
        (addresses, trust_domain, service_account, node) in (vec(ip(), 0..3), text(), text(), text()),
        (canonical_name, canonical_revision, owner, cluster) in (text(), text(), text(), text()),
        tunnel in select(vec![Tunnel::Hbone, Tunnel::None]),
        kind in select(vec![WorkloadKind::CronJob, WorkloadKind::Deployment, WorkloadKind::Job, WorkloadKind::Pod]),
        health in select(vec![Health::Healthy, Health::Unhealthy]),
        network_mode in select(vec![NetworkMode::HostNetwork, NetworkMode::Standard]),
        locality in ("[a-z]{0,3}", "[a-z]{0,3}", "[a-z]{0,3}"),
        (waypoint, policies) in (option::of(gateway()), vec(text(), 0..3)),
        (services, capacity) in (btree_map(service_name(), ports(), 0..3), any::<u32>()),
    ) -> Workload {
        Workload {
            uid: WorkloadUid::new(&uid), name, namespace, addresses, network: network.into(), tunnel,
            trust_domain: TrustDomain::new(&trust_domain).unwrap(), service_account, node, canonical_name,
            canonical_revision, kind, owner, health, cluster, network_mode, waypoint, policies, services, capacity,
            locality: Locality { region: locality.0.into(), zone: locality.1.into(), subzone: locality.2.into() },
        }
    }
}

prop_compose! {
    fn service()(
        (name, short_name) in (service_name(), text()),
        (addresses, ranges) in (vec(network_address(), 0..3), vec(network_range(), 0..3)),
        (ports, waypoint) in (ports(), option::of(gateway())),
        accounts in vec("[a-z]{1,8}", 0..3),
        preference in vec(select(vec![
            LocalityScope::Cluster, LocalityScope::Network, LocalityScope::Node,
            LocalityScope::Region, LocalityScope::Subzone, LocalityScope::Zone,
        ]), 0..4),
        mode in select(vec![SpreadMode::Failover, SpreadMode::Passthrough, SpreadMode::Strict, SpreadMode::Unspecified]),
        health in select(vec![HealthPolicy::AllowAll, HealthPolicy::OnlyHealthy]),
        canonical in any::<bool>(),
        visibility in select(vec![Visibility::Namespace, Visibility::Public]),
    ) -> Service {
        let identity = |account: &String| Identity::new(TrustDomain::default(), "a", account).unwrap();
        Service {
            name, short_name, addresses, ranges, ports, waypoint, canonical, visibility,
            subject_alt_names: accounts.iter().map(identity).collect(),
            load_balancing: LoadBalancing { preference, mode, health },
        }
    }
}

fn there_and_back(message: Type) -> Option<Addressed> {
    let bytes = Address { r#type: Some(message) }.encode_to_vec();
    address_from_wire(&Address::decode(bytes.as_slice()).unwrap()).unwrap()
}

proptest! {
    #[test]
    fn a_workload_comes_back_as_it_went(workload in workload()) {
        let back = there_and_back(Type::Workload(workload_to_wire(&workload)));
        prop_assert_eq!(back, Some(Addressed::Workload(workload)));
    }

    #[test]
    fn a_service_comes_back_as_it_went(service in service()) {
        let back = there_and_back(Type::Service(service_to_wire(&service)));
        prop_assert_eq!(back, Some(Addressed::Service(service)));
    }

    #[test]
    fn encoding_is_deterministic(workload in workload()) {
        let encode = || workload_to_wire(&workload).encode_to_vec();
        prop_assert_eq!(encode(), encode());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        if let Ok(message) = Address::decode(bytes.as_slice()) {
            let _either = address_from_wire(&message);
        }
    }

    #[test]
    fn damaged_messages_never_panic(workload in workload(), service in service(), damage in vec((any::<usize>(), any::<u8>()), 1..6)) {
        for message in [Type::Workload(workload_to_wire(&workload)), Type::Service(service_to_wire(&service))] {
            let mut bytes = Address { r#type: Some(message) }.encode_to_vec();
            for (place, byte) in &damage {
                let length = bytes.len();
                bytes[place % length] = *byte;
            }
            if let Ok(message) = Address::decode(bytes.as_slice()) {
                let _either = address_from_wire(&message);
            }
        }
    }
}
