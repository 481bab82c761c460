//! Every setting of the node agent.

use std::{net::SocketAddr, path::PathBuf};

use underpass_runtime::telemetry::LogOptions;

use crate::probe::Kubelet;

/// The Underpass node agent: brings the pods of one node under the mesh.
#[derive(Clone, Debug, clap::Parser)]
#[command(version)]
pub struct Config {
    /// This node's name, as in the pods' `spec.nodeName`
    #[arg(long, env = "UNDERPASS_NODE_NAME")]
    pub node_name: String,
    /// Directory of Kubernetes manifests to read namespaces and pods from
    #[arg(long, value_name = "DIR")]
    pub objects: PathBuf,
    /// Directory in which captured pods are reported to the operator
    #[arg(long, value_name = "DIR")]
    pub status: PathBuf,
    /// Socket for the CNI plugin
    #[arg(long, value_name = "PATH", default_value = "/var/run/underpass/plugin.sock")]
    pub plugin_socket: PathBuf,
    /// Socket on which node proxies are told which pods to serve (ZDS)
    #[arg(long, value_name = "PATH", default_value = "/var/run/underpass/zds.sock")]
    pub zds_socket: PathBuf,
    /// Socket for what ZDS cannot say
    #[arg(long, value_name = "PATH", default_value = "/var/run/underpass/node.sock")]
    pub node_socket: PathBuf,
    /// Directory for what must be known again after a restart
    #[arg(long, value_name = "DIR", default_value = "/var/lib/underpass/agent")]
    pub state: PathBuf,
    /// File in which the plugin finds the enrolled namespaces while the agent is away, also after a reboot
    #[arg(long, value_name = "PATH", default_value = "/var/lib/underpass/enrolled-namespaces")]
    pub enrolled_namespaces: PathBuf,
    /// File with the process id of what probes the pods; without it, processes named like a kubelet are looked for
    #[arg(long, value_name = "PATH")]
    pub kubelet_pid_file: Option<PathBuf>,
    /// The `nft` program
    #[arg(long, value_name = "PATH", default_value = "nft")]
    pub nft: PathBuf,
    /// Address for readiness, metrics and debug pages; without it, none are served
    #[arg(long, value_name = "ADDRESS")]
    pub admin_address: Option<SocketAddr>,
    /// Logs
    #[command(flatten)]
    pub log: LogOptions,
}

impl Config {
    /// How the kubelet is found.
    #[must_use]
    pub fn kubelet(&self) -> Kubelet {
        self.kubelet_pid_file.clone().map_or(Kubelet::ByName, Kubelet::PidFile)
    }
}
