//! An API server and its store, alone: no kubelet, no scheduler, no controller. They live in a network namespace of this
//! process and a temporary directory, so that nothing of them is left.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::sched::{CloneFlags, unshare};
use rcgen::KeyPair;
use serde_json::json;

use super::process::Process;

const ETCD: &str = "http://127.0.0.1:2379";
const API: &str = "https://127.0.0.1:6443";
/// Who may do everything; nobody else can reach the server.
const TOKEN: &str = "bench";
/// How long it may take until it answers, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// What the mesh's own kinds are.
const DEFINITIONS: [&str; 3] = [
    include_str!("../../../deploy/crds/authorizationpolicies.yaml"),
    include_str!("../../../deploy/crds/meshconfigs.yaml"),
    include_str!("../../../deploy/crds/meshtlsmodes.yaml"),
];

/// An API server that runs.
pub(super) struct Cluster {
    pub(super) client: Client,
    pub(super) kubeconfig: PathBuf,
    pub(super) server: Process,
    _etcd: Process,
}

/// Gives this process a network of its own, in which there is nothing but itself. Call it while there is one thread.
pub(super) fn leave_network() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace, which takes root")?;
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("ip")?;
    ensure!(status.success(), "ip link set lo up: {status}");
    Ok(())
}

impl Cluster {
    /// Starts it with Kubernetes' programs of a directory.
    pub(super) async fn up(programs: &Path, home: &Path) -> Result<Self> {
        let etcd = Process::start(
            &home.join("etcd.log"),
            &programs.join("etcd"),
            &[
                format!("--data-dir={}", home.join("etcd").display()),
                format!("--listen-client-urls={ETCD}"),
                format!("--advertise-client-urls={ETCD}"),
                "--listen-peer-urls=http://127.0.0.1:2380".into(),
                "--unsafe-no-fsync".into(),
                "--quota-backend-bytes=8589934592".into(),
                "--log-level=warn".into(),
            ],
        )?;
        let (tokens, key, public) = (home.join("tokens.csv"), home.join("accounts.key"), home.join("accounts.pub"));
        fs::write(&tokens, format!("{TOKEN},bench,bench,system:masters\n"))?;
        let pair = KeyPair::generate()?;
        fs::write(&key, pair.serialize_pem())?;
        fs::write(&public, pair.public_key_pem())?;
        let mut server = Process::start(
            &home.join("apiserver.log"),
            &programs.join("kube-apiserver"),
            &[
                format!("--etcd-servers={ETCD}"),
                format!("--cert-dir={}", home.join("serving").display()),
                format!("--token-auth-file={}", tokens.display()),
                format!("--service-account-key-file={}", public.display()),
                format!("--service-account-signing-key-file={}", key.display()),
                "--service-account-issuer=https://kubernetes.default.svc".into(),
                "--authorization-mode=RBAC".into(),
                "--bind-address=127.0.0.1".into(),
                // Nobody looks for the server by its Service.
                "--advertise-address=192.0.2.1".into(),
                "--endpoint-reconciler-type=none".into(),
                "--service-cluster-ip-range=10.96.0.0/12".into(),
            ],
        )?;
        let kubeconfig = home.join("kubeconfig");
        let root = home.join("serving/apiserver.crt");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "clusters": [{ "name": "bench", "cluster": { "server": API, "certificate-authority": root } }],
            "users": [{ "name": "bench", "user": { "token": TOKEN } }],
            "contexts": [{ "name": "bench", "context": { "cluster": "bench", "user": "bench" } }],
        });
        fs::write(&kubeconfig, text.to_string())?;
        let client = ready(&kubeconfig, &mut server).await.context("the API server")?;
        let cluster = Self { client, kubeconfig, server, _etcd: etcd };
        cluster.define(&programs.join("kubectl"), home)?;
        Ok(cluster)
    }

    fn define(&self, kubectl: &Path, home: &Path) -> Result<()> {
        for (number, definition) in DEFINITIONS.iter().enumerate() {
            let file = home.join(format!("definition-{number}.yaml"));
            fs::write(&file, definition)?;
            let mut command = Command::new(kubectl);
            command.arg("--kubeconfig").arg(&self.kubeconfig).args(["create", "-f"]).arg(&file);
            let output = command.output().context("kubectl")?;
            ensure!(output.status.success(), "kubectl create: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

async fn ready(kubeconfig: &Path, server: &mut Process) -> Result<Client> {
    let begun = Instant::now();
    loop {
        server.alive()?;
        let last = match ask(kubeconfig).await {
            Ok(client) => return Ok(client),
            Err(error) => error,
        };
        ensure!(begun.elapsed() < PATIENCE, "it is not ready after {PATIENCE:?}: {last:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn ask(kubeconfig: &Path) -> Result<Client> {
    // Its certificate is there only once it has begun.
    let (file, options) = (Kubeconfig::read_from(kubeconfig)?, KubeConfigOptions::default());
    let client = Client::try_from(Config::from_custom_kubeconfig(file, &options).await?)?;
    client.request_text(http::Request::get("/readyz").body(Vec::new())?).await?;
    Ok(client)
}
