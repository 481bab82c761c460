//! Writes how far the enrolment of each namespace has come into its status, as the condition `underpass.dev/Enrolled`, and
//! its turning points as Events in the namespace; only by the operator that leads.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use imbl::OrdMap;
use k8s_openapi::{
    api::core::v1::{Namespace, NamespaceCondition},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{sync::watch, time};
use underpass_model::names::ENROLLED_CONDITION;
use underpass_objects::{
    Kind, ObjectName, Snapshot,
    cluster::event::{self, Event, Severity},
};
use underpass_runtime::{Shutdown, metrics::catalogue};

use super::{FIELD_MANAGER, Place};
use crate::census::{Count, Enrolled};

/// What is written at most once in so long: a rollout changes a count with every pod.
const PACE: Duration = Duration::from_secs(1);
/// An Event that takes longer is not waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Writes; see [`Self::run`].
pub struct NamespaceTask {
    /// Asked as this operator.
    pub client: Client,
    /// Which of the operators this is.
    pub place: Place,
    /// Whether to write.
    pub leads: watch::Receiver<bool>,
    /// What.
    pub counts: watch::Receiver<OrdMap<String, Count>>,
    /// What stands in the namespaces so far.
    pub objects: watch::Receiver<Snapshot>,
}

impl std::fmt::Debug for NamespaceTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NamespaceTask").field("leads", &self.leads).finish_non_exhaustive()
    }
}

/// A namespace's condition as it should be: status, reason and message.
type Wanted = (&'static str, &'static str, String);

fn wanted(count: &Count) -> Option<Wanted> {
    let enrolled = count.enrolled()?;
    let status = if enrolled == Enrolled::AllCaptured { "True" } else { "False" };
    Some((status, enrolled.word(), count.message()))
}

fn stands(namespace: &Namespace) -> Option<&NamespaceCondition> {
    let conditions = namespace.status.as_ref()?.conditions.as_deref().unwrap_or_default();
    conditions.iter().find(|condition| condition.type_ == ENROLLED_CONDITION)
}

/// The condition to write, if another one stands there.
fn change(wanted: Option<&Wanted>, stands: Option<&NamespaceCondition>, now: Timestamp) -> Option<Value> {
    let Some((status, reason, message)) = wanted else {
        return stands.map(|_| json!({ "$patch": "delete", "type": ENROLLED_CONDITION }));
    };
    let said = |text: &Option<String>, wanted: &str| text.as_deref() == Some(wanted);
    let since = stands.filter(|stands| stands.status == *status);
    if since.is_some_and(|stands| said(&stands.reason, reason) && said(&stands.message, message)) {
        return None;
    }
    let since = since.and_then(|stands| stands.last_transition_time.clone()).map_or(now, |time| time.0);
    Some(json!({
        "type": ENROLLED_CONDITION, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": since.to_string(),
    }))
}

/// Namespaces whose enrolment has begun and was not complete yet: of later waiting, as in every rollout, no Event tells.
type Beginning = BTreeSet<String>;

/// The Event for a namespace whose condition goes from what stands there to what is wanted, if that is a turning point.
fn turn(
    beginning: &mut Beginning,
    namespace: &str,
    before: Option<&str>,
    now: Option<Enrolled>,
) -> Option<(Severity, &'static str)> {
    let was_enrolled = [Enrolled::Waiting, Enrolled::AllCaptured].iter().any(|one| before == Some(one.word()));
    if now != Some(Enrolled::Waiting) {
        let was_beginning = beginning.remove(namespace);
        if now == Some(Enrolled::AllCaptured) && (was_beginning || !was_enrolled) {
            return Some((Severity::Normal, "MeshEnrolled"));
        }
    }
    if now.map(Enrolled::word) == before {
        return None;
    }
    match now {
        Some(Enrolled::Waiting) if !was_enrolled => {
            beginning.insert(namespace.to_owned());
            Some((Severity::Normal, "MeshEnrolling"))
        }
        Some(Enrolled::Waiting | Enrolled::AllCaptured) => None,
        Some(Enrolled::Leaving) => Some((Severity::Normal, "MeshLeaving")),
        Some(Enrolled::UnknownKey) => Some((Severity::Warning, "MeshKeyUnknown")),
        Some(Enrolled::UnknownLabelValue) => Some((Severity::Warning, "MeshLabelUnknown")),
        None => Some((Severity::Normal, "MeshLeft")),
    }
}

impl NamespaceTask {
    /// Writes whatever is different while it leads, until asked to stop.
    pub async fn run(mut self, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.requested() => {}
            () = self.work() => {}
        }
    }

    async fn work(&mut self) {
        let mut beginning = Beginning::default();
        // Before anything is counted every namespace would look as if it had nothing to do with the mesh.
        if self.counts.changed().await.is_err() {
            return;
        }
        while self.leads.wait_for(|leads| *leads).await.is_ok() {
            let counts = self.counts.borrow_and_update().clone();
            let objects = Arc::clone(&self.objects.borrow().objects);
            let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
            let mut is_done = true;
            for (name, namespace) in &objects.namespaces {
                let wanted = counts.get(name).and_then(wanted);
                let stands = stands(namespace);
                let Some(condition) = change(wanted.as_ref(), stands, now) else { continue };
                if let Err(error) = self.write(name, &condition).await {
                    catalogue::OPERATOR_WRITE_ERRORS.with(["namespace"]).increment(1);
                    tracing::warn!(%error, namespace = name, "its enrolment cannot be told");
                    is_done = false;
                    continue;
                }
                let before = stands.and_then(|stands| stands.reason.as_deref());
                let enrolled = counts.get(name).and_then(Count::enrolled);
                if let Some(turn) = turn(&mut beginning, name, before, enrolled) {
                    let message = wanted.map_or_else(|| "no pod is in the mesh any more".to_owned(), |wanted| wanted.2);
                    self.tell(namespace, turn, message).await;
                }
            }
            // Its own writes come back as changes of the namespaces, after which there is nothing left to do.
            time::sleep(PACE).await;
            if is_done && self.counts.changed().await.is_err() {
                return;
            }
        }
    }

    /// Best effort: the condition says the same, and is written until it stands.
    async fn tell(&self, namespace: &Namespace, (severity, reason): (Severity, &'static str), message: String) {
        let metadata = &namespace.metadata;
        let name = metadata.name.as_deref().unwrap_or_default();
        let about = Event {
            kind: Kind::Namespace,
            // In the namespace itself, where its users look and may look.
            name: ObjectName::new(name, name),
            uid: metadata.uid.clone().unwrap_or_default(),
            severity,
            reason,
            message,
        };
        let telling = event::emit(&self.client, FIELD_MANAGER, &self.place.name, &about);
        let failure = match time::timeout(PATIENCE, Box::pin(telling)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => "no answer in time".to_owned(),
        };
        catalogue::OPERATOR_WRITE_ERRORS.with(["event"]).increment(1);
        tracing::debug!(error = failure, namespace = name, reason, "an Event could not be written");
    }

    async fn write(&self, name: &str, condition: &Value) -> Result<(), kube::Error> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let patch = Patch::Strategic(json!({ "status": { "conditions": [condition] } }));
        match api.patch_status(name, &parameters, &patch).await {
            Ok(_namespace) => Ok(()),
            // Its deletion is on the way to us.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_there_is_not_written_again_and_what_nobody_wants_goes() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let all: Wanted = ("True", "AllCaptured", "1 of 1 pods captured".into());
        let first = change(Some(&all), None, at(10)).unwrap();
        assert_eq!(first["lastTransitionTime"], "1970-01-01T00:00:10Z");
        let stands: NamespaceCondition = serde_json::from_value(first).unwrap();
        assert_eq!(change(Some(&all), Some(&stands), at(20)), None);
        let more: Wanted = ("True", "AllCaptured", "2 of 2 pods captured".into());
        let second = change(Some(&more), Some(&stands), at(20)).unwrap();
        assert_eq!(second["lastTransitionTime"], "1970-01-01T00:00:10Z", "still true since then");
        let waits: Wanted = ("False", "Waiting", String::new());
        assert_eq!(change(Some(&waits), Some(&stands), at(20)).unwrap()["lastTransitionTime"], "1970-01-01T00:00:20Z");
        assert_eq!(change(None, Some(&stands), at(20)).unwrap()["$patch"], "delete");
        assert_eq!(change(None, None, at(20)), None);
    }

    #[test]
    fn people_hear_of_turning_points_and_of_no_rollout() {
        use Enrolled::{AllCaptured, Leaving, UnknownKey, UnknownLabelValue, Waiting};
        let (normal, warning) = (Severity::Normal, Severity::Warning);
        let mut beginning = Beginning::default();
        let mut before = None;
        // Each step begins where the one before it ended.
        for (now, expected) in [
            (Some(Waiting), Some((normal, "MeshEnrolling"))),
            (Some(Waiting), None),
            (Some(AllCaptured), Some((normal, "MeshEnrolled"))),
            (Some(AllCaptured), None),
            // A rollout.
            (Some(Waiting), None),
            (Some(AllCaptured), None),
            (Some(Leaving), Some((normal, "MeshLeaving"))),
            (None, Some((normal, "MeshLeft"))),
            (Some(UnknownLabelValue), Some((warning, "MeshLabelUnknown"))),
            (Some(UnknownKey), Some((warning, "MeshKeyUnknown"))),
            // Without a pod there is nothing to wait for.
            (Some(AllCaptured), Some((normal, "MeshEnrolled"))),
            (None, Some((normal, "MeshLeft"))),
            // Un-labelled before it was complete; the next time is a beginning of its own.
            (Some(Waiting), Some((normal, "MeshEnrolling"))),
            (None, Some((normal, "MeshLeft"))),
            (Some(Waiting), Some((normal, "MeshEnrolling"))),
        ] {
            assert_eq!(turn(&mut beginning, "shop", before, now), expected, "{before:?} to {now:?}");
            before = now.map(Enrolled::word);
        }
        // An operator that takes over knows the condition, not the beginning.
        assert_eq!(turn(&mut Beginning::default(), "shop", Some("Waiting"), Some(AllCaptured)), None);
    }
}
