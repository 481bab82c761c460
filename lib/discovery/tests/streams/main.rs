//! Subscribers and a publisher over real streams on loopback.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod loopback;

use std::time::Duration;

use loopback::{Control, Raw, eventually, keeping, mesh_of, publish, serve};
use tonic::Code;
use underpass_discovery::{
    Store, View,
    kept::KeptView,
    server::{Batch, Published, Publisher},
    store::AskError,
    testing::{at, service, service_name, workload},
    wire::{PARTIAL, ResourceType},
};
use underpass_model::{Revocation, SerialNumber, Tunnel, WorkloadUid};
use underpass_policy::{Policy, PolicyName, Scope};

fn pod(name: &str, address: &str) -> Published {
    Published::workload(&workload("default", name).address(address).build())
}

fn uid(name: &str) -> String {
    WorkloadUid::of_pod("Kubernetes", "default", name).to_string()
}

fn policy(name: &str) -> Published {
    Published::authorization(&Policy::refuse(PolicyName::new("default", name), Scope::Namespace))
}

#[tokio::test]
async fn a_subscriber_is_filled_and_follows_changes_and_removals() {
    let (publisher, server) = serve(Publisher::new()).await;
    let web = service_name("default", "web");
    let backing = workload("default", "one").address("10.0.0.1").backs(&web, &[(80, 8080)]);
    publish(
        &publisher,
        [
            Published::workload(&backing.clone().build()),
            Published::service(&service("default", "web").address("10.96.0.1").build()),
            policy("p"),
        ],
    );
    let client = mesh_of(server.control(), false);
    let view = eventually(&client.mesh, View::is_complete).await;
    assert_eq!(view.service_at(&at("10.96.0.1"), "default").map(|service| service.name.clone()), Some(web.clone()));
    assert_eq!(view.endpoints(&web).count(), 1);
    assert_eq!(view.counts().authorizations, 1);

    publish(&publisher, [Published::workload(&backing.hbone().build())]);
    let version = publisher.version();
    assert_eq!(publisher.wait_acked(version, Duration::from_secs(10)).await, 0);
    let one = client.mesh.view().workload_at(&at("10.0.0.1")).cloned().unwrap();
    assert_eq!(one.tunnel, Tunnel::Hbone, "what is answered is in the view");

    let mut batch = Batch::new();
    batch.remove(ResourceType::Address, one.uid.as_str()).remove(ResourceType::Authorization, "default/p");
    publisher.commit(batch);
    let view = eventually(&client.mesh, |view| view.counts().authorizations == 0).await;
    eventually(&client.mesh, |view| view.workload_at(&at("10.0.0.1")).is_none()).await;
    assert!(view.is_complete());
}

#[tokio::test]
async fn revocations_come_with_the_first_of_the_mesh_and_go_when_they_are_taken_back() {
    let serial: SerialNumber = "0102030405060708".parse().unwrap();
    let revocation = Revocation::Serial(serial);
    let mut revoked = Batch::replacing(ResourceType::Revocation);
    revoked.set(Published::revocation(&revocation));
    let (publisher, server) = serve(Publisher::new()).await;
    publisher.commit_along(revoked);
    let client = mesh_of(server.control(), false);
    eventually_subscribed(&publisher, 1).await;
    assert_eq!((publisher.version(), client.mesh.view().is_complete()), (0, false), "the mesh is not loaded");
    publish(&publisher, [pod("one", "10.0.0.1")]);
    let view = eventually(&client.mesh, View::is_complete).await;
    assert_eq!(view.revocations().collect::<Vec<_>>(), [&revocation]);
    publisher.commit_along(Batch::replacing(ResourceType::Revocation));
    eventually(&client.mesh, |view| view.revocations().count() == 0).await;
    assert_eq!(client.mesh.view().counts().workloads, 1);
}

#[tokio::test]
async fn nobody_is_told_of_a_mesh_that_is_not_loaded_yet() {
    let (publisher, server) = serve(Publisher::new()).await;
    let client = mesh_of(server.control(), false);
    eventually_subscribed(&publisher, 1).await;
    assert!(!client.mesh.view().is_complete());
    publisher.commit(Batch::new());
    let view = eventually(&client.mesh, View::is_complete).await;
    assert_eq!(view.counts().workloads, 0);
}

async fn eventually_subscribed(publisher: &Publisher, subscribers: usize) {
    let there = async {
        while publisher.subscribers().len() != subscribers {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), there).await.unwrap();
}

#[tokio::test]
async fn a_resource_that_is_not_understood_is_refused_by_name_and_the_others_are_kept() {
    let (publisher, server) = serve(Publisher::new()).await;
    let mut bad = pod("bad", "10.0.0.2");
    bad.body = b"\x0a\x02\xff\xff".to_vec();
    let misnamed = Published { name: "Kubernetes//Pod/default/someone-else".into(), ..pod("misnamed", "10.0.0.3") };
    publish(&publisher, [pod("good", "10.0.0.1"), bad, misnamed]);
    let client = mesh_of(server.control(), false);
    eventually(&client.mesh, View::is_complete).await;
    assert_eq!(publisher.wait_acked(publisher.version(), Duration::from_secs(10)).await, 0);
    let view = client.mesh.view();
    assert_eq!((view.counts().workloads, view.workload_at(&at("10.0.0.1")).is_some()), (1, true));
    let status = publisher.subscribers().pop().unwrap();
    let refusal = status.refusal.unwrap();
    assert_eq!((&*status.name, status.node_id.as_str()), ("tester", "node-1"));
    assert_eq!(refusal.kind, ResourceType::Address);
    for named in [uid("bad"), "someone-else".into()] {
        assert!(refusal.message.contains(&named), "{}", refusal.message);
    }
    assert!(!refusal.message.contains(&uid("good")));

    publish(&publisher, [pod("bad", "10.0.0.2")]);
    eventually(&client.mesh, |view| view.workload_at(&at("10.0.0.2")).is_some()).await;
}

#[tokio::test]
async fn the_view_outlives_its_control_plane_and_catches_up_with_the_next() {
    let (publisher, server) = serve(Publisher::new()).await;
    publish(&publisher, [pod("stays", "10.0.0.1"), pod("goes", "10.0.0.2")]);
    let control = server.control();
    let client = mesh_of(control.clone(), false);
    eventually(&client.mesh, View::is_complete).await;
    server.stop().await;
    assert_eq!(client.mesh.view().counts().workloads, 2, "the last view stays");
    assert!(client.mesh.view().is_complete());

    let (next, server) = serve(Publisher::new()).await;
    publish(&next, [pod("stays", "10.0.0.1"), pod("comes", "10.0.0.3")]);
    control.redirect(server.address);
    let view = eventually(&client.mesh, |view| view.workload_at(&at("10.0.0.3")).is_some()).await;
    assert_eq!(view.counts().workloads, 2);
    assert!(view.workload_at(&at("10.0.0.2")).is_none(), "what vanished meanwhile is gone");
}

/// Waits until the copy on disk holds so many workloads.
async fn eventually_kept(kept: &KeptView, workloads: usize) {
    let there = async {
        loop {
            let mut copy = Store::new();
            if kept.load(&mut copy).unwrap() && copy.mesh().view().counts().workloads == workloads {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), there).await.unwrap();
}

#[tokio::test]
async fn a_kept_view_stands_back_for_the_live_one_and_for_a_moment_only() {
    let directory = tempfile::tempdir().unwrap();
    let kept = KeptView::new(directory.path().join("view"));
    let (publisher, server) = serve(Publisher::new()).await;
    publish(&publisher, [pod("old", "10.0.0.1")]);
    drop(keeping_until_kept(server.control(), &kept).await);

    // The control plane is there and knows somebody new: nobody may take the copy for the whole mesh before.
    publish(&publisher, [pod("new", "10.0.0.2")]);
    let patient = kept.clone().with_head_start(Duration::from_secs(3600));
    let client = keeping(server.control(), patient.clone());
    let view = eventually(&client.mesh, View::is_complete).await;
    assert!(view.workload_at(&at("10.0.0.2")).is_some(), "complete without the newcomer");
    drop(client);
    server.stop().await;

    // It is away: the copy is there at once, and the whole mesh when the head start is over.
    let nobody = Control::to("127.0.0.1:9".parse().unwrap());
    let client = keeping(nobody.clone(), patient);
    let view = eventually(&client.mesh, |view| view.counts().workloads > 0).await;
    assert!(!view.is_complete() && !client.mesh.wait_complete(Duration::from_millis(50)).await);
    let client = keeping(nobody, kept.with_head_start(Duration::from_millis(10)));
    eventually(&client.mesh, View::is_complete).await;
}

async fn keeping_until_kept(control: Control, kept: &KeptView) -> loopback::Client {
    let client = keeping(control, kept.clone());
    eventually_kept(kept, 1).await;
    client
}

#[tokio::test]
async fn what_a_returning_subscriber_holds_is_not_sent_again() {
    let (publisher, server) = serve(Publisher::new()).await;
    publish(&publisher, [pod("same", "10.0.0.1"), pod("changes", "10.0.0.2"), pod("goes", "10.0.0.3")]);
    let mut raw = Raw::open(&server.control(), ResourceType::Address, &[]).await;
    raw.answered().await;
    let held = raw.held.clone();
    assert_eq!(held.len(), 3);
    drop(raw);

    let mut batch = Batch::replacing(ResourceType::Address);
    batch.set(pod("same", "10.0.0.1")).set(pod("changes", "10.0.0.9"));
    publisher.commit(batch);
    let mut raw = Raw::resume(&server.control(), ResourceType::Address, held).await;
    let response = raw.next().await;
    assert_eq!(response.resources.len(), 1);
    assert_eq!(response.removed_resources, [uid("goes")]);
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_costs_one_response_and_then_gets_the_latest() {
    let (publisher, server) = serve(Publisher::new()).await;
    publish(&publisher, [pod("a", "10.0.0.1")]);
    let mut slow = Raw::open(&server.control(), ResourceType::Address, &[]).await;
    let unanswered = slow.next().await;
    for last in 2..=250_u8 {
        publish(&publisher, [pod("a", &format!("10.0.0.{last}"))]);
    }
    let version = publisher.version();
    assert_eq!(publisher.wait_acked(version, Duration::from_millis(20)).await, 1);
    let other = mesh_of(server.control(), false);
    eventually(&other.mesh, |view| view.workload_at(&at("10.0.0.250")).is_some()).await;

    slow.answer(&unanswered).await;
    let latest = slow.next().await;
    assert_eq!((latest.resources.len(), latest.system_version_info), (1, version.to_string()));
    slow.answer_nonce(ResourceType::Address, &latest.nonce).await;
    assert_eq!(publisher.wait_acked(version, Duration::from_secs(10)).await, 0);
}

#[tokio::test]
async fn who_left_is_not_waited_for() {
    let (publisher, server) = serve(Publisher::new()).await;
    publish(&publisher, [pod("a", "10.0.0.1")]);
    let mut gone = Raw::open(&server.control(), ResourceType::Address, &[]).await;
    gone.next().await;
    let waiting = publisher.wait_acked(publisher.version(), Duration::from_secs(10));
    let (behind, ()) = tokio::join!(waiting, async { drop(gone) });
    assert_eq!(behind, 0);
}

#[tokio::test]
async fn on_demand_a_reader_asks_who_is_at_an_address() {
    let (publisher, server) = serve(Publisher::new()).await;
    let web = service_name("default", "web");
    publish(
        &publisher,
        [
            Published::workload(&workload("default", "one").address("10.0.0.1").backs(&web, &[(80, 1)]).build()),
            Published::service(&service("default", "web").address("10.96.0.1").build()),
            pod("two", "10.0.0.2"),
        ],
    );
    let client = mesh_of(server.control(), true);
    let view = eventually(&client.mesh, View::is_complete).await;
    assert_eq!(view.counts().workloads, 0, "nothing was asked for");

    assert_eq!(client.mesh.ask(&at("10.0.0.99")).await, Ok(false));
    assert_eq!(client.mesh.ask(&at("10.96.0.1")).await, Ok(true));
    let view = client.mesh.view();
    assert_eq!((view.endpoints(&web).count(), view.counts().workloads), (1, 1), "a service brings its endpoints");
    assert_eq!(client.mesh.ask_service(&web).await, Ok(true));
    assert_eq!(client.mesh.ask(&at("10.0.0.2")).await, Ok(true));

    publish(&publisher, [pod("late", "10.0.0.99")]);
    eventually(&client.mesh, |view| view.workload_at(&at("10.0.0.99")).is_some()).await;
    assert_eq!(client.mesh.ask(&at("10.0.0.99")).await, Ok(true), "nobody then, somebody now");
    let mut batch = Batch::new();
    batch.remove(ResourceType::Address, &uid("two"));
    publisher.commit(batch);
    eventually(&client.mesh, |view| view.workload_at(&at("10.0.0.2")).is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn a_question_without_a_control_plane_ends_at_its_deadline() {
    let client = mesh_of(Control::to("127.0.0.1:9".parse().unwrap()), true);
    tokio::task::yield_now().await;
    assert_eq!(client.mesh.ask(&at("10.0.0.1")).await, Err(AskError::Timeout));
}

#[tokio::test]
async fn a_large_first_push_comes_in_parts_and_the_view_is_complete_only_at_the_end() {
    let (publisher, server) = serve(Publisher::new()).await;
    let node = "n".repeat(1000);
    let pods = (0..3000_u16).map(|number| {
        let address = format!("10.0.{}.{}", number >> 8, number & 0xff);
        Published::workload(&workload("default", &format!("pod-{number}")).node(&node).address(&address).build())
    });
    publish(&publisher, pods);
    let client = mesh_of(server.control(), false);
    let mut versions = client.mesh.subscribe();
    let mut parts = 0;
    while !client.mesh.view().is_complete() {
        versions.changed().await.unwrap();
        let view = client.mesh.view();
        parts += 1;
        assert!(view.counts().workloads == 3000 || !view.is_complete(), "complete with a part");
    }
    assert_eq!(client.mesh.view().counts().workloads, 3000);
    assert!(parts >= 2, "it came at once");

    // Who does not say that it understands parts gets all in one response.
    let mut plain = Raw::open(&server.control(), ResourceType::Address, &[]).await;
    let response = plain.next().await;
    assert_eq!(response.resources.len(), 3000);
    assert!(!response.system_version_info.starts_with(PARTIAL));
}

#[tokio::test]
async fn turns_away_who_is_not_authenticated() {
    let (publisher, server) = serve(Publisher::new()).await;
    publisher.commit(Batch::new());
    let refused = server.control().with_token("wrong").try_open().await;
    assert_eq!(refused.err().map(|status| status.code()), Some(Code::Unauthenticated));
    assert_eq!(publisher.subscribers().len(), 0);
}

#[tokio::test]
async fn one_name_has_a_few_streams_and_loses_the_oldest() {
    let (publisher, server) = serve(Publisher::new()).await;
    publish(&publisher, [pod("a", "10.0.0.1")]);
    let mut streams = Vec::new();
    for _ in 0..6 {
        let mut raw = Raw::open(&server.control(), ResourceType::Address, &[]).await;
        raw.answered().await;
        streams.push(raw);
    }
    for oldest in &mut streams[..2] {
        assert_eq!(oldest.ended().await.code(), Code::Aborted);
    }
    eventually_subscribed(&publisher, 4).await;
    publish(&publisher, [pod("a", "10.0.0.2")]);
    for newest in &mut streams[2..] {
        newest.answered().await;
    }
}

#[tokio::test]
async fn who_is_expelled_must_come_again() {
    let (publisher, server) = serve(Publisher::new()).await;
    publish(&publisher, [pod("a", "10.0.0.1")]);
    let mut raw = Raw::open(&server.control(), ResourceType::Address, &[]).await;
    raw.answered().await;
    publisher.expel("somebody else");
    publish(&publisher, [pod("a", "10.0.0.2")]);
    raw.answered().await;
    publisher.expel("tester");
    assert_eq!(raw.ended().await.code(), Code::Aborted);
    eventually_subscribed(&publisher, 0).await;
}

#[tokio::test]
async fn types_that_nobody_knows_are_ignored_on_both_sides() {
    let (publisher, server) = serve(Publisher::new()).await;
    publish(&publisher, [pod("a", "10.0.0.1")]);
    let mut raw = Raw::open(&server.control(), ResourceType::Address, &[]).await;
    raw.subscribe_url("type.googleapis.com/some.other.Type").await;
    assert_eq!(raw.next().await.resources.len(), 1);

    let mut odd = pod("odd", "10.0.0.2");
    odd.body = Vec::new(); // An address of a kind that does not exist yet.
    publish(&publisher, [odd]);
    let client = mesh_of(server.control(), false);
    let view = eventually(&client.mesh, View::is_complete).await;
    assert_eq!(view.counts().workloads, 1);
    let refusals: Vec<_> = publisher.subscribers().into_iter().filter_map(|status| status.refusal).collect();
    assert_eq!(refusals, []);
}

#[tokio::test]
async fn streams_end_when_the_control_plane_stops() {
    let (publisher, server) = serve(Publisher::new()).await;
    publish(&publisher, [pod("a", "10.0.0.1")]);
    let mut raw = Raw::open(&server.control(), ResourceType::Address, &[]).await;
    raw.next().await;
    server.shutdown.request();
    assert_eq!(raw.ended().await.code(), Code::Unavailable);
}
