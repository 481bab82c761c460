//! `plugin.sock`: one request of the CNI plugin a connection, each answered by the pod's task.

use std::{
    collections::BTreeSet,
    io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, watch},
    time::{Instant, timeout},
};
use underpass_enrolment::plugin::{
    Attachment, Command, Link, MAX_LINE, PluginFailure, PluginRequest, PluginResponse, Pod,
};
use underpass_model::{PodUid, names::NEVER_ENROLLED};
use underpass_objects::{Snapshot, pod};
use underpass_runtime::{Chain, Shutdown, tasks};

use crate::pods::{Outcome, Pods, Sandbox};

/// Answers the plugin.
#[derive(Clone, Debug)]
pub struct PluginServer {
    /// The pods of this node.
    pub pods: Arc<Pods>,
    /// Objects, to know a pod whose runtime does not say its uid.
    pub objects: watch::Receiver<Snapshot>,
}

/// How long the plugin may take to ask, or to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Plugins that may wait at once; the runtime starts pods some tens at a time.
const AT_ONCE: usize = 256;
/// After a failed accept (no descriptors left), so that the loop does not spin.
const PAUSE: Duration = Duration::from_millis(200);

/// Takes a path for this user's processes only; a socket that nobody listens on any more is replaced.
///
/// # Errors
/// As the kernel says.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    let stale = path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket())
        && std::os::unix::net::UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if stale {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl PluginServer {
    /// Serves until asked to stop.
    pub async fn serve(self, listener: UnixListener, shutdown: Shutdown) {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let accepted = tokio::select! {
                () = shutdown.requested() => return,
                accepted = async {
                    let place = Arc::clone(&places).acquire_owned().await;
                    (listener.accept().await, place)
                } => accepted,
            };
            match accepted {
                (Ok((stream, _)), place) => {
                    let server = self.clone();
                    tasks::spawn("plugin", async move {
                        if let Err(error) = server.converse(stream).await {
                            tracing::warn!(%error, "a conversation with the CNI plugin failed");
                        }
                        drop(place);
                    });
                }
                (Err(error), _) => {
                    tracing::warn!(%error, "the CNI plugin could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn converse(&self, stream: UnixStream) -> io::Result<()> {
        let (reading, mut writing) = stream.into_split();
        let mut line = Vec::new();
        let mut limited = BufReader::new(reading).take(MAX_LINE as u64 + 1);
        timeout(PATIENCE, limited.read_until(b'\n', &mut line)).await??;
        if line.is_empty() {
            return Ok(());
        }
        let response = match PluginRequest::from_line(&line) {
            Ok(request) => {
                let (command, container) = (request.command, request.container_id.clone());
                let response = self.respond(request, Instant::now()).await;
                if let Some(failure) = &response.error {
                    tracing::warn!(?command, container, %failure, "the CNI plugin gets an error");
                }
                response
            }
            Err(error) => PluginResponse::failed(Link::Agent, Chain(&error).to_string()),
        };
        let line = response.to_line().map_err(io::Error::other)?;
        timeout(PATIENCE, writing.write_all(&line)).await??;
        timeout(PATIENCE, writing.shutdown()).await?
    }

    /// Does as asked at some time. Every branch bounds its own time.
    pub async fn respond(&self, request: PluginRequest, received: Instant) -> PluginResponse {
        let deadline = self.pods.deadline(received, patience(request.deadline_ms));
        let attachment = Attachment { container_id: request.container_id, ifname: request.ifname };
        let outcome = match (request.command, request.pod) {
            (Command::Gc, _) => {
                let valid: BTreeSet<(String, String)> =
                    request.valid_attachments.into_iter().map(|a| (a.container_id, a.ifname)).collect();
                self.pods.collect(&valid).await;
                Ok(false)
            }
            (Command::Del, pod) => {
                let known = self.pods.of_attachment(&attachment).or_else(|| self.uid(pod.as_ref()));
                if let Some(uid) = known {
                    self.pods.delete(&uid, attachment, request.netns.into()).await;
                }
                Ok(false)
            }
            (Command::Add | Command::Check, None) => {
                Err(PluginFailure { link: Link::Pod, message: "the runtime did not say which pod".to_owned() })
            }
            // The mesh itself starts there, before anything else can.
            (Command::Add | Command::Check, Some(pod)) if NEVER_ENROLLED.contains(&pod.namespace.as_str()) => Ok(false),
            (Command::Add, Some(pod)) => {
                let (netns, addresses) = (request.netns.into(), request.addresses);
                let sandbox = Sandbox { attachment, netns, addresses, deadline };
                self.with_uid(&pod, |uid| async move { self.pods.add(&uid, sandbox).await }).await
            }
            (Command::Check, Some(pod)) => {
                self.with_uid(&pod, |uid| async move { self.pods.check(&uid, attachment, deadline).await }).await
            }
        };
        match outcome {
            Ok(enrolled) => PluginResponse::done(enrolled),
            Err(PluginFailure { link, message }) => PluginResponse::failed(link, message),
        }
    }

    async fn with_uid<F: Future<Output = Outcome>>(&self, pod: &Pod, ask: impl FnOnce(PodUid) -> F) -> Outcome {
        match self.uid(Some(pod)) {
            Some(uid) => ask(uid).await,
            None => {
                let message = format!("the agent has not seen the object of {}/{}", pod.namespace, pod.name);
                Err(PluginFailure { link: Link::Pod, message })
            }
        }
    }

    /// The object's uid, because a static pod's runtime knows it under another, and no runtime knows that of an object
    /// which was written without one; else what the runtime says.
    fn uid(&self, pod: Option<&Pod>) -> Option<PodUid> {
        let pod = pod?;
        let objects = self.objects.borrow().objects.clone();
        let object = objects.pod(&pod.namespace, &pod.name);
        let known = object.and_then(|object| pod::uid(object));
        let said = Some(pod.uid.as_str()).filter(|uid| !uid.is_empty()).map(PodUid::new);
        match (known, said) {
            (Some(known), Some(said)) if known != said && !is_named_otherwise(object?) => Some(said),
            (Some(known), _) => Some(known),
            (None, said) => said,
        }
    }
}

/// A tenth less than the plugin waits, so that the answer that names the missing link still reaches it.
fn patience(deadline_ms: u64) -> Option<Duration> {
    (deadline_ms > 0).then(|| Duration::from_millis(deadline_ms) * 9 / 10)
}

/// Whether the runtime cannot know the object's uid: it only mirrors a pod that the kubelet read from a file, or has none.
fn is_named_otherwise(pod: &k8s_openapi::api::core::v1::Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let mirrors = annotations.is_some_and(|annotations| annotations.contains_key("kubernetes.io/config.mirror"));
    mirrors || !pod::has_own_uid(pod)
}
