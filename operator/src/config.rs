//! What the operator is told when it starts.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc};

use underpass_model::{TrustDomain, names::DEFAULT_CLUSTER};
use underpass_runtime::{
    admin::{LoopbackError, loopback},
    telemetry::LogOptions,
};

use crate::translate::TranslateOptions;

/// Turns Kubernetes objects into a mesh: serves discovery and signs certificates
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "underpass-operator", version)]
pub struct Config {
    /// Directory of Kubernetes manifests to read the objects from (YAML or JSON; watched)
    #[arg(long, env = "UNDERPASS_OBJECTS", value_name = "DIRECTORY")]
    pub objects: PathBuf,
    /// Directory in which node agents report what is captured, and are answered
    #[arg(long, env = "UNDERPASS_STATUS", value_name = "DIRECTORY")]
    pub status: PathBuf,
    /// Directory of the root certificate and its key; made if missing, open to nobody else
    #[arg(long, env = "UNDERPASS_STATE", value_name = "DIRECTORY")]
    pub state: PathBuf,
    /// Directory of node tokens: each file is named like its node and holds the token its proxy shows (watched)
    #[arg(long, env = "UNDERPASS_NODE_TOKENS", value_name = "DIRECTORY")]
    pub node_tokens: PathBuf,
    /// Where discovery and certificates are served over TLS
    #[arg(long, env = "UNDERPASS_LISTEN", default_value = "0.0.0.0:15012", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// The DNS names (or addresses) that the operator's own certificate carries
    #[arg(long = "serving-name", env = "UNDERPASS_SERVING_NAMES", value_delimiter = ',', value_name = "NAME")]
    #[arg(default_value = "underpass-operator.underpass-system.svc")]
    pub serving_names: Vec<String>,
    /// The root of every identity
    #[arg(long, env = "UNDERPASS_TRUST_DOMAIN", default_value_t = TrustDomain::default(), value_name = "NAME")]
    pub trust_domain: TrustDomain,
    /// The cluster's id, the first part of each workload's name
    #[arg(long, env = "UNDERPASS_CLUSTER", default_value = DEFAULT_CLUSTER, value_name = "ID")]
    pub cluster: String,
    /// The DNS domain below which the cluster's services are
    #[arg(long, env = "UNDERPASS_CLUSTER_DOMAIN", default_value = "cluster.local", value_name = "DOMAIN")]
    pub cluster_domain: String,
    /// The network in which addresses are valid; empty where there is only one
    #[arg(long, env = "UNDERPASS_NETWORK", default_value = "", value_name = "NAME")]
    pub network: String,
    /// Where metrics are served
    #[arg(long, env = "UNDERPASS_METRICS_ADDRESS", default_value = "0.0.0.0:15020", value_name = "ADDRESS|none")]
    pub metrics_address: PageAddress,
    /// Where readiness is served
    #[arg(long, env = "UNDERPASS_READY_ADDRESS", default_value = "0.0.0.0:15021", value_name = "ADDRESS|none")]
    pub ready_address: PageAddress,
    /// Where debugging pages are served; a loopback address, as they need no credentials
    #[arg(long, env = "UNDERPASS_ADMIN_ADDRESS", default_value = "127.0.0.1:15000", value_name = "ADDRESS|none")]
    #[arg(value_parser = debugging_address)]
    pub admin_address: PageAddress,
    /// How to log
    #[command(flatten)]
    pub log: LogOptions,
}

/// Where pages are served, if at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageAddress(pub Option<SocketAddr>);

impl FromStr for PageAddress {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" { Ok(Self(None)) } else { text.parse().map(|address| Self(Some(address))) }
    }
}

/// Debugging pages ask for no credentials, so nobody else may reach them.
fn debugging_address(text: &str) -> Result<PageAddress, LoopbackError> {
    if text == "none" { Ok(PageAddress(None)) } else { loopback(text).map(|address| PageAddress(Some(address))) }
}

impl Config {
    /// What translation needs of it.
    #[must_use]
    pub fn translate_options(&self) -> TranslateOptions {
        TranslateOptions {
            cluster: Arc::from(self.cluster.as_str()),
            cluster_domain: Arc::from(self.cluster_domain.as_str()),
            network: Arc::from(self.network.as_str()),
            trust_domain: self.trust_domain.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;

    const NEEDED: [&str; 9] =
        ["underpass-operator", "--objects", "o", "--status", "s", "--state", "k", "--node-tokens", "t"];

    #[test]
    fn takes_what_it_documents() {
        Config::command().debug_assert();
        let config = Config::try_parse_from(NEEDED).unwrap();
        assert_eq!(config.serving_names, ["underpass-operator.underpass-system.svc"]);
        assert_eq!(config.translate_options(), TranslateOptions::default());
        let more = ["--admin-address", "none", "--trust-domain", "corp.example", "--serving-name", "a,b"];
        let config = Config::try_parse_from(NEEDED.into_iter().chain(more)).unwrap();
        assert_eq!(config.admin_address, PageAddress(None));
        assert_eq!((config.trust_domain.as_str(), config.serving_names.len()), ("corp.example", 2));
    }

    #[test]
    fn refuses_values_that_cannot_work() {
        for bad in [
            ["--trust-domain", "Not A Domain"],
            ["--listen", "here"],
            ["--ready-address", "15021"],
            ["--admin-address", "0.0.0.0:15000"],
        ] {
            assert!(Config::try_parse_from(NEEDED.into_iter().chain(bad)).is_err(), "{bad:?}");
        }
        assert!(Config::try_parse_from(&NEEDED[..7]).is_err(), "no node tokens");
    }
}
