//! Policies decide at the destination, by proven identity, and a change of them ends what they no longer allow.

use std::time::{Duration, Instant};

use serde_json::Value;
use underpass_e2e::{MESH, SHORT, World, call, get, identity_of, inbound, server, wait_authenticated, world};
use underpass_lab::{ObjectName, Place, Pod, PodSpec, Probe, Process, Target, eventually};

/// Talks to the echo server until somebody ends it.
pub(crate) const HOLD: &str = r"
import socket, sys, time
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
count = 0
try:
    while True:
        connection.sendall(b'still there\n')
        if not connection.recv(100):
            print('closed after', count, flush=True)
            break
        count += 1
        print('exchange', count, flush=True)
        time.sleep(0.02)
except OSError as error:
    print('broken after', count, error, flush=True)
";

/// A pod with a server, found by the label `policy`, as the service account of its own name.
fn pod(world: &World, node: &str, name: &str) -> Pod {
    server(&world.lab, &PodSpec::new(node, MESH, name).service_account(name).label("policy", name)).unwrap()
}

fn url(pod: &Pod, port: u16) -> String {
    format!("http://{}:{port}/", pod.v4().unwrap())
}

/// How a call of a pod's port by another goes.
fn outcome(world: &World, from: impl Into<Place>, to: &Pod, port: u16) -> String {
    call(&world.lab, from, "outcome", (&to.v4().unwrap().to_string(), port)).unwrap()
}

fn is_refused(seen: &str) -> bool {
    ["refused", "reset"].contains(&seen)
}

/// Waits until calls of a pod's page are refused.
fn wait_refused(world: &World, from: &Place, to: &Pod) {
    eventually(SHORT, &format!("{from} to be refused by {}", to.name), || {
        let seen = outcome(world, from.clone(), to, 8080);
        anyhow::ensure!(is_refused(&seen), "{seen}");
        Ok(())
    })
    .unwrap();
}

/// Applies an object that is about the pods of one label; `spec` is the inner part of a flow mapping.
fn apply(world: &World, kind: &str, name: &str, spec: &str) -> ObjectName {
    let text = format!(
        "apiVersion: underpass.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {MESH}}}\nspec: {{{spec}}}\n"
    );
    world.lab.apply(&text).unwrap().remove(0)
}

fn policy(world: &World, name: &str, target: &str, spec: &str) -> ObjectName {
    let target = format!("targetRefs: [{{kind: Pod, selector: {{matchLabels: {{policy: {target}}}}}}}]");
    apply(world, "AuthorizationPolicy", name, &format!("{target}, {spec}"))
}

fn text<'a>(line: &'a Value, key: &str) -> &'a str {
    line.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Waits for an access line at the server about a client, with these fields.
fn wait_line(world: &World, client: &Pod, server: &Pod, fields: &[(&str, &str)]) {
    eventually(SHORT, &format!("an access line with {fields:?}"), || {
        let lines = inbound(&world.lab, server, client)?;
        let found = lines.iter().any(|line| fields.iter().all(|(key, value)| text(line, key) == *value));
        anyhow::ensure!(found, "{lines:#?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn who_may_speak_is_decided_by_service_account_and_port_across_nodes() {
    let world = world();
    let (web, job, db) = (pod(&world, "node-a", "web"), pod(&world, "node-a", "job"), pod(&world, "node-b", "db"));
    for client in [&web, &job] {
        wait_authenticated(&world.lab, client, &db).unwrap();
    }
    let web_on_8080 =
        "rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: web}}], networkAttributes: {ports: [8080]}}]";
    let allow = policy(&world, "db-allow", "db", web_on_8080);
    wait_refused(&world, &job.place(), &db);
    get(&world.lab, web.place(), &url(&db, 8080)).unwrap();
    assert!(is_refused(&outcome(&world, web.place(), &db, 8081)), "only one port was allowed");
    assert!(is_refused(&outcome(&world, world.plain_client.place(), &db, 8080)), "plaintext has no identity");
    let (job_id, db_id) = (identity_of(&job), identity_of(&db));
    let told = [
        ("reason", "policy_not_allowed"),
        ("policy", "mesh/db-allow"),
        ("src.identity", &job_id),
        ("dst.identity", &db_id),
    ];
    wait_line(&world, &job, &db, &told);
    wait_line(&world, &web, &db, &[("reason", "ok"), ("policy", "mesh/db-allow")]);
    let metrics = world.lab.metrics("node-b").unwrap();
    let counted = metrics.lines().any(|line| {
        line.starts_with("underpass_policy_refusals_total{")
            && [&*job_id, &*db_id, "policy_not_allowed", "mesh/db-allow"].iter().all(|label| line.contains(label))
    });
    assert!(counted, "the refusal was not counted");

    let deny =
        policy(&world, "db-deny", "db", "action: DENY, rules: [{sources: [{type: Namespace, namespace: mesh}]}]");
    wait_refused(&world, &web.place(), &db);
    wait_line(&world, &web, &db, &[("reason", "policy_denied"), ("policy", "mesh/db-deny")]);

    world.lab.delete(&deny).unwrap();
    world.lab.delete(&allow).unwrap();
    eventually(SHORT, "everybody to be let in again", || get(&world.lab, job.place(), &url(&db, 8080)).map(drop))
        .unwrap();
}

#[test]
fn strict_refuses_plaintext_from_everybody_but_the_kubelet() {
    let world = world();
    let strict = pod(&world, "node-b", "strict");
    wait_authenticated(&world.lab, &world.client, &strict).unwrap();
    get(&world.lab, world.plain_client.place(), &url(&strict, 8080)).unwrap();
    let selector = "selector: {matchLabels: {policy: strict}}";
    let mode = apply(
        &world,
        "MeshTLSMode",
        "strict",
        &format!("{selector}, mode: STRICT, ports: [{{port: 8081, mode: PERMISSIVE}}]"),
    );
    let denied = "underpass-system/mesh-tls-mode:strict-except-8081";
    wait_refused(&world, &world.plain_client.place(), &strict);
    wait_line(&world, &world.plain_client, &strict, &[("reason", "policy_denied"), ("policy", denied)]);
    for from in [Place::Outside, Place::node("node-b")] {
        assert!(is_refused(&outcome(&world, from.clone(), &strict, 8080)), "plaintext from {from} was let in");
    }
    let address = std::net::SocketAddr::new(strict.v4().unwrap(), 8080);
    for probe in [Probe::HttpGet { address, path: "/healthz".to_owned() }, Probe::TcpSocket { address }] {
        let answer = world.lab.probe("node-b", &probe).unwrap();
        assert!(answer.success, "{probe:?}: {answer:?}");
    }
    get(&world.lab, world.client.place(), &url(&strict, 8080)).unwrap();
    let seen = outcome(&world, world.plain_client.place(), &strict, 8081);
    assert!(seen.starts_with("answered"), "the port that is permissive: {seen}");

    world.lab.delete(&mode).unwrap();
    eventually(SHORT, "plaintext again", || get(&world.lab, world.plain_client.place(), &url(&strict, 8080)).map(drop))
        .unwrap();
}

#[test]
fn a_change_ends_the_connections_it_forbids_within_a_second_and_no_other() {
    let world = world();
    let (keep, cut, live) =
        (pod(&world, "node-a", "keep"), pod(&world, "node-a", "cut"), pod(&world, "node-b", "live"));
    for client in [&keep, &cut] {
        wait_authenticated(&world.lab, client, &live).unwrap();
    }
    let host = live.v4().unwrap().to_string();
    let hold = |from: &Pod| -> Process {
        let held = world.lab.spawn(from.place(), "hold", &["python3", "-c", HOLD, &host, "8081"]).unwrap();
        held.wait_for_output("exchange 5", SHORT).unwrap();
        held
    };
    let plain = {
        let held =
            world.lab.spawn(world.plain_client.place(), "hold-live", &["python3", "-c", HOLD, &host, "8081"]).unwrap();
        held.wait_for_output("exchange 5", SHORT).unwrap();
        held
    };
    let (kept, ended) = (hold(&keep), hold(&cut));
    let deny = "action: DENY, rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: cut}}]}]";
    let changed = Instant::now();
    let policy = policy(&world, "live-deny", "live", deny);
    ended.wait_for_output("broken after", SHORT).unwrap();
    // Promised is a second; a busy machine is granted five.
    assert!(changed.elapsed() < Duration::from_secs(5), "the change took {:?}", changed.elapsed());
    wait_line(&world, &cut, &live, &[("reason", "revoked"), ("policy", "mesh/live-deny")]);
    let before = (exchanges(&kept), exchanges(&plain));
    eventually(SHORT, "the others to go on", || {
        anyhow::ensure!(exchanges(&kept) > before.0 + 10 && exchanges(&plain) > before.1 + 10);
        Ok(())
    })
    .unwrap();
    for held in [&kept, &plain] {
        assert!(held.is_alive(), "{}", held.output());
        held.kill().unwrap();
    }
    let metrics = world.lab.metrics("node-b").unwrap();
    assert!(metrics.contains("underpass_connections_revoked_total{reason=\"policy_denied\"}"), "not counted");
    world.lab.delete(&policy).unwrap();
}

fn exchanges(held: &Process) -> usize {
    held.output().matches("exchange").count()
}

#[test]
fn policies_that_allow_come_and_go_under_load_without_a_failed_call() {
    let world = world();
    let (caller, busy) = (pod(&world, "node-a", "caller"), pod(&world, "node-b", "busy"));
    wait_authenticated(&world.lab, &caller, &busy).unwrap();
    let target = Target { http: (busy.v4().unwrap().to_string(), 8080), callers: 2, redis: None };
    let load = world.lab.load(caller.place(), "load", &target).unwrap();
    let allow = "rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: caller}}]}]";
    for _ in 0..4 {
        let policy = policy(&world, "busy-allow", "busy", allow);
        // By its refusal of somebody else we see that it has arrived.
        wait_refused(&world, &world.client.place(), &busy);
        world.lab.delete(&policy).unwrap();
        eventually(SHORT, "it to be open again", || get(&world.lab, world.client.place(), &url(&busy, 8080)).map(drop))
            .unwrap();
    }
    let report = load.finish().unwrap();
    report.flawless().unwrap();
    assert!(report.calls > 50, "{report:?}");
}

#[test]
fn dry_run_is_told_and_counted_and_stops_nothing() {
    let world = world();
    let rehearsed = pod(&world, "node-b", "rehearsed");
    wait_authenticated(&world.lab, &world.client, &rehearsed).unwrap();
    let policy = policy(&world, "rehearsal", "rehearsed", "action: DENY, dryRun: true, rules: [{}]");
    eventually(SHORT, "the rehearsal's access line", || {
        get(&world.lab, world.client.place(), &url(&rehearsed, 8080))?;
        let lines = inbound(&world.lab, &rehearsed, &world.client)?;
        let told = lines.iter().any(|line| {
            (text(line, "reason"), text(line, "dry_run"), text(line, "dry_run.policy"))
                == ("ok", "policy_denied", "mesh/rehearsal")
        });
        anyhow::ensure!(told, "{lines:#?}");
        Ok(())
    })
    .unwrap();
    let metrics = world.lab.metrics("node-b").unwrap();
    assert!(
        metrics
            .lines()
            .any(|line| line.starts_with("underpass_policy_dry_run_total{") && line.contains("mesh/rehearsal"))
    );
    world.lab.delete(&policy).unwrap();
}

#[test]
fn a_policy_that_only_a_waypoint_could_enforce_refuses() {
    let world = world();
    let closed = pod(&world, "node-b", "closed");
    wait_authenticated(&world.lab, &world.client, &closed).unwrap();
    let policy = policy(&world, "for-a-waypoint", "closed", "enforcementLevel: Application, rules: [{}]");
    wait_refused(&world, &world.client.place(), &closed);
    wait_line(&world, &world.client, &closed, &[("policy", "mesh/for-a-waypoint")]);
    world.lab.delete(&policy).unwrap();
    eventually(SHORT, "it to be open again", || get(&world.lab, world.client.place(), &url(&closed, 8080)).map(drop))
        .unwrap();
}
