//! Publishes the mesh: whenever objects or capture reports change, translates them and tells subscribers what became
//! different, nothing more.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::sync::watch;
use underpass_discovery::{
    server::{Batch, Published, Publisher},
    wire::ResourceType,
};
use underpass_objects::{Kind, Origin, Snapshot, Status};
use underpass_runtime::{
    Shutdown,
    admin::{Pending, Readiness},
};

use crate::{
    join,
    translate::{Note, TranslateOptions, Translation, translate},
    withdrawal::Withdrawals,
};

/// Where the objects come from and how they are translated.
#[derive(Debug)]
pub struct Publication {
    /// The objects.
    pub objects: watch::Receiver<Snapshot>,
    /// The capture reports.
    pub status: watch::Receiver<Status>,
    /// What holds for the whole mesh.
    pub options: TranslateOptions,
    /// Who tells subscribers.
    pub publisher: Publisher,
    /// Where it is told that files are lost: broken, and no good state of them is known.
    pub readiness: Readiness,
    /// Who answers agents whose pods leave.
    pub withdrawals: Withdrawals,
}

/// What became different between two translations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// New or changed resources.
    pub set: Vec<Published>,
    /// Names of workloads and services that are gone.
    pub removed: Vec<String>,
    /// Names of policies that are gone.
    pub removed_policies: Vec<String>,
}

impl Publication {
    /// Publishes until asked to stop; `first` is done when subscribers can be served.
    pub async fn run(mut self, first: Pending, shutdown: Shutdown) {
        let mut shown = Translation::default();
        let mut told = BTreeSet::new();
        let mut lost = BTreeMap::new();
        let mut first = Some(first);
        loop {
            let (objects, can_join, status) = {
                let snapshot = self.objects.borrow_and_update();
                count_objects(&snapshot);
                tell_lost(&snapshot, &self.readiness, &mut lost);
                let can_join = snapshot.sees_all_kinds && !join::needs_interfaces(snapshot.ignored.keys());
                (Arc::clone(&snapshot.objects), can_join, self.status.borrow_and_update().clone())
            };
            let mut translation = translate(&objects, &status.reports, &self.options);
            if can_join {
                join::mark(&mut translation);
            }
            tell(&translation.notes, &mut told);
            let version = self.publish(&shown, &translation, first.is_some());
            shown = translation;
            drop(first.take());
            self.withdrawals.answer(&status, version);
            let more = async {
                tokio::select! {
                    changed = self.objects.changed() => changed.is_ok(),
                    changed = self.status.changed() => changed.is_ok(),
                }
            };
            let goes_on = tokio::select! {
                () = shutdown.requested() => false,
                more = more => more,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// The version after it. Even an empty mesh is published once, so that subscribers know that it is complete.
    fn publish(&self, shown: &Translation, translation: &Translation, is_first: bool) -> u64 {
        let difference = difference(shown, translation);
        metrics::gauge!("underpass_operator_workloads").set(count(translation.workloads.len()));
        metrics::gauge!("underpass_operator_services").set(count(translation.services.len()));
        metrics::gauge!("underpass_operator_policies").set(count(translation.policies.len()));
        if difference == Difference::default() && !is_first {
            return self.publisher.version();
        }
        let (set, removed) = (difference.set.len(), difference.removed.len() + difference.removed_policies.len());
        let mut batch = Batch::new();
        for resource in difference.set {
            batch.set(resource);
        }
        for name in difference.removed {
            batch.remove(ResourceType::Address, &name);
        }
        let mut version = self.publisher.commit(batch);
        if !difference.removed_policies.is_empty() {
            // One after the other: a workload that still names a policy which is gone would be refused everything.
            let mut batch = Batch::new();
            for name in difference.removed_policies {
                batch.remove(ResourceType::Authorization, &name);
            }
            version = self.publisher.commit(batch);
        }
        tracing::debug!(version, set, removed, "published");
        version
    }
}

/// Compares two translations.
#[must_use]
pub fn difference(before: &Translation, after: &Translation) -> Difference {
    let mut difference = Difference::default();
    for (uid, workload) in &after.workloads {
        if before.workloads.get(uid) != Some(workload) {
            difference.set.push(Published::workload(workload));
        }
    }
    for (name, service) in &after.services {
        if before.services.get(name) != Some(service) {
            difference.set.push(Published::service(service));
        }
    }
    for (name, policy) in &after.policies {
        if before.policies.get(name) != Some(policy) {
            difference.set.push(Published::authorization(policy));
        }
    }
    let gone = before.policies.keys().filter(|name| !after.policies.contains_key(*name)).map(ToString::to_string);
    difference.removed_policies.extend(gone);
    let gone = before.workloads.keys().filter(|uid| !after.workloads.contains_key(uid)).map(ToString::to_string);
    difference.removed.extend(gone);
    let gone = before.services.keys().filter(|name| !after.services.contains_key(name)).map(ToString::to_string);
    difference.removed.extend(gone);
    difference
}

/// While a file is lost, its objects look as if they were gone. The rest of the mesh must not wait for it, but whoever
/// asks whether all is well is told otherwise.
fn tell_lost(snapshot: &Snapshot, readiness: &Readiness, lost: &mut BTreeMap<Origin, Pending>) {
    let problems = snapshot.problems.iter().filter(|problem| problem.is_lost);
    let now: BTreeSet<&Origin> = problems.map(|problem| &problem.origin).collect();
    lost.retain(|origin, _| now.contains(origin));
    for origin in now {
        let pending = || readiness.pending(format!("objects of {origin}"));
        lost.entry(origin.clone()).or_insert_with(pending);
    }
    metrics::gauge!("underpass_operator_lost_files").set(count(lost.len()));
}

/// Each note is logged when it first comes up, and again only after it was gone.
fn tell(notes: &[Note], told: &mut BTreeSet<Note>) {
    for note in notes {
        if !told.contains(note) {
            tracing::warn!(object = %note.object, field = note.field, problem = note.problem, "not used");
        }
    }
    *told = notes.iter().cloned().collect();
}

fn count_objects(snapshot: &Snapshot) {
    let objects = &snapshot.objects;
    let counts: BTreeMap<Kind, usize> = BTreeMap::from([
        (Kind::AuthorizationPolicy, objects.authorization_policies.len()),
        (Kind::EndpointSlice, objects.endpoint_slices.len()),
        (Kind::MeshTlsMode, objects.mesh_tls_modes.len()),
        (Kind::Namespace, objects.namespaces.len()),
        (Kind::Node, objects.nodes.len()),
        (Kind::Pod, objects.pods.len()),
        (Kind::Service, objects.services.len()),
        (Kind::ServiceAccount, objects.service_accounts.len()),
    ]);
    for (kind, of_kind) in counts {
        metrics::gauge!("underpass_operator_objects", "kind" => kind.as_str()).set(count(of_kind));
    }
    metrics::gauge!("underpass_operator_object_problems").set(count(snapshot.problems.len()));
}

#[expect(clippy::cast_precision_loss, reason = "no mesh has 2^52 of anything")]
fn count(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use underpass_objects::{Objects, manifest};

    use super::*;

    fn translated(pods: &[(&str, &str)]) -> Translation {
        let pod = |(name, address): &(&str, &str)| {
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{nodeName: a}}\n\
                 status: {{podIP: {address}}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{}}\n"
            )
        };
        let manifests: String = pods.iter().map(pod).collect();
        let read = manifest::read(manifests.as_bytes()).unwrap().objects;
        let objects: Objects = read.into_values().map(|located| located.object).collect();
        translate(&objects, &BTreeMap::new(), &TranslateOptions::default())
    }

    fn names(before: &Translation, after: &Translation) -> (Vec<String>, Vec<String>) {
        let Difference { set, removed, .. } = difference(before, after);
        (set.iter().map(|resource| resource.name.to_string()).collect(), removed)
    }

    #[test]
    fn only_what_became_different_is_told() {
        let before = translated(&[("same", "10.0.0.1"), ("changes", "10.0.0.2"), ("goes", "10.0.0.3")]);
        let after = translated(&[("same", "10.0.0.1"), ("changes", "10.0.0.9"), ("comes", "10.0.0.4")]);
        assert_eq!(difference(&before, &before), Difference::default());
        let (set, removed) = names(&before, &after);
        let pod = |name: &str| format!("Kubernetes//Pod/default/{name}");
        let service = |name: &str| format!("default/{name}.default.svc.cluster.local");
        assert_eq!(set, [pod("changes"), pod("comes"), service("comes")]);
        assert_eq!(removed, [pod("goes"), service("goes")]);
    }

    #[test]
    fn policies_come_and_go_with_what_they_become() {
        let mode = |mode: &str| {
            let text = format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {{nodeName: a}}\n---\napiVersion: underpass.dev/v1alpha1\n\
                 kind: MeshTLSMode\nmetadata: {{name: a}}\nspec: {{mode: {mode}}}\n"
            );
            let read = manifest::read(text.as_bytes()).unwrap().objects;
            let objects: Objects = read.into_values().map(|located| located.object).collect();
            translate(&objects, &BTreeMap::new(), &TranslateOptions::default())
        };
        let (open, strict) = (mode("PERMISSIVE"), mode("STRICT"));
        let name = "underpass-system/mesh-tls-mode:strict";
        let Difference { set, removed_policies, .. } = difference(&open, &strict);
        assert!(set.iter().any(|resource| &*resource.name == name) && removed_policies.is_empty());
        let Difference { set, removed_policies, .. } = difference(&strict, &open);
        assert!(set.iter().all(|resource| &*resource.name != name));
        assert_eq!(removed_policies, [name]);
    }
}
