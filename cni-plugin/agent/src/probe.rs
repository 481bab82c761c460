//! Who on this node made a connection? Asked of the kernel in the agent's own network namespace, the host's.
//!
//! An exact look-up of the two addresses finds the socket of a local process, its inode, and nothing for what was only
//! forwarded here. The kubelet is known by that inode under its process's descriptors.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};
use tokio::sync::Semaphore;
use underpass_enrolment::node::Origin;
use underpass_model::AddressPair;

/// Answers probes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Prober {
    kubelet: Arc<Kubelet>,
    known: Arc<Known>,
    /// Each look-up takes a blocking thread for microseconds.
    turns: Arc<Semaphore>,
}

/// The kubelets that were found by name; looking through all processes takes too long for every question.
#[derive(Debug, Default)]
pub struct Known(Mutex<Option<(Instant, Vec<Process>)>>);

/// A process; its number alone may come to mean another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    path: PathBuf,
    started: u64,
}

/// After so long, others may have started.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// How the kubelet's process is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kubelet {
    /// By its name, in the agent's own network namespace.
    ByName,
    /// By its number in a file, read anew each time.
    PidFile(PathBuf),
}

/// Why nobody knows who made a connection.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The kernel could not be asked.
    #[error("cannot ask the kernel for a socket")]
    Netlink(#[source] io::Error),
    /// The kernel's answer could not be read.
    #[error("the kernel's answer is not understood: {0}")]
    Answer(String),
}

const PROCESSES: &str = "/proc";
/// The names under which the kubelet runs, alone or inside a distribution's one binary.
const KUBELETS: [&str; 4] = ["kubelet", "kubelite", "k3s", "k3s-server"];
const AT_ONCE: usize = 16;
const ENOENT: i32 = 2;

impl Prober {
    /// Answers for a kubelet that is found that way.
    #[must_use]
    pub fn new(kubelet: Kubelet) -> Self {
        Self { kubelet: Arc::new(kubelet), known: Arc::default(), turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Who made a connection; a kernel that cannot be asked counts as knowing nobody, which grants nothing.
    pub async fn origin(&self, connection: AddressPair) -> Origin {
        let Ok(_turn) = self.turns.acquire().await else { return Origin::Forwarded };
        let (kubelet, known) = (Arc::clone(&self.kubelet), Arc::clone(&self.known));
        let origin = tokio::task::spawn_blocking(move || kubelet.origin(connection, &known)).await;
        match origin {
            Ok(Ok(origin)) => origin,
            Ok(Err(error)) => {
                tracing::warn!(error = %underpass_runtime::Chain(&error), "the origin of a connection is not known");
                Origin::Forwarded
            }
            Err(_panicked) => Origin::Forwarded,
        }
    }
}

impl Kubelet {
    /// Blocks for tens of microseconds.
    ///
    /// # Errors
    /// [`ProbeError`].
    pub fn origin(&self, connection: AddressPair, known: &Known) -> Result<Origin, ProbeError> {
        Ok(match inode(connection.client, connection.server)? {
            None => Origin::Forwarded,
            // Nobody holds the socket any more.
            Some(0) => Origin::Gone,
            Some(inode) if self.holds(inode, known) => Origin::Kubelet,
            Some(_) => Origin::Host,
        })
    }

    fn holds(&self, inode: u32, known: &Known) -> bool {
        let link = PathBuf::from(format!("socket:[{inode}]"));
        self.processes(known).iter().any(|process| {
            let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
            descriptors.into_iter().any(|descriptor| fs::read_link(descriptor.path()).is_ok_and(|to| to == link))
        })
    }

    fn processes(&self, known: &Known) -> Vec<PathBuf> {
        match self {
            Self::PidFile(path) => {
                let pid = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u32>().ok());
                pid.map(|pid| Path::new(PROCESSES).join(pid.to_string())).into_iter().collect()
            }
            Self::ByName => known.current(),
        }
    }
}

impl Known {
    /// The kubelets that run now.
    fn current(&self) -> Vec<PathBuf> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let still_true = |(looked, processes): &(Instant, Vec<Process>)| {
            looked.elapsed() < LOOK_AGAIN
                && processes.iter().all(|process| start_of(&process.path) == Some(process.started))
        };
        if !known.as_ref().is_some_and(still_true) {
            *known = Some((Instant::now(), kubelets()));
        }
        known.iter().flat_map(|(_, processes)| processes).map(|process| process.path.clone()).collect()
    }
}

/// Processes with a kubelet's name, in the agent's own network namespace and not in a pod: a pod on the host's network
/// can call its processes what it likes.
fn kubelets() -> Vec<Process> {
    let own = fs::read_link("/proc/self/ns/net").ok();
    let is_kubelet = |process: &PathBuf| {
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        KUBELETS.contains(&name.trim())
            && fs::read_link(process.join("ns/net")).ok() == own
            && fs::read_to_string(process.join("cgroup")).is_ok_and(|cgroups| !is_in_pod(&cgroups))
    };
    let entries = fs::read_dir(PROCESSES).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(is_kubelet).filter_map(|path| Some(Process { started: start_of(&path)?, path })).collect()
}

/// When a process started, in ticks since the machine did.
fn start_of(process: &Path) -> Option<u64> {
    started(&fs::read_to_string(process.join("stat")).ok()?)
}

/// Field 22 of a process's `stat`; its name, which may hold anything, ends with the last parenthesis.
fn started(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

/// Whether one of a process's control groups is that of a pod. Seen from a pod's own cgroup namespace the path may
/// begin below `kubepods`, so a pod's own group is known by its form, too.
pub(crate) fn is_in_pod(cgroups: &str) -> bool {
    let paths = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let mut groups = paths.flat_map(|path| path.split('/'));
    groups.any(|group| group.contains("kubepods") || is_pods_group(group))
}

/// `pod` and a uid: 36 characters of hexadecimal digits and dashes, or as many or fewer without.
fn is_pods_group(group: &str) -> bool {
    let uid = group.strip_prefix("pod").unwrap_or_default();
    let allowed = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b'-' | b'_');
    (32..=36).contains(&uid.len()) && uid.bytes().all(allowed)
}

/// The inode of the socket with exactly these ends, as its owner sees them; 0 once it is closed.
fn inode(local: SocketAddr, remote: SocketAddr) -> Result<Option<u32>, ProbeError> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG).map_err(ProbeError::Netlink)?;
    socket.bind_auto().map_err(ProbeError::Netlink)?;
    socket.connect(&NetlinkAddr::new(0, 0)).map_err(ProbeError::Netlink)?;
    socket.send(&question(local, remote), 0).map_err(ProbeError::Netlink)?;
    let (answer, _) = socket.recv_from_full().map_err(ProbeError::Netlink)?;
    let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&answer);
    match answer.map_err(|error| ProbeError::Answer(error.to_string()))?.payload {
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => Ok(Some(response.header.inode)),
        NetlinkPayload::Error(error) if error.raw_code() == -ENOENT => Ok(None),
        NetlinkPayload::Error(error) => Err(ProbeError::Netlink(error.to_io())),
        other => Err(ProbeError::Answer(format!("message type {}", other.message_type()))),
    }
}

fn question(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let (local, remote) = (canonical(local), canonical(remote));
    let socket_id = SocketId {
        source_port: local.port(),
        destination_port: remote.port(),
        source_address: local.ip(),
        destination_address: remote.ip(),
        interface_id: 0,
        // Whatever its cookie.
        cookie: [0xff; 8],
    };
    let request = InetRequest {
        family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id,
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// An IPv4 address in IPv6 clothes is found under its own name.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn connection(listen: &str) -> (TcpListener, TcpStream, AddressPair) {
        let listener = TcpListener::bind(listen).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let pair = AddressPair { client: client.local_addr().unwrap(), server: listener.local_addr().unwrap() };
        (listener, client, pair)
    }

    #[test]
    fn tells_the_kubelet_from_other_processes_and_from_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let (listener, client, pair) = connection(listen);
            fs::write(&pid_file, std::process::id().to_string()).unwrap();
            assert_eq!(Kubelet::PidFile(pid_file.clone()).origin(pair, &Known::default()).unwrap(), Origin::Kubelet);
            fs::write(&pid_file, "1").unwrap();
            assert_eq!(Kubelet::PidFile(pid_file.clone()).origin(pair, &Known::default()).unwrap(), Origin::Host);
            assert_eq!(
                Kubelet::PidFile(directory.path().join("none")).origin(pair, &Known::default()).unwrap(),
                Origin::Host
            );
            assert_eq!(Kubelet::ByName.origin(pair, &Known::default()).unwrap(), Origin::Host);
            drop(client);
            assert_eq!(Kubelet::ByName.origin(pair, &Known::default()).unwrap(), Origin::Gone);
            drop(listener);
            let nobody = AddressPair { client: "192.0.2.1:1".parse().unwrap(), server: "192.0.2.2:2".parse().unwrap() };
            assert_eq!(Kubelet::ByName.origin(nobody, &Known::default()).unwrap(), Origin::Forwarded);
        }
    }

    #[test]
    fn a_client_in_ipv6_clothes_is_found() {
        let (_listener, _client, mut pair) = connection("127.0.0.1:0");
        let dressed = |address: SocketAddr| match address.ip() {
            std::net::IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
            std::net::IpAddr::V6(_) => address,
        };
        pair = AddressPair { client: dressed(pair.client), server: dressed(pair.server) };
        assert_eq!(Kubelet::ByName.origin(pair, &Known::default()).unwrap(), Origin::Host);
    }

    #[test]
    fn a_process_in_a_pod_is_no_kubelet() {
        let uid = "0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f";
        for (cgroups, in_pod) in [
            ("0::/system.slice/kubelet.service\n".to_owned(), false),
            ("0::/\n".to_owned(), false),
            ("0::/../../../system.slice/kubelet.service\n".to_owned(), false),
            ("0::/user.slice/podman-1.scope\n".to_owned(), false),
            (format!("0::/kubepods.slice/kubepods-pod{}.slice/cri-containerd-1.scope\n", uid.replace('-', "_")), true),
            (format!("0::/kubepods/burstable/pod{uid}/1\n"), true),
            (format!("0::/../../pod{uid}/1\n"), true),
            (format!("12:cpu,cpuacct:/kubepods/pod{uid}/1\n1:name=systemd:/system.slice\n"), true),
            ("1:name=systemd:/system.slice/kubelet.service\n0::/\n".to_owned(), false),
        ] {
            assert_eq!(is_in_pod(&cgroups), in_pod, "{cgroups}");
        }
    }

    #[test]
    fn the_start_of_a_process_is_known_whatever_its_name() {
        let stat = |name: &str| {
            format!("7 ({name}) S {} 4711 0 0", (4..22).map(|n| n.to_string()).collect::<Vec<_>>().join(" "))
        };
        for name in ["kubelet", ") S 1 2 3", "a b (c)"] {
            assert_eq!(started(&stat(name)), Some(4711), "{name}");
        }
        assert!(start_of(Path::new("/proc/self")).is_some());
        assert_eq!(started("7 (kubelet) S 1"), None);
    }

    #[test]
    fn what_is_known_is_looked_at_again_when_a_process_has_gone() {
        let gone = Process { path: PathBuf::from("/proc/self"), started: 0 };
        let known = Known(Mutex::new(Some((Instant::now(), vec![gone]))));
        assert!(!known.current().contains(&PathBuf::from("/proc/self")), "another process has its number now");
    }

    mod properties {
        use proptest::prelude::*;

        proptest! {
            #[test]
            fn arbitrary_texts_of_the_kernel_never_panic(text in ".*") {
                let _start = super::super::started(&text);
                let _pod = super::super::is_in_pod(&text);
            }
        }
    }
}
