//! What the operator is told when it starts.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use underpass_model::{
    TrustDomain,
    names::{DEFAULT_CLUSTER, SYSTEM_NAMESPACE},
};
use underpass_runtime::{
    admin::{LoopbackError, loopback},
    telemetry::LogOptions,
};

use crate::{
    ca::{AuthorityOptions, kubernetes::KubernetesOptions},
    cluster::Place,
    translate::TranslateOptions,
};

/// Turns Kubernetes objects into a mesh: serves discovery and signs certificates
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "underpass-operator", version)]
#[command(group = clap::ArgGroup::new("source").args(["objects", "kubernetes", "kubeconfig"]).required(true))]
pub struct Config {
    /// Directory of Kubernetes manifests to read the objects from (YAML or JSON; watched)
    #[arg(long, env = "UNDERPASS_OBJECTS", value_name = "DIRECTORY")]
    #[arg(requires_all = ["status", "state", "node_tokens"])]
    pub objects: Option<PathBuf>,
    /// With --objects: directory in which node agents report what is captured, and are answered
    #[arg(long, env = "UNDERPASS_STATUS", value_name = "DIRECTORY", requires = "objects")]
    pub status: Option<PathBuf>,
    /// Read the objects from the API server of the cluster in which this runs
    #[arg(long, env = "UNDERPASS_KUBERNETES")]
    pub kubernetes: bool,
    /// Read the objects from the API server that this kubeconfig names
    #[arg(long, env = "UNDERPASS_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// On Kubernetes, the namespace of the operator's own objects
    #[arg(long, env = "UNDERPASS_NAMESPACE", default_value = SYSTEM_NAMESPACE, value_name = "NAME")]
    pub namespace: String,
    /// On Kubernetes, the name of this operator among the others: that of its pod
    #[arg(long, env = "POD_NAME", default_value_t = host_name(), value_name = "NAME")]
    pub instance: String,
    /// With --objects: directory of the root certificate and its key; made if missing, open to nobody else
    #[arg(long, env = "UNDERPASS_STATE", value_name = "DIRECTORY", requires = "objects")]
    pub state: Option<PathBuf>,
    /// How long a workload's certificate lives, in seconds; it is renewed at half
    #[arg(long, env = "UNDERPASS_CERTIFICATE_TTL", default_value = "86400", value_parser = seconds)]
    #[arg(value_name = "SECONDS")]
    pub certificate_ttl: Duration,
    /// How long an issuing certificate lives, in seconds, at least twice a workload's; it is replaced at half
    #[arg(long, env = "UNDERPASS_ISSUING_TTL", default_value = "2592000", value_parser = seconds)]
    #[arg(value_name = "SECONDS")]
    pub issuing_ttl: Duration,
    /// How long a new root is trusted before it signs, and an old one after it signed last, in seconds; at least, and
    /// unless set twice, as long as a workload's certificate lives
    #[arg(long, env = "UNDERPASS_ROOT_OVERLAP", value_parser = seconds, value_name = "SECONDS")]
    pub root_overlap: Option<Duration>,
    /// Directory with tls.crt, tls.key and ca.crt (a mounted Secret): the authority to sign under, instead of a root that
    /// the operator makes
    #[arg(long, env = "UNDERPASS_GIVEN_CA", value_name = "DIRECTORY")]
    pub given_ca: Option<PathBuf>,
    /// How many days before the end of a root logs begin to warn
    #[arg(long, env = "UNDERPASS_EXPIRY_WARNING_DAYS", default_value = "30", value_name = "DAYS")]
    pub expiry_warning_days: u32,
    /// With --objects: directory of node tokens; each file is named like its node and holds the token its proxy shows
    /// (watched)
    #[arg(long, env = "UNDERPASS_NODE_TOKENS", value_name = "DIRECTORY", requires = "objects")]
    pub node_tokens: Option<PathBuf>,
    /// Where the authority's state is, and whom it believes, on Kubernetes
    #[command(flatten)]
    pub on_kubernetes: KubernetesOptions,
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

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Some(name.trim().to_owned()).filter(|name| !name.is_empty()).unwrap_or_else(|| "operator".into())
}

impl Config {
    /// What the certificate authority needs of it. Times that would leave certificates without a valid issuer, or peers
    /// without the root of one, are lengthened.
    #[must_use]
    pub fn authority_options(&self) -> AuthorityOptions {
        let ttl = self.certificate_ttl;
        AuthorityOptions {
            trust_domain: self.trust_domain.clone(),
            most_ttl: ttl,
            issuing_ttl: self.issuing_ttl.max(ttl * 2),
            overlap: self.root_overlap.unwrap_or(ttl * 2).max(ttl),
            given: self.given_ca.clone(),
            warn_before: Duration::from_secs(u64::from(self.expiry_warning_days) * 86_400),
        }
    }

    /// Whether the objects come from an API server.
    #[must_use]
    pub fn is_on_kubernetes(&self) -> bool {
        self.kubernetes || self.kubeconfig.is_some()
    }

    /// Who and where this operator is.
    #[must_use]
    pub fn place(&self) -> Place {
        Place { namespace: self.namespace.clone(), name: self.instance.clone() }
    }

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

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        // A century; more than any clock's arithmetic has to bear.
        Ok(seconds) if (1..=3_200_000_000).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err("is no number of seconds from 1 to 3200000000".to_owned()),
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
    fn the_authoritys_times_fit_together() {
        let times = |more: &[&str]| {
            let options = Config::try_parse_from(NEEDED.iter().chain(more)).unwrap().authority_options();
            [options.most_ttl, options.issuing_ttl, options.overlap].map(|time| time.as_secs())
        };
        assert_eq!(times(&[]), [86_400, 2_592_000, 172_800]);
        assert_eq!(times(&["--certificate-ttl", "10"]), [10, 2_592_000, 20]);
        let short = ["--certificate-ttl", "10", "--issuing-ttl", "15", "--root-overlap", "5"];
        assert_eq!(times(&short), [10, 20, 10]);
        let apart = ["--certificate-ttl", "10", "--issuing-ttl", "25", "--root-overlap", "12"];
        assert_eq!(times(&apart), [10, 25, 12]);
    }

    #[test]
    fn objects_come_from_one_place() {
        let from = |flags: &[&str]| Config::try_parse_from(["operator"].iter().chain(flags));
        for (flags, is_on_kubernetes) in
            [(&NEEDED[1..], false), (&["--kubernetes"], true), (&["--kubeconfig", "f"], true)]
        {
            assert_eq!(from(flags).unwrap().is_on_kubernetes(), is_on_kubernetes, "{flags:?}");
        }
        for (bad, named) in [
            (&[][..], "--kubernetes"),
            (&["--objects", "o"], "--status"),
            (&NEEDED[1..5], "--state"),
            (&NEEDED[1..7], "--node-tokens"),
            // What belongs to the other place would be silently unused.
            (&["--kubernetes", "--state", "k"], "--objects"),
            (&["--kubeconfig", "f", "--node-tokens", "t"], "--objects"),
        ] {
            let error = from(bad).unwrap_err().to_string();
            assert!(error.contains(named), "{bad:?}: {error}");
        }
        assert!(from(&[&NEEDED[1..], &["--kubernetes"]].concat()).is_err());
    }

    #[test]
    fn refuses_values_that_cannot_work() {
        for bad in [
            ["--trust-domain", "Not A Domain"],
            ["--listen", "here"],
            ["--certificate-ttl", "0"],
            ["--issuing-ttl", "forever"],
            ["--ready-address", "15021"],
            ["--admin-address", "0.0.0.0:15000"],
        ] {
            assert!(Config::try_parse_from(NEEDED.into_iter().chain(bad)).is_err(), "{bad:?}");
        }
    }
}
