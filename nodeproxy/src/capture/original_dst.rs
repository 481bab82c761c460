//! What a redirected client dialled.

use std::{io, net::SocketAddr};

use socket2::SockRef;
use tokio::net::TcpStream;

/// Why a connection at one of our doors is not a captured one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaptureError {
    /// It was dialled to our port. Carried on, it would come back to us, without end.
    #[error("{0} was dialled directly, which only the rules may do")]
    NotRedirected(SocketAddr),
    /// Connection tracking knows no original destination.
    #[error("the kernel knows no original destination")]
    Unknown(#[source] io::Error),
}

impl CaptureError {
    /// The stable label of this failure in logs and metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NotRedirected(_) => "own_port",
            Self::Unknown(_) => "no_original_destination",
        }
    }
}

/// `SO_ORIGINAL_DST` of the IPv4 layer, then of the IPv6 layer: a dual-stack socket carries either.
pub(super) fn original_dst(stream: &TcpStream) -> Result<SocketAddr, CaptureError> {
    let socket = SockRef::from(stream);
    let address = match socket.original_dst_v4() {
        Ok(address) => address,
        Err(_not_ipv4) => socket.original_dst_v6().map_err(CaptureError::Unknown)?,
    };
    let no_address = || CaptureError::Unknown(io::ErrorKind::AddrNotAvailable.into());
    let address = address.as_socket().map(canonical).ok_or_else(no_address)?;
    let local = stream.local_addr().map(canonical).map_err(CaptureError::Unknown)?;
    if address == local { Err(CaptureError::NotRedirected(address)) } else { Ok(address) }
}

/// IPv4 in IPv6 clothes is IPv4, everywhere behind the listeners.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
