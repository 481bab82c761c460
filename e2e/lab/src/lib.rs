//! A lab: nodes and pods made of network namespaces on one Linux machine, and the real programs of the mesh in them.
//!
//! Pods are made by a real CNI chain (bridge and host-local, then ours), any program can run in them, and everything a
//! lab makes is gone after [`Lab::down`]. It is small on purpose: no controllers, no scheduler, no restarts. It writes a
//! pod's manifest and status, names in a hosts file, and the NAT that gives services their addresses for pods that are
//! not captured; it computes nothing that the mesh should.
//!
//! Needs root, `ip`, `nft`, `tcpdump` and the CNI reference plugins; [`Lab::up`] says what is missing.

pub mod config;
pub mod lab;
pub mod load;
pub mod mesh;
pub mod objects;
pub mod paths;
pub mod place;
pub mod pod;
pub mod probe;
pub mod process;
pub mod wait;
pub mod wire;

mod cni;
mod http;
mod netns;
mod preflight;
mod programs;
mod services;
mod topology;
mod upgrade;

pub use config::Options;
pub use lab::{Lab, ScopedLab};
pub use load::{Load, LoadReport, Target};
pub use mesh::{AGENT_CAPABILITIES, NODE_PROXY_CAPABILITIES, Program};
pub use objects::{ObjectName, parse_change};
pub use place::{Place, PodName};
pub use pod::{Pod, PodSpec};
pub use probe::{Probe, ProbeAnswer};
pub use process::{Output, Process};
pub use upgrade::Former;
pub use wait::{eventually, interrupt, until};
pub use wire::{Capture, Segment, Wire};
