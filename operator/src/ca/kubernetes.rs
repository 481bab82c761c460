//! The authority on Kubernetes: its state in a Secret ([`secret`]), its callers known by their pods' tokens ([`reviews`]),
//! its roots published to those who need them ([`bundle`]).

use std::{collections::BTreeSet, sync::Arc};

use kube::Client;
use tokio::sync::watch;

pub mod bundle;
pub mod reviews;
pub mod secret;

use super::{Authenticator, SharedStore, Told};
use bundle::Bundles;
use reviews::{ReviewOptions, Reviews};
use secret::SecretState;

/// Under which name the API server knows who wrote what we write.
const FIELD_MANAGER: &str = "underpass-operator";

/// Where in the operator's namespace the authority's state is, and whom it believes.
#[derive(Clone, Debug, clap::Args)]
pub struct KubernetesOptions {
    /// On Kubernetes, the Secret of the root, its key and what is revoked; made if missing
    #[arg(long, env = "UNDERPASS_CA_SECRET", default_value = "underpass-ca", value_name = "NAME")]
    pub ca_secret: String,
    /// On Kubernetes, the audience that a node proxy's token must be for
    #[arg(long, env = "UNDERPASS_TOKEN_AUDIENCE", default_value = "underpass", value_name = "AUDIENCE")]
    pub token_audience: String,
    /// On Kubernetes, the service accounts of node proxies
    #[arg(
        long = "node-account",
        env = "UNDERPASS_NODE_ACCOUNTS",
        value_delimiter = ',',
        value_name = "NAMESPACE/NAME"
    )]
    #[arg(default_value = "underpass-system/underpass-nodeproxy")]
    pub node_accounts: Vec<String>,
}

impl KubernetesOptions {
    /// Where the authority's state is.
    #[must_use]
    pub fn store(&self, client: Client, namespace: &str) -> SharedStore {
        Arc::new(SecretState::new(client, namespace, &self.ca_secret))
    }

    /// Who says which node calls.
    #[must_use]
    pub fn authenticator(&self, client: Client) -> Authenticator {
        let options = ReviewOptions { audience: self.token_audience.clone(), accounts: self.node_accounts.clone() };
        Authenticator::new(Reviews::new(client, options))
    }

    /// What publishes the roots: in the operator's namespace, in those of node proxies, and wherever `more` says.
    #[must_use]
    pub fn bundles(
        &self,
        client: Client,
        namespace: &str,
        told: watch::Receiver<Told>,
        more: watch::Receiver<BTreeSet<String>>,
    ) -> Bundles {
        let proxies = self.node_accounts.iter().filter_map(|account| account.split_once('/'));
        let always = proxies.map(|(namespace, _)| namespace.to_owned()).chain([namespace.to_owned()]);
        Bundles::new(client, told, always.collect(), more)
    }
}

#[cfg(test)]
mod tests;
