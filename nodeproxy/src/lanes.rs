//! The order of the steps, nothing else: capture → identify → resolve → authorise → tunnel → copy → account.

mod classes;
mod inbound;
mod joined;
mod outbound;
mod plaintext;

use std::rc::Rc;

use tokio::net::TcpStream;
use underpass_discovery::AskError;
use underpass_hbone::{
    AcceptError, CopyError, Meter, RequestError, StreamError, TunnelStream,
    copy::{tcp_with_tcp, tcp_with_tunnel, tunnel_with_tcp},
};
use underpass_identity::store::StoreError;
use underpass_model::WorkloadUid;
use underpass_policy::{Denial, Refusal};

use crate::{
    account::Failed,
    authorize::AdmitError,
    budget::Over,
    capture::{CaptureError, Door, Knock},
    connections::{Arrival, Ended, Lease},
    resolve::{ResolveError, inbound::ResolveInboundError},
    tunnel::{DialError, Upstream},
    worker::{self, Worker},
};

/// Where a connection failed: one variant a step.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A peer's handshake.
    #[error("handshake")]
    Accept(#[from] AcceptError),
    /// Not allowed.
    #[error("denied")]
    Authorize(#[from] Denial),
    /// No room for it.
    #[error("budget")]
    Budget(#[from] Over),
    /// The peer gave up before it was answered.
    #[error("the peer gave up")]
    Cancelled,
    /// Not a connection of ours.
    #[error("capture")]
    Capture(#[from] CaptureError),
    /// This pod cannot prove who it is.
    #[error("own certificate")]
    Certificate(#[from] StoreError),
    /// The bytes.
    #[error("copy")]
    Copy(#[from] CopyError),
    /// The way onwards.
    #[error("dial")]
    Dial(#[from] DialError),
    /// The pod goes.
    #[error("ended")]
    Ended(#[from] Ended),
    /// A peer that gave up before it was answered.
    #[error("answer")]
    Answer(#[from] StreamError),
    /// Over before anybody could tell whether it was a probe; nothing speaks for it, and nobody waits for an answer.
    #[error("closed before it could be told who it was")]
    ClosedEarly,
    /// Nobody told yet what this pod is under.
    #[error("workload {0} is not known yet, nor what it is under")]
    OwnUnknown(WorkloadUid),
    /// A peer's request.
    #[error("request")]
    Request(#[from] RequestError),
    /// Nowhere to go.
    #[error("resolve")]
    Resolve(#[from] ResolveError),
    /// A peer's target.
    #[error("resolve")]
    ResolveInbound(#[from] ResolveInboundError),
    /// Nobody said who is at the destination.
    #[error("resolve")]
    Ask(#[from] AskError),
    /// The mesh is not known yet.
    #[error("the mesh is not known yet: no complete answer from the operator")]
    View,
}

impl Failure {
    /// The stable label of this failure in logs and metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Accept(error) => error.reason(),
            Self::Answer(error) => error.reason(),
            Self::Ask(error) => error.reason(),
            Self::Authorize(error) => error.reason(),
            Self::Budget(over) => over.reason(),
            Self::Cancelled => "peer_gave_up",
            Self::Capture(error) => error.reason(),
            Self::Certificate(error) => error.reason(),
            Self::Copy(error) => error.reason(),
            Self::Dial(error) => error.reason(),
            Self::ClosedEarly => "closed_early",
            Self::Ended(error) => error.reason(),
            Self::OwnUnknown(_) => "own_workload_unknown",
            Self::Request(error) => error.reason(),
            Self::Resolve(error) => error.reason(),
            Self::ResolveInbound(error) => error.reason(),
            Self::View => "view_pending",
        }
    }

    fn failed(&self) -> Failed<'_> {
        Failed { step: self.step(), flag: self.flag(), reason: self.reason(), error: self, refusal: self.refusal() }
    }

    /// What policies have against it, if it is they.
    fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Authorize(denial) => denial.refusal(),
            Self::Ended(Ended::Revoked(live)) => live.why().and_then(Denial::refusal),
            Self::Accept(_)
            | Self::Answer(_)
            | Self::Ask(_)
            | Self::Budget(_)
            | Self::Cancelled
            | Self::Capture(_)
            | Self::Certificate(_)
            | Self::ClosedEarly
            | Self::Copy(_)
            | Self::Dial(_)
            | Self::Ended(Ended::Pod)
            | Self::OwnUnknown(_)
            | Self::Request(_)
            | Self::Resolve(_)
            | Self::ResolveInbound(_)
            | Self::View => None,
        }
    }
}

impl From<AdmitError> for Failure {
    fn from(error: AdmitError) -> Self {
        match error {
            AdmitError::Denied(denial) => Self::Authorize(denial),
            AdmitError::Ended(ended) => Self::Ended(ended),
            AdmitError::OwnUnknown(workload) => Self::OwnUnknown(workload),
        }
    }
}

/// Sends a new connection down its lane.
pub(crate) fn enter((knock, arrival): (Knock, Arrival), worker: &Rc<Worker>) {
    let worker = Rc::clone(worker);
    match knock.door {
        Door::Hbone => {
            let open = knock.pod.connections.tunnel();
            // Its streams are connections; it is none.
            drop(arrival);
            worker::carry(inbound::tunnel(knock, open, worker));
        }
        Door::Outbound => worker::carry(outbound::run(knock, arrival, worker)),
        Door::Plaintext => worker::carry(plaintext::run(knock, arrival, worker)),
    }
}

/// Step six. A lease that ends wins over whatever that does to the bytes.
async fn copy(downstream: TcpStream, upstream: Upstream, lease: &Lease<'_>, meter: &Meter) -> Result<(), Failure> {
    let both_ways = async {
        match upstream {
            Upstream::Tcp(upstream) => tcp_with_tcp(downstream, upstream, meter).await,
            Upstream::Joined(upstream) => upstream.carry(downstream, meter).await,
            Upstream::Tunnel(upstream, _) => tcp_with_tunnel(downstream, *upstream, meter).await,
        }
    };
    Ok(lease.unless_ended(both_ways).await??)
}

/// Step six for a peer's stream: the peer is the tunnel, the application TCP.
async fn copy_inbound(
    stream: TunnelStream,
    application: TcpStream,
    lease: &Lease<'_>,
    meter: &Meter,
) -> Result<(), Failure> {
    Ok(lease.unless_ended(tunnel_with_tcp(stream, application, meter)).await??)
}
