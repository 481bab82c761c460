//! Each operator's own Lease: that it is there, how many subscribers it has, and how far all of them have come, in the
//! count that the API server's pods share ([`underpass_objects::Snapshot::pods_revision`]).

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use tokio::{sync::watch, time};
use underpass_discovery::server::Publisher;
use underpass_runtime::{Shutdown, metrics::catalogue};

use super::{FIELD_MANAGER, Place};

const LABEL: &str = "underpass.dev/member";
const LABEL_VALUE: &str = "operator";
const ACKNOWLEDGED: &str = "underpass.dev/acknowledged";
const SUBSCRIBERS: &str = "underpass.dev/subscribers";
/// How often it says that it is there.
const PERIOD: Duration = Duration::from_secs(10);
/// For how long that holds: longer than clocks differ.
const DURATION: Duration = Duration::from_secs(40);

/// An operator that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// Its name.
    pub name: String,
    /// Up to where all its subscribers have acknowledged.
    pub acknowledged: u64,
    /// How many it has.
    pub subscribers: usize,
}

/// Says that this operator is there; see [`Self::run`].
#[derive(Clone)]
pub struct Member {
    api: Api<Lease>,
    place: Place,
    publisher: Publisher,
    said: watch::Sender<Said>,
}

/// What the others are to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Said {
    acknowledged: u64,
    subscribers: usize,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Member {
    /// One of the operators of a namespace.
    #[must_use]
    pub fn new(client: &Client, place: Place, publisher: Publisher) -> Self {
        let api = Api::namespaced(client.clone(), &place.namespace);
        Self { api, place, publisher, said: watch::Sender::new(Said::default()) }
    }

    /// All subscribers have acknowledged what the pods were at a revision.
    pub fn acknowledge(&self, revision: u64) {
        let subscribers = self.publisher.subscribers().len();
        self.said.send_if_modified(|before| {
            let now = Said { acknowledged: revision.max(before.acknowledged), subscribers };
            std::mem::replace(before, now) != now
        });
    }

    /// Says now and then, and whenever more is acknowledged, that it is there; until asked to stop.
    pub async fn run(self, shutdown: Shutdown) {
        let mut said = self.said.subscribe();
        loop {
            let now = Said { subscribers: self.publisher.subscribers().len(), ..*said.borrow_and_update() };
            self.say(now, SystemTime::now()).await;
            tokio::select! {
                () = shutdown.requested() => break,
                () = time::sleep(PERIOD) => {}
                // The sender lives in what runs.
                _changed = said.changed() => {}
            }
        }
        self.say(Said::default(), SystemTime::UNIX_EPOCH).await;
    }

    async fn say(&self, said: Said, at: SystemTime) {
        let lease = self.lease(said, at);
        let name = lease.metadata.name.clone().unwrap_or_default();
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(&lease);
        let failure = match time::timeout(PERIOD, self.api.patch(&name, &parameters, &patch)).await {
            Ok(Ok(_lease)) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => "no answer in time".to_owned(),
        };
        catalogue::OPERATOR_WRITE_ERRORS.with(["member"]).increment(1);
        tracing::warn!(error = failure, "the other operators are not told of this one");
    }

    fn lease(&self, said: Said, at: SystemTime) -> Lease {
        let annotations = [(ACKNOWLEDGED, said.acknowledged.to_string()), (SUBSCRIBERS, said.subscribers.to_string())];
        let metadata = ObjectMeta {
            name: Some(format!("{}-member", self.place.name)),
            namespace: Some(self.place.namespace.clone()),
            labels: Some(BTreeMap::from([(LABEL.into(), LABEL_VALUE.into())])),
            annotations: Some(annotations.map(|(name, value)| (name.to_owned(), value)).into()),
            ..ObjectMeta::default()
        };
        let spec = LeaseSpec {
            holder_identity: Some(self.place.name.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            renew_time: Timestamp::try_from(at).ok().map(MicroTime),
            ..LeaseSpec::default()
        };
        Lease { metadata, spec: Some(spec) }
    }

    /// The operators that are there.
    ///
    /// # Errors
    /// If the API server does not say.
    pub async fn present(&self) -> Result<Vec<Present>, kube::Error> {
        let leases = self.api.list(&ListParams::default().labels(&format!("{LABEL}={LABEL_VALUE}"))).await?;
        Ok(leases.items.iter().filter_map(|lease| present(lease, SystemTime::now())).collect())
    }
}

fn present(lease: &Lease, now: SystemTime) -> Option<Present> {
    let spec = lease.spec.as_ref()?;
    let renewed = SystemTime::from(spec.renew_time.as_ref()?.0);
    // A clock that runs ahead is no reason to leave somebody out.
    if now.duration_since(renewed).is_ok_and(|age| age > DURATION) {
        return None;
    }
    let annotation = |name: &str| lease.metadata.annotations.as_ref()?.get(name)?.parse::<u64>().ok();
    Some(Present {
        name: spec.holder_identity.clone()?,
        acknowledged: annotation(ACKNOWLEDGED).unwrap_or(0),
        subscribers: annotation(SUBSCRIBERS).and_then(|count| usize::try_from(count).ok()).unwrap_or(0),
    })
}
