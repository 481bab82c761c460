//! The plain manifests: made of the chart as it is, with no right that the documentation does not give a reason for, and
//! with the capabilities under which the lab's scenarios run. After a change of the chart: `deploy/render`.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests, which clippy does not see"
)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use underpass_lab::{AGENT_CAPABILITIES, NODE_PROXY_CAPABILITIES};
use underpass_objects::manifest;

const MANIFESTS: [&str; 2] = ["underpass.yaml", "underpass-ha.yaml"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn text(name: &str) -> String {
    fs::read_to_string(root().join("deploy/manifests").join(name)).unwrap()
}

fn objects() -> Vec<Value> {
    manifest::values(&text(MANIFESTS[0])).unwrap()
}

fn of_kind(objects: &[Value], kind: &str) -> Vec<Value> {
    objects.iter().filter(|object| object["kind"] == kind).cloned().collect()
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().map(|texts| texts.iter().map(|text| text.as_str().unwrap()).collect()).unwrap_or_default()
}

#[test]
fn the_manifests_are_made_of_the_chart_as_it_is() {
    let output = Command::new(root().join("deploy/render")).arg("--sum").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let line = format!("# chart: {}", String::from_utf8(output.stdout).unwrap().trim());
    for name in MANIFESTS {
        assert!(text(name).lines().any(|found| found == line), "{name} is not of this chart: run deploy/render");
    }
}

/// The rows of rights.md about the API server that a rule must have, as they begin.
fn rows(role: &Value) -> Vec<String> {
    let who = role["metadata"]["name"].as_str().unwrap().strip_prefix("underpass-").unwrap();
    let mut rows = Vec::new();
    for rule in role["rules"].as_array().unwrap() {
        let verbs: Vec<String> = texts(&rule["verbs"]).iter().map(|verb| format!("`{verb}`")).collect();
        let names: String = texts(&rule["resourceNames"]).iter().map(|name| format!(" `{name}`")).collect();
        for (group, resource) in texts(&rule["apiGroups"])
            .iter()
            .flat_map(|group| texts(&rule["resources"]).into_iter().map(move |r| (group, r)))
        {
            let resource = if group.is_empty() { resource.to_owned() } else { format!("{group}/{resource}") };
            rows.push(format!("| {who} | `{resource}`{names} | {} |", verbs.join(", ")));
        }
    }
    rows
}

#[test]
fn every_right_has_its_reason_and_no_reason_is_without_its_right() {
    let page = fs::read_to_string(root().join("docs/operations/rights.md")).unwrap();
    let api_server = page.split("## On a node").next().unwrap();
    let explained: BTreeSet<String> = api_server
        .lines()
        .filter(|line| line.starts_with("| agent |") || line.starts_with("| operator |"))
        .map(|line| line.split_inclusive('|').take(4).collect())
        .collect();
    let objects = objects();
    let roles = of_kind(&objects, "ClusterRole").into_iter().chain(of_kind(&objects, "Role"));
    let given: BTreeSet<String> = roles.flat_map(|role| rows(&role)).collect();
    assert_eq!(given.difference(&explained).collect::<Vec<_>>(), Vec::<&String>::new(), "rights without a reason");
    assert_eq!(explained.difference(&given).collect::<Vec<_>>(), Vec::<&String>::new(), "reasons without a right");
}

fn container(objects: &[Value], name: &str) -> Value {
    let sets = of_kind(objects, "DaemonSet");
    let set = sets.iter().find(|set| set["metadata"]["name"] == name).unwrap();
    set["spec"]["template"]["spec"]["containers"][0].clone()
}

#[test]
fn containers_have_the_capabilities_that_scenarios_run_with_and_no_more() {
    let objects = objects();
    let [agent, proxy] = ["underpass-agent", "underpass-nodeproxy"].map(|name| container(&objects, name));
    let lower = |container: &Value| -> Vec<String> {
        texts(&container["securityContext"]["capabilities"]["add"]).iter().map(|text| text.to_lowercase()).collect()
    };
    assert_eq!(lower(&agent), AGENT_CAPABILITIES);
    assert_eq!(lower(&proxy), NODE_PROXY_CAPABILITIES);
    for container in [agent, proxy] {
        let context = &container["securityContext"];
        assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]));
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context.get("privileged"), None);
    }
}

#[test]
fn the_node_proxy_has_no_token_but_the_one_for_the_operator() {
    let objects = objects();
    let accounts = of_kind(&objects, "ServiceAccount");
    let account = accounts.iter().find(|account| account["metadata"]["name"] == "underpass-nodeproxy").unwrap();
    assert_eq!(account["automountServiceAccountToken"], false);
    let bound = |binding: &Value| binding["subjects"].to_string().contains("underpass-nodeproxy");
    let bindings = of_kind(&objects, "ClusterRoleBinding").into_iter().chain(of_kind(&objects, "RoleBinding"));
    assert_eq!(bindings.filter(bound).count(), 0);
    let sets = of_kind(&objects, "DaemonSet");
    let set = sets.iter().find(|set| set["metadata"]["name"] == "underpass-nodeproxy").unwrap();
    let volumes = set["spec"]["template"]["spec"]["volumes"].as_array().unwrap();
    let paths: Vec<&str> = volumes.iter().filter_map(|volume| volume["hostPath"]["path"].as_str()).collect();
    assert_eq!(paths, ["/var/run/underpass/proxy", "/var/run/underpass/keys", "/var/lib/underpass/nodeproxy"]);
}
