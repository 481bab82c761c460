//! From a response to a delta: what is good, what is refused and why.

use std::sync::Arc;

use prost::Message;

use crate::{
    store::{Delta, Resource},
    wire::{
        PARTIAL, ResourceType,
        convert::{self, Addressed},
        security::Authorization,
        trust::Revocation,
        workload::Address,
        xds,
    },
};

/// A response, understood.
pub(crate) struct Digest {
    pub(crate) delta: Delta,
    /// Every name, present or absent, that the response says something about; aliases too.
    pub(crate) names: Vec<String>,
    /// One sentence for each resource that was refused.
    pub(crate) refused: Vec<String>,
}

pub(crate) fn digest(kind: ResourceType, response: &xds::DeltaDiscoveryResponse) -> Digest {
    let complete = !response.system_version_info.starts_with(PARTIAL);
    let removed = response.removed_resources.clone();
    let mut digest = Digest {
        names: removed.clone(),
        delta: Delta { kind, changed: Vec::with_capacity(response.resources.len()), removed, complete },
        refused: Vec::new(),
    };
    for bytes in &response.resources {
        match xds::Resource::decode(bytes.clone()) {
            Ok(resource) => digest.take(kind, resource),
            Err(error) => digest.refused.push(format!("a resource that cannot be read: {error}")),
        }
    }
    digest
}

impl Digest {
    fn take(&mut self, kind: ResourceType, message: xds::Resource) {
        let read = match kind {
            ResourceType::Address => address(&message),
            ResourceType::Authorization => policy(&message),
            ResourceType::Revocation => revocation(&message),
        };
        let Read { resource, problem } = read;
        if let Some(problem) = problem {
            self.refused.push(format!("{:?}: {problem}", message.name));
        }
        if let Some(resource) = resource {
            // The name is what a removal will say, so a resource under another's name could never be removed.
            let own = resource.name();
            if own == message.name {
                self.delta.changed.push((resource, Arc::from(message.version)));
            } else {
                self.refused.push(format!("{:?}: holds {own:?}", message.name));
            }
        }
        self.names.push(message.name);
        self.names.extend(message.aliases);
    }
}

/// What is made of a resource: neither if it is of a kind that is not known, both if something must stand in its place.
#[derive(Default)]
struct Read {
    resource: Option<Resource>,
    problem: Option<String>,
}

impl Read {
    fn refuse(problem: &impl ToString) -> Self {
        Self { resource: None, problem: Some(problem.to_string()) }
    }

    fn take(resource: Resource) -> Self {
        Self { resource: Some(resource), problem: None }
    }
}

fn body(kind: ResourceType, message: &xds::Resource) -> Option<&[u8]> {
    let any = message.resource.as_ref().filter(|any| any.type_url == kind.url())?;
    Some(any.value.as_slice())
}

fn address(message: &xds::Resource) -> Read {
    let Some(body) = body(ResourceType::Address, message) else { return Read::default() };
    let address = match Address::decode(body) {
        Ok(address) => address,
        Err(error) => return Read::refuse(&error),
    };
    match convert::address_from_wire(&address) {
        Ok(None) => Read::default(),
        Ok(Some(Addressed::Service(service))) => Read::take(Resource::Service(service)),
        Ok(Some(Addressed::Workload(workload))) => Read::take(Resource::Workload(workload)),
        Err(error) => Read::refuse(&error),
    }
}

/// A policy that is not understood is refused, and what stands for it stops everything where it applies.
fn policy(message: &xds::Resource) -> Read {
    let Some(body) = body(ResourceType::Authorization, message) else { return Read::default() };
    let decoded = Authorization::decode(body);
    let read = match &decoded {
        Ok(authorization) => convert::policy_from_wire(authorization).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match read {
        Ok(policy) => Read::take(Resource::Authorization(policy)),
        Err(problem) => {
            let stands = convert::policy_unread(&message.name, decoded.as_ref().ok());
            Read { resource: stands.map(Resource::Authorization), problem: Some(problem) }
        }
    }
}

/// One that is not understood is refused: what it revokes is not known, and everybody cannot be meant.
fn revocation(message: &xds::Resource) -> Read {
    let Some(body) = body(ResourceType::Revocation, message) else { return Read::default() };
    let decoded = match Revocation::decode(body) {
        Ok(decoded) => decoded,
        Err(error) => return Read::refuse(&error),
    };
    match convert::revocation_from_wire(&decoded) {
        Ok(None) => Read::default(),
        Ok(Some(revocation)) => Read::take(Resource::Revocation(revocation)),
        Err(error) => Read::refuse(&error),
    }
}
