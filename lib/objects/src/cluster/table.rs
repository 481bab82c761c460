//! What all feeds together say: pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    feed::Update,
    kind::{Misread, Read},
};
use crate::{
    guarded::NetworkPolicies,
    object::{Kind, ObjectKey, Objects},
    snapshot::{KindError, Origin, Problem, Snapshot, SourceError},
};

/// The newest snapshot, and of each kind how it is doing.
#[derive(Debug)]
pub(super) struct Table {
    snapshot: Snapshot,
    kinds: BTreeMap<Kind, State>,
    misread: BTreeMap<ObjectKey, Problem>,
}

#[derive(Debug)]
struct State {
    is_listed: bool,
    error: Option<KindError>,
}

impl Table {
    pub(super) fn new(kinds: impl Iterator<Item = Kind>) -> Self {
        let state = |kind| (kind, State { is_listed: false, error: Some(KindError::NotListed) });
        let kinds = kinds.map(state).collect();
        let mut table = Self { snapshot: Snapshot::default(), kinds, misread: BTreeMap::new() };
        table.take_stock();
        table
    }

    pub(super) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    pub(super) fn take(&mut self, kind: Kind, update: Update) {
        let revision = match update {
            Update::Listed(objects, revision) => {
                self.replace(kind, objects);
                self.succeed(kind);
                revision
            }
            Update::Applied(read, revision) => {
                if let Some(key) = self.apply(*read) {
                    tracing::trace!(%key, "changed");
                }
                self.succeed(kind);
                revision
            }
            Update::Deleted(key, revision) => {
                self.remove(&key);
                self.succeed(kind);
                revision
            }
            Update::Alive(revision) => {
                self.succeed(kind);
                revision
            }
            Update::Failed(error) => return self.fail(kind, error),
        };
        if kind == Kind::Pod {
            self.snapshot.pods_revision = self.snapshot.pods_revision.max(revision);
        }
    }

    pub(super) fn take_network_policies(&mut self, found: NetworkPolicies) {
        self.snapshot.network_policies = found;
    }

    /// Objects that are equal stay the same values; those that are not named are gone.
    fn replace(&mut self, kind: Kind, objects: Vec<Read>) {
        let named: BTreeSet<ObjectKey> = objects.into_iter().filter_map(|read| self.apply(read)).collect();
        for key in self.snapshot.objects.keys(kind).into_iter().filter(|key| !named.contains(key)) {
            self.remove(&key);
        }
        self.misread.retain(|key, _| key.kind != kind || named.contains(key));
        self.take_stock();
    }

    fn apply(&mut self, read: Read) -> Option<ObjectKey> {
        let (key, object) = match read {
            Ok(object) => {
                let key = object.key()?;
                if self.misread.remove(&key).is_some() {
                    self.take_stock();
                }
                (key, Some(object))
            }
            Err(Misread { key, problem, instead }) => {
                let is_known = self.snapshot.objects.get(&key).is_some();
                let (origin, error) = (Origin::Object(key.clone()), SourceError::Object(problem));
                let is_lost = self.misread.get(&key).map_or(!is_known, |before| before.is_lost);
                self.misread.insert(key.clone(), Problem { origin, error, is_lost });
                self.take_stock();
                (key, instead.filter(|_| is_lost))
            }
        };
        if let Some(object) = object {
            self.change(|objects| objects.set(&key, &object));
        }
        Some(key)
    }

    fn remove(&mut self, key: &ObjectKey) {
        self.change(|objects| objects.remove(key));
        if self.misread.remove(key).is_some() {
            self.take_stock();
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut Objects) -> bool) {
        let mut objects = Objects::clone(&self.snapshot.objects);
        if change(&mut objects) {
            self.snapshot.objects = Arc::new(objects);
        }
    }

    fn succeed(&mut self, kind: Kind) {
        let Some(state) = self.kinds.get_mut(&kind) else { return };
        state.is_listed = true;
        if state.error.take().is_some() {
            self.take_stock();
        }
    }

    fn fail(&mut self, kind: Kind, error: KindError) {
        let Some(state) = self.kinds.get_mut(&kind) else { return };
        // A kind that is not installed has no objects. Of one that was, the objects known last stay: who removes a kind
        // removes its objects first.
        state.is_listed |= error == KindError::Unknown && kind.is_own();
        if state.error.as_ref() != Some(&error) {
            state.error = Some(error);
            self.take_stock();
        }
    }

    fn take_stock(&mut self) {
        let of_kind = |(kind, state): (&Kind, &State)| {
            let error = state.error.clone()?;
            Some(Problem { origin: Origin::Kind(*kind), error: error.into(), is_lost: !state.is_listed })
        };
        let problems = self.kinds.iter().filter_map(of_kind).chain(self.misread.values().cloned());
        self.snapshot.problems = Arc::new(problems.collect());
    }
}
