//! The way to an API server.

use std::path::Path;

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

/// Why there is no way to an API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not in a pod, or one without a service account token.
    #[error("neither a kubeconfig is named, nor does this process run in a pod with a service account")]
    InCluster(#[source] Box<kube::config::InClusterError>),
    /// The file cannot be used.
    #[error("kubeconfig {0}")]
    Kubeconfig(String, #[source] Box<kube::config::KubeconfigError>),
    /// Its TLS or credentials cannot be used.
    #[error("client of the API server")]
    Client(#[source] Box<kube::Error>),
}

/// A client with what a kubeconfig says, or else the pod's own service account. Nothing is asked of the server yet, and
/// tokens are read again when they are renewed.
///
/// # Errors
/// [`ConnectError`] if it says too little.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    let config = match kubeconfig {
        None => Config::incluster().map_err(|error| ConnectError::InCluster(Box::new(error)))?,
        Some(path) => {
            let wrong = |error| ConnectError::Kubeconfig(path.display().to_string(), Box::new(error));
            let file = Kubeconfig::read_from(path).map_err(wrong)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(wrong)?
        }
    };
    Client::try_from(config).map_err(|error| ConnectError::Client(Box::new(error)))
}
