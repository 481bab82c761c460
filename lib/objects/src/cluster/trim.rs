//! What of each object is kept. A mesh of many pods would otherwise be mostly volumes, environment and the record of who
//! wrote which field, and every heartbeat of a node a change.

use k8s_openapi::{
    api::{
        core::v1::{
            Container, Namespace, NamespaceCondition, NamespaceStatus, Node, NodeSpec, Pod, PodCondition, PodSpec,
            PodStatus, Service, ServiceAccount,
        },
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use underpass_model::names;

/// Repeats the whole object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Without who wrote what, and without the counts of writes: an object that is written again as it was is no change.
fn metadata(metadata: ObjectMeta) -> ObjectMeta {
    ObjectMeta { generation: None, ..own_metadata(metadata) }
}

/// Of an object of the mesh's own kinds; its generation is kept, for its status tells of it.
pub(super) fn own_metadata(mut metadata: ObjectMeta) -> ObjectMeta {
    metadata.managed_fields = None;
    metadata.resource_version = None;
    metadata.self_link = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
    metadata
}

/// Where it runs, as whom, which ports it names, its addresses, and the conditions that matter.
pub(super) fn pod(pod: Pod) -> Pod {
    let spec = pod.spec.map(|spec| PodSpec {
        containers: spec.containers.into_iter().map(container).collect(),
        init_containers: spec.init_containers.map(|containers| containers.into_iter().map(container).collect()),
        host_network: spec.host_network,
        host_pid: spec.host_pid,
        node_name: spec.node_name,
        service_account_name: spec.service_account_name,
        ..PodSpec::default()
    });
    let status = pod.status.map(|status| PodStatus {
        conditions: status.conditions.map(|conditions| conditions.into_iter().filter_map(condition).collect()),
        host_ips: status.host_ips,
        phase: status.phase,
        pod_ip: status.pod_ip,
        pod_ips: status.pod_ips,
        ..PodStatus::default()
    });
    Pod { metadata: metadata(pod.metadata), spec, status }
}

fn container(container: Container) -> Container {
    Container {
        name: container.name,
        ports: container.ports,
        restart_policy: container.restart_policy,
        ..Container::default()
    }
}

fn condition(condition: PodCondition) -> Option<PodCondition> {
    if names::is_own(&condition.type_) {
        return Some(condition);
    }
    let kept = PodCondition { type_: condition.type_, status: condition.status, ..PodCondition::default() };
    (kept.type_ == "Ready").then_some(kept)
}

/// Its labels and annotations, and what the operator said of it.
pub(super) fn namespace(namespace: Namespace) -> Namespace {
    let own = |mut conditions: Vec<NamespaceCondition>| {
        conditions.retain(|condition| names::is_own(&condition.type_));
        conditions
    };
    let status = namespace.status.map(|status| NamespaceStatus { conditions: status.conditions.map(own), phase: None });
    Namespace { metadata: metadata(namespace.metadata), spec: None, status }
}

/// Its labels, which say where it is, and the mesh's own taints.
pub(super) fn node(node: Node) -> Node {
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let own: Vec<_> = taints.into_iter().filter(|taint| names::is_own(&taint.key)).collect();
    let spec = (!own.is_empty()).then(|| NodeSpec { taints: Some(own), ..NodeSpec::default() });
    Node { metadata: metadata(node.metadata), spec, status: None }
}

pub(super) fn service(service: Service) -> Service {
    Service { metadata: metadata(service.metadata), spec: service.spec, status: None }
}

pub(super) fn service_account(account: ServiceAccount) -> ServiceAccount {
    ServiceAccount { metadata: metadata(account.metadata), ..ServiceAccount::default() }
}

pub(super) fn endpoint_slice(slice: EndpointSlice) -> EndpointSlice {
    EndpointSlice { metadata: metadata(slice.metadata), ..slice }
}
