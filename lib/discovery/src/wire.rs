//! The discovery protocol's messages, generated from `proto/`, and what both of its ends must agree on.

pub mod convert;

/// `istio.workload`: workloads and services.
#[expect(
    missing_docs,
    clippy::large_enum_variant,
    reason = "generated; the fields are described in proto/workload.proto"
)]
pub mod workload {
    tonic::include_proto!("istio.workload");
}

/// `istio.security`: authorization policies of layer 4.
#[expect(missing_docs, reason = "generated; the fields are described in proto/security.proto")]
pub mod security {
    tonic::include_proto!("istio.security");
}

/// `underpass.trust`: revocations.
#[expect(missing_docs, reason = "generated; the fields are described in proto/trust.proto")]
pub mod trust {
    tonic::include_proto!("underpass.trust");
}

/// `envoy.service.discovery.v3`: the delta variant of aggregated discovery.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes_without_reason,
    reason = "generated; the fields are described in proto/xds.proto"
)]
pub mod xds {
    tonic::include_proto!("envoy.service.discovery.v3");
}

/// The types of resources that the mesh knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// Workloads and services.
    Address,
    /// Authorization policies of layer 4.
    Authorization,
    /// Certificates that are no longer believed.
    Revocation,
}

impl ResourceType {
    /// All of them, in the order in which a subscriber should be filled: nobody who is revoked slips in meanwhile.
    pub const ALL: [Self; 3] = [Self::Revocation, Self::Address, Self::Authorization];

    /// The name on the wire.
    #[must_use]
    pub const fn url(self) -> &'static str {
        match self {
            Self::Address => "type.googleapis.com/istio.workload.Address",
            Self::Authorization => "type.googleapis.com/istio.security.Authorization",
            Self::Revocation => "type.googleapis.com/underpass.trust.Revocation",
        }
    }

    /// Whether nothing may be believed to be known before the first push of this type. Other control planes than ours
    /// know no revocations and never push any; ours pushes them before all else.
    #[must_use]
    pub const fn is_awaited(self) -> bool {
        match self {
            Self::Address | Self::Authorization => true,
            Self::Revocation => false,
        }
    }

    /// Reads the name on the wire.
    #[must_use]
    pub fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }
}

/// The name that stands for every resource of a type.
pub const WILDCARD: &str = "*";

/// Node metadata by which a subscriber says that it understands [`PARTIAL`].
///
/// A subscriber is complete when it has heard the first push of every type. Control planes of this protocol send a push
/// as one message, and a subscriber cannot tell whether more follows; so ours splits the *first* push only for those
/// that declare this key (value `true`), and marks each part but the last.
pub const UNDERSTANDS_PARTIAL: &str = "UNDERPASS_PARTIAL_PUSHES";

/// Beginning of `system_version_info` of a response after which more of the same push follows.
pub const PARTIAL: &str = "underpass-partial/";

/// No message is longer, in either direction.
pub const MESSAGE_LIMIT: usize = 200 << 20;
