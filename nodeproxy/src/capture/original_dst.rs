//! What a redirected client dialled.

use std::{io, net::SocketAddr};

use socket2::SockRef;
use tokio::net::TcpStream;

/// Connection tracking knows no original destination: the connection was not redirected by the pod's rules.
#[derive(Debug, thiserror::Error)]
#[error("the kernel knows no original destination")]
pub(crate) struct NoOriginalDst(#[source] io::Error);

/// `SO_ORIGINAL_DST` of the IPv4 layer, then of the IPv6 layer: a dual-stack socket carries either.
pub(crate) fn original_dst(stream: &TcpStream) -> Result<SocketAddr, NoOriginalDst> {
    let socket = SockRef::from(stream);
    let address = match socket.original_dst_v4() {
        Ok(address) => address,
        Err(_not_ipv4) => socket.original_dst_v6().map_err(NoOriginalDst)?,
    };
    address.as_socket().map(canonical).ok_or_else(|| NoOriginalDst(io::ErrorKind::AddrNotAvailable.into()))
}

/// IPv4 in IPv6 clothes is IPv4, everywhere behind the listeners.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
