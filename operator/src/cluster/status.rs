//! Writes what has become of objects of the mesh's own kinds into their status; only by the operator that leads.
//!
//! `Accepted` says whether the object holds as it stands, `Programmed` whether the node proxies have it.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::DynamicObject,
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use underpass_discovery::server::Publisher;
use underpass_objects::{ObjectKey, cluster, policy::ObjectStatus};
use underpass_runtime::{Shutdown, metrics::catalogue};

use super::FIELD_MANAGER;
use crate::verdict::{Accepted, Verdict};

/// How long node proxies may take before an object is said not to be programmed yet.
const PATIENCE: Duration = Duration::from_secs(5);
/// When to try again what could not be written.
const AGAIN: Duration = Duration::from_secs(5);

/// What is to be told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// The version with which it was published.
    pub version: u64,
    /// What became of each object, and what its status says so far.
    pub objects: Vec<(Verdict, Option<ObjectStatus>)>,
}

/// What was written a moment ago, and need not have come back yet.
type Written = BTreeMap<ObjectKey, (ObjectStatus, Instant)>;

/// Writes; see [`Self::run`].
pub struct StatusTask {
    /// Asked as this operator.
    pub client: Client,
    /// Who knows how far node proxies have come.
    pub publisher: Publisher,
    /// Whether to write.
    pub leads: watch::Receiver<bool>,
    /// What.
    pub told: watch::Receiver<Told>,
}

impl std::fmt::Debug for StatusTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StatusTask").field("leads", &self.leads).finish_non_exhaustive()
    }
}

/// What an object's status is to say.
fn status(verdict: &Verdict, behind: usize, before: Option<&ObjectStatus>, now: Timestamp) -> ObjectStatus {
    let before = before.map(|before| before.conditions.as_slice()).unwrap_or_default();
    let generation = Some(verdict.generation).filter(|generation| *generation > 0);
    let condition = |of_type: &str, holds: bool, reason: &str, message: &str| {
        let status = if holds { "True" } else { "False" };
        let since = before.iter().find(|known| known.type_ == of_type && known.status == status);
        Condition {
            type_: of_type.into(),
            status: status.into(),
            reason: reason.into(),
            message: message.into(),
            last_transition_time: since.map_or_else(|| Time(now), |known| known.last_transition_time.clone()),
            observed_generation: generation,
        }
    };
    let is_accepted = verdict.accepted == Accepted::Accepted;
    let programmed = match behind {
        0 => condition("Programmed", true, "Programmed", "every node proxy has it"),
        some => {
            condition("Programmed", false, "Pending", &format!("{some} node proxies have not said that they have it"))
        }
    };
    ObjectStatus {
        observed_generation: generation,
        conditions: vec![condition("Accepted", is_accepted, verdict.accepted.word(), &verdict.message), programmed],
    }
}

impl StatusTask {
    /// Writes whatever is to be told while it leads, until asked to stop.
    pub async fn run(mut self, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.requested() => {}
            () = self.work() => {}
        }
    }

    async fn work(&mut self) {
        let mut written = Written::new();
        loop {
            if self.leads.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            let told = self.told.borrow_and_update().clone();
            let behind = self.publisher.wait_acked(told.version, PATIENCE).await;
            let is_done = self.write_all(&told, behind, &mut written).await && behind == 0;
            tokio::select! {
                changed = self.told.changed() => if changed.is_err() { return },
                changed = self.leads.changed() => if changed.is_err() { return },
                () = time::sleep(AGAIN), if !is_done => {}
            }
        }
    }

    /// True if all of it is written.
    async fn write_all(&self, told: &Told, behind: usize, written: &mut Written) -> bool {
        written.retain(|_, (_, at)| at.elapsed() < AGAIN);
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
        let mut is_done = true;
        for (verdict, before) in &told.objects {
            let before = written.get(&verdict.key).map(|(status, _)| status).or(before.as_ref());
            let wanted = status(verdict, behind, before, now);
            if before == Some(&wanted) {
                continue;
            }
            let outcome = self.write(verdict, &wanted).await;
            if outcome.is_ok() {
                written.insert(verdict.key.clone(), (wanted, Instant::now()));
            }
            if let Err(error) = outcome {
                catalogue::OPERATOR_WRITE_ERRORS.with(["status"]).increment(1);
                tracing::warn!(%error, object = %verdict.key, "status cannot be written");
                is_done = false;
            }
        }
        is_done
    }

    async fn write(&self, verdict: &Verdict, status: &ObjectStatus) -> Result<(), kube::Error> {
        let (name, resource) = (&verdict.key.name, cluster::resource(verdict.key.kind));
        let namespace = Some(name.namespace.clone()).filter(|namespace| !namespace.is_empty());
        let api: Api<DynamicObject> = match &namespace {
            None => Api::all_with(self.client.clone(), &resource),
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
        };
        let metadata = ObjectMeta { name: Some(name.name.clone()), namespace, ..ObjectMeta::default() };
        let body = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": metadata,
            "status": status,
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        match api.patch_status(&name.name, &parameters, &Patch::Apply(body)).await {
            Ok(_object) => Ok(()),
            // Its deletion is on the way to us.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use underpass_objects::{Kind, ObjectKey, ObjectName};

    use super::*;

    #[test]
    fn a_condition_keeps_its_time_while_it_stays_as_it_is() {
        let name = ObjectName::new("shop", "p");
        let verdict = |accepted, generation| Verdict {
            key: ObjectKey { kind: Kind::AuthorizationPolicy, name: name.clone() },
            generation,
            accepted,
            message: "m".into(),
        };
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = status(&verdict(Accepted::Accepted, 1), 2, None, at(10));
        let says = |status: &ObjectStatus| -> Vec<(String, String, String, i64)> {
            let condition = |condition: &Condition| {
                let Condition { type_, status, reason, .. } = condition.clone();
                (type_, status, reason, condition.last_transition_time.0.as_second())
            };
            status.conditions.iter().map(condition).collect()
        };
        let row = |of_type: &str, status: &str, reason: &str, at| (of_type.into(), status.into(), reason.into(), at);
        assert_eq!(says(&first), [row("Accepted", "True", "Accepted", 10), row("Programmed", "False", "Pending", 10)]);
        let second = status(&verdict(Accepted::Accepted, 2), 0, Some(&first), at(20));
        assert_eq!(
            says(&second),
            [row("Accepted", "True", "Accepted", 10), row("Programmed", "True", "Programmed", 20)]
        );
        assert_eq!(second.observed_generation, Some(2));
        assert!(second.conditions.iter().all(|condition| condition.observed_generation == Some(2)));
        let third = status(&verdict(Accepted::NeedsWaypoint, 2), 0, Some(&second), at(30));
        assert_eq!(says(&third)[0], row("Accepted", "False", "NeedsWaypoint", 30));
        assert_eq!(status(&verdict(Accepted::Accepted, 2), 0, Some(&second), at(40)), second, "nothing to write");
    }
}
