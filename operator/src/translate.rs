//! Kubernetes objects and capture reports to the mesh's workloads, services and policies.
//!
//! Pure: the same objects give the same mesh, whether they come from a directory or from an API server. Selectors are
//! joined with pods here; EndpointSlices matter only for Services without a selector.
//!
//! Each object is translated for itself, with what it sees of the others ([`Sight`]). [`translate`] does so with all of
//! them; [`Translator`] with those that a change concerns, and tells what became different.

mod addresses;
mod dirty;
mod endpoints;
mod incremental;
mod owner;
mod policy;
mod reports;
mod service;
mod slices;
mod workload;

use std::{collections::BTreeMap, fmt, sync::Arc};

use k8s_openapi::api::core::v1::Pod;
use underpass_model::{Network, Service, ServiceName, TrustDomain, Workload, WorkloadUid};
use underpass_objects::{ObjectKey, ObjectName, Objects, pod};
use underpass_policy::{Policy, PolicyName};

use crate::join;

use self::{addresses::Addresses, policy::tls::Effective, service::KnownService};
pub use self::{
    incremental::{Changes, Sizes, Translator},
    reports::Reports,
};

/// What holds for the whole mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TranslateOptions {
    /// The cluster's id: the first part of each workload's name.
    pub cluster: Arc<str>,
    /// The DNS domain below which the cluster's services are.
    pub cluster_domain: Arc<str>,
    /// The network in which the addresses are valid.
    pub network: Network,
    /// The root of every identity.
    pub trust_domain: TrustDomain,
}

/// What the mesh looks like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Translation {
    /// Workloads by discovery's name.
    pub workloads: BTreeMap<WorkloadUid, Workload>,
    /// Services by name.
    pub services: BTreeMap<ServiceName, Service>,
    /// Policies by name.
    pub policies: BTreeMap<PolicyName, Policy>,
    /// What objects say that could not be used; the rest of each object is.
    pub notes: Vec<Note>,
}

/// A part of an object that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Note {
    /// Which object.
    pub object: ObjectKey,
    /// Which field of it.
    pub field: &'static str,
    /// What is wrong.
    pub problem: String,
}

impl Default for TranslateOptions {
    fn default() -> Self {
        Self {
            cluster: underpass_model::names::DEFAULT_CLUSTER.into(),
            cluster_domain: "cluster.local".into(),
            network: "".into(),
            trust_domain: TrustDomain::default(),
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.problem)
    }
}

/// What an object sees of the others while it is translated.
struct Sight<'a> {
    objects: &'a Objects,
    reports: &'a Reports,
    options: &'a TranslateOptions,
    services: &'a BTreeMap<ObjectName, Part<KnownService>>,
    addresses: &'a Addresses,
    /// Whether pods may be joined without a tunnel at all.
    can_join: bool,
}

/// What became of one object, and what of it could not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part<T> {
    value: T,
    notes: Vec<Note>,
}

/// A pod: its workload, and how it takes plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OfPod {
    workload: Workload,
    mode: Effective,
}

/// Translates everything.
#[must_use]
pub fn translate(objects: &Objects, reports: &Reports, options: &TranslateOptions) -> Translation {
    translate_joining(objects, reports, options, false)
}

/// As [`translate`], where pods may be joined without a tunnel.
#[must_use]
pub fn translate_joining(
    objects: &Objects,
    reports: &Reports,
    options: &TranslateOptions,
    can_join: bool,
) -> Translation {
    let mut translation = Translation::default();
    let services: BTreeMap<ObjectName, Part<KnownService>> = objects
        .services
        .iter()
        .filter_map(|(name, object)| Some((name.clone(), service::of(objects, options, name, object)?)))
        .collect();
    let addresses = Addresses::of(objects);
    let sight = Sight { objects, reports, options, services: &services, addresses: &addresses, can_join };
    for Part { value, notes } in objects.pods.values().filter_map(|pod| of_pod(&sight, pod)) {
        translation.notes.extend(notes);
        translation.policies.extend(value.mode.policy().map(|policy| (policy.name.clone(), policy)));
        translation.workloads.insert(value.workload.uid.clone(), value.workload);
    }
    for (name, slice) in &objects.endpoint_slices {
        let Part { value, notes } = slices::foreign(&sight, name, slice);
        translation.notes.extend(notes);
        translation.workloads.extend(value.into_iter().map(|workload| (workload.uid.clone(), workload)));
    }
    for (name, policy) in &objects.authorization_policies {
        let Part { value, notes } = policy::of(name, policy);
        translation.notes.extend(notes);
        translation.policies.insert(value.name.clone(), value);
    }
    for namespace in namespaces_of(objects.mesh_tls_modes.keys()) {
        translation.notes.extend(policy::tls::notes(objects, &namespace));
    }
    for Part { value, notes } in services.into_values() {
        translation.notes.extend(notes);
        translation.services.insert(value.service.name.clone(), value.service);
    }
    translation.notes.sort_unstable();
    translation
}

/// Everything that a pod means.
fn of_pod(sight: &Sight<'_>, pod: &Pod) -> Option<Part<OfPod>> {
    let Part { value: mut workload, notes } = workload::of(sight, pod)?;
    let name = pod::name(pod);
    workload.services = endpoints::selecting(sight, pod);
    workload.services.extend(slices::listing(sight, &name, &workload.addresses));
    let mode = policy::tls::effective(sight.objects, &name.namespace, policy::labels(pod));
    let mut policies = policy::selecting(sight, pod);
    policies.extend(mode.policy().map(|policy| policy.name.as_str().into()));
    workload.policies = policies.into_iter().collect();
    workload.joinable = sight.can_join && join::has_own_namespace(&workload);
    Some(Part { value: OfPod { workload, mode }, notes })
}

fn namespaces_of<'a>(names: impl Iterator<Item = &'a ObjectName>) -> std::collections::BTreeSet<String> {
    names.map(|name| name.namespace.clone()).collect()
}

/// A namespace's part of a map, without a look at the rest.
fn in_namespace<'a, V>(
    map: &'a BTreeMap<ObjectName, V>,
    namespace: &str,
) -> impl Iterator<Item = (&'a ObjectName, &'a V)> + use<'a, V> {
    let of = namespace.to_owned();
    map.range(ObjectName::new(namespace, "")..).take_while(move |(name, _)| name.namespace == of)
}

#[cfg(test)]
mod tests;
