//! Finds the network namespace of a pod that was there before the agent, and knows one again by its addresses.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs, io,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use underpass_enrolment::netns::{self, NetnsId};
use underpass_model::PodUid;

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

/// Which pod holds which namespace, so that no two pods ever take one. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Holders(Arc<Mutex<HashMap<NetnsId, PodUid>>>);

impl Holders {
    /// The container runtime says whose a namespace is, whatever was found before.
    pub fn assign(&self, netns: NetnsId, pod: &PodUid) {
        self.lock().insert(netns, pod.clone());
    }

    /// Takes a namespace that was found; false if it is another pod's.
    #[must_use]
    pub fn claim(&self, netns: NetnsId, pod: &PodUid) -> bool {
        self.lock().entry(netns).or_insert_with(|| pod.clone()) == pod
    }

    /// The pod holds it no more.
    pub fn release(&self, netns: NetnsId, pod: &PodUid) {
        let mut holders = self.lock();
        if holders.get(&netns) == Some(pod) {
            holders.remove(&netns);
        }
    }

    /// The namespaces of all other pods.
    #[must_use]
    pub fn others(&self, pod: &PodUid) -> HashSet<NetnsId> {
        self.lock().iter().filter(|(_, holder)| *holder != pod).map(|(netns, _)| *netns).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NetnsId, PodUid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks through every namespace that has a name or a process, for one that owns all the addresses and is not `taken`.
/// Blocks; takes a moment on a busy node.
///
/// # Errors
/// [`FindError`].
pub fn by_address(addresses: &[IpAddr], taken: &HashSet<NetnsId>) -> Result<Netns, FindError> {
    let first = *addresses.first().ok_or(FindError::NoAddress)?;
    let mut found = all()?.filter(|netns| !taken.contains(&netns.id) && has_all(netns.as_fd(), addresses));
    match (found.next(), found.next()) {
        (None, _) => Err(FindError::None(first)),
        (Some(netns), None) => Ok(netns),
        (Some(_), Some(_)) => Err(FindError::Several(first)),
    }
}

/// Every namespace of pods that can be found, each once: those with a name or a process, but for the agent's own, which
/// is the node's.
///
/// # Errors
/// [`FindError::Own`].
pub fn all() -> Result<impl Iterator<Item = Netns>, FindError> {
    let own = netns::open(Path::new("/proc/self/ns/net")).and_then(|own| netns::id(own.as_fd()));
    let mut seen = HashSet::from([own.map_err(FindError::Own)?]);
    let opened = candidates().filter_map(|path| Netns::open(&path).ok());
    Ok(opened.filter(move |netns| seen.insert(netns.id)))
}

/// Whether a namespace owns all of the addresses, and there are some.
#[must_use]
pub fn has_all(netns: BorrowedFd<'_>, addresses: &[IpAddr]) -> bool {
    let owned = netns::on_thread(netns, owned_addresses).unwrap_or_default();
    !addresses.is_empty() && addresses.iter().all(|address| owned.contains(&address.to_canonical()))
}

/// Names first: they outlive any process and are stable across the agent's restarts. Of processes only those in the
/// agent's own user namespace: in one of its own making anybody can make a network namespace with any address.
fn candidates() -> impl Iterator<Item = PathBuf> {
    let entries = |directory| fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_process = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()))
    };
    let own = fs::read_link("/proc/self/ns/user").ok();
    let is_ours = move |process: &PathBuf| own.is_some() && fs::read_link(process.join("ns/user")).ok() == own;
    let processes = entries(PROCESSES).filter(is_process).filter(is_ours);
    entries(NAMED).chain(processes.map(|process| process.join("ns/net")))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_one_holder_and_the_runtime_decides() {
        let (holders, netns) = (Holders::default(), NetnsId { device: 4, inode: 7 });
        let [old, new] = ["old", "new"].map(PodUid::new);
        assert!(holders.claim(netns, &old) && holders.claim(netns, &old));
        assert!(!holders.claim(netns, &new));
        assert_eq!(holders.others(&new), [netns].into());
        assert!(holders.others(&old).is_empty());
        holders.assign(netns, &new);
        holders.release(netns, &old);
        assert!(!holders.claim(netns, &old), "the former holder gives nothing free");
        holders.release(netns, &new);
        assert!(holders.claim(netns, &old));
    }

    #[test]
    fn without_addresses_nothing_is_found() {
        let own = Netns::open(Path::new("/proc/self/ns/net")).unwrap();
        assert!(!has_all(own.as_fd(), &[]));
        assert!(matches!(by_address(&[], &HashSet::new()), Err(FindError::NoAddress)));
    }
}
