//! The mesh at one instant: immutable, with an index for each question that a connection asks.
//!
//! Maps are persistent: the next view shares all that did not change, so that one changed workload among a hundred
//! thousand costs a path through a few trees, and a reader keeps the view that it took for as long as it likes.
//! What a look-up answers depends on what the view holds alone, never on the order in which it came.

mod claims;
mod policies;

use std::{net::IpAddr, sync::Arc};

use imbl::{HashMap, OrdMap};
use ipnet::IpNet;
use underpass_model::{
    Network, NetworkAddress, NetworkMode, NetworkRange, Revocation, Service, ServiceName, Visibility, Workload,
    WorkloadUid,
};
use underpass_policy::{Policy, PolicySet};

use claims::Claims;
use policies::Policies;

/// The mesh at one instant.
#[derive(Clone, Debug, Default)]
pub struct View {
    version: u64,
    complete: bool,
    policies: Policies,
    revocations: OrdMap<String, Revocation>,
    workloads: HashMap<WorkloadUid, Arc<Workload>>,
    workload_addresses: HashMap<NetworkAddress, Claims<Workload>>,
    endpoints: HashMap<ServiceName, OrdMap<WorkloadUid, Arc<Workload>>>,
    services: HashMap<ServiceName, Arc<Service>>,
    service_addresses: HashMap<NetworkAddress, Claims<Service>>,
    service_ranges: HashMap<NetworkRange, Claims<Service>>,
    service_hosts: HashMap<Arc<str>, Claims<Service>>,
}

/// How much a view holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Workloads.
    pub workloads: usize,
    /// Services.
    pub services: usize,
    /// Authorization policies.
    pub authorizations: usize,
}

impl View {
    /// A complete view of exactly these.
    #[must_use]
    pub fn of(workloads: impl IntoIterator<Item = Workload>, services: impl IntoIterator<Item = Service>) -> Self {
        let mut view = Self { version: 1, complete: true, ..Self::default() };
        workloads.into_iter().for_each(|workload| view.set_workload(Arc::new(workload)));
        services.into_iter().for_each(|service| view.set_service(Arc::new(service)));
        view
    }

    /// The same with these policies.
    #[must_use]
    pub fn with_policies(mut self, policies: impl IntoIterator<Item = Policy>) -> Self {
        policies.into_iter().for_each(|policy| self.set_policy(policy));
        self
    }

    /// The number of this view: later ones have greater numbers.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// True once the control plane said all that it knew: from then on what is not here does not exist.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// How much it holds.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts { workloads: self.workloads.len(), services: self.services.len(), authorizations: self.policies.len() }
    }

    /// The workload of this name.
    #[must_use]
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload that answers at an address: a pod before another kind, one that takes HBONE before one that does
    /// not. Workloads in their node's network are never found by address, for it says nothing of who they are.
    #[must_use]
    pub fn workload_at(&self, address: &NetworkAddress) -> Option<&Arc<Workload>> {
        self.workload_addresses.get(address)?.best()
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// The service of this name.
    #[must_use]
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// The service that has a virtual address, as a client in this namespace sees it: its own namespace's service before
    /// a canonical one before others; and a range only where no service has exactly this address, longest prefix first.
    #[must_use]
    pub fn service_at(&self, address: &NetworkAddress, client_namespace: &str) -> Option<&Arc<Service>> {
        let exact = self.service_addresses.get(address).and_then(|claims| preferred(claims, client_namespace));
        exact.or_else(|| self.service_around(address, client_namespace))
    }

    /// The service of this host name, as a client in this namespace sees it; precedence as by address.
    #[must_use]
    pub fn service_of_host(&self, host: &str, client_namespace: &str) -> Option<&Arc<Service>> {
        preferred(self.service_hosts.get(host)?, client_namespace)
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The policies that a workload is under: what this view holds of the workload and of its policies belongs together.
    #[must_use]
    pub fn policies(&self, workload: &Workload) -> PolicySet {
        self.policies.of(workload)
    }

    /// The policy of this name (`namespace/name`).
    #[must_use]
    pub fn policy(&self, name: &str) -> Option<&Arc<Policy>> {
        self.policies.get(name)
    }

    /// What is revoked, sorted by name.
    pub fn revocations(&self) -> impl Iterator<Item = &Revocation> {
        self.revocations.values()
    }

    /// All policies, in no order.
    pub fn all_policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.iter()
    }

    /// The workloads that back a service, by name.
    pub fn endpoints(&self, service: &ServiceName) -> impl Iterator<Item = &Arc<Workload>> {
        self.endpoints.get(service).into_iter().flat_map(OrdMap::values)
    }

    /// True if a workload or a service that anyone could see is at an address.
    pub(crate) fn knows(&self, address: &NetworkAddress) -> bool {
        self.workload_addresses.contains_key(address) || self.service_addresses.contains_key(address)
    }

    /// The names of all that is at an address, and of the endpoints of services there.
    pub(crate) fn names_at(&self, address: &NetworkAddress) -> impl Iterator<Item = String> {
        let workloads = self.workload_addresses.get(address).into_iter().flat_map(Claims::iter);
        let services = self.service_addresses.get(address).into_iter().flat_map(Claims::iter);
        let names = workloads.map(|workload| workload.uid.to_string());
        names.chain(services.flat_map(|service| self.names_of(&service.name)))
    }

    /// The name of a service and those of its endpoints.
    pub(crate) fn names_of(&self, service: &ServiceName) -> impl Iterator<Item = String> {
        let endpoints = self.endpoints(service).map(|endpoint| endpoint.uid.to_string());
        std::iter::once(service.to_string()).chain(endpoints)
    }

    fn service_around(&self, address: &NetworkAddress, client_namespace: &str) -> Option<&Arc<Service>> {
        if self.service_ranges.is_empty() {
            return None;
        }
        let around = prefixes(&address.network, address.address);
        let candidates = around.filter_map(|range| {
            let service = preferred(self.service_ranges.get(&range)?, client_namespace)?;
            Some((&*service.name.namespace == client_namespace, range.range.prefix_len(), service))
        });
        candidates.max_by_key(|(own, length, _)| (*own, *length)).map(|(_, _, service)| service)
    }

    pub(crate) fn advance(&mut self, complete: bool) {
        self.version += 1;
        self.complete = complete;
    }

    pub(crate) fn set_revocation(&mut self, revocation: Revocation) {
        self.revocations.insert(revocation.name(), revocation);
    }

    pub(crate) fn remove_revocation(&mut self, name: &str) {
        self.revocations.remove(name);
    }

    pub(crate) fn set_policy(&mut self, policy: Policy) {
        self.policies.set(policy);
    }

    pub(crate) fn remove_policy(&mut self, name: &str) {
        self.policies.remove(name);
    }

    pub(crate) fn set_workload(&mut self, workload: Arc<Workload>) {
        self.remove_workload(&workload.uid);
        for address in indexed(&workload) {
            self.workload_addresses.entry(address).or_default().insert(workload.clone());
        }
        for name in workload.services.keys() {
            self.endpoints.entry(name.clone()).or_default().insert(workload.uid.clone(), workload.clone());
        }
        self.workloads.insert(workload.uid.clone(), workload);
    }

    pub(crate) fn remove_workload(&mut self, uid: &WorkloadUid) {
        let Some(workload) = self.workloads.remove(uid) else { return };
        for address in indexed(&workload) {
            withdraw(&mut self.workload_addresses, &address, &workload);
        }
        for name in workload.services.keys() {
            let Some(endpoints) = self.endpoints.get_mut(name) else { continue };
            endpoints.remove(uid);
            if endpoints.is_empty() {
                self.endpoints.remove(name);
            }
        }
    }

    pub(crate) fn set_service(&mut self, service: Arc<Service>) {
        self.remove_service(&service.name);
        for address in &service.addresses {
            self.service_addresses.entry(address.clone()).or_default().insert(service.clone());
        }
        for range in &service.ranges {
            self.service_ranges.entry(range.clone()).or_default().insert(service.clone());
        }
        self.service_hosts.entry(service.name.hostname.clone()).or_default().insert(service.clone());
        self.services.insert(service.name.clone(), service);
    }

    pub(crate) fn remove_service(&mut self, name: &ServiceName) {
        let Some(service) = self.services.remove(name) else { return };
        for address in &service.addresses {
            withdraw(&mut self.service_addresses, address, &service);
        }
        for range in &service.ranges {
            withdraw(&mut self.service_ranges, range, &service);
        }
        withdraw(&mut self.service_hosts, &service.name.hostname, &service);
    }
}

/// The addresses under which a workload is found.
fn indexed(workload: &Workload) -> impl Iterator<Item = NetworkAddress> {
    let found = match workload.network_mode {
        NetworkMode::HostNetwork => &[],
        NetworkMode::Standard => workload.addresses.as_slice(),
    };
    found.iter().map(|&address| NetworkAddress { network: workload.network.clone(), address })
}

fn withdraw<K, T>(index: &mut HashMap<K, Claims<T>>, key: &K, claimant: &T)
where
    K: std::hash::Hash + Eq + Clone,
    T: claims::Claimant,
{
    let Some(claims) = index.get_mut(key) else { return };
    claims.remove(claimant);
    if claims.best().is_none() {
        index.remove(key);
    }
}

fn preferred<'a>(claims: &'a Claims<Service>, client_namespace: &str) -> Option<&'a Arc<Service>> {
    let own = |service: &&Arc<Service>| &*service.name.namespace == client_namespace;
    claims.iter().find(own).or_else(|| claims.iter().find(|service| service.visibility == Visibility::Public))
}

/// Every range that an address lies in.
fn prefixes(network: &Network, address: IpAddr) -> impl Iterator<Item = NetworkRange> {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    (0..=bits).filter_map(move |length| {
        let range = IpNet::new(address, length).ok()?.trunc();
        Some(NetworkRange { network: network.clone(), range })
    })
}

#[cfg(test)]
mod tests;
