use super::*;
use crate::testing;
use wire::address::Type;

fn workload(change: impl FnOnce(&mut wire::Workload)) -> Result<Workload, ConvertError> {
    let mut message = workload_to_wire(&testing::workload("default", "pod").address("10.0.0.1").build());
    change(&mut message);
    match address_from_wire(&wire::Address { r#type: Some(Type::Workload(message)) })? {
        Some(Addressed::Workload(workload)) => Ok(workload),
        other => panic!("not a workload: {other:?}"),
    }
}

fn service(change: impl FnOnce(&mut wire::Service)) -> Result<Service, ConvertError> {
    let mut message = service_to_wire(&testing::service("default", "web").build());
    change(&mut message);
    match address_from_wire(&wire::Address { r#type: Some(Type::Service(message)) })? {
        Some(Addressed::Service(service)) => Ok(service),
        other => panic!("not a service: {other:?}"),
    }
}

fn address(bytes: &[u8], length: Option<u32>) -> wire::NetworkAddress {
    wire::NetworkAddress { network: String::new(), address: bytes.to_vec(), length }
}

#[test]
fn what_is_empty_has_its_default() {
    let plain = workload(|message| {
        *message = wire::Workload { uid: "c//Pod/default/pod".into(), ..wire::Workload::default() };
    })
    .unwrap();
    assert_eq!(plain.trust_domain.as_str(), "cluster.local");
    assert_eq!((&*plain.service_account, &*plain.cluster, plain.capacity), ("default", "Kubernetes", 1));
    let gateway = wire::GatewayAddress {
        destination: Some(wire::gateway_address::Destination::Address(address(&[10, 0, 0, 9], None))),
        hbone_mtls_port: 0,
    };
    assert_eq!(workload(|message| message.waypoint = Some(gateway)).unwrap().waypoint.unwrap().port, 15008);
}

#[test]
fn refuses_a_workload_that_it_does_not_understand_by_name_field_and_reason() {
    type Break = fn(&mut wire::Workload);
    let rows: [(Break, &str, &str); 10] = [
        (|w| w.uid.clear(), "uid", "empty"),
        (|w| w.addresses.push(vec![1, 2, 3]), "addresses", "address_length"),
        (|w| w.tunnel_protocol = 2, "tunnel_protocol", "unknown_value"),
        (|w| w.tunnel_protocol = 77, "tunnel_protocol", "unknown_value"),
        (|w| w.status = 9, "status", "unknown_value"),
        (|w| w.network_mode = 9, "network_mode", "unknown_value"),
        (|w| w.trust_domain = "No Domain".into(), "trust_domain", "form"),
        (|w| w.waypoint = Some(wire::GatewayAddress::default()), "waypoint", "empty"),
        (|w| drop(w.services.insert("no-slash".into(), wire::PortList::default())), "services", "form"),
        (
            |w| {
                let ports = vec![wire::Port { service_port: 70000, target_port: 1, app_protocol: 0 }];
                w.services.insert("a/b".into(), wire::PortList { ports });
            },
            "services",
            "port",
        ),
    ];
    for (change, field, reason) in rows {
        let error = workload(change).expect_err(field);
        assert_eq!((error.field, error.reason()), (field, reason), "{error}");
        let whose = if field == "uid" { "workload default/pod" } else { "Kubernetes//Pod/default/pod" };
        assert_eq!(error.resource, whose);
    }
}

#[test]
fn refuses_a_service_that_it_does_not_understand_by_name_field_and_reason() {
    type Break = fn(&mut wire::Service);
    let rows: [(Break, &str, &str); 10] = [
        (|s| s.namespace.clear(), "hostname", "empty"),
        (|s| s.hostname = "a/b".into(), "hostname", "form"),
        (|s| s.addresses.push(address(&[], None)), "addresses", "address_length"),
        (|s| s.addresses.push(address(&[10, 0, 0, 0], Some(33))), "addresses", "prefix_length"),
        (|s| s.visibility = 5, "visibility", "unknown_value"),
        (|s| s.ports.push(wire::Port::default()), "ports", "port"),
        (
            |s| s.load_balancing = Some(wire::LoadBalancing { routing_preference: vec![0], ..Default::default() }),
            "load_balancing",
            "unknown_value",
        ),
        (
            |s| s.load_balancing = Some(wire::LoadBalancing { mode: 8, ..Default::default() }),
            "load_balancing",
            "unknown_value",
        ),
        (|s| s.weighted_waypoints.push(wire::WeightedWaypoint::default()), "waypoint", "empty"),
        (
            |s| s.extensions.push(wire::Extension { name: "underpass.dev/session-affinity".into(), config: None }),
            "extensions",
            "no_time",
        ),
    ];
    for (change, field, reason) in rows {
        let error = service(change).expect_err(field);
        assert_eq!((error.field, error.reason()), (field, reason), "{error}");
    }
}

#[test]
fn reads_addresses_and_ranges_of_both_families() {
    let mapped = std::net::Ipv4Addr::new(10, 1, 2, 3).to_ipv6_mapped().octets();
    for (bytes, length, expected) in [
        (&[10, 1, 2, 3][..], None, "10.1.2.3"),
        (&[10, 1, 2, 3], Some(32), "10.1.2.3"),
        (&mapped, None, "10.1.2.3"),
        (&mapped, Some(128), "10.1.2.3"),
        (&[10, 1, 2, 3], Some(16), "10.1.0.0/16"),
        (&mapped, Some(112), "10.1.0.0/16"),
        (&[0; 16], Some(0), "::/0"),
    ] {
        let service = service(|message| message.addresses.push(address(bytes, length))).unwrap();
        let hosts = service.addresses.iter().map(|host| host.address.to_string());
        let ranges = service.ranges.iter().map(|range| range.range.to_string());
        assert_eq!(hosts.chain(ranges).collect::<Vec<_>>(), [expected], "{bytes:?} {length:?}");
    }
}

#[test]
fn never_leaves_out_a_waypoint_that_it_cannot_split() {
    let to = |name: &str, weight| wire::WeightedWaypoint {
        destination: Some(wire::GatewayAddress {
            destination: Some(wire::gateway_address::Destination::Hostname(wire::NamespacedHostname {
                namespace: "a".into(),
                hostname: name.into(),
            })),
            hbone_mtls_port: 15008,
        }),
        weight,
    };
    let service = service(|message| message.weighted_waypoints = vec![to("ten", 10), to("ninety", 90)]).unwrap();
    let expected = underpass_model::GatewayDestination::Service(underpass_model::ServiceName::new("a", "ninety"));
    assert_eq!(service.waypoint.unwrap().destination, expected);
}

#[test]
fn ignores_a_kind_of_address_that_it_does_not_know() {
    assert_eq!(address_from_wire(&wire::Address { r#type: None }), Ok(None));
}
