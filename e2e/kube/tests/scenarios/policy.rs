//! Who may call whom, and in which form, by policies that users apply.

use std::time::Duration;

use underpass_e2e_kube::{Load, Namespace, SHORT, Workload, cluster, mesh};
use underpass_lab::eventually;
use underpass_model::names::{ENROLLED, MESH_LABEL};

fn object(space: &Namespace, kind: &str, name: &str, spec: &str) {
    let text =
        format!("apiVersion: underpass.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n");
    space.apply(&text).unwrap();
}

/// Applies a policy about the server, and waits until the mesh says that all proxies have it.
fn policy(space: &Namespace, name: &str, spec: &str) {
    let target = "targetRefs: [{kind: Pod, selector: {matchLabels: {app: server}}}]";
    object(space, "AuthorizationPolicy", name, &format!("{target}, {spec}"));
    space.wait_for(&format!("authorizationpolicies/{name}"), "condition=Programmed").unwrap();
}

fn wait_for(space: &Namespace, from: &str, url: &str, answered: bool) {
    eventually(SHORT, &format!("{from} calling {url} to be answered: {answered}"), || {
        let answer = space.call(from, url);
        anyhow::ensure!(answer.is_ok() == answered, "{answer:?}");
        Ok(())
    })
    .unwrap();
}

const SERVER: &str = "http://server/";

#[test]
fn accounts_are_allowed_and_denied_also_on_connections_that_live() {
    let (cluster, _mesh) = (cluster(), mesh());
    let [here, there] = &cluster.workers().unwrap()[..2] else { panic!("two nodes") };
    let space = Namespace::new(cluster, "policy").unwrap();
    space.label(MESH_LABEL, Some(ENROLLED)).unwrap();
    let on = |name: &str, node: &str| Workload::new(name).on(node);
    space.start(&[&on("web", here), &on("job", there), &on("server", there)]).unwrap();
    space.wait_captured().unwrap();
    let stays = Load::start(cluster, &space, "web", SERVER, 1).unwrap();
    let ends = Load::start(cluster, &space, "job", SERVER, 1).unwrap();

    policy(&space, "allow-web", "rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: web}}]}]");
    wait_for(&space, "job", SERVER, false);
    wait_for(&space, "web", SERVER, true);
    // A pod's address is no way around.
    let direct = format!("http://{}:8080/", space.pod("server").unwrap().address);
    assert!(space.call("job", &direct).is_err());
    stays.run_on(Duration::from_secs(1));
    stays.finish().unwrap().flawless().unwrap();
    let ended = ends.finish().unwrap();
    assert!(ended.long_connection.is_some(), "what is no longer allowed lived on: {ended:?}");

    policy(
        &space,
        "deny-namespace",
        &format!("action: DENY, rules: [{{sources: [{{type: Namespace, namespace: {}}}]}}]", space.name()),
    );
    wait_for(&space, "web", SERVER, false);
    space.run(&["delete", "authorizationpolicies", "deny-namespace"]).unwrap();
    wait_for(&space, "web", SERVER, true);
    policy(
        &space,
        "allow-web",
        "rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: web}}], networkAttributes: {ports: [8081]}}]",
    );
    wait_for(&space, "web", SERVER, false);
    space.run(&["delete", "authorizationpolicies", "allow-web"]).unwrap();
    for client in ["web", "job"] {
        wait_for(&space, client, SERVER, true);
    }
}

#[test]
fn who_is_not_in_the_mesh_gets_in_until_it_is_strict() {
    let (cluster, _mesh) = (cluster(), mesh());
    let [here, there] = &cluster.workers().unwrap()[..2] else { panic!("two nodes") };
    let (inside, outside) = (Namespace::new(cluster, "inside").unwrap(), Namespace::new(cluster, "outside").unwrap());
    inside.label(MESH_LABEL, Some(ENROLLED)).unwrap();
    inside.start(&[&Workload::new("server").on(there), &Workload::new("friend").on(here)]).unwrap();
    outside.start(&[&Workload::new("stranger").on(here), &Workload::new("legacy").on(there)]).unwrap();
    inside.wait_captured().unwrap();
    let server = format!("http://server.{}/", inside.name());
    let legacy = format!("http://legacy.{}/", outside.name());
    wait_for(&outside, "stranger", &server, true);
    // Out of the mesh, to whoever knows nothing of it.
    wait_for(&inside, "friend", &legacy, true);
    object(&inside, "MeshTLSMode", "strict", "mode: STRICT");
    wait_for(&outside, "stranger", &server, false);
    wait_for(&inside, "friend", &server, true);
    wait_for(&inside, "friend", &legacy, true);
    let friend = inside.pod("friend").unwrap().address;
    assert_eq!(inside.call("friend", &server).unwrap(), format!("i am server, you are {friend}"));
    inside.run(&["delete", "meshtlsmodes", "strict"]).unwrap();
    wait_for(&outside, "stranger", &server, true);
}
