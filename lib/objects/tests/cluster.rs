//! Objects from an API server, through whatever happens to it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests, which clippy does not see")]

use std::time::Duration;

use serde_json::json;
use tokio::{sync::watch, time};
use underpass_model::PodUid;
use underpass_objects::{
    CaptureReport, CaptureState, Kind, KindError, NetworkPolicies, ObjectName, Origin, Snapshot, SourceError,
    cluster::{self, Interest, report::ReportError},
    mesh_config::SameNode,
    report,
    testing::FakeApiServer,
};
use underpass_runtime::Shutdown;

/// Far beyond the longest wait between two tries.
const SOON: Duration = Duration::from_secs(60);

struct Bench {
    server: FakeApiServer,
    snapshots: watch::Receiver<Snapshot>,
    _running: Stop,
}

struct Stop(Shutdown);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.request();
    }
}

impl Bench {
    async fn of(interests: Vec<Interest>) -> Self {
        let server = FakeApiServer::start().await.unwrap();
        Self::with(server, interests)
    }

    fn with(server: FakeApiServer, interests: Vec<Interest>) -> Self {
        let (snapshots, task) = cluster::watch(&server.client(), interests);
        let shutdown = Shutdown::new();
        tokio::spawn(task.run(shutdown.clone()));
        Self { server, snapshots, _running: Stop(shutdown) }
    }

    async fn all(kinds: &[Kind]) -> Self {
        Self::of(kinds.iter().map(|kind| Interest::all(*kind)).collect()).await
    }

    /// Waits until the snapshot is like that.
    async fn until(&mut self, what: &str, is_like: impl FnMut(&Snapshot) -> bool) -> Snapshot {
        let found = time::timeout(SOON, self.snapshots.wait_for(is_like)).await;
        let found = found.map(|snapshot| snapshot.unwrap().clone());
        found.unwrap_or_else(|_elapsed| panic!("{what}: {:#?}", self.snapshots.borrow()))
    }

    async fn until_pods(&mut self, expected: &[&str]) -> Snapshot {
        self.until(&format!("{expected:?}"), |snapshot| snapshot.is_sure() && pods(snapshot) == expected).await
    }

    fn put_pod(&self, name: &str, node: &str) {
        self.server.put(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "shop" },
            "spec": { "nodeName": node, "containers": [{ "name": "c", "env": [{ "name": "A", "value": "b" }] }] },
        }));
    }

    fn delete_pod(&self, name: &str) {
        assert!(self.server.delete("pods", "shop", name));
    }
}

fn pods(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.objects.pods.keys().map(|name| name.name.as_str()).collect()
}

fn error(snapshot: &Snapshot) -> Option<(&SourceError, bool)> {
    snapshot.problems.first().map(|problem| (&problem.error, problem.is_lost))
}

#[tokio::test]
async fn every_kind_is_listed_and_then_followed() {
    let mut bench = Bench::all(&Kind::ALL).await;
    assert_eq!(bench.snapshots.borrow().unlisted().count(), Kind::ALL.len(), "nothing is known before the first list");
    bench.until("empty", |snapshot| snapshot.is_sure() && snapshot.objects.is_empty()).await;
    bench.server.put_yaml(
        r#"
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {underpass.dev/mesh: enabled}}}
---
{apiVersion: v1, kind: Node, metadata: {name: a}, status: {phase: x}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop}, spec: {nodeName: a, containers: []}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {selector: {app: web}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: web, namespace: shop}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: out, namespace: shop, labels: {kubernetes.io/service-name: out}}
addressType: IPv4
endpoints: []
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-x, namespace: shop, labels: {endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io}}
addressType: IPv4
endpoints: []
---
apiVersion: underpass.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec: {targetRefs: [{kind: Pod, group: ""}]}
---
{apiVersion: underpass.dev/v1alpha1, kind: MeshTLSMode, metadata: {name: m, namespace: shop}, spec: {mode: STRICT}}
---
{apiVersion: underpass.dev/v1alpha1, kind: MeshConfig, metadata: {name: default}, spec: {sameNode: Tunnel}}
"#,
    );
    let snapshot = bench.until("one of each", |snapshot| snapshot.objects.len() == Kind::ALL.len()).await;
    assert!(snapshot.is_sure());
    for kind in Kind::ALL {
        assert_eq!(snapshot.objects.keys(kind).len(), 1, "{kind}");
    }
    assert_eq!(snapshot.objects.mesh_config().same_node, SameNode::Tunnel);
    assert!(snapshot.objects.endpoint_slices.contains_key(&ObjectName::new("shop", "out")));
    bench.delete_pod("web");
    bench.until_pods(&[]).await;
}

#[tokio::test]
async fn an_agent_follows_the_pods_of_its_node_only() {
    let mut bench = Bench::of(vec![Interest::pods_of_node("a")]).await;
    bench.put_pod("here", "a");
    bench.put_pod("there", "b");
    bench.put_pod("too", "a");
    let snapshot = bench.until_pods(&["here", "too"]).await;
    let pod = snapshot.objects.pod("shop", "here").unwrap();
    assert_eq!(pod.spec.as_ref().unwrap().containers[0].env, None, "what the mesh does not read is not kept");
}

#[tokio::test]
async fn a_list_comes_in_pages() {
    let server = FakeApiServer::start().await.unwrap();
    for number in 0..1201 {
        server.put(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": format!("n{number}") } }));
    }
    let mut bench = Bench::with(server, vec![Interest::all(Kind::Node)]);
    let snapshot = bench.until("all", Snapshot::is_sure).await;
    assert_eq!(snapshot.objects.nodes.len(), 1201);
    let lists = bench.server.requests().iter().filter(|request| request.contains("limit=")).count();
    assert_eq!(lists, 3, "{:?}", bench.server.requests());
}

#[tokio::test]
async fn nothing_is_missed_or_kept_through_cuts_restarts_and_forgotten_history() {
    let mut bench = Bench::all(&[Kind::Pod]).await;
    bench.put_pod("a", "n");
    bench.put_pod("b", "n");
    bench.until_pods(&["a", "b"]).await;
    bench.server.cut_watches();
    bench.put_pod("c", "n");
    bench.until_pods(&["a", "b", "c"]).await;
    // A deletion that no watch tells of any more.
    bench.server.refuse("pods", Some(503));
    bench
        .until("the problem", |snapshot| {
            matches!(error(snapshot), Some((SourceError::Kind(KindError::Refused(_)), false)))
        })
        .await;
    bench.delete_pod("a");
    bench.put_pod("d", "n");
    bench.server.forget_history();
    assert_eq!(pods(&bench.snapshots.borrow()), ["a", "b", "c"], "the last good state stays");
    bench.server.refuse("pods", None);
    bench.until_pods(&["b", "c", "d"]).await;
    bench.server.stop().await;
    bench
        .until("the problem", |snapshot| {
            matches!(error(snapshot), Some((SourceError::Kind(KindError::Unreachable(_)), false)))
        })
        .await;
    bench.server.delete("pods", "shop", "b");
    bench.server.start_again().await.unwrap();
    bench.until_pods(&["c", "d"]).await;
}

#[tokio::test]
async fn a_kind_that_is_not_installed_has_no_objects_until_it_is() {
    let server = FakeApiServer::start().await.unwrap();
    server.refuse("authorizationpolicies", Some(404));
    let mut bench = Bench::with(server, vec![Interest::all(Kind::AuthorizationPolicy)]);
    let missing = |snapshot: &Snapshot| error(snapshot) == Some((&SourceError::Kind(KindError::Unknown), false));
    let snapshot = bench.until("told", missing).await;
    assert_eq!(snapshot.unlisted().count(), 0, "the mesh need not wait for it");
    bench.server.put_yaml(
        "{apiVersion: underpass.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {name: p, namespace: shop},
          spec: {targetRefs: [{kind: Pod}]}}",
    );
    bench.server.refuse("authorizationpolicies", None);
    bench.until("there", |snapshot| snapshot.is_sure() && snapshot.objects.authorization_policies.len() == 1).await;
    // Who removes a kind removes its objects first, and a server that forgets it for a moment opens no door.
    bench.server.refuse("authorizationpolicies", Some(404));
    let snapshot = bench.until("told", missing).await;
    assert_eq!(snapshot.objects.authorization_policies.len(), 1);
}

#[tokio::test]
async fn a_missing_right_is_named_and_what_it_hides_is_not_taken_for_absent() {
    let server = FakeApiServer::start().await.unwrap();
    server.refuse("pods", Some(403));
    let mut bench = Bench::with(server, vec![Interest::all(Kind::Pod), Interest::all(Kind::Node)]);
    let is_told =
        |snapshot: &Snapshot| matches!(error(snapshot), Some((SourceError::Kind(KindError::Forbidden(_)), true)));
    let snapshot = bench.until("told", is_told).await;
    assert_eq!(snapshot.unlisted().collect::<Vec<_>>(), [Kind::Pod]);
    assert_eq!(snapshot.problems[0].origin, Origin::Kind(Kind::Pod));
    assert!(snapshot.problems[0].to_string().contains("pods is forbidden"), "{}", snapshot.problems[0]);
    bench.server.refuse("pods", None);
    bench.until_pods(&[]).await;
}

#[tokio::test]
async fn an_object_that_is_not_understood_keeps_its_last_good_state_and_else_closes() {
    let policy = |name: &str, extra: &str| {
        format!(
            "{{apiVersion: underpass.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: {name}, namespace: shop}},
              spec: {{targetRefs: [{{kind: Pod, selector: {{matchLabels: {{app: {name}}}}}}}], action: DENY{extra}}}}}"
        )
    };
    let mut bench = Bench::all(&[Kind::AuthorizationPolicy]).await;
    bench.server.put_yaml(&policy("known", ""));
    bench.until("read", |snapshot| snapshot.objects.authorization_policies.len() == 1).await;
    bench.server.put_yaml(&policy("known", ", hours: [9]"));
    bench.server.put_yaml(&policy("new", ", hours: [9]"));
    let snapshot = bench.until("both told", |snapshot| snapshot.problems.len() == 2).await;
    let policies = &snapshot.objects.authorization_policies;
    let (known, new) = (&policies[&ObjectName::new("shop", "known")], &policies[&ObjectName::new("shop", "new")]);
    assert_eq!(known.unreadable, None);
    assert!(new.unreadable.as_ref().unwrap().contains("hours"), "{new:?}");
    assert_eq!(new.selector().unwrap().match_labels["app"], "new", "it stops whom it selects, no others");
    let lost: Vec<bool> = snapshot.problems.iter().map(|problem| problem.is_lost).collect();
    assert_eq!(lost, [false, true]);
    bench.server.put_yaml(&policy("new", ""));
    bench.server.delete("authorizationpolicies", "shop", "known");
    let snapshot = bench.until("over", |snapshot| snapshot.is_sure()).await;
    assert_eq!(snapshot.objects.authorization_policies[&ObjectName::new("shop", "new")].unreadable, None);
}

#[tokio::test]
async fn revisions_move_with_every_event_of_a_pod_and_with_bookmarks() {
    let mut bench = Bench::all(&[Kind::Pod]).await;
    bench.put_pod("a", "n");
    let first = bench.until_pods(&["a"]).await;
    // A change of nothing that the mesh reads.
    bench.server.put(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a", "namespace": "shop" },
        "spec": { "nodeName": "n", "containers": [{ "name": "c", "env": [] }] },
    }));
    let second = bench.until("moved", |snapshot| snapshot.pods_revision > first.pods_revision).await;
    assert!(first.objects.pods.ptr_eq(&second.objects.pods), "nothing to translate");
    bench.server.put(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "other" } }));
    bench.server.bookmark();
    bench.until("bookmark", |snapshot| snapshot.pods_revision > second.pods_revision).await;
}

#[tokio::test]
async fn reports_and_answers_are_read_as_they_were_written() {
    let mut bench = Bench::all(&[Kind::Pod]).await;
    bench.put_pod("a", "node-1");
    let snapshot = bench.until_pods(&["a"]).await;
    let pod = snapshot.objects.pod("shop", "a").unwrap();
    let uid = pod.metadata.uid.clone().unwrap();
    assert_eq!(report::capture(pod), None);
    let (client, text, name) = (bench.server.client(), String::from, ObjectName::new("shop", "a"));
    let said = |state| CaptureReport {
        pod_uid: uid.clone(),
        namespace: text("shop"),
        name: text("a"),
        node: text("node-1"),
        state,
        generation: 0,
    };
    let mut of = async |state| {
        let generation = cluster::report::report(&client, &said(state)).await.unwrap();
        let expected = CaptureReport { generation, ..said(state) };
        let is_read = |snapshot: &Snapshot| {
            snapshot.objects.pod("shop", "a").and_then(|pod| report::capture(pod)).as_ref() == Some(&expected)
        };
        (expected.clone(), bench.until("report", is_read).await)
    };
    let (captured, _) = of(CaptureState::Captured).await;
    let (leaving, snapshot) = of(CaptureState::Leaving).await;
    assert!(leaving.generation > captured.generation);
    assert_eq!(report::withdrawn(snapshot.objects.pod("shop", "a").unwrap()), None);
    cluster::report::answer(&client, &leaving, true).await.unwrap();
    let uid = PodUid::new(&uid);
    assert!(report::wait_withdrawn(&mut bench.snapshots, &uid, &name, leaving.generation, SOON).await);
    let short = Duration::from_millis(1);
    assert!(!report::wait_withdrawn(&mut bench.snapshots, &uid, &name, leaving.generation + 1, short).await);
    // A new report takes the answer to the one before away.
    cluster::report::report(&client, &said(CaptureState::Captured)).await.unwrap();
    assert!(!bench.server.get("pods", "shop", "a").unwrap().to_string().contains("underpass.dev/Withdrawn"));
    cluster::report::forget(&client, &name, uid.as_str()).await.unwrap();
    let is_gone = |snapshot: &Snapshot| report::capture(snapshot.objects.pod("shop", "a").unwrap()).is_none();
    bench.until("forgotten", is_gone).await;
    // Another pod of the same name is never meant, and whoever waits for one that is gone need not.
    let stale = CaptureReport { pod_uid: text("of-another"), ..said(CaptureState::Captured) };
    assert!(matches!(cluster::report::report(&client, &stale).await, Err(ReportError::Gone)));
    bench.delete_pod("a");
    assert!(report::wait_withdrawn(&mut bench.snapshots, &uid, &name, 1, SOON).await);
    cluster::report::forget(&client, &name, uid.as_str()).await.unwrap();
}

#[tokio::test]
async fn network_policies_of_any_kind_are_noticed_and_nothing_unknown_counts_as_absent() {
    let server = FakeApiServer::start().await.unwrap();
    server.tell_kind("networking.k8s.io", "NetworkPolicy", "networkpolicies");
    server.tell_kind("cilium.io", "CiliumNetworkPolicy", "ciliumnetworkpolicies");
    let (mut snapshots, task) = cluster::watch(&server.client(), vec![Interest::all(Kind::Node)]);
    let shutdown = Shutdown::new();
    let _running = Stop(shutdown.clone());
    tokio::spawn(task.with_network_policies(&server.client()).run(shutdown));
    let mut until = async |expected: &str| {
        let found = time::timeout(
            SOON,
            snapshots.wait_for(|snapshot| snapshot.network_policies.to_string().contains(expected)),
        );
        assert!(found.await.is_ok(), "{expected}: {:?}", snapshots.borrow().network_policies);
    };
    until(&NetworkPolicies::Absent.to_string()).await;
    server.put(json!({
        "apiVersion": "cilium.io/v1", "kind": "CiliumNetworkPolicy", "metadata": {"name": "one", "namespace": "a"},
    }));
    until("some: CiliumNetworkPolicy.cilium.io").await;
    assert!(server.delete("ciliumnetworkpolicies", "a", "one"));
    until(&NetworkPolicies::Absent.to_string()).await;
    server.refuse("networkpolicies", Some(403));
    until("unknown: a right is missing").await;
}
