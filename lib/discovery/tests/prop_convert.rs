//! Conversion never panics, whatever a control plane sends, and loses nothing of the model on the way there and back.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::{collection::btree_map, collection::vec, option, prelude::*, sample::select};
use prost::Message;
use underpass_discovery::wire::{
    convert::{
        Addressed, address_from_wire, policy_from_wire, policy_to_wire, policy_unread, service_to_wire,
        workload_to_wire,
    },
    security::Authorization,
    workload::{Address, address::Type},
};
use underpass_model::*;
use underpass_policy::*;

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
        (services, capacity, joinable) in (btree_map(service_name(), ports(), 0..3), any::<u32>(), any::<bool>()),
    ) -> Workload {
        Workload {
            uid: WorkloadUid::new(&uid), name, namespace, addresses, network: network.into(), tunnel,
            trust_domain: TrustDomain::new(&trust_domain).unwrap(), service_account, node, canonical_name,
            canonical_revision, kind, owner, health, cluster, network_mode, waypoint, policies, services, capacity, joinable,
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
        affinity in option::of((0..100_000_u64).prop_map(std::time::Duration::from_secs)),
        canonical in any::<bool>(),
        visibility in select(vec![Visibility::Namespace, Visibility::Public]),
    ) -> Service {
        let identity = |account: &String| Identity::new(TrustDomain::default(), "a", account).unwrap();
        Service {
            name, short_name, addresses, ranges, ports, waypoint, canonical, visibility,
            subject_alt_names: accounts.iter().map(identity).collect(),
            load_balancing: LoadBalancing { preference, mode, health, affinity },
        }
    }
}

fn field<T: std::fmt::Debug>(value: impl Strategy<Value = T> + Clone) -> impl Strategy<Value = Field<T>> {
    (vec(value.clone(), 0..2), vec(value, 0..2))
        .prop_map(|(any, none)| Field { any: any.into_iter().collect(), none: none.into_iter().collect() })
}

fn pattern() -> impl Strategy<Value = Pattern> + Clone {
    let text = text().boxed();
    prop_oneof![
        text.clone().prop_map(Pattern::Exact),
        text.clone().prop_map(Pattern::Prefix),
        text.prop_map(Pattern::Suffix),
        Just(Pattern::Presence),
    ]
    .boxed()
}

fn range() -> impl Strategy<Value = IpNet> + Clone {
    let v4 = (any::<[u8; 4]>(), 0..=32u8).prop_map(|(bytes, bits)| IpNet::new(bytes.into(), bits).unwrap().trunc());
    let v6 = (8..=128u8).prop_map(|bits| IpNet::new([0x20; 16].into(), bits).unwrap().trunc());
    prop_oneof![v4, v6].boxed()
}

prop_compose! {
    fn one()(
        (namespaces, principals) in (field(pattern()), field(pattern())),
        accounts in field((text(), text()).prop_map(|(namespace, name)| ServiceAccount { namespace, name }).boxed()),
        (source_ips, destination_ips, destination_ports) in (field(range()), field(range()), field(1..=u16::MAX)),
    ) -> Match {
        Match { namespaces, principals, service_accounts: accounts, source_ips, destination_ips, destination_ports }
    }
}

prop_compose! {
    fn policy()(
        (namespace, name) in ("[a-z-]{1,8}", "[a-z:.-]{1,12}"),
        scope in select(vec![Scope::Mesh, Scope::Named, Scope::Namespace]),
        action in select(vec![Action::Allow, Action::Deny]),
        rules in vec(vec(prop_oneof![
            Just(Clause::Open),
            vec(one(), 1..3).prop_map(|matches| Clause::Matches(matches.into_iter().collect())),
        ], 0..3), 0..3),
        dry_run in any::<bool>(),
    ) -> Policy {
        let rule = |clauses: Vec<Clause>| Rule { clauses: clauses.into_iter().collect() };
        Policy { name: PolicyName::new(&namespace, &name), scope, action, rules: rules.into_iter().map(rule).collect(), dry_run }
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
    fn a_policy_comes_back_as_it_went(policy in policy()) {
        let bytes = policy_to_wire(&policy).encode_to_vec();
        let message = Authorization::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(policy_from_wire(&message), Ok(policy));
    }

    #[test]
    fn a_damaged_policy_is_read_or_refuses(policy in policy(), damage in vec((any::<usize>(), any::<u8>()), 1..6)) {
        let mut bytes = policy_to_wire(&policy).encode_to_vec();
        for (place, byte) in &damage {
            let length = bytes.len();
            bytes[place % length] = *byte;
        }
        let message = Authorization::decode(bytes.as_slice());
        let read = message.as_ref().ok().and_then(|message| policy_from_wire(message).ok());
        if read.is_none() && message.as_ref().is_ok_and(|message| !message.name.is_empty() && !message.namespace.is_empty() && !message.namespace.contains('/')) {
            let stands = policy_unread("a/b", message.as_ref().ok()).unwrap();
            prop_assert_eq!(stands.action, Action::Refuse);
        }
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
