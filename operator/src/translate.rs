//! Kubernetes objects and capture reports to the mesh's workloads, services and policies.
//!
//! Pure: the same objects give the same mesh, whether they come from a directory or from an API server. Selectors are
//! joined with pods here; EndpointSlices matter only for Services without a selector.

mod endpoints;
mod owner;
mod policy;
mod service;
mod slices;
mod workload;

use std::{collections::BTreeMap, fmt, sync::Arc};

use underpass_model::{Network, PodUid, Service, ServiceName, TrustDomain, Workload, WorkloadUid};
use underpass_objects::{CaptureReport, ObjectKey, Objects};
use underpass_policy::{Policy, PolicyName};

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

/// Translates everything.
#[must_use]
pub fn translate(
    objects: &Objects,
    reports: &BTreeMap<PodUid, CaptureReport>,
    options: &TranslateOptions,
) -> Translation {
    let mut notes = Vec::new();
    let services = service::services(objects, options, &mut notes);
    let mut pods = workload::pods(objects, reports, options, &mut notes);
    let policies = policy::policies(objects, &mut pods, &mut notes);
    let mut workloads = endpoints::join(pods, &services);
    slices::join(objects, options, &services, &mut endpoints::Join { workloads: &mut workloads, notes: &mut notes });
    let services = services.into_values().map(|known| (known.service.name.clone(), known.service)).collect();
    Translation { workloads, services, policies, notes }
}

#[cfg(test)]
mod tests;
