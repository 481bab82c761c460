//! The composition root: the only file that knows every part.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use tokio::{sync::watch, time::Instant};
use underpass_discovery::{
    Counts, Mesh, Store,
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
    metrics::{self, Exposition, catalogue},
    tasks,
    telemetry::LogControl,
};

use crate::{
    account::{Accounts, Publisher},
    balance::Place,
    budget,
    capture::Watched,
    config::Config,
    debug::{self, Shown},
    enrolment::Enrolment,
    generation::Generation,
    lanes,
    pods::{Household, Pods},
    probe::Probes,
    revoke, trust,
    worker::{self, Shared},
};

/// Runs until asked to stop, then drains.
pub(crate) async fn run(config: Config, log: LogControl, descriptors: u64) -> anyhow::Result<()> {
    let exposition = metrics::install().context("install the metrics recorder")?;
    let shutdown = Shutdown::on_signals().context("handle signals")?;
    let readiness = Readiness::default();
    let generation = Generation::new(config.drain);
    tracing::info!(node = %config.node_name, generation = generation.name(), workers = config.workers(), "the node proxy starts");

    // The parts that outlive the wish to stop end with this one.
    let stop = Shutdown::new();
    let control = Control::new(config.control.clone());
    let authority =
        GrpcAuthority::for_cluster(Control::new(config.authority()), &config.cluster).context("the cluster's name")?;
    let kept = config.certificates_file.clone().map(KeptFile::new).transpose().context("--certificates-file")?;
    if let Some(kept) = kept.clone() {
        tasks::spawn("kept certificates", leave_to_successor(kept, generation.successors()));
    }
    let options = StoreOptions { kept, ..StoreOptions::default() };
    let (certificates, renewal) = CertificateStore::new(Arc::new(authority), options);
    tasks::root("certificates", renewal.run(stop.clone()), &stop);

    let store = Store::new().shown_first_to(trust::follow(certificates.revocations().clone()));
    let mesh = store.mesh();
    tasks::spawn("view readiness", complete(mesh.clone(), readiness.pending("view of the mesh")));
    tasks::root("discovery", client::run(control, discovery(&config), store, stop.clone()), &stop);
    trust::start(config.revocation_lists.clone(), certificates.revocations(), &stop);

    let watched = Watched::new(config.workers()).context("make the workers' epoll sets")?;
    let (probes, questions) = Probes::new();
    let pods = Arc::new(Pods::new(household(&config, &certificates, descriptors), watched.clone()));
    let accounts = Accounts::new(config.metrics_label_sets);
    let shared = Shared {
        mesh: mesh.clone(),
        certificates: certificates.clone(),
        probes: probes.clone(),
        accounts: accounts.clone(),
        pods: Arc::clone(&pods),
        always_tunnel: config.always_tunnel,
        sessions: Arc::default(),
        place: place(&config),
        mesh_ranges: config.mesh_ranges.as_slice().into(),
        tunnel_idle: config.tunnel_idle,
    };
    let started = worker::start(config.workers(), &watched, &shared, lanes::enter, &stop);
    let (workers, threads) = started.context("start the workers")?;
    let enrolment = Enrolment {
        zds_socket: config.zds_socket.clone(),
        node_socket: config.node_socket(),
        generation: generation.clone(),
        pods: Arc::clone(&pods),
        mesh: mesh.clone(),
        certificates: certificates.clone(),
        workers,
        probes,
    };
    let pending = readiness.pending("pods of this node");
    tasks::root("enrolment", enrolment.run(questions, pending, stop.clone()), &stop);

    tasks::root("revocation", revoke::run(mesh.clone(), Arc::clone(&pods), stop.clone()), &stop);
    let held = certificates.clone();
    exposition.add(move |page| trust::write_expiries(page, &held.status()));
    collect(&exposition, (&accounts, &pods, &mesh, &generation));
    let shown = Shown {
        generation: generation.clone(),
        pods: Arc::clone(&pods),
        mesh,
        certificates,
        accounts,
        shutdown: shutdown.clone(),
    };
    let pages = debug::pages(&config, log, &shown);
    admin::serve(config.metrics_address, Pages::new().metrics(&exposition), stop.clone())
        .await
        .context("serve metrics")?;
    let ready = Pages::new().readiness(readiness);
    admin::serve(config.ready_address, ready, stop.clone()).await.context("serve readiness")?;
    admin::serve(config.admin_address, pages, stop.clone()).await.context("serve the administration interface")?;

    generation.run(&pods, &shutdown).await;
    stop.request();
    threads.join();
    Ok(())
}

/// What is measured when somebody asks.
#[expect(clippy::cast_precision_loss, reason = "nobody has 2^53 of anything here")]
fn collect(exposition: &Exposition, (accounts, pods, mesh, generation): (&Accounts, &Arc<Pods>, &Mesh, &Generation)) {
    catalogue::ISTIO_BUILD.with(["nodeproxy", env!("CARGO_PKG_VERSION")]).set(1.0);
    let mut publisher = Publisher::new(accounts.ledger.clone(), mesh.clone());
    exposition.add(move |page| publisher.write(page));
    let budgeted = Arc::clone(pods);
    exposition.add(move |page| budget::write(&budgeted, page));
    let (accounts, pods, mesh, generation) = (accounts.clone(), Arc::clone(pods), mesh.clone(), generation.clone());
    let changed = Arc::new(Mutex::new(Instant::now()));
    tasks::spawn("view age", note_changes(mesh.subscribe(), Arc::clone(&changed)));
    exposition.add(move |_| {
        catalogue::CONNECTIONS_LIVE.with([]).set(accounts.live() as f64);
        catalogue::GENERATION_CONNECTIONS.with([generation.name()]).set(pods.count().0 as f64);
        catalogue::ACCEPTING.with([]).set(f64::from(u8::from(generation.is_accepting())));
        catalogue::PODS.with([]).set(pods.all().len() as f64);
        let view = mesh.view();
        catalogue::VIEW_VERSION.with([]).set(view.version() as f64);
        let Counts { workloads, services, authorizations } = view.counts();
        for (kind, count) in [("workload", workloads), ("service", services), ("policy", authorizations)] {
            catalogue::VIEW_OBJECTS.with([kind]).set(count as f64);
        }
        let changed = *changed.lock().unwrap_or_else(PoisonError::into_inner);
        catalogue::VIEW_AGE.with([]).set(changed.elapsed().as_secs_f64());
    });
}

/// Remembers when the view changed last.
async fn note_changes(mut views: watch::Receiver<u64>, changed: Arc<Mutex<Instant>>) {
    while views.changed().await.is_ok() {
        *changed.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

/// Certificates are kept by whichever run serves.
async fn leave_to_successor(kept: KeptFile, mut successors: watch::Receiver<Option<String>>) {
    while successors.changed().await.is_ok() {
        kept.leave(successors.borrow_and_update().is_some());
    }
}

/// Marks the view as there.
async fn complete(mesh: Mesh, pending: Pending) {
    const STEP: Duration = Duration::from_secs(3600);
    while !mesh.wait_complete(STEP).await {}
    pending.done();
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

fn household(config: &Config, certificates: &CertificateStore, descriptors: u64) -> Household {
    Household {
        trust_domain: config.trust_domain.clone(),
        cluster: config.cluster.clone(),
        certificates: certificates.clone(),
        node: Arc::new(budget::Node::new(descriptors)),
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
