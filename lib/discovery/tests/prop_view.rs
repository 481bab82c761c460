//! Whatever way deltas came, the view is the one that a rebuild from what is there gives.
#![expect(clippy::indexing_slicing, reason = "helpers of tests")]

use std::{collections::BTreeMap, sync::Arc};

use proptest::{collection::vec, prelude::*};
use underpass_discovery::{
    Delta, Resource, Store, View,
    testing::{at, service, service_name, workload},
    wire::ResourceType,
};
use underpass_model::{Service, Workload, WorkloadUid};
use underpass_policy::{Action, Policy, PolicyName, Scope};

const ADDRESSES: [&str; 4] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"];
const NAMES: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Debug)]
enum Op {
    Remove(String),
    Service(Service),
    Workload(Workload),
}

fn any_workload() -> impl Strategy<Value = Workload> {
    let parts = (0..NAMES.len(), any::<[bool; 4]>(), vec(0..ADDRESSES.len(), 0..3), vec(0..NAMES.len(), 0..3));
    parts.prop_map(|(name, [pod, hbone, host, _], addresses, services)| {
        let mut builder = workload("ns", NAMES[name]);
        if !pod {
            builder = builder.uid(&format!("c/networking/WorkloadEntry/ns/{}", NAMES[name]));
        }
        if hbone {
            builder = builder.hbone();
        }
        if host {
            builder = builder.host_network();
        }
        // An address may stand there twice.
        builder = addresses.into_iter().fold(builder, |builder, address| builder.address(ADDRESSES[address]));
        services
            .into_iter()
            .fold(builder, |builder, name| builder.backs(&service_name("ns", NAMES[name]), &[(80, 8080)]))
            .build()
    })
}

fn any_service() -> impl Strategy<Value = Service> {
    let parts = (0..NAMES.len(), any::<[bool; 3]>(), vec(0..ADDRESSES.len(), 0..3), any::<bool>());
    parts.prop_map(|(name, [canonical, hidden, other], addresses, range)| {
        let mut builder = service(if other { "other" } else { "ns" }, NAMES[name]);
        if canonical {
            builder = builder.canonical();
        }
        if hidden {
            builder = builder.namespace_only();
        }
        if range {
            builder = builder.range("10.0.0.0/24");
        }
        addresses.into_iter().fold(builder, |builder, address| builder.address(ADDRESSES[address])).build()
    })
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => any_workload().prop_map(Op::Workload),
        2 => any_service().prop_map(Op::Service),
        1 => any_workload().prop_map(|workload| Op::Remove(workload.uid.to_string())),
        1 => any_service().prop_map(|service| Op::Remove(service.name.to_string())),
    ]
}

/// Everything that look-ups tell of the few names and addresses that there are.
fn told(view: &View) -> Vec<String> {
    let mut told = vec![format!("{:?}", view.counts())];
    for address in ADDRESSES {
        told.push(format!("{:?}", view.workload_at(&at(address))));
        for client in ["ns", "other", "third"] {
            told.push(format!("{:?}", view.service_at(&at(address), client)));
        }
    }
    for namespace in ["ns", "other"] {
        for name in NAMES {
            let service = service_name(namespace, name);
            told.push(format!("{:?}", view.service(&service)));
            told.push(format!("{:?}", view.endpoints(&service).collect::<Vec<_>>()));
            told.push(format!("{:?}", view.service_of_host(&service.hostname, "ns")));
            told.push(format!("{:?}", view.workload(&WorkloadUid::of_pod("Kubernetes", namespace, name))));
        }
    }
    told
}

/// Within one delta a name stands once: the last word counts.
fn delta(ops: &[Op]) -> Delta {
    let mut last: BTreeMap<String, Op> = BTreeMap::new();
    for op in ops {
        last.insert(name(op), op.clone());
    }
    let mut delta = Delta { kind: ResourceType::Address, changed: vec![], removed: vec![], complete: true };
    for (name, op) in last {
        match op {
            Op::Remove(_) => delta.removed.push(name),
            Op::Service(service) => delta.changed.push((Resource::Service(service), Arc::from("1"))),
            Op::Workload(workload) => delta.changed.push((Resource::Workload(workload), Arc::from("1"))),
        }
    }
    delta
}

fn name(op: &Op) -> String {
    match op {
        Op::Remove(name) => name.clone(),
        Op::Service(service) => service.name.to_string(),
        Op::Workload(workload) => workload.uid.to_string(),
    }
}

proptest! {
    #[test]
    fn applying_deltas_in_whatever_batches_equals_a_rebuild(batches in vec(vec(any_op(), 0..6), 0..12)) {
        let mut store = Store::new();
        let mut there: BTreeMap<String, Op> = BTreeMap::new();
        for batch in &batches {
            store.apply(delta(batch));
            for op in batch {
                match op {
                    Op::Remove(name) => drop(there.remove(name)),
                    Op::Service(_) | Op::Workload(_) => drop(there.insert(name(op), op.clone())),
                }
            }
        }
        let workloads = there.values().filter_map(|op| match op { Op::Workload(workload) => Some(workload.clone()), _ => None });
        let services = there.values().filter_map(|op| match op { Op::Service(service) => Some(service.clone()), _ => None });
        let rebuilt = View::of(workloads.collect::<Vec<_>>().into_iter().rev(), services);
        prop_assert_eq!(told(&store.mesh().view()), told(&rebuilt));
        prop_assert_eq!(store.versions(ResourceType::Address).len(), there.len());
    }
}

const SCOPES: [Scope; 3] = [Scope::Mesh, Scope::Named, Scope::Namespace];

/// Policies that come, change their scope and go, by name; `None` removes.
fn any_policies() -> impl Strategy<Value = Vec<(usize, usize, Option<usize>)>> {
    vec((0..2_usize, 0..NAMES.len(), proptest::option::weighted(0.7, 0..SCOPES.len())), 0..24)
}

fn policy(namespace: usize, name: usize, scope: usize) -> Policy {
    Policy::refuse(PolicyName::new(["ns", "other"][namespace], NAMES[name]), SCOPES[scope])
}

proptest! {
    #[test]
    fn a_workloads_policies_are_those_that_are_there_whatever_way_they_came(steps in any_policies()) {
        let mut store = Store::new();
        let mut there = BTreeMap::new();
        for (namespace, name, scope) in steps {
            let mut delta = Delta { kind: ResourceType::Authorization, changed: vec![], removed: vec![], complete: true };
            match scope {
                Some(scope) => {
                    let policy = Policy { action: Action::Deny, ..policy(namespace, name, scope) };
                    there.insert((namespace, name), policy.clone());
                    delta.changed.push((Resource::Authorization(policy), Arc::from("1")));
                }
                None => {
                    there.remove(&(namespace, name));
                    delta.removed.push(policy(namespace, name, 0).name.to_string());
                }
            }
            store.apply(delta);
        }
        let view = store.mesh().view();
        let rebuilt = View::of([], []).with_policies(there.values().rev().cloned());
        prop_assert_eq!(view.counts().authorizations, there.len());
        for namespace in ["ns", "other", "third"] {
            let mut workload = workload(namespace, "pod").build();
            workload.policies = vec!["ns/a".into(), "other/b".into(), "odd".into()];
            prop_assert_eq!(view.policies(&workload), rebuilt.policies(&workload));
        }
    }
}
