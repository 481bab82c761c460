//! Policies, found by whom they are about.

use std::sync::Arc;

use imbl::HashMap;
use underpass_model::Workload;
use underpass_policy::{Policy, PolicyName, PolicySet, Scope};

/// All policies. Those that hold for many workloads lie ready as one slice each, so that a workload's set is made
/// without looking at others' policies.
#[derive(Clone, Debug, Default)]
pub(super) struct Policies {
    by_name: HashMap<PolicyName, Arc<Policy>>,
    mesh: Arc<[Arc<Policy>]>,
    namespaces: HashMap<Arc<str>, Arc<[Arc<Policy>]>>,
}

impl Policies {
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    pub(super) fn get(&self, name: &str) -> Option<&Arc<Policy>> {
        self.by_name.get(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.by_name.values()
    }

    /// What a workload is under: what is about the mesh, about its namespace, and what its record names.
    pub(super) fn of(&self, workload: &Workload) -> PolicySet {
        let namespace = self.namespaces.get(&*workload.namespace).cloned().unwrap_or_default();
        let set = PolicySet::new(Arc::clone(&self.mesh), namespace);
        if workload.policies.is_empty() {
            return set;
        }
        let named = |name: &Arc<str>| self.get(name).cloned().ok_or_else(|| PolicyName::from(Arc::clone(name)));
        set.with_named(workload.policies.iter().map(named))
    }

    pub(super) fn set(&mut self, policy: Policy) {
        if self.get(policy.name.as_str()).is_some_and(|held| **held == policy) {
            return;
        }
        self.remove(policy.name.as_str());
        let policy = Arc::new(policy);
        self.regroup(&policy, |group| group.push(Arc::clone(&policy)));
        self.by_name.insert(policy.name.clone(), policy);
    }

    pub(super) fn remove(&mut self, name: &str) {
        let Some(policy) = self.by_name.remove(name) else { return };
        self.regroup(&policy, |group| group.retain(|other| other.name != policy.name));
    }

    /// Rebuilds the slice in which a policy is, if it is in one; in the order of names, whatever came first.
    fn regroup(&mut self, policy: &Policy, change: impl FnOnce(&mut Vec<Arc<Policy>>)) {
        let changed = |group: &[Arc<Policy>]| {
            let mut group = group.to_vec();
            change(&mut group);
            group.sort_by(|one, other| one.name.cmp(&other.name));
            Arc::from(group)
        };
        match policy.scope {
            Scope::Mesh => self.mesh = changed(&self.mesh),
            Scope::Named => {}
            Scope::Namespace => {
                let namespace: Arc<str> = policy.name.namespace().into();
                let group = changed(self.namespaces.get(&namespace).map_or(&[], |group| group));
                if group.is_empty() {
                    self.namespaces.remove(&namespace);
                } else {
                    self.namespaces.insert(namespace, group);
                }
            }
        }
    }
}
