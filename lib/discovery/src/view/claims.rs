//! Who claims one key, best first, so that the next best has it back when the winner goes.

use std::{cmp::Ordering, sync::Arc};

use underpass_model::{Service, Tunnel, Workload};

/// Something that can claim a key against others of its kind.
pub(super) trait Claimant: Clone {
    /// `Less` is better; `Equal` only for the same claimant.
    fn rank(&self, other: &Self) -> Ordering;
}

impl Claimant for Workload {
    fn rank(&self, other: &Self) -> Ordering {
        let key = |workload: &Self| (!workload.uid.is_pod(), workload.tunnel != Tunnel::Hbone);
        key(self).cmp(&key(other)).then_with(|| self.uid.cmp(&other.uid))
    }
}

impl Claimant for Service {
    fn rank(&self, other: &Self) -> Ordering {
        other.canonical.cmp(&self.canonical).then_with(|| self.name.cmp(&other.name))
    }
}

/// Claimants, best first. Mostly one, so a slice: a change costs as much as there are claimants of this one key.
#[derive(Clone, Debug)]
pub(super) struct Claims<T>(Arc<[Arc<T>]>);

impl<T> Default for Claims<T> {
    fn default() -> Self {
        Self(Arc::new([]))
    }
}

impl<T: Claimant> Claims<T> {
    pub(super) fn best(&self) -> Option<&Arc<T>> {
        self.0.first()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.0.iter()
    }

    /// Adds one; a key that the same claimant names twice is claimed once.
    pub(super) fn insert(&mut self, claimant: Arc<T>) {
        let mut all = self.0.to_vec();
        match all.binary_search_by(|other| other.rank(&claimant)) {
            Ok(_) => {}
            Err(place) => all.insert(place, claimant),
        }
        self.0 = all.into();
    }

    pub(super) fn remove(&mut self, claimant: &T) {
        self.0 = self.0.iter().filter(|other| other.rank(claimant).is_ne()).cloned().collect();
    }
}
