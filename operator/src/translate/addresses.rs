//! Who has which address: pods, and slices that list it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use k8s_openapi::api::{core::v1::Pod, discovery::v1::EndpointSlice};
use underpass_objects::{ObjectName, Objects, pod};

use super::slices;

/// Both by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Addresses(HashMap<IpAddr, At>);

/// What is at one address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct At {
    /// Pods that are workloads, and whether they have the address for themselves.
    pods: BTreeMap<ObjectName, bool>,
    slices: BTreeSet<ObjectName>,
}

impl Addresses {
    pub(super) fn of(objects: &Objects) -> Self {
        let mut addresses = Self::default();
        for (name, pod) in &objects.pods {
            addresses.change_pod(name, None, Some(pod));
        }
        for (name, slice) in &objects.endpoint_slices {
            addresses.change_slice(name, None, Some(slice));
        }
        addresses
    }

    /// Takes another state of a pod in; where something is different now.
    pub(super) fn change_pod(&mut self, name: &ObjectName, old: Option<&Pod>, new: Option<&Pod>) -> BTreeSet<IpAddr> {
        let (old, new) = (old.map(of_pod).unwrap_or_default(), new.map(of_pod).unwrap_or_default());
        self.change(&old, &new, |at, is_own| match is_own {
            Some(is_own) => drop(at.pods.insert(name.clone(), *is_own)),
            None => drop(at.pods.remove(name)),
        })
    }

    /// Takes another state of a slice in; where something is different now.
    pub(super) fn change_slice(
        &mut self,
        name: &ObjectName,
        old: Option<&EndpointSlice>,
        new: Option<&EndpointSlice>,
    ) -> BTreeSet<IpAddr> {
        let of = |slice: &EndpointSlice| slices::addresses(slice).into_iter().map(|address| (address, ())).collect();
        let (old, new) = (old.map(of).unwrap_or_default(), new.map(of).unwrap_or_default());
        self.change(&old, &new, |at, listed| match listed {
            Some(()) => drop(at.slices.insert(name.clone())),
            None => drop(at.slices.remove(name)),
        })
    }

    /// Whether a pod has an address, for itself or together with its host.
    pub(super) fn has(&self, pod: &ObjectName, address: &IpAddr) -> bool {
        self.0.get(address).is_some_and(|at| at.pods.contains_key(pod))
    }

    /// The pod that an address alone identifies.
    pub(super) fn owner(&self, address: &IpAddr) -> Option<&ObjectName> {
        let pods = self.0.get(address)?.pods.iter();
        pods.rev().find(|(_, is_own)| **is_own).map(|(name, _)| name)
    }

    /// The pods at an address.
    pub(super) fn pods(&self, address: &IpAddr) -> impl Iterator<Item = &ObjectName> {
        self.0.get(address).into_iter().flat_map(|at| at.pods.keys())
    }

    /// The slices that list an address.
    pub(super) fn slices(&self, address: &IpAddr) -> impl Iterator<Item = &ObjectName> {
        self.0.get(address).into_iter().flat_map(|at| &at.slices)
    }

    fn change<T: PartialEq>(
        &mut self,
        old: &BTreeMap<IpAddr, T>,
        new: &BTreeMap<IpAddr, T>,
        apply: impl Fn(&mut At, Option<&T>),
    ) -> BTreeSet<IpAddr> {
        let different = old.keys().chain(new.keys()).filter(|address| old.get(address) != new.get(address));
        let different: BTreeSet<IpAddr> = different.copied().collect();
        for address in &different {
            let at = self.0.entry(*address).or_default();
            apply(at, new.get(address));
            if at.pods.is_empty() && at.slices.is_empty() {
                self.0.remove(address);
            }
        }
        different
    }
}

fn of_pod(pod: &Pod) -> BTreeMap<IpAddr, bool> {
    let is_workload = pod::node(pod).is_some() && !pod::is_terminal(pod);
    let addresses = pod::addresses(pod).into_iter().filter(|_| is_workload);
    addresses.map(|address| (address, !pod::is_on_host_network(pod))).collect()
}
