//! Finds the network namespace of a pod that was there before the agent, and knows one again by its addresses.

use std::{
    collections::BTreeSet,
    fs, io,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use underpass_enrolment::netns::{self, NetnsId};

/// A namespace, held open.
#[derive(Debug)]
pub struct Netns {
    /// The path under which it was opened.
    pub path: PathBuf,
    /// Which one it is.
    pub id: NetnsId,
    /// Its descriptor.
    pub netns: OwnedFd,
}

impl Netns {
    /// Opens one by its path.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let netns = netns::open(path)?;
        let id = netns::id(netns.as_fd())?;
        Ok(Self { path: path.to_owned(), id, netns })
    }

    /// Whether its name now leads elsewhere or nowhere: the container runtime has taken the namespace away, and only
    /// descriptors like this one keep it. A process's path says nothing, because other processes may live on there.
    #[must_use]
    pub fn is_unnamed(&self) -> bool {
        !self.path.starts_with(PROCESSES) && Self::open(&self.path).map(|now| now.id).ok() != Some(self.id)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }
}

/// Why a pod's namespace is not known.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The pod has no address yet by which to know it.
    #[error("the pod has no address yet")]
    NoAddress,
    /// Nobody has the address.
    #[error("no network namespace on this machine has the address {0}")]
    None(IpAddr),
    /// More than one has it; taking the wrong one would capture another pod.
    #[error("several network namespaces have the address {0}")]
    Several(IpAddr),
    /// The agent's own namespace cannot be looked at.
    #[error("cannot look at the agent's own network namespace")]
    Own(#[source] io::Error),
}

/// Where namespaces have names.
const NAMED: &str = "/var/run/netns";
const PROCESSES: &str = "/proc";

/// Looks through every namespace that has a name or a process. Blocks; takes a moment on a busy node.
///
/// # Errors
/// [`FindError`].
pub fn by_address(addresses: &[IpAddr]) -> Result<Netns, FindError> {
    let first = *addresses.first().ok_or(FindError::NoAddress)?;
    let own = netns::open(Path::new("/proc/self/ns/net")).and_then(|own| netns::id(own.as_fd()));
    let own = own.map_err(FindError::Own)?;
    let mut seen = BTreeSet::from([(own.device, own.inode)]);
    let mut found = None;
    for path in candidates() {
        let Ok(netns) = Netns::open(&path) else { continue };
        if !seen.insert((netns.id.device, netns.id.inode)) || !has(netns.as_fd(), addresses) {
            continue;
        }
        if found.replace(netns).is_some() {
            return Err(FindError::Several(first));
        }
    }
    found.ok_or(FindError::None(first))
}

/// Whether a namespace owns one of the addresses.
#[must_use]
pub fn has(netns: BorrowedFd<'_>, addresses: &[IpAddr]) -> bool {
    let owned = netns::on_thread(netns, owned_addresses).unwrap_or_default();
    addresses.iter().any(|address| owned.contains(&address.to_canonical()))
}

/// Names first: they outlive any process and are stable across the agent's restarts.
fn candidates() -> impl Iterator<Item = PathBuf> {
    let entries = |directory| fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_process = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()))
    };
    entries(NAMED).chain(entries(PROCESSES).filter(is_process).map(|process| process.join("ns/net")))
}

/// Of the namespace that this thread is in, without those of loopback interfaces, which every namespace has.
fn owned_addresses() -> BTreeSet<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return BTreeSet::new() };
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    addresses.filter(|address| !address.is_loopback()).collect()
}
