//! Writes how far the enrolment of each namespace has come into its status, as the condition `underpass.dev/Enrolled`; only
//! by the operator that leads.

use std::{sync::Arc, time::Duration};

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
use underpass_objects::Snapshot;
use underpass_runtime::{Shutdown, metrics::catalogue};

use super::FIELD_MANAGER;
use crate::census::{Count, Enrolled};

/// What is written at most once in so long: a rollout changes a count with every pod.
const PACE: Duration = Duration::from_secs(1);

/// Writes; see [`Self::run`].
pub struct NamespaceTask {
    /// Asked as this operator.
    pub client: Client,
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

impl NamespaceTask {
    /// Writes whatever is different while it leads, until asked to stop.
    pub async fn run(mut self, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.requested() => {}
            () = self.work() => {}
        }
    }

    async fn work(&mut self) {
        while self.leads.wait_for(|leads| *leads).await.is_ok() {
            let counts = self.counts.borrow_and_update().clone();
            let objects = Arc::clone(&self.objects.borrow().objects);
            let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
            let mut is_done = true;
            for (name, namespace) in &objects.namespaces {
                let wanted = counts.get(name).and_then(wanted);
                let Some(condition) = change(wanted.as_ref(), stands(namespace), now) else { continue };
                if let Err(error) = self.write(name, &condition).await {
                    catalogue::OPERATOR_WRITE_ERRORS.with(["namespace"]).increment(1);
                    tracing::warn!(%error, namespace = name, "its enrolment cannot be told");
                    is_done = false;
                }
            }
            // Its own writes come back as changes of the namespaces, after which there is nothing left to do.
            time::sleep(PACE).await;
            if is_done && self.counts.changed().await.is_err() {
                return;
            }
        }
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
}
