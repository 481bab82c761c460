//! The operator on an API server, whole, as node proxies, agents and people see it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail like the tests themselves"
)]

use std::{fs, path::PathBuf};

use clap::Parser as _;
use serde_json::{Value, json};
use underpass_discovery::{Mesh, View};
use underpass_model::{Tunnel, Workload, WorkloadUid};
use underpass_objects::{CaptureReport, CaptureState, ObjectName, cluster::report, testing::FakeApiServer};
use underpass_operator::{
    app::{self, Running},
    config::Config,
};
use underpass_runtime::{Shutdown, admin::Readiness};

mod support;

use support::{EndsWithTest, eventually, see};

/// An API server and what operators have in files.
struct Bench {
    server: FakeApiServer,
    home: tempfile::TempDir,
}

/// One operator.
struct Operator {
    home: PathBuf,
    running: Running,
    readiness: Readiness,
    shutdown: EndsWithTest,
}

impl Bench {
    async fn new() -> Self {
        let (server, home) = (FakeApiServer::start().await.unwrap(), tempfile::tempdir().unwrap());
        let kubeconfig = format!(
            "{{apiVersion: v1, kind: Config, current-context: a, clusters: [{{name: a, cluster: {{server: 'http://{}'}}}}],
              contexts: [{{name: a, context: {{cluster: a, user: a}}}}], users: [{{name: a, user: {{}}}}]}}",
            server.address()
        );
        fs::write(home.path().join("kubeconfig"), kubeconfig).unwrap();
        server.on_create("tokenreviews", |mut review| {
            let token = review["spec"]["token"].as_str().unwrap().to_owned();
            let node = token.strip_prefix("token-of-").and_then(|rest| rest.strip_suffix("-for-tests"));
            review["status"] = match node {
                Some(node) => json!({
                    "authenticated": true, "audiences": review["spec"]["audiences"],
                    "user": {
                        "username": "system:serviceaccount:underpass-system:underpass-nodeproxy",
                        "extra": {
                            "authentication.kubernetes.io/node-name": [node],
                            "authentication.kubernetes.io/pod-name": [format!("proxy-of-{node}")],
                            "authentication.kubernetes.io/pod-uid": [format!("uid-of-{node}")],
                        },
                    },
                }),
                None => json!({ "authenticated": false }),
            };
            review["metadata"] = json!({ "generateName": "review-" });
            review
        });
        Self { server, home }
    }

    async fn operator(&self, name: &str) -> Operator {
        let operator = self.starting(name).await;
        // As node proxies have it: from the ConfigMap, which the one that leads writes.
        eventually("the roots are told", async || self.roots().is_some()).await;
        fs::write(operator.home.join("state/root.pem"), self.roots().unwrap()).unwrap();
        operator
    }

    async fn starting(&self, name: &str) -> Operator {
        let home = self.home.path().join(name);
        fs::create_dir_all(home.join("tokens")).unwrap();
        fs::create_dir_all(home.join("state")).unwrap();
        for node in ["node-1", "node-2"] {
            fs::write(home.join("tokens").join(node), format!("token-of-{node}-for-tests")).unwrap();
        }
        let text = |path: PathBuf| path.into_os_string().into_string().unwrap();
        let config = Config::try_parse_from([
            "underpass-operator",
            "--kubeconfig",
            &text(self.home.path().join("kubeconfig")),
            "--instance",
            name,
            "--listen",
            "127.0.0.1:0",
        ]);
        let (readiness, shutdown) = (Readiness::default(), Shutdown::new());
        let running = app::start(&config.unwrap(), &readiness, &shutdown).await.unwrap();
        Operator { home, running, readiness, shutdown: EndsWithTest(shutdown) }
    }

    fn put_pod(&self, name: &str, node: &str, address: &str) {
        self.server.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "shop", "uid": name, "labels": { "app": name } },
            "spec": { "nodeName": node, "containers": [] },
            "status": { "podIP": address, "conditions": [{ "type": "Ready", "status": "True" }] },
        }));
    }

    /// What node proxies are told to trust.
    fn roots(&self) -> Option<String> {
        let map = self.server.get("configmaps", "underpass-system", "underpass-root")?;
        map["data"]["root.pem"].as_str().map(str::to_owned)
    }

    async fn report(&self, name: &str, state: CaptureState) {
        let text = String::from;
        let said = CaptureReport {
            pod_uid: text(name),
            namespace: text("shop"),
            name: text(name),
            node: text("node-1"),
            state,
            generation: 0,
        };
        report::report(&self.server.client(), &said).await.unwrap();
    }

    /// A condition of an object: its status and reason.
    fn condition(&self, plural: &str, name: &str, of_type: &str) -> Option<(String, String)> {
        let object = self.server.get(plural, "shop", name)?;
        let conditions = object.pointer("/status/conditions")?.as_array()?.clone();
        let condition = conditions.into_iter().find(|condition| condition["type"] == of_type)?;
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Some((text(&condition["status"]), text(&condition["reason"])))
    }
}

impl Operator {
    fn subscribe(&self, node: &str) -> Mesh {
        support::subscribe(support::control(&self.running, &self.home, node), node, &self.shutdown)
    }
}

fn workload(view: &View, name: &str) -> Option<Workload> {
    view.workload(&WorkloadUid::of_pod("Kubernetes", "shop", name)).map(|found| Workload::clone(found))
}

fn tunnel(view: &View, name: &str) -> Option<Tunnel> {
    workload(view, name).map(|workload| workload.tunnel)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_and_what_their_agents_report_become_the_mesh() {
    let mut bench = Bench::new().await;
    bench.put_pod("web", "node-1", "10.1.0.1");
    let operator = bench.operator("first").await;
    let mesh = operator.subscribe("node-1");
    let view = see(&mesh, "web", |view| workload(view, "web").is_some()).await;
    assert_eq!(tunnel(&view, "web"), Some(Tunnel::None));
    bench.report("web", CaptureState::Captured).await;
    see(&mesh, "captured", |view| tunnel(view, "web") == Some(Tunnel::Hbone)).await;
    // The mesh goes on while the API server is away, and catches up.
    bench.server.stop().await;
    bench.put_pod("late", "node-1", "10.1.0.2");
    bench.server.start_again().await.unwrap();
    see(&mesh, "late", |view| workload(view, "late").is_some() && tunnel(view, "web") == Some(Tunnel::Hbone)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_served_before_everything_is_known() {
    let bench = Bench::new().await;
    bench.put_pod("web", "node-1", "10.1.0.1");
    bench.server.refuse("endpointslices", Some(403));
    bench.server.refuse("authorizationpolicies", Some(404));
    let operator = bench.operator("first").await;
    let mut objects = operator.running.objects.clone();
    objects.wait_for(|snapshot| snapshot.unlisted().count() == 1 && snapshot.problems.len() == 2).await.unwrap();
    eventually("readiness says what is missing", async || {
        operator.readiness.missing() == ["mesh", "objects of EndpointSlice"]
    })
    .await;
    assert_eq!(operator.running.publisher.version(), 0, "nothing is published");
    bench.server.refuse("endpointslices", None);
    // A kind that is not installed need not be waited for.
    let mesh = operator.subscribe("node-1");
    see(&mesh, "web", |view| workload(view, "web").is_some()).await;
    eventually("ready", async || operator.readiness.missing().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_may_leave_when_the_subscribers_of_all_operators_know() {
    let bench = Bench::new().await;
    bench.put_pod("web", "node-1", "10.1.0.1");
    let (first, second) = (bench.operator("first").await, bench.operator("second").await);
    let (one, two) = (first.subscribe("node-1"), second.subscribe("node-2"));
    bench.report("web", CaptureState::Captured).await;
    for mesh in [&one, &two] {
        see(mesh, "captured", |view| tunnel(view, "web") == Some(Tunnel::Hbone)).await;
    }
    bench.report("web", CaptureState::Leaving).await;
    eventually("answered", async || bench.condition("pods", "web", "underpass.dev/Withdrawn").is_some()).await;
    let answer = bench.condition("pods", "web", "underpass.dev/Withdrawn");
    assert_eq!(answer, Some(("True".into(), "Acknowledged".into())));
    for mesh in [&one, &two] {
        assert_eq!(tunnel(&mesh.view(), "web"), Some(Tunnel::None), "it was answered after they knew");
    }
    let members = bench.server.all("leases");
    assert_eq!(members.len(), 3, "the lease and two members: {members:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_are_told_what_became_of_their_objects() {
    let bench = Bench::new().await;
    bench.put_pod("web", "node-1", "10.1.0.1");
    bench.server.put_yaml(
        "{apiVersion: underpass.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {name: good, namespace: shop},
          spec: {targetRefs: [{kind: Pod}]}}
---
{apiVersion: underpass.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {name: l7, namespace: shop},
 spec: {targetRefs: [{kind: Pod}], enforcementLevel: Application}}
---
{apiVersion: underpass.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {name: odd, namespace: shop},
 spec: {targetRefs: [{kind: Pod}], fromTheFuture: 1}}
---
{apiVersion: underpass.dev/v1alpha1, kind: MeshTLSMode, metadata: {name: mode, namespace: shop}, spec: {mode: STRICT}}
",
    );
    let operator = bench.operator("first").await;
    let mesh = operator.subscribe("node-1");
    see(&mesh, "web", |view| workload(view, "web").is_some()).await;
    let table = [
        ("authorizationpolicies", "good", "True", "Accepted"),
        ("authorizationpolicies", "l7", "False", "NeedsWaypoint"),
        ("authorizationpolicies", "odd", "False", "Invalid"),
        ("meshtlsmodes", "mode", "True", "Accepted"),
    ];
    for (plural, name, status, reason) in table {
        let expected = Some((status.to_owned(), reason.to_owned()));
        eventually(name, async || bench.condition(plural, name, "Accepted") == expected).await;
        let programmed = Some(("True".to_owned(), "Programmed".to_owned()));
        eventually(name, async || bench.condition(plural, name, "Programmed") == programmed).await;
        let object = bench.server.get(plural, "shop", name).unwrap();
        assert_eq!(object["status"]["observedGeneration"], 1, "{object:#}");
    }
    // Each was written, and then there is nothing left to write.
    let patches = || bench.server.requests().iter().filter(|request| request.contains("/status?")).count();
    let written = patches();
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(patches(), written);
    // A change is told as one.
    bench.server.put_yaml(
        "{apiVersion: underpass.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {name: l7, namespace: shop},
          spec: {targetRefs: [{kind: Pod}]}}",
    );
    let accepted = Some(("True".to_owned(), "Accepted".to_owned()));
    eventually("mended", async || bench.condition("authorizationpolicies", "l7", "Accepted") == accepted).await;
    let object = bench.server.get("authorizationpolicies", "shop", "l7").unwrap();
    assert_eq!(object["status"]["observedGeneration"], 2, "{object:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_hear_what_happens_to_their_namespace() {
    let bench = Bench::new().await;
    let label = |labels: Value| {
        bench.server.put(json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop", "uid": "uid-of-shop", "labels": labels },
        }));
    };
    label(json!({ "underpass.dev/mesh": "enabled" }));
    bench.put_pod("web", "node-1", "10.1.0.1");
    let _operator = bench.operator("first").await;
    // By name, which is by time.
    let reasons = || -> Vec<String> {
        let events = bench.server.all("events").into_iter();
        let of_shop = events.filter(|event| {
            let about = &event["involvedObject"];
            event["metadata"]["namespace"] == "shop" && about["kind"] == "Namespace" && about["uid"] == "uid-of-shop"
        });
        of_shop.map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
    };
    eventually("it begins", async || reasons() == ["MeshEnrolling"]).await;
    bench.report("web", CaptureState::Captured).await;
    eventually("it is complete", async || reasons() == ["MeshEnrolling", "MeshEnrolled"]).await;
    label(json!({}));
    eventually("it leaves", async || reasons().last().is_some_and(|last| last == "MeshLeaving")).await;
    report::forget(&bench.server.client(), &ObjectName::new("shop", "web"), "web").await.unwrap();
    eventually("it has left", async || reasons().len() == 4 && reasons().last().unwrap() == "MeshLeft").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_opened_when_its_agent_is_ready() {
    let bench = Bench::new().await;
    bench.server.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1" },
        "spec": { "podCIDR": "10.1.0.0/24", "taints": [
            { "key": "underpass.dev/agent-not-ready", "effect": "NoSchedule" },
            { "key": "gpu", "effect": "NoSchedule" },
        ] },
    }));
    let agent = |is_ready: &str| {
        bench.server.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "agent", "namespace": "underpass-system", "labels": { "app.kubernetes.io/name": "underpass-agent" } },
            "spec": { "nodeName": "node-1", "containers": [] },
            "status": { "conditions": [{ "type": "Ready", "status": is_ready }] },
        }));
    };
    agent("False");
    let operator = bench.operator("first").await;
    eventually("ready", async || operator.readiness.missing().is_empty()).await;
    let spec = || bench.server.get("nodes", "", "node-1").unwrap()["spec"].clone();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(spec()["taints"].as_array().unwrap().len(), 2, "nobody is ready yet");
    agent("True");
    let open = json!({ "podCIDR": "10.1.0.0/24", "taints": [{ "key": "gpu", "effect": "NoSchedule" }] });
    eventually("open", async || spec() == open).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_in_a_namespace_is_let_be_until_the_mesh_is_known() {
    let bench = Bench::new().await;
    bench.server.put(json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": "shop", "labels": { "underpass.dev/mesh": "enabled" } },
        "status": { "conditions": [{
            "type": "underpass.dev/Enrolled", "status": "True", "reason": "AllCaptured", "message": "0 of 0 pods captured",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }] },
    }));
    // Everything but these: nothing is published, and nothing counted.
    bench.server.refuse("endpointslices", Some(403));
    let lease = || bench.server.get("leases", "underpass-system", "underpass-operator");
    // Somebody else leads until the namespaces are known here.
    bench.server.put(json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": "underpass-operator", "namespace": "underpass-system" },
        "spec": { "holderIdentity": "other", "leaseDurationSeconds": 15 },
    }));
    let operator = bench.starting("first").await;
    let mut objects = operator.running.objects.clone();
    objects.wait_for(|snapshot| !snapshot.objects.namespaces.is_empty()).await.unwrap();
    bench.server.delete("leases", "underpass-system", "underpass-operator");
    eventually("it leads", async || lease().is_some()).await;
    let writes = || bench.server.requests().iter().filter(|request| request.contains("namespaces/shop/status")).count();
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(writes(), 0, "an operator that knows nothing said something");
    bench.server.refuse("endpointslices", None);
    eventually("ready", async || operator.readiness.missing().is_empty()).await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!((writes(), bench.server.all("events").len()), (0, 0), "it stood there already");
}
