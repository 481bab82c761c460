//! The operator under measurement, and what it takes to do something.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use underpass_lab::Options;
use underpass_model::names::{OPERATOR_PORT, SYSTEM_NAMESPACE};
use underpass_runtime::control::ControlOptions;

use super::{cluster::Cluster, process::Process, subscriber};
use crate::times::is_ready;

/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(300);
const NAME: &str = "underpass-operator.underpass-system.svc";

/// The operator, started and started again.
pub(super) struct Operator {
    program: PathBuf,
    log: PathBuf,
    kubeconfig: PathBuf,
    pub(super) process: Process,
}

/// What something took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Took {
    pub(super) seconds: f64,
    /// Seconds of processor time.
    pub(super) cpu: f64,
    /// The most memory meanwhile, in MiB.
    pub(super) peak: f64,
}

impl Operator {
    /// Starts it, and waits until it serves.
    pub(super) async fn start(cluster: &Cluster, home: &Path) -> Result<(Self, Took)> {
        let program = Options::new("any")?.binaries.join("underpass-operator");
        let (log, kubeconfig) = (home.join("operator.log"), cluster.kubeconfig.clone());
        let begun = Instant::now();
        let process = launch(&program, &log, &kubeconfig)?;
        let mut this = Self { program, log, kubeconfig, process };
        this.ready(begun).await?;
        let took = this.since(begun, 0.0)?;
        Ok((this, took))
    }

    /// As if it had crashed; its successor starts at once.
    pub(super) fn restart(&mut self) -> Result<()> {
        self.process.kill();
        self.process = launch(&self.program, &self.log, &self.kubeconfig)?;
        Ok(())
    }

    async fn ready(&mut self, begun: Instant) -> Result<()> {
        while !is_ready() {
            self.process.alive().context("the operator")?;
            ensure!(begun.elapsed() < PATIENCE, "the operator is not ready after {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// What happened since a moment at which it had used so much processor time.
    pub(super) fn since(&self, begun: Instant, cpu: f64) -> Result<Took> {
        let seconds = begun.elapsed().as_secs_f64();
        Ok(Took { seconds, cpu: self.process.cpu()? - cpu, peak: self.process.peak()? })
    }

    /// How subscribers reach it, once it has told whom to trust.
    pub(super) async fn reached(&self, client: &Client, home: &Path) -> Result<subscriber::Operator> {
        const ROOTS: (&str, &str) = ("underpass-root", "root.pem");
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
        let begun = Instant::now();
        let roots = loop {
            let map = api.get_opt(ROOTS.0).await?;
            if let Some(roots) = map.and_then(|map| map.data?.remove(ROOTS.1)) {
                break roots;
            }
            ensure!(begun.elapsed() < PATIENCE, "the operator publishes no roots");
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let root_file = home.join(ROOTS.1);
        fs::write(&root_file, roots)?;
        let address = format!("https://127.0.0.1:{OPERATOR_PORT}");
        let token_file = PathBuf::new();
        let options = ControlOptions { address, root_file, server_name: NAME.to_owned(), token_file };
        Ok(subscriber::Operator { options, tokens: home.join("tokens") })
    }
}

fn launch(program: &Path, log: &Path, kubeconfig: &Path) -> Result<Process> {
    let arguments = ["--kubeconfig", &kubeconfig.display().to_string(), "--instance", "operator-0"];
    Process::start(log, program, &arguments.map(str::to_owned))
}
