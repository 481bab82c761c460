//! The three listeners of a captured pod.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, Socket, Type};
use underpass_enrolment::netns;
use underpass_model::names::{HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT, PROXY_MARK};

/// Connections that may wait to be accepted, for each listener; the kernel's own limit (`somaxconn`) is usually 4096.
const BACKLOG: i32 = 4096;

/// Which of a pod's listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Door {
    /// 15008: tunnels from peers.
    Hbone,
    /// 15001: what the pod's applications dial.
    Outbound,
    /// 15006: plaintext from outside the mesh.
    Plaintext,
}

/// A pod's three listening sockets. Duplicates of them may live in the node agent and in another node proxy.
#[derive(Debug)]
pub(crate) struct Listeners {
    outbound: Socket,
    plaintext: Socket,
    hbone: Socket,
}

impl Door {
    /// All, in the order in which descriptors travel.
    pub(crate) const ALL: [Self; 3] = [Self::Outbound, Self::Plaintext, Self::Hbone];

    /// The port.
    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Hbone => HBONE_PORT,
            Self::Outbound => OUTBOUND_PORT,
            Self::Plaintext => INBOUND_PLAINTEXT_PORT,
        }
    }
}

impl Listeners {
    /// Makes them in a pod's namespace.
    pub(crate) fn make(netns: BorrowedFd<'_>) -> io::Result<Self> {
        netns::inside(netns, || {
            Ok(Self {
                outbound: listen(OUTBOUND_PORT)?,
                plaintext: listen(INBOUND_PLAINTEXT_PORT)?,
                hbone: listen(HBONE_PORT)?,
            })
        })?
    }

    /// Takes those that the agent kept; `None` unless each port is there once.
    pub(crate) fn adopt(descriptors: Vec<(u16, OwnedFd)>) -> Option<Self> {
        let mut found = [None, None, None];
        for (port, descriptor) in descriptors {
            let index = Door::ALL.iter().position(|door| door.port() == port)?;
            let slot = found.get_mut(index)?;
            slot.is_none().then_some(())?;
            *slot = Some(Socket::from(descriptor));
        }
        let [Some(outbound), Some(plaintext), Some(hbone)] = found else { return None };
        Some(Self { outbound, plaintext, hbone })
    }

    /// One of them.
    pub(crate) fn socket(&self, door: Door) -> &Socket {
        match door {
            Door::Hbone => &self.hbone,
            Door::Outbound => &self.outbound,
            Door::Plaintext => &self.plaintext,
        }
    }

    /// Whether somebody connected whom nobody has accepted yet.
    pub(crate) fn have_waiting(&self) -> bool {
        let mut asked = Door::ALL.map(|door| PollFd::new(self.socket(door).as_fd(), PollFlags::POLLIN));
        // An error is no reason to wait for ever.
        poll(&mut asked, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// All of them with their ports, to be duplicated by the agent.
    pub(crate) fn descriptors(&self) -> [(u16, BorrowedFd<'_>); 3] {
        Door::ALL.map(|door| (door.port(), self.socket(door).as_fd()))
    }
}

/// Both families on one socket, or IPv4 alone where the namespace has no IPv6. No `SO_REUSEPORT`: closing one of several
/// such listeners resets what waits in its queue. The mark makes accepted sockets' packets known to the pod's rules.
fn listen(port: u16) -> io::Result<Socket> {
    let (socket, address) = match Socket::new(Domain::IPV6, Type::STREAM.nonblocking(), Some(Protocol::TCP)) {
        Ok(socket) => {
            socket.set_only_v6(false)?;
            (socket, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
        }
        Err(_no_ipv6) => (
            Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP))?,
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
        ),
    };
    socket.set_mark(PROXY_MARK)?;
    // Only against TIME_WAIT: the namespace may have had listeners a moment ago.
    socket.set_reuse_address(true)?;
    // Inherited by every accepted socket, which saves a call for each.
    socket.set_tcp_nodelay(true)?;
    super::socket::keep_alive(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}
