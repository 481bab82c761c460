//! The operator in directory mode, whole, as node proxies and agents see it: over TLS, with the real clients.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like the tests themselves")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Parser as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use underpass_discovery::{
    Mesh, View,
    wire::xds::{DeltaDiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient},
};
use underpass_identity::{AuthorityError, CertificateAuthority as _, GrpcAuthority, Issued, KeyPair};
use underpass_model::{Health, Identity, PodUid, ServiceName, Tunnel, Workload, WorkloadUid};
use underpass_objects::{CaptureReport, CaptureState, StatusDirectory, files};
use underpass_operator::{
    app::{self, Running},
    config::Config,
};
use underpass_runtime::{
    Shutdown,
    admin::Readiness,
    control::{Control, ControlOptions},
};

const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
mod support;

use support::{EndsWithTest, PATIENCE, eventually, see};

/// An operator on loopback with directories of its own.
struct Bench {
    home: tempfile::TempDir,
    running: Running,
    readiness: Readiness,
    shutdown: EndsWithTest,
}

impl Bench {
    async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        for part in ["objects", "status", "tokens"] {
            fs::create_dir(home.path().join(part)).unwrap();
        }
        for node in ["node-1", "node-2"] {
            fs::write(home.path().join("tokens").join(node), format!("token-of-{node}-for-tests")).unwrap();
        }
        Self::start_in(home).await
    }

    /// The next operator process, with what is in the directories by then.
    async fn restart(self, meanwhile: impl FnOnce(&Path)) -> Self {
        self.shutdown.request();
        tokio::time::timeout(PATIENCE, self.running.stopped()).await.unwrap();
        meanwhile(&self.home.path().join("objects"));
        Self::start_in(self.home).await
    }

    async fn start_in(home: tempfile::TempDir) -> Self {
        let part = |name: &str| home.path().join(name).into_os_string().into_string().unwrap();
        let config = Config::try_parse_from([
            "underpass-operator",
            "--objects",
            &part("objects"),
            "--status",
            &part("status"),
            "--state",
            &part("state"),
            "--node-tokens",
            &part("tokens"),
            "--listen",
            "127.0.0.1:0",
        ]);
        let (readiness, shutdown) = (Readiness::default(), Shutdown::new());
        let running = app::start(&config.unwrap(), &readiness, &shutdown).await.unwrap();
        Self { home, running, readiness, shutdown: EndsWithTest(shutdown) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn put(&self, file: &str, manifests: &str) {
        files::write(&self.path("objects").join(file), manifests.as_bytes(), 0o644).unwrap();
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.path("objects").join(file)).unwrap();
    }

    fn status(&self) -> StatusDirectory {
        StatusDirectory::open(&self.path("status")).unwrap()
    }

    fn control(&self, node: &str) -> Control {
        support::control(&self.running, self.home.path(), node)
    }

    fn subscribe(&self, node: &str) -> Mesh {
        support::subscribe(self.control(node), node, &self.shutdown)
    }

    async fn sign(&self, node: &str, identity: &Identity) -> Result<Issued, AuthorityError> {
        let key = Arc::new(KeyPair::generate().unwrap());
        let csr = key.csr_pem(identity).unwrap();
        let answer = GrpcAuthority::new(self.control(node)).sign(csr, identity, Duration::from_secs(3600)).await?;
        Ok(Issued::from_answer(&answer, key, identity, std::time::SystemTime::now()).unwrap())
    }
}

fn web(view: &View) -> Option<Arc<Workload>> {
    view.workload(&WorkloadUid::new("Kubernetes//Pod/shop/web")).cloned()
}

fn pod(name: &str, node: &str, address: &str, ready: bool) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: uid-{name}, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: {node}, serviceAccountName: {name}}}\n\
         status: {{podIPs: [{{ip: {address}}}], conditions: [{{type: Ready, status: '{}'}}]}}\n",
        if ready { "True" } else { "False" }
    )
}

const SERVICE: &str = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
     spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n";

fn report(state: CaptureState) -> CaptureReport {
    CaptureReport {
        pod_uid: "uid-web".into(),
        namespace: "shop".into(),
        name: "web".into(),
        node: "node-1".into(),
        state,
        generation: 0,
    }
}

fn identity(service_account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{service_account}").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn workloads_come_change_and_go_with_their_files() {
    let bench = Bench::start().await;
    let mesh = bench.subscribe("node-1");
    assert!(mesh.wait_complete(PATIENCE).await, "an empty mesh is complete too");
    bench.put("web.yaml", &pod("web", "node-1", "10.1.0.5", true));
    let view = see(&mesh, "pod comes", |view| web(view).is_some()).await;
    assert_eq!(web(&view).unwrap().tunnel, Tunnel::None, "not captured yet");

    bench.put("service.yaml", SERVICE);
    let name = ServiceName::new("shop", "web.shop.svc.cluster.local");
    see(&mesh, "service comes with its endpoint", |view| view.endpoints(&name).count() == 1).await;

    bench.status().report(&report(CaptureState::Captured)).unwrap();
    see(&mesh, "capture is reported", |view| web(view).unwrap().tunnel == Tunnel::Hbone).await;

    bench.put("web.yaml", &pod("web", "node-1", "10.1.0.6", false));
    let view = see(&mesh, "pod changes", |view| web(view).unwrap().health == Health::Unhealthy).await;
    assert_eq!(web(&view).unwrap().addresses, ["10.1.0.6".parse::<std::net::IpAddr>().unwrap()]);

    bench.remove("web.yaml");
    let view = see(&mesh, "pod goes", |view| web(view).is_none()).await;
    assert_eq!((view.endpoints(&name).count(), view.counts().services), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_keeps_its_last_good_state_until_it_is_mended() {
    let bench = Bench::start().await;
    bench.put("web.yaml", &pod("web", "node-1", "10.1.0.5", true));
    let mesh = bench.subscribe("node-1");
    see(&mesh, "pod comes", |view| web(view).is_some()).await;
    bench.put("web.yaml", &format!("{}spec: wrong\n", pod("web", "node-1", "10.1.0.9", true)));
    bench.put("marker.yaml", &pod("marker", "node-2", "10.1.0.7", true));
    let marker = WorkloadUid::new("Kubernetes//Pod/shop/marker");
    let view = see(&mesh, "a later change elsewhere", |view| view.workload(&marker).is_some()).await;
    assert_eq!(web(&view).unwrap().addresses, ["10.1.0.5".parse::<std::net::IpAddr>().unwrap()]);
    let problems = bench.running.objects.borrow().problems.clone();
    assert_eq!((problems.len(), problems[0].error.line()), (1, Some(7)), "{problems:?}");
    bench.put("web.yaml", &pod("web", "node-1", "10.1.0.9", true));
    let mended = ["10.1.0.9".parse::<std::net::IpAddr>().unwrap()];
    see(&mesh, "mended", |view| web(view).unwrap().addresses == mended).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_broken_at_the_next_start_does_not_take_its_pods_out_of_the_mesh() {
    let bench = Bench::start().await;
    bench.put("web.yaml", &pod("web", "node-1", "10.1.0.5", true));
    see(&bench.subscribe("node-1"), "pod comes", |view| web(view).is_some()).await;
    let broken = format!("{}spec: wrong\n", pod("web", "node-1", "10.1.0.9", true));
    let bench = bench.restart(|objects| fs::write(objects.join("web.yaml"), broken).unwrap()).await;
    let mesh = bench.subscribe("node-1");
    let view = see(&mesh, "complete", View::is_complete).await;
    assert_eq!(web(&view).unwrap().addresses, ["10.1.0.5".parse::<std::net::IpAddr>().unwrap()]);
    let problems = bench.running.objects.borrow().problems.clone();
    assert!(problems[0].origin.to_string().ends_with("web.yaml") && !problems[0].is_lost, "{problems:?}");
    assert_eq!(bench.readiness.missing(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_of_which_no_good_state_is_known_is_named_until_it_is_mended() {
    let bench = Bench::start().await;
    bench.put("marker.yaml", &pod("marker", "node-2", "10.1.0.7", true));
    let bench = bench.restart(|objects| fs::write(objects.join("web.yaml"), "kind: [").unwrap()).await;
    let view = see(&bench.subscribe("node-1"), "the rest of the mesh", View::is_complete).await;
    assert_eq!(view.counts().workloads, 1);
    let missing = bench.readiness.missing();
    assert!(missing.len() == 1 && missing[0].ends_with("web.yaml"), "{missing:?}");
    assert!(bench.running.objects.borrow().problems[0].is_lost);
    bench.put("web.yaml", &pod("web", "node-1", "10.1.0.5", true));
    eventually("ready", async || bench.readiness.missing().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_token() {
    let bench = Bench::start().await;
    let mut streams = Vec::new();
    for node in ["node-1", "node-2"] {
        let mut stream = SlowSubscriber::new(&bench.control(node)).await;
        let first = stream.hear().await;
        stream.acknowledge(first).await;
        streams.push(stream);
    }
    fs::remove_file(bench.path("tokens/node-1")).unwrap();
    let ended = tokio::time::timeout(PATIENCE, streams[0].responses.message()).await.unwrap();
    assert_eq!(ended.unwrap_err().code(), Code::Aborted);
    bench.put("web.yaml", &pod("web", "node-1", "10.1.0.5", true));
    streams[1].hear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_certificates_for_its_own_pods_only() {
    let bench = Bench::start().await;
    bench.put("pods.yaml", &(pod("web", "node-1", "10.1.0.5", true) + &pod("api", "node-2", "10.2.0.5", true)));
    let mesh = bench.subscribe("node-1");
    see(&mesh, "pods come", |view| view.counts().workloads == 2).await;
    let issued = bench.sign("node-1", &identity("web")).await.unwrap();
    assert_eq!(*issued.certificate.identity(), identity("web"));
    bench.sign("node-2", &identity("api")).await.unwrap();
    for (node, account) in [("node-1", "api"), ("node-2", "web"), ("node-1", "nobody")] {
        let error = bench.sign(node, &identity(account)).await.err().unwrap();
        let AuthorityError::Refused(status) = error else { panic!("{error}") };
        assert_eq!(status.code(), Code::PermissionDenied, "{node} {account}: {status}");
    }
    bench.remove("pods.yaml");
    see(&mesh, "pods go", |view| view.counts().workloads == 0).await;
    assert!(bench.sign("node-1", &identity("web")).await.is_err(), "the pod is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_token_gets_nothing_until_it_has_one() {
    let bench = Bench::start().await;
    bench.put("web.yaml", &pod("web", "node-3", "10.1.0.5", true));
    // The stranger's own file, not the operator's.
    let (theirs, known) = (bench.path("stranger"), bench.path("tokens/node-3"));
    fs::write(&theirs, "token-of-node-3-for-tests").unwrap();
    let control = Control::new(ControlOptions {
        address: format!("https://{}", bench.running.address),
        root_file: bench.path("state/root.pem"),
        server_name: "underpass-operator.underpass-system.svc".into(),
        token_file: theirs,
    });
    let subscribed = async || {
        let (_requests, stream) = mpsc::channel(1);
        let mut request = tonic::Request::new(ReceiverStream::<DeltaDiscoveryRequest>::new(stream));
        control.authorize(&mut request).await.unwrap();
        let channel = control.channel().await.unwrap();
        AggregatedDiscoveryServiceClient::new(channel).delta_aggregated_resources(request).await.map(drop)
    };
    assert_eq!(subscribed().await.unwrap_err().code(), Code::Unauthenticated);
    let authority = GrpcAuthority::new(control.clone());
    let csr = || KeyPair::generate().unwrap().csr_pem(&identity("web")).unwrap();
    let sign = async || authority.sign(csr(), &identity("web"), Duration::ZERO).await;
    let Err(AuthorityError::Refused(status)) = sign().await else { panic!("signed for a stranger") };
    assert_eq!(status.code(), Code::Unauthenticated);
    files::write(&known, b"token-of-node-3-for-tests\n", 0o600).unwrap();
    eventually("the token is known", async || sign().await.is_ok()).await;
    subscribed().await.unwrap();
    fs::remove_file(&known).unwrap();
    eventually("the token is revoked", async || sign().await.is_err()).await;
}

/// A subscriber that answers only when told to.
struct SlowSubscriber {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: tonic::Streaming<underpass_discovery::wire::xds::DeltaDiscoveryResponse>,
}

impl SlowSubscriber {
    async fn new(control: &Control) -> Self {
        let (requests, stream) = mpsc::channel(8);
        let first = DeltaDiscoveryRequest { type_url: ADDRESS_TYPE.into(), ..Default::default() };
        requests.send(first).await.unwrap();
        let mut request = tonic::Request::new(ReceiverStream::new(stream));
        control.authorize(&mut request).await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(control.channel().await.unwrap());
        let responses = client.delta_aggregated_resources(request).await.unwrap().into_inner();
        Self { requests, responses }
    }

    /// The nonce of the next response.
    async fn hear(&mut self) -> String {
        tokio::time::timeout(PATIENCE, self.responses.message()).await.unwrap().unwrap().unwrap().nonce
    }

    async fn acknowledge(&self, response_nonce: String) {
        let answer = DeltaDiscoveryRequest { type_url: ADDRESS_TYPE.into(), response_nonce, ..Default::default() };
        self.requests.send(answer).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_may_leave_when_every_subscriber_knows() {
    let bench = Bench::start().await;
    bench.put("web.yaml", &pod("web", "node-1", "10.1.0.5", true));
    let status = bench.status();
    status.report(&report(CaptureState::Captured)).unwrap();
    let mesh = bench.subscribe("node-1");
    see(&mesh, "captured", |view| web(view).is_some_and(|web| web.tunnel == Tunnel::Hbone)).await;
    let mut slow = SlowSubscriber::new(&bench.control("node-2")).await;
    let first = slow.hear().await;
    slow.acknowledge(first).await;

    let generation = status.report(&report(CaptureState::Leaving)).unwrap();
    see(&mesh, "leaving", |view| web(view).unwrap().tunnel == Tunnel::None).await;
    let none = slow.hear().await;
    let uid = PodUid::new("uid-web");
    assert!(!status.is_withdrawn(&uid, generation), "node-2 has not answered");
    slow.acknowledge(none).await;
    assert!(status.withdrawn(&uid, generation, PATIENCE).await);

    status.report(&report(CaptureState::Captured)).unwrap();
    see(&mesh, "captured again", |view| web(view).unwrap().tunnel == Tunnel::Hbone).await;
    eventually("the old answer is taken away", async || status.read().unwrap().withdrawn.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_when_asked_with_subscribers_connected() {
    let bench = Bench::start().await;
    let mesh = bench.subscribe("node-1");
    assert!(mesh.wait_complete(PATIENCE).await);
    let Bench { home: _home, running, shutdown, .. } = bench;
    shutdown.request();
    tokio::time::timeout(PATIENCE, running.stopped()).await.unwrap();
}
