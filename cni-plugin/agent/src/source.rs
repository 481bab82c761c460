//! Where the agent's objects come from and its reports go: a directory, or an API server.

use std::{io, path::PathBuf, time::Duration};

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;
use tokio::{sync::watch, time::timeout};
use underpass_model::names::SYSTEM_NAMESPACE;
use underpass_objects::{
    Directory, Kind, Snapshot, StatusDirectory,
    cluster::{self, Client, ConnectError, Interest},
    status::StatusError,
};
use underpass_runtime::{Shutdown, tasks};

use crate::{config::Config, reports::Reports};

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No way to the API server.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The directory of objects.
    #[error("cannot use {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the file system says.
        #[source]
        source: io::Error,
    },
    /// The directory of reports.
    #[error(transparent)]
    Status(#[from] StatusError),
}

/// Both.
#[derive(Debug)]
pub struct Source {
    /// This node's objects, kept up to date.
    pub objects: watch::Receiver<Snapshot>,
    /// Where captured pods are reported.
    pub reports: Reports,
}

impl Source {
    /// Opens what the settings name; the objects are followed until asked to stop.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn open(config: &Config, shutdown: &Shutdown) -> Result<Self, SourceError> {
        match (&config.objects, &config.status) {
            (Some(objects), Some(status)) => {
                let unusable = |source| SourceError::Directory { path: objects.clone(), source };
                let (objects, directory) = Directory::open(objects).map_err(unusable)?.watch();
                tasks::root("objects", directory.run(shutdown.clone()), shutdown);
                Ok(Self { objects, reports: Reports::Directory(StatusDirectory::open(status)?) })
            }
            _ => {
                let client = cluster::connect(config.kubeconfig.as_deref()).await?;
                let node = config.node_name.clone();
                let interests = vec![Interest::pods_of_node(&node), Interest::all(Kind::Namespace)];
                let (objects, task) = cluster::watch(&client, interests);
                tasks::root("objects", task.run(shutdown.clone()), shutdown);
                Ok(Self { reports: Reports::Cluster { client, objects: objects.clone(), node }, objects })
            }
        }
    }
}

/// The agents, as the manifests name them.
const AGENTS: &str = "underpass-agent";
/// How often to ask an API server that does not answer.
const TRIES: usize = 3;
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether the mesh is being taken off the cluster, which an agent that is asked to stop may be the last to know: its
/// DaemonSet is gone or going. When that cannot be found out it stays as it is, because pods of the mesh that start
/// without it would be worse than pods that wait.
pub async fn is_mesh_going(client: &Client) -> bool {
    let agents: Api<DaemonSet> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    for _try in 0..TRIES {
        match timeout(PATIENCE, agents.get_opt(AGENTS)).await {
            Ok(Ok(found)) => return found.is_none_or(|agents| agents.metadata.deletion_timestamp.is_some()),
            // Its account went before it did, or its rights.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => return true,
            Ok(Err(_)) | Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
    false
}
