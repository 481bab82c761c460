//! The translation kept up to date: whatever a change does not concern is not looked at again.

use std::collections::BTreeMap;

use underpass_model::{Service, ServiceName, Workload, WorkloadUid};
use underpass_objects::{ObjectKey, ObjectName, Objects};
use underpass_policy::{Policy, PolicyName};

use super::{
    Note, OfPod, Part, Reports, Sight, TranslateOptions,
    addresses::Addresses,
    dirty::Dirty,
    of_pod,
    policy::{self, tls::Effective},
    service::{self, KnownService},
    slices,
};

/// A translation and what it was made of.
#[derive(Debug)]
pub struct Translator {
    options: TranslateOptions,
    objects: Objects,
    reports: Reports,
    can_join: bool,
    addresses: Addresses,
    services: BTreeMap<ObjectName, Part<KnownService>>,
    pods: BTreeMap<ObjectName, Part<OfPod>>,
    slices: BTreeMap<ObjectName, Part<Vec<Workload>>>,
    policies: BTreeMap<ObjectName, Part<Policy>>,
    /// How many pods are under each policy that a mode becomes.
    modes: BTreeMap<Effective, usize>,
    /// Of modes, by namespace.
    mode_notes: BTreeMap<String, Vec<Note>>,
}

/// What became different; `None` is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Workloads by discovery's name.
    pub workloads: BTreeMap<WorkloadUid, Option<Workload>>,
    /// Services by name.
    pub services: BTreeMap<ServiceName, Option<Service>>,
    /// Policies by name.
    pub policies: BTreeMap<PolicyName, Option<Policy>>,
    /// What objects say that could not be used, as far as it is new.
    pub notes: Vec<Note>,
    /// How many objects were translated: what the change cost.
    pub translated: usize,
}

/// How many of each the mesh has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Workloads.
    pub workloads: usize,
    /// Services.
    pub services: usize,
    /// Policies.
    pub policies: usize,
}

impl Translator {
    /// An empty mesh.
    #[must_use]
    pub fn new(options: TranslateOptions) -> Self {
        Self {
            options,
            objects: Objects::default(),
            reports: Reports::default(),
            can_join: false,
            addresses: Addresses::default(),
            services: BTreeMap::new(),
            pods: BTreeMap::new(),
            slices: BTreeMap::new(),
            policies: BTreeMap::new(),
            modes: BTreeMap::new(),
            mode_notes: BTreeMap::new(),
        }
    }

    /// Brings it to another state of the objects; `can_join` says whether pods may be joined without a tunnel at all.
    pub fn update(&mut self, objects: &Objects, reports: &Reports, can_join: bool) -> Changes {
        let mut changes = Changes::default();
        let mut dirty = Dirty::between((&self.objects, &self.reports), (objects, reports));
        self.update_services(objects, &mut dirty, &mut changes);
        dirty.spread((&self.objects, objects), &mut self.addresses);
        if can_join != self.can_join {
            dirty.pods.extend(objects.pods.keys().cloned());
        }
        (self.objects, self.reports, self.can_join) = (objects.clone(), reports.clone(), can_join);
        self.update_pods(&dirty, &mut changes);
        self.update_slices(&dirty, &mut changes);
        self.update_policies(&dirty, &mut changes);
        changes.translated = dirty.len();
        changes
    }

    /// What of an object could not be used.
    #[must_use]
    pub fn notes_of(&self, key: &ObjectKey) -> Vec<&Note> {
        self.notes().filter(|note| note.object == *key).collect()
    }

    /// What objects say that could not be used.
    pub fn notes(&self) -> impl Iterator<Item = &Note> {
        let services = self.services.values().flat_map(|part| &part.notes);
        let pods = self.pods.values().flat_map(|part| &part.notes);
        let slices = self.slices.values().flat_map(|part| &part.notes);
        let policies = self.policies.values().flat_map(|part| &part.notes);
        services.chain(pods).chain(slices).chain(policies).chain(self.mode_notes.values().flatten())
    }

    /// How large the mesh is.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let foreign: usize = self.slices.values().map(|part| part.value.len()).sum();
        Sizes {
            workloads: self.pods.len() + foreign,
            services: self.services.len(),
            policies: self.policies.len() + self.modes.keys().filter(|mode| mode.policy().is_some()).count(),
        }
    }

    fn update_services(&mut self, objects: &Objects, dirty: &mut Dirty, changes: &mut Changes) {
        for name in &dirty.services {
            let new = objects.services.get(name).and_then(|object| service::of(objects, &self.options, name, object));
            let old = replace(&mut self.services, name, new);
            let (old, new) = (old.as_ref(), self.services.get(name));
            changes.note(old, new);
            let of = |part: Option<&Part<KnownService>>| part.map(|part| part.value.clone());
            let (old, new) = (of(old), of(new));
            let service = |known: &Option<KnownService>| known.as_ref().map(|known| known.service.clone());
            record(&mut changes.services, service(&old).as_ref(), service(&new), |service| service.name.clone());
            if !has_same_endpoints(old.as_ref(), new.as_ref()) {
                dirty.endpoints.push((
                    name.clone(),
                    old.and_then(|known| known.selector),
                    new.and_then(|known| known.selector),
                ));
            }
        }
    }

    fn update_pods(&mut self, dirty: &Dirty, changes: &mut Changes) {
        let mut touched = BTreeMap::new();
        for name in &dirty.pods {
            let new = self.objects.pods.get(name).and_then(|pod| of_pod(&self.sight(), pod));
            let old = replace(&mut self.pods, name, new);
            let (old, new) = (old.as_ref(), self.pods.get(name));
            changes.note(old, new);
            let mode = |part: Option<&Part<OfPod>>| part.map(|part| part.value.mode.clone());
            let (before, after) = (mode(old), mode(new));
            let workload = |part: Option<&Part<OfPod>>| part.map(|part| part.value.workload.clone());
            record(&mut changes.workloads, workload(old).as_ref(), workload(new), |workload| workload.uid.clone());
            if before != after {
                before.iter().for_each(|mode| self.count_mode(mode, false, &mut touched));
                after.iter().for_each(|mode| self.count_mode(mode, true, &mut touched));
            }
        }
        for (mode, was_there) in touched {
            let is_there = self.modes.contains_key(&mode);
            let policy = mode.policy().filter(|_| is_there != was_there);
            changes.policies.extend(policy.map(|policy| (policy.name.clone(), is_there.then_some(policy))));
        }
    }

    /// One pod more is under a mode, or one less; `touched` remembers which modes there were before.
    fn count_mode(&mut self, mode: &Effective, is_more: bool, touched: &mut BTreeMap<Effective, bool>) {
        touched.entry(mode.clone()).or_insert_with(|| self.modes.contains_key(mode));
        let count = self.modes.entry(mode.clone()).or_default();
        *count = if is_more { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            self.modes.remove(mode);
        }
    }

    fn update_slices(&mut self, dirty: &Dirty, changes: &mut Changes) {
        for name in &dirty.slices {
            let object = self.objects.endpoint_slices.get(name);
            let new = object.map(|object| slices::foreign(&self.sight(), name, object));
            let old = replace(&mut self.slices, name, new);
            let (old, new) = (old.as_ref(), self.slices.get(name));
            changes.note(old, new);
            let workloads = |part: Option<&Part<Vec<Workload>>>| -> BTreeMap<WorkloadUid, Workload> {
                let workloads = part.into_iter().flat_map(|part| &part.value);
                workloads.map(|workload| (workload.uid.clone(), workload.clone())).collect()
            };
            let (mut old, new) = (workloads(old), workloads(new));
            for (uid, workload) in new {
                record(&mut changes.workloads, old.remove(&uid).as_ref(), Some(workload), |workload| {
                    workload.uid.clone()
                });
            }
            changes.workloads.extend(old.into_keys().map(|uid| (uid, None)));
        }
    }

    fn update_policies(&mut self, dirty: &Dirty, changes: &mut Changes) {
        for name in &dirty.policies {
            let new = self.objects.authorization_policies.get(name).map(|object| policy::of(name, object));
            let old = replace(&mut self.policies, name, new);
            let (old, new) = (old.as_ref(), self.policies.get(name));
            changes.note(old, new);
            let policy = |part: Option<&Part<Policy>>| part.map(|part| part.value.clone());
            record(&mut changes.policies, policy(old).as_ref(), policy(new), |policy| policy.name.clone());
        }
        for namespace in &dirty.modes {
            let notes = policy::tls::notes(&self.objects, namespace);
            let old = self.mode_notes.insert(namespace.clone(), notes.clone()).unwrap_or_default();
            changes.notes.extend(notes.into_iter().filter(|note| !old.contains(note)));
        }
        self.mode_notes.retain(|_, notes| !notes.is_empty());
    }

    fn sight(&self) -> Sight<'_> {
        let Self { objects, reports, options, services, addresses, can_join, .. } = self;
        Sight { objects, reports, options, services, addresses, can_join: *can_join }
    }
}

impl Changes {
    /// Whether nothing that subscribers see is different.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.workloads.is_empty() && self.services.is_empty() && self.policies.is_empty()
    }

    fn note<T>(&mut self, old: Option<&Part<T>>, new: Option<&Part<T>>) {
        let known = |note: &&Note| old.is_some_and(|part| part.notes.contains(note));
        let notes = new.into_iter().flat_map(|part| &part.notes);
        self.notes.extend(notes.filter(|note| !known(note)).cloned());
    }
}

/// Whether endpoints are found, and reached, as before.
fn has_same_endpoints(old: Option<&KnownService>, new: Option<&KnownService>) -> bool {
    let of = |known: Option<&KnownService>| known.map(|known| (known.ports.clone(), known.selector.clone()));
    of(old) == of(new)
}

fn replace<T>(map: &mut BTreeMap<ObjectName, T>, name: &ObjectName, new: Option<T>) -> Option<T> {
    match new {
        Some(new) => map.insert(name.clone(), new),
        None => map.remove(name),
    }
}

/// Notes what is different, if anything is.
fn record<N: Ord, T: PartialEq>(
    changes: &mut BTreeMap<N, Option<T>>,
    old: Option<&T>,
    new: Option<T>,
    name: impl Fn(&T) -> N,
) {
    if old == new.as_ref() {
        return;
    }
    let Some(of) = new.as_ref().or(old).map(name) else { return };
    changes.insert(of, new);
}

#[cfg(test)]
mod tests;
