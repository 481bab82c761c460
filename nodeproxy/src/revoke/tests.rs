use underpass_discovery::{Delta, Resource, Store, testing, wire::ResourceType};
use underpass_model::WorkloadUid;
use underpass_policy::{Action, Policy, PolicyName, Rule, Scope, Source};

use super::*;
use crate::{
    authorize::Judged,
    connections::{Arrival, Ended, Lease},
};

fn own() -> Identity {
    "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()
}

fn begin<'a>(arrival: &'a Arrival, account: &str, port: u16) -> Lease<'a> {
    let judged = Judged {
        source: Source::Peer(format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()),
        client: "10.0.0.9".parse().unwrap(),
        application: (std::net::Ipv4Addr::new(10, 0, 0, 1), port).into(),
    };
    let permit = judged.judge(&own(), &PolicySet::default()).unwrap();
    arrival.admit(permit, Some(judged)).unwrap()
}

fn denies_port(port: u16) -> PolicySet {
    PolicySet::new(Arc::default(), Arc::from([Arc::new(port_policy(port))]))
}

/// One of the namespace's.
fn port_policy(port: u16) -> Policy {
    use underpass_policy::{AllOf, AnyOf, Clause, Field, Match};
    let wanted = Match { destination_ports: Field::any([port]), ..Match::default() };
    let rule = Rule { clauses: AllOf::from_iter([Clause::Matches(AnyOf::from_iter([wanted]))]) };
    Policy {
        name: PolicyName::new("shop", "p"),
        scope: Scope::Namespace,
        action: Action::Deny,
        rules: AnyOf::from_iter([rule]),
        dry_run: false,
    }
}

#[tokio::test]
async fn ends_exactly_what_is_no_longer_allowed_and_says_why() {
    let connections = Connections::new();
    let arrivals = [connections.arrive(), connections.arrive()];
    let (ended, stays) = (begin(&arrivals[0], "job", 80), begin(&arrivals[1], "job", 81));
    let outcome = judge(&connections, &own(), &denies_port(80), false);
    assert_eq!(outcome, Outcome { kept: 1, ended: 1, doubtful: 0 });
    let why = ended.unless_ended(std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(why.reason(), "revoked");
    assert!(why.to_string().contains("policy shop/p denies it"), "{why}");
    assert!(matches!(why, Ended::Revoked(live) if live.why().is_some_and(|why| why.reason() == "policy_denied")));
    assert!(stays.unless_ended(async {}).await.is_ok(), "nothing else is touched");
    assert_eq!(judge(&connections, &own(), &denies_port(80), false).ended, 0, "it is counted once");
}

#[test]
fn an_unknown_policy_ends_connections_only_when_patience_does() {
    let connections = Connections::new();
    let arrival = connections.arrive();
    let _lease = begin(&arrival, "job", 80);
    let unknown = PolicySet::default().with_named([Err(PolicyName::new("shop", "late"))]);
    assert_eq!(judge(&connections, &own(), &unknown, false), Outcome { kept: 0, ended: 0, doubtful: 1 });
    assert_eq!(judge(&connections, &own(), &unknown, true), Outcome { kept: 0, ended: 1, doubtful: 0 });
}

#[tokio::test]
async fn a_pod_whose_record_is_gone_stays_under_what_holds_for_everybody() {
    let mut store = Store::new();
    let mut apply = |kind, changed: Vec<Resource>, removed: Vec<String>| {
        let changed = changed.into_iter().map(|resource| (resource, Arc::from("1"))).collect();
        store.apply(Delta { kind, changed, removed, complete: true });
        store.mesh().view()
    };
    let (connections, workload) = (Connections::new(), WorkloadUid::of_pod("Kubernetes", "shop", "web"));
    let arrivals = [connections.arrive(), connections.arrive()];
    let _leases = (begin(&arrivals[0], "job", 80), begin(&arrivals[1], "job", 81));
    let (uid, identity) = (PodUid::new("uid-1"), own());
    let gate = Gate { workload: &workload, own: &identity };
    let subject = Subject { uid: &uid, number: 1, gate, connections: &connections };
    let mut judge = Judge::default();

    let record = testing::workload("shop", "web").address("10.0.0.1").build();
    let view = apply(ResourceType::Address, vec![Resource::Workload(record)], vec![]);
    assert_eq!(judge.judge(&view, subject), Outcome { kept: 2, ended: 0, doubtful: 0 });
    let view = apply(ResourceType::Address, vec![], vec![workload.as_str().to_owned()]);
    assert_eq!(judge.judge(&view, subject), Outcome::default(), "nothing has changed for it");
    let view = apply(ResourceType::Authorization, vec![Resource::Authorization(port_policy(80))], vec![]);
    assert_eq!(judge.judge(&view, subject), Outcome { kept: 1, ended: 1, doubtful: 0 });
    let another = Subject { number: 2, ..subject };
    assert_eq!(judge.judge(&view, another), Outcome::default(), "a record is remembered of the same pod only");
}
