//! Services.

use std::time::Duration;

use underpass_model::{GatewayAddress, HealthPolicy, LoadBalancing, LocalityScope, Service, SpreadMode, Visibility};
use wire::load_balancing::{HealthPolicy as WireHealth, Mode, Scope};

use super::{
    ConvertError, Problem, Wrong,
    address::{
        Target, gateway, gateway_to_wire, host_to_wire, ports, ports_to_wire, range_to_wire, service_name, target,
    },
};
use crate::wire::workload as wire;

/// The extension that has the time of a service's session affinity, a `google.protobuf.Duration`.
const AFFINITY: &str = "underpass.dev/session-affinity";

pub(super) fn from_wire(message: &wire::Service) -> Result<Service, ConvertError> {
    parse(message).map_err(|wrong| wrong.of(&format!("{}/{}", message.namespace, message.hostname)))
}

fn parse(message: &wire::Service) -> Result<Service, Wrong> {
    let (mut addresses, mut ranges) = (Vec::new(), Vec::new());
    for address in &message.addresses {
        match target("addresses", address)? {
            Target::Host(host) => addresses.push(host),
            Target::Range(range) => ranges.push(range),
        }
    }
    let visibility = match wire::service::Visibility::try_from(message.visibility) {
        Ok(wire::service::Visibility::Public) => Visibility::Public,
        Ok(wire::service::Visibility::Namespace) => Visibility::Namespace,
        Err(_) => return Err(Wrong::new("visibility", Problem::Unknown(message.visibility))),
    };
    let mut load_balancing = message.load_balancing.as_ref().map(balancing).transpose()?.unwrap_or_default();
    load_balancing.affinity = affinity(message)?;
    Ok(Service {
        name: service_name("hostname", &message.namespace, &message.hostname)?,
        short_name: message.name.as_str().into(),
        addresses,
        ranges,
        ports: ports("ports", &message.ports)?,
        // Names of other forms can never match a certificate of the mesh: to drop them refuses, not allows.
        subject_alt_names: message.subject_alt_names.iter().filter_map(|name| name.parse().ok()).collect(),
        waypoint: waypoint(message)?,
        load_balancing,
        canonical: message.canonical,
        visibility,
    })
}

/// A service that only has weighted waypoints gets the heaviest one: the model knows no split, and no waypoint at all
/// would let traffic around the policies that waypoints hold.
fn waypoint(message: &wire::Service) -> Result<Option<GatewayAddress>, Wrong> {
    let heaviest = || message.weighted_waypoints.iter().rev().max_by_key(|waypoint| waypoint.weight);
    let weighted = || heaviest().map(|waypoint| waypoint.destination.clone().unwrap_or_default());
    message.waypoint.clone().or_else(weighted).map(|message| gateway("waypoint", &message)).transpose()
}

fn affinity(message: &wire::Service) -> Result<Option<Duration>, Wrong> {
    let Some(extension) = message.extensions.iter().find(|extension| extension.name == AFFINITY) else {
        return Ok(None);
    };
    let time = extension.config.as_ref().and_then(|config| config.to_msg::<prost_types::Duration>().ok());
    let time = time.and_then(|time| Duration::try_from(time).ok());
    time.map(Some).ok_or_else(|| Wrong::new("extensions", Problem::NoTime))
}

fn balancing(message: &wire::LoadBalancing) -> Result<LoadBalancing, Wrong> {
    let unknown = |number: i32| Wrong::new("load_balancing", Problem::Unknown(number));
    let scope = |number: &i32| match Scope::try_from(*number) {
        Ok(Scope::Region) => Ok(LocalityScope::Region),
        Ok(Scope::Zone) => Ok(LocalityScope::Zone),
        Ok(Scope::Subzone) => Ok(LocalityScope::Subzone),
        Ok(Scope::Node) => Ok(LocalityScope::Node),
        Ok(Scope::Cluster) => Ok(LocalityScope::Cluster),
        Ok(Scope::Network) => Ok(LocalityScope::Network),
        // To drop one would widen what `STRICT` allows.
        Ok(Scope::UnspecifiedScope) | Err(_) => Err(unknown(*number)),
    };
    let mode = match Mode::try_from(message.mode) {
        Ok(Mode::UnspecifiedMode) => SpreadMode::Unspecified,
        Ok(Mode::Strict) => SpreadMode::Strict,
        Ok(Mode::Failover) => SpreadMode::Failover,
        Ok(Mode::Passthrough) => SpreadMode::Passthrough,
        Err(_) => return Err(unknown(message.mode)),
    };
    let health = match WireHealth::try_from(message.health_policy) {
        Ok(WireHealth::OnlyHealthy) => HealthPolicy::OnlyHealthy,
        Ok(WireHealth::AllowAll) => HealthPolicy::AllowAll,
        Err(_) => return Err(unknown(message.health_policy)),
    };
    let preference = message.routing_preference.iter().map(scope).collect::<Result<_, _>>()?;
    Ok(LoadBalancing { preference, mode, health, affinity: None })
}

/// Writes a service.
#[must_use]
pub fn service_to_wire(service: &Service) -> wire::Service {
    let visibility = match service.visibility {
        Visibility::Namespace => wire::service::Visibility::Namespace,
        Visibility::Public => wire::service::Visibility::Public,
    };
    let hosts = service.addresses.iter().map(host_to_wire);
    let balancing = Some(&service.load_balancing).filter(|&balancing| *balancing != LoadBalancing::default());
    wire::Service {
        name: service.short_name.to_string(),
        namespace: service.name.namespace.to_string(),
        hostname: service.name.hostname.to_string(),
        addresses: hosts.chain(service.ranges.iter().map(range_to_wire)).collect(),
        ports: ports_to_wire(&service.ports),
        subject_alt_names: service.subject_alt_names.iter().map(ToString::to_string).collect(),
        waypoint: service.waypoint.as_ref().map(gateway_to_wire),
        load_balancing: balancing.map(load_balancing_to_wire),
        canonical: service.canonical,
        visibility: visibility.into(),
        extensions: service.load_balancing.affinity.map(affinity_to_wire).into_iter().collect(),
        ..wire::Service::default()
    }
}

fn affinity_to_wire(time: Duration) -> wire::Extension {
    // Whole seconds, as in Kubernetes, and no more than the message can hold.
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let config = prost_types::Any::from_msg(&prost_types::Duration { seconds, nanos: 0 });
    wire::Extension { name: AFFINITY.to_owned(), config: config.ok() }
}

fn load_balancing_to_wire(balancing: &LoadBalancing) -> wire::LoadBalancing {
    let scope = |scope: &LocalityScope| match scope {
        LocalityScope::Cluster => Scope::Cluster.into(),
        LocalityScope::Network => Scope::Network.into(),
        LocalityScope::Node => Scope::Node.into(),
        LocalityScope::Region => Scope::Region.into(),
        LocalityScope::Subzone => Scope::Subzone.into(),
        LocalityScope::Zone => Scope::Zone.into(),
    };
    let mode = match balancing.mode {
        SpreadMode::Failover => Mode::Failover,
        SpreadMode::Passthrough => Mode::Passthrough,
        SpreadMode::Strict => Mode::Strict,
        SpreadMode::Unspecified => Mode::UnspecifiedMode,
    };
    let health = match balancing.health {
        HealthPolicy::AllowAll => WireHealth::AllowAll,
        HealthPolicy::OnlyHealthy => WireHealth::OnlyHealthy,
    };
    wire::LoadBalancing {
        routing_preference: balancing.preference.iter().map(scope).collect(),
        mode: mode.into(),
        health_policy: health.into(),
    }
}
