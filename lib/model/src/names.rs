//! Names and numbers that users and other programs of the field see: labels, annotations, ports, marks.

/// Port on which the node proxy takes captured outbound connections, in each captured pod.
pub const OUTBOUND_PORT: u16 = 15001;
/// Port on which the node proxy takes captured inbound plaintext connections, in each captured pod.
pub const INBOUND_PLAINTEXT_PORT: u16 = 15006;
/// Port of HBONE: mutual TLS carrying HTTP/2 CONNECT, in each captured pod.
pub const HBONE_PORT: u16 = 15008;
/// The ports on which only the node proxy listens. A call that resolves to one of them is a loop or an attack.
pub const OWN_PORTS: [u16; 3] = [OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT, HBONE_PORT];

/// Loopback port of the administration interface.
pub const ADMIN_PORT: u16 = 15000;
/// Port on which metrics are served, on the process's own address.
pub const METRICS_PORT: u16 = 15020;
/// Port on which readiness is served, on the process's own address.
pub const READY_PORT: u16 = 15021;
/// Port on which the operator serves discovery and certificates over TLS.
pub const OPERATOR_PORT: u16 = 15012;

/// Socket mark (`SO_MARK`) of every socket that the node proxy makes inside a pod; rules never capture such packets.
pub const PROXY_MARK: u32 = 0x539;
/// Mark of replies to connections whose source address the node proxy kept; routed to `lo` so that it gets them.
pub const REPLY_MARK: u32 = 0x111;
/// The bits of a mark that are ours.
pub const MARK_MASK: u32 = 0xfff;
/// Routing table, in each captured pod, that delivers replies marked [`REPLY_MARK`] locally.
pub const REPLY_ROUTE_TABLE: u32 = 100;
/// Priority of the routing rule that selects [`REPLY_ROUTE_TABLE`].
pub const REPLY_RULE_PRIORITY: u32 = 32764;

/// Label on a namespace or pod: [`ENROLLED`] enrols, [`NOT_ENROLLED`] on a pod wins over its namespace.
pub const MESH_LABEL: &str = "underpass.dev/mesh";
/// Value of [`MESH_LABEL`] that enrols.
pub const ENROLLED: &str = "enabled";
/// Value of [`MESH_LABEL`] that keeps a pod out.
pub const NOT_ENROLLED: &str = "disabled";

/// Pod annotation: inbound ports left out of capture, comma-separated.
pub const EXCLUDE_INBOUND_PORTS: &str = "underpass.dev/exclude-inbound-ports";
/// Pod annotation: outbound ports left out of capture, comma-separated.
pub const EXCLUDE_OUTBOUND_PORTS: &str = "underpass.dev/exclude-outbound-ports";
/// Pod annotation: source CIDRs left out of inbound capture, comma-separated.
pub const EXCLUDE_INBOUND_CIDRS: &str = "underpass.dev/exclude-inbound-cidrs";
/// Pod annotation: destination CIDRs left out of outbound capture, comma-separated.
pub const EXCLUDE_OUTBOUND_CIDRS: &str = "underpass.dev/exclude-outbound-cidrs";

/// Pod annotation: the most connections that its node proxy carries for it at once.
pub const LIMIT_CONNECTIONS: &str = "underpass.dev/limit-connections";
/// Pod annotation: the most descriptors that its node proxy has open for it.
pub const LIMIT_DESCRIPTORS: &str = "underpass.dev/limit-descriptors";
/// Pod annotation: the most peers that may shake hands with it at once.
pub const LIMIT_HANDSHAKES: &str = "underpass.dev/limit-handshakes";
/// Pod annotation: how many bytes of its connections may be under way in its node proxy (`64Mi`) before it is read from in
/// small pieces.
pub const LIMIT_BUFFERED_BYTES: &str = "underpass.dev/limit-buffered-bytes";

/// The namespace in which the mesh itself runs; never enrolled.
pub const SYSTEM_NAMESPACE: &str = "underpass-system";
/// Namespaces that are never enrolled, whatever their labels say.
pub const NEVER_ENROLLED: [&str; 2] = [SYSTEM_NAMESPACE, "kube-system"];

/// The cluster id of workloads that name none (`cluster_id` of the discovery protocol).
pub const DEFAULT_CLUSTER: &str = "Kubernetes";

/// What begins the names of the mesh's own labels, annotations and conditions.
const OWN_PREFIX: &str = "underpass.dev/";
/// Node taint with which nodes may begin; the operator takes it off when the node's agent is ready.
pub const AGENT_NOT_READY_TAINT: &str = "underpass.dev/agent-not-ready";
/// Pod condition: true while the pod takes tunnels, false while it leaves; written by the node's agent.
pub const CAPTURED_CONDITION: &str = "underpass.dev/Captured";
/// Namespace condition: whether its pods are captured, written by the operator.
pub const ENROLLED_CONDITION: &str = "underpass.dev/Enrolled";
/// Pod condition: no subscriber believes any more that a leaving pod takes tunnels; written by the operator.
pub const WITHDRAWN_CONDITION: &str = "underpass.dev/Withdrawn";

/// Whether a label, annotation or condition is the mesh's own.
#[must_use]
pub fn is_own(name: &str) -> bool {
    name.starts_with(OWN_PREFIX)
}
