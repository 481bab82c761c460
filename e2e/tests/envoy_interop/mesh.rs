//! A lab with captured pods, and pods in which an Envoy takes the place of the mesh.

use std::{
    fs::File,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use underpass_e2e::{
    MESH, PLAIN, alone,
    envoy::{self, Certificate, Envoy},
    identity_of, serve, server, wait_authenticated,
};
use underpass_identity::GrpcAuthority;
use underpass_lab::{Place, Pod, PodSpec, ScopedLab};
use underpass_model::names::OPERATOR_PORT;
use underpass_runtime::control::{Control, ControlOptions};

/// What the tests of this file share.
pub(crate) struct Mesh {
    pub(crate) lab: ScopedLab,
    /// Captured, on `node-a`.
    pub(crate) client: Pod,
    /// Captured, a server on `node-b`.
    pub(crate) far: Pod,
    /// Not captured, a server on `node-b`.
    pub(crate) gateway: Pod,
    /// Not captured, on `node-a`.
    pub(crate) egress: Pod,
}

/// The lab, made by whichever test comes first and gone with the last.
pub(crate) fn mesh() -> Arc<Mesh> {
    static SHARED: Mutex<Weak<Mesh>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(mesh) = shared.upgrade() {
        return mesh;
    }
    // Before the lab, as it may take longer.
    envoy::installed().unwrap_or_else(|error| panic!("{error:?}"));
    let mesh = Arc::new(Mesh::make().unwrap_or_else(|error| panic!("{error:?}")));
    *shared = Arc::downgrade(&mesh);
    mesh
}

impl Mesh {
    fn make() -> Result<Self> {
        let lab = alone()?;
        let mesh = Self {
            client: lab.pod_add(&PodSpec::new("node-a", MESH, "client"))?,
            far: server(&lab, &PodSpec::new("node-b", MESH, "far"))?,
            gateway: lab.pod_add(&PodSpec::new("node-b", PLAIN, "gateway"))?,
            egress: lab.pod_add(&PodSpec::new("node-a", PLAIN, "egress"))?,
            lab,
        };
        serve(&mesh.lab, &mesh.gateway)?;
        wait_authenticated(&mesh.lab, &mesh.client, &mesh.far)?;
        Ok(mesh)
    }

    /// An Envoy in a pod.
    pub(crate) fn envoy(&self, pod: &Pod, listeners: &[Value], clusters: &[Value]) -> Envoy {
        let bootstrap = envoy::bootstrap(listeners, clusters);
        Envoy::start(&bootstrap, |argv| self.lab.exec(pod.place(), argv)).unwrap_or_else(|error| panic!("{error:?}"))
    }

    /// A certificate for a pod, from the operator, asked for as the proxy of its node asks.
    pub(crate) fn certificate(&self, pod: &Pod) -> Certificate {
        self.ask_operator(pod).unwrap_or_else(|error| panic!("{error:?}"))
    }

    fn ask_operator(&self, pod: &Pod) -> Result<Certificate> {
        let addresses = self.lab.run(Place::Control, &["hostname", "-I"], underpass_e2e::SHORT)?.ok()?;
        let address = addresses.split_whitespace().next().context("the operator has no address")?;
        let paths = self.lab.paths();
        let control = Control::new(ControlOptions {
            address: format!("https://{address}:{OPERATOR_PORT}"),
            root_file: paths.operator_root(),
            server_name: "underpass-operator.underpass-system.svc".to_owned(),
            token_file: paths.tokens().join(&pod.node),
        });
        let identity = identity_of(pod).parse()?;
        let network = Path::new("/run/netns").join(paths.namespace(&Place::Control));
        // A thread of its own, as it ends in another network namespace than it began in.
        let ask = move || {
            setns(File::open(network)?, CloneFlags::CLONE_NEWNET)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let signed = async { Certificate::signed_by(&GrpcAuthority::new(control), &identity).await };
            runtime.block_on(async { tokio::time::timeout(underpass_e2e::SHORT, signed).await })?
        };
        std::thread::spawn(ask).join().ok().context("asking the operator panicked")?
    }
}

/// A port of a pod.
pub(crate) fn at(pod: &Pod, port: u16) -> SocketAddr {
    SocketAddr::new(pod.v4().unwrap(), port)
}
