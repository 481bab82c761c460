//! What the rules do to real connections, in real network namespaces.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests"
)]

#[path = "support/world.rs"]
mod world;

use std::{
    collections::{BTreeMap, HashSet},
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd as _,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use underpass_agent::{
    older,
    program::{Mended, Programmer},
    redirect::{Phase, Verified},
};
use underpass_model::{
    exclusions::Exclusions,
    names::{self, HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT, PROXY_MARK},
};
use world::{Dial, Place, World};

const APP: u16 = 8080;

struct Pod {
    world: World,
    programmer: Programmer,
    exclusions: Exclusions,
}

impl Pod {
    /// A pod with an application and a stand-in for the node proxy; not captured yet.
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(annotations: &[(&str, &str)]) -> Self {
        let world = World::new();
        let (v4, v6) = (world.outside.v4.to_string(), world.outside.v6.to_string());
        let placed = |value: &str| value.replace("OUTSIDE4", &v4).replace("OUTSIDE6", &v6);
        let annotations: BTreeMap<String, String> =
            annotations.iter().map(|(key, value)| ((*key).to_owned(), placed(value))).collect();
        for any in [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)] {
            world.pod.serve(SocketAddr::new(any, APP), "application", 0);
            world.outside.serve(SocketAddr::new(any, APP), "outside", 0);
            world.pod.serve(SocketAddr::new(any, OUTBOUND_PORT), "outbound", PROXY_MARK);
            world.pod.serve(SocketAddr::new(any, INBOUND_PLAINTEXT_PORT), "inbound", PROXY_MARK);
        }
        let exclusions = Exclusions::from_annotations(&annotations).unwrap();
        Self { world, programmer: Programmer::new(Path::new("nft")), exclusions }
    }

    fn captured() -> Self {
        let pod = Self::new();
        pod.apply(Phase::Captured);
        pod
    }

    fn apply(&self, phase: Phase) {
        self.programmer.apply(self.world.pod.netns.as_fd(), &self.exclusions, phase).unwrap();
    }

    fn remove(&self) {
        self.programmer.remove(self.world.pod.netns.as_fd()).unwrap();
    }

    fn verify(&self, phase: Phase) -> Verified {
        self.programmer.verify(self.world.pod.netns.as_fd(), &self.exclusions, phase).unwrap()
    }

    fn mend(&self) -> Mended {
        self.programmer.mend(self.world.pod.netns.as_fd(), &self.exclusions, Phase::Captured).unwrap()
    }
}

/// Runs once for each address family: `run(own address, other's address)` of `place` and its peer.
fn each_family(place: &Place, run: impl Fn(IpAddr)) {
    place.addresses().into_iter().for_each(run);
}

fn answer(from: &Place, to: SocketAddr, how: Dial) -> String {
    from.dial(to, how).unwrap_or_else(|error| panic!("{to}: {error}")).word()
}

#[test]
fn rules_can_be_written_again_and_read_back_as_what_they_are() {
    let pod = Pod::new();
    assert!(matches!(pod.verify(Phase::Captured), Verified::Differs(_)));
    for phase in [Phase::Captured, Phase::Captured, Phase::Draining, Phase::Captured] {
        pod.apply(phase);
        assert_eq!(pod.verify(phase), Verified::Matches);
    }
    assert!(matches!(pod.verify(Phase::Draining), Verified::Differs(_)));
    assert_eq!(pod.world.pod.read_file("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal").trim(), "1");
    for _ in 0..2 {
        pod.remove();
        assert!(matches!(pod.verify(Phase::Captured), Verified::Differs(_)));
    }
}

#[test]
fn whatever_others_break_is_mended_and_what_is_whole_is_left_alone() {
    let pod = Pod::captured();
    assert_eq!(pod.mend(), Mended::Intact);
    let place = &pod.world.pod;
    let breakages: [&dyn Fn(); 5] = [
        &|| place.nft("delete table inet underpass"),
        &|| place.nft("flush chain inet underpass inbound"),
        &|| place.nft("add rule inet underpass outbound tcp dport 1 drop"),
        &|| place.nft("flush ruleset"),
        &|| pod.remove(),
    ];
    for breakage in breakages {
        breakage();
        assert!(matches!(pod.mend(), Mended::Repaired(_)));
        assert_eq!(pod.mend(), Mended::Intact);
    }
}

#[test]
fn tables_of_others_are_not_touched() {
    let pod = Pod::new();
    pod.world.pod.nft("add table inet other");
    pod.apply(Phase::Captured);
    pod.remove();
    pod.world.pod.nft("list table inet other");
}

#[test]
fn a_connection_to_a_listening_port_comes_to_the_proxy() {
    let Pod { world, .. } = Pod::captured();
    each_family(&world.pod, |pod| {
        let mut connection = world.outside.dial(SocketAddr::new(pod, APP), Dial::default()).unwrap();
        assert_eq!(connection.word(), "inbound");
        connection.lives();
    });
}

#[test]
fn a_closed_port_refuses() {
    let Pod { world, .. } = Pod::captured();
    each_family(&world.pod, |pod| {
        let refused = world.outside.dial(SocketAddr::new(pod, APP + 1), Dial::default());
        assert_eq!(refused.err().map(|error| error.kind()), Some(ErrorKind::ConnectionRefused));
    });
}

#[test]
fn a_port_that_only_listens_on_loopback_refuses() {
    let Pod { world, .. } = Pod::captured();
    let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
    for (loopback, pod) in loopback.into_iter().zip(world.pod.addresses()) {
        world.pod.serve(SocketAddr::new(loopback, 9000), "loopback", 0);
        let refused = world.outside.dial(SocketAddr::new(pod, 9000), Dial::default());
        assert_eq!(refused.err().map(|error| error.kind()), Some(ErrorKind::ConnectionRefused));
        assert_eq!(answer(&world.pod, SocketAddr::new(loopback, 9000), Dial::default()), "loopback");
    }
}

#[test]
fn a_connection_of_the_pod_comes_to_the_proxy() {
    let Pod { world, .. } = Pod::captured();
    each_family(&world.outside, |outside| {
        let mut connection = world.pod.dial(SocketAddr::new(outside, APP), Dial::default()).unwrap();
        assert_eq!(connection.word(), "outbound");
        connection.lives();
    });
}

#[test]
fn a_connection_of_the_proxy_passes() {
    let Pod { world, .. } = Pod::captured();
    let proxy = Dial { mark: PROXY_MARK, ..Dial::default() };
    // The bits above our mask may belong to somebody else.
    let proxy_and_more = Dial { mark: PROXY_MARK | 0x4000, ..Dial::default() };
    each_family(&world.outside, |outside| {
        assert_eq!(answer(&world.pod, SocketAddr::new(outside, APP), proxy), "outside");
        assert_eq!(answer(&world.pod, SocketAddr::new(outside, APP), proxy_and_more), "outside");
    });
}

#[test]
fn connections_older_than_capture_are_counted() {
    let Pod { world, .. } = Pod::new();
    assert_eq!(older::count(world.pod.netns.as_fd()).unwrap(), 0);
    let mut held = Vec::new();
    for (inside, outside) in world.pod.addresses().into_iter().zip(world.outside.addresses()) {
        held.push(world.outside.dial(SocketAddr::new(inside, APP), Dial::default()).unwrap());
        held.push(world.pod.dial(SocketAddr::new(outside, APP), Dial::default()).unwrap());
        held.push(world.pod.dial(SocketAddr::new(inside, APP), Dial::default()).unwrap());
    }
    assert_eq!(
        older::count(world.pod.netns.as_fd()).unwrap(),
        4,
        "both ways, both families, and not what it tells itself"
    );
}

#[test]
fn a_pod_that_calls_itself_is_left_alone() {
    let Pod { world, .. } = Pod::captured();
    each_family(&world.pod, |pod| {
        assert_eq!(answer(&world.pod, SocketAddr::new(pod, APP), Dial::default()), "application");
    });
}

#[test]
fn connections_older_than_enrolment_survive_capture_drain_and_removal() {
    let pod = Pod::new();
    let world = &pod.world;
    let mut connections = Vec::new();
    for (inside, outside) in world.pod.addresses().into_iter().zip(world.outside.addresses()) {
        connections.push((world.outside.dial(SocketAddr::new(inside, APP), Dial::default()).unwrap(), "application"));
        connections.push((world.pod.dial(SocketAddr::new(outside, APP), Dial::default()).unwrap(), "outside"));
    }
    for (connection, word) in &mut connections {
        assert_eq!(connection.word(), *word);
    }
    let mut live = || connections.iter_mut().for_each(|(connection, _)| connection.lives());
    live();
    for phase in [Phase::Captured, Phase::Draining, Phase::Captured, Phase::Draining] {
        pod.apply(phase);
        live();
    }
    pod.remove();
    live();
}

#[test]
fn captured_connections_survive_rewriting_and_draining_and_new_ones_pass() {
    let pod = Pod::captured();
    let world = &pod.world;
    let mut connections = Vec::new();
    for (inside, outside) in world.pod.addresses().into_iter().zip(world.outside.addresses()) {
        connections.push((world.outside.dial(SocketAddr::new(inside, APP), Dial::default()).unwrap(), "inbound"));
        connections.push((world.pod.dial(SocketAddr::new(outside, APP), Dial::default()).unwrap(), "outbound"));
        let kept = Dial { mark: PROXY_MARK, from: Some(SocketAddr::new(outside, 0)), transparent: true };
        connections.push((world.pod.dial(SocketAddr::new(inside, APP), kept).unwrap(), "application"));
    }
    for (connection, word) in &mut connections {
        assert_eq!(connection.word(), *word);
    }
    let mut live = || connections.iter_mut().for_each(|(connection, _)| connection.lives());
    live();
    for phase in [Phase::Captured, Phase::Draining, Phase::Draining] {
        pod.apply(phase);
        live();
    }
    for (inside, outside) in world.pod.addresses().into_iter().zip(world.outside.addresses()) {
        assert_eq!(answer(&world.outside, SocketAddr::new(inside, APP), Dial::default()), "application");
        assert_eq!(answer(&world.pod, SocketAddr::new(outside, APP), Dial::default()), "outside");
    }
    live();
}

#[test]
fn no_new_connection_slips_past_while_rules_are_rewritten() {
    let pod = Pod::captured();
    let world = &pod.world;
    let rewritten = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients = [
            (&world.outside, world.pod.v4, "inbound"),
            (&world.pod, world.outside.v4, "outbound"),
            (&world.outside, world.pod.v6, "inbound"),
            (&world.pod, world.outside.v6, "outbound"),
        ];
        for (client, server, word) in clients {
            let rewritten = &rewritten;
            scope.spawn(move || {
                while !rewritten.load(Ordering::Relaxed) {
                    assert_eq!(answer(client, SocketAddr::new(server, APP), Dial::default()), word);
                }
            });
        }
        for _ in 0..20 {
            pod.apply(Phase::Captured);
        }
        rewritten.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_client_that_binds_the_tunnel_port_as_its_own_does_not_walk_past_capture() {
    let Pod { world, .. } = Pod::captured();
    for (inside, outside) in world.pod.addresses().into_iter().zip(world.outside.addresses()) {
        let from = |address| Dial { from: Some(SocketAddr::new(address, HBONE_PORT)), ..Dial::default() };
        let mut inbound = world.outside.dial(SocketAddr::new(inside, APP), from(outside)).unwrap();
        assert_eq!(inbound.word(), "inbound");
        inbound.lives();
        let mut outbound = world.pod.dial(SocketAddr::new(outside, APP), from(inside)).unwrap();
        assert_eq!(outbound.word(), "outbound");
        outbound.lives();
    }
}

#[test]
fn tunnels_arrive_as_they_are_and_are_not_tracked() {
    let Pod { world, .. } = Pod::captured();
    let any = [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)];
    for place in [&world.pod, &world.outside] {
        any.into_iter().for_each(|any| place.serve(SocketAddr::new(any, HBONE_PORT), "tunnel", PROXY_MARK));
    }
    let proxy = Dial { mark: PROXY_MARK, ..Dial::default() };
    let mut tunnels = Vec::new();
    for (inside, outside) in world.pod.addresses().into_iter().zip(world.outside.addresses()) {
        tunnels.push(world.outside.dial(SocketAddr::new(inside, HBONE_PORT), Dial::default()).unwrap());
        tunnels.push(world.pod.dial(SocketAddr::new(outside, HBONE_PORT), proxy).unwrap());
    }
    for tunnel in &mut tunnels {
        assert_eq!(tunnel.word(), "tunnel");
        tunnel.lives();
    }
    assert_eq!(world.pod.read_file("/proc/sys/net/netfilter/nf_conntrack_count").trim(), "0");
}

#[test]
fn an_application_cannot_dial_a_tunnel_past_the_proxy() {
    let Pod { world, .. } = Pod::captured();
    each_family(&world.outside, |outside| {
        assert_eq!(answer(&world.pod, SocketAddr::new(outside, HBONE_PORT), Dial::default()), "outbound");
    });
}

#[test]
fn replies_to_a_kept_source_address_come_back_to_the_proxy() {
    let Pod { world, .. } = Pod::captured();
    for (inside, outside) in world.pod.addresses().into_iter().zip(world.outside.addresses()) {
        let listener = world.pod.listen(SocketAddr::new(inside, 9100), 0);
        let kept = Dial { mark: PROXY_MARK, from: Some(SocketAddr::new(outside, 0)), transparent: true };
        let proxy = world.pod.dial(SocketAddr::new(inside, 9100), kept).unwrap();
        let (_application, peer) = listener.accept().unwrap();
        assert_eq!(peer, proxy.0.local_addr().unwrap());
        assert_eq!(peer.ip(), outside, "the application sees the client's address");

        let mut served = world.pod.dial(SocketAddr::new(inside, APP), kept).unwrap();
        assert_eq!(served.word(), "application");
        served.lives();
    }
}

#[test]
fn a_client_may_use_the_very_port_that_the_proxy_uses_in_its_name() {
    let Pod { world, .. } = Pod::captured();
    for (inside, outside) in world.pod.addresses().into_iter().zip(world.outside.addresses()) {
        let kept = Dial { mark: PROXY_MARK, from: Some(SocketAddr::new(outside, 0)), transparent: true };
        let mut held = world.pod.dial(SocketAddr::new(inside, APP), kept).unwrap();
        assert_eq!(held.word(), "application");
        let same = Dial { from: Some(held.0.local_addr().unwrap()), ..Dial::default() };
        let mut client = world.outside.dial(SocketAddr::new(inside, APP), same).unwrap();
        assert_eq!(client.word(), "inbound", "the client's connection is captured as any other");
        client.lives();
        held.lives();
    }
}

#[test]
fn excluded_ports_and_networks_pass() {
    let inbound_port = Pod::with(&[(names::EXCLUDE_INBOUND_PORTS, "8080")]);
    let outbound_port = Pod::with(&[(names::EXCLUDE_OUTBOUND_PORTS, "22,8080")]);
    let inbound_cidr = Pod::with(&[(names::EXCLUDE_INBOUND_CIDRS, "OUTSIDE4/24,OUTSIDE6")]);
    let outbound_cidr =
        Pod::with(&[(names::EXCLUDE_OUTBOUND_CIDRS, "192.0.2.0/24,OUTSIDE4,OUTSIDE6/64,2001:db8::/32")]);
    let elsewhere = Pod::with(&[
        (names::EXCLUDE_INBOUND_PORTS, "8081"),
        (names::EXCLUDE_OUTBOUND_PORTS, "8081"),
        (names::EXCLUDE_INBOUND_CIDRS, "192.0.2.0/24"),
        (names::EXCLUDE_OUTBOUND_CIDRS, "2001:db8::/32"),
    ]);
    for (pod, into, out) in [
        (inbound_port, "application", "outbound"),
        (outbound_port, "inbound", "outside"),
        (inbound_cidr, "application", "outbound"),
        (outbound_cidr, "inbound", "outside"),
        (elsewhere, "inbound", "outbound"),
    ] {
        pod.apply(Phase::Captured);
        let world = &pod.world;
        for (inside, outside) in world.pod.addresses().into_iter().zip(world.outside.addresses()) {
            assert_eq!(answer(&world.outside, SocketAddr::new(inside, APP), Dial::default()), into, "{inside}");
            assert_eq!(answer(&world.pod, SocketAddr::new(outside, APP), Dial::default()), out, "{outside}");
        }
    }
}

#[test]
fn a_namespace_without_ipv6_is_captured_for_ipv4_and_for_ipv6_once_it_has_it() {
    let pod = Pod::new();
    pod.world.pod.inside(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")).unwrap();
    pod.apply(Phase::Captured);
    assert_eq!(pod.mend(), Mended::Intact);
    let world = &pod.world;
    assert_eq!(answer(&world.outside, SocketAddr::new(world.pod.v4, APP), Dial::default()), "inbound");
    assert_eq!(answer(&world.pod, SocketAddr::new(world.outside.v4, APP), Dial::default()), "outbound");
    // Whoever may switches it on; nobody has told the agent.
    pod.world.pod.inside(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "0")).unwrap();
    world.pod.add_v6();
    assert_eq!(answer(&world.pod, SocketAddr::new(world.outside.v6, APP), Dial::default()), "outbound");
    assert_eq!(answer(&world.outside, SocketAddr::new(world.pod.v6, APP), Dial::default()), "inbound");
    assert!(matches!(pod.mend(), Mended::Repaired(_)), "the reply route follows");
    assert_eq!(pod.mend(), Mended::Intact);
    pod.remove();
}

#[test]
fn a_step_that_fails_is_named() {
    let world = World::new();
    let programmer = Programmer::new(Path::new("/nonexistent/nft"));
    let failed = programmer.apply(world.pod.netns.as_fd(), &Exclusions::default(), Phase::Captured).unwrap_err();
    assert_eq!(failed.to_string(), "cannot program the rules");
    let file = std::fs::File::open("/dev/null").unwrap();
    let failed = programmer.apply(file.as_fd(), &Exclusions::default(), Phase::Captured).unwrap_err();
    assert_eq!(failed.to_string(), "cannot enter the network namespace");
}

#[test]
fn a_namespace_is_found_by_all_its_addresses_and_by_no_other() {
    use underpass_agent::find::{by_address, has_all};
    let (world, free) = (World::new(), HashSet::new());
    let (pod, outside) = (&world.pod, &world.outside);
    for addresses in [&[pod.v4][..], &[pod.v6], &pod.addresses()] {
        let found = by_address(addresses, &free).unwrap();
        assert_eq!(found.path, pod.path());
        assert!(has_all(found.netns.as_fd(), addresses));
        assert!(!has_all(outside.netns.as_fd(), addresses));
        assert!(by_address(addresses, &[found.id].into()).is_err(), "another pod holds it");
    }
    for addresses in [&[pod.v4, outside.v6][..], &[pod.v4, "192.0.2.77".parse().unwrap()], &[]] {
        assert!(by_address(addresses, &free).is_err(), "{addresses:?}");
    }
}
