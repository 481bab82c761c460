//! From a response to a delta: what is good, what is refused and why.

use std::sync::Arc;

use prost::Message;

use crate::{
    store::{Delta, Resource},
    wire::{
        PARTIAL, ResourceType,
        convert::{self, Addressed},
        security::Authorization,
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
        match read(kind, &message) {
            Ok(None) => {}
            Ok(Some(resource)) => self.delta.changed.push((resource, Arc::from(message.version))),
            Err(problem) => self.refused.push(format!("{:?}: {problem}", message.name)),
        }
        self.names.push(message.name);
        self.names.extend(message.aliases);
    }
}

/// `None` if the resource is of a kind that is not known.
fn read(kind: ResourceType, message: &xds::Resource) -> Result<Option<Resource>, String> {
    let Some(any) = message.resource.as_ref().filter(|any| any.type_url == kind.url()) else {
        return Ok(None);
    };
    let body = any.value.as_slice();
    let resource = match kind {
        ResourceType::Address => {
            let address = Address::decode(body).map_err(|error| error.to_string())?;
            match convert::address_from_wire(&address).map_err(|error| error.to_string())? {
                None => return Ok(None),
                Some(Addressed::Service(service)) => Resource::Service(service),
                Some(Addressed::Workload(workload)) => Resource::Workload(workload),
            }
        }
        ResourceType::Authorization => {
            Resource::Authorization(Authorization::decode(body).map_err(|error| error.to_string())?)
        }
    };
    // The name is what a removal will say, so a resource under another's name could never be removed.
    let own = resource.name();
    if own == message.name { Ok(Some(resource)) } else { Err(format!("holds {own:?}")) }
}
