//! Who is subscribed and how far each has come.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use tokio::sync::{Notify, watch};
use tonic::Status;

use crate::wire::ResourceType;

/// All subscribers that are connected.
#[derive(Debug)]
pub(super) struct Registry(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    subscribers: Mutex<Subscribers>,
    /// Counts answers and departures, for those who wait for them.
    answers: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Subscribers {
    next: u64,
    connected: BTreeMap<u64, Arc<Subscriber>>,
}

/// One subscriber's notice board.
#[derive(Debug)]
struct Subscriber {
    name: Arc<str>,
    since: SystemTime,
    answered: AtomicU64,
    notes: Mutex<Notes>,
    expelled: Notify,
}

#[derive(Debug, Default)]
struct Notes {
    node_id: String,
    refusal: Option<Refusal>,
}

/// One subscriber, for operators' eyes.
#[derive(Clone, Debug)]
pub struct SubscriberStatus {
    /// Who it proved to be.
    pub name: Arc<str>,
    /// What it calls itself.
    pub node_id: String,
    /// Since when it is connected.
    pub since: SystemTime,
    /// It answered everything that concerns it up to this version.
    pub answered: u64,
    /// The latest response that it refused, wholly or in part.
    pub refusal: Option<Refusal>,
}

/// A response that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Of which type.
    pub kind: ResourceType,
    /// When.
    pub at: SystemTime,
    /// What the subscriber said.
    pub message: String,
}

/// More subscribers than this are turned away.
const SUBSCRIBERS: usize = 16_384;
/// Streams that one name may have: two node proxies while one replaces the other, and what dead connections left.
const STREAMS_OF_ONE: usize = 4;

impl Default for Registry {
    fn default() -> Self {
        Self(Arc::new(Shared { subscribers: Mutex::default(), answers: watch::Sender::new(0) }))
    }
}

impl Registry {
    /// Takes a subscriber in; it leaves when the place is dropped. A name that has all its places taken loses the
    /// oldest: who comes is alive, who has been there for long may only look so.
    pub(super) fn enter(&self, name: Arc<str>) -> Result<Place, Status> {
        let mut subscribers = self.lock();
        let same: Vec<_> = subscribers.connected.values().filter(|subscriber| subscriber.name == name).collect();
        for oldest in same.iter().take((same.len() + 1).saturating_sub(STREAMS_OF_ONE)) {
            oldest.expelled.notify_one();
        }
        if same.len() >= 2 * STREAMS_OF_ONE {
            return Err(Status::resource_exhausted("too many streams of one subscriber"));
        }
        if subscribers.connected.len() >= SUBSCRIBERS {
            return Err(Status::resource_exhausted("too many subscribers"));
        }
        let number = subscribers.next;
        subscribers.next += 1;
        let subscriber = Arc::new(Subscriber {
            name,
            since: SystemTime::now(),
            answered: AtomicU64::new(0),
            notes: Mutex::default(),
            expelled: Notify::new(),
        });
        subscribers.connected.insert(number, subscriber.clone());
        Ok(Place { number, subscriber, registry: Self(self.0.clone()) })
    }

    /// Ends the streams of a name.
    pub(super) fn expel(&self, name: &str) {
        for subscriber in self.lock().connected.values().filter(|subscriber| &*subscriber.name == name) {
            subscriber.expelled.notify_one();
        }
    }

    /// How many have not answered up to a version.
    pub(super) fn behind(&self, version: u64) -> usize {
        let behind = |subscriber: &&Arc<Subscriber>| subscriber.answered.load(Ordering::Acquire) < version;
        self.lock().connected.values().filter(behind).count()
    }

    pub(super) fn answers(&self) -> watch::Receiver<u64> {
        self.0.answers.subscribe()
    }

    pub(super) fn statuses(&self) -> Vec<SubscriberStatus> {
        let connected: Vec<_> = self.lock().connected.values().cloned().collect();
        connected.iter().map(|subscriber| subscriber.status()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Subscribers> {
        self.0.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.0.answers.send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl Subscriber {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> SubscriberStatus {
        let notes = self.notes();
        SubscriberStatus {
            name: self.name.clone(),
            node_id: notes.node_id.clone(),
            since: self.since,
            answered: self.answered.load(Ordering::Acquire),
            refusal: notes.refusal.clone(),
        }
    }
}

/// A subscriber's place among the connected.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    subscriber: Arc<Subscriber>,
    registry: Registry,
}

impl Place {
    pub(super) fn name(&self) -> &str {
        &self.subscriber.name
    }

    /// Completes when its stream must end.
    pub(super) fn expulsion(&self) -> impl Future<Output = ()> + use<> {
        let subscriber = Arc::clone(&self.subscriber);
        async move { subscriber.expelled.notified().await }
    }

    pub(super) fn set_node_id(&self, node_id: &str) {
        const KEPT: usize = 253;
        self.subscriber.notes().node_id = node_id.chars().take(KEPT).collect();
    }

    pub(super) fn set_answered(&self, version: u64) {
        if self.subscriber.answered.swap(version, Ordering::AcqRel) != version {
            self.registry.tell();
        }
    }

    pub(super) fn set_refusal(&self, kind: ResourceType, message: &str) {
        const KEPT: usize = 4096;
        let message = message.chars().take(KEPT).collect();
        self.subscriber.notes().refusal = Some(Refusal { kind, at: SystemTime::now(), message });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.registry.lock().connected.remove(&self.number);
        self.registry.tell();
    }
}
