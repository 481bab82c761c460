//! Pods to workloads, without the services they back.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use underpass_model::{Health, Locality, NetworkMode, Tunnel, Workload, WorkloadUid};
use underpass_objects::{CaptureReport, CaptureState, Kind, ObjectKey, Objects, pod};

use super::{Note, Part, Sight, TranslateOptions, owner::owner};

/// Labels that name a workload for telemetry, the most telling first.
const CANONICAL_NAME: [&str; 3] = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
/// Labels that name its version.
const CANONICAL_REVISION: [&str; 3] = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
const NO_REVISION: &str = "latest";

/// A pod that is scheduled and has not ended is a workload; what it backs and which policies it is under is added.
pub(super) fn of(sight: &Sight<'_>, pod: &Pod) -> Option<Part<Workload>> {
    let node = pod::node(pod).filter(|_| !pod::is_terminal(pod))?;
    let mut notes = Vec::new();
    let mut workload = of_pod(pod, node, sight.options);
    workload.locality = locality(sight.objects, node);
    match sight.reports.of(pod).map(|report| check(&report, pod, node)) {
        None => {}
        Some(Ok(state)) => workload.tunnel = tunnel(state, workload.network_mode),
        Some(Err(problem)) => notes.push(Note { object: key(pod), field: "capture report", problem }),
    }
    note_addresses(pod, &mut notes);
    Some(Part { value: workload, notes })
}

fn of_pod(pod: &Pod, node: &str, options: &TranslateOptions) -> Workload {
    let name = pod::name(pod);
    let (kind, owner) = owner(pod);
    let labelled =
        |keys: [&str; 3]| keys.into_iter().find_map(|key| pod::label(pod, key).filter(|value| !value.is_empty()));
    let healthy = pod::is_ready(pod) && !pod::is_terminating(pod);
    Workload {
        uid: WorkloadUid::of_pod(&options.cluster, &name.namespace, &name.name),
        addresses: pod::addresses(pod),
        network: options.network.clone(),
        tunnel: Tunnel::None,
        trust_domain: options.trust_domain.clone(),
        service_account: pod::service_account(pod).into(),
        node: node.into(),
        canonical_name: labelled(CANONICAL_NAME).unwrap_or(&owner).into(),
        canonical_revision: labelled(CANONICAL_REVISION).unwrap_or(NO_REVISION).into(),
        kind,
        owner: owner.into(),
        health: if healthy { Health::Healthy } else { Health::Unhealthy },
        cluster: options.cluster.clone(),
        locality: Locality::default(),
        network_mode: if pod::is_on_host_network(pod) { NetworkMode::HostNetwork } else { NetworkMode::Standard },
        waypoint: None,
        policies: Vec::new(),
        services: BTreeMap::new(),
        capacity: 1,
        joinable: false,
        name: name.name.into(),
        namespace: name.namespace.into(),
    }
}

/// A report counts for the pod that it describes, on the node whose agent could see it.
fn check(report: &CaptureReport, pod: &Pod, node: &str) -> Result<CaptureState, String> {
    let name = pod::name(pod);
    if report.node != node {
        Err(format!("comes from node {:?}, but the pod is on {node:?}", report.node))
    } else if (&report.namespace, &report.name) != (&name.namespace, &name.name) {
        Err(format!("is about {}/{}", report.namespace, report.name))
    } else {
        Ok(report.state)
    }
}

/// A leaving pod still takes tunnels, but nobody shall begin one.
fn tunnel(state: CaptureState, mode: NetworkMode) -> Tunnel {
    match (state, mode) {
        (CaptureState::Captured, NetworkMode::Standard) => Tunnel::Hbone,
        (CaptureState::Captured, NetworkMode::HostNetwork) | (CaptureState::Leaving, _) => Tunnel::None,
    }
}

/// Where a node is, by its labels.
pub(super) fn locality(objects: &Objects, node: &str) -> Locality {
    locality_of(objects.nodes.get(node).map(AsRef::as_ref))
}

/// Where a node is, if it is known.
pub(super) fn locality_of(node: Option<&Node>) -> Locality {
    let label = |key: &str| {
        let labels = node.and_then(|node| node.metadata.labels.as_ref());
        labels.and_then(|labels| labels.get(key)).map_or("", String::as_str).into()
    };
    Locality {
        region: label("topology.kubernetes.io/region"),
        zone: label("topology.kubernetes.io/zone"),
        subzone: label("topology.istio.io/subzone"),
    }
}

fn note_addresses(pod: &Pod, notes: &mut Vec<Note>) {
    let listed = pod.status.as_ref().and_then(|status| status.pod_ips.as_deref()).unwrap_or_default();
    for listed in listed.iter().filter(|listed| listed.ip.parse::<std::net::IpAddr>().is_err()) {
        let problem = format!("{:?} is no address", listed.ip);
        notes.push(Note { object: key(pod), field: "status.podIPs", problem });
    }
}

fn key(pod: &Pod) -> ObjectKey {
    ObjectKey { kind: Kind::Pod, name: pod::name(pod) }
}
