//! The lab's network: a bridge, nodes with a range of pod addresses each, the operator's host and one outside.
//!
//! Every lab has a bridge of its own, so labs may use the same addresses; pods of labs that run side by side still get
//! ranges of their own where the lab's number says so, as an agent may look for a pod on the whole machine by its address.

use std::fs;

use anyhow::Result;
use serde_json::{Value, json};

use crate::{cni, config::Options, netns, paths::Paths, place::Place};

/// The operator's host.
pub(crate) const CONTROL: Host = Host { number: 2 };
/// The host outside of the mesh.
pub(crate) const OUTSIDE: Host = Host { number: 100 };
/// Virtual addresses of services.
pub(crate) const SERVICES_V4: &str = "10.96.0.0/16";
/// Virtual IPv6 addresses of services.
pub(crate) const SERVICES_V6: &str = "fd96::/112";

/// A host on the fabric, known by the last part of its addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    number: u16,
}

impl Host {
    /// The node of an index, 0 for `node-a`.
    pub(crate) fn node(index: usize) -> Self {
        Self { number: 11 + u16::try_from(index).unwrap_or(u16::MAX - 11) }
    }

    pub(crate) fn v4(self) -> String {
        format!("172.30.0.{}", self.number)
    }

    pub(crate) fn v6(self) -> String {
        format!("fd30::{}", self.number)
    }
}

/// How many numbers labs may have: 0, and those that stay clear of the services' addresses.
pub(crate) const NUMBERS: u8 = 150;

/// A node's pod ranges, IPv4 and IPv6, by the lab's number and the node's index.
pub(crate) fn pod_ranges(lab: u8, index: usize) -> (String, String) {
    let number = index + 1;
    let second = if lab == 0 { 61 } else { 100 + lab % NUMBERS };
    (format!("10.{second}.{number}.0/24"), format!("fd61:0:{lab:x}:{number}::/64"))
}

/// What every namespace of a lab is set to. Reno because the kernel's default may pace, which hides what a proxy
/// costs; no rp_filter because kept source addresses look like spoofed ones; no duplicate address detection because
/// it makes every address wait a second.
pub(crate) const SETTINGS: [(&str, &str); 5] = [
    ("ipv4/tcp_congestion_control", "reno"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
];
const FORWARDING: [(&str, &str); 4] = [
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
];
/// Lets NAT see what the pods' bridge carries, so that answers of a pod on the same node find their way back through a
/// service's address; where the kernel lacks it, [`crate::services`] masquerades.
const BRIDGED_NAT: [&str; 2] = ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"];

/// Makes the namespaces and joins them.
pub(crate) fn build(paths: &Paths, options: &Options) -> Result<()> {
    let fabric = paths.namespace(&Place::Fabric);
    netns::add(&fabric, &paths.hosts(None))?;
    for key in BRIDGED_NAT {
        netns::set_if_there(&fabric, key, "0")?;
    }
    netns::ip(&fabric, &["link add br0 type bridge".to_owned(), "link set br0 up".to_owned()])?;

    let nodes = options.node_names();
    let mut hosts = vec![(Place::Control, CONTROL), (Place::Outside, OUTSIDE)];
    hosts.extend(nodes.iter().enumerate().map(|(index, node)| (Place::node(node), Host::node(index))));
    for (place, host) in &hosts {
        attach(paths, place, *host)?;
    }
    for (index, node) in nodes.iter().enumerate() {
        let namespace = paths.namespace(&Place::node(node));
        netns::set(&namespace, &FORWARDING)?;
        for key in BRIDGED_NAT {
            netns::set_if_there(&namespace, key, "1")?;
        }
        let services = [SERVICES_V4, SERVICES_V6].map(|range| format!("route add {range} dev eth0"));
        netns::ip(&namespace, &services)?;
        let (v4, v6) = pod_ranges(options.number, index);
        let via = Host::node(index);
        for (place, _) in hosts.iter().filter(|(place, _)| *place != Place::node(node)) {
            let routes = [format!("route add {v4} via {}", via.v4()), format!("route add {v6} via {}", via.v6())];
            netns::ip(&paths.namespace(place), &routes)?;
        }
    }
    Ok(())
}

/// Makes one host's namespace and its wire to the bridge.
fn attach(paths: &Paths, place: &Place, host: Host) -> Result<()> {
    let (fabric, namespace) = (paths.namespace(&Place::Fabric), paths.namespace(place));
    netns::add(&namespace, &paths.hosts(None))?;
    netns::set(&namespace, &SETTINGS)?;
    netns::ip(
        &fabric,
        &[
            format!("link add {place} type veth peer name eth0 netns {namespace}"),
            format!("link set {place} master br0 up"),
        ],
    )?;
    netns::ip(
        &namespace,
        &[
            format!("addr add {}/24 dev eth0", host.v4()),
            format!("addr add {}/64 dev eth0 nodad", host.v6()),
            "link set eth0 up".to_owned(),
        ],
    )
}

/// Writes the conflist of a node; `ours` is the mesh's plugin.
pub(crate) fn write_conflist(paths: &Paths, options: &Options, node: (usize, &str), ours: Option<Value>) -> Result<()> {
    let directory = paths.node(node.1);
    let (v4, v6) = pod_ranges(options.number, node.0);
    let network = cni::NodeNetwork { allocations: &directory.join("addresses"), pods_v4: &v4, pods_v6: &v6 };
    fs::write(directory.join("lab.conflist"), serde_json::to_vec_pretty(&cni::conflist(&network, ours))?)?;
    Ok(())
}

/// The manifest of a node.
pub(crate) fn node_manifest(options: &Options, index: usize, node: &str) -> Value {
    let (v4, v6) = pod_ranges(options.number, index);
    let host = Host::node(index);
    let zone = node.replace("node", "zone");
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": node, "labels": {
            "kubernetes.io/hostname": node,
            "topology.kubernetes.io/region": "lab",
            "topology.kubernetes.io/zone": zone,
        } },
        "spec": { "podCIDR": v4, "podCIDRs": [v4, v6] },
        "status": { "addresses": [
            { "type": "InternalIP", "address": host.v4() },
            { "type": "InternalIP", "address": host.v6() },
            { "type": "Hostname", "address": node },
        ] },
    })
}
