use std::collections::BTreeMap;

use underpass_discovery::testing::{service, workload};
use underpass_model::LoadBalancing;

use super::*;

fn endpoints() -> Vec<Arc<Workload>> {
    [
        workload("a", "here").node("node-1").locality("r1", "z1"),
        workload("a", "zone").node("node-2").locality("r1", "z1"),
        workload("a", "region").node("node-3").locality("r1", "z2"),
        workload("a", "far").node("node-4").locality("r2", "z1"),
    ]
    .map(|builder| Arc::new(builder.build()))
    .to_vec()
}

fn place() -> Place {
    let locality = Locality { region: "r1".into(), zone: "z1".into(), subzone: "".into() };
    Place { network: "".into(), cluster: "Kubernetes".into(), node: "node-1".into(), locality }
}

fn balanced(preference: &[LocalityScope], mode: SpreadMode) -> Service {
    let balancing = LoadBalancing { preference: preference.to_vec(), mode, ..LoadBalancing::default() };
    service("a", "s").load_balancing(balancing).build()
}

/// How often each endpoint is chosen in a thousand draws.
fn spread(service: &Service, endpoints: &[Arc<Workload>], load: impl Fn(&str) -> Load) -> BTreeMap<String, u32> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut counts = BTreeMap::new();
    for _ in 0..1000 {
        let by_uid = |uid: &WorkloadUid| load(uid.as_str().rsplit('/').next().unwrap());
        if let Some(chosen) =
            choose(service, endpoints.iter(), &Client { place: &place(), session: None }, by_uid, || random.f64())
        {
            *counts.entry(chosen.name.to_string()).or_default() += 1;
        }
    }
    counts
}

fn idle(_: &str) -> Load {
    Load::default()
}

#[test]
fn without_preference_everybody_gets_about_the_same() {
    let counts = spread(&balanced(&[], SpreadMode::Unspecified), &endpoints(), idle);
    assert_eq!(counts.len(), 4);
    assert!(counts.values().all(|&count| count > 180), "{counts:?}");
}

#[test]
fn the_table_of_preferences() {
    use LocalityScope::{Node, Region, Zone};
    for (preference, mode, expected) in [
        (&[Region, Zone][..], SpreadMode::Failover, &["here", "zone"][..]),
        (&[Region, Zone, Node], SpreadMode::Failover, &["here"]),
        (&[Region], SpreadMode::Failover, &["here", "region", "zone"]),
        (&[Node], SpreadMode::Strict, &["here"]),
        (&[Region, Zone, Node], SpreadMode::Unspecified, &["far", "here", "region", "zone"]),
    ] {
        let counts = spread(&balanced(preference, mode), &endpoints(), idle);
        assert_eq!(counts.keys().collect::<Vec<_>>(), expected, "{preference:?} {mode:?}");
    }
}

#[test]
fn strict_means_nobody_rather_than_somebody_elsewhere() {
    let elsewhere = &endpoints()[1..];
    assert!(spread(&balanced(&[LocalityScope::Node], SpreadMode::Strict), elsewhere, idle).is_empty());
    let failover = balanced(&[LocalityScope::Node], SpreadMode::Failover);
    assert_eq!(spread(&failover, elsewhere, idle).len(), 3, "failover takes what there is");
}

#[test]
fn an_endpoint_that_failed_is_passed_over_while_others_work() {
    let here_is_down = |name: &str| Load { ejected: name == "here", ..Load::default() };
    let near = balanced(&[LocalityScope::Node], SpreadMode::Failover);
    assert!(!spread(&near, &endpoints(), here_is_down).contains_key("here"));
    let all_down = |_: &str| Load { ejected: true, ..Load::default() };
    assert!(spread(&near, &endpoints(), all_down).contains_key("here"), "the last resort is to try");
}

#[test]
fn the_busiest_of_all_is_never_chosen_by_two_choices() {
    let busy = |name: &str| Load { active: if name == "far" { 100 } else { 0 }, ejected: false };
    assert!(!spread(&balanced(&[], SpreadMode::Unspecified), &endpoints(), busy).contains_key("far"));
}

#[test]
fn the_unready_get_nothing_unless_the_service_says_so() {
    let sick = vec![Arc::new(workload("a", "sick").unhealthy().build())];
    let mut service = balanced(&[], SpreadMode::Unspecified);
    assert!(spread(&service, &sick, idle).is_empty());
    service.load_balancing.health = HealthPolicy::AllowAll;
    assert_eq!(spread(&service, &sick, idle).len(), 1);
}

#[test]
fn capacity_is_a_share() {
    let two = [workload("a", "small").capacity(1), workload("a", "none").capacity(0), workload("a", "big").capacity(9)]
        .map(|builder| Arc::new(builder.build()));
    let counts = spread(&balanced(&[], SpreadMode::Unspecified), &two, idle);
    assert!(!counts.contains_key("none"));
    assert!(counts["big"] > 800, "{counts:?}");
}

/// Where each of a hundred new clients, or clients of an endpoint, goes.
fn sessions(endpoints: &[Arc<Workload>], kept: Option<&Workload>, load: impl Fn(&str) -> Load) -> Vec<String> {
    let by_uid = |uid: &WorkloadUid| load(uid.as_str().rsplit('/').next().unwrap());
    let place = place();
    let chosen = |number: u32| {
        let client = PodUid::new(&format!("client-{number}"));
        let session = Some(Session { client: &client, kept: kept.map(|kept| kept.uid.clone()) });
        let service = balanced(&[], SpreadMode::Unspecified);
        let never = || panic!("a session is no matter of chance");
        choose(&service, endpoints.iter(), &Client { place: &place, session }, by_uid, never).unwrap().name.to_string()
    };
    (0..100).map(chosen).collect()
}

#[test]
fn a_client_has_one_endpoint_and_clients_have_all() {
    let first = sessions(&endpoints(), None, idle);
    let busy = |name: &str| Load { active: if name == "far" { 100 } else { 0 }, ejected: false };
    assert_eq!(sessions(&endpoints(), None, busy), first, "load is no reason to leave");
    for endpoint in endpoints() {
        let count = first.iter().filter(|name| **name == *endpoint.name).count();
        assert!((10..50).contains(&count), "{}: {count}", endpoint.name);
    }
    // Of clients that nobody remembers only those move whose endpoint is gone.
    let left = sessions(&endpoints()[1..], None, idle);
    assert!(first.iter().zip(&left).all(|(before, after)| before == "here" || before == after));
}

#[test]
fn what_a_client_has_it_keeps_while_that_can_serve() {
    let all = endpoints();
    let far = &all[3];
    let only = |names: &[String], name: &str| names.iter().all(|chosen| chosen == name);
    assert!(only(&sessions(&all, Some(far), idle), "far"));
    let far_is_down = |name: &str| Load { ejected: name == "far", ..Load::default() };
    let elsewhere = sessions(&all, Some(far), far_is_down);
    assert!(!elsewhere.iter().any(|name| name == "far"), "{elsewhere:?}");
    let sick = Arc::new(workload("a", "far").unhealthy().build());
    let elsewhere = sessions(&[Arc::clone(&all[0]), Arc::clone(&sick)], Some(&sick), idle);
    assert!(only(&elsewhere, "here"));
}

#[test]
fn a_session_does_not_leave_where_a_service_must_stay() {
    let all = endpoints();
    let client = PodUid::new("client");
    let session = Some(Session { client: &client, kept: Some(all[3].uid.clone()) });
    let service = balanced(&[LocalityScope::Node], SpreadMode::Strict);
    let chosen = choose(&service, all.iter(), &Client { place: &place(), session }, |_| Load::default(), || 0.5);
    assert_eq!(&*chosen.unwrap().name, "here");
}
