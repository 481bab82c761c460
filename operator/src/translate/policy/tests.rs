//! One row a rule: what manifests say, and who then gets through.

use std::net::{IpAddr, SocketAddr};

use underpass_discovery::View;
use underpass_model::{Identity, Workload};
use underpass_objects::{Objects, manifest};
use underpass_policy::{Facts, Hop, Origin, Source};

use crate::translate::{Reports, TranslateOptions, Translation, translate};

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: a, serviceAccountName: db}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: a, serviceAccountName: web}
---
apiVersion: v1
kind: Pod
metadata: {name: job, namespace: back, labels: {app: db}}
spec: {nodeName: a, serviceAccountName: job}
";

fn translated(manifests: &str) -> Translation {
    let read = manifest::read(format!("{PODS}{manifests}").as_bytes()).unwrap().objects;
    let objects: Objects = read.into_values().map(|located| located.object).collect();
    translate(&objects, &Reports::default(), &TranslateOptions::default())
}

fn policy(name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: underpass.dev/v1alpha1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn mode(name: &str, metadata: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "---\napiVersion: underpass.dev/v1alpha1\nkind: MeshTLSMode\n\
         metadata: {{name: {name}, namespace: {namespace}, {metadata}}}\nspec: {spec}\n"
    )
}

fn view(translation: &Translation) -> View {
    View::of(translation.workloads.values().cloned(), []).with_policies(translation.policies.values().cloned())
}

fn workload(translation: &Translation, name: &str) -> Workload {
    translation.workloads.values().find(|workload| &*workload.name == name).unwrap().clone()
}

/// Whether a source reaches a pod's port: `ok`, or the reason and the policy's name.
fn reach(translation: &Translation, from: &str, to: &str, port: u16) -> String {
    let client: IpAddr = "10.0.0.9".parse().unwrap();
    let source = match from {
        "plain" => Source::Stranger(client, Origin::Remote),
        account => Source::Peer(workload(translation, account).identity().unwrap()),
    };
    let to = workload(translation, to);
    let own: Identity = to.identity().unwrap();
    let destination = SocketAddr::new("10.0.0.1".parse().unwrap(), port);
    let facts = Facts { source: &source, client, own: &own, hop: Hop::Application, destination };
    match view(translation).policies(&to).authorize(&facts) {
        Ok(_) => "ok".into(),
        Err(denial) => format!("{} {}", denial.reason(), denial.refusal().unwrap().policy),
    }
}

#[test]
fn sources_and_ports_of_a_rule() {
    let db = |rules: &str| {
        policy(
            "shop/p",
            &format!("{{targetRefs: [{{kind: Pod, selector: {{matchLabels: {{app: db}}}}}}], rules: {rules}}}"),
        )
    };
    let (ok, no) = ("ok", "policy_not_allowed shop/p");
    for (rules, web, job, plain) in [
        ("[]", no, no, no),
        ("[{}]", ok, ok, ok),
        ("[{sources: []}]", no, no, no),
        ("[{sources: [{type: ServiceAccount, serviceAccount: {name: web}}]}]", ok, no, no),
        ("[{sources: [{type: ServiceAccount, serviceAccount: {namespace: back, name: job}}]}]", no, ok, no),
        ("[{sources: [{type: ServiceAccount, serviceAccount: {name: '*'}}]}]", ok, no, no),
        ("[{sources: [{type: SPIFFE, spiffe: 'spiffe://cluster.local/ns/back/sa/job'}]}]", no, ok, no),
        ("[{sources: [{type: Namespace, namespace: shop}, {type: Namespace, namespace: back}]}]", ok, ok, no),
        ("[{sources: [{type: CIDR, cidr: 10.0.0.0/24}]}]", ok, ok, ok),
        ("[{sources: [{type: CIDR, cidr: 10.0.0.8}]}]", no, no, no),
        ("[{networkAttributes: {ports: [80]}}]", ok, ok, ok),
        ("[{networkAttributes: {ports: [81]}}]", no, no, no),
        ("[{sources: [{type: Namespace, namespace: shop}], networkAttributes: {ports: [81]}}]", no, no, no),
        ("[{sources: []}, {sources: [{type: Namespace, namespace: back}]}]", no, ok, no),
    ] {
        let translation = translated(&db(rules));
        let seen = ["web", "job", "plain"].map(|from| reach(&translation, from, "db", 80));
        assert_eq!(seen, [web, job, plain], "{rules}");
        assert_eq!(reach(&translation, "plain", "web", 80), "ok", "others are not touched: {rules}");
    }
}

#[test]
fn where_a_policy_holds() {
    let closed = |selector: &str| format!("{{targetRefs: [{{kind: Pod, {selector}}}]}}");
    let app = "selector: {matchLabels: {app: db}}";
    // which pods of [db, web, job] are closed, and which records name the policy
    for (name, selector, is_closed, names) in [
        ("shop/p", "", [true, true, false], [0, 0, 0]),
        ("shop/p", app, [true, false, false], [1, 0, 0]),
        ("back/p", app, [false, false, true], [0, 0, 1]),
        ("underpass-system/p", "", [true, true, true], [0, 0, 0]),
        ("underpass-system/p", app, [true, false, true], [1, 0, 1]),
    ] {
        let translation = translated(&policy(name, &closed(selector)));
        let pods = ["db", "web", "job"];
        assert_eq!(pods.map(|to| reach(&translation, "plain", to, 80) != "ok"), is_closed, "{name} {selector}");
        assert_eq!(pods.map(|to| workload(&translation, to).policies.len()), names, "{name} {selector}");
    }
}

#[test]
fn deny_wins_and_dry_run_and_what_a_waypoint_should_do_are_carried() {
    let all = "targetRefs: [{kind: Pod}]";
    let denies =
        policy("shop/deny", &format!("{{{all}, action: DENY, rules: [{{networkAttributes: {{ports: [80]}}}}]}}"))
            + &policy("shop/allow", &format!("{{{all}, rules: [{{}}]}}"));
    let translation = translated(&denies);
    assert_eq!(reach(&translation, "web", "db", 80), "policy_denied shop/deny");
    assert_eq!(reach(&translation, "web", "db", 81), "ok");

    let rehearsed = translated(&policy("shop/p", &format!("{{{all}, dryRun: true}}")));
    assert_eq!(reach(&rehearsed, "web", "db", 80), "ok");

    let waypoint = translated(&policy("shop/p", &format!("{{{all}, enforcementLevel: Application, rules: [{{}}]}}")));
    assert_eq!(reach(&waypoint, "web", "db", 80), "policy_unreadable shop/p", "what cannot be enforced refuses");
    assert_eq!(reach(&waypoint, "plain", "job", 80), "ok", "and nothing else");
    let notes: Vec<String> = waypoint.notes.iter().map(ToString::to_string).collect();
    assert_eq!(
        notes,
        [
            "AuthorizationPolicy shop/p: spec.enforcementLevel: only a waypoint could enforce it, so whatever it selects is refused"
        ]
    );
}

#[test]
fn the_most_specific_mode_that_says_something_of_a_port_decides() {
    let mesh = |spec| mode("underpass-system/default", "", spec);
    let shop = |spec| mode("shop/all", "", spec);
    let db = |spec: &str| mode("shop/db", "", &format!("{{selector: {{matchLabels: {{app: db}}}}, {spec}}}"));
    // which of db:80, db:81, web:80, job:80 refuse plaintext
    for (manifests, strict, why) in [
        (String::new(), [false; 4], "permissive unless said otherwise"),
        (mesh("{mode: STRICT}"), [true; 4], "the mesh"),
        (mesh("{mode: PERMISSIVE}"), [false; 4], "the mesh"),
        (
            mesh("{mode: STRICT, ports: [{port: 80, mode: PERMISSIVE}]}"),
            [false, true, false, false],
            "a port of the mesh",
        ),
        (shop("{mode: STRICT}"), [true, true, true, false], "a namespace"),
        (
            mesh("{mode: STRICT}") + &shop("{mode: PERMISSIVE}"),
            [false, false, false, true],
            "a namespace over the mesh",
        ),
        (mesh("{mode: STRICT}") + &db("mode: PERMISSIVE"), [false, false, true, true], "a workload over the mesh"),
        (
            shop("{mode: STRICT}") + &db("ports: [{port: 80, mode: PERMISSIVE}]"),
            [false, true, true, false],
            "a port, the rest inherited",
        ),
        (
            db("ports: [{port: 80, mode: STRICT}]"),
            [true, false, false, false],
            "a strict port of a permissive workload",
        ),
        (
            shop("{ports: [{port: 80, mode: STRICT}]}") + &db("mode: PERMISSIVE"),
            [false, false, true, false],
            "a workload says something of every port",
        ),
    ] {
        let translation = translated(&manifests);
        let seen = [("db", 80), ("db", 81), ("web", 80), ("job", 80)]
            .map(|(to, port)| reach(&translation, "plain", to, port) != "ok");
        assert_eq!(seen, strict, "{why}");
        assert_eq!(reach(&translation, "web", "db", 80), "ok", "an identity is all that is asked for: {why}");
    }
}

#[test]
fn workloads_share_the_policies_of_their_modes() {
    let manifests = mode(
        "underpass-system/default",
        "",
        "{mode: STRICT, ports: [{port: 81, mode: PERMISSIVE}, {port: 80, mode: PERMISSIVE}]}",
    );
    let translation = translated(&manifests);
    let names: Vec<&str> = translation.policies.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["underpass-system/mesh-tls-mode:strict-except-80-81"]);
    for workload in translation.workloads.values() {
        assert_eq!(workload.policies.iter().map(|name| &**name).collect::<Vec<_>>(), names);
    }
    assert_eq!(
        reach(&translation, "plain", "db", 1),
        "policy_denied underpass-system/mesh-tls-mode:strict-except-80-81"
    );
}

#[test]
fn of_two_modes_of_a_namespace_the_older_holds_and_the_other_is_told() {
    let manifests = mode("shop/a", "creationTimestamp: '2026-02-01T00:00:00Z'", "{mode: STRICT}")
        + &mode("shop/b", "creationTimestamp: '2026-01-01T00:00:00Z'", "{mode: PERMISSIVE}");
    let translation = translated(&manifests);
    assert_eq!(reach(&translation, "plain", "db", 80), "ok");
    let notes: Vec<String> = translation.notes.iter().map(ToString::to_string).collect();
    assert_eq!(
        notes,
        ["MeshTLSMode shop/a: spec.selector: shop/b is older and holds for the namespace, so this one does not"]
    );
}
