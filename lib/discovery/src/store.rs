//! One writer that applies deltas and publishes the next view, and any number of readers that never wait for it.

mod mesh;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use underpass_model::{Revocation, Service, ServiceName, Workload, WorkloadUid};
use underpass_policy::{Action, Policy};

pub(crate) use mesh::{Ask, Asks, Question};
pub use mesh::{AskError, Mesh};

use crate::{kept::Snapshot, view::View, wire::ResourceType};
use mesh::Shared;

/// What one resource of the protocol holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Resource {
    /// An authorization policy.
    Authorization(Policy),
    /// A revocation.
    Revocation(Revocation),
    /// A service.
    Service(Service),
    /// A workload.
    Workload(Workload),
}

impl Resource {
    /// The name that the protocol gives it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Authorization(policy) => policy.name.to_string(),
            Self::Revocation(revocation) => revocation.name(),
            Self::Service(service) => service.name.to_string(),
            Self::Workload(workload) => workload.uid.to_string(),
        }
    }
}

/// What changed of one type, in one step for readers.
#[derive(Clone, Debug)]
pub struct Delta {
    /// Which type.
    pub kind: ResourceType,
    /// New and changed resources with their versions.
    pub changed: Vec<(Resource, Arc<str>)>,
    /// Names of those that are gone.
    pub removed: Vec<String>,
    /// True if, after this, everything of the type has been said at least once.
    pub complete: bool,
}

/// How much of a type has been heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Heard {
    #[default]
    Nothing,
    Part,
    Whole,
}

/// Sees each view before any reader does.
type First = Box<dyn FnMut(&View) + Send + Sync>;

/// The only writer.
pub struct Store {
    view: View,
    /// The version that is held of each address resource.
    versions: HashMap<String, Arc<str>>,
    /// The version that is held of each policy.
    authorizations: HashMap<String, Arc<str>>,
    /// The version that is held of each revocation.
    revocations: HashMap<String, Arc<str>>,
    heard: [Heard; ResourceType::ALL.len()],
    first: Option<First>,
    shared: Arc<Shared>,
    asks: Asks,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("view", &self.view).field("heard", &self.heard).finish_non_exhaustive()
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// An empty mesh of which nothing has been heard.
    #[must_use]
    pub fn new() -> Self {
        let (shared, asks) = Shared::new(View::default());
        Self {
            view: View::default(),
            versions: HashMap::new(),
            authorizations: HashMap::new(),
            revocations: HashMap::new(),
            heard: Default::default(),
            first: None,
            shared,
            asks,
        }
    }

    /// A handle for readers.
    #[must_use]
    pub fn mesh(&self) -> Mesh {
        Mesh::new(self.shared.clone())
    }

    /// From now on this sees each new view before any reader does: what is done there has been done for whoever acts by
    /// that view.
    #[must_use]
    pub fn shown_first_to(self, first: impl FnMut(&View) + Send + Sync + 'static) -> Self {
        Self { first: Some(Box::new(first)), ..self }
    }

    /// Applies a change and publishes the view that results. What it says nothing of stays.
    pub fn apply(&mut self, delta: Delta) {
        let before = self.heard;
        if let Some(heard) = self.heard.get_mut(delta.kind as usize) {
            let now = match delta.complete {
                true => Heard::Whole,
                false if delta.changed.is_empty() => Heard::Nothing,
                false => Heard::Part,
            };
            *heard = now.max(*heard);
        }
        if delta.changed.is_empty() && delta.removed.is_empty() && before == self.heard {
            return;
        }
        for name in &delta.removed {
            self.remove(delta.kind, name);
        }
        for (resource, version) in delta.changed {
            self.set(resource, version);
        }
        self.publish();
    }

    /// From now on what is held counts as all there is.
    pub(crate) fn believe(&mut self) {
        if self.heard.iter().any(|heard| *heard != Heard::Whole) {
            self.heard = [Heard::Whole; ResourceType::ALL.len()];
            self.publish();
        }
    }

    fn publish(&mut self) {
        let is_heard = |kind: ResourceType| match self.heard.get(kind as usize) {
            Some(Heard::Whole) => true,
            // Whoever tells of a type at all, tells all of it.
            Some(Heard::Part) | None => false,
            Some(Heard::Nothing) => !kind.is_awaited(),
        };
        self.view.advance(ResourceType::ALL.into_iter().all(is_heard));
        if let Some(first) = &mut self.first {
            first(&self.view);
        }
        self.shared.publish(self.view.clone());
    }

    /// What is held of a type, with versions, so that a server need only send what changed since.
    #[must_use]
    pub fn versions(&self, kind: ResourceType) -> HashMap<String, String> {
        let text = |(name, version): (&String, &Arc<str>)| (name.clone(), version.to_string());
        match kind {
            ResourceType::Address => self.versions.iter().map(text).collect(),
            ResourceType::Authorization => self.authorizations.iter().map(text).collect(),
            ResourceType::Revocation => self.revocations.iter().map(text).collect(),
        }
    }

    /// From now on readers' questions are put to the control plane, and no push of all addresses is waited for.
    pub(crate) fn take_questions(&mut self) {
        let [addresses, ..] = &mut self.heard;
        *addresses = Heard::Whole;
        self.shared.set_on_demand(true);
    }

    /// Somebody needs what a question leads to; `false` if that is nothing.
    pub(crate) fn used(&self, question: &Question) -> bool {
        self.shared.used(question)
    }

    /// Drops what no question of the last while led to; returns the names of those questions and of what was dropped.
    pub(crate) fn forget_unused(&mut self, idle: Duration) -> Vec<String> {
        let shared = Arc::clone(&self.shared);
        // Held until the next view is there: who asks finds what he asked for, or finds it gone and asks anew.
        let mut uses = shared.uses();
        let unused = uses.extract_if(|_, last| last.elapsed() >= idle);
        let mut names: Vec<String> = unused.map(|(question, _)| question.key()).collect();
        if names.is_empty() {
            return names;
        }
        let kept: HashSet<String> = uses.keys().flat_map(|question| question.found(&self.view)).collect();
        let dropped: Vec<String> = self.versions.keys().filter(|name| !kept.contains(*name)).cloned().collect();
        for name in &dropped {
            self.remove(ResourceType::Address, name);
        }
        if !dropped.is_empty() {
            self.publish();
        }
        names.extend(dropped);
        names
    }

    /// All that is held, for a copy. The view is shared, the versions are copied.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            view: self.view.clone(),
            versions: self.versions.clone(),
            authorizations: self.authorizations.clone(),
            revocations: self.revocations.clone(),
        }
    }

    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    pub(crate) fn asks(&mut self) -> &mut Asks {
        &mut self.asks
    }

    fn set(&mut self, resource: Resource, version: Arc<str>) {
        let name = resource.name();
        match resource {
            Resource::Authorization(policy) => {
                let is_known = self.view.policy(&name).is_some_and(|held| held.action != Action::Refuse);
                // What was not understood refuses, unless an earlier state of it was: that one stays in force.
                if policy.action != Action::Refuse || !is_known {
                    self.authorizations.insert(name, version);
                    self.view.set_policy(policy);
                }
                return;
            }
            Resource::Revocation(revocation) => {
                self.revocations.insert(name, version);
                self.view.set_revocation(revocation);
                return;
            }
            // A name may change its kind: it is one resource all the same.
            Resource::Service(service) => {
                self.view.remove_workload(&WorkloadUid::new(&name));
                self.view.set_service(Arc::new(service));
            }
            Resource::Workload(workload) => {
                self.remove_service(&name);
                self.view.set_workload(Arc::new(workload));
            }
        }
        self.versions.insert(name, version);
    }

    fn remove(&mut self, kind: ResourceType, name: &str) {
        match kind {
            ResourceType::Authorization => {
                self.authorizations.remove(name);
                self.view.remove_policy(name);
            }
            ResourceType::Revocation => {
                self.revocations.remove(name);
                self.view.remove_revocation(name);
            }
            ResourceType::Address => {
                self.versions.remove(name);
                self.view.remove_workload(&WorkloadUid::new(name));
                self.remove_service(name);
            }
        }
    }

    fn remove_service(&mut self, name: &str) {
        if let Some(name) = ServiceName::parse(name) {
            self.view.remove_service(&name);
        }
    }
}

#[cfg(test)]
mod tests;
