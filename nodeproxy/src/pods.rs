//! The pods that this node proxy serves: begun, released, removed. Only the control thread changes the table.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use underpass_enrolment::{netns, zds::WorkloadInfo};
use underpass_identity::store::{CertificateStore, Want};
use underpass_model::{Identity, IdentityError, PodUid, TrustDomain, WorkloadUid, limits::PodLimits};
use underpass_runtime::tasks;

use crate::{
    authorize::Gate,
    budget::{Budget, Node},
    capture::{Door, Listeners, Watched},
    connections::Connections,
};

/// After how long doors that could not be opened are tried again: the kernel's limits may have room then.
const AGAIN: Duration = Duration::from_secs(1);

/// A pod under this node proxy.
pub(crate) struct Pod {
    /// A number that no other pod of this process ever had.
    pub(crate) number: u64,
    /// Kubernetes' uid.
    pub(crate) uid: PodUid,
    /// Discovery's name.
    pub(crate) workload: WorkloadUid,
    /// Its namespace in Kubernetes.
    pub(crate) namespace: Arc<str>,
    /// Its name in Kubernetes.
    pub(crate) name: Arc<str>,
    /// Who it is: told by the node agent, never by a packet.
    pub(crate) identity: Identity,
    /// Its sockets.
    pub(crate) listeners: Listeners,
    /// Its live connections.
    pub(crate) connections: Connections,
    /// What it may take.
    pub(crate) budget: Arc<Budget>,
    /// Whether connections are taken at its doors.
    open: AtomicBool,
    netns: OwnedFd,
    addresses: OnceLock<Vec<IpAddr>>,
    /// Keeps its certificate wanted as long as the pod is here.
    _want: Want,
}

/// What all pods share.
pub(crate) struct Household {
    /// The root of their identities.
    pub(crate) trust_domain: TrustDomain,
    /// The cluster's name in discovery.
    pub(crate) cluster: String,
    /// Their certificates.
    pub(crate) certificates: CertificateStore,
    /// What there is for all of them.
    pub(crate) node: Arc<Node>,
}

/// The table.
pub(crate) struct Pods {
    household: Household,
    watched: Watched,
    next_number: AtomicU64,
    /// No door opens while this proxy stands back.
    closed: AtomicBool,
    by_uid: ArcSwap<HashMap<PodUid, Arc<Pod>>>,
}

/// A pod as the agent hands it over.
pub(crate) struct NewPod {
    pub(crate) uid: PodUid,
    pub(crate) info: WorkloadInfo,
    pub(crate) netns: OwnedFd,
    /// What it asks to be held to.
    pub(crate) limits: PodLimits,
    /// Sockets that an earlier proxy made.
    pub(crate) listeners: Option<Listeners>,
}

/// Why a pod cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddPodError {
    /// Its names could not stand in a certificate.
    #[error("its identity")]
    Identity(#[source] IdentityError),
    /// Its namespace cannot be entered, or one of its ports is taken.
    #[error("its listeners")]
    Listeners(#[source] io::Error),
}

impl Pod {
    /// Where connections come in.
    pub(crate) fn gate(&self) -> Gate<'_> {
        Gate { workload: &self.workload, own: &self.identity }
    }

    /// Its network namespace.
    pub(crate) fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// Whether connections are taken at its doors.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    /// Whether an address is its own. They are read once: a pod keeps those that it got before it was handed over.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.addresses.get_or_init(|| addresses(self.netns()).unwrap_or_default()).contains(&address)
    }

    /// Whether this descriptor is of its network namespace.
    pub(crate) fn is_in(&self, netns: BorrowedFd<'_>) -> bool {
        matches!((netns::id(self.netns()), netns::id(netns)), (Ok(own), Ok(other)) if own == other)
    }
}

/// The addresses of a network namespace's interfaces.
fn addresses(netns: BorrowedFd<'_>) -> io::Result<Vec<IpAddr>> {
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    Ok(netns::inside(netns, || nix::ifaddrs::getifaddrs().map(|all| all.filter_map(address).collect()))??)
}

impl Pods {
    /// An empty table.
    pub(crate) fn new(household: Household, watched: Watched) -> Self {
        Self {
            household,
            watched,
            next_number: AtomicU64::new(1),
            closed: AtomicBool::new(false),
            by_uid: ArcSwap::default(),
        }
    }

    /// Takes up a pod that is not served; its doors are still closed.
    pub(crate) fn add(&self, new: NewPod) -> Result<Arc<Pod>, AddPodError> {
        let info = &new.info;
        let identity = Identity::new(self.household.trust_domain.clone(), &info.namespace, &info.service_account)
            .map_err(AddPodError::Identity)?;
        let listeners = match new.listeners {
            Some(adopted) => adopted,
            None => Listeners::make(new.netns.as_fd()).map_err(AddPodError::Listeners)?,
        };
        let pod = Arc::new(Pod {
            number: self.next_number.fetch_add(1, Ordering::Relaxed),
            workload: WorkloadUid::of_pod(&self.household.cluster, &info.namespace, &info.name),
            namespace: info.namespace.as_str().into(),
            name: info.name.as_str().into(),
            listeners,
            connections: Connections::new(),
            budget: Arc::new(Budget::new(Arc::clone(&self.household.node), &new.limits)),
            open: AtomicBool::new(false),
            netns: new.netns,
            addresses: OnceLock::new(),
            _want: self.household.certificates.want(&identity),
            identity,
            uid: new.uid,
        });
        self.change(|pods| {
            pods.insert(pod.uid.clone(), Arc::clone(&pod));
        });
        tracing::info!(pod.uid = %pod.uid, pod.namespace = %pod.namespace, pod.name = %pod.name, identity = %pod.identity, "serving a pod");
        Ok(pod)
    }

    /// Stops serving a pod at once: its doors close here, its connections end.
    pub(crate) fn remove(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        let pod = self.by_uid.load().get(uid).cloned()?;
        self.change(|pods| {
            pods.remove(uid);
        });
        self.close(&pod);
        pod.connections.end();
        tracing::info!(pod.uid = %uid, pod.namespace = %pod.namespace, pod.name = %pod.name, "no longer serving a pod");
        Some(pod)
    }

    /// Takes connections of a pod, unless it is gone or this proxy stands back.
    pub(crate) fn open(&self, pod: &Arc<Pod>) -> io::Result<()> {
        let is_here = self.get(&pod.uid).is_some_and(|here| Arc::ptr_eq(&here, pod));
        if !is_here || self.are_closed() || pod.open.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        pod.connections.stand_back(false);
        Door::ALL.into_iter().try_for_each(|door| self.watched.add(pod, door)).inspect_err(|_| self.close(pod))
    }

    /// [`Self::open`], however often it has to be tried. Ends with the pod, too.
    pub(crate) async fn open_in_the_end(&self, pod: &Arc<Pod>) {
        while let Err(error) = self.open(pod) {
            tracing::error!(pod.uid = %pod.uid, %error, again_in_s = AGAIN.as_secs(), "a pod's doors cannot be opened");
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                () = pod.connections.ended() => return,
            }
        }
    }

    /// Takes connections of all pods, if it does not yet.
    pub(crate) fn open_doors(self: &Arc<Self>) {
        if !self.closed.swap(false, Ordering::SeqCst) {
            return;
        }
        for pod in self.all().values() {
            let (pods, pod) = (Arc::clone(self), Arc::clone(pod));
            tasks::spawn("doors", async move { pods.open_in_the_end(&pod).await });
        }
    }

    /// Takes no more connections of any pod, and asks peers to open no more in their tunnels; those that live go on.
    /// Another process may hold the same sockets.
    pub(crate) fn close_doors(&self) {
        if self.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        for pod in self.all().values() {
            self.close(pod);
            pod.connections.stand_back(true);
        }
    }

    /// Whether this proxy stands back.
    pub(crate) fn are_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// How many connections there are, and how many connections and tunnels.
    pub(crate) fn count(&self) -> (u64, u64) {
        let of = |(live, open), pod: &Arc<Pod>| (live + pod.connections.live(), open + pod.connections.open());
        self.all().values().fold((0, 0), of)
    }

    /// One pod.
    pub(crate) fn get(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        self.by_uid.load().get(uid).cloned()
    }

    /// The pod that is a workload now. (A name is used again, by pods that come and go one after the other.)
    pub(crate) fn named(&self, workload: &WorkloadUid) -> Option<Arc<Pod>> {
        let pods = self.by_uid.load();
        pods.values().filter(|pod| pod.workload == *workload).max_by_key(|pod| pod.number).cloned()
    }

    /// All pods.
    pub(crate) fn all(&self) -> Arc<HashMap<PodUid, Arc<Pod>>> {
        self.by_uid.load_full()
    }

    fn close(&self, pod: &Arc<Pod>) {
        pod.open.store(false, Ordering::SeqCst);
        for door in Door::ALL {
            self.watched.remove(pod, door);
        }
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<PodUid, Arc<Pod>>)) {
        let mut pods = HashMap::clone(&self.by_uid.load());
        change(&mut pods);
        self.household.node.share_among(pods.len());
        self.by_uid.store(Arc::new(pods));
    }
}
