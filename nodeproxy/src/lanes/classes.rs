//! How failures are counted: the step that failed, and Istio's flag.

use underpass_hbone::{AcceptError, ConnectError, OpenError};

use super::Failure;
use crate::{account::ResponseFlag, connections::Ended, tunnel::DialError};

impl Failure {
    /// How far the connection came.
    pub(super) fn step(&self) -> &'static str {
        match self {
            Self::Accept(_) => "handshake",
            Self::Authorize(_) | Self::ClosedEarly | Self::OwnUnknown(_) => "authorise",
            Self::Budget(_) | Self::Capture(_) => "capture",
            Self::Certificate(_) | Self::Dial(DialError::Certificate(..)) => "certificate",
            Self::Cancelled | Self::Copy(_) | Self::Ended(_) => "copy",
            Self::Dial(DialError::Connect(..) | DialError::Tunnel(..)) | Self::Answer(_) => "tunnel",
            Self::Request(_) => "request",
            Self::Ask(_) | Self::Resolve(_) | Self::ResolveInbound(_) | Self::View => "resolve",
        }
    }

    /// What Istio's metrics call it. What ends a connection that had reached its server is no failure to them.
    pub(super) fn flag(&self) -> ResponseFlag {
        match self {
            Self::Accept(error) => match error {
                AcceptError::Http2(_) | AcceptError::Protocol => ResponseFlag::Http2,
                AcceptError::Peer(_) => ResponseFlag::Identity,
                AcceptError::Timeout(_) | AcceptError::Tls(_) => ResponseFlag::Tls,
            },
            Self::Authorize(_) | Self::Ended(Ended::Revoked(_)) => ResponseFlag::Deny,
            Self::Certificate(_) | Self::Dial(DialError::Certificate(..)) => ResponseFlag::Identity,
            Self::Dial(DialError::Tunnel(_, OpenError::Connect { source, .. })) => match source.as_ref() {
                ConnectError::Dial(_) => ResponseFlag::Connect,
                ConnectError::Http2(_) | ConnectError::Protocol => ResponseFlag::Http2,
                ConnectError::Peer(_) => ResponseFlag::Identity,
                ConnectError::Timeout { step: "dial", .. } => ResponseFlag::NetworkPolicy,
                ConnectError::Timeout { .. } | ConnectError::Tls(_) => ResponseFlag::Tls,
            },
            Self::Dial(_)
            | Self::Answer(_)
            | Self::Ask(_)
            | Self::Budget(_)
            | Self::Capture(_)
            | Self::OwnUnknown(_)
            | Self::Request(_)
            | Self::Resolve(_)
            | Self::ResolveInbound(_)
            | Self::View => ResponseFlag::Connect,
            Self::Cancelled | Self::ClosedEarly | Self::Copy(_) | Self::Ended(Ended::Pod) => ResponseFlag::None,
        }
    }
}
