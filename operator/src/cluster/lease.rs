//! Which of several operators leads: the one whose name stands in a Lease and who keeps renewing it.
//!
//! As elsewhere in Kubernetes: a holder that has not renewed for the lease's duration, by the watch of whoever wants it,
//! has lost it; clocks are never compared. A holder that cannot renew stops leading well before anybody may take over.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use underpass_runtime::{Shutdown, metrics::catalogue};

use super::Place;

/// The lease's name.
const NAME: &str = "underpass-operator";
/// For how long a lease holds after it was renewed.
const DURATION: Duration = Duration::from_secs(15);
/// How often it is renewed, and looked at by the others.
const PERIOD: Duration = Duration::from_secs(3);
/// A holder that could not renew for so long leads no more.
const GIVE_UP: Duration = Duration::from_secs(9);
// It notices so at its next look, which may take as long as the period once more.
const _: () = assert!(GIVE_UP.as_secs() + 2 * PERIOD.as_secs() <= DURATION.as_secs());

/// Contends for the lease.
#[derive(Debug)]
pub struct LeaseTask {
    api: Leases,
    me: String,
    leads: watch::Sender<bool>,
    seen: Option<Seen>,
    renewed: Option<Instant>,
}

/// The API, without a word about itself.
struct Leases(Api<Lease>);

impl std::fmt::Debug for Leases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leases").finish_non_exhaustive()
    }
}

/// What the lease said when it last said something else, and when that was by our watch.
#[derive(Clone, Debug)]
struct Seen {
    spec: LeaseSpec,
    at: Instant,
}

/// What to do about the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nobody has ever held it.
    Create,
    /// Go on holding it.
    Renew,
    /// Nobody holds it any more.
    Take,
    /// Somebody else holds it.
    Wait,
}

/// Decides by what the lease says, and for how long it has said so.
fn decide(spec: Option<&LeaseSpec>, unchanged: Duration, me: &str) -> Step {
    let Some(spec) = spec else { return Step::Create };
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let duration = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let is_over = unchanged > duration.map_or(DURATION, Duration::from_secs);
    match holder {
        "" => Step::Take,
        holder if holder == me => Step::Renew,
        _ if is_over => Step::Take,
        _ => Step::Wait,
    }
}

/// Contends for the lease of a namespace. The receiver says whether this operator leads.
#[must_use]
pub fn contend(client: &Client, place: &Place) -> (watch::Receiver<bool>, LeaseTask) {
    let (leads, receiver) = watch::channel(false);
    let api = Leases(Api::namespaced(client.clone(), &place.namespace));
    (receiver, LeaseTask { api, me: place.name.clone(), leads, seen: None, renewed: None })
}

impl LeaseTask {
    /// Contends until asked to stop, and lets go of the lease then.
    pub async fn run(mut self, shutdown: Shutdown) {
        let mut period = time::interval(PERIOD);
        period.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.requested() => break,
                _instant = period.tick() => {}
            }
            // Bounded, so that a silent server cannot make a holder miss that it holds nothing any more.
            let failure = match time::timeout(PERIOD, self.step()).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_elapsed) => Some("no answer in time".to_owned()),
            };
            if let Some(error) = failure {
                catalogue::OPERATOR_WRITE_ERRORS.with(["lease"]).increment(1);
                tracing::warn!(error, "the lease cannot be looked after");
            }
            let holds = self.renewed.is_some_and(|renewed| renewed.elapsed() < GIVE_UP);
            self.say(holds);
        }
        if self.renewed.take().is_some() {
            self.say(false);
            if let Err(error) = self.let_go().await {
                tracing::debug!(%error, "the lease ends by itself");
            }
        }
    }

    fn say(&self, leads: bool) {
        let is_new = self.leads.send_if_modified(|before| std::mem::replace(before, leads) != leads);
        if is_new {
            tracing::info!(leads, "leadership");
            catalogue::OPERATOR_LEADS.with([]).set(f64::from(u8::from(leads)));
        }
    }

    async fn step(&mut self) -> Result<(), kube::Error> {
        let lease = self.api.0.get_opt(NAME).await?;
        let spec = lease.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        if self.seen.as_ref().map(|seen| &seen.spec) != spec.as_ref() {
            self.seen = spec.clone().map(|spec| Seen { spec, at: Instant::now() });
        }
        let unchanged = self.seen.as_ref().map(|seen| seen.at.elapsed()).unwrap_or_default();
        let began = Instant::now();
        let step = decide(spec.as_ref(), unchanged, &self.me);
        let written = match step {
            Step::Wait => {
                self.renewed = None;
                return Ok(());
            }
            Step::Create => {
                let metadata = ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
                let lease = Lease { metadata, spec: Some(self.claim(None)) };
                self.api.0.create(&PostParams::default(), &lease).await
            }
            Step::Renew | Step::Take => {
                let lease = lease.unwrap_or_default();
                let claim = self.claim(lease.spec.as_ref());
                // With the revision that was read: whoever was quicker wins.
                let lease = Lease { spec: Some(claim), ..lease };
                self.api.0.replace(NAME, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(_lease) => self.renewed = Some(began),
            Err(kube::Error::Api(status)) if status.code == 409 => self.renewed = None,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// What stands in the lease while this operator holds it.
    fn claim(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let before = before.cloned().unwrap_or_default();
        let is_ours = before.holder_identity.as_deref() == Some(self.me.as_str());
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: before.acquire_time.filter(|_| is_ours).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!is_ours)),
            ..LeaseSpec::default()
        }
    }

    async fn let_go(&self) -> Result<(), kube::Error> {
        let Some(lease) = self.api.0.get_opt(NAME).await? else { return Ok(()) };
        let spec = lease.spec.clone().unwrap_or_default();
        if spec.holder_identity.as_deref() == Some(self.me.as_str()) {
            let lease = Lease { spec: Some(LeaseSpec { holder_identity: None, ..spec }), ..lease };
            self.api.0.replace(NAME, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use underpass_objects::testing::FakeApiServer;

    use super::*;

    #[test]
    fn who_holds_it_renews_and_others_wait_until_it_is_over() {
        let held = |holder: &str| LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        };
        let (short, long) = (Duration::from_secs(14), Duration::from_secs(16));
        let table = [
            (None, long, Step::Create),
            (Some(LeaseSpec::default()), short, Step::Take),
            (Some(held("")), short, Step::Take),
            (Some(held("me")), short, Step::Renew),
            (Some(held("me")), long, Step::Renew),
            (Some(held("another")), short, Step::Wait),
            (Some(held("another")), long, Step::Take),
        ];
        for (spec, unchanged, step) in table {
            assert_eq!(decide(spec.as_ref(), unchanged, "me"), step, "{spec:?} {unchanged:?}");
        }
        let longer = LeaseSpec { lease_duration_seconds: Some(60), ..held("another") };
        assert_eq!(decide(Some(&longer), long, "me"), Step::Wait, "by its own duration");
    }

    #[tokio::test]
    async fn one_of_two_leads_and_the_other_follows_when_it_goes_or_dies() {
        let server = FakeApiServer::start().await.unwrap();
        let start = |name: &str| {
            let place = Place { namespace: "underpass-system".into(), name: name.into() };
            let (leads, task) = contend(&server.client(), &place);
            let shutdown = Shutdown::new();
            (leads, tokio::spawn(task.run(shutdown.clone())), shutdown)
        };
        let patience = Duration::from_secs(120);
        let (mut first, first_task, first_stop) = start("first");
        time::timeout(patience, first.wait_for(|leads| *leads)).await.unwrap().unwrap();
        let (mut second, second_task, _second_stop) = start("second");
        time::sleep(PERIOD + Duration::from_millis(500)).await;
        assert!(*first.borrow() && !*second.borrow(), "one at a time");
        // It says so when it goes.
        let asked = Instant::now();
        first_stop.request();
        first_task.await.unwrap();
        time::timeout(patience, second.wait_for(|leads| *leads)).await.unwrap().unwrap();
        assert!(asked.elapsed() < DURATION, "nobody waits for the end of a lease that was let go");
        let lease = server.get("leases", "underpass-system", NAME).unwrap();
        assert_eq!(lease["spec"]["leaseTransitions"], 2, "{lease}");
        // It cannot when it dies: the lease has to end.
        second_task.abort();
        let (mut third, _third_task, _third_stop) = start("third");
        time::timeout(patience, third.wait_for(|leads| *leads)).await.unwrap().unwrap();
        // Without the API server nobody leads for long.
        server.refuse("leases", Some(503));
        time::timeout(patience, third.wait_for(|leads| !*leads)).await.unwrap().unwrap();
        server.refuse("leases", None);
        time::timeout(patience, third.wait_for(|leads| *leads)).await.unwrap().unwrap();
    }
}
