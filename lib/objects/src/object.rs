//! The objects themselves: which kinds there are, how they are named, and a whole set of them.

use std::{collections::BTreeMap, fmt, sync::Arc};

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::policy::{self, AuthorizationPolicy, Invalid, MeshTlsMode};

/// The namespace of objects whose manifest names none.
const DEFAULT_NAMESPACE: &str = "default";

/// A kind that the mesh reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `underpass.dev/v1alpha1`, AuthorizationPolicy.
    AuthorizationPolicy,
    /// `discovery.k8s.io/v1`, EndpointSlice.
    EndpointSlice,
    /// `underpass.dev/v1alpha1`, MeshTLSMode.
    MeshTlsMode,
    /// `v1`, Namespace.
    Namespace,
    /// `v1`, Node.
    Node,
    /// `v1`, Pod.
    Pod,
    /// `v1`, Service.
    Service,
    /// `v1`, ServiceAccount.
    ServiceAccount,
}

/// One object of a kind that the mesh reads.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// An AuthorizationPolicy.
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    /// An EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// A MeshTLSMode.
    MeshTlsMode(Arc<MeshTlsMode>),
    /// A Namespace.
    Namespace(Arc<Namespace>),
    /// A Node.
    Node(Arc<Node>),
    /// A Pod.
    Pod(Arc<Pod>),
    /// A Service.
    Service(Arc<Service>),
    /// A ServiceAccount.
    ServiceAccount(Arc<ServiceAccount>),
}

/// The name of a namespaced object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// Its namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

/// The name of any object; the namespace is empty for kinds of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: ObjectName,
}

/// A set of objects, as they are at one instant.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// AuthorizationPolicies.
    pub authorization_policies: BTreeMap<ObjectName, Arc<AuthorizationPolicy>>,
    /// EndpointSlices.
    pub endpoint_slices: BTreeMap<ObjectName, Arc<EndpointSlice>>,
    /// MeshTLSModes.
    pub mesh_tls_modes: BTreeMap<ObjectName, Arc<MeshTlsMode>>,
    /// Namespaces.
    pub namespaces: BTreeMap<String, Arc<Namespace>>,
    /// Nodes.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// Pods.
    pub pods: BTreeMap<ObjectName, Arc<Pod>>,
    /// Services.
    pub services: BTreeMap<ObjectName, Arc<Service>>,
    /// ServiceAccounts.
    pub service_accounts: BTreeMap<ObjectName, Arc<ServiceAccount>>,
}

impl Kind {
    /// Every kind that the mesh reads.
    pub const ALL: [Self; 8] = [
        Self::AuthorizationPolicy,
        Self::EndpointSlice,
        Self::MeshTlsMode,
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::ServiceAccount,
    ];

    /// Its name in manifests.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::EndpointSlice => "EndpointSlice",
            Self::MeshTlsMode => "MeshTLSMode",
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::ServiceAccount => "ServiceAccount",
        }
    }

    /// Its API group; empty for the core group.
    #[must_use]
    pub fn group(self) -> &'static str {
        match self {
            Self::AuthorizationPolicy | Self::MeshTlsMode => policy::GROUP,
            Self::EndpointSlice => "discovery.k8s.io",
            Self::Namespace | Self::Node | Self::Pod | Self::Service | Self::ServiceAccount => "",
        }
    }

    /// Its API version in manifests.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        match self {
            Self::AuthorizationPolicy | Self::MeshTlsMode => policy::API_VERSION,
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::Namespace | Self::Node | Self::Pod | Self::Service | Self::ServiceAccount => "v1",
        }
    }

    fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node)
    }
}

impl Object {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::MeshTlsMode(_) => Kind::MeshTlsMode,
            Self::Namespace(_) => Kind::Namespace,
            Self::Node(_) => Kind::Node,
            Self::Pod(_) => Kind::Pod,
            Self::Service(_) => Kind::Service,
            Self::ServiceAccount(_) => Kind::ServiceAccount,
        }
    }

    /// Its metadata.
    #[must_use]
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::AuthorizationPolicy(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::MeshTlsMode(object) => &object.metadata,
            Self::Namespace(object) => &object.metadata,
            Self::Node(object) => &object.metadata,
            Self::Pod(object) => &object.metadata,
            Self::Service(object) => &object.metadata,
            Self::ServiceAccount(object) => &object.metadata,
        }
    }

    /// Checks what its type cannot say; Kubernetes' own kinds are taken as they are.
    pub(crate) fn check(&self) -> Result<(), Invalid> {
        match self {
            Self::AuthorizationPolicy(policy) => policy.check(),
            Self::MeshTlsMode(mode) => mode.check(),
            Self::EndpointSlice(_)
            | Self::Namespace(_)
            | Self::Node(_)
            | Self::Pod(_)
            | Self::Service(_)
            | Self::ServiceAccount(_) => Ok(()),
        }
    }

    /// Its name; none if `metadata.name` is missing or empty.
    #[must_use]
    pub fn key(&self) -> Option<ObjectKey> {
        let metadata = self.metadata();
        let name = metadata.name.clone().filter(|name| !name.is_empty())?;
        let namespace = match self.kind().is_namespaced() {
            true => metadata.namespace.clone().filter(|namespace| !namespace.is_empty()),
            false => Some(String::new()),
        };
        let namespace = namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.into());
        Some(ObjectKey { kind: self.kind(), name: ObjectName { namespace, name } })
    }
}

impl ObjectName {
    /// Makes a name of its parts.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl Objects {
    /// Adds an object under its key; one of the same key is replaced.
    pub fn insert(&mut self, key: ObjectKey, object: Object) {
        let ObjectKey { name, .. } = key;
        match object {
            Object::AuthorizationPolicy(object) => drop(self.authorization_policies.insert(name, object)),
            Object::EndpointSlice(object) => drop(self.endpoint_slices.insert(name, object)),
            Object::MeshTlsMode(object) => drop(self.mesh_tls_modes.insert(name, object)),
            Object::Namespace(object) => drop(self.namespaces.insert(name.name, object)),
            Object::Node(object) => drop(self.nodes.insert(name.name, object)),
            Object::Pod(object) => drop(self.pods.insert(name, object)),
            Object::Service(object) => drop(self.services.insert(name, object)),
            Object::ServiceAccount(object) => drop(self.service_accounts.insert(name, object)),
        }
    }

    /// The pod of that name.
    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<Pod>> {
        self.pods.get(&ObjectName::new(namespace, name))
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.authorization_policies.len()
            + self.endpoint_slices.len()
            + self.mesh_tls_modes.len()
            + self.namespaces.len()
            + self.nodes.len()
            + self.pods.len()
            + self.services.len()
            + self.service_accounts.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl FromIterator<Object> for Objects {
    /// Collects the objects that have a name.
    fn from_iter<I: IntoIterator<Item = Object>>(objects: I) -> Self {
        let mut all = Self::default();
        for object in objects {
            if let Some(key) = object.key() {
                all.insert(key, object);
            }
        }
        all
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name.name)
        } else {
            write!(f, "{} {}", self.kind, self.name)
        }
    }
}
