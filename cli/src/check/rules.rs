//! What is fine and what is not: pure.

use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{ConfigMap, Namespace, Node},
        networking::v1::{NetworkPolicy, NetworkPolicyPort},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::json;
use underpass_model::names::HBONE_PORT;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) verdict: Verdict,
    /// What was found, for people.
    pub(super) what: String,
    /// What to do about it.
    pub(super) hint: Option<String>,
}

/// How it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Fine,
    Warning,
    Failed,
}

fn fine(what: impl Into<String>) -> Finding {
    Finding { verdict: Verdict::Fine, what: what.into(), hint: None }
}

fn warning(what: impl Into<String>, hint: impl Into<String>) -> Finding {
    Finding { verdict: Verdict::Warning, what: what.into(), hint: Some(hint.into()) }
}

fn failed(what: impl Into<String>, hint: impl Into<String>) -> Finding {
    Finding { verdict: Verdict::Failed, what: what.into(), hint: Some(hint.into()) }
}

/// The oldest Kubernetes: ValidatingAdmissionPolicy, and tokens that name their node.
const OLDEST_MINOR: u32 = 30;

pub(super) fn api_server(major: &str, minor: &str) -> Finding {
    let what = format!("Kubernetes {major}.{minor}");
    // Providers append signs to it.
    let digits: String = minor.chars().take_while(char::is_ascii_digit).collect();
    match (major, digits.parse::<u32>()) {
        ("1", Ok(minor)) if minor < OLDEST_MINOR => {
            failed(what, format!("the mesh needs Kubernetes 1.{OLDEST_MINOR} or newer"))
        }
        _ => fine(what),
    }
}

pub(super) fn rights(has_all: bool) -> Finding {
    if has_all {
        return fine("you may install the mesh");
    }
    failed("you may not install the mesh", "it takes the right to hand out rights, as cluster-admin has it")
}

/// The oldest kernel: a look-up of sockets in rules of the inet family.
const OLDEST_KERNEL: (u32, u32) = (5, 4);

pub(super) fn node(node: &Node) -> Finding {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let Some(info) = node.status.as_ref().and_then(|status| status.node_info.as_ref()) else {
        return warning(format!("node {name} says nothing of itself"), "is its kubelet running?");
    };
    let (kernel, runtime) = (&info.kernel_version, &info.container_runtime_version);
    let what = format!("node {name}: {}, kernel {kernel}, {runtime}", info.operating_system);
    if info.operating_system != "linux" {
        return warning(what, "pods there are not captured");
    }
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = (numbers.next().and_then(Result::ok), numbers.next().and_then(Result::ok));
    if let (Some(major), Some(minor)) = version
        && (major, minor) < OLDEST_KERNEL
    {
        return failed(what, format!("the rules need Linux {}.{} or newer", OLDEST_KERNEL.0, OLDEST_KERNEL.1));
    }
    if !["containerd://", "cri-o://"].iter().any(|known| runtime.starts_with(known)) {
        return warning(
            what,
            "the agent can ask containerd and CRI-O where plugins belong; name the directories for others",
        );
    }
    fine(what)
}

pub(super) fn other_meshes(namespaces: &[Namespace]) -> Vec<Finding> {
    let found = |name: &str| namespaces.iter().any(|namespace| namespace.metadata.name.as_deref() == Some(name));
    let meshes = [("istio-system", "Istio"), ("linkerd", "Linkerd"), ("kuma-system", "Kuma")];
    let findings = meshes.into_iter().filter(|(namespace, _)| found(namespace)).map(|(namespace, mesh)| {
        let hint = "pods that both bring under their control talk to neither; keep their namespaces apart";
        warning(format!("{mesh} seems to be installed (namespace {namespace})"), hint)
    });
    findings.collect()
}

pub(super) fn cilium(config: &ConfigMap) -> Finding {
    let setting = |key: &str| config.data.as_ref()?.get(key).map(String::as_str);
    if setting("cni-exclusive") == Some("true") {
        return warning(
            "Cilium takes other plugins out of the chain (cni-exclusive)",
            "the agent puts it back each time; better: helm upgrade cilium ... --set cni.exclusive=false",
        );
    }
    if setting("bpf-lb-sock") == Some("true") && setting("bpf-lb-sock-hostns-only") != Some("true") {
        return warning(
            "Cilium rewrites Services' addresses before the mesh sees them (socketLB)",
            "helm upgrade cilium ... --set socketLB.hostNamespaceOnly=true",
        );
    }
    fine("Cilium leaves the mesh alone")
}

/// Tunnels arrive at one port; a policy that names others closes it.
pub(super) fn network_policy(policy: &NetworkPolicy) -> Option<Finding> {
    let spec = policy.spec.as_ref()?;
    // Without types a policy is one for inbound traffic.
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if !(types.is_empty() || types.iter().any(|kind| kind == "Ingress")) {
        return None;
    }
    let rules = spec.ingress.as_deref().unwrap_or_default();
    let opens = |ports: &[NetworkPolicyPort]| ports.is_empty() || ports.iter().any(opens_tunnels);
    let (index, rule) = rules.iter().enumerate().find(|(_, rule)| !opens(rule.ports.as_deref().unwrap_or_default()))?;
    // The same peers as before: with the addresses kept, its meaning stays.
    let from = rule.from.clone().unwrap_or_default();
    let ports = json!([{ "port": HBONE_PORT, "protocol": "TCP" }]);
    let further = if from.is_empty() { json!({ "ports": ports }) } else { json!({ "from": from, "ports": ports }) };
    let patch = json!([{ "op": "add", "path": "/spec/ingress/-", "value": further }]);
    let (namespace, name) =
        (policy.metadata.namespace.as_deref().unwrap_or_default(), policy.metadata.name.as_deref().unwrap_or_default());
    Some(warning(
        format!("NetworkPolicy {namespace}/{name} would block tunnels (rule {index}, port {HBONE_PORT})"),
        format!(
            "if its pods come under the mesh: kubectl -n {namespace} patch networkpolicy {name} --type=json -p '{patch}'\n\
             tunnels then carry every port of these peers; restrict ports with an AuthorizationPolicy"
        ),
    ))
}

fn opens_tunnels(port: &NetworkPolicyPort) -> bool {
    let is_tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
    let hbone = i32::from(HBONE_PORT);
    let fits = match (&port.port, port.end_port) {
        (None, _) => true,
        (Some(IntOrString::Int(first)), Some(last)) => (*first..=last).contains(&hbone),
        (Some(IntOrString::Int(only)), None) => *only == hbone,
        (Some(IntOrString::String(_)), _) => false,
    };
    is_tcp && fits
}

pub(super) fn missing(name: &str) -> Finding {
    failed(format!("{name} is missing"), "underpass install")
}

pub(super) fn workload(name: &str, progress: Option<(u64, u64)>) -> Finding {
    match progress {
        Some((wanted, ready)) if ready >= wanted => fine(format!("{name}: {ready} of {wanted} ready")),
        Some((wanted, ready)) => {
            failed(format!("{name}: {ready} of {wanted} ready"), "kubectl -n underpass-system get pods -o wide")
        }
        None => failed(format!("{name} is not seen by its controller"), "is the controller manager running?"),
    }
}

/// One minor release either way is fine.
pub(super) fn skew(agents: &DaemonSet, own: &str) -> Option<Finding> {
    let containers = &agents.spec.as_ref()?.template.spec.as_ref()?.containers;
    let (_, tag) = containers.first()?.image.as_deref()?.rsplit_once(':')?;
    let minor = |version: &str| {
        let mut numbers = version.split('.');
        Some((numbers.next()?.parse::<u32>().ok()?, numbers.next()?.parse::<u32>().ok()?))
    };
    let (Some((major, theirs)), Some((own_major, ours))) = (minor(tag), minor(own)) else { return None };
    let what = format!("installed is {tag}, this program is {own}");
    Some(if major == own_major && theirs.abs_diff(ours) <= 1 {
        fine(what)
    } else {
        warning(what, "releases work together one minor either way; use the program of the installed release")
    })
}

#[cfg(test)]
mod tests;
