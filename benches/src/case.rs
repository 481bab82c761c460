//! The ways that a connection can take, side by side.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A way from a client's pod to a server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Case {
    /// Without the mesh, to a pod on another node
    Direct,
    /// Without the mesh, to a pod on the same node
    DirectNear,
    /// Through the mesh, to a pod on another node
    Across,
    /// Through the mesh, to a pod on the same node
    SameNode,
    /// Through the mesh, to a pod on the same node, with tunnels forced
    Forced,
    /// From a pod of the mesh to one outside of it on another node
    PassThrough,
}

impl Case {
    /// What its figures are divided by.
    pub(crate) fn base(self) -> Self {
        match self {
            Self::Direct | Self::Across | Self::PassThrough => Self::Direct,
            Self::DirectNear | Self::SameNode | Self::Forced => Self::DirectNear,
        }
    }

    /// Whether node proxies carry it.
    pub(crate) fn is_meshed(self) -> bool {
        self.base() != self
    }

    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::DirectNear => "direct-near",
            Self::Across => "across",
            Self::SameNode => "same-node",
            Self::Forced => "forced",
            Self::PassThrough => "pass-through",
        }
    }
}
