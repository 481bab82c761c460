//! What a change of the objects concerns: pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use imbl::{OrdMap, ordmap::DiffItem};
use k8s_openapi::api::core::v1::Pod;
use underpass_model::names::SYSTEM_NAMESPACE;
use underpass_objects::{ObjectName, Objects, pod};

use super::{Reports, addresses::Addresses, endpoints, policy, service, slices, workload};

type Labels = BTreeMap<String, String>;

/// What must be translated again.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    pub(super) services: BTreeSet<ObjectName>,
    pub(super) pods: BTreeSet<ObjectName>,
    pub(super) slices: BTreeSet<ObjectName>,
    pub(super) policies: BTreeSet<ObjectName>,
    /// Namespaces whose modes are different.
    pub(super) modes: BTreeSet<String>,
    /// Services whose endpoints are found otherwise: the selectors before and now.
    pub(super) endpoints: Vec<(ObjectName, Option<Labels>, Option<Labels>)>,
    /// Objects whose addresses [`Self::spread`] looks at.
    changed_pods: BTreeSet<ObjectName>,
    changed_slices: BTreeSet<ObjectName>,
}

impl Dirty {
    /// What two states of the objects make of it by themselves. Costs what differs, not what there is.
    pub(super) fn between(before: (&Objects, &Reports), after: (&Objects, &Reports)) -> Self {
        let mut dirty = Self::default();
        let ((old, old_reports), (new, new_reports)) = (before, after);
        dirty.changed_pods.extend(different(&old.pods, &new.pods));
        dirty.changed_slices.extend(different(&old.endpoint_slices, &new.endpoint_slices));
        dirty.services.extend(different(&old.services, &new.services));
        dirty.pods.extend(dirty.changed_pods.iter().cloned());
        dirty.slices.extend(dirty.changed_slices.iter().cloned());
        for namespace in different(&old.namespaces, &new.namespaces) {
            let says = |objects: &Objects| {
                let namespace = objects.namespaces.get(&namespace)?;
                service::annotated(&namespace.metadata).map(str::to_owned)
            };
            if says(old) != says(new) {
                dirty.services.extend(new.services_in(&namespace).map(|(name, _)| name.clone()));
            }
        }
        dirty.look_at_nodes(old, new);
        dirty.look_at_policies(old, new);
        dirty.look_at_reports(old_reports, new, new_reports);
        dirty
    }

    pub(super) fn len(&self) -> usize {
        self.services.len() + self.pods.len() + self.slices.len() + self.policies.len()
    }

    fn look_at_nodes(&mut self, old: &Objects, new: &Objects) {
        let moved = |node: &String| {
            let place = |objects: &Objects| workload::locality_of(objects.nodes.get(node).map(AsRef::as_ref));
            place(old) != place(new)
        };
        let moved: BTreeSet<String> = different(&old.nodes, &new.nodes).into_iter().filter(moved).collect();
        // Nodes come, go and move rarely, so no list of their pods is kept.
        if moved.is_empty() {
            return;
        }
        let there = new.pods.iter().filter(|(_, pod)| pod::node(pod).is_some_and(|node| moved.contains(node)));
        self.pods.extend(there.map(|(name, _)| name.clone()));
        self.slices.extend(new.endpoint_slices.keys().cloned());
    }

    fn look_at_policies(&mut self, old: &Objects, new: &Objects) {
        for name in different(&old.authorization_policies, &new.authorization_policies) {
            let selector = |objects: &Objects| {
                objects.authorization_policies.get(&name).and_then(|policy| policy::narrow(policy)).cloned()
            };
            // Its status is no part of what it says.
            let says = |objects: &Objects| {
                let policy = objects.authorization_policies.get(&name)?;
                Some((policy.spec.clone(), policy.unreadable.clone()))
            };
            if says(old) == says(new) {
                continue;
            }
            let selectors: Vec<_> = [selector(old), selector(new)].into_iter().flatten().collect();
            let selected = |pod: &Pod| selectors.iter().any(|selector| selector.selects(policy::labels(pod)));
            if !selectors.is_empty() {
                self.add_pods(new, &name.namespace, selected);
            }
            self.policies.insert(name);
        }
        for name in different(&old.mesh_tls_modes, &new.mesh_tls_modes) {
            let says = |objects: &Objects| {
                let mode = objects.mesh_tls_modes.get(&name)?;
                Some((mode.spec.clone(), mode.metadata.creation_timestamp.clone()))
            };
            if says(old) != says(new) && self.modes.insert(name.namespace.clone()) {
                self.add_pods(new, &name.namespace, |_| true);
            }
        }
    }

    /// Those of a namespace; what the system namespace says is about all.
    fn add_pods(&mut self, objects: &Objects, namespace: &str, is_meant: impl Fn(&Pod) -> bool) {
        let meant = |(name, pod): (&ObjectName, &std::sync::Arc<Pod>)| is_meant(pod).then(|| name.clone());
        if namespace == SYSTEM_NAMESPACE {
            self.pods.extend(objects.pods.iter().filter_map(meant));
        } else {
            self.pods.extend(objects.pods_in(namespace).filter_map(meant));
        }
    }

    fn look_at_reports(&mut self, old: &Reports, objects: &Objects, new: &Reports) {
        let changed = match (old, new) {
            (Reports::OnPods, Reports::OnPods) => return,
            (Reports::Apart(old), Reports::Apart(new)) => different(old, new),
            (Reports::OnPods, Reports::Apart(_)) | (Reports::Apart(_), Reports::OnPods) => {
                return self.pods.extend(objects.pods.keys().cloned());
            }
        };
        if changed.is_empty() {
            return;
        }
        // A report names its pod, but counts by uid, whatever it says; the directory of reports is never large.
        let changed: BTreeSet<_> = changed.into_iter().collect();
        let meant = objects.pods.iter().filter(|(_, pod)| pod::uid(pod).is_some_and(|uid| changed.contains(&uid)));
        self.pods.extend(meant.map(|(name, _)| name.clone()));
    }

    /// What follows from services whose endpoints are found otherwise, and from addresses that have other owners.
    /// `addresses` is brought up to date.
    pub(super) fn spread(&mut self, (old, new): (&Objects, &Objects), addresses: &mut Addresses) {
        for (name, before, after) in std::mem::take(&mut self.endpoints) {
            let selects =
                |pod: &Pod| [&before, &after].into_iter().any(|selector| endpoints::selects(selector.as_ref(), pod));
            self.add_pods_of(new, &name.namespace, selects);
            let listing = new
                .slices_in(&name.namespace)
                .filter(|(slice, object)| slices::service(slice, object).as_ref() == Some(&name));
            self.slices.extend(listing.map(|(slice, _)| slice.clone()));
        }
        let mut touched = BTreeSet::<IpAddr>::new();
        for name in &self.changed_pods {
            let of = |objects: &'_ Objects| objects.pods.get(name).cloned();
            touched.extend(addresses.change_pod(name, of(old).as_deref(), of(new).as_deref()));
        }
        for name in &self.changed_slices {
            let of = |objects: &'_ Objects| objects.endpoint_slices.get(name).cloned();
            addresses.change_slice(name, of(old).as_deref(), of(new).as_deref());
        }
        self.slices.extend(touched.iter().flat_map(|address| addresses.slices(address)).cloned());
        // Whose address is listed may be another pod's now, or nobody's.
        for name in &self.slices {
            let slices = [old, new].into_iter().filter_map(|objects| objects.endpoint_slices.get(name));
            let listed: BTreeSet<IpAddr> = slices.flat_map(|slice| slices::addresses(slice)).collect();
            self.pods.extend(listed.iter().flat_map(|address| addresses.pods(address)).cloned());
        }
    }

    fn add_pods_of(&mut self, objects: &Objects, namespace: &str, is_meant: impl Fn(&Pod) -> bool) {
        let meant = objects.pods_in(namespace).filter(|(_, pod)| is_meant(pod));
        self.pods.extend(meant.map(|(name, _)| name.clone()));
    }
}

/// The keys under which two maps differ. Parts that both share are not looked at.
fn different<K: Ord + Clone, V: Clone + PartialEq>(old: &OrdMap<K, V>, new: &OrdMap<K, V>) -> Vec<K> {
    let key = |item: DiffItem<'_, '_, K, V>| match item {
        DiffItem::Add(key, _) | DiffItem::Remove(key, _) | DiffItem::Update { new: (key, _), .. } => key.clone(),
    };
    old.diff(new).map(key).collect()
}
