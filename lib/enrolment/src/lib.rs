//! How a pod comes under the mesh: what the CNI plugin, the node agent and the node proxy tell each other.
//!
//! | seam | who | here |
//! |---|---|---|
//! | `plugin.sock` | plugin asks agent | [`plugin`]: JSON lines, no runtime |
//! | `zds.sock` | agent tells proxy which pods to serve | [`zds`]: protobuf, one descriptor |
//! | `node.sock` | both ways, what ZDS cannot say | [`node`]: protobuf, listeners as descriptors |
//!
//! [`seqpacket`] carries the latter two; [`netns`] is how both processes act inside a pod. Nothing here decides
//! anything: who is enrolled, when to wait and what to do about a failure is the programs' business.

pub mod plugin;

#[cfg(feature = "netns")]
pub mod netns;

#[cfg(feature = "async")]
pub mod message;
#[cfg(feature = "async")]
pub mod node;
#[cfg(feature = "async")]
pub mod seqpacket;
#[cfg(feature = "async")]
pub mod zds;

#[cfg(feature = "async")]
mod wire;
