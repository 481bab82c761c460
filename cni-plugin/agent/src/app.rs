//! The only file that knows every part: builds them, in the order in which they may be used, and runs them.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::Method;
use tokio::{sync::watch, time::timeout};
use underpass_enrolment::{
    plugin::EnrolledNamespaces,
    seqpacket::{ListenError, Listener},
};
use underpass_objects::{Snapshot, files};
use underpass_runtime::{
    Chain, Shutdown,
    admin::{self, Pending, Readiness},
    metrics::{self, Exposition},
    tasks,
};

use crate::{
    config::{Config, UninstallOptions},
    facts,
    find::Holders,
    install::{self, Place, guard::Guard},
    memory::{Memory, MemoryError},
    plugin_server::{self, PluginServer},
    pods::{Gates, Limits, Pods, Shared},
    probe::Prober,
    program::Programmer,
    proxies::{self, AnswerProbe, Proxies},
    reports::Reports,
    source::{self, Source, SourceError},
    uninstall,
};

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A directory or file of its own.
    #[error("cannot use {path}")]
    Path {
        /// Which.
        path: PathBuf,
        /// What the file system says.
        #[source]
        source: io::Error,
    },
    /// What it remembered.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A socket for node proxies.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Objects and reports.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// Runs the agent until asked to stop. Pods stay as they are then: their proxy goes on, the next agent takes over. Only
/// where the mesh itself is being taken away, everything of it leaves the node first.
///
/// # Errors
/// [`RunError`] if a part cannot start.
pub async fn run(config: Config, limits: Limits, asked: Shutdown) -> Result<(), RunError> {
    let recorder = metrics::install().inspect_err(|error| tracing::debug!(%error, "no metrics")).ok();
    let path = |path: &PathBuf| {
        let path = path.clone();
        move |source| RunError::Path { path, source }
    };
    // What runs goes on while the pods leave.
    let shutdown = Shutdown::new();
    let proxies = Proxies::default();
    let readiness = Readiness::default();
    let (pods_known, listening) = (readiness.pending("objects of this node"), readiness.pending("sockets"));
    serve_pages(&config, &proxies, &readiness, recorder.as_ref(), &shutdown);
    let Source { objects, reports } = Box::pin(Source::open(&config, &shutdown)).await?;
    make_parents(&config)?;

    let memory = Memory::open(&config.state)?;
    let shared = Shared {
        node: config.node_name.clone(),
        proxies: proxies.clone(),
        programmer: Programmer::new(&config.nft),
        memory: memory.clone(),
        reports: reports.clone(),
        holders: Holders::default(),
        gates: Gates::default(),
        limits,
    };
    let now = objects.borrow().clone();
    let facts = facts::of_node(&now.objects, &config.node_name);
    let pods = Arc::new(Pods::restore(shared, facts, now.problems.is_empty()));
    // Only now: the first proxy's snapshot must name every pod that is captured.
    let prober = Prober::new(config.kubelet());
    let answer: AnswerProbe = Arc::new(move |connection| {
        let prober = prober.clone();
        Box::pin(async move { prober.origin(connection).await })
    });
    let plugin = plugin_server::bind(&config.plugin_socket).map_err(path(&config.plugin_socket))?;
    let server = PluginServer { pods: Arc::clone(&pods), objects: objects.clone() };
    let (zds_listener, node_listener) = (Listener::bind(&config.zds_socket)?, Listener::bind(&config.node_socket)?);
    listening.done();
    let guarding = guard_plugin(&config, &readiness, &shutdown);
    tracing::info!(node = config.node_name, "the node agent runs");
    let (zds, node) = (proxies.clone(), proxies);
    let end = async {
        asked.requested().await;
        let goes = match &reports {
            Reports::Cluster { client, .. } => Box::pin(source::is_mesh_going(client)).await,
            Reports::Directory(_) => false,
        };
        if goes {
            tracing::info!("the mesh is being taken off this cluster; it leaves this node");
            guarding.request();
            let facts = facts::of_node(&objects.borrow().objects.clone(), &config.node_name);
            pods.leave_all(facts, LEAVE).await;
        }
        shutdown.request();
        goes
    };
    let (.., goes) = tokio::join!(
        proxies::serve_zds(zds_listener, zds, shutdown.clone()),
        proxies::serve_node(node_listener, node, answer, shutdown.clone()),
        server.serve(plugin, shutdown.clone()),
        follow(&config, objects.clone(), &pods, pods_known, &shutdown),
        end,
    );
    if timeout(LAST_STEPS, pods.stop()).await.is_err() {
        tracing::warn!("some pods were still being worked on; the next agent goes on from there");
    }
    if goes {
        clean_up(&config, &memory).await;
    }
    Ok(())
}

/// How long pods have to leave gently when the mesh goes.
const LEAVE: Duration = Duration::from_secs(25);

/// What a pod's task is at when the agent stops takes no longer, unless a disk or `nft` hangs.
const LAST_STEPS: Duration = Duration::from_secs(10);

/// Takes away what the pods have left, and everything else.
async fn clean_up(config: &Config, memory: &Memory) {
    let options = UninstallOptions::after(config);
    // Nothing is captured that is not remembered first.
    let pods = memory.all().into_iter().filter_map(|(_, pod)| pod.netns?.reopen()).collect::<Vec<_>>();
    let cleaned = tokio::task::spawn_blocking(move || uninstall::run(&options, pods)).await;
    match cleaned {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(error = %Chain(&error), "something of the mesh stays on this node"),
        Err(error) => tracing::error!(%error, "taking the mesh off this node failed"),
    }
}

fn serve_pages(
    config: &Config,
    proxies: &Proxies,
    readiness: &Readiness,
    recorder: Option<&Exposition>,
    shutdown: &Shutdown,
) {
    let with_metrics = |pages: admin::Pages| match recorder {
        Some(recorder) => pages.metrics(recorder),
        None => pages,
    };
    let all = config.admin_address.map(|address| (address, with_metrics(pages(proxies, readiness.clone()))));
    let metrics = config.metrics_address.map(|address| (address, with_metrics(admin::Pages::new())));
    for (address, pages) in all.into_iter().chain(metrics) {
        let stop = shutdown.clone();
        tasks::spawn("admin", async move {
            if let Err(error) = admin::serve(address, pages, stop).await {
                tracing::error!(%error, %address, "no administration interface");
            }
        });
    }
}

/// Only once the agent can answer it.
/// The guard ends when asked to by the answer, or with everything else.
fn guard_plugin(config: &Config, readiness: &Readiness, shutdown: &Shutdown) -> Shutdown {
    let stop = shutdown.child();
    if let Some(program) = config.install_plugin.clone() {
        let entry = install::entry(&config.plugin_socket, &config.enrolled_namespaces);
        let guard = Guard { place: Place::from(&config.place), program, entry };
        tasks::root("plugin guard", guard.keep(readiness.pending("plugin"), stop.clone()), &stop);
    }
    stop
}

/// Passes every change of the objects on, and leaves the list of enrolled namespaces for the plugin.
async fn follow(
    config: &Config,
    mut objects: watch::Receiver<Snapshot>,
    pods: &Pods,
    known: Pending,
    shutdown: &Shutdown,
) {
    let mut written = None;
    let (mut sure, mut known) = (false, Some(known));
    loop {
        let now = objects.borrow_and_update().clone();
        let readable = now.problems.is_empty();
        sure |= readable;
        if sure && let Some(known) = known.take() {
            known.done();
        }
        pods.update(facts::of_node(&now.objects, &config.node_name), readable);
        let list = facts::enrolled_namespaces(&now.objects).to_string();
        let list = if sure { list } else { with_former(&config.enrolled_namespaces, &list) };
        if written.as_ref() != Some(&list) {
            match files::write(&config.enrolled_namespaces, list.as_bytes(), 0o644) {
                Ok(()) => written = Some(list.clone()),
                Err(error) => {
                    let path = config.enrolled_namespaces.display();
                    tracing::error!(%error, %path, "the list of enrolled namespaces cannot be written");
                }
            }
        }
        let is_written = written.as_ref() == Some(&list);
        tokio::select! {
            () = shutdown.requested() => return,
            () = tokio::time::sleep(WRITE_AGAIN), if !is_written => {}
            changed = objects.changed() => if changed.is_err() { return shutdown.requested().await },
        }
    }
}

/// After the list of enrolled namespaces could not be written.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// While the agent has never been able to read every object, no namespace leaves the list.
fn with_former(path: &Path, list: &str) -> String {
    let former = std::fs::read_to_string(path).unwrap_or_default();
    EnrolledNamespaces::from_text(&format!("{former}\n{list}")).to_string()
}

fn make_parents(config: &Config) -> Result<(), RunError> {
    let paths = [&config.plugin_socket, &config.zds_socket, &config.node_socket, &config.enrolled_namespaces];
    for parent in paths.into_iter().filter_map(|path| path.parent()) {
        std::fs::create_dir_all(parent).map_err(|source| RunError::Path { path: parent.into(), source })?;
    }
    Ok(())
}

fn pages(proxies: &Proxies, readiness: Readiness) -> admin::Pages {
    let proxies = proxies.clone();
    admin::Pages::new().readiness(readiness).page(Method::GET, "/debug/pods", move |_| {
        let report = proxies.report().to_string();
        async move { admin::json(report) }
    })
}
