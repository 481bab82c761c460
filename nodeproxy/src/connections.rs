//! Every live connection of a pod: how many there are, what each was judged by, and the one way to end them early.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{sync::watch, time::Duration};
use underpass_policy::{Denial, Permit};
use underpass_runtime::Shutdown;

use crate::authorize::Judged;

/// The live connections of one pod; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    live: Arc<AtomicU64>,
    tunnels: Arc<AtomicU64>,
    farewells: Arc<watch::Sender<Farewells>>,
    ending: Shutdown,
    /// Followed while the agent waits for the last connection to end; only then does a close wake another thread.
    reported: Arc<watch::Sender<u64>>,
    inbound: Arc<Mutex<Register>>,
}

/// What can be judged again. The lock is held for a few instructions, by this pod's connections and by whoever judges
/// them.
#[derive(Debug, Default)]
struct Register {
    last: u64,
    live: HashMap<u64, Arc<Live>>,
}

/// One inbound connection that was let in.
#[derive(Debug)]
pub(crate) struct Live {
    /// What it was judged by.
    pub(crate) judged: Judged,
    revoked: Shutdown,
    why: OnceLock<Denial>,
}

/// A connection that came in. It counts from its first moment, long before anything is decided: un-enrolment must not
/// take the rules away under it. Dropping it forgets the connection.
#[derive(Debug)]
pub(crate) struct Arrival(Connections);

/// A permit in use, for as long as the connection lives.
#[derive(Debug)]
pub(crate) struct Lease<'a> {
    arrival: &'a Arrival,
    permit: Permit,
    entry: Option<Entry<'a>>,
}

/// A place in the register. Dropping it leaves.
#[derive(Debug)]
struct Entry<'a> {
    register: &'a Mutex<Register>,
    number: u64,
    live: Arc<Live>,
}

/// What peers are told about their tunnels.
#[derive(Clone, Copy, Debug, Default)]
struct Farewells {
    /// How often all that existed were to take no more connections.
    said: u64,
    /// Whether all that come are.
    standing: bool,
}

/// A tunnel that peers opened to the pod, whether or not connections are in it. Dropping it forgets the tunnel.
#[derive(Debug)]
pub(crate) struct OpenTunnel {
    tunnels: Arc<AtomicU64>,
    farewells: watch::Receiver<Farewells>,
    /// How many there had been when it came.
    before: u64,
}

/// Why a connection ends before its ends want to, or does not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    /// The pod ends; nothing new may begin.
    #[error("the pod ends")]
    Pod,
    /// It was allowed, and is no longer.
    #[error("no longer allowed: {0}")]
    Revoked(Arc<Live>),
}

impl Connections {
    pub(crate) fn new() -> Self {
        let (reported, _) = watch::channel(0);
        Self {
            live: Arc::default(),
            tunnels: Arc::default(),
            farewells: Arc::default(),
            ending: Shutdown::new(),
            reported: Arc::new(reported),
            inbound: Arc::default(),
        }
    }

    /// Registers a connection.
    pub(crate) fn arrive(&self) -> Arrival {
        self.live.fetch_add(1, Ordering::SeqCst);
        self.report();
        Arrival(self.clone())
    }

    /// Registers a peer's tunnel.
    pub(crate) fn tunnel(&self) -> OpenTunnel {
        self.tunnels.fetch_add(1, Ordering::SeqCst);
        let farewells = self.farewells.subscribe();
        let before = farewells.borrow().said;
        OpenTunnel { tunnels: Arc::clone(&self.tunnels), farewells, before }
    }

    /// The tunnels that exist shall take no more connections; those in them go on.
    pub(crate) fn bid_farewell(&self) {
        self.farewells.send_modify(|farewells| farewells.said += 1);
    }

    /// No tunnel shall take more connections, from now on or no longer.
    pub(crate) fn stand_back(&self, standing: bool) {
        self.farewells.send_modify(|farewells| farewells.standing = standing);
    }

    /// Ends everything and waits until all of it is closed, or the deadline; says whether all is.
    pub(crate) async fn settle(&self, deadline: Duration) -> bool {
        const STEP: Duration = Duration::from_millis(5);
        self.end();
        let closed = async {
            while self.open() > 0 {
                tokio::time::sleep(STEP).await;
            }
        };
        tokio::time::timeout(deadline, closed).await.is_ok()
    }

    /// How many connections there are.
    pub(crate) fn live(&self) -> u64 {
        self.live.load(Ordering::SeqCst)
    }

    /// How many connections and tunnels there are.
    pub(crate) fn open(&self) -> u64 {
        self.live() + self.tunnels.load(Ordering::SeqCst)
    }

    /// The inbound connections that were let in and live now.
    pub(crate) fn inbound(&self) -> Vec<Arc<Live>> {
        lock(&self.inbound).live.values().cloned().collect()
    }

    /// Begins to tell every change of the number of connections, starting with what it is.
    pub(crate) fn follow(&self) -> watch::Receiver<u64> {
        let receiver = self.reported.subscribe();
        self.report();
        receiver
    }

    /// Ends all of them, and admits no more.
    pub(crate) fn end(&self) {
        self.ending.request();
    }

    /// Completes when all of them shall end.
    pub(crate) async fn ended(&self) {
        self.ending.requested().await;
    }

    fn report(&self) {
        if self.reported.receiver_count() > 0 {
            // Read under the channel's lock: else a slow reporter could overwrite a newer number with an older one.
            self.reported.send_modify(|reported| *reported = self.live());
        }
    }
}

impl Arrival {
    /// Turns a permit into a lease, unless the pod ends. Before it is used, so that no end falls between permit and use;
    /// an inbound one with what it was judged by.
    pub(crate) fn admit(&self, permit: Permit, judged: Option<Judged>) -> Result<Lease<'_>, Ended> {
        if self.0.ending.is_requested() {
            return Err(Ended::Pod);
        }
        let entry = judged.map(|judged| Entry::new(&self.0.inbound, judged));
        Ok(Lease { arrival: self, permit, entry })
    }
}

impl<'a> Entry<'a> {
    fn new(register: &'a Mutex<Register>, judged: Judged) -> Self {
        let live = Arc::new(Live { judged, revoked: Shutdown::new(), why: OnceLock::new() });
        let mut entries = lock(register);
        entries.last += 1;
        let number = entries.last;
        entries.live.insert(number, Arc::clone(&live));
        Self { register, number, live }
    }
}

fn lock(register: &Mutex<Register>) -> MutexGuard<'_, Register> {
    // Nothing is left half done in it by a panic.
    register.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    /// Ends it, for this reason; the first one counts. False if it was ending already.
    pub(crate) fn revoke(&self, why: Denial) -> bool {
        let is_first = self.why.set(why).is_ok();
        self.revoked.request();
        is_first
    }

    /// Why it ends.
    pub(crate) fn why(&self) -> Option<&Denial> {
        self.why.get()
    }
}

impl Lease<'_> {
    /// What may be dialled.
    pub(crate) fn permit(&self) -> &Permit {
        &self.permit
    }

    /// What the future gives, unless the connection must end before.
    pub(crate) async fn unless_ended<T>(&self, future: impl Future<Output = T>) -> Result<T, Ended> {
        tokio::select! {
            // An end wins over whatever it does to the bytes.
            biased;
            ended = self.ended() => Err(ended),
            done = future => Ok(done),
        }
    }

    async fn ended(&self) -> Ended {
        let Some(Entry { live, .. }) = &self.entry else {
            self.arrival.0.ended().await;
            return Ended::Pod;
        };
        tokio::select! {
            biased;
            () = live.revoked.requested() => Ended::Revoked(Arc::clone(live)),
            () = self.arrival.0.ended() => Ended::Pod,
        }
    }
}

impl Ended {
    /// The stable label of this end in logs and metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Pod => "pod_ends",
            Self::Revoked(_) => "revoked",
        }
    }
}

impl fmt::Display for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.why() {
            Some(why) => write!(f, "{why}"),
            None => f.write_str("a live connection"),
        }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        lock(self.register).live.remove(&self.number);
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::SeqCst);
        self.0.report();
    }
}

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.tunnels.fetch_sub(1, Ordering::SeqCst);
    }
}

impl OpenTunnel {
    /// Completes when it shall take no more connections.
    pub(crate) async fn farewell(&mut self) {
        let before = self.before;
        // An error means that the pod is gone, which others tell.
        let _said = self.farewells.wait_for(|farewells| farewells.standing || farewells.said > before).await;
    }
}

#[cfg(test)]
mod tests {
    use underpass_model::Identity;
    use underpass_policy::{PolicySet, Source};

    use super::*;

    fn judged() -> Judged {
        Judged {
            source: Source::Peer("spiffe://cluster.local/ns/a/sa/b".parse().unwrap()),
            client: "10.0.0.9".parse().unwrap(),
            application: "10.0.0.1:80".parse().unwrap(),
        }
    }

    fn permit() -> Permit {
        let own: Identity = "spiffe://cluster.local/ns/a/sa/own".parse().unwrap();
        judged().judge(&own, &PolicySet::default()).unwrap()
    }

    #[test]
    fn what_was_let_in_is_registered_as_long_as_its_lease_is() {
        let connections = Connections::new();
        let arrival = connections.arrive();
        assert_eq!(connections.inbound().len(), 0);
        let lease = arrival.admit(permit(), Some(judged())).unwrap();
        let outbound = arrival.admit(permit(), None).unwrap();
        assert_eq!(connections.inbound().len(), 1);
        drop((lease, outbound));
        assert_eq!(connections.inbound().len(), 0);
        connections.end();
        assert!(arrival.admit(permit(), Some(judged())).is_err());
        assert_eq!(connections.inbound().len(), 0, "nothing is let in once the pod ends");
    }

    #[test]
    fn counts_a_connection_from_its_arrival_to_its_end() {
        let connections = Connections::new();
        let arrival = connections.arrive();
        let mut followed = connections.follow();
        assert_eq!(*followed.borrow_and_update(), 1);
        assert!(arrival.admit(permit(), None).is_ok());
        assert_eq!(*followed.borrow_and_update(), 1, "a permit given back is no end");
        drop(arrival);
        assert_eq!(*followed.borrow_and_update(), 0);
    }

    #[test]
    fn many_threads_that_end_connections_leave_the_true_number_behind() {
        let connections = Connections::new();
        let followed = connections.follow();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| drop(connections.arrive())));
            }
        });
        assert_eq!(*followed.borrow(), 0);
    }

    #[test]
    fn a_farewell_is_for_the_tunnels_that_exist_and_standing_back_for_all() {
        let is_said = |tunnel: &mut OpenTunnel| {
            let farewell = std::pin::pin!(tunnel.farewell());
            farewell.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_ready()
        };
        let connections = Connections::new();
        let mut old = connections.tunnel();
        assert!(!is_said(&mut old));
        connections.bid_farewell();
        let mut new = connections.tunnel();
        assert!(is_said(&mut old) && !is_said(&mut new));
        connections.stand_back(true);
        assert!(is_said(&mut new) && is_said(&mut connections.tunnel()));
        connections.stand_back(false);
        assert!(!is_said(&mut connections.tunnel()));
    }

    #[tokio::test]
    async fn admits_nothing_once_the_pod_ends_and_ends_what_is_under_way() {
        let connections = Connections::new();
        let arrival = connections.arrive();
        let lease = arrival.admit(permit(), None).unwrap();
        connections.end();
        assert!(lease.unless_ended(std::future::pending::<()>()).await.is_err());
        assert!(arrival.admit(permit(), None).is_err());
    }
}
