//! Workloads.

use std::collections::BTreeMap;

use underpass_model::{
    Health, Locality, NetworkMode, ServiceName, ServicePort, TrustDomain, Tunnel, Workload, WorkloadKind, WorkloadUid,
    names::DEFAULT_CLUSTER,
};

use super::{
    ConvertError, Problem, Wrong,
    address::{gateway, gateway_to_wire, ip, ip_to_wire, ports, ports_to_wire},
    shorten,
};
use crate::wire::workload as wire;

/// The service account of a workload that names none.
const DEFAULT_ACCOUNT: &str = "default";
/// The extension, without a value, of workloads that no NetworkPolicy selects.
const JOINABLE: &str = "underpass.dev/joinable";

pub(super) fn from_wire(message: &wire::Workload) -> Result<Workload, ConvertError> {
    parse(message).map_err(|wrong| match message.uid.as_str() {
        "" => wrong.of(&format!("workload {}/{}", message.namespace, message.name)),
        uid => wrong.of(uid),
    })
}

fn parse(message: &wire::Workload) -> Result<Workload, Wrong> {
    if message.uid.is_empty() {
        return Err(Wrong::new("uid", Problem::Empty));
    }
    let trust_domain = match message.trust_domain.as_str() {
        "" => TrustDomain::default(),
        name => TrustDomain::new(name).map_err(|_| Wrong::new("trust_domain", Problem::Form(shorten(name))))?,
    };
    Ok(Workload {
        uid: WorkloadUid::new(&message.uid),
        name: message.name.as_str().into(),
        namespace: message.namespace.as_str().into(),
        addresses: message.addresses.iter().map(|bytes| ip("addresses", bytes)).collect::<Result<_, _>>()?,
        network: message.network.as_str().into(),
        tunnel: tunnel(message.tunnel_protocol)?,
        trust_domain,
        service_account: or(&message.service_account, DEFAULT_ACCOUNT).into(),
        node: message.node.as_str().into(),
        canonical_name: message.canonical_name.as_str().into(),
        canonical_revision: message.canonical_revision.as_str().into(),
        kind: kind(message.workload_type),
        owner: message.workload_name.as_str().into(),
        health: health(message.status)?,
        cluster: or(&message.cluster_id, DEFAULT_CLUSTER).into(),
        locality: message.locality.as_ref().map(locality).unwrap_or_default(),
        network_mode: network_mode(message.network_mode)?,
        waypoint: message.waypoint.as_ref().map(|waypoint| gateway("waypoint", waypoint)).transpose()?,
        policies: message.authorization_policies.iter().map(|name| name.as_str().into()).collect(),
        services: services(&message.services)?,
        capacity: message.capacity.unwrap_or(1),
        joinable: message.extensions.iter().any(|extension| extension.name == JOINABLE),
    })
}

fn or<'a>(given: &'a str, default: &'a str) -> &'a str {
    if given.is_empty() { default } else { given }
}

fn tunnel(number: i32) -> Result<Tunnel, Wrong> {
    match wire::TunnelProtocol::try_from(number) {
        Ok(wire::TunnelProtocol::None) => Ok(Tunnel::None),
        Ok(wire::TunnelProtocol::Hbone) => Ok(Tunnel::Hbone),
        // Spoken as plaintext it would leave the mesh's protection unseen.
        Ok(wire::TunnelProtocol::LegacyIstioMtls) | Err(_) => {
            Err(Wrong::new("tunnel_protocol", Problem::Unknown(number)))
        }
    }
}

fn health(number: i32) -> Result<Health, Wrong> {
    match wire::WorkloadStatus::try_from(number) {
        Ok(wire::WorkloadStatus::Healthy) => Ok(Health::Healthy),
        Ok(wire::WorkloadStatus::Unhealthy) => Ok(Health::Unhealthy),
        Err(_) => Err(Wrong::new("status", Problem::Unknown(number))),
    }
}

fn network_mode(number: i32) -> Result<NetworkMode, Wrong> {
    match wire::NetworkMode::try_from(number) {
        Ok(wire::NetworkMode::Standard) => Ok(NetworkMode::Standard),
        Ok(wire::NetworkMode::HostNetwork) => Ok(NetworkMode::HostNetwork),
        Err(_) => Err(Wrong::new("network_mode", Problem::Unknown(number))),
    }
}

/// Telemetry only: what is not known counts as a pod.
fn kind(number: i32) -> WorkloadKind {
    match wire::WorkloadType::try_from(number) {
        Ok(wire::WorkloadType::Deployment) => WorkloadKind::Deployment,
        Ok(wire::WorkloadType::Cronjob) => WorkloadKind::CronJob,
        Ok(wire::WorkloadType::Job) => WorkloadKind::Job,
        Ok(wire::WorkloadType::Pod) | Err(_) => WorkloadKind::Pod,
    }
}

fn locality(message: &wire::Locality) -> Locality {
    Locality {
        region: message.region.as_str().into(),
        zone: message.zone.as_str().into(),
        subzone: message.subzone.as_str().into(),
    }
}

fn services(messages: &BTreeMap<String, wire::PortList>) -> Result<BTreeMap<ServiceName, Vec<ServicePort>>, Wrong> {
    let one = |(name, list): (&String, &wire::PortList)| {
        let parsed = ServiceName::parse(name);
        let name = parsed.ok_or_else(|| Wrong::new("services", Problem::Form(shorten(name))))?;
        Ok((name, ports("services", &list.ports)?))
    };
    messages.iter().map(one).collect()
}

/// Writes a workload; what equals the protocol's defaults stays empty.
#[must_use]
pub fn workload_to_wire(workload: &Workload) -> wire::Workload {
    let kind = match workload.kind {
        WorkloadKind::CronJob => wire::WorkloadType::Cronjob,
        WorkloadKind::Deployment => wire::WorkloadType::Deployment,
        WorkloadKind::Job => wire::WorkloadType::Job,
        WorkloadKind::Pod => wire::WorkloadType::Pod,
    };
    wire::Workload {
        uid: workload.uid.as_str().to_owned(),
        name: workload.name.to_string(),
        namespace: workload.namespace.to_string(),
        addresses: workload.addresses.iter().copied().map(ip_to_wire).collect(),
        network: workload.network.to_string(),
        tunnel_protocol: tunnel_to_wire(workload.tunnel).into(),
        trust_domain: unless(workload.trust_domain.as_str(), TrustDomain::default().as_str()),
        service_account: unless(&workload.service_account, DEFAULT_ACCOUNT),
        waypoint: workload.waypoint.as_ref().map(gateway_to_wire),
        node: workload.node.to_string(),
        canonical_name: workload.canonical_name.to_string(),
        canonical_revision: workload.canonical_revision.to_string(),
        workload_type: kind.into(),
        workload_name: workload.owner.to_string(),
        authorization_policies: workload.policies.iter().map(ToString::to_string).collect(),
        status: health_to_wire(workload.health).into(),
        cluster_id: unless(&workload.cluster, DEFAULT_CLUSTER),
        services: services_to_wire(workload),
        locality: Some(&workload.locality).filter(|&place| *place != Locality::default()).map(locality_to_wire),
        network_mode: network_mode_to_wire(workload.network_mode).into(),
        capacity: Some(workload.capacity).filter(|&capacity| capacity != 1),
        extensions: workload
            .joinable
            .then(|| wire::Extension { name: JOINABLE.to_owned(), config: None })
            .into_iter()
            .collect(),
        ..wire::Workload::default()
    }
}

fn unless(value: &str, default: &str) -> String {
    if value == default { String::new() } else { value.to_owned() }
}

fn tunnel_to_wire(tunnel: Tunnel) -> wire::TunnelProtocol {
    match tunnel {
        Tunnel::Hbone => wire::TunnelProtocol::Hbone,
        Tunnel::None => wire::TunnelProtocol::None,
    }
}

fn health_to_wire(health: Health) -> wire::WorkloadStatus {
    match health {
        Health::Healthy => wire::WorkloadStatus::Healthy,
        Health::Unhealthy => wire::WorkloadStatus::Unhealthy,
    }
}

fn network_mode_to_wire(mode: NetworkMode) -> wire::NetworkMode {
    match mode {
        NetworkMode::HostNetwork => wire::NetworkMode::HostNetwork,
        NetworkMode::Standard => wire::NetworkMode::Standard,
    }
}

fn services_to_wire(workload: &Workload) -> BTreeMap<String, wire::PortList> {
    let one =
        |(name, ports): (&ServiceName, &Vec<_>)| (name.to_string(), wire::PortList { ports: ports_to_wire(ports) });
    workload.services.iter().map(one).collect()
}

fn locality_to_wire(locality: &Locality) -> wire::Locality {
    wire::Locality {
        region: locality.region.to_string(),
        zone: locality.zone.to_string(),
        subzone: locality.subzone.to_string(),
    }
}
