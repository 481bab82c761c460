//! An agent in this process, over real sockets and files, with scripted node proxies and a hand that plays the plugin.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use underpass_agent::{
    app,
    config::Config,
    pods::Limits,
    program::Programmer,
    redirect::{Phase, Verified},
};
use underpass_enrolment::{
    netns,
    node::{Listeners, ListeningSocket, Origin, ReleaseReason, ToAgent, ToProxy, VERSION},
    plugin::{self, Attachment, Command, PluginRequest, PluginResponse},
    seqpacket::Connection,
    zds::{Ack, Hello, Request},
};
use underpass_model::{PodUid, exclusions::Exclusions, names::OWN_PORTS};
use underpass_objects::{CaptureState, StatusDirectory};
use underpass_runtime::Shutdown;

use crate::world::Place;

pub(crate) const NODE: &str = "node-one";
/// Everything here takes milliseconds; a test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// An agent with directories of its own.
pub(crate) struct Agent {
    directory: TempDir,
    pub(crate) limits: Limits,
    /// Flags for where objects come from and reports go.
    source: Vec<OsString>,
    running: Option<(Shutdown, JoinHandle<()>)>,
}

impl Agent {
    pub(crate) fn stopped() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for part in ["objects", "status"] {
            std::fs::create_dir(directory.path().join(part)).unwrap();
        }
        let limits = Limits {
            enrol: Duration::from_millis(1500),
            object: Duration::from_millis(500),
            withdrawn: Duration::from_secs(10),
            farewell: Duration::from_secs(2),
            reconcile: Duration::from_millis(200),
            retry: (Duration::from_millis(20), Duration::from_millis(200)),
            absence: Duration::from_millis(500),
            under_way: Duration::from_millis(50),
            orphan: Duration::from_millis(100),
        };
        let path = |name: &str| directory.path().join(name).into_os_string();
        let source = vec!["--objects".into(), path("objects"), "--status".into(), path("status")];
        Self { directory, limits, source, running: None }
    }

    /// One that reads from an API server, and installs a plugin into a node's file system below its own directory.
    pub(crate) fn on_cluster(server: SocketAddr) -> Self {
        let mut agent = Self::stopped();
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{{name: a, cluster: {{server: 'http://{server}'}}}}]\n\
             contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\nusers: [{{name: a, user: {{}}}}]\n"
        );
        std::fs::write(agent.path("kubeconfig"), kubeconfig).unwrap();
        for directory in ["node/net.d", "node/bin"] {
            std::fs::create_dir_all(agent.path(directory)).unwrap();
        }
        std::fs::write(agent.path("plugin"), "a program").unwrap();
        agent.source = vec!["--kubernetes".into()];
        for (flag, value) in [
            ("--kubeconfig", agent.path("kubeconfig")),
            ("--install-plugin", agent.path("plugin")),
            ("--cni-root", agent.path("node")),
            ("--cni-configurations", "/net.d".into()),
            ("--cni-binaries", "/bin".into()),
        ] {
            agent.source.extend([flag.into(), value.into_os_string()]);
        }
        agent
    }

    pub(crate) async fn started() -> Self {
        let mut agent = Self::stopped();
        agent.start().await;
        agent
    }

    pub(crate) async fn start(&mut self) {
        let path = |name: &str| self.path(name);
        let arguments: [(&str, PathBuf); 6] = [
            ("--plugin-socket", path("run/plugin.sock")),
            ("--zds-socket", path("run/zds.sock")),
            ("--node-socket", path("run/node.sock")),
            ("--state", path("state")),
            ("--enrolled-namespaces", path("lib/enrolled-namespaces")),
            ("--kubelet-pid-file", path("kubelet.pid")),
        ];
        let mut words = vec!["agent".into(), "--node-name".into(), NODE.into()];
        words.extend(self.source.iter().cloned());
        words.extend(arguments.into_iter().flat_map(|(flag, value)| [flag.into(), value.into_os_string()]));
        let config = <Config as clap::Parser>::try_parse_from(words).unwrap();
        let (shutdown, limits) = (Shutdown::new(), self.limits);
        let stop = shutdown.clone();
        let task = tokio::spawn(async move { Box::pin(app::run(config, limits, stop)).await.unwrap() });
        self.running = Some((shutdown, task));
        for socket in ["run/zds.sock", "run/node.sock"] {
            eventually("the sockets are there", || Connection::connect(&self.path(socket)).is_ok()).await;
        }
    }

    pub(crate) async fn stop(&mut self) {
        let (shutdown, task) = self.running.take().unwrap();
        shutdown.request();
        timeout(PATIENCE, task).await.unwrap().unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn status(&self) -> StatusDirectory {
        StatusDirectory::open(&self.path("status")).unwrap()
    }

    pub(crate) fn reported(&self, uid: &str) -> Option<CaptureState> {
        self.status().read().unwrap().reports.get(&PodUid::new(uid)).map(|report| report.state)
    }

    /// Writes the objects: each line `name [key=value ...]` is a pod whose uid is `uid-<name>`.
    pub(crate) fn objects(&self, pods: &[ObjectOf<'_>]) {
        let mut text = String::from("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
        text +=
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: meshed, labels: {underpass.dev/mesh: enabled}}\n";
        for pod in pods {
            let ObjectOf { name, enrolled, address, annotations } = pod;
            let label = if *enrolled { "enabled" } else { "disabled" };
            let status =
                address.map_or_else(String::new, |address| format!("status: {{podIPs: [{{ip: {address}}}]}}\n"));
            text += &format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: uid-{name}, \
                 labels: {{underpass.dev/mesh: {label}}}, annotations: {{{annotations}}}}}\n\
                 spec: {{nodeName: {NODE}, serviceAccountName: account, containers: []}}\n{status}"
            );
        }
        underpass_objects::files::write(&self.path("objects/all.yaml"), text.as_bytes(), 0o644).unwrap();
    }

    pub(crate) async fn plugin(&self, request: &PluginRequest) -> PluginResponse {
        let mut stream = UnixStream::connect(self.path("run/plugin.sock")).await.unwrap();
        stream.write_all(&request.to_line().unwrap()).await.unwrap();
        let mut line = Vec::new();
        timeout(PATIENCE, BufReader::new(stream).read_until(b'\n', &mut line)).await.unwrap().unwrap();
        PluginResponse::from_line(&line).unwrap()
    }

    pub(crate) async fn add(&self, name: &str, place: &Place) -> PluginResponse {
        self.plugin(&request(Command::Add, name, &place.path(), &place.addresses())).await
    }

    pub(crate) async fn delete(&self, name: &str) -> PluginResponse {
        self.plugin(&request(Command::Del, name, Path::new(""), &[])).await
    }

    pub(crate) async fn check(&self, name: &str, place: &Place) -> PluginResponse {
        self.plugin(&request(Command::Check, name, &place.path(), &place.addresses())).await
    }

    pub(crate) async fn proxy(&self) -> Proxy {
        Proxy::connect(self, Manner::default()).await
    }
}

/// A pod's object, as far as tests care.
pub(crate) struct ObjectOf<'a> {
    pub(crate) name: &'a str,
    pub(crate) enrolled: bool,
    pub(crate) address: Option<IpAddr>,
    pub(crate) annotations: &'a str,
}

/// A pod's object.
pub(crate) fn object(name: &str, enrolled: bool) -> ObjectOf<'_> {
    ObjectOf { name, enrolled, address: None, annotations: "" }
}

pub(crate) fn request(command: Command, name: &str, netns: &Path, addresses: &[IpAddr]) -> PluginRequest {
    PluginRequest {
        version: plugin::VERSION,
        command,
        container_id: format!("container-{name}"),
        netns: netns.to_string_lossy().into_owned(),
        ifname: "eth0".into(),
        pod: Some(plugin::Pod { namespace: "shop".into(), name: name.into(), uid: format!("uid-{name}") }),
        addresses: addresses.to_vec(),
        valid_attachments: Vec::new(),
        deadline_ms: 0,
    }
}

pub(crate) fn attachment(name: &str) -> Attachment {
    Attachment { container_id: format!("container-{name}"), ifname: "eth0".into() }
}

/// What a scripted proxy saw.
#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    Add(String),
    Answer(u64, Origin),
    Del(String),
    Keep(String),
    Release(String, ReleaseReason),
    SnapshotSent,
}

/// How a scripted proxy behaves.
#[derive(Clone, Default)]
pub(crate) struct Manner {
    /// Refuses to serve pods of these uids.
    pub(crate) refuses: BTreeSet<&'static str>,
    /// Has no certificate for pods of these uids.
    pub(crate) lacks: BTreeSet<&'static str>,
    /// Never acknowledges anything.
    pub(crate) silent: bool,
    /// Does not speak `node.sock`.
    pub(crate) without_node: bool,
    /// Never says that it released a pod.
    pub(crate) holds_on: bool,
}

/// A scripted node proxy.
pub(crate) struct Proxy {
    events: mpsc::Receiver<Event>,
    say: mpsc::Sender<ToAgent>,
    /// The pods whose listeners it was given when it connected.
    pub(crate) given: Vec<String>,
    task: JoinHandle<()>,
}

struct Script {
    manner: Manner,
    zds: Connection,
    node: Option<Connection>,
    events: mpsc::Sender<Event>,
    held: Vec<PodUid>,
    sockets: Vec<OwnedFd>,
}

impl Proxy {
    pub(crate) async fn connect(agent: &Agent, manner: Manner) -> Self {
        let mut held = Vec::new();
        let mut sockets = Vec::new();
        let node = match manner.without_node {
            true => None,
            false => {
                let node = Connection::connect(&agent.path("run/node.sock")).unwrap();
                node.send(&ToAgent::Hello { version: VERSION, generation: "test".into(), started: Duration::ZERO })
                    .await
                    .unwrap();
                loop {
                    match timeout(PATIENCE, node.recv::<ToProxy>()).await.unwrap().unwrap().unwrap() {
                        ToProxy::Listeners(listeners) => {
                            held.push(listeners.pod);
                            sockets.extend(listeners.sockets.into_iter().map(|listening| listening.socket));
                        }
                        ToProxy::ListenersSent => break,
                        _ => {}
                    }
                }
                Some(node)
            }
        };
        let zds = Connection::connect(&agent.path("run/zds.sock")).unwrap();
        zds.send(&Hello).await.unwrap();
        let (events, seen) = mpsc::channel(1000);
        let (say, said) = mpsc::channel(100);
        let given = held.iter().map(ToString::to_string).collect();
        let script = Script { manner, zds, node, events, held, sockets };
        Self { events: seen, say, given, task: tokio::spawn(script.play(said)) }
    }

    pub(crate) async fn event(&mut self) -> Event {
        timeout(PATIENCE, self.events.recv()).await.expect("the proxy hears something").expect("the proxy lives")
    }

    /// Skips what comes before.
    pub(crate) async fn until(&mut self, wanted: Event) {
        let seen = async { while self.event().await != wanted {} };
        timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("{wanted:?} never came"));
    }

    /// Long enough for the agent to do what it should not, were it about to.
    pub(crate) async fn hears_nothing(&mut self) {
        let heard = timeout(Duration::from_millis(300), self.events.recv()).await;
        assert!(heard.is_err(), "it heard {heard:?}");
    }

    pub(crate) async fn say(&self, message: ToAgent) {
        self.say.send(message).await.unwrap();
    }

    pub(crate) async fn live(&self, name: &str, connections: u64) {
        self.say(ToAgent::Live { pod: PodUid::new(&format!("uid-{name}")), connections }).await;
    }

    /// Waits until the agent has closed the session.
    pub(crate) async fn ended(self) {
        timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }

    pub(crate) async fn dies(self) {
        self.task.abort();
        drop(self.task.await);
    }
}

impl Script {
    async fn play(mut self, mut said: mpsc::Receiver<ToAgent>) {
        loop {
            tokio::select! {
                request = self.zds.recv::<Request>() => match request {
                    Ok(Some(request)) => self.answer(request).await,
                    _ => return,
                },
                message = hear(self.node.as_ref()) => match message {
                    Some(message) => self.hear(message).await,
                    None => return,
                },
                Some(message) = said.recv() => self.node.as_ref().unwrap().send(&message).await.unwrap(),
            }
        }
    }

    async fn answer(&mut self, request: Request) {
        let event = match &request {
            Request::Add { uid, .. } => Event::Add(uid.to_string()),
            Request::Keep { uid } => Event::Keep(uid.to_string()),
            Request::Del { uid } => Event::Del(uid.to_string()),
            Request::SnapshotSent => Event::SnapshotSent,
        };
        if self.manner.silent {
            self.events.send(event).await.unwrap();
            return;
        }
        if let Request::Add { uid, netns, info } = &request {
            assert_eq!(info.service_account, "account");
            if self.manner.refuses.contains(uid.as_str()) {
                self.zds.send(&Ack::failed("no room")).await.unwrap();
                return self.events.send(event).await.unwrap();
            }
            if !self.held.contains(uid)
                && let Some(node) = &self.node
            {
                let sockets = listen(netns);
                node.send(&ToAgent::Listeners(Listeners { pod: uid.clone(), sockets })).await.unwrap();
                self.held.push(uid.clone());
            }
        }
        self.zds.send(&Ack::done()).await.unwrap();
        if let (Request::Add { uid, .. }, Some(node)) = (&request, &self.node) {
            let lacks = self.manner.lacks.contains(uid.as_str());
            let outcome = if lacks { Err("the operator is away".to_owned()) } else { Ok(()) };
            node.send(&ToAgent::Ready { pod: uid.clone(), outcome }).await.unwrap();
        }
        if let Request::Del { uid } = &request {
            self.held.retain(|held| held != uid);
            self.sockets.clear();
        }
        self.events.send(event).await.unwrap();
    }

    async fn hear(&mut self, message: ToProxy) {
        match message {
            ToProxy::Release { pod, reason, .. } => {
                if reason == ReleaseReason::Deleted && !self.manner.holds_on {
                    let released = ToAgent::Released { pod: pod.clone() };
                    self.node.as_ref().unwrap().send(&released).await.unwrap();
                }
                self.events.send(Event::Release(pod.to_string(), reason)).await.unwrap();
            }
            ToProxy::ProbeAnswer { id, origin } => self.events.send(Event::Answer(id, origin)).await.unwrap(),
            // What a real proxy does with these is its own business.
            ToProxy::Limits { .. } | ToProxy::Listeners(_) | ToProxy::Successor(_) | ToProxy::Terminating { .. } => {}
            ToProxy::Hello { .. } | ToProxy::ListenersSent => panic!("greeted again"),
        }
    }
}

async fn hear(node: Option<&Connection>) -> Option<ToProxy> {
    match node {
        Some(node) => node.recv().await.ok().flatten(),
        None => std::future::pending().await,
    }
}

fn listen(netns: &OwnedFd) -> Vec<ListeningSocket> {
    let listen = |port| {
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        ListeningSocket { port, socket: TcpListener::bind(address).unwrap().into() }
    };
    netns::on_thread(netns.as_fd(), || OWN_PORTS.map(listen).into()).unwrap()
}

/// Whether the rules of a phase stand in a place.
pub(crate) fn rules(place: &Place, phase: Phase) -> bool {
    let verified = Programmer::new(Path::new("nft")).verify(place.netns.as_fd(), &Exclusions::default(), phase);
    verified.unwrap() == Verified::Matches
}

/// Looks again and again until it is so.
pub(crate) async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let looking = async {
        while !check() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("never: {what}"));
}
