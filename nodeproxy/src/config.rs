//! Every setting of the node proxy.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::Parser;
use underpass_model::TrustDomain;
use underpass_runtime::{admin, control::ControlOptions, telemetry::LogOptions};

/// Carries the traffic of this node's enrolled pods with mutual TLS and workload identity.
#[derive(Clone, Debug, Parser)]
#[command(name = "underpass-nodeproxy", version)]
pub(crate) struct Config {
    /// The node that this proxy serves, as Kubernetes names it
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub(crate) node_name: String,
    /// The cluster's name, as discovery uses it
    #[arg(long, env = "UNDERPASS_CLUSTER", default_value = underpass_model::names::DEFAULT_CLUSTER, value_name = "NAME")]
    pub(crate) cluster: String,
    /// The network in which this node's pods have their addresses; empty is the cluster's own
    #[arg(long, env = "UNDERPASS_NETWORK", default_value = "", value_name = "NAME")]
    pub(crate) network: String,
    /// The root under which this node's identities are valid
    #[arg(long, env = "UNDERPASS_TRUST_DOMAIN", default_value = "cluster.local", value_name = "NAME")]
    pub(crate) trust_domain: TrustDomain,
    /// Threads that carry connections; unset: the CPU limit, else a quarter of the cores, at least 2 and at most 8
    #[arg(long, env = "UNDERPASS_WORKERS", value_name = "COUNT")]
    pub(crate) workers: Option<NonZeroUsize>,

    /// Where the operator is
    #[command(flatten)]
    pub(crate) control: ControlOptions,
    /// Another certificate authority than the operator
    #[command(flatten)]
    pub(crate) authority: AuthorityOptions,
    /// Ask the operator for each unknown destination instead of holding the whole mesh
    #[arg(long, env = "UNDERPASS_ON_DEMAND")]
    pub(crate) on_demand: bool,
    /// With --on-demand: the ranges in which the mesh has its addresses; an unanswered question about an address outside
    /// of them lets the connection pass, inside it is refused. None: all are inside
    #[arg(long, env = "UNDERPASS_MESH_RANGES", value_delimiter = ',', value_name = "CIDR,...")]
    pub(crate) mesh_ranges: Vec<ipnet::IpNet>,
    /// Use tunnels between pods of this node, too, where they could be joined directly
    #[arg(long, env = "UNDERPASS_ALWAYS_TUNNEL")]
    pub(crate) always_tunnel: bool,
    /// File in which a copy of the mesh is kept, so that a proxy that starts without the operator still knows it
    #[arg(long, env = "UNDERPASS_VIEW_FILE", value_name = "FILE")]
    pub(crate) view_file: Option<PathBuf>,
    /// File, mode 0600, on a memory-backed file system, that lets a restarted proxy serve at once; refused on a disk
    #[arg(long, env = "UNDERPASS_CERTIFICATES_FILE", value_name = "FILE")]
    pub(crate) certificates_file: Option<PathBuf>,
    /// File of certificate revocation lists (X.509 CRLs; PEM, or one in DER) of other authorities than the operator's
    #[arg(long, env = "CRL_PATH", value_name = "FILE")]
    pub(crate) revocation_lists: Option<PathBuf>,
    /// Socket on which the node agent hands over pods (ZDS)
    #[arg(long, default_value = "/var/run/underpass/zds.sock", value_name = "PATH")]
    pub(crate) zds_socket: PathBuf,
    /// Socket on which listeners, releases and probe questions go; `none` where the agent has no such socket (Istio's)
    #[arg(long, default_value = "/var/run/underpass/node.sock", value_name = "PATH")]
    pub(crate) node_socket: PathBuf,

    /// Where metrics are served
    #[arg(long, default_value = "0.0.0.0:15020", value_name = "ADDRESS")]
    pub(crate) metrics_address: SocketAddr,
    /// Where readiness is served
    #[arg(long, default_value = "0.0.0.0:15021", value_name = "ADDRESS")]
    pub(crate) ready_address: SocketAddr,
    /// Where debugging pages are served; a loopback address
    #[arg(long, default_value = "127.0.0.1:15000", value_parser = admin::loopback, value_name = "ADDRESS")]
    pub(crate) admin_address: SocketAddr,
    /// The most sets of labels under which connections are counted; the others are counted together as `overflow`
    #[arg(long, env = "UNDERPASS_METRICS_LABEL_SETS", default_value = "10000", value_name = "COUNT")]
    pub(crate) metrics_label_sets: usize,

    /// How long a tunnel without connections is kept for the next one, in seconds
    #[arg(long, env = "UNDERPASS_TUNNEL_IDLE_SECONDS", default_value = "300", value_parser = seconds, value_name = "SECONDS")]
    pub(crate) tunnel_idle: Duration,
    /// How long connections may go on after a wish to stop, in seconds
    #[arg(long, env = "UNDERPASS_DRAIN_SECONDS", default_value = "25", value_parser = seconds, value_name = "SECONDS")]
    pub(crate) drain: Duration,
    /// Run the proxy as a child and start it again at once when it crashes, as the first process of a container should
    #[arg(long)]
    pub(crate) supervise: bool,
    /// How to log
    #[command(flatten)]
    pub(crate) log: LogOptions,
}

/// Where certificates come from if not from the operator: any server of the same protocol. What is not set is as for the
/// operator.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct AuthorityOptions {
    /// Address of another certificate authority, as `https://HOST:PORT`
    #[arg(id = "ca-address", long = "ca-address", env = "UNDERPASS_CA_ADDRESS", value_name = "URL")]
    address: Option<String>,
    /// File with the root certificates (PEM) that may vouch for its server
    #[arg(id = "ca-root", long = "ca-root", env = "UNDERPASS_CA_ROOT", value_name = "FILE")]
    root_file: Option<PathBuf>,
    /// The name that its server's certificate must carry
    #[arg(id = "ca-name", long = "ca-name", env = "UNDERPASS_CA_NAME", value_name = "DNS-NAME")]
    server_name: Option<String>,
    /// File with the token that proves to it who we are
    #[arg(id = "ca-token-file", long = "ca-token-file", env = "UNDERPASS_CA_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl Config {
    /// How to reach whoever signs certificates.
    #[must_use]
    pub(crate) fn authority(&self) -> ControlOptions {
        let (own, operator) = (self.authority.clone(), self.control.clone());
        ControlOptions {
            address: own.address.unwrap_or(operator.address),
            root_file: own.root_file.unwrap_or(operator.root_file),
            server_name: own.server_name.unwrap_or(operator.server_name),
            token_file: own.token_file.unwrap_or(operator.token_file),
        }
    }

    /// The node agent's second socket, if it has one.
    #[must_use]
    pub(crate) fn node_socket(&self) -> Option<PathBuf> {
        (self.node_socket.as_os_str() != "none").then(|| self.node_socket.clone())
    }

    /// How many threads carry connections.
    #[must_use]
    pub(crate) fn workers(&self) -> usize {
        const MOST: usize = 8;
        let cores = online_cores();
        // The standard library knows the CPU limit of cgroups and the affinity; equal to the cores means: no limit.
        let allowed = std::thread::available_parallelism().map_or(cores, NonZeroUsize::get);
        let share = if allowed < cores { allowed } else { (cores / 4).max(2) };
        self.workers.map_or(share.min(MOST), NonZeroUsize::get)
    }
}

fn online_cores() -> usize {
    nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN)
        .ok()
        .flatten()
        .and_then(|count| usize::try_from(count).ok())
        .unwrap_or(1)
}

fn seconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_come_from_the_operator_unless_another_authority_is_named() {
        let parse = |more: &[&str]| {
            let argv = ["underpass-nodeproxy", "--node-name=a", "--operator-address=https://operator:1"];
            Config::try_parse_from(argv.iter().chain(more)).unwrap().authority()
        };
        assert_eq!(parse(&[]).address, "https://operator:1");
        let other = parse(&["--ca-address=https://ca:2", "--ca-name=ca.example", "--ca-root=/ca.pem"]);
        assert_eq!((other.address.as_str(), other.server_name.as_str()), ("https://ca:2", "ca.example"));
        assert_eq!(other.root_file, PathBuf::from("/ca.pem"));
        assert_eq!(other.token_file, parse(&[]).token_file);
    }

    #[test]
    fn debugging_pages_that_others_could_reach_are_refused_with_the_reason() {
        let needed = ["underpass-nodeproxy", "--node-name=a"];
        let with = |address| Config::try_parse_from(needed.into_iter().chain(["--admin-address", address]));
        assert!(with("[::1]:15000").is_ok());
        let story = with("0.0.0.0:15000").unwrap_err().to_string();
        assert!(story.contains("--admin-address") && story.contains("ask for no credentials"), "{story}");
    }
}
