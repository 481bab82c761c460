//! What a decision may look at.

use std::net::{IpAddr, SocketAddr};

use underpass_model::Identity;

/// Who speaks, and how we know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A pod of this node: the one whose network namespace the socket is in.
    Local(Identity),
    /// Whoever holds the certificate that ended the handshake.
    Peer(Identity),
    /// Nobody we can name: plaintext from this address.
    Stranger(IpAddr, Origin),
}

impl Source {
    /// The identity that was proven, if one was.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Local(identity) | Self::Peer(identity) => Some(identity),
            Self::Stranger(..) => None,
        }
    }
}

/// What the node knows of a plaintext connection's client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// Closed before anybody could tell who it was.
    Gone,
    /// A process of the node itself that is not the kubelet.
    Host,
    /// The kubelet of this node: a probe.
    Kubelet,
    /// Another machine, or a pod, or not asked.
    #[default]
    Remote,
}

/// Where the connection is to go next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// To the application in this pod.
    Application,
    /// Out of the mesh as it came.
    Passthrough,
    /// To a workload that the mesh knows, in a tunnel or in plaintext.
    Workload,
}

/// All that a decision sees.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Who speaks.
    pub source: &'a Source,
    /// The address that the connection came from: the client pod's, or a waypoint's, or that of whatever translated it.
    pub client: IpAddr,
    /// The pod whose lane this is. Other identities are believed only under its trust domain.
    pub own: &'a Identity,
    /// Where it goes.
    pub hop: Hop,
    /// The address it goes to, after target-port mapping.
    pub destination: SocketAddr,
}
