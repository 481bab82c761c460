use underpass_discovery::{Delta, Resource, Store, testing, wire::ResourceType};
use underpass_policy::{Action, Policy, PolicyName, Rule, Scope};

use super::*;
use crate::connections::Connections;

struct Bench {
    store: Store,
    connections: Connections,
    own: Identity,
    workload: WorkloadUid,
}

impl Bench {
    /// A mesh that knows the pod `shop/web`, under these policies by name.
    fn new(names: &[&str]) -> Self {
        let mut bench = Self {
            store: Store::new(),
            connections: Connections::new(),
            own: "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap(),
            workload: WorkloadUid::of_pod("Kubernetes", "shop", "web"),
        };
        bench.record(names);
        bench.policies(vec![]);
        bench
    }

    fn record(&mut self, names: &[&str]) {
        let mut record = testing::workload("shop", "web").address("10.0.0.1").build();
        record.policies = names.iter().map(|&name| name.into()).collect();
        self.apply(ResourceType::Address, vec![Resource::Workload(record)]);
    }

    fn policies(&mut self, policies: Vec<Policy>) {
        self.apply(ResourceType::Authorization, policies.into_iter().map(Resource::Authorization).collect());
    }

    fn apply(&mut self, kind: ResourceType, changed: Vec<Resource>) {
        let changed = changed.into_iter().map(|resource| (resource, Arc::from("1"))).collect();
        self.store.apply(Delta { kind, changed, removed: vec![], complete: true });
    }

    fn gate(&self) -> Gate<'_> {
        Gate { workload: &self.workload, own: &self.own }
    }

    async fn admit(&self, source: Source) -> &'static str {
        let arrival = self.connections.arrive();
        let admitted = self.gate().admit(&arrival, (&self.store.mesh(), &"".into()), judged(source)).await;
        reason(admitted)
    }
}

fn judged(source: Source) -> Judged {
    Judged { source, client: "10.0.0.9".parse().unwrap(), application: "10.0.0.1:80".parse().unwrap() }
}

fn peer() -> Source {
    Source::Peer("spiffe://cluster.local/ns/shop/sa/job".parse().unwrap())
}

fn stranger(origin: Origin) -> Source {
    Source::Stranger("10.0.0.9".parse().unwrap(), origin)
}

fn policy(action: Action, rules: &[Rule]) -> Policy {
    let rules = rules.iter().cloned().collect();
    Policy { name: PolicyName::new("shop", "p"), scope: Scope::Named, action, rules, dry_run: false }
}

fn reason(admitted: Result<Lease<'_>, AdmitError>) -> &'static str {
    match admitted {
        Ok(_) => "admitted",
        Err(AdmitError::Denied(denial)) => denial.reason(),
        Err(AdmitError::Ended(ended)) => ended.reason(),
        Err(AdmitError::OwnUnknown(_)) => "own unknown",
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_stays_unknown_refuses_after_a_moment() {
    let bench = Bench::new(&["shop/p"]);
    let begun = tokio::time::Instant::now();
    assert_eq!(bench.admit(peer()).await, "policy_unknown");
    assert_eq!(begun.elapsed(), POLICY_DEADLINE);
    assert_eq!(bench.connections.inbound().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_comes_in_time_decides() {
    for (rules, expected) in [(vec![Rule::open()], "admitted"), (vec![], "policy_not_allowed")] {
        let mut bench = Bench::new(&["shop/p"]);
        let (workload, own, arrival) = (bench.workload.clone(), bench.own.clone(), bench.connections.arrive());
        let gate = Gate { workload: &workload, own: &own };
        let mesh = bench.store.mesh();
        let network = Network::from("");
        let (admitted, ()) = tokio::join!(gate.admit(&arrival, (&mesh, &network), judged(peer())), async {
            tokio::time::sleep(POLICY_DEADLINE / 2).await;
            bench.policies(vec![policy(Action::Allow, &rules)]);
        });
        assert_eq!(reason(admitted), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_nobody_knows_admits_probes_alone() {
    let bench = Bench { workload: WorkloadUid::of_pod("Kubernetes", "shop", "new"), ..Bench::new(&[]) };
    assert_eq!(bench.admit(stranger(Origin::Kubelet)).await, "admitted");
    let begun = tokio::time::Instant::now();
    assert_eq!(bench.admit(peer()).await, "own unknown");
    assert_eq!(begun.elapsed(), OWN_DEADLINE);
}

#[tokio::test(start_paused = true)]
async fn the_kubelet_passes_whatever_policies_say_and_others_of_the_node_do_not() {
    let mut bench = Bench::new(&["shop/p"]);
    bench.policies(vec![policy(Action::Deny, &[Rule::open()])]);
    assert_eq!(bench.admit(stranger(Origin::Kubelet)).await, "admitted");
    for origin in [Origin::Gone, Origin::Host, Origin::Remote] {
        assert_eq!(bench.admit(stranger(origin)).await, "policy_denied", "{origin:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_changes_between_decision_and_registration_is_seen() {
    let mut bench = Bench::new(&[]);
    let before = bench.store.mesh().view();
    let (arrival, judged) = (bench.connections.arrive(), judged(peer()));
    let record = Arc::clone(before.workload(&bench.workload).unwrap());
    let permit = bench.gate().judge(&before, &record, &judged).unwrap();
    let lease = arrival.admit(permit, Some(judged.clone())).unwrap();
    bench.policies(vec![Policy { scope: Scope::Namespace, ..policy(Action::Deny, &[Rule::open()]) }]);
    let now = bench.store.mesh().view();
    assert_ne!(now.version(), before.version());
    // The second look that admission takes once the lease is registered.
    assert!(bench.gate().judge(&now, &record, &judged).is_err());
    drop(lease);
    assert_eq!(bench.admit(peer()).await, "policy_denied");
}

#[tokio::test(start_paused = true)]
async fn a_record_that_vanishes_while_a_policy_is_waited_for_opens_nothing() {
    // Denied by everybody's policy once the record is gone, or still by the unknown one that it named.
    for (everybodys, expected) in [(true, "policy_denied"), (false, "policy_unknown")] {
        let mut bench = Bench::new(&["shop/p"]);
        let (workload, own, arrival) = (bench.workload.clone(), bench.own.clone(), bench.connections.arrive());
        let gate = Gate { workload: &workload, own: &own };
        let (mesh, network) = (bench.store.mesh(), Network::from(""));
        let (admitted, ()) = tokio::join!(gate.admit(&arrival, (&mesh, &network), judged(peer())), async {
            tokio::time::sleep(POLICY_DEADLINE / 2).await;
            if everybodys {
                let denies = policy(Action::Deny, &[Rule::open()]);
                bench.policies(vec![Policy {
                    name: PolicyName::new("shop", "everybodys"),
                    scope: Scope::Namespace,
                    ..denies
                }]);
            }
            let removed = vec![workload.as_str().to_owned()];
            bench.store.apply(Delta { kind: ResourceType::Address, changed: vec![], removed, complete: true });
        });
        assert_eq!(reason(admitted), expected);
        assert_eq!(bench.connections.inbound().len(), 0);
    }
}
