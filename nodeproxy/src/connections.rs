//! Every live connection of a pod: how many there are, and the one way to end them early.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::{sync::watch, time::Duration};
use underpass_policy::Permit;
use underpass_runtime::Shutdown;

/// The live connections of one pod; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    live: Arc<AtomicU64>,
    tunnels: Arc<AtomicU64>,
    ending: Shutdown,
    /// Followed while the agent waits for the last connection to end; only then does a close wake another thread.
    reported: Arc<watch::Sender<u64>>,
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
}

/// A tunnel that peers opened to the pod, whether or not connections are in it. Dropping it forgets the tunnel.
#[derive(Debug)]
pub(crate) struct OpenTunnel(Arc<AtomicU64>);

/// The pod ends; nothing new may begin.
#[derive(Debug, thiserror::Error)]
#[error("the pod ends")]
pub(crate) struct PodEnds;

impl Connections {
    pub(crate) fn new() -> Self {
        let (reported, _) = watch::channel(0);
        Self { live: Arc::default(), tunnels: Arc::default(), ending: Shutdown::new(), reported: Arc::new(reported) }
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
        OpenTunnel(Arc::clone(&self.tunnels))
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
    /// Turns a permit into a lease, unless the pod ends.
    pub(crate) fn admit(&self, permit: Permit) -> Result<Lease<'_>, PodEnds> {
        if self.0.ending.is_requested() { Err(PodEnds) } else { Ok(Lease { arrival: self, permit }) }
    }
}

impl Lease<'_> {
    /// What may be dialled.
    pub(crate) fn permit(&self) -> &Permit {
        &self.permit
    }

    /// What the future gives, unless the connection must end before.
    pub(crate) async fn unless_ended<T>(&self, future: impl Future<Output = T>) -> Result<T, PodEnds> {
        tokio::select! {
            // An end wins over whatever it does to the bytes.
            biased;
            () = self.arrival.0.ended() => Err(PodEnds),
            done = future => Ok(done),
        }
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
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use underpass_model::TrustDomain;
    use underpass_policy::{Facts, Hop, Source, authorize};

    use super::*;

    fn permit() -> Permit {
        let source = Source::Peer("spiffe://cluster.local/ns/a/sa/b".parse().unwrap());
        let trust_domain = TrustDomain::default();
        let destination = "10.0.0.1:80".parse().unwrap();
        authorize(&Facts { source: &source, trust_domain: &trust_domain, hop: Hop::Application, destination }).unwrap()
    }

    #[test]
    fn counts_a_connection_from_its_arrival_to_its_end() {
        let connections = Connections::new();
        let arrival = connections.arrive();
        let mut followed = connections.follow();
        assert_eq!(*followed.borrow_and_update(), 1);
        assert!(arrival.admit(permit()).is_ok());
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

    #[tokio::test]
    async fn admits_nothing_once_the_pod_ends_and_ends_what_is_under_way() {
        let connections = Connections::new();
        let arrival = connections.arrive();
        let lease = arrival.admit(permit()).unwrap();
        connections.end();
        assert!(lease.unless_ended(std::future::pending::<()>()).await.is_err());
        assert!(arrival.admit(permit()).is_err());
    }
}
