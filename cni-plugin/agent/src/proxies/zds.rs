//! One ZDS session: names every pod, then passes on what is asked, one request at a time.

use std::{collections::BTreeSet, time::Duration};

use tokio::{sync::mpsc, time::timeout};
use underpass_enrolment::{
    seqpacket::{Connection, Listener, RecvError, SendError},
    zds::{Ack, Hello, Request},
};
use underpass_model::PodUid;
use underpass_runtime::{Shutdown, tasks};

use super::{Ask, Proxies, QUEUE, SessionId, ZdsSession};

/// How long a proxy may take for one packet.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a failed accept (no descriptors left), so that the loop does not spin.
const PAUSE: Duration = Duration::from_millis(200);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("the proxy closed the connection")]
    Closed,
    #[error("the pod's network namespace cannot be passed on")]
    Netns(#[source] std::io::Error),
    #[error("nothing came or went within {} s", PATIENCE.as_secs())]
    Slow,
    #[error("the proxy answered something that was not asked")]
    Unasked,
    #[error(transparent)]
    Recv(#[from] RecvError),
    #[error(transparent)]
    Send(#[from] SendError),
}

/// Serves until asked to stop; each proxy gets a task.
pub async fn serve(listener: Listener, proxies: Proxies, shutdown: Shutdown) {
    loop {
        let accepted = tokio::select! {
            () = shutdown.requested() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(connection) => {
                let (proxies, shutdown) = (proxies.clone(), shutdown.clone());
                tasks::spawn("zds session", async move {
                    tokio::select! {
                        () = shutdown.requested() => {}
                        () = session(&connection, &proxies) => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a node proxy could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn session(connection: &Connection, proxies: &Proxies) {
    match within(connection.recv::<Hello>()).await {
        Ok(Some(Hello)) => {}
        Ok(None) => return,
        Err(error) => return tracing::warn!(%error, "a node proxy did not greet"),
    }
    let (id, mut asks, pods) = proxies.open_zds();
    let opened = Opened { proxies, id };
    tracing::info!(session = id, pods = pods.len(), "a node proxy is connected");
    if let Err(error) = opened.run(connection, &mut asks, pods).await {
        tracing::warn!(session = id, %error, "the session with a node proxy ended");
    }
}

/// Ends the session's entry also when its task is dropped.
struct Opened<'a> {
    proxies: &'a Proxies,
    id: SessionId,
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.proxies.close_zds(self.id);
    }
}

impl Opened<'_> {
    async fn run(
        &self,
        connection: &Connection,
        asks: &mut mpsc::Receiver<Ask>,
        pods: Vec<PodUid>,
    ) -> Result<(), SessionError> {
        let mut named = BTreeSet::new();
        for uid in pods {
            self.add(connection, &uid, true).await?;
            named.insert(uid);
        }
        acknowledged(connection, &Request::SnapshotSent).await?.unwrap_or_else(|why| {
            tracing::warn!(session = self.id, why, "the node proxy did not take the snapshot");
        });
        loop {
            tokio::select! {
                ask = asks.recv() => match ask {
                    Some(Ask::Add(uid)) => {
                        self.add(connection, &uid, false).await?;
                        named.insert(uid);
                    }
                    Some(Ask::Del(uid, done)) => {
                        if named.remove(&uid) {
                            self.del(connection, &uid).await?;
                        }
                        let _nobody_waits = done.send(());
                    }
                    None => return Ok(()),
                },
                unasked = connection.recv::<Ack>() => {
                    return Err(if unasked?.is_some() { SessionError::Unasked } else { SessionError::Closed });
                }
            }
        }
    }

    async fn add(&self, connection: &Connection, uid: &PodUid, snapshot: bool) -> Result<(), SessionError> {
        let Some(request) = self.proxies.request(uid, snapshot).map_err(SessionError::Netns)? else { return Ok(()) };
        let outcome = acknowledged(connection, &request).await?;
        if let Err(why) = &outcome {
            tracing::warn!(pod.uid = %uid, why, "the node proxy cannot serve a pod");
        }
        self.proxies.accept(self.id, uid, outcome);
        Ok(())
    }

    async fn del(&self, connection: &Connection, uid: &PodUid) -> Result<(), SessionError> {
        if let Err(why) = acknowledged(connection, &Request::Del { uid: uid.clone() }).await? {
            tracing::debug!(pod.uid = %uid, why, "the node proxy had nothing to stop");
        }
        Ok(())
    }
}

async fn acknowledged(connection: &Connection, request: &Request) -> Result<Result<(), String>, SessionError> {
    within(connection.send(request)).await?;
    match within(connection.recv::<Ack>()).await? {
        Some(ack) => Ok(ack.outcome),
        None => Err(SessionError::Closed),
    }
}

async fn within<T, E: Into<SessionError>>(work: impl Future<Output = Result<T, E>>) -> Result<T, SessionError> {
    timeout(PATIENCE, work).await.map_err(|_| SessionError::Slow)?.map_err(Into::into)
}

impl Proxies {
    /// In one step with the list of pods, so that none falls between the snapshot and what is asked later.
    pub(super) fn open_zds(&self) -> (SessionId, mpsc::Receiver<Ask>, Vec<PodUid>) {
        let (asks, receiver) = mpsc::channel(QUEUE);
        let mut state = self.lock();
        let id = state.next_session();
        let has_node = !state.node.is_empty();
        state.zds.push(ZdsSession { id, has_node, asks });
        let pods = state.served.keys().cloned().collect();
        drop(state);
        self.notify();
        (id, receiver, pods)
    }

    pub(super) fn close_zds(&self, id: SessionId) {
        let mut state = self.lock();
        state.forget_zds(id);
        drop(state);
        self.notify();
    }

    /// The request for a pod, unless it is served no more.
    fn request(&self, uid: &PodUid, snapshot: bool) -> std::io::Result<Option<Request>> {
        let state = self.lock();
        let Some(served) = state.served.get(uid) else { return Ok(None) };
        Ok(match &served.netns {
            Some(netns) => {
                let netns = netns.netns.try_clone()?;
                Some(Request::Add { uid: uid.clone(), info: served.info.clone(), netns })
            }
            None => snapshot.then(|| Request::Keep { uid: uid.clone() }),
        })
    }

    /// Only the newest proxy's word counts: it is the one that shall serve when the others are gone.
    pub(super) fn accept(&self, session: SessionId, uid: &PodUid, outcome: Result<(), String>) {
        let mut state = self.lock();
        let is_newest = state.zds.last().is_some_and(|newest| newest.id == session);
        if let Some(served) = state.served.get_mut(uid).filter(|_| is_newest) {
            served.accepted = Some((session, outcome));
        }
        drop(state);
        self.notify();
    }
}
