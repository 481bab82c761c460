//! Serves the mesh to thousands of subscribers: each gets what changed since what it has, however slow it is.
//!
//! A subscriber has no queue. The published state is a persistent map plus a log that holds every resource once, at its
//! latest change; a subscriber is a position in that log. Who falls behind gets the latest of everything once, and costs
//! no memory meanwhile. Each type has at most one unanswered response per subscriber; all subscribers share the encoded
//! bytes of a resource.
//!
//! Versions are digests of content, so they mean the same after a restart: a subscriber that comes back with the
//! versions that it holds is sent only what differs, and told what is gone.

mod published;
mod registry;
mod session;
mod state;
mod subscription;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

pub use published::Published;
pub use registry::{Refusal, SubscriberStatus};

use underpass_runtime::Shutdown;

use crate::wire::{
    MESSAGE_LIMIT, ResourceType,
    xds::{
        DeltaDiscoveryRequest,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
};
use registry::Registry;
use session::{Responses, Session};
use state::State;

/// Publishes the mesh; clones share it.
#[derive(Clone, Debug)]
pub struct Publisher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Held while a batch is applied, so that each builds on the one before. Holds what waits for the first commit.
    writing: Mutex<Vec<Change>>,
    /// `None` until the first commit: an empty mesh that is only not loaded yet must not be told to anyone.
    state: watch::Sender<Option<Arc<State>>>,
    registry: Registry,
}

/// Changes that subscribers see together.
#[derive(Clone, Debug, Default)]
pub struct Batch(Vec<Change>);

#[derive(Clone, Debug)]
enum Change {
    Set(Published),
    Remove(ResourceType, String),
    /// Removes everything of a type that is not named by a later `Set` of the same batch.
    Replace(ResourceType),
}

/// Decides from a call's metadata whether it may subscribe, and under which name it is known.
pub type Authenticate = dyn Fn(&MetadataMap) -> Result<Arc<str>, Status> + Send + Sync;

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A batch that leaves of a type only what it sets.
    #[must_use]
    pub fn replacing(kind: ResourceType) -> Self {
        Self(vec![Change::Replace(kind)])
    }

    /// Adds or changes a resource; without effect if it is equal to what is published.
    pub fn set(&mut self, resource: Published) -> &mut Self {
        self.0.push(Change::Set(resource));
        self
    }

    /// Removes a resource, if it is there.
    pub fn remove(&mut self, kind: ResourceType, name: &str) -> &mut Self {
        self.0.push(Change::Remove(kind, name.to_owned()));
        self
    }
}

impl Default for Publisher {
    fn default() -> Self {
        Self::new()
    }
}

impl Publisher {
    /// Serves nothing yet: subscribers wait for the first commit.
    #[must_use]
    pub fn new() -> Self {
        let state = watch::Sender::new(None);
        Self(Arc::new(Shared { writing: Mutex::default(), state, registry: Registry::default() }))
    }

    /// Publishes a batch in one step; returns the version of the result. The first commit, even of an empty batch, says
    /// that the mesh is loaded.
    pub fn commit(&self, batch: Batch) -> u64 {
        let mut waiting = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.0.state.borrow().clone();
        let mut state = before.as_deref().cloned().unwrap_or_default();
        state.apply(std::mem::take(&mut *waiting));
        state.apply(batch.0);
        let version = state.version();
        if before.is_none_or(|before| before.version() != version) {
            self.0.state.send_replace(Some(Arc::new(state)));
        }
        version
    }

    /// As [`Self::commit`], but does not say that the mesh is loaded: before the first commit it waits for that and is
    /// published together with it.
    pub fn commit_along(&self, batch: Batch) {
        let mut waiting = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.0.state.borrow().is_none() {
            waiting.extend(batch.0);
        } else {
            drop(waiting);
            self.commit(batch);
        }
    }

    /// The version that is published; 0 before the first commit.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.0.state.borrow().as_ref().map_or(0, |state| state.version())
    }

    /// How many resources of a type are published.
    #[must_use]
    pub fn count(&self, kind: ResourceType) -> usize {
        self.0.state.borrow().as_ref().map_or(0, |state| state.of(kind).len())
    }

    /// Waits until every connected subscriber has answered all that concerns it up to a version, but not longer than
    /// this; returns how many have not. A refusal is an answer too ([`Self::subscribers`] shows it), and who is not
    /// connected is not counted: it may still act on an old view.
    pub async fn wait_acked(&self, version: u64, at_most: Duration) -> usize {
        let registry = &self.0.registry;
        let mut answers = registry.answers();
        let all = async { while registry.behind(version) > 0 && answers.changed().await.is_ok() {} };
        // Whether in time or not, the count at the end is the answer.
        let _in_time = timeout(at_most, all).await;
        registry.behind(version)
    }

    /// Ends all streams of a name, because what it proved itself by is no longer good. Call it when [`Authenticate`]
    /// refuses that proof already: a stream that is just being opened is asked for it once more.
    pub fn expel(&self, name: &str) {
        self.0.registry.expel(name);
    }

    /// Who is subscribed, and how far each has come.
    #[must_use]
    pub fn subscribers(&self) -> Vec<SubscriberStatus> {
        self.0.registry.statuses()
    }

    /// The service to mount in a tonic server. Keep that server's HTTP/2 keep-alive on, so that dead subscribers go.
    /// Its streams end when a shutdown is requested.
    #[must_use]
    pub fn service(
        &self,
        authenticate: Arc<Authenticate>,
        shutdown: Shutdown,
    ) -> AggregatedDiscoveryServiceServer<Discovery> {
        AggregatedDiscoveryServiceServer::new(Discovery { publisher: self.clone(), authenticate, shutdown })
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }
}

/// The discovery service.
pub struct Discovery {
    publisher: Publisher,
    authenticate: Arc<Authenticate>,
    shutdown: Shutdown,
}

impl std::fmt::Debug for Discovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Discovery").finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream = Responses;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let name = (self.authenticate)(request.metadata())?;
        let shared = &self.publisher.0;
        let place = shared.registry.enter(name)?;
        // From here on it can be expelled; before, its proof may have become worthless unseen.
        (self.authenticate)(request.metadata())?;
        let session = Session::new(request.into_inner(), shared.state.subscribe(), place);
        Ok(Response::new(session.start(self.shutdown.clone())))
    }
}
