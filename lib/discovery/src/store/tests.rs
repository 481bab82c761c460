use super::*;
use crate::testing::{at, service, service_name, workload};
use std::time::Duration;
use underpass_policy::{PolicyName, Scope};

fn delta(kind: ResourceType, changed: Vec<Resource>, removed: &[&str], complete: bool) -> Delta {
    let changed = changed.into_iter().map(|resource| (resource, Arc::from("1"))).collect();
    Delta { kind, changed, removed: removed.iter().map(ToString::to_string).collect(), complete }
}

fn policy(name: &str) -> Resource {
    Resource::Authorization(named(name, Action::Deny))
}

fn named(name: &str, action: Action) -> Policy {
    Policy { action, ..Policy::refuse(PolicyName::new("a", name), Scope::Namespace) }
}

#[tokio::test(start_paused = true)]
async fn is_complete_once_every_type_has_been_heard_whole() {
    let mut store = Store::new();
    let mesh = store.mesh();
    store.apply(delta(ResourceType::Address, vec![], &[], false));
    store.apply(delta(ResourceType::Authorization, vec![], &[], true));
    assert!(!mesh.wait_complete(Duration::from_secs(5)).await, "more addresses follow");
    store.apply(delta(ResourceType::Address, vec![], &[], true));
    assert!(mesh.wait_complete(Duration::ZERO).await);
    store.apply(delta(ResourceType::Address, vec![], &["a/gone"], false));
    assert!(mesh.view().is_complete(), "complete once is complete for good");
}

#[test]
fn is_not_complete_with_a_part_of_the_revocations_nor_waits_for_those_of_which_nobody_tells() {
    let (whole, part) = (true, false);
    let revoked = || Resource::Revocation(Revocation::Serial("0102030405060708".parse().unwrap()));
    for (revocations, expected) in [(None, true), (Some(part), false), (Some(whole), true)] {
        let mut store = Store::new();
        if let Some(complete) = revocations {
            store.apply(delta(ResourceType::Revocation, vec![revoked()], &[], complete));
        }
        store.apply(delta(ResourceType::Authorization, vec![], &[], whole));
        store.apply(delta(ResourceType::Address, vec![], &[], whole));
        assert_eq!(store.view().is_complete(), expected, "{revocations:?}");
        store.apply(delta(ResourceType::Revocation, vec![], &[], whole));
        assert!(store.view().is_complete());
    }
}

#[test]
fn each_view_is_shown_first_to_whom_it_shall_be_and_then_to_readers() {
    let (shown, seen) = std::sync::mpsc::channel();
    let store = Store::new();
    let mesh = store.mesh();
    let readers = mesh.clone();
    let show = move |view: &View| {
        let revoked = |view: &View| view.revocations().count();
        shown.send((revoked(view), view.is_complete(), revoked(&readers.view()))).unwrap();
    };
    let mut store = store.shown_first_to(show);
    let revoked = Resource::Revocation(Revocation::Serial("0102030405060708".parse().unwrap()));
    store.apply(delta(ResourceType::Revocation, vec![revoked], &[], true));
    store.apply(delta(ResourceType::Revocation, vec![], &[], true));
    store.believe();
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), [(1, false, 0), (1, true, 1)]);
    assert!(mesh.view().is_complete());
}

#[tokio::test]
async fn readers_are_told_of_each_view_and_keep_the_one_they_took() {
    let mut store = Store::new();
    let mesh = store.mesh();
    let mut versions = mesh.subscribe();
    let before = mesh.view();
    let pod = workload("a", "pod").address("10.0.0.1").build();
    store.apply(delta(ResourceType::Address, vec![Resource::Workload(pod)], &[], true));
    versions.changed().await.unwrap();
    assert_eq!(*versions.borrow_and_update(), mesh.view().version());
    assert!(before.workload_at(&at("10.0.0.1")).is_none() && mesh.view().workload_at(&at("10.0.0.1")).is_some());
    store.apply(delta(ResourceType::Address, vec![], &[], true));
    assert!(!versions.has_changed().unwrap(), "nothing new, no new view");
}

#[test]
fn a_name_is_one_resource_even_if_its_kind_changes() {
    let mut store = Store::new();
    let name = service_name("a", "web").to_string();
    let pod = workload("a", "pod").uid(&name).address("10.0.0.1").build();
    store.apply(delta(ResourceType::Address, vec![Resource::Service(service("a", "web").build())], &[], true));
    store.apply(delta(ResourceType::Address, vec![Resource::Workload(pod)], &[], true));
    let counts = store.mesh().view().counts();
    assert_eq!((counts.workloads, counts.services), (1, 0));
    store.apply(delta(ResourceType::Address, vec![Resource::Service(service("a", "web").build())], &[], true));
    let counts = store.mesh().view().counts();
    assert_eq!((counts.workloads, counts.services), (0, 1));
    assert_eq!(store.versions(ResourceType::Address).len(), 1);
}

#[test]
fn policies_are_kept_by_name_and_counted() {
    let mut store = Store::new();
    store.apply(delta(ResourceType::Authorization, vec![policy("x"), policy("y")], &[], true));
    store.apply(delta(ResourceType::Authorization, vec![policy("x")], &["a/y", "a/never"], true));
    assert_eq!(store.mesh().view().counts().authorizations, 1);
    assert_eq!(store.versions(ResourceType::Authorization).into_keys().collect::<Vec<_>>(), ["a/x"]);
    assert!(store.versions(ResourceType::Address).is_empty());
}

#[tokio::test]
async fn without_on_demand_discovery_a_question_is_answered_by_the_view() {
    let mesh = Mesh::fixed(View::of([workload("a", "pod").address("10.0.0.1").build()], []));
    assert_eq!(mesh.ask(&at("10.0.0.1")).await, Ok(true));
    assert_eq!(mesh.ask(&at("10.0.0.2")).await, Ok(false));
}

#[test]
fn what_was_not_understood_refuses_unless_an_earlier_state_of_it_was() {
    let mut store = Store::new();
    let mut apply = |action| {
        let changed = vec![Resource::Authorization(named("x", action))];
        store.apply(delta(ResourceType::Authorization, changed, &[], true));
        store.view().policy("a/x").map(|policy| policy.action)
    };
    assert_eq!(apply(Action::Refuse), Some(Action::Refuse));
    assert_eq!(apply(Action::Allow), Some(Action::Allow));
    assert_eq!(apply(Action::Refuse), Some(Action::Allow));
}
