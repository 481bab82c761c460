use std::fs::File;

use proptest::prelude::*;

use super::*;

fn descriptors(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| File::open("/dev/null").unwrap().into()).collect()
}

fn listeners(ports: &[u16]) -> Listeners {
    let sockets = ports.iter().zip(descriptors(ports.len()));
    let sockets = sockets.map(|(port, socket)| ListeningSocket { port: *port, socket }).collect();
    Listeners { pod: PodUid::new("u1"), sockets }
}

/// What arrives, as text: descriptors have no equality.
fn through<M: Message + std::fmt::Debug>(message: &M) -> M {
    let packet = message.encode().unwrap();
    let descriptors = packet.descriptors.iter().map(|lent| lent.try_clone_to_owned().unwrap()).collect();
    M::decode(&packet.bytes, descriptors).unwrap().unwrap()
}

#[test]
fn messages_to_the_agent_survive_the_way() {
    let pod = || PodUid::new("u1");
    let connection =
        AddressPair { client: "10.0.0.1:40000".parse().unwrap(), server: "[fd00::2]:8080".parse().unwrap() };
    for message in [
        ToAgent::Hello { version: VERSION, generation: "g1".to_owned(), started: Duration::from_millis(7) },
        ToAgent::Serving,
        ToAgent::Holds { pod: pod() },
        ToAgent::Ready { pod: pod(), outcome: Ok(()) },
        ToAgent::Ready { pod: pod(), outcome: Err("no certificate".to_owned()) },
        ToAgent::Live { pod: pod(), connections: 7 },
        ToAgent::Released { pod: pod() },
        ToAgent::Probe { id: 9, pod: pod(), connection },
    ] {
        assert_eq!(format!("{:?}", through(&message)), format!("{message:?}"));
    }
}

#[test]
fn messages_to_the_proxy_survive_the_way() {
    let pod = || PodUid::new("u1");
    let release = |reason| ToProxy::Release { pod: pod(), reason, deadline: Duration::from_millis(1500) };
    let answer = |origin| ToProxy::ProbeAnswer { id: 9, origin };
    for message in [
        ToProxy::Hello { version: VERSION },
        ToProxy::ListenersSent,
        ToProxy::Successor(Some("g2".to_owned())),
        ToProxy::Successor(None),
        ToProxy::Terminating { pod: pod() },
        release(ReleaseReason::Deleted),
        release(ReleaseReason::Unenrolled),
        answer(Origin::Kubelet),
        answer(Origin::Host),
        answer(Origin::Forwarded),
        answer(Origin::Gone),
        ToProxy::Limits { pod: pod(), limits: PodLimits::default() },
        ToProxy::Limits { pod: pod(), limits: PodLimits { connections: Some(7), ..PodLimits::default() } },
    ] {
        assert_eq!(format!("{:?}", through(&message)), format!("{message:?}"));
    }
}

#[test]
fn listeners_keep_their_ports_in_order() {
    let ports = |listeners: Listeners| listeners.sockets.iter().map(|socket| socket.port).collect::<Vec<_>>();
    let ToAgent::Listeners(there) = through(&ToAgent::Listeners(listeners(&[15001, 15006, 15008]))) else { panic!() };
    assert_eq!(there.pod.as_str(), "u1");
    assert_eq!(ports(there), [15001, 15006, 15008]);
    let ToProxy::Listeners(back) = through(&ToProxy::Listeners(listeners(&[15008]))) else { panic!() };
    assert_eq!(ports(back), [15008]);
}

#[test]
fn listeners_come_with_a_descriptor_for_each_port() {
    let message = ToAgent::Listeners(listeners(&[15001, 15006, 15008]));
    let bytes = message.encode().unwrap().bytes;
    for (actual, expected) in [
        (2, "node listeners came with 2 descriptors instead of 3"),
        (4, "node listeners came with 4 descriptors instead of 3"),
    ] {
        assert_eq!(ToAgent::decode(&bytes, descriptors(actual)).unwrap_err().to_string(), expected);
        assert_eq!(ToProxy::decode(&bytes, descriptors(actual)).unwrap_err().to_string(), expected);
    }
}

#[test]
fn only_listeners_bring_descriptors() {
    let live = ToAgent::Live { pod: PodUid::new("u1"), connections: 1 }.encode().unwrap().bytes;
    let error = ToAgent::decode(&live, descriptors(1)).unwrap_err();
    assert_eq!(error.to_string(), "node live came with 1 descriptors instead of 0");
    let sent = ToProxy::ListenersSent.encode().unwrap().bytes;
    let error = ToProxy::decode(&sent, descriptors(1)).unwrap_err();
    assert_eq!(error.to_string(), "node listeners_sent came with 1 descriptors instead of 0");
}

#[test]
fn refuses_values_that_mean_nothing() {
    for (bytes, expected) in [
        // release{pod_uid "u", reason 0 and 9}
        (&b"\x22\x03\x0a\x01u"[..], "node release: field reason has no valid value: \"0\""),
        (b"\x22\x05\x0a\x01u\x10\x09", "node release: field reason has no valid value: \"9\""),
        (b"\x2a\x04\x08\x01\x10\x07", "node probe_answer: field origin has no valid value: \"7\""),
        (b"\x22\x02\x10\x01", "node release: field pod_uid is missing"),
    ] {
        assert_eq!(ToProxy::decode(bytes, vec![]).unwrap_err().to_string(), expected);
    }
    // probe{id 1, pod_uid "u", client "x"}
    let error = ToAgent::decode(b"\x32\x08\x08\x01\x12\x01u\x1a\x01x", vec![]).unwrap_err();
    assert_eq!(error.to_string(), "node probe: field client has no valid value: \"x\"");
    // listeners{pod_uid "u", ports [0] and [65536]}
    for ports in [&b"\x12\x06\x0a\x01u\x12\x01\x00"[..], b"\x12\x08\x0a\x01u\x12\x03\x80\x80\x04"] {
        assert!(matches!(ToAgent::decode(ports, descriptors(1)), Err(DecodeError::Field { field: "ports", .. })));
    }
}

#[test]
fn ignores_what_only_a_newer_version_knows() {
    for bytes in [&b""[..], b"\x7a\x00", b"\xa2\x06\x02\x08\x01"] {
        assert!(ToAgent::decode(bytes, vec![]).unwrap().is_none());
        assert!(ToProxy::decode(bytes, descriptors(1)).unwrap().is_none());
    }
    let newer_live = b"\x22\x07\x0a\x01u\x10\x03\x78\x01";
    assert!(matches!(ToAgent::decode(newer_live, vec![]), Ok(Some(ToAgent::Live { connections: 3, .. }))));
}

#[test]
fn refuses_to_send_what_the_peer_could_not_receive() {
    let ports: Vec<u16> = (1..=17).collect();
    let error = ToProxy::Listeners(listeners(&ports)).encode().unwrap_err();
    assert_eq!(error.to_string(), "node message to the proxy has 17 descriptors and the receiver takes 16");
    let hello = ToAgent::Hello { version: VERSION, generation: "g".repeat(5000), started: Duration::ZERO };
    assert!(matches!(hello.encode(), Err(EncodeError::TooLong { .. })));
}

#[test]
fn a_pod_that_is_not_ready_always_says_so_in_a_packet_that_fits() {
    for why in [String::new(), "ü".repeat(9000)] {
        let ready = ToAgent::Ready { pod: PodUid::new("u1"), outcome: Err(why) };
        assert!(matches!(through(&ready), ToAgent::Ready { outcome: Err(_), .. }));
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), count in 0..4usize) {
        drop(ToAgent::decode(&bytes, descriptors(count)));
        drop(ToProxy::decode(&bytes, descriptors(count)));
    }

    #[test]
    fn probes_survive_the_way(id: u64, client: SocketAddr, server: SocketAddr) {
        // The scope and flow of an IPv6 address are no part of its text here.
        let plain = |address: SocketAddr| SocketAddr::new(address.ip(), address.port());
        let connection = AddressPair { client: plain(client), server: plain(server) };
        let probe = ToAgent::Probe { id, pod: PodUid::new("u1"), connection };
        prop_assert_eq!(format!("{:?}", through(&probe)), format!("{:?}", probe));
    }
}
