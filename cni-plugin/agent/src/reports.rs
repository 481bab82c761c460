//! Where captured pods are reported to the operator: a directory, or conditions of the pods on an API server, where users
//! are told with Events besides.

use std::{fmt, future::Future, time::Duration};

use tokio::{sync::watch, time::timeout};
use underpass_model::PodUid;
use underpass_objects::{
    CaptureReport, ObjectName, Snapshot, StatusDirectory,
    cluster::{
        Client,
        event::{self, Event},
        report::{self, ReportError},
    },
    report::wait_withdrawn,
    status::StatusError,
};
use underpass_runtime::{Chain, tasks};

/// An API server that takes longer is as if it were away.
const PATIENCE: Duration = Duration::from_secs(5);
/// A pod that ends must not wait for it for long; its object goes anyway, and the report with it.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why the operator cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum TellError {
    /// A file.
    #[error(transparent)]
    File(#[from] StatusError),
    /// The API server refuses.
    #[error(transparent)]
    Cluster(#[from] ReportError),
    /// The API server does not answer.
    #[error("the API server does not answer")]
    Late,
    /// The work itself went wrong, which is logged.
    #[error("writing the report failed")]
    Failed,
}

/// Where reports go. Cheap to clone.
#[derive(Clone)]
pub enum Reports {
    /// An API server, and what it says.
    Cluster {
        /// The way to it.
        client: Client,
        /// This node's objects.
        objects: watch::Receiver<Snapshot>,
        /// This node's name.
        node: String,
    },
    /// A directory beside the manifests.
    Directory(StatusDirectory),
}

impl Reports {
    /// Whether telling takes no other machine: then it is done before anybody relies on it.
    #[must_use]
    pub fn are_local(&self) -> bool {
        matches!(self, Self::Directory(_))
    }

    /// Puts a report in the place of the one before, and says which generation it became.
    ///
    /// # Errors
    /// [`TellError`]; then the one before stands.
    pub async fn report(&self, capture: CaptureReport) -> Result<u64, TellError> {
        match self {
            Self::Cluster { client, .. } => {
                // A request is large, and a pod's task seldom makes one.
                within(PATIENCE, Box::pin(report::report(client, &capture))).await
            }
            Self::Directory(status) => {
                let status = status.clone();
                blocking(move || status.report(&capture)).await
            }
        }
    }

    /// Takes a pod's report back.
    ///
    /// # Errors
    /// [`TellError`] if it stays.
    pub async fn forget(&self, uid: &PodUid, name: &ObjectName) -> Result<(), TellError> {
        match self {
            Self::Cluster { client, .. } => {
                within(FAREWELL, Box::pin(report::forget(client, name, uid.as_str()))).await
            }
            Self::Directory(status) => {
                let (status, uid) = (status.clone(), uid.clone());
                blocking(move || status.forget(&uid)).await
            }
        }
    }

    /// Waits until a report of leaving is answered; false if it was not in time.
    pub async fn withdrawn(&self, uid: &PodUid, name: &ObjectName, generation: u64, deadline: Duration) -> bool {
        match self {
            Self::Cluster { objects, .. } => {
                Box::pin(wait_withdrawn(&mut objects.clone(), uid, name, generation, deadline)).await
            }
            Self::Directory(status) => Box::pin(status.withdrawn(uid, generation, deadline)).await,
        }
    }

    /// Tells users, if there is a place for it. Nobody waits for that.
    pub fn event(&self, about: Event) {
        let Self::Cluster { client, node, .. } = self else { return };
        let (client, node) = (client.clone(), node.clone());
        tasks::spawn("event", async move {
            let telling = Box::pin(event::emit(&client, "underpass-agent", &node, &about));
            match timeout(PATIENCE, telling).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(error = %Chain(&error), "an Event could not be written"),
                Err(_elapsed) => tracing::debug!("an Event could not be written in time"),
            }
        });
    }
}

impl fmt::Debug for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster { node, .. } => f.debug_struct("Cluster").field("node", node).finish_non_exhaustive(),
            Self::Directory(status) => f.debug_tuple("Directory").field(status).finish(),
        }
    }
}

async fn within<T>(most: Duration, telling: impl Future<Output = Result<T, ReportError>>) -> Result<T, TellError> {
    Ok(timeout(most, telling).await.map_err(|_elapsed| TellError::Late)??)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StatusError> + Send + 'static,
) -> Result<T, TellError> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.inspect_err(|error| tracing::error!(%error, "writing a report failed"));
    Ok(done.map_err(|_logged| TellError::Failed)??)
}
