//! Kubernetes Services to the mesh's services, and what selects their endpoints.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::core::v1::{Service as KubeService, ServicePort as KubePort, ServiceSpec},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use underpass_model::{
    HealthPolicy, LoadBalancing, LocalityScope, NetworkAddress, Service, ServiceName, ServicePort, SpreadMode,
    Visibility,
};
use underpass_objects::{Kind, ObjectKey, ObjectName, Objects};

use super::{Note, Part, TranslateOptions};

/// Istio's annotation on a Service or Namespace, for clusters whose Service has no such field.
const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// What Kubernetes takes for the time of a session if a Service does not say.
const SESSION: Duration = Duration::from_hours(3);

/// A service and how its endpoints are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownService {
    pub(super) service: Service,
    pub(super) ports: Vec<Port>,
    /// Labels of its pods; none if EndpointSlices name its endpoints.
    pub(super) selector: Option<BTreeMap<String, String>>,
}

/// One of its TCP ports, as Kubernetes knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) service_port: u16,
    pub(super) name: String,
    pub(super) target: Target,
}

/// Where a port leads at an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Number(u16),
    /// A name that each pod resolves for itself.
    Name(String),
}

/// A service that has endpoints of its own.
pub(super) fn of(
    objects: &Objects,
    options: &TranslateOptions,
    name: &ObjectName,
    object: &KubeService,
) -> Option<Part<KnownService>> {
    let spec = object.spec.as_ref().filter(|spec| spec.type_.as_deref() != Some("ExternalName"))?;
    let mut notes = Vec::new();
    let mut note = |field, problem| {
        notes.push(Note { object: ObjectKey { kind: Kind::Service, name: name.clone() }, field, problem });
    };
    let ports = ports(spec, &mut note);
    let service = Service {
        name: ServiceName::new(
            &name.namespace,
            &format!("{}.{}.svc.{}", name.name, name.namespace, options.cluster_domain),
        ),
        short_name: name.name.as_str().into(),
        addresses: addresses(spec, options, &mut note),
        ranges: Vec::new(),
        ports: ports.iter().map(Port::in_general).collect(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        load_balancing: load_balancing(objects, object, spec, &mut note),
        // Kubernetes gives an address to one service only; who imports others' names is never one of its own.
        canonical: true,
        visibility: Visibility::Public,
    };
    let selector = spec.selector.clone().filter(|selector| !selector.is_empty());
    Some(Part { value: KnownService { service, ports, selector }, notes })
}

impl Port {
    /// As the service itself tells it: 0 where each endpoint must resolve a name.
    fn in_general(&self) -> ServicePort {
        let target_port = match self.target {
            Target::Number(port) => port,
            Target::Name(_) => 0,
        };
        ServicePort { service_port: self.service_port, target_port }
    }
}

fn ports(spec: &ServiceSpec, note: &mut impl FnMut(&'static str, String)) -> Vec<Port> {
    let mut ports = Vec::new();
    for port in spec.ports.as_deref().unwrap_or_default() {
        if !is_tcp(port.protocol.as_deref()) {
            continue;
        }
        match tcp_port(port) {
            Ok(port) => ports.push(port),
            Err((field, number)) => note(field, format!("{number} is no port from 1 to 65535")),
        }
    }
    ports
}

fn tcp_port(port: &KubePort) -> Result<Port, (&'static str, i32)> {
    let service_port = port_number(port.port).ok_or(("spec.ports.port", port.port))?;
    let target = match &port.target_port {
        None | Some(IntOrString::Int(0)) => Target::Number(service_port),
        Some(IntOrString::Int(number)) => {
            Target::Number(port_number(*number).ok_or(("spec.ports.targetPort", *number))?)
        }
        Some(IntOrString::String(name)) => Target::Name(name.clone()),
    };
    Ok(Port { service_port, name: port.name.clone().unwrap_or_default(), target })
}

/// Kubernetes' default is TCP.
pub(super) fn is_tcp(protocol: Option<&str>) -> bool {
    matches!(protocol, None | Some("" | "TCP"))
}

pub(super) fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|&port| port != 0)
}

/// Its virtual addresses of both families; a headless service (`None`) has none.
fn addresses(
    spec: &ServiceSpec,
    options: &TranslateOptions,
    note: &mut impl FnMut(&'static str, String),
) -> Vec<NetworkAddress> {
    let listed = spec.cluster_ips.clone().filter(|listed| !listed.is_empty());
    let listed = listed.unwrap_or_else(|| spec.cluster_ip.clone().into_iter().collect());
    let mut addresses = Vec::new();
    for text in listed.iter().filter(|text| !text.is_empty() && *text != "None") {
        match text.parse() {
            Ok(address) => addresses.push(NetworkAddress { network: options.network.clone(), address }),
            Err(_) => note("spec.clusterIPs", format!("{text:?} is no address")),
        }
    }
    addresses
}

fn load_balancing(
    objects: &Objects,
    service: &KubeService,
    spec: &ServiceSpec,
    note: &mut impl FnMut(&'static str, String),
) -> LoadBalancing {
    use LocalityScope::{Network, Node, Region, Subzone, Zone};
    let namespace = service.metadata.namespace.as_deref().unwrap_or("default");
    let of_namespace = || objects.namespaces.get(namespace).and_then(|namespace| annotated(&namespace.metadata));
    let distribution =
        spec.traffic_distribution.as_deref().or_else(|| annotated(&service.metadata)).or_else(of_namespace);
    let (preference, mode) = match distribution {
        // A promise of Kubernetes about where traffic stays, so it is stronger than any preference.
        _ if spec.internal_traffic_policy.as_deref() == Some("Local") => (vec![Node], SpreadMode::Strict),
        Some("PreferClose" | "PreferSameZone") => (vec![Network, Region, Zone], SpreadMode::Failover),
        Some("PreferSameNode") => (vec![Network, Region, Zone, Subzone, Node], SpreadMode::Failover),
        Some("Any" | "") | None => (Vec::new(), SpreadMode::Unspecified),
        Some(unknown) => {
            note("spec.trafficDistribution", format!("{unknown:?} is not known and counts as unset"));
            (Vec::new(), SpreadMode::Unspecified)
        }
    };
    let all = spec.publish_not_ready_addresses == Some(true);
    let health = if all { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
    LoadBalancing { preference, mode, health, affinity: affinity(spec, note) }
}

fn affinity(spec: &ServiceSpec, note: &mut impl FnMut(&'static str, String)) -> Option<Duration> {
    match spec.session_affinity.as_deref() {
        Some("ClientIP") => {}
        Some("None" | "") | None => return None,
        Some(unknown) => {
            note("spec.sessionAffinity", format!("{unknown:?} is not known and counts as unset"));
            return None;
        }
    }
    let client = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(seconds) = client.and_then(|client| client.timeout_seconds) else { return Some(SESSION) };
    let time = u64::try_from(seconds).ok().filter(|&seconds| seconds != 0).map(Duration::from_secs);
    if time.is_none() {
        let problem = format!("{seconds} is no time, the usual {} s are taken", SESSION.as_secs());
        note("spec.sessionAffinityConfig.clientIP.timeoutSeconds", problem);
    }
    time.or(Some(SESSION))
}

/// What a Service's or Namespace's annotation says of where traffic goes.
pub(super) fn annotated(metadata: &ObjectMeta) -> Option<&str> {
    metadata.annotations.as_ref()?.get(TRAFFIC_DISTRIBUTION).map(String::as_str)
}
