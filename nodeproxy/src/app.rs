//! The composition root: the only file that knows every part.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use tokio::time::Instant;
use underpass_discovery::{
    Mesh, Store,
    client::{self, ClientOptions},
    kept::KeptView,
};
use underpass_identity::{
    authority::GrpcAuthority,
    store::{CertificateStore, KeptFile, StoreOptions},
};
use underpass_model::Locality;
use underpass_runtime::{
    Shutdown,
    admin::{self, Pages, Pending, Readiness},
    control::Control,
    tasks,
    telemetry::LogControl,
};

use crate::{
    balance::Place,
    capture::Watched,
    config::Config,
    debug::{self, Shown},
    enrolment::Enrolment,
    pods::{Household, Pods},
    probe::Probes,
    revoke,
    worker::{self, Shared},
};

/// Runs until asked to stop, then drains.
pub(crate) async fn run(config: Config, log: LogControl) -> anyhow::Result<()> {
    let recorder = admin::install_recorder().context("install the metrics recorder")?;
    let shutdown = Shutdown::on_signals().context("handle signals")?;
    let readiness = Readiness::default();
    let generation = format!("{}-{:x}", std::process::id(), fastrand::u64(..));
    tracing::info!(node = %config.node_name, generation, workers = config.workers(), "the node proxy starts");

    // The parts that outlive the wish to stop end with this one.
    let stop = Shutdown::new();
    let control = Control::new(config.control.clone());
    let authority = GrpcAuthority::for_cluster(control.clone(), &config.cluster).context("the cluster's name")?;
    let kept = config.certificates_file.clone().map(KeptFile::new).transpose().context("--certificates-file")?;
    let options = StoreOptions { kept, ..StoreOptions::default() };
    let (certificates, renewal) = CertificateStore::new(Arc::new(authority), options);
    tasks::root("certificates", renewal.run(stop.clone()), &stop);

    let store = Store::new();
    let mesh = store.mesh();
    tasks::spawn("view readiness", complete(mesh.clone(), readiness.pending("view of the mesh")));
    tasks::root("discovery", client::run(control, discovery(&config), store, stop.clone()), &stop);

    let watched = Watched::new(config.workers()).context("make the workers' epoll sets")?;
    let (probes, questions) = Probes::new();
    let household = Household {
        trust_domain: config.trust_domain.clone(),
        cluster: config.cluster.clone(),
        certificates: certificates.clone(),
    };
    let pods = Arc::new(Pods::new(household, watched.clone()));
    let shared = Shared {
        mesh: mesh.clone(),
        certificates: certificates.clone(),
        probes: probes.clone(),
        place: place(&config),
        mesh_ranges: config.mesh_ranges.as_slice().into(),
        drain: Shutdown::new(),
    };
    let (workers, threads) = worker::start(config.workers(), &watched, &shared, &stop).context("start the workers")?;
    let enrolment = Enrolment {
        zds_socket: config.zds_socket.clone(),
        node_socket: config.node_socket(),
        generation,
        pods: Arc::clone(&pods),
        certificates: certificates.clone(),
        workers,
        probes,
        draining: shutdown.clone(),
    };
    let pending = readiness.pending("pods of this node");
    tasks::root("enrolment", enrolment.run(questions, pending, stop.clone()), &stop);

    tasks::spawn("revocation", revoke::run(mesh.clone(), Arc::clone(&pods), stop.clone()));
    let draining = Arc::clone(&pods);
    let pages = debug::pages(&config, log, &Shown { pods, mesh, certificates, shutdown: shutdown.clone() });
    admin::serve(config.metrics_address, Pages::new().metrics(&recorder), stop.clone())
        .await
        .context("serve metrics")?;
    let ready = Pages::new().readiness(readiness);
    admin::serve(config.ready_address, ready, stop.clone()).await.context("serve readiness")?;
    admin::serve(config.admin_address, pages, stop.clone()).await.context("serve the administration interface")?;

    shutdown.requested().await;
    draining.stop_accepting();
    shared.drain.request();
    drain(&draining, config.drain).await;
    stop.request();
    threads.join();
    Ok(())
}

/// Marks the view as there.
async fn complete(mesh: Mesh, pending: Pending) {
    const STEP: Duration = Duration::from_secs(3600);
    while !mesh.wait_complete(STEP).await {}
    pending.done();
}

/// Waits until the last connection has ended, or the deadline.
async fn drain(pods: &Pods, deadline: Duration) {
    const STEP: Duration = Duration::from_millis(50);
    let live = || pods.all().values().map(|pod| pod.connections.open()).sum::<u64>();
    let until = Instant::now() + deadline;
    tracing::info!(live = live(), deadline_s = deadline.as_secs(), "draining");
    while live() > 0 && Instant::now() < until {
        tokio::time::sleep(STEP).await;
    }
    match live() {
        0 => tracing::info!("every connection has ended"),
        cut => tracing::warn!(cut, "the drain deadline ends these connections"),
    }
}

/// How discovery's server knows us.
fn discovery(config: &Config) -> ClientOptions {
    let metadata = [("NODE_NAME", config.node_name.as_str()), ("CLUSTER_ID", config.cluster.as_str())];
    ClientOptions {
        node_id: format!("nodeproxy~{}", config.node_name),
        metadata: metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        on_demand: config.on_demand,
        kept: config.view_file.clone().map(KeptView::new),
    }
}

fn place(config: &Config) -> Place {
    Place {
        network: config.network.as_str().into(),
        cluster: config.cluster.as_str().into(),
        node: config.node_name.as_str().into(),
        locality: Locality::default(),
    }
}
