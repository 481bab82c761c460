use underpass_discovery::testing::{service, service_name, workload};
use underpass_model::LoadBalancing;

use super::*;

const CLIENT: &str = "shop";

fn view() -> View {
    let web = service_name("shop", "web");
    let mixed = service_name("shop", "mixed");
    let guarded = service_name("shop", "guarded");
    let proxy = service_name("shop", "proxy");
    let lost = service_name("shop", "lost");
    View::of(
        [
            workload("shop", "web-1").address("10.0.0.1").hbone().account("web").backs(&web, &[(80, 8080)]).build(),
            workload("shop", "plain").address("10.0.0.2").backs(&mixed, &[(80, 8081)]).build(),
            workload("shop", "no-address").hbone().backs(&service_name("shop", "starting"), &[(80, 80)]).build(),
            workload("shop", "sick")
                .address("10.0.0.3")
                .unhealthy()
                .backs(&service_name("shop", "ill"), &[(80, 80)])
                .build(),
            workload("shop", "proxy-1")
                .address("10.0.0.9")
                .hbone()
                .account("proxy")
                .backs(&proxy, &[(15008, 15008)])
                .build(),
            workload("shop", "behind").address("10.0.0.4").hbone().waypoint(proxy.clone()).build(),
            workload("shop", "orphan").address("10.0.0.5").hbone().waypoint(lost.clone()).build(),
            workload("shop", "strange").address("10.0.0.6").hbone().account("not a name").build(),
            workload("shop", "free")
                .address("10.0.0.10")
                .hbone()
                .joinable()
                .backs(&service_name("shop", "free"), &[(80, 8080)])
                .build(),
            workload("shop", "free-behind").address("10.0.0.11").hbone().joinable().waypoint(proxy.clone()).build(),
            workload("shop", "six").address("10.0.0.7").address("fd00::7").hbone().account("six").build(),
        ],
        [
            service("shop", "web").address("10.96.0.1").ports(&[(80, 8080), (443, 0)]).build(),
            service("shop", "free").address("10.96.0.10").ports(&[(80, 8080)]).build(),
            service("shop", "mixed").address("10.96.0.2").ports(&[(80, 0)]).build(),
            service("shop", "ill").address("10.96.0.3").ports(&[(80, 80)]).build(),
            service("shop", "starting").address("10.96.0.4").ports(&[(80, 80)]).build(),
            service("shop", "proxy").ports(&[(15008, 15008)]).build(),
            service("shop", "guarded").address("10.96.0.5").ports(&[(80, 80)]).waypoint(proxy).build(),
            service("shop", "unguarded").address("10.96.0.6").ports(&[(80, 80)]).waypoint(lost).build(),
            service("shop", "through")
                .address("10.96.0.7")
                .ports(&[(80, 80)])
                .load_balancing(LoadBalancing { mode: SpreadMode::Passthrough, ..LoadBalancing::default() })
                .build(),
            service(guarded.namespace.as_ref(), "empty").address("10.96.0.8").ports(&[(80, 80)]).build(),
        ],
    )
}

fn ask(dialled: &str, avoid: &[WorkloadUid]) -> Result<Resolved, ResolveError> {
    ask_from("node-1", dialled, avoid, true)
}

fn ask_from(node: &str, dialled: &str, avoid: &[WorkloadUid], may_join: bool) -> Result<Resolved, ResolveError> {
    let place = Place { cluster: "Kubernetes".into(), node: node.into(), ..Place::default() };
    let original_dst = dialled.parse().unwrap();
    let (view, pod) = (view(), PodUid::new("client"));
    let question = Question {
        view: &view,
        original_dst,
        namespace: CLIENT,
        pod: &pod,
        kept: &|_| None,
        place: &place,
        may_join,
        avoid,
    };
    resolve(&question, |_| Load::default(), || 0.5)
}

/// One line that says where a connection goes.
fn says(resolved: Result<Resolved, ResolveError>) -> String {
    match resolved.map(|resolved| resolved.next_hop) {
        Ok(NextHop::Passthrough(to)) => format!("pass to {to}"),
        Ok(NextHop::Plain { to, .. }) => format!("plain to {to}"),
        Ok(NextHop::Tunnel(hop)) => {
            let expect: Vec<_> = hop.expect.iter().map(|identity| identity.service_account().to_owned()).collect();
            format!("tunnel to {} for {} as {}", hop.to, hop.authority, expect.join("+"))
        }
        Err(error) => error.reason().to_owned(),
    }
}

#[test]
fn only_pods_of_the_callers_node_that_may_be_joined_are() {
    for (node, dialled, may_join, expected) in [
        ("node-1", "10.0.0.10:80", true, true),
        ("node-1", "10.96.0.10:80", true, true),
        ("node-1", "10.0.0.10:80", false, false),
        ("node-2", "10.0.0.10:80", true, false),
        // Nobody said that no policy selects it.
        ("node-1", "10.0.0.1:80", true, false),
        // It is a waypoint's traffic.
        ("node-1", "10.0.0.11:80", true, false),
    ] {
        let resolved = ask_from(node, dialled, &[], may_join).unwrap();
        let NextHop::Tunnel(hop) = resolved.next_hop else { panic!("{dialled} is no tunnel") };
        assert_eq!(hop.may_join, expected, "{node} {dialled} {may_join}");
    }
}

#[test]
fn the_table_of_resolutions() {
    for (dialled, expected) in [
        ("192.0.2.1:443", "pass to 192.0.2.1:443"),
        ("10.96.0.1:80", "tunnel to 10.0.0.1:15008 for 10.0.0.1:8080 as web"),
        ("10.96.0.1:81", "no_service_port"),
        ("10.96.0.1:443", "no_endpoint"),
        ("10.0.0.1:9999", "tunnel to 10.0.0.1:15008 for 10.0.0.1:9999 as web"),
        ("10.96.0.2:80", "plain to 10.0.0.2:8081"),
        ("10.0.0.2:5", "plain to 10.0.0.2:5"),
        ("10.96.0.3:80", "no_endpoint"),
        ("10.0.0.3:80", "plain to 10.0.0.3:80"),
        ("10.96.0.4:80", "no_endpoint"),
        ("10.96.0.5:80", "tunnel to 10.0.0.9:15008 for 10.96.0.5:80 as proxy"),
        ("10.96.0.6:80", "no_waypoint"),
        ("10.0.0.4:80", "tunnel to 10.0.0.9:15008 for 10.0.0.4:80 as proxy"),
        ("10.0.0.5:80", "no_waypoint"),
        ("10.96.0.7:80", "pass to 10.96.0.7:80"),
        ("10.96.0.8:80", "no_endpoint"),
        ("10.0.0.6:80", "endpoint_identity"),
        ("[fd00::7]:80", "tunnel to [fd00::7]:15008 for [fd00::7]:80 as six"),
    ] {
        assert_eq!(says(ask(dialled, &[])), expected, "{dialled}");
    }
}

#[test]
fn an_endpoint_that_failed_this_connection_is_not_tried_again() {
    let failed = WorkloadUid::of_pod("Kubernetes", "shop", "web-1");
    assert_eq!(says(ask("10.96.0.1:80", &[failed])), "no_endpoint");
}

#[test]
fn the_table_of_connect_targets() {
    let pod = WorkloadUid::of_pod("Kubernetes", "shop", "web-1");
    let local = "10.0.0.1".parse().unwrap();
    for (authority, expected) in [
        ("10.0.0.1:8080", Ok("10.0.0.1:8080")),
        ("10.0.0.2:8080", Err("authority_not_this_pod")),
        ("127.0.0.1:8080", Err("authority_not_this_pod")),
        ("web.shop.svc.cluster.local:80", Ok("10.0.0.1:8080")),
        ("WEB.shop.svc.cluster.local:80", Ok("10.0.0.1:8080")),
        ("web.shop.svc.cluster.local:81", Err("authority_unknown_port")),
        ("mixed.shop.svc.cluster.local:80", Err("authority_unknown_service")),
        ("nobody.example:80", Err("authority_unknown_service")),
    ] {
        let resolved = inbound::resolve(&view(), &pod, local, &authority.parse().unwrap());
        let resolved = resolved.map(|application| application.address.to_string()).map_err(|error| error.reason());
        assert_eq!(resolved, expected.map(str::to_owned), "{authority}");
    }
}
