//! What readers hold of the mesh.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout},
};
use underpass_model::{NetworkAddress, ServiceName};

use crate::view::View;

/// The mesh as it is now, for readers; clones see the same.
#[derive(Clone, Debug)]
pub struct Mesh(Arc<Shared>);

/// Why a question to the control plane has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// More questions are open than are kept.
    #[error("too many open questions to the control plane")]
    Busy,
    /// No answer came in time, be it that no control plane is connected.
    #[error("the control plane did not answer within {} ms", Mesh::ASK_DEADLINE.as_millis())]
    Timeout,
}

impl AskError {
    /// A stable label.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Busy => "discovery_busy",
            Self::Timeout => "discovery_timeout",
        }
    }
}

impl Mesh {
    /// How long a question to the control plane may take.
    pub const ASK_DEADLINE: Duration = Duration::from_secs(2);

    /// A mesh that never changes.
    #[must_use]
    pub fn fixed(view: View) -> Self {
        Self(Shared::new(view).0)
    }

    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// The view of this moment. Take it once per connection: all decisions then see the same mesh.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.0.view.load_full()
    }

    /// Tells the version of each new view; several may pass as one.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    /// Waits until the view is complete, but not longer than this; answers whether it is.
    pub async fn wait_complete(&self, at_most: Duration) -> bool {
        let complete = self.wait_until(View::is_complete);
        timeout(at_most, complete).await.is_ok()
    }

    /// Waits until a view satisfies this. Bound it in time.
    pub async fn wait_until(&self, satisfied: impl Fn(&View) -> bool) -> Arc<View> {
        let mut versions = self.subscribe();
        loop {
            versions.borrow_and_update();
            let view = self.view();
            if satisfied(&view) {
                return view;
            }
            if versions.changed().await.is_err() {
                // The sender lives in what we hold ourselves.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether there is more to know than the view holds, for whoever asks.
    #[must_use]
    pub fn is_on_demand(&self) -> bool {
        *self.0.on_demand.borrow()
    }

    /// On demand: asks the control plane who is at an address, unless the view knows. Afterwards the view holds what it
    /// answered; `false` if nobody of the mesh is there. Without on-demand discovery the view is all there is.
    ///
    /// # Errors
    /// [`AskError`] if there is no answer within [`Self::ASK_DEADLINE`].
    pub async fn ask(&self, address: &NetworkAddress) -> Result<bool, AskError> {
        self.put(Question::Address(address.clone())).await
    }

    /// On demand: asks the control plane for a service and its endpoints by name; otherwise like [`Self::ask`].
    ///
    /// # Errors
    /// [`AskError`] if there is no answer within [`Self::ASK_DEADLINE`].
    pub async fn ask_service(&self, name: &ServiceName) -> Result<bool, AskError> {
        self.put(Question::Service(name.clone())).await
    }

    async fn put(&self, question: Question) -> Result<bool, AskError> {
        if !self.is_on_demand() {
            return Ok(question.known(&self.view()));
        }
        if self.0.used(&question) {
            return Ok(true);
        }
        let (answer, answered) = oneshot::channel();
        self.0.asks.try_send(Ask { question: question.clone(), answer }).map_err(|_| AskError::Busy)?;
        match timeout(Self::ASK_DEADLINE, answered).await {
            Ok(Ok(())) => Ok(self.0.used(&question)),
            Ok(Err(_)) => Err(AskError::Busy),
            Err(_) => Err(AskError::Timeout),
        }
    }
}

/// What the writer and the readers share.
#[derive(Debug)]
pub(super) struct Shared {
    view: ArcSwap<View>,
    version: watch::Sender<u64>,
    on_demand: watch::Sender<bool>,
    asks: mpsc::Sender<Ask>,
    /// On demand: when a question that has an answer was last asked.
    uses: Mutex<HashMap<Question, Instant>>,
}

/// The questions that wait to be sent.
pub(crate) type Asks = mpsc::Receiver<Ask>;

/// One reader's question.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) question: Question,
    /// Sent when the control plane answered, whatever it said; the view has it.
    pub(crate) answer: oneshot::Sender<()>,
}

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Question {
    Address(NetworkAddress),
    Service(ServiceName),
}

impl Question {
    /// The resource name or alias to subscribe to.
    pub(crate) fn key(&self) -> String {
        match self {
            Self::Address(address) => address.to_string(),
            Self::Service(name) => name.to_string(),
        }
    }

    /// The names of all that a view holds because of this question.
    pub(super) fn found(&self, view: &View) -> Vec<String> {
        match self {
            Self::Address(address) => view.names_at(address).collect(),
            Self::Service(name) => view.names_of(name).collect(),
        }
    }

    pub(crate) fn known(&self, view: &View) -> bool {
        match self {
            Self::Address(address) => view.knows(address),
            Self::Service(name) => view.service(name).is_some(),
        }
    }
}

impl Shared {
    /// Readers' questions beyond this many that nobody took yet are refused.
    const OPEN_QUESTIONS: usize = 1024;

    pub(super) fn new(view: View) -> (Arc<Self>, Asks) {
        let (asks, asked) = mpsc::channel(Self::OPEN_QUESTIONS);
        let version = watch::Sender::new(view.version());
        let (view, on_demand) = (ArcSwap::from_pointee(view), watch::Sender::new(false));
        let shared = Self { view, version, on_demand, asks, uses: Mutex::default() };
        (Arc::new(shared), asked)
    }

    pub(super) fn publish(&self, view: View) {
        let version = view.version();
        self.view.store(Arc::new(view));
        self.version.send_replace(version);
    }

    /// Notes that somebody needs what is at the other end of a question; `false` if nothing is.
    pub(super) fn used(&self, question: &Question) -> bool {
        let mut uses = self.uses();
        let known = question.known(&self.view.load());
        if known {
            uses.insert(question.clone(), Instant::now());
        }
        known
    }

    pub(super) fn uses(&self) -> MutexGuard<'_, HashMap<Question, Instant>> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_on_demand(&self, on_demand: bool) {
        self.on_demand.send_replace(on_demand);
    }
}
