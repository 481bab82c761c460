//! Publishes the mesh: whenever objects or capture reports change, translates what the change concerns and tells
//! subscribers what became different, nothing more.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use underpass_discovery::{
    server::{Batch, Published, Publisher},
    wire::ResourceType,
};
use underpass_objects::{Kind, Object, Origin, Snapshot, policy::ObjectStatus};
use underpass_runtime::{
    Shutdown,
    admin::{Pending, Readiness},
    metrics::catalogue,
};

use crate::{
    census::{Census, Count, News},
    cluster::status::Told,
    intent, join,
    pushes::Push,
    source::{Reporting, Telling},
    translate::{Changes, Note, TranslateOptions, Translator},
    verdict::{Verdict, verdicts},
};

/// Where the objects come from and how they are translated.
#[derive(Debug)]
pub struct Publication {
    /// The objects.
    pub objects: watch::Receiver<Snapshot>,
    /// The capture reports, and who answers agents whose pods leave.
    pub reporting: Reporting,
    /// What holds for the whole mesh.
    pub options: TranslateOptions,
    /// How long certificates may live at most.
    pub most_lifetime: Duration,
    /// Who tells subscribers.
    pub publisher: Publisher,
    /// Where it is told that files are lost: broken, and no good state of them is known.
    pub readiness: Readiness,
    /// Where people are told what became of their objects.
    pub telling: Telling,
    /// What was published last.
    pub pushes: watch::Sender<Push>,
}

impl Publication {
    /// Publishes until asked to stop; `first` is done when subscribers can be served.
    pub async fn run(mut self, first: Pending, shutdown: Shutdown) {
        let mut translator = Translator::new(self.options.clone());
        let mut lost = BTreeMap::new();
        let mut first = Some(first);
        let mut told = None;
        let mut census = Census::default();
        loop {
            let snapshot = self.objects.borrow_and_update().clone();
            let reports = self.reporting.reports();
            count_objects(&snapshot);
            tell_lost(&snapshot, &self.readiness, &mut lost);
            // A mesh without any pod because they are not listed yet must not be told to anyone.
            if first.is_none() || snapshot.unlisted().next().is_none() {
                let changes = translator.update(&snapshot.objects, &reports, join::can_join(&snapshot));
                tell(&changes.notes);
                count_mesh(&translator);
                let version = self.publish(&changes, first.is_some());
                drop(first.take());
                self.reporting.published(&snapshot, version);
                // Once even if there is nothing to tell: until then what stands in namespaces may be right.
                let news = census.update(&snapshot.objects, &reports);
                tell_mistakes(&census, &news);
                if !news.namespaces.is_empty() || told.is_none() {
                    self.telling.counts.send_replace(census.counts().clone());
                }
                if told.as_ref().is_none_or(|told| is_news(told, &snapshot)) {
                    self.telling
                        .told
                        .send_replace(Told { version, objects: tell_of(&snapshot, &translator, self.most_lifetime) });
                    told = Some(snapshot);
                }
            }
            let more = async {
                tokio::select! {
                    changed = self.objects.changed() => changed.is_ok(),
                    goes_on = self.reporting.changed() => goes_on,
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
    fn publish(&self, changes: &Changes, is_first: bool) -> u64 {
        catalogue::OPERATOR_TRANSLATED.with([]).increment(changes.translated as u64);
        if changes.is_empty() && !is_first {
            return self.publisher.version();
        }
        let mut batch = Batch::new();
        for (uid, workload) in &changes.workloads {
            put(&mut batch, ResourceType::Address, uid, workload.as_ref().map(Published::workload));
        }
        for (name, service) in &changes.services {
            put(&mut batch, ResourceType::Address, name, service.as_ref().map(Published::service));
        }
        // One after the other: a workload that still names a policy which is gone would be refused everything.
        let mut removals = Batch::new();
        for (name, policy) in &changes.policies {
            let batch = if policy.is_some() { &mut batch } else { &mut removals };
            put(batch, ResourceType::Authorization, name, policy.as_ref().map(Published::authorization));
        }
        self.publisher.commit(batch);
        let version = self.publisher.commit(removals);
        self.pushes.send_replace(Push { version, at: Instant::now() });
        let changed = changes.workloads.len() + changes.services.len() + changes.policies.len();
        tracing::debug!(version, changed, translated = changes.translated, "published");
        version
    }
}

/// Whether something is different of which people are told.
fn is_news(before: &Snapshot, now: &Snapshot) -> bool {
    let (before_objects, objects) = (&before.objects, &now.objects);
    !before_objects.authorization_policies.ptr_eq(&objects.authorization_policies)
        || !before_objects.mesh_configs.ptr_eq(&objects.mesh_configs)
        || !before_objects.mesh_tls_modes.ptr_eq(&objects.mesh_tls_modes)
        || !Arc::ptr_eq(&before.problems, &now.problems)
}

fn tell_of(
    snapshot: &Snapshot,
    translator: &Translator,
    most_lifetime: Duration,
) -> Vec<(Verdict, Option<ObjectStatus>)> {
    let intent = intent::note(&snapshot.objects, most_lifetime);
    let verdicts = verdicts(&snapshot.objects, &snapshot.problems, translator.notes().chain(&intent));
    let with_status = |verdict: Verdict| {
        let object = snapshot.objects.get(&verdict.key);
        let status = object.as_ref().and_then(Object::status).cloned();
        (verdict, status)
    };
    verdicts.into_iter().map(with_status).collect()
}

fn put(batch: &mut Batch, kind: ResourceType, name: &dyn ToString, resource: Option<Published>) {
    match resource {
        Some(resource) => drop(batch.set(resource)),
        None => drop(batch.remove(kind, &name.to_string())),
    }
}

fn count_mesh(translator: &Translator) {
    let sizes = translator.sizes();
    catalogue::OPERATOR_WORKLOADS.with([]).set(count(sizes.workloads));
    catalogue::OPERATOR_SERVICES.with([]).set(count(sizes.services));
    catalogue::OPERATOR_POLICIES.with([]).set(count(sizes.policies));
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
    catalogue::OPERATOR_LOST.with([]).set(count(lost.len()));
}

/// Each note is told when it comes up, and again only after it was gone.
fn tell(notes: &[Note]) {
    for note in notes {
        tracing::warn!(object = %note.object, field = note.field, problem = note.problem, "not used");
    }
}

/// Labels and annotations that look as if they were meant for the mesh.
fn tell_mistakes(census: &Census, news: &News) {
    for namespace in &news.mistaken {
        let problem = census.counts().get(namespace).and_then(Count::mistakes);
        tracing::warn!(namespace, problem, "means nothing");
    }
}

fn count_objects(snapshot: &Snapshot) {
    let objects = &snapshot.objects;
    let counts: BTreeMap<Kind, usize> = BTreeMap::from([
        (Kind::AuthorizationPolicy, objects.authorization_policies.len()),
        (Kind::EndpointSlice, objects.endpoint_slices.len()),
        (Kind::MeshConfig, objects.mesh_configs.len()),
        (Kind::MeshTlsMode, objects.mesh_tls_modes.len()),
        (Kind::Namespace, objects.namespaces.len()),
        (Kind::Node, objects.nodes.len()),
        (Kind::Pod, objects.pods.len()),
        (Kind::Service, objects.services.len()),
        (Kind::ServiceAccount, objects.service_accounts.len()),
    ]);
    for (kind, of_kind) in counts {
        catalogue::OPERATOR_OBJECTS.with([kind.as_str()]).set(count(of_kind));
    }
    catalogue::OPERATOR_PROBLEMS.with([]).set(count(snapshot.problems.len()));
}

#[expect(clippy::cast_precision_loss, reason = "no mesh has 2^52 of anything")]
fn count(number: usize) -> f64 {
    number as f64
}
