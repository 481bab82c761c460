//! The agent whole: plugin, objects and node proxies on one side, real network namespaces on the other.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests"
)]

#[expect(dead_code, reason = "the tests on a cluster use more of it")]
#[path = "support/agent.rs"]
mod agent;
#[expect(dead_code, reason = "the tests of the rules use more of it")]
#[path = "support/world.rs"]
mod world;

use std::{net::TcpListener, os::fd::AsFd as _, process::Command as Process, time::Duration};

use agent::{Agent, Event, Manner, ObjectOf, Proxy, attachment, eventually, object, request, rules};
use tokio::time::Instant;
use underpass_agent::redirect::Phase;
use underpass_enrolment::{
    node::{Origin, ReleaseReason, ToAgent},
    plugin::{Command, Link, PluginRequest, PluginResponse},
};
use underpass_model::{AddressPair, PodUid};
use underpass_objects::CaptureState;
use world::World;

fn add(uid: &str) -> Event {
    Event::Add(uid.to_owned())
}

fn del(uid: &str) -> Event {
    Event::Del(uid.to_owned())
}

fn release(uid: &str, reason: ReleaseReason) -> Event {
    Event::Release(uid.to_owned(), reason)
}

fn link(response: &PluginResponse) -> Option<Link> {
    response.error.as_ref().map(|failure| failure.link)
}

#[tokio::test]
async fn a_pod_starts_captured_once_listeners_certificate_and_rules_stand() {
    let (world, agent) = (World::new(), Agent::started().await);
    agent.objects(&[object("web", true)]);
    let mut proxy = agent.proxy().await;
    proxy.until(Event::SnapshotSent).await;
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true));
    assert!(rules(&world.pod, Phase::Captured));
    assert_eq!(agent.reported("uid-web"), Some(CaptureState::Captured));
    assert_eq!(proxy.event().await, add("uid-web"));
    assert_eq!(agent.check("web", &world.pod).await, PluginResponse::done(true));
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true), "asked again");
}

#[tokio::test]
async fn a_pod_outside_the_mesh_starts_at_once_also_without_a_proxy() {
    let (world, agent) = (World::new(), Agent::started().await);
    agent.objects(&[object("web", false)]);
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(false));
    assert_eq!(agent.check("web", &world.pod).await, PluginResponse::done(false));
    assert_eq!(agent.delete("web").await, PluginResponse::done(false));
    let system = PluginRequest {
        pod: Some(underpass_enrolment::plugin::Pod {
            namespace: "kube-system".into(),
            name: "proxy".into(),
            uid: "uid-proxy".into(),
        }),
        ..request(Command::Add, "proxy", &world.pod.path(), &[])
    };
    assert_eq!(agent.plugin(&system).await, PluginResponse::done(false));
}

#[tokio::test]
async fn an_add_that_cannot_succeed_names_the_missing_link_in_time() {
    let (world, agent) = (World::new(), Agent::started().await);
    let bad = "underpass.dev/exclude-inbound-ports: http";
    let misnamed = ObjectOf { annotations: bad, ..object("misnamed", true) };
    agent.objects(&[object("web", true), object("refused", true), object("bare", true), misnamed]);
    let begun = Instant::now();
    let without = agent.add("web", &world.pod).await;
    assert_eq!(link(&without), Some(Link::Proxy), "{without:?}");
    assert!(begun.elapsed() < agent.limits.enrol * 2);
    agent.delete("web").await;

    let manner = Manner { refuses: ["uid-refused"].into(), lacks: ["uid-bare"].into(), ..Manner::default() };
    let _proxy = Proxy::connect(&agent, manner).await;
    for (name, missing, words) in [
        ("refused", Link::Listeners, "no room"),
        ("bare", Link::Certificate, "the operator is away"),
        ("misnamed", Link::Rules, "underpass.dev/exclude-inbound-ports"),
        ("unknown", Link::Pod, "object"),
    ] {
        let response = agent.add(name, &world.pod).await;
        assert_eq!(link(&response), Some(missing), "{response:?}");
        assert!(response.error.unwrap().message.contains(words), "{name}");
        assert_eq!(agent.reported(&format!("uid-{name}")), None);
        assert!(!rules(&world.pod, Phase::Captured));
        agent.delete(name).await;
    }
    let gone = agent.plugin(&request(Command::Add, "web", "/var/run/netns/upa-nowhere".as_ref(), &[])).await;
    assert_eq!(link(&gone), Some(Link::Netns));
}

#[tokio::test]
async fn a_proxy_that_never_acknowledges_is_named_too() {
    let (world, agent) = (World::new(), Agent::started().await);
    agent.objects(&[object("web", true)]);
    let _proxy = Proxy::connect(&agent, Manner { silent: true, ..Manner::default() }).await;
    assert_eq!(link(&agent.add("web", &world.pod).await), Some(Link::Listeners));
}

#[tokio::test]
async fn a_bad_pod_hurts_no_other() {
    let (world, other, agent) = (World::new(), World::new(), Agent::started().await);
    agent.objects(&[object("bad", true), object("web", true)]);
    let manner = Manner { refuses: ["uid-bad"].into(), ..Manner::default() };
    let _proxy = Proxy::connect(&agent, manner).await;
    let (bad, good) = tokio::join!(agent.add("bad", &other.pod), agent.add("web", &world.pod));
    assert_eq!(link(&bad), Some(Link::Listeners));
    assert_eq!(good, PluginResponse::done(true));
}

#[tokio::test]
async fn a_running_pod_is_enrolled_and_let_go_when_its_label_changes() {
    let (world, agent) = (World::new(), Agent::started().await);
    let running = |enrolled| ObjectOf { address: Some(world.pod.v4), ..object("web", enrolled) };
    agent.objects(&[running(false)]);
    let mut proxy = agent.proxy().await;
    proxy.until(Event::SnapshotSent).await;
    // It was there before the agent: no ADD, its namespace is found by its address.
    agent.objects(&[running(true)]);
    proxy.until(add("uid-web")).await;
    eventually("reported", || agent.reported("uid-web") == Some(CaptureState::Captured)).await;
    assert!(rules(&world.pod, Phase::Captured));

    agent.objects(&[running(false)]);
    eventually("leaving", || agent.reported("uid-web") == Some(CaptureState::Leaving)).await;
    assert!(rules(&world.pod, Phase::Captured), "captured until peers know");
    proxy.hears_nothing().await;
    let generation = agent.status().read().unwrap().reports[&PodUid::new("uid-web")].generation;
    agent.status().answer_withdrawn(&PodUid::new("uid-web"), generation).unwrap();

    proxy.until(release("uid-web", ReleaseReason::Unenrolled)).await;
    assert!(rules(&world.pod, Phase::Draining));
    proxy.live("web", 2).await;
    proxy.live("web", 1).await;
    // Nothing comes of it: a question that is answered later shows that the agent has heard.
    probe(&agent, &mut proxy, 7).await;
    assert!(rules(&world.pod, Phase::Draining), "a captured connection lives");
    world.pod.nft("flush chain inet underpass mark_output");
    eventually("mended", || rules(&world.pod, Phase::Draining)).await;
    proxy.live("web", 0).await;
    proxy.until(del("uid-web")).await;
    eventually("forgotten", || agent.reported("uid-web").is_none()).await;
    assert!(!rules(&world.pod, Phase::Draining));

    agent.objects(&[running(true)]);
    proxy.until(add("uid-web")).await;
    eventually("captured again", || agent.reported("uid-web") == Some(CaptureState::Captured)).await;
}

#[tokio::test]
async fn a_leaving_pod_can_change_its_mind() {
    let (world, agent) = (World::new(), Agent::started().await);
    agent.objects(&[object("web", true)]);
    let mut proxy = agent.proxy().await;
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true));
    agent.objects(&[object("web", false)]);
    eventually("leaving", || agent.reported("uid-web") == Some(CaptureState::Leaving)).await;
    let generation = agent.status().read().unwrap().reports[&PodUid::new("uid-web")].generation;
    agent.status().answer_withdrawn(&PodUid::new("uid-web"), generation).unwrap();
    proxy.until(release("uid-web", ReleaseReason::Unenrolled)).await;
    proxy.live("web", 1).await;
    agent.objects(&[object("web", true)]);
    proxy.until(add("uid-web")).await;
    eventually("captured", || agent.reported("uid-web") == Some(CaptureState::Captured)).await;
    assert!(rules(&world.pod, Phase::Captured));
}

#[tokio::test]
async fn an_operator_that_does_not_answer_holds_nobody_for_ever() {
    let (world, mut agent) = (World::new(), Agent::stopped());
    agent.limits.withdrawn = Duration::from_millis(100);
    agent.start().await;
    agent.objects(&[object("web", true)]);
    // A proxy without node.sock has no farewell: its acknowledgement is all there is.
    let mut proxy = Proxy::connect(&agent, Manner { without_node: true, ..Manner::default() }).await;
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true));
    agent.objects(&[object("web", false)]);
    proxy.until(del("uid-web")).await;
    eventually("forgotten", || agent.reported("uid-web").is_none()).await;
}

#[tokio::test]
async fn a_restarted_agent_names_its_pods_and_gets_their_listeners_back() {
    let (world, mut agent) = (World::new(), Agent::started().await);
    agent.objects(&[object("web", true)]);
    let mut proxy = agent.proxy().await;
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true));
    proxy.until(add("uid-web")).await;
    agent.stop().await;
    proxy.dies().await;
    agent.start().await;

    let mut survivor = agent.proxy().await;
    assert_eq!(survivor.given, Vec::<String>::new(), "the agent has lost the descriptors");
    assert_eq!(survivor.event().await, add("uid-web"));
    assert_eq!(survivor.event().await, Event::SnapshotSent);
    // Listeners, so that the next proxy takes over what this one made.
    let mut next = agent.proxy().await;
    assert_eq!(next.given, ["uid-web"]);
    assert_eq!(next.event().await, add("uid-web"));
    assert_eq!(agent.delete("web").await, PluginResponse::done(false));
    survivor.until(del("uid-web")).await;
    next.until(del("uid-web")).await;
}

#[tokio::test]
async fn what_changed_while_the_agent_was_away_is_made_up_for() {
    let (world, gone, mut agent) = (World::new(), World::new(), Agent::started().await);
    agent.objects(&[object("web", true), object("gone", true)]);
    let proxy = agent.proxy().await;
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true));
    assert_eq!(agent.add("gone", &gone.pod).await, PluginResponse::done(true));
    agent.stop().await;
    proxy.dies().await;
    agent.objects(&[object("web", true)]);
    world.pod.nft("delete table inet underpass");
    agent.start().await;
    let mut proxy = agent.proxy().await;
    eventually("mended", || rules(&world.pod, Phase::Captured)).await;
    proxy.until(del("uid-gone")).await;
    eventually("forgotten", || agent.reported("uid-gone").is_none()).await;
}

#[tokio::test]
async fn of_two_proxies_the_newest_serves_and_both_are_told_of_the_end() {
    let (world, other, agent) = (World::new(), World::new(), Agent::started().await);
    agent.objects(&[object("web", true), object("late", true)]);
    let mut old = agent.proxy().await;
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true));
    old.until(add("uid-web")).await;
    let mut new = agent.proxy().await;
    assert_eq!(new.given, ["uid-web"], "it takes over the listeners");
    assert_eq!(new.event().await, add("uid-web"));
    assert_eq!(new.event().await, Event::SnapshotSent);

    assert_eq!(agent.add("late", &other.pod).await, PluginResponse::done(true));
    assert_eq!(new.event().await, add("uid-late"));
    old.hears_nothing().await;
    assert_eq!(agent.delete("web").await, PluginResponse::done(false));
    for proxy in [&mut old, &mut new] {
        proxy.until(release("uid-web", ReleaseReason::Deleted)).await;
        proxy.until(del("uid-web")).await;
    }
}

#[tokio::test]
async fn what_only_a_dead_proxy_served_goes_to_the_one_that_is_left() {
    let (world, agent) = (World::new(), Agent::started().await);
    agent.objects(&[object("web", true)]);
    let mut old = agent.proxy().await;
    old.until(Event::SnapshotSent).await;
    let new = agent.proxy().await;
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true));
    new.dies().await;
    // It has to connect again, because only a greeting carries listeners.
    old.ended().await;
    let mut old = agent.proxy().await;
    assert_eq!(old.given, ["uid-web"]);
    assert_eq!(old.event().await, add("uid-web"));
    assert_eq!(old.event().await, Event::SnapshotSent);
}

#[tokio::test]
async fn a_deleted_pod_is_released_and_nothing_of_it_stays() {
    let (world, agent) = (World::new(), Agent::started().await);
    agent.objects(&[object("web", true)]);
    let mut proxy = agent.proxy().await;
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true));
    let older = PluginRequest { container_id: "older".into(), ..request(Command::Del, "web", "".as_ref(), &[]) };
    agent.plugin(&older).await;
    assert_eq!(
        agent.check("web", &world.pod).await,
        PluginResponse::done(true),
        "another sandbox's end is not its own"
    );
    assert_eq!(agent.delete("web").await, PluginResponse::done(false));
    proxy.until(release("uid-web", ReleaseReason::Deleted)).await;
    proxy.until(del("uid-web")).await;
    assert_eq!(agent.reported("uid-web"), None);
    assert_eq!(agent.proxy().await.given, Vec::<String>::new());
    assert_eq!(agent.delete("web").await, PluginResponse::done(false), "twice is fine");
    // That it had its end is known until its object goes.
    agent.objects(&[]);
    let memory = || std::fs::read_to_string(agent.path("state/pods.json")).unwrap();
    eventually("forgotten", || !memory().contains("uid-web")).await;
}

#[tokio::test]
async fn a_proxy_that_holds_on_cannot_hold_up_the_end() {
    let (world, agent) = (World::new(), Agent::started().await);
    agent.objects(&[object("web", true)]);
    let _proxy = Proxy::connect(&agent, Manner { holds_on: true, ..Manner::default() }).await;
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true));
    let begun = Instant::now();
    assert_eq!(agent.delete("web").await, PluginResponse::done(false));
    assert!(begun.elapsed() < agent.limits.farewell + Duration::from_millis(500), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_new_sandbox_of_the_same_pod_replaces_the_old_one() {
    let (world, next, agent) = (World::new(), World::new(), Agent::started().await);
    agent.objects(&[object("web", true)]);
    let mut proxy = agent.proxy().await;
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true));
    let second = PluginRequest {
        container_id: "second".into(),
        ..request(Command::Add, "web", &next.pod.path(), &next.pod.addresses())
    };
    assert_eq!(agent.plugin(&second).await, PluginResponse::done(true));
    assert!(rules(&next.pod, Phase::Captured));
    proxy.until(del("uid-web")).await;
    proxy.until(add("uid-web")).await;
    // The old one's end comes late and changes nothing.
    agent.delete("web").await;
    let check = PluginRequest { command: Command::Check, ..second };
    assert_eq!(agent.plugin(&check).await, PluginResponse::done(true));
}

#[tokio::test]
async fn a_namespace_that_vanishes_without_a_del_is_given_up() {
    let (world, agent) = (World::new(), Agent::started().await);
    agent.objects(&[object("web", true)]);
    let mut proxy = agent.proxy().await;
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true));
    let deleted = Process::new("ip").args(["netns", "del", &world.pod.name]).status().unwrap();
    assert!(deleted.success());
    proxy.until(del("uid-web")).await;
    eventually("forgotten", || agent.reported("uid-web").is_none()).await;
}

#[tokio::test]
async fn sandboxes_that_the_runtime_no_longer_knows_are_collected() {
    let (world, other, agent) = (World::new(), World::new(), Agent::started().await);
    agent.objects(&[object("web", true), object("stale", true)]);
    let mut proxy = agent.proxy().await;
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true));
    assert_eq!(agent.add("stale", &other.pod).await, PluginResponse::done(true));
    let collect = PluginRequest {
        pod: None,
        valid_attachments: vec![attachment("web")],
        ..request(Command::Gc, "", "".as_ref(), &[])
    };
    assert_eq!(agent.plugin(&collect).await, PluginResponse::done(false));
    proxy.until(del("uid-stale")).await;
    assert_eq!(agent.check("web", &world.pod).await, PluginResponse::done(true));
}

#[tokio::test]
async fn broken_rules_are_mended_and_changed_annotations_written() {
    let (world, agent) = (World::new(), Agent::started().await);
    agent.objects(&[object("web", true)]);
    let _proxy = agent.proxy().await;
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true));
    world.pod.nft("flush chain inet underpass outbound");
    eventually("mended", || rules(&world.pod, Phase::Captured)).await;
    let excluding = "underpass.dev/exclude-outbound-ports: '3306'";
    agent.objects(&[ObjectOf { annotations: excluding, ..object("web", true) }]);
    eventually("rewritten", || !rules(&world.pod, Phase::Captured)).await;
    let wrong = "underpass.dev/exclude-outbound-ports: mysql";
    agent.objects(&[ObjectOf { annotations: wrong, ..object("web", true) }]);
    agent.objects(&[object("web", true)]);
    eventually("as before", || rules(&world.pod, Phase::Captured)).await;
}

#[tokio::test]
async fn the_plugin_finds_the_enrolled_namespaces_on_disk() {
    let agent = Agent::started().await;
    agent.objects(&[]);
    let list = agent.path("lib/enrolled-namespaces");
    eventually("written", || std::fs::read_to_string(&list).is_ok_and(|text| text == "meshed\n")).await;
}

#[tokio::test]
async fn what_is_no_request_gets_an_answer_that_says_so() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let agent = Agent::started().await;
    for nonsense in ["nonsense\n", "{\"version\":99,\"command\":\"ADD\"}\n", "{}\n"] {
        let mut stream = tokio::net::UnixStream::connect(agent.path("run/plugin.sock")).await.unwrap();
        stream.write_all(nonsense.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(link(&PluginResponse::from_line(&answer).unwrap()), Some(Link::Agent));
    }
}

#[tokio::test]
async fn probes_are_told_from_other_connections() {
    let agent = Agent::started().await;
    let mut proxy = agent.proxy().await;
    probe(&agent, &mut proxy, 41).await;
}

#[tokio::test]
async fn a_captured_pod_counts_as_such_only_while_a_proxy_serves_it() {
    let (world, mut agent) = (World::new(), Agent::started().await);
    agent.objects(&[object("web", true)]);
    let proxy = agent.proxy().await;
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true));
    proxy.dies().await;
    assert_eq!(link(&agent.add("web", &world.pod).await), Some(Link::Proxy));

    // As after a reboot: what is remembered is no namespace any more.
    agent.stop().await;
    let state = agent.path("state/pods.json");
    let mut memory: serde_json::Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
    memory["pods"]["uid-web"]["netns"]["inode"] = 1.into();
    memory["pods"]["uid-web"]["addresses"] = serde_json::json!(["192.0.2.77"]);
    std::fs::write(&state, memory.to_string()).unwrap();
    world.pod.nft("delete table inet underpass");
    agent.start().await;
    let silent = Proxy::connect(&agent, Manner { silent: true, ..Manner::default() }).await;
    assert_eq!(link(&agent.add("web", &world.pod).await), Some(Link::Listeners));
    assert_eq!(agent.reported("uid-web"), None, "what stood before the reboot is gone");
    silent.dies().await;
    let _proxy = agent.proxy().await;
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true));
    assert!(rules(&world.pod, Phase::Captured));
}

#[tokio::test]
async fn an_answer_comes_within_what_the_runtime_allows() {
    let (world, agent) = (World::new(), Agent::started().await);
    agent.objects(&[object("web", true)]);
    let _proxy = Proxy::connect(&agent, Manner { silent: true, ..Manner::default() }).await;
    let begun = Instant::now();
    let add = PluginRequest { deadline_ms: 300, ..request(Command::Add, "web", &world.pod.path(), &[]) };
    assert_eq!(link(&agent.plugin(&add).await), Some(Link::Listeners));
    assert!(begun.elapsed() < Duration::from_millis(300), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_pod_from_before_the_agent_ends_with_its_own_sandbox_only() {
    let (world, agent) = (World::new(), Agent::started().await);
    agent.objects(&[ObjectOf { address: Some(world.pod.v4), ..object("web", true) }]);
    let mut proxy = agent.proxy().await;
    eventually("captured", || agent.reported("uid-web") == Some(CaptureState::Captured)).await;
    proxy.until(add("uid-web")).await;
    for netns in [std::path::Path::new(""), &world.outside.path()] {
        agent.plugin(&request(Command::Del, "web", netns, &[])).await;
        assert_eq!(agent.check("web", &world.pod).await, PluginResponse::done(true), "{}", netns.display());
    }
    agent.plugin(&request(Command::Del, "web", &world.pod.path(), &[])).await;
    proxy.until(del("uid-web")).await;
    // It is not found again, though its namespace and address are still there.
    proxy.hears_nothing().await;
    assert_eq!(agent.reported("uid-web"), None);
}

#[tokio::test]
async fn two_pods_never_take_one_namespace() {
    let (world, agent) = (World::new(), Agent::started().await);
    let late = ObjectOf { address: Some(world.pod.v4), ..object("late", true) };
    agent.objects(&[object("web", true), late]);
    let mut proxy = agent.proxy().await;
    // The runtime says whose it is, whatever was found before.
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true));
    let _other = agent.delete("web").await;
    proxy.until(del("uid-web")).await;
    eventually("found", || agent.reported("uid-late") == Some(CaptureState::Captured)).await;
}

#[tokio::test]
async fn a_broken_manifest_at_the_start_takes_nothing_away() {
    let (world, mut agent) = (World::new(), Agent::started().await);
    agent.objects(&[object("web", true)]);
    let proxy = agent.proxy().await;
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true));
    let list = agent.path("lib/enrolled-namespaces");
    eventually("written", || std::fs::read_to_string(&list).is_ok_and(|text| text == "meshed\n")).await;
    agent.stop().await;
    proxy.dies().await;
    std::fs::write(agent.path("objects/all.yaml"), "kind: [").unwrap();
    agent.start().await;
    let mut proxy = agent.proxy().await;
    proxy.until(Event::SnapshotSent).await;
    proxy.hears_nothing().await;
    assert_eq!(agent.reported("uid-web"), Some(CaptureState::Captured));
    assert!(rules(&world.pod, Phase::Captured));
    assert_eq!(std::fs::read_to_string(&list).unwrap(), "meshed\n");
    assert_eq!(link(&agent.add("web", &world.pod).await), Some(Link::Pod), "nobody can say");
    agent.objects(&[]);
    proxy.until(del("uid-web")).await;
}

#[tokio::test]
async fn a_pod_waits_for_the_object_of_its_namespace() {
    let (world, other, agent) = (World::new(), World::new(), Agent::started().await);
    let _proxy = agent.proxy().await;
    let pod = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: later, uid: uid-{name}}}\nspec: {{nodeName: {}, serviceAccountName: account, containers: []}}\n",
            agent::NODE
        )
    };
    let write = |file: &str, text: &str| {
        underpass_objects::files::write(&agent.path(&format!("objects/{file}.yaml")), text.as_bytes(), 0o644).unwrap();
    };
    write("web", &pod("web"));
    let place = |name: &str, place: &world::Place| PluginRequest {
        pod: Some(underpass_enrolment::plugin::Pod {
            namespace: "later".into(),
            name: name.into(),
            uid: String::new(),
        }),
        ..request(Command::Add, name, &place.path(), &place.addresses())
    };
    // Everything can be read, so there is no such namespace.
    eventually_known(&agent, "later", "web").await;
    assert_eq!(agent.plugin(&place("web", &world.pod)).await, PluginResponse::done(false));
    write("late", &pod("late"));
    eventually_known(&agent, "later", "late").await;
    let late = place("late", &other.pod);
    let (answer, ()) = tokio::join!(agent.plugin(&late), async {
        write(
            "namespace",
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: later, labels: {underpass.dev/mesh: enabled}}\n",
        );
    });
    assert_eq!(answer, PluginResponse::done(true));
}

/// Until the agent knows a pod's uid, which the runtime does not say here.
async fn eventually_known(agent: &Agent, namespace: &str, name: &str) {
    let pod = underpass_enrolment::plugin::Pod { namespace: namespace.into(), name: name.into(), uid: String::new() };
    let check = PluginRequest { pod: Some(pod), ..request(Command::Check, name, "".as_ref(), &[]) };
    let deadline = Instant::now() + Duration::from_secs(20);
    while link(&agent.plugin(&check).await).is_some() {
        assert!(Instant::now() < deadline, "{name} is never known");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_proxy_that_is_away_may_still_have_captured_connections() {
    let (world, mut agent) = (World::new(), Agent::stopped());
    agent.limits.absence = Duration::from_secs(20);
    agent.limits.withdrawn = Duration::from_millis(50);
    agent.start().await;
    agent.objects(&[object("web", true)]);
    let mut proxy = agent.proxy().await;
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true));
    agent.objects(&[object("web", false)]);
    proxy.until(release("uid-web", ReleaseReason::Unenrolled)).await;
    proxy.dies().await;
    let mut proxy = agent.proxy().await;
    proxy.until(release("uid-web", ReleaseReason::Unenrolled)).await;
    proxy.live("web", 1).await;
    probe(&agent, &mut proxy, 7).await;
    assert!(rules(&world.pod, Phase::Draining), "nothing is taken away while the proxy is away or busy");
    proxy.live("web", 0).await;
    proxy.until(del("uid-web")).await;
    eventually("forgotten", || agent.reported("uid-web").is_none()).await;
}

#[tokio::test]
async fn a_namespace_that_outlives_its_pods_object_is_left_without_rules() {
    let (world, agent) = (World::new(), Agent::started().await);
    agent.objects(&[object("web", true)]);
    let mut proxy = agent.proxy().await;
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true));
    agent.objects(&[]);
    proxy.until(del("uid-web")).await;
    assert!(!rules(&world.pod, Phase::Captured) && !rules(&world.pod, Phase::Draining));
}

#[tokio::test]
async fn sandboxes_are_told_apart() {
    let (world, agent) = (World::new(), Agent::started().await);
    agent.objects(&[object("web", true)]);
    let mut proxy = agent.proxy().await;
    assert_eq!(agent.add("web", &world.pod).await, PluginResponse::done(true));
    let check = request(Command::Check, "web", &world.pod.path(), &[]);
    let other = PluginRequest { container_id: "other".into(), ..check };
    assert_eq!(link(&agent.plugin(&other).await), Some(Link::Attachment));
    // A runtime that does not say which pod ends.
    let nameless = PluginRequest { pod: None, ..request(Command::Del, "web", "".as_ref(), &[]) };
    assert_eq!(agent.plugin(&nameless).await, PluginResponse::done(false));
    proxy.until(del("uid-web")).await;
}

/// Asks who made a connection of this very process, once as nobody and once as the kubelet.
async fn probe(agent: &Agent, proxy: &mut Proxy, id: u64) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let connection = AddressPair { client: client.local_addr().unwrap(), server: listener.local_addr().unwrap() };
    for (pid, origin) in [(1, Origin::Host), (std::process::id(), Origin::Kubelet)] {
        std::fs::write(agent.path("kubelet.pid"), pid.to_string()).unwrap();
        proxy.say(ToAgent::Probe { id, pod: PodUid::new("uid-web"), connection }).await;
        proxy.until(Event::Answer(id, origin)).await;
    }
    assert!(client.as_fd().try_clone_to_owned().is_ok(), "it lives until here");
}
