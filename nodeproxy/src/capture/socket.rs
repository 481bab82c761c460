//! Sockets that the node proxy opens inside pods.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    ops::Range,
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
    /// Whatever the pod's routes say.
    Any,
    /// That of a client, in whose name the pod's application is called: its packets come back by mark and route.
    Client(IpAddr),
    /// This one of the pod's.
    Own(IpAddr),
}

/// The ports to speak from in a client's name.
///
/// Clients choose their own above (32768 to 60999, unless a host says otherwise), and connections that they made by
/// themselves before their peer was enrolled, or make after it was released, live in the same namespace: a second one
/// with the same addresses gets no answer there.
const CLIENT_PORTS: Range<u16> = 16_384..32_768;
/// How many of them are tried, before the kernel looks among all.
const PORT_TRIES: usize = 8;

/// Connects from inside a pod's namespace.
pub(crate) async fn connect(netns: BorrowedFd<'_>, to: SocketAddr, source: SourceAddress) -> io::Result<TcpStream> {
    let (address, tries) = match source {
        SourceAddress::Client(address) if address != to.ip() => (address, PORT_TRIES),
        SourceAddress::Own(address) if address != to.ip() => (address, 0),
        SourceAddress::Any | SourceAddress::Client(_) | SourceAddress::Own(_) => {
            return connect_from(netns, to, None).await;
        }
    };
    for _ in 0..tries {
        let from = SocketAddr::new(address, fastrand::u16(CLIENT_PORTS));
        match connect_from(netns, to, Some(from)).await {
            Err(error) if is_port_taken(&error) => {}
            connected => return connected,
        }
    }
    connect_from(netns, to, Some(SocketAddr::new(address, 0))).await
}

async fn connect_from(netns: BorrowedFd<'_>, to: SocketAddr, from: Option<SocketAddr>) -> io::Result<TcpStream> {
    let socket = netns::inside(netns, || {
        Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))
    })??;
    prepare(&socket, from)?;
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(to);
    tokio::time::timeout(CONNECT_DEADLINE, connecting).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Whether a connection with the same addresses is there already.
fn is_port_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

/// [`connect`] for the other end of a connection that we carry: until its bytes have been carried to their end it closes
/// with a reset.
pub(crate) async fn connect_end(netns: BorrowedFd<'_>, to: SocketAddr, source: SourceAddress) -> io::Result<TcpStream> {
    connect(netns, to, source).await.inspect(reset_on_close)
}

fn prepare(socket: &Socket, from: Option<SocketAddr>) -> io::Result<()> {
    socket.set_mark(PROXY_MARK)?;
    socket.set_tcp_nodelay(true)?;
    keep_alive(socket)?;
    let Some(from) = from else { return Ok(()) };
    if from.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_ip_transparent_v6(true)?;
    }
    // Whether an address is taken is decided at connect, by the whole four-tuple: else so many connections as there are
    // ports would exhaust them, wherever they lead.
    if from.port() == 0 {
        setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
    } else {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&from.into())
}

/// Finds a peer that vanished without a word within half an hour, as other node proxies do.
pub(super) fn keep_alive(socket: &Socket) -> io::Result<()> {
    const PROBES: u32 = 9;
    let interval = Duration::from_secs(180);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(interval).with_interval(interval).with_retries(PROBES))
}
