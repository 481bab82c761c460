//! A resource as it is handed to the publisher.

use std::sync::Arc;

use prost::Message;
use underpass_model::{NetworkMode, Revocation, Service, Workload};
use underpass_policy::Policy;

use crate::wire::{
    ResourceType,
    convert::{policy_to_wire, revocation_to_wire, service_to_wire, workload_to_wire},
    workload::{Address, address::Type},
};

/// One resource to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its type.
    pub kind: ResourceType,
    /// Its name, unique within the type.
    pub name: Arc<str>,
    /// Other names under which it can be asked for. Several resources may share one.
    pub aliases: Vec<Arc<str>>,
    /// Names of resources that are useless without this one: who asks for one of them gets this one too, as a service's
    /// endpoints come with the service.
    pub part_of: Vec<Arc<str>>,
    /// The encoded message of the type.
    pub body: Vec<u8>,
}

impl Published {
    /// A workload: found by its uid and its addresses, and part of the services that it backs.
    #[must_use]
    pub fn workload(workload: &Workload) -> Self {
        let addresses = match workload.network_mode {
            // Its node's addresses are not its own.
            NetworkMode::HostNetwork => &[],
            NetworkMode::Standard => workload.addresses.as_slice(),
        };
        let alias = |address| format!("{}/{address}", workload.network).into();
        Self {
            kind: ResourceType::Address,
            name: workload.uid.as_str().into(),
            aliases: addresses.iter().map(alias).collect(),
            part_of: workload.services.keys().map(|name| name.to_string().into()).collect(),
            body: Address { r#type: Some(Type::Workload(workload_to_wire(workload))) }.encode_to_vec(),
        }
    }

    /// A service: found by its name and its virtual addresses.
    #[must_use]
    pub fn service(service: &Service) -> Self {
        Self {
            kind: ResourceType::Address,
            name: service.name.to_string().into(),
            aliases: service.addresses.iter().map(|address| address.to_string().into()).collect(),
            part_of: Vec::new(),
            body: Address { r#type: Some(Type::Service(service_to_wire(service))) }.encode_to_vec(),
        }
    }

    /// An authorization policy.
    #[must_use]
    pub fn authorization(policy: &Policy) -> Self {
        Self {
            kind: ResourceType::Authorization,
            name: policy.name.as_str().into(),
            aliases: Vec::new(),
            part_of: Vec::new(),
            body: policy_to_wire(policy).encode_to_vec(),
        }
    }

    /// A revocation.
    #[must_use]
    pub fn revocation(revocation: &Revocation) -> Self {
        Self {
            kind: ResourceType::Revocation,
            name: revocation.name().into(),
            aliases: Vec::new(),
            part_of: Vec::new(),
            body: revocation_to_wire(revocation).encode_to_vec(),
        }
    }
}
