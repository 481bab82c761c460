//! Sockets that the node proxy opens inside pods.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};
use underpass_enrolment::netns;
use underpass_hbone::copy::reset_on_close;
use underpass_model::names::PROXY_MARK;

/// How long the kernel may try to connect. Long enough for one lost SYN and its two repetitions.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Which source address a connection shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceAddress {
    /// One that need not be this pod's: its packets come back by mark and route.
    Keep(IpAddr),
    /// Whatever the pod's routes say.
    Pod,
}

/// Connects from inside a pod's namespace.
pub(crate) async fn connect(netns: BorrowedFd<'_>, to: SocketAddr, source: SourceAddress) -> io::Result<TcpStream> {
    let socket = netns::inside(netns, || {
        Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))
    })??;
    prepare(&socket, to, source)?;
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(to);
    tokio::time::timeout(CONNECT_DEADLINE, connecting).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// [`connect`] for the other end of a connection that we carry: until its bytes have been carried to their end it closes
/// with a reset.
pub(crate) async fn connect_end(netns: BorrowedFd<'_>, to: SocketAddr, source: SourceAddress) -> io::Result<TcpStream> {
    connect(netns, to, source).await.inspect(reset_on_close)
}

fn prepare(socket: &Socket, to: SocketAddr, source: SourceAddress) -> io::Result<()> {
    socket.set_mark(PROXY_MARK)?;
    socket.set_tcp_nodelay(true)?;
    keep_alive(socket)?;
    if let SourceAddress::Keep(address) = source
        && address != to.ip()
    {
        if address.is_ipv4() {
            socket.set_ip_transparent_v4(true)?;
        } else {
            socket.set_ip_transparent_v6(true)?;
        }
        // The port is chosen at connect, when the whole four-tuple is known: else 28,000 connections would exhaust them.
        setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(address, 0).into())?;
    }
    Ok(())
}

/// Finds a peer that vanished without a word within half an hour, as other node proxies do.
pub(super) fn keep_alive(socket: &Socket) -> io::Result<()> {
    const PROBES: u32 = 9;
    let interval = Duration::from_secs(180);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(interval).with_interval(interval).with_retries(PROBES))
}
