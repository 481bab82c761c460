//! One kind followed: listed, then watched from there; again from the list when the server has forgotten where we were.
//!
//! Not kube's own watcher, which keeps silent about bookmarks and about connections that are good again: so nobody could
//! tell a quiet kind from a dead one.

use std::{pin::pin, time::Duration};

use futures_util::StreamExt as _;
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{ListParams, WatchEvent, WatchParams},
};
use tokio::{sync::mpsc, time};

use super::{
    Interest,
    kind::{Read, Wire, api, key, own},
};
use crate::{
    guarded::NetworkPolicies,
    object::{Kind, ObjectKey},
    snapshot::KindError,
};

/// How many objects are asked for at once.
const PAGE: u32 = 500;
/// A server says something each minute (a bookmark if nothing else); one that is silent for so long is asked anew.
const SILENCE: Duration = Duration::from_secs(150);
/// A list that takes longer is tried again.
const LIST: Duration = Duration::from_secs(60);
/// The first wait after a failure, doubled with each further one.
const SHORTEST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// What became known of a kind.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Update {
    /// These are all there are, as of a revision.
    Listed(Vec<Read>, u64),
    /// One is new or different.
    Applied(Box<Read>, u64),
    /// One is gone.
    Deleted(ObjectKey, u64),
    /// The watch stands; nothing has changed.
    Alive(u64),
    /// It is not followed at present.
    Failed(KindError),
}

/// Follows one kind.
pub(super) struct Feed {
    client: Client,
    interest: Interest,
}

/// What one of those who follow the server has to say.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Heard {
    /// Of one kind.
    Of(Kind, Update),
    /// Of NetworkPolicies.
    NetworkPolicies(NetworkPolicies),
}

/// Nobody listens any more.
pub(super) struct Unheard;

pub(super) type Updates = mpsc::Sender<Heard>;

impl Feed {
    pub(super) fn new(client: Client, interest: Interest) -> Self {
        Self { client, interest }
    }

    pub(super) fn kind(&self) -> Kind {
        self.interest.kind
    }

    /// Runs until nobody listens.
    pub(super) async fn run(self, updates: Updates) {
        let Self { client, interest } = self;
        let _unheard = match interest.kind {
            Kind::EndpointSlice => Follow::new(api::<EndpointSlice>(client), interest, updates).forever().await,
            Kind::Namespace => Follow::new(api::<Namespace>(client), interest, updates).forever().await,
            Kind::Node => Follow::new(api::<Node>(client), interest, updates).forever().await,
            Kind::Pod => Follow::new(api::<Pod>(client), interest, updates).forever().await,
            Kind::Service => Follow::new(api::<Service>(client), interest, updates).forever().await,
            Kind::ServiceAccount => Follow::new(api::<ServiceAccount>(client), interest, updates).forever().await,
            kind @ (Kind::AuthorizationPolicy | Kind::MeshConfig | Kind::MeshTlsMode) => {
                Follow::new(own(client, kind), interest, updates).forever().await
            }
        };
    }
}

struct Follow<K> {
    api: Api<K>,
    interest: Interest,
    updates: Updates,
    wait: Duration,
}

/// How a watch ended.
enum Ended {
    /// As watches do: go on from the last revision.
    Ordinarily,
    /// The server has forgotten the revision.
    Gone,
    Failed(KindError),
}

impl<K: Wire> Follow<K> {
    fn new(api: Api<K>, interest: Interest, updates: Updates) -> Self {
        Self { api, interest, updates, wait: SHORTEST_WAIT }
    }

    async fn forever(mut self) -> Result<(), Unheard> {
        loop {
            match self.list().await {
                Ok((objects, mut revision)) => {
                    self.tell(Update::Listed(objects, number(&revision))).await?;
                    self.follow(&mut revision).await?;
                }
                Err(error) => self.fail(error).await?,
            }
        }
    }

    /// Returns when a new list is needed.
    async fn follow(&mut self, revision: &mut String) -> Result<(), Unheard> {
        loop {
            match self.watch(revision).await? {
                Ended::Ordinarily => {}
                Ended::Gone => return Ok(()),
                Ended::Failed(error) => self.fail(error).await?,
            }
        }
    }

    async fn list(&self) -> Result<(Vec<Read>, String), KindError> {
        let mut page = ListParams { limit: Some(PAGE), ..self.list_params() };
        let mut objects = Vec::new();
        loop {
            let answer = time::timeout(LIST, self.api.list(&page)).await;
            let answer = answer.map_err(|_elapsed| KindError::Unreachable("no answer in time".into()))?;
            let answer = answer.map_err(|error| explain(&error))?;
            objects.extend(answer.items.into_iter().map(|object| object.read(self.interest.kind)));
            match answer.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page.continue_token = Some(token),
                None => return Ok((objects, answer.metadata.resource_version.unwrap_or_default())),
            }
        }
    }

    fn list_params(&self) -> ListParams {
        let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let Interest { fields, labels, .. } = &self.interest;
        ListParams { field_selector: given(fields), label_selector: given(labels), ..ListParams::default() }
    }

    async fn watch(&mut self, revision: &mut String) -> Result<Ended, Unheard> {
        let ListParams { field_selector, label_selector, .. } = self.list_params();
        let watch = WatchParams { field_selector, label_selector, ..WatchParams::default() };
        let events = match time::timeout(LIST, self.api.watch(&watch, revision)).await {
            Ok(Ok(events)) => events,
            Ok(Err(error)) => return Ok(ended(&error)),
            Err(_elapsed) => return Ok(Ended::Failed(KindError::Unreachable("no answer in time".into()))),
        };
        self.tell(Update::Alive(number(revision))).await?;
        let mut events = pin!(events);
        loop {
            let update = match time::timeout(SILENCE, events.next()).await {
                Err(_elapsed) => return Ok(Ended::Ordinarily),
                Ok(None) => return Ok(Ended::Ordinarily),
                Ok(Some(Err(error))) => return Ok(ended(&error)),
                Ok(Some(Ok(WatchEvent::Error(status)))) => return Ok(ended(&kube::Error::Api(status))),
                Ok(Some(Ok(WatchEvent::Bookmark(bookmark)))) => {
                    *revision = bookmark.metadata.resource_version;
                    Update::Alive(number(revision))
                }
                Ok(Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)))) => {
                    note(object.meta(), revision);
                    Update::Applied(Box::new(object.read(self.interest.kind)), number(revision))
                }
                Ok(Some(Ok(WatchEvent::Deleted(object)))) => {
                    note(object.meta(), revision);
                    let Some(key) = key(self.interest.kind, object.meta()) else { continue };
                    Update::Deleted(key, number(revision))
                }
            };
            self.tell(update).await?;
        }
    }

    async fn tell(&mut self, update: Update) -> Result<(), Unheard> {
        self.wait = SHORTEST_WAIT;
        self.send(update).await
    }

    async fn fail(&mut self, error: KindError) -> Result<(), Unheard> {
        self.send(Update::Failed(error)).await?;
        // Not all followers of a server that comes back at once.
        time::sleep(self.wait.mul_f64(0.5 + fastrand::f64())).await;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        Ok(())
    }

    async fn send(&self, update: Update) -> Result<(), Unheard> {
        self.updates.send(Heard::Of(self.interest.kind, update)).await.map_err(|_closed| Unheard)
    }
}

fn note(metadata: &ObjectMeta, revision: &mut String) {
    if let Some(newest) = &metadata.resource_version {
        revision.clone_from(newest);
    }
}

/// Revisions are opaque to whoever only hands them back; ours are compared as well, and every server of the field counts.
fn number(revision: &str) -> u64 {
    revision.parse().unwrap_or(0)
}

fn ended(error: &kube::Error) -> Ended {
    match error {
        kube::Error::Api(status) if status.code == 410 => Ended::Gone,
        error => Ended::Failed(explain(error)),
    }
}

pub(super) fn explain(error: &kube::Error) -> KindError {
    let kube::Error::Api(status) = error else { return KindError::Unreachable(causes(error)) };
    match status.code {
        401 => KindError::Unauthorized(status.message.clone()),
        403 => KindError::Forbidden(status.message.clone()),
        404 => KindError::Unknown,
        code => KindError::Refused(format!("{code} {}", status.message)),
    }
}

/// The whole chain: a client's own words say little of what went wrong.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
