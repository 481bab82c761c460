use underpass_model::{HealthPolicy, LoadBalancing};
use underpass_policy::{Denial, Facts, Hop, Origin, PolicyName, Scope, Source};

use super::*;
use crate::testing::{at, service, service_name, workload};

fn found(view: &View, address: &str) -> Option<String> {
    view.workload_at(&at(address)).map(|workload| workload.name.to_string())
}

#[test]
fn who_is_found_at_an_address_that_several_claim() {
    let entry = |name| workload("default", name).uid(&format!("Kubernetes/networking/WorkloadEntry/default/{name}"));
    let pod = |name| workload("default", name);
    let own = |builder: crate::testing::WorkloadBuilder| builder.address("10.0.0.1").build();
    for (claimants, winner, why) in [
        (vec![], None, "nobody there"),
        (vec![own(pod("a"))], Some("a"), "the only one"),
        (vec![own(pod("b")), own(entry("a").hbone())], Some("b"), "a pod before another kind"),
        (vec![own(pod("a")), own(pod("b").hbone())], Some("b"), "HBONE before plaintext"),
        (vec![own(pod("b")), own(pod("a"))], Some("a"), "else by name"),
        (vec![own(pod("a").host_network())], None, "a node's address says nothing"),
        (vec![own(pod("a").host_network().hbone()), own(pod("b"))], Some("b"), "a node's address claims nothing"),
        (vec![own(pod("a").network("other"))], None, "another network"),
    ] {
        let reversed = claimants.clone().into_iter().rev();
        for view in [View::of(claimants.clone(), []), View::of(reversed, [])] {
            assert_eq!(found(&view, "10.0.0.1").as_deref(), winner, "{why}");
        }
    }
}

#[test]
fn an_address_goes_back_to_the_next_claimant_when_the_winner_goes() {
    let (winner, other) = (workload("a", "new").hbone().address("10.0.0.1"), workload("a", "old").address("10.0.0.1"));
    let mut view = View::of([other.build(), winner.build()], []);
    assert_eq!(found(&view, "10.0.0.1").as_deref(), Some("new"));
    view.remove_workload(&WorkloadUid::of_pod("Kubernetes", "a", "new"));
    assert_eq!(found(&view, "10.0.0.1").as_deref(), Some("old"));
    view.remove_workload(&WorkloadUid::of_pod("Kubernetes", "a", "old"));
    assert_eq!(found(&view, "10.0.0.1"), None);
    assert!(view.workload_addresses.is_empty() && view.endpoints.is_empty());
}

#[test]
fn a_changed_workload_leaves_nothing_of_its_former_self() {
    let (web, api) = (service_name("a", "web"), service_name("a", "api"));
    let mut view = View::of([workload("a", "pod").address("10.0.0.1").backs(&web, &[(80, 8080)]).build()], []);
    view.set_workload(Arc::new(workload("a", "pod").address("10.0.0.2").backs(&api, &[(80, 1)]).build()));
    assert_eq!((found(&view, "10.0.0.1"), found(&view, "10.0.0.2").is_some()), (None, true));
    assert_eq!((view.endpoints(&web).count(), view.endpoints(&api).count()), (0, 1));
}

#[test]
fn which_service_a_virtual_address_means() {
    let vip = |namespace: &str, name: &str| service(namespace, name).address("10.96.0.1");
    let block = |namespace: &str, name: &str, range: &str| service(namespace, name).range(range);
    for (services, winner, why) in [
        (vec![], None, "nobody's"),
        (vec![vip("b", "x").build()], Some("b/x"), "the only one"),
        (vec![vip("b", "x").build(), vip("client", "x").build()], Some("client/x"), "the client's namespace"),
        (vec![vip("b", "x").build(), vip("c", "x").canonical().build()], Some("c/x"), "the canonical one"),
        (
            vec![vip("c", "x").canonical().build(), vip("client", "x").build()],
            Some("client/x"),
            "the client's namespace before the canonical one",
        ),
        (vec![vip("c", "x").build(), vip("b", "x").build()], Some("b/x"), "else by name"),
        (vec![vip("b", "x").namespace_only().build()], None, "invisible to other namespaces"),
        (vec![vip("client", "x").namespace_only().build()], Some("client/x"), "visible to its own namespace"),
        (
            vec![vip("b", "x").namespace_only().canonical().build(), vip("c", "x").build()],
            Some("c/x"),
            "what is invisible claims nothing",
        ),
        (vec![block("b", "x", "10.96.0.0/16").build()], Some("b/x"), "within a range"),
        (vec![block("b", "x", "10.97.0.0/16").build()], None, "outside of a range"),
        (
            vec![block("b", "x", "10.96.0.0/16").build(), block("c", "x", "10.96.0.0/24").build()],
            Some("c/x"),
            "the longest prefix",
        ),
        (
            vec![block("client", "x", "10.0.0.0/8").build(), block("c", "x", "10.96.0.0/24").build()],
            Some("client/x"),
            "the client's namespace before the longest prefix",
        ),
        (
            vec![block("client", "x", "10.0.0.0/8").build(), vip("c", "x").build()],
            Some("c/x"),
            "the very address before any range",
        ),
        (
            vec![vip("c", "x").namespace_only().build(), block("b", "x", "10.0.0.0/8").build()],
            Some("b/x"),
            "a range where the very address is invisible",
        ),
    ] {
        let reversed = services.clone().into_iter().rev();
        for view in [View::of([], services.clone()), View::of([], reversed)] {
            let service = view.service_at(&at("10.96.0.1"), "client");
            let name = service.map(|service| format!("{}/{}", service.name.namespace, service.short_name));
            assert_eq!(name.as_deref(), winner, "{why}");
        }
    }
}

#[test]
fn a_host_name_means_the_service_that_the_client_may_see() {
    let named = |namespace: &str| {
        let mut service = service(namespace, "x").build();
        service.name = ServiceName::new(namespace, "db.example.com");
        service
    };
    let view = View::of([], [named("b"), named("a")]);
    let seen =
        |client| view.service_of_host("db.example.com", client).map(|service| service.name.namespace.to_string());
    assert_eq!(seen("b").as_deref(), Some("b"));
    assert_eq!(seen("other").as_deref(), Some("a"));
    assert!(view.service_of_host("nobody.example.com", "a").is_none());
}

#[test]
fn endpoints_are_there_whatever_comes_first() {
    let web = service_name("a", "web");
    let pod = |name, node| workload("a", name).node(node).backs(&web, &[(80, 8080)]).build();
    let mut view = View::of([pod("one", "n1"), pod("two", "n2")], []);
    let names = |view: &View| view.endpoints(&web).map(|pod| pod.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&view), ["one", "two"]);
    let balancing = LoadBalancing { health: HealthPolicy::AllowAll, ..LoadBalancing::default() };
    view.set_service(Arc::new(service("a", "web").load_balancing(balancing).build()));
    view.remove_service(&web);
    assert_eq!(names(&view), ["one", "two"], "endpoints are the workloads' own statement");
}

#[test]
fn an_older_view_stays_as_it_was() {
    let old = View::of([workload("a", "pod").address("10.0.0.1").build()], [service("a", "web").build()]);
    let mut new = old.clone();
    new.remove_workload(&WorkloadUid::of_pod("Kubernetes", "a", "pod"));
    new.remove_service(&service_name("a", "web"));
    assert_eq!(found(&old, "10.0.0.1").as_deref(), Some("pod"));
    assert_eq!((old.counts().workloads, new.counts()), (1, Counts::default()));
}

/// The policies that stop everything for this workload, as far as the first one by name tells.
fn stopped_by(view: &View, workload: &Workload) -> Option<String> {
    let own = workload.identity().unwrap();
    let client = "10.9.9.9".parse().unwrap();
    let source = Source::Stranger(client, Origin::Remote);
    let destination = "10.0.0.1:80".parse().unwrap();
    let facts = Facts { source: &source, client, own: &own, hop: Hop::Application, destination };
    match view.policies(workload).authorize(&facts) {
        Ok(_) => None,
        Err(Denial::Policy(refusal)) => Some(format!("{} {}", refusal.reason(), refusal.policy)),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_workload_is_under_the_policies_of_mesh_namespace_and_record() {
    let refuse = |namespace, name, scope| Policy::refuse(PolicyName::new(namespace, name), scope);
    let web = |policies: &[&str]| {
        let mut workload = workload("shop", "web").build();
        workload.policies = policies.iter().map(|&name| name.into()).collect();
        workload
    };
    for (policies, record, expected, why) in [
        (vec![], &[][..], None, "none"),
        (vec![refuse("shop", "p", Scope::Namespace)], &[], Some("policy_unreadable shop/p"), "its namespace's"),
        (vec![refuse("other", "p", Scope::Namespace)], &[], None, "another namespace's"),
        (vec![refuse("other", "p", Scope::Mesh)], &[], Some("policy_unreadable other/p"), "the mesh's"),
        (vec![refuse("shop", "p", Scope::Named)], &[], None, "one that is for others"),
        (vec![refuse("shop", "p", Scope::Named)], &["shop/p"], Some("policy_unreadable shop/p"), "one that it names"),
        (vec![], &["shop/p"], Some("policy_unknown shop/p"), "one that it names and nobody knows"),
        (vec![], &["odd"], Some("policy_unknown odd"), "a name of no known form"),
    ] {
        let view = View::of([web(record)], []).with_policies(policies);
        assert_eq!(stopped_by(&view, &web(record)).as_deref(), expected, "{why}");
    }
}

#[test]
fn a_policy_that_moves_or_goes_leaves_nothing_behind() {
    let mut view = View::of([], []);
    let workload = workload("shop", "web").build();
    let policy = |scope| Policy::refuse(PolicyName::new("shop", "p"), scope);
    for (scope, is_stopped) in [(Scope::Namespace, true), (Scope::Named, false), (Scope::Mesh, true)] {
        view.set_policy(policy(scope));
        assert_eq!(stopped_by(&view, &workload).is_some(), is_stopped, "{scope:?}");
        assert_eq!(view.counts().authorizations, 1);
    }
    view.remove_policy("shop/p");
    assert_eq!((stopped_by(&view, &workload), view.counts().authorizations), (None, 0));
    assert!(view.policies(&workload).is_empty());
}

#[test]
fn sets_are_equal_as_long_as_nothing_about_them_changed() {
    let mut view = View::of([], []);
    let web = workload("shop", "web").build();
    let policy = |namespace, name| Policy::refuse(PolicyName::new(namespace, name), Scope::Namespace);
    view.set_policy(policy("shop", "p"));
    let before = view.policies(&web);
    view.set_policy(policy("other", "p"));
    view.set_policy(policy("shop", "p"));
    assert_eq!(view.policies(&web), before);
    view.set_policy(policy("shop", "q"));
    assert_ne!(view.policies(&web), before);
}
