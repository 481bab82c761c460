//! Connections and who may hold them: everybody for a moment, after that only those whose calls were authenticated, and
//! of these each node a bounded number.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};
use tonic::{Request, Status, transport::server::Connected};

use super::{Authenticate, NodeName};

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Altogether; more wait in the listener's queue.
    pub connections: usize,
    /// Of one node: its proxies' streams, and a few certificates at a time.
    pub of_one_node: usize,
    /// How long somebody may be connected who has not shown who he is.
    pub stranger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 16_384, of_one_node: 64, stranger: Duration::from_secs(10) }
    }
}

/// All connections; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Door {
    limits: Limits,
    places: Arc<Semaphore>,
    of_nodes: Arc<Mutex<BTreeMap<NodeName, usize>>>,
}

/// The other end of a connection; a request's extensions hold it.
#[derive(Clone, Debug)]
pub struct Caller(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    peer: Option<SocketAddr>,
    node: OnceLock<NodeName>,
    door: Door,
}

/// A connection that ends if nobody proves in time who is at its other end.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    caller: Caller,
    /// `None` when there is nothing to wait for any more.
    deadline: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

impl Door {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, places: Arc::new(Semaphore::new(limits.connections)), of_nodes: Arc::default() }
    }

    /// Waits for a place.
    pub(super) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    /// A stranger begins to be connected.
    pub(super) fn connection<S>(
        &self,
        stream: S,
        peer: Option<SocketAddr>,
        place: OwnedSemaphorePermit,
    ) -> Connection<S> {
        let caller = Caller(Arc::new(Inner { peer, node: OnceLock::new(), door: self.clone() }));
        let deadline = Some(Box::pin(tokio::time::sleep(self.limits.stranger)));
        Connection { stream, caller, deadline, _place: place }
    }

    fn of_nodes(&self) -> MutexGuard<'_, BTreeMap<NodeName, usize>> {
        self.of_nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Caller {
    /// Where it calls from.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.0.peer
    }

    /// It proved to be this node; `false` if the node has too many connections.
    fn admit(&self, node: NodeName) -> bool {
        let mut of_nodes = self.0.door.of_nodes();
        if self.0.node.get().is_some() {
            return true;
        }
        let count = of_nodes.entry(node.clone()).or_default();
        if *count >= self.0.door.limits.of_one_node {
            return false;
        }
        *count += 1;
        // Set under the lock, so by nobody else meanwhile.
        self.0.node.set(node).is_ok()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Some(node) = self.node.get() else { return };
        let mut of_nodes = self.door.of_nodes();
        if let Some(count) = of_nodes.get_mut(node) {
            *count -= 1;
            if *count == 0 {
                of_nodes.remove(node);
            }
        }
    }
}

/// What looks at each call first: one that is authenticated lets its connection stay. Others are left to the services,
/// who refuse them with their own words.
pub fn admit<A: Authenticate + Clone>(
    authenticate: A,
) -> impl Fn(Request<()>) -> Result<Request<()>, Status> + Clone + Send + Sync + 'static {
    move |request| {
        let caller = request.extensions().get::<Caller>();
        if let (Some(caller), Ok(node)) = (caller, authenticate.authenticate(request.metadata()))
            && !caller.admit(node.clone())
        {
            tracing::warn!(%node, peer = ?caller.peer(), "call refused: too many connections of this node");
            return Err(Status::resource_exhausted("too many connections"));
        }
        Ok(request)
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            if self.caller.0.node.get().is_none() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no authenticated call in time")));
            }
            self.deadline = None;
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, DuplexStream, duplex},
        time::{Instant, timeout},
    };

    use super::*;

    fn door(of_one_node: usize) -> Door {
        Door::new(Limits { connections: 3, of_one_node, ..Limits::default() })
    }

    async fn connect(door: &Door) -> (Connection<DuplexStream>, DuplexStream) {
        let (near, far) = duplex(64);
        let place = door.place().await.unwrap();
        (door.connection(near, None, place), far)
    }

    fn node(name: &str) -> NodeName {
        NodeName::new(name).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_is_sent_away_and_a_node_may_stay() {
        let door = door(1);
        let (mut stranger, _far) = connect(&door).await;
        let (mut known, _other_far) = connect(&door).await;
        assert!(known.connect_info().admit(node("a")));
        let began = Instant::now();
        let error = stranger.read_u8().await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, door.limits.stranger));
        assert!(timeout(Duration::from_secs(3600), known.read_u8()).await.is_err(), "was cut off");
    }

    #[tokio::test]
    async fn a_node_has_as_many_connections_as_one_needs() {
        let door = door(2);
        let mut connections = Vec::new();
        for _ in 0..3 {
            connections.push(connect(&door).await);
        }
        let admit = |number: usize, name: &str| connections[number].0.connect_info().admit(node(name));
        assert_eq!(
            [0, 0, 1].map(|number| admit(number, "a")),
            [true; 3],
            "two connections, one of them with two calls"
        );
        assert!(!admit(2, "a"));
        assert!(admit(2, "b"));
        connections.clear();
        assert!(door.of_nodes().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn connections_are_bounded_altogether() {
        let door = door(1);
        let (_one, _two) = (connect(&door).await, connect(&door).await);
        let three = connect(&door).await;
        assert!(timeout(Duration::from_secs(3600), door.place()).await.is_err());
        drop(three);
        assert!(door.place().await.is_some());
    }
}
