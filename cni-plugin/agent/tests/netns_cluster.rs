//! The agent on a cluster: objects and reports by an API server, here one in memory; the pod's namespace is a real one.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests"
)]

#[expect(dead_code, reason = "other tests use more of it")]
#[path = "support/agent.rs"]
mod agent;
#[expect(dead_code, reason = "the tests of the rules use more of it")]
#[path = "support/world.rs"]
mod world;

use std::{fs, time::Duration};

use agent::{Agent, Event, NODE, eventually, rules};
use serde_json::{Value, json};
use underpass_agent::redirect::Phase;
use underpass_enrolment::{node::ReleaseReason, plugin::PluginResponse};
use underpass_model::names::CAPTURED_CONDITION;
use underpass_objects::{cluster, report, testing::FakeApiServer};
use world::World;

/// A pod on our node, by the name of its namespace's label.
fn pod(world: &World, enrolled: bool, address: bool) -> Value {
    let label = if enrolled { "enabled" } else { "disabled" };
    let addresses = if address { json!([{ "ip": world.pod.v4.to_string() }]) } else { json!([]) };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "web", "namespace": "shop", "uid": "uid-web", "labels": { "underpass.dev/mesh": label } },
        "spec": { "nodeName": NODE, "serviceAccountName": "account", "containers": [] },
        "status": { "phase": "Running", "podIPs": addresses },
    })
}

async fn server() -> FakeApiServer {
    let server = FakeApiServer::start().await.unwrap();
    server.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } }));
    server
}

/// The status of the pod's condition.
fn captured(server: &FakeApiServer) -> Option<String> {
    let pod = server.get("pods", "shop", "web")?;
    let conditions = pod["status"]["conditions"].as_array()?.clone();
    let condition = conditions.into_iter().find(|condition| condition["type"] == CAPTURED_CONDITION)?;
    Some(condition["status"].as_str()?.to_owned())
}

const CHAIN: &str = r#"{ "cniVersion": "1.0.0", "name": "pods", "plugins": [ { "type": "bridge" } ] }"#;

#[tokio::test]
async fn a_pod_that_was_there_first_is_captured_reported_told_of_and_let_go() {
    let (world, server) = (World::new(), server().await);
    let mut agent = Agent::on_cluster(server.address());
    server.put(pod(&world, true, true));
    agent.start().await;
    let mut proxy = agent.proxy().await;
    proxy.until(Event::Add("uid-web".into())).await;
    eventually("reported", || captured(&server).as_deref() == Some("True")).await;
    assert!(rules(&world.pod, Phase::Captured));
    let told = || server.all("events").iter().any(|event| event["reason"] == "MeshCaptured");
    eventually("told", told).await;
    let asks_for_own_pods = |request: &String| request.contains("/pods?") && request.contains(NODE);
    assert!(server.requests().iter().any(asks_for_own_pods), "no other node's pods");

    let mut leaving = server.get("pods", "shop", "web").unwrap();
    leaving["metadata"]["labels"]["underpass.dev/mesh"] = json!("disabled");
    server.put(leaving);
    eventually("leaving", || captured(&server).as_deref() == Some("False")).await;
    assert!(rules(&world.pod, Phase::Captured), "captured until peers know");
    let object = serde_json::from_value(server.get("pods", "shop", "web").unwrap()).unwrap();
    let said = report::capture(&object).unwrap();
    cluster::report::answer(&server.client(), &said, true).await.unwrap();
    proxy.until(Event::Release("uid-web".into(), ReleaseReason::Unenrolled)).await;
    proxy.live("web", 0).await;
    eventually("out", || captured(&server).is_none()).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_pod_starts_without_waiting_for_the_api_server() {
    let (world, server) = (World::new(), server().await);
    let mut agent = Agent::on_cluster(server.address());
    server.put(pod(&world, true, false));
    agent.start().await;
    let mut proxy = agent.proxy().await;
    proxy.until(Event::SnapshotSent).await;
    let watches = |request: &String| request.contains("/pods?") && request.contains("watch");
    eventually("the object is known", || server.requests().iter().any(watches)).await;
    server.refuse("pods", Some(500));
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true));
    assert!(rules(&world.pod, Phase::Captured));
    assert_eq!(captured(&server), None);
    server.refuse("pods", None);
    eventually("reported later", || captured(&server).as_deref() == Some("True")).await;
    agent.stop().await;
}

#[tokio::test]
async fn an_agent_that_is_replaced_leaves_everything_and_one_that_is_removed_nothing() {
    let (world, server) = (World::new(), server().await);
    let mut agent = Agent::on_cluster(server.address());
    // No operator answers here.
    agent.limits.withdrawn = Duration::from_millis(100);
    fs::write(agent.path("node/net.d/10-pods.conflist"), CHAIN).unwrap();
    let agents = json!({ "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": { "name": "underpass-agent", "namespace": "underpass-system" } });
    server.put(agents);
    server.put(pod(&world, true, true));
    agent.start().await;
    let mut proxy = agent.proxy().await;
    proxy.until(Event::Add("uid-web".into())).await;
    eventually("captured", || captured(&server).as_deref() == Some("True")).await;
    let chain = agent.path("node/net.d/10-pods.conflist");
    let chained = || fs::read_to_string(&chain).unwrap().contains("underpass-cni");
    eventually("chained", chained).await;

    agent.stop().await;
    assert!(chained() && rules(&world.pod, Phase::Captured), "its successor takes over");
    drop(proxy);
    agent.start().await;
    let mut proxy = agent.proxy().await;

    server.delete("daemonsets", "underpass-system", "underpass-agent");
    let last_connection_ends = async {
        proxy.until(Event::Release("uid-web".into(), ReleaseReason::Unenrolled)).await;
        proxy.live("web", 0).await;
    };
    tokio::join!(agent.stop(), last_connection_ends);
    assert_eq!(fs::read_to_string(&chain).unwrap(), CHAIN);
    assert!(!agent.path("node/bin/underpass-cni").exists());
    assert!(!rules(&world.pod, Phase::Captured) && !rules(&world.pod, Phase::Draining));
    assert!(!agent.path("lib").exists() && !agent.path("run").exists());
}
