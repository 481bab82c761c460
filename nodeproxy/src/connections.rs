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
    /// Set while the agent waits for the last connection to end; only then does a close wake another thread.
    reported: Arc<watch::Sender<Option<u64>>>,
}

/// A permit in use. Dropping it forgets the connection.
#[derive(Debug)]
pub(crate) struct Lease {
    connections: Connections,
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
        let (reported, _) = watch::channel(None);
        Self { live: Arc::default(), tunnels: Arc::default(), ending: Shutdown::new(), reported: Arc::new(reported) }
    }

    /// Registers a connection before it is used, so that no end falls between permit and use.
    pub(crate) fn admit(&self, permit: Permit) -> Result<Lease, PodEnds> {
        self.live.fetch_add(1, Ordering::SeqCst);
        self.report();
        let lease = Lease { connections: self.clone(), permit };
        if self.ending.is_requested() { Err(PodEnds) } else { Ok(lease) }
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
            while self.live() > 0 || self.tunnels.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(STEP).await;
            }
        };
        tokio::time::timeout(deadline, closed).await.is_ok()
    }

    /// How many there are.
    pub(crate) fn live(&self) -> u64 {
        self.live.load(Ordering::SeqCst)
    }

    /// Begins to tell every change of the number, starting with what it is.
    pub(crate) fn follow(&self) -> watch::Receiver<Option<u64>> {
        let receiver = self.reported.subscribe();
        self.reported.send_replace(Some(self.live()));
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
            self.reported.send_replace(Some(self.live()));
        }
    }
}

impl Lease {
    /// What may be dialled.
    pub(crate) fn permit(&self) -> &Permit {
        &self.permit
    }

    /// Completes when the connection must end before its ends want to.
    pub(crate) async fn ended(&self) {
        self.connections.ending.requested().await;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.connections.live.fetch_sub(1, Ordering::SeqCst);
        self.connections.report();
    }
}

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use underpass_model::TrustDomain;
    use underpass_policy::{Facts, Hop, Source, authorize};

    fn permit() -> Permit {
        let source = Source::Peer("spiffe://cluster.local/ns/a/sa/b".parse().unwrap());
        let trust_domain = TrustDomain::default();
        let destination = "10.0.0.1:80".parse().unwrap();
        authorize(&Facts { source: &source, trust_domain: &trust_domain, hop: Hop::Application, destination }).unwrap()
    }

    #[test]
    fn counts_a_connection_from_admission_to_the_drop_of_its_lease() {
        let connections = Connections::new();
        let lease = connections.admit(permit()).unwrap();
        let mut followed = connections.follow();
        assert_eq!(*followed.borrow_and_update(), Some(1));
        drop(lease);
        assert_eq!(*followed.borrow_and_update(), Some(0));
    }

    #[test]
    fn admits_nothing_once_the_pod_ends() {
        let connections = Connections::new();
        connections.end();
        assert!(connections.admit(permit()).is_err());
        assert_eq!(connections.live(), 0, "the refused connection is forgotten");
    }
}
