//! Step one: a connection of a captured pod comes in.
//!
//! Sockets live in the pod's network namespace; the threads that serve them never stay there.

mod listener;
mod original_dst;
pub(crate) mod socket;
mod watch;

use std::{net::SocketAddr, sync::Arc};

use tokio::net::TcpStream;

pub(crate) use listener::{Door, Listeners};
pub(crate) use original_dst::{CaptureError, canonical};
pub(crate) use watch::{Knock, Watch, Watched};

use crate::{
    budget::{Over, Share},
    pods::Pod,
};

use original_dst::original_dst;

/// One redirected connection taken inside a pod.
pub(crate) struct Captured {
    /// The accepted socket.
    pub(crate) stream: TcpStream,
    /// Who connected, as the socket says.
    pub(crate) client: SocketAddr,
    /// What it dialled, before redirection.
    pub(crate) original_dst: SocketAddr,
    /// The pod in whose namespace the socket is.
    pub(crate) pod: Arc<Pod>,
}

impl Captured {
    /// What the client wanted before it was redirected to us, and whether there is room for it.
    pub(crate) fn of(knock: Knock) -> Result<(Self, Result<Share, Over>), CaptureError> {
        let original_dst = original_dst(&knock.stream)?;
        Ok((Self { stream: knock.stream, client: knock.client, original_dst, pod: knock.pod }, knock.share))
    }
}
