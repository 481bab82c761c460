//! Another pod of this node, without a tunnel: what its lane is asked, and what the caller gets of it.

use std::{net::SocketAddr, sync::Arc};

use http::StatusCode;
use tokio::{net::TcpStream, sync::oneshot};
use underpass_hbone::{CopyError, Meter, copy::tcp_with_tcp};
use underpass_model::{Authority, Identity};

use crate::pods::Pod;

/// What one pod asks of another: what a CONNECT would say, and what a handshake would have proven.
pub(crate) struct Call {
    /// The called pod.
    pub(crate) pod: Arc<Pod>,
    /// Who calls.
    pub(crate) peer: Identity,
    /// From where.
    pub(crate) client: SocketAddr,
    /// Where a tunnel would end.
    pub(crate) hbone: SocketAddr,
    /// Whither.
    pub(crate) authority: Authority,
    /// The service that was dialled.
    pub(crate) told: Option<Arc<str>>,
    /// Counts the bytes for both halves.
    pub(crate) meter: Arc<Meter>,
}

/// The called pod's application, connected and waiting for bytes.
pub(crate) struct Joined {
    /// Its socket.
    pub(crate) application: TcpStream,
    /// Who answered.
    pub(crate) peer: Identity,
    /// Tells the called pod's half how it ended, and tells us if that half has.
    pub(crate) over: oneshot::Sender<Result<(), CopyError>>,
}

/// Where the called pod's half answers: an error is what a peer would be answered.
pub(crate) type Answer = oneshot::Sender<Result<Joined, StatusCode>>;

impl Joined {
    /// Carries the bytes.
    pub(crate) async fn carry(mut self, downstream: TcpStream, meter: &Meter) -> Result<(), CopyError> {
        let copied = tokio::select! {
            // What the called pod's half may no longer carry must not be carried.
            biased;
            () = self.over.closed() => return Err(CopyError::upstream_reset()),
            copied = tcp_with_tcp(downstream, self.application, meter) => copied,
        };
        let told = copied.as_ref().copied().map_err(CopyError::alike);
        // Nobody listens if that half ended at this very moment.
        drop(self.over.send(told));
        copied
    }
}
