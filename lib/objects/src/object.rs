//! The objects themselves: which kinds there are, how they are named, and a whole set of them.

use std::{fmt, sync::Arc};

use imbl::OrdMap;
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    mesh_config::{self, MeshConfig, MeshConfigSpec},
    policy::{self, AuthorizationPolicy, Invalid, MeshTlsMode, ObjectStatus},
};

/// The namespace of objects whose manifest names none.
const DEFAULT_NAMESPACE: &str = "default";

/// A kind that the mesh reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `underpass.dev/v1alpha1`, AuthorizationPolicy.
    AuthorizationPolicy,
    /// `discovery.k8s.io/v1`, EndpointSlice.
    EndpointSlice,
    /// `underpass.dev/v1alpha1`, MeshConfig.
    MeshConfig,
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
    /// A MeshConfig.
    MeshConfig(Arc<MeshConfig>),
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

/// A set of objects, as they are at one instant: persistent maps, so that the next one differs by little and is made
/// (and compared) at little cost.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// AuthorizationPolicies.
    pub authorization_policies: OrdMap<ObjectName, Arc<AuthorizationPolicy>>,
    /// EndpointSlices.
    pub endpoint_slices: OrdMap<ObjectName, Arc<EndpointSlice>>,
    /// MeshConfigs.
    pub mesh_configs: OrdMap<String, Arc<MeshConfig>>,
    /// MeshTLSModes.
    pub mesh_tls_modes: OrdMap<ObjectName, Arc<MeshTlsMode>>,
    /// Namespaces.
    pub namespaces: OrdMap<String, Arc<Namespace>>,
    /// Nodes.
    pub nodes: OrdMap<String, Arc<Node>>,
    /// Pods.
    pub pods: OrdMap<ObjectName, Arc<Pod>>,
    /// Services.
    pub services: OrdMap<ObjectName, Arc<Service>>,
    /// ServiceAccounts.
    pub service_accounts: OrdMap<ObjectName, Arc<ServiceAccount>>,
}

impl Kind {
    /// Every kind that the mesh reads.
    pub const ALL: [Self; 9] = [
        Self::AuthorizationPolicy,
        Self::EndpointSlice,
        Self::MeshConfig,
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
            Self::MeshConfig => "MeshConfig",
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
            Self::AuthorizationPolicy | Self::MeshConfig | Self::MeshTlsMode => policy::GROUP,
            Self::EndpointSlice => "discovery.k8s.io",
            Self::Namespace | Self::Node | Self::Pod | Self::Service | Self::ServiceAccount => "",
        }
    }

    /// Its API version in manifests.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        match self {
            Self::AuthorizationPolicy | Self::MeshConfig | Self::MeshTlsMode => policy::API_VERSION,
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::Namespace | Self::Node | Self::Pod | Self::Service | Self::ServiceAccount => "v1",
        }
    }

    /// Whether it is one of the mesh's own kinds, which a cluster knows only after they were installed.
    #[must_use]
    pub fn is_own(self) -> bool {
        self.group() == policy::GROUP
    }

    /// Whether its objects are in namespaces.
    #[must_use]
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::MeshConfig | Self::Namespace | Self::Node)
    }
}

impl Object {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::MeshConfig(_) => Kind::MeshConfig,
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
            Self::MeshConfig(object) => &object.metadata,
            Self::MeshTlsMode(object) => &object.metadata,
            Self::Namespace(object) => &object.metadata,
            Self::Node(object) => &object.metadata,
            Self::Pod(object) => &object.metadata,
            Self::Service(object) => &object.metadata,
            Self::ServiceAccount(object) => &object.metadata,
        }
    }

    /// What has become of it, as the operator said last; nothing of kinds that are not the mesh's own.
    #[must_use]
    pub fn status(&self) -> Option<&ObjectStatus> {
        match self {
            Self::AuthorizationPolicy(policy) => policy.status.as_ref(),
            Self::MeshConfig(config) => config.status.as_ref(),
            Self::MeshTlsMode(mode) => mode.status.as_ref(),
            Self::EndpointSlice(_)
            | Self::Namespace(_)
            | Self::Node(_)
            | Self::Pod(_)
            | Self::Service(_)
            | Self::ServiceAccount(_) => None,
        }
    }

    /// Checks what its type cannot say; Kubernetes' own kinds are taken as they are.
    pub(crate) fn check(&self) -> Result<(), Invalid> {
        match self {
            Self::AuthorizationPolicy(policy) => policy.spec.check(),
            Self::MeshConfig(config) => config.check(),
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
            Object::MeshConfig(object) => drop(self.mesh_configs.insert(name.name, object)),
            Object::MeshTlsMode(object) => drop(self.mesh_tls_modes.insert(name, object)),
            Object::Namespace(object) => drop(self.namespaces.insert(name.name, object)),
            Object::Node(object) => drop(self.nodes.insert(name.name, object)),
            Object::Pod(object) => drop(self.pods.insert(name, object)),
            Object::Service(object) => drop(self.services.insert(name, object)),
            Object::ServiceAccount(object) => drop(self.service_accounts.insert(name, object)),
        }
    }

    /// Like [`Self::insert`], but an object that is equal stays the same value, so that nothing changes; false then.
    pub fn set(&mut self, key: &ObjectKey, object: &Object) -> bool {
        let is_new = self.get(key).as_ref() != Some(object);
        if is_new {
            self.insert(key.clone(), object.clone());
        }
        is_new
    }

    /// Takes an object out; false if there was none.
    pub fn remove(&mut self, key: &ObjectKey) -> bool {
        let ObjectKey { kind, name } = key;
        match kind {
            Kind::AuthorizationPolicy => self.authorization_policies.remove(name).is_some(),
            Kind::EndpointSlice => self.endpoint_slices.remove(name).is_some(),
            Kind::MeshConfig => self.mesh_configs.remove(&name.name).is_some(),
            Kind::MeshTlsMode => self.mesh_tls_modes.remove(name).is_some(),
            Kind::Namespace => self.namespaces.remove(&name.name).is_some(),
            Kind::Node => self.nodes.remove(&name.name).is_some(),
            Kind::Pod => self.pods.remove(name).is_some(),
            Kind::Service => self.services.remove(name).is_some(),
            Kind::ServiceAccount => self.service_accounts.remove(name).is_some(),
        }
    }

    /// The object of a key.
    #[must_use]
    pub fn get(&self, key: &ObjectKey) -> Option<Object> {
        let ObjectKey { kind, name } = key;
        Some(match kind {
            Kind::AuthorizationPolicy => Object::AuthorizationPolicy(self.authorization_policies.get(name)?.clone()),
            Kind::EndpointSlice => Object::EndpointSlice(self.endpoint_slices.get(name)?.clone()),
            Kind::MeshConfig => Object::MeshConfig(self.mesh_configs.get(&name.name)?.clone()),
            Kind::MeshTlsMode => Object::MeshTlsMode(self.mesh_tls_modes.get(name)?.clone()),
            Kind::Namespace => Object::Namespace(self.namespaces.get(&name.name)?.clone()),
            Kind::Node => Object::Node(self.nodes.get(&name.name)?.clone()),
            Kind::Pod => Object::Pod(self.pods.get(name)?.clone()),
            Kind::Service => Object::Service(self.services.get(name)?.clone()),
            Kind::ServiceAccount => Object::ServiceAccount(self.service_accounts.get(name)?.clone()),
        })
    }

    /// The keys of a kind's objects.
    #[must_use]
    pub fn keys(&self, kind: Kind) -> Vec<ObjectKey> {
        let named = |name: &ObjectName| ObjectKey { kind, name: name.clone() };
        let of_cluster = |name: &String| ObjectKey { kind, name: ObjectName::new("", name) };
        match kind {
            Kind::AuthorizationPolicy => self.authorization_policies.keys().map(named).collect(),
            Kind::EndpointSlice => self.endpoint_slices.keys().map(named).collect(),
            Kind::MeshConfig => self.mesh_configs.keys().map(of_cluster).collect(),
            Kind::MeshTlsMode => self.mesh_tls_modes.keys().map(named).collect(),
            Kind::Namespace => self.namespaces.keys().map(of_cluster).collect(),
            Kind::Node => self.nodes.keys().map(of_cluster).collect(),
            Kind::Pod => self.pods.keys().map(named).collect(),
            Kind::Service => self.services.keys().map(named).collect(),
            Kind::ServiceAccount => self.service_accounts.keys().map(named).collect(),
        }
    }

    /// Takes out the objects of which this is false.
    pub fn retain(&mut self, stays: impl Fn(&ObjectKey) -> bool) {
        for key in Kind::ALL.into_iter().flat_map(|kind| self.keys(kind)).filter(|key| !stays(key)).collect::<Vec<_>>()
        {
            self.remove(&key);
        }
    }

    /// What people want of the whole mesh.
    #[must_use]
    pub fn mesh_config(&self) -> MeshConfigSpec {
        self.mesh_configs.get(mesh_config::NAME).map(|config| config.spec.clone()).unwrap_or_default()
    }

    /// The pods of a namespace.
    pub fn pods_in(&self, namespace: &str) -> impl Iterator<Item = (&ObjectName, &Arc<Pod>)> {
        in_namespace(&self.pods, namespace)
    }

    /// The AuthorizationPolicies of a namespace.
    pub fn policies_in(&self, namespace: &str) -> impl Iterator<Item = (&ObjectName, &Arc<AuthorizationPolicy>)> {
        in_namespace(&self.authorization_policies, namespace)
    }

    /// The MeshTLSModes of a namespace.
    pub fn modes_in(&self, namespace: &str) -> impl Iterator<Item = (&ObjectName, &Arc<MeshTlsMode>)> {
        in_namespace(&self.mesh_tls_modes, namespace)
    }

    /// The EndpointSlices of a namespace.
    pub fn slices_in(&self, namespace: &str) -> impl Iterator<Item = (&ObjectName, &Arc<EndpointSlice>)> {
        in_namespace(&self.endpoint_slices, namespace)
    }

    /// The Services of a namespace.
    pub fn services_in(&self, namespace: &str) -> impl Iterator<Item = (&ObjectName, &Arc<Service>)> {
        in_namespace(&self.services, namespace)
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
            + self.mesh_configs.len()
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

/// A namespace's part of a map, without a look at the rest.
fn in_namespace<'a, V: Clone>(
    map: &'a OrdMap<ObjectName, V>,
    namespace: &str,
) -> impl Iterator<Item = (&'a ObjectName, &'a V)> + use<'a, V> {
    let first = ObjectName::new(namespace, "");
    let of = namespace.to_owned();
    map.range(first..).take_while(move |(name, _)| name.namespace == of)
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
