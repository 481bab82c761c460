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
use underpass_objects::{Directory, Snapshot, StatusDirectory, files, status::StatusError};
use underpass_runtime::{
    Shutdown,
    admin::{self, Readiness},
    metrics, tasks,
};

use crate::{
    config::Config,
    facts,
    find::Holders,
    memory::{Memory, MemoryError},
    plugin_server::{self, PluginServer},
    pods::{Gates, Limits, Pods, Shared},
    probe::Prober,
    program::Programmer,
    proxies::{self, AnswerProbe, Proxies},
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
    /// Where captured pods are reported.
    #[error(transparent)]
    Status(#[from] StatusError),
}

/// Runs the agent until asked to stop. Pods stay as they are then: their proxy goes on, the next agent takes over.
///
/// # Errors
/// [`RunError`] if a part cannot start.
pub async fn run(config: Config, limits: Limits, shutdown: Shutdown) -> Result<(), RunError> {
    let recorder = metrics::install().inspect_err(|error| tracing::debug!(%error, "no metrics")).ok();
    let path = |path: &PathBuf| {
        let path = path.clone();
        move |source| RunError::Path { path, source }
    };
    let proxies = Proxies::default();
    let readiness = Readiness::default();
    let (pods_known, listening) = (readiness.pending("pods"), readiness.pending("sockets"));
    if let Some(address) = config.admin_address {
        let pages = pages(&proxies, readiness);
        let pages = if let Some(recorder) = recorder { pages.metrics(&recorder) } else { pages };
        let stop = shutdown.clone();
        tasks::spawn("admin", async move {
            if let Err(error) = admin::serve(address, pages, stop).await {
                tracing::error!(%error, %address, "no administration interface");
            }
        });
    }
    let directory = Directory::open(&config.objects).map_err(path(&config.objects))?;
    let (objects, directory) = directory.watch();
    tasks::root("objects", directory.run(shutdown.clone()), &shutdown);
    make_parents(&config)?;

    let shared = Shared {
        node: config.node_name.clone(),
        proxies: proxies.clone(),
        programmer: Programmer::new(&config.nft),
        memory: Memory::open(&config.state)?,
        status: StatusDirectory::open(&config.status)?,
        holders: Holders::default(),
        gates: Gates::default(),
        limits,
    };
    let now = objects.borrow().clone();
    let facts = facts::of_node(&now.objects, &config.node_name);
    let pods = Arc::new(Pods::restore(shared, facts, now.problems.is_empty()));
    pods_known.done();
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
    tracing::info!(node = config.node_name, "the node agent runs");
    let (zds, node) = (proxies.clone(), proxies);
    tokio::join!(
        proxies::serve_zds(zds_listener, zds, shutdown.clone()),
        proxies::serve_node(node_listener, node, answer, shutdown.clone()),
        server.serve(plugin, shutdown.clone()),
        follow(&config, objects, &pods, &shutdown),
    );
    if timeout(LAST_STEPS, pods.stop()).await.is_err() {
        tracing::warn!("some pods were still being worked on; the next agent goes on from there");
    }
    Ok(())
}

/// What a pod's task is at when the agent stops takes no longer, unless a disk or `nft` hangs.
const LAST_STEPS: Duration = Duration::from_secs(10);

/// Passes every change of the objects on, and leaves the list of enrolled namespaces for the plugin.
async fn follow(config: &Config, mut objects: watch::Receiver<Snapshot>, pods: &Pods, shutdown: &Shutdown) {
    let mut written = None;
    let mut sure = false;
    loop {
        let now = objects.borrow_and_update().clone();
        let readable = now.problems.is_empty();
        sure |= readable;
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

/// While the agent has never been able to read every manifest, no namespace leaves the list.
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
