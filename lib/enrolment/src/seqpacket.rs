//! Unix sockets that keep packets whole (`SOCK_SEQPACKET`) and carry descriptors (`SCM_RIGHTS`).
//!
//! One packet is one system call, so sending and receiving are cancel-safe: a dropped future has moved all of a packet
//! or nothing. A packet or its descriptors that do not fit are an error, never half a message. Received descriptors
//! are close-on-exec from the first instant.
//!
//! Tokio's types for streams are used for their registration with the runtime, which does not depend on the kind of
//! socket; the bytes go through `sendmsg` and `recvmsg` only, never through the streams' own reading and writing.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{FileTypeExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
};

use crate::message::{DecodeError, EncodeError, Message};

/// The most descriptors in a packet; the longest message has three.
pub const MAX_DESCRIPTORS: usize = 16;

/// A socket that takes connections.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
}

/// One connection. Several tasks may use it at once: packets stay whole, their order is the caller's business.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
}

/// Who is at the other end, as the kernel knew it when the connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// The process, if it is in a pid namespace that this one can see.
    pub pid: Option<i32>,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// Why a socket does not listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {path}")]
pub struct ListenError {
    /// Where.
    pub path: PathBuf,
    /// What the kernel says.
    #[source]
    pub source: io::Error,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {path}")]
pub struct ConnectError {
    /// Where.
    pub path: PathBuf,
    /// What the kernel says.
    #[source]
    pub source: io::Error,
}

/// Why a message was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// It cannot be sent to anyone; the connection is as before.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The connection failed.
    #[error("cannot send {message}")]
    Io {
        /// Which message.
        message: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

/// Why a message was not received.
#[derive(Debug, thiserror::Error)]
pub enum RecvError {
    /// The peer sent something else; the next packet may be good.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The connection failed.
    #[error("cannot receive {message}")]
    Io {
        /// Which message was expected.
        message: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

impl Listener {
    /// Listens on a path, for this user only (mode 0600). A socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// If another process listens there, if something else than a socket lies there, or as the kernel says.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let bind = || {
            remove_stale(path)?;
            let socket = new_socket()?;
            net::bind(&socket, &SocketAddrUnix::new(path)?)?;
            // Before `listen` nobody can connect, so there is no instant at which others could.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
            net::listen(&socket, BACKLOG)?;
            UnixListener::from_std(socket.into())
        };
        bind().map(|socket| Self { socket }).map_err(|source| ListenError { path: path.to_owned(), source })
    }

    /// Waits for the next connection. Cancel-safe.
    ///
    /// # Errors
    /// As the kernel says; the listener stays usable.
    pub async fn accept(&self) -> io::Result<Connection> {
        let (socket, _) = self.socket.accept().await?;
        Ok(Connection { socket })
    }
}

const BACKLOG: i32 = 16;

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Removes what a dead listener left; what lives, or is no socket, stays and is the error of the bind that follows.
fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => return Ok(()),
        Ok(_) => {}
    }
    match net::connect(new_socket()?, &SocketAddrUnix::new(path)?) {
        Err(rustix::io::Errno::CONNREFUSED) => std::fs::remove_file(path),
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Connection {
    /// Connects to a listener.
    ///
    /// # Errors
    /// [`ConnectError`]; its source is of kind `NotFound` or `ConnectionRefused` if nobody listens, `WouldBlock` if
    /// the listener does not accept fast enough.
    pub fn connect(path: &Path) -> Result<Self, ConnectError> {
        let connect = || {
            let socket = new_socket()?;
            // A Unix connect succeeds or fails at once, also on a non-blocking socket.
            net::connect(&socket, &SocketAddrUnix::new(path)?)?;
            UnixStream::from_std(socket.into())
        };
        connect().map(|socket| Self { socket }).map_err(|source| ConnectError { path: path.to_owned(), source })
    }

    /// Two connections that are each other's peer.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (one, other) = net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let registered = |end: OwnedFd| UnixStream::from_std(end.into());
        Ok((Self { socket: registered(one)? }, Self { socket: registered(other)? }))
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn peer(&self) -> io::Result<PeerCredentials> {
        let credentials = self.socket.peer_cred()?;
        Ok(PeerCredentials { pid: credentials.pid(), uid: credentials.uid(), gid: credentials.gid() })
    }

    /// Sends one message with its descriptors. Cancel-safe.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn send<M: Message>(&self, message: &M) -> Result<(), SendError> {
        let packet = message.encode()?;
        let sent = self.send_packet(&packet.bytes, &packet.descriptors).await;
        sent.map_err(|source| SendError::Io { message: M::NAME, source })
    }

    /// Waits for the next message; `None` once the peer has closed. What only a newer version knows is skipped.
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`RecvError`].
    pub async fn recv<M: Message>(&self) -> Result<Option<M>, RecvError> {
        loop {
            let received = self.recv_packet(M::LIMIT).await;
            let received = received.map_err(|source| RecvError::Io { message: M::NAME, source })?;
            let Some((bytes, descriptors)) = received else { return Ok(None) };
            if let Some(message) = M::decode(&bytes, descriptors)? {
                return Ok(Some(message));
            }
        }
    }

    /// Sends one packet. Cancel-safe.
    ///
    /// # Errors
    /// `InvalidInput` for no bytes or more than [`MAX_DESCRIPTORS`]; else as the kernel says.
    pub async fn send_packet(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        if bytes.is_empty() || descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a packet has bytes, and 16 descriptors at most"));
        }
        self.socket.async_io(Interest::WRITABLE, || send_now(self.socket.as_fd(), bytes, descriptors)).await
    }

    /// Waits for the next packet of at most `limit` bytes; `None` once the peer has closed. Cancel-safe.
    ///
    /// # Errors
    /// `InvalidData` if the packet or its descriptors did not fit; else as the kernel says.
    pub async fn recv_packet(&self, limit: usize) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        self.socket.async_io(Interest::READABLE, || recv_now(self.socket.as_fd(), limit)).await
    }
}

fn send_now(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no room for the descriptors"));
    }
    // A closed peer is an error to handle, not a signal that ends the process.
    net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn recv_now(socket: BorrowedFd<'_>, limit: usize) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; limit];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    // Taken before anything is checked, so that a refused packet's descriptors are closed and not leaked.
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let invalid = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    if received.flags.contains(ReturnFlags::TRUNC) {
        return invalid("the packet is longer than this protocol allows");
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return invalid("the packet has more descriptors than this protocol allows, or this process has too many open");
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(received.bytes);
    Ok(Some((bytes, descriptors)))
}

#[cfg(test)]
mod tests;
