//! How each kind is asked for, and what becomes of what the server says.

use std::{fmt::Debug, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client, Resource,
    core::{ApiResource, DynamicObject},
};
use serde::de::DeserializeOwned;

use super::trim;
use crate::object::{Kind, Object, ObjectKey, ObjectName};

/// What the server says of one object: the object, or why it is not understood.
pub(super) type Read = Result<Object, Misread>;

/// An object of the mesh's own kinds that this release does not understand.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Misread {
    pub(super) key: ObjectKey,
    pub(super) problem: String,
    /// Stands for it where leaving it out would open a door.
    pub(super) instead: Option<Object>,
}

/// A type in which the server's answers are read.
pub(super) trait Wire: Resource + Clone + Debug + DeserializeOwned + Send + 'static {
    /// What is kept of it.
    fn read(self, kind: Kind) -> Read;
}

macro_rules! kubernetes_kind {
    ($($variant:ident => $trim:path),* $(,)?) => {$(
        impl Wire for k8s_openapi_kind::$variant {
            fn read(self, _kind: Kind) -> Read {
                Ok(Object::$variant(Arc::new($trim(self))))
            }
        }
    )*};
}

mod k8s_openapi_kind {
    pub(super) use k8s_openapi::api::{
        core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
    };
}

kubernetes_kind! {
    EndpointSlice => trim::endpoint_slice,
    Namespace => trim::namespace,
    Node => trim::node,
    Pod => trim::pod,
    Service => trim::service,
    ServiceAccount => trim::service_account,
}

impl Wire for DynamicObject {
    fn read(self, kind: Kind) -> Read {
        let metadata = trim::own_metadata(self.metadata);
        let name = ObjectName::new(
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.name.as_deref().unwrap_or_default(),
        );
        crate::policy::read(kind, &metadata, self.data).map_err(|(problem, instead)| Misread {
            key: ObjectKey { kind, name },
            problem,
            instead,
        })
    }
}

/// All objects of a type, in every namespace.
pub(super) fn api<K: Resource<DynamicType = ()>>(client: Client) -> Api<K> {
    Api::all(client)
}

/// All objects of one of the mesh's own kinds.
pub(super) fn own(client: Client, kind: Kind) -> Api<DynamicObject> {
    Api::all_with(client, &resource(kind))
}

/// How the API server names a kind.
#[must_use]
pub fn resource(kind: Kind) -> ApiResource {
    let (group, api_version) = (kind.group(), kind.api_version());
    let version = api_version.rsplit('/').next().unwrap_or(api_version);
    let singular = kind.as_str().to_lowercase();
    let plural = match singular.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{singular}s"),
    };
    let text = String::from;
    ApiResource {
        group: group.into(),
        version: version.into(),
        api_version: api_version.into(),
        kind: text(kind.as_str()),
        plural,
    }
}

/// The key under which the metadata's owner is known.
pub(super) fn key(kind: Kind, metadata: &ObjectMeta) -> Option<ObjectKey> {
    let name = metadata.name.clone().filter(|name| !name.is_empty())?;
    let namespace = if kind.is_namespaced() { metadata.namespace.clone().unwrap_or_default() } else { String::new() };
    Some(ObjectKey { kind, name: ObjectName { namespace, name } })
}
