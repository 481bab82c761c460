//! Addresses, ports and gateways.

use std::net::IpAddr;

use ipnet::IpNet;
use underpass_model::{
    GatewayAddress, GatewayDestination, NetworkAddress, NetworkRange, ServiceName, ServicePort, names,
};

use super::{Problem, Wrong, shorten};
use crate::wire::workload as wire;

/// An address or a range.
pub(super) enum Target {
    Host(NetworkAddress),
    Range(NetworkRange),
}

pub(super) fn ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, Wrong> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let sixteen = <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    let address = four.or(sixteen).map_err(|_| Wrong::new(field, Problem::AddressLength(bytes.len())))?;
    Ok(address.to_canonical())
}

pub(super) fn ip_to_wire(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

pub(super) fn target(field: &'static str, message: &wire::NetworkAddress) -> Result<Target, Wrong> {
    let address = ip(field, &message.address)?;
    let network = message.network.as_str().into();
    let bits = if message.address.len() == 4 { 32 } else { 128 };
    let Some(length) = message.length.filter(|&length| length != bits) else {
        return Ok(Target::Host(NetworkAddress { network, address }));
    };
    let range = range(field, &message.address, length)?;
    Ok(Target::Range(NetworkRange { network, range }))
}

pub(super) fn range(field: &'static str, bytes: &[u8], length: u32) -> Result<IpNet, Wrong> {
    let address = ip(field, bytes)?;
    let wrong = || Wrong::new(field, Problem::PrefixLength(length));
    // An IPv4 range written as IPv6 counts its prefix from the longer address's beginning.
    let mapped = bytes.len() == 16 && address.is_ipv4();
    let own = if mapped { length.checked_sub(96).ok_or_else(wrong)? } else { length };
    let own = u8::try_from(own).map_err(|_| wrong())?;
    Ok(IpNet::new(address, own).map_err(|_| wrong())?.trunc())
}

pub(super) fn host_to_wire(host: &NetworkAddress) -> wire::NetworkAddress {
    wire::NetworkAddress { network: host.network.to_string(), address: ip_to_wire(host.address), length: None }
}

pub(super) fn range_to_wire(range: &NetworkRange) -> wire::NetworkAddress {
    wire::NetworkAddress {
        network: range.network.to_string(),
        address: ip_to_wire(range.range.network()),
        length: Some(range.range.prefix_len().into()),
    }
}

pub(super) fn service_name(field: &'static str, namespace: &str, hostname: &str) -> Result<ServiceName, Wrong> {
    if namespace.is_empty() || hostname.is_empty() {
        return Err(Wrong::new(field, Problem::Empty));
    }
    if namespace.contains('/') || hostname.contains('/') {
        return Err(Wrong::new(field, Problem::Form(shorten(&format!("{namespace}/{hostname}")))));
    }
    Ok(ServiceName::new(namespace, hostname))
}

pub(super) fn gateway(field: &'static str, message: &wire::GatewayAddress) -> Result<GatewayAddress, Wrong> {
    use wire::gateway_address::Destination;
    let destination = match &message.destination {
        None => return Err(Wrong::new(field, Problem::Empty)),
        Some(Destination::Hostname(name)) => {
            GatewayDestination::Service(service_name(field, &name.namespace, &name.hostname)?)
        }
        Some(Destination::Address(address)) => match target(field, address)? {
            Target::Host(host) => GatewayDestination::Address(host),
            Target::Range(range) => return Err(Wrong::new(field, Problem::Form(range.range.to_string()))),
        },
    };
    let port = match message.hbone_mtls_port {
        0 => names::HBONE_PORT,
        given => port(field, given)?,
    };
    Ok(GatewayAddress { destination, port })
}

pub(super) fn gateway_to_wire(gateway: &GatewayAddress) -> wire::GatewayAddress {
    use wire::gateway_address::Destination;
    let destination = match &gateway.destination {
        GatewayDestination::Address(address) => Destination::Address(host_to_wire(address)),
        GatewayDestination::Service(name) => Destination::Hostname(wire::NamespacedHostname {
            namespace: name.namespace.to_string(),
            hostname: name.hostname.to_string(),
        }),
    };
    wire::GatewayAddress { destination: Some(destination), hbone_mtls_port: gateway.port.into() }
}

pub(super) fn ports(field: &'static str, messages: &[wire::Port]) -> Result<Vec<ServicePort>, Wrong> {
    let one = |message: &wire::Port| {
        let service_port = port(field, message.service_port)?;
        let target_port = port(field, message.target_port)?;
        if service_port == 0 {
            return Err(Wrong::new(field, Problem::Port(0)));
        }
        Ok(ServicePort { service_port, target_port })
    };
    messages.iter().map(one).collect()
}

pub(super) fn ports_to_wire(ports: &[ServicePort]) -> Vec<wire::Port> {
    let one = |port: &ServicePort| wire::Port {
        service_port: port.service_port.into(),
        target_port: port.target_port.into(),
        app_protocol: wire::AppProtocol::Unknown.into(),
    };
    ports.iter().map(one).collect()
}

fn port(field: &'static str, number: u32) -> Result<u16, Wrong> {
    u16::try_from(number).map_err(|_| Wrong::new(field, Problem::Port(number)))
}
