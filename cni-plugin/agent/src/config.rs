//! Every setting of the node agent.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use underpass_runtime::telemetry::LogOptions;

use crate::{install::Place, probe::Kubelet};

/// The Underpass node agent: brings the pods of one node under the mesh.
#[derive(Clone, Debug, clap::Parser)]
#[command(version, after_help = "To take everything off the node again: underpass-agent uninstall --help")]
pub struct Config {
    /// This node's name, as in the pods' `spec.nodeName`
    #[arg(long, env = "UNDERPASS_NODE_NAME")]
    pub node_name: String,
    /// Read namespaces and this node's pods from the API server, and report captured pods there
    #[arg(long)]
    pub kubernetes: bool,
    /// Kubeconfig for that [default: the pod's own service account]
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    pub kubeconfig: Option<PathBuf>,
    /// Directory of Kubernetes manifests to read namespaces and pods from instead
    #[arg(long, value_name = "DIR", required_unless_present = "kubernetes", conflicts_with = "kubernetes")]
    pub objects: Option<PathBuf>,
    /// Directory in which captured pods are reported to the operator then
    #[arg(long, value_name = "DIR", required_unless_present = "kubernetes", conflicts_with = "kubernetes")]
    pub status: Option<PathBuf>,
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
    /// Keep this program installed as the last CNI plugin of the node's chain
    #[arg(long, value_name = "PROGRAM")]
    pub install_plugin: Option<PathBuf>,
    /// Where it is installed
    #[command(flatten)]
    pub place: PlaceOptions,
    /// The `nft` program
    #[arg(long, value_name = "PATH", default_value = "nft")]
    pub nft: PathBuf,
    /// Address for readiness, metrics and debug pages; without it, none are served
    #[arg(long, value_name = "ADDRESS")]
    pub admin_address: Option<SocketAddr>,
    /// Address for metrics alone, for who must not reach the debug pages
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_address: Option<SocketAddr>,
    /// Logs
    #[command(flatten)]
    pub log: LogOptions,
}

/// Takes everything that the agent left on this node away: the plugin, the rules in pods, files.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "underpass-agent uninstall", version)]
pub struct UninstallOptions {
    /// Where the plugin is installed
    #[command(flatten)]
    pub place: PlaceOptions,
    /// Directory with what the mesh keeps on this node
    #[arg(long, value_name = "DIR", default_value = "/var/lib/underpass")]
    pub state: PathBuf,
    /// Directory with the mesh's sockets
    #[arg(long, value_name = "DIR", default_value = "/var/run/underpass")]
    pub run: PathBuf,
    /// The `nft` program
    #[arg(long, value_name = "PATH", default_value = "nft")]
    pub nft: PathBuf,
    /// Stay, doing nothing, once all is done, until asked to stop: a DaemonSet whose pods run has cleaned every node
    #[arg(long)]
    pub stay: bool,
    /// Logs
    #[command(flatten)]
    pub log: LogOptions,
}

impl UninstallOptions {
    /// What an agent with those settings has left.
    #[must_use]
    pub fn after(config: &Config) -> Self {
        let parent = |path: &PathBuf| path.parent().map_or_else(|| path.clone(), Path::to_owned);
        Self {
            place: config.place.clone(),
            state: parent(&config.enrolled_namespaces),
            run: parent(&config.plugin_socket),
            nft: config.nft.clone(),
            stay: false,
            log: config.log.clone(),
        }
    }
}

/// Where the node has its CNI plugins; what is not said is found out from the container runtime.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct PlaceOptions {
    /// Where the node's file system is for the agent [default: as the container runtime sees it]
    #[arg(long, value_name = "DIR")]
    pub cni_root: Option<PathBuf>,
    /// The node's directory of network configurations [default: the container runtime's]
    #[arg(long, value_name = "DIR")]
    pub cni_configurations: Option<PathBuf>,
    /// The node's directory of CNI plugins [default: the container runtime's]
    #[arg(long, value_name = "DIR")]
    pub cni_binaries: Option<PathBuf>,
}

impl From<&PlaceOptions> for Place {
    fn from(options: &PlaceOptions) -> Self {
        let PlaceOptions { cni_root, cni_configurations, cni_binaries } = options.clone();
        Self { root: cni_root, configurations: cni_configurations, binaries: cni_binaries }
    }
}

impl Config {
    /// How the kubelet is found.
    #[must_use]
    pub fn kubelet(&self) -> Kubelet {
        self.kubelet_pid_file.clone().map_or(Kubelet::ByName, Kubelet::PidFile)
    }
}
