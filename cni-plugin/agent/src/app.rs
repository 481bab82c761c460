//! The only file that knows every part: builds them, in the order in which they may be used, and runs them.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use http::Method;
use tokio::{sync::watch, time::timeout};
use underpass_enrolment::seqpacket::ListenError;
use underpass_objects::{Directory, Snapshot, StatusDirectory, files, status::StatusError};
use underpass_runtime::{Shutdown, admin, metrics, tasks};

use crate::{
    config::Config,
    facts,
    memory::{Memory, MemoryError},
    plugin_server::{self, PluginServer},
    pods::{Limits, Pods, Shared},
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
    let directory = Directory::open(&config.objects).map_err(path(&config.objects))?;
    let (objects, directory) = directory.watch();
    tasks::spawn("objects", directory.run(shutdown.clone()));
    make_parents(&config)?;

    let proxies = Proxies::default();
    let shared = Shared {
        node: config.node_name.clone(),
        proxies: proxies.clone(),
        programmer: Programmer::new(&config.nft),
        memory: Memory::open(&config.state)?,
        status: StatusDirectory::open(&config.status)?,
        limits,
    };
    let now = objects.borrow().objects.clone();
    let pods = Arc::new(Pods::restore(shared, facts::of_node(&now, &config.node_name)));
    // Only now: the first proxy's snapshot must name every pod that is captured.
    let prober = Prober::new(config.kubelet());
    let answer: AnswerProbe = Arc::new(move |connection| {
        let prober = prober.clone();
        Box::pin(async move { prober.origin(connection).await })
    });
    let plugin = plugin_server::bind(&config.plugin_socket).map_err(path(&config.plugin_socket))?;
    let server = PluginServer { pods: Arc::clone(&pods), objects: objects.clone() };
    if let Some(address) = config.admin_address {
        let pages = pages(&proxies);
        let pages = if let Some(recorder) = recorder { pages.metrics(&recorder) } else { pages };
        let stop = shutdown.clone();
        tasks::spawn("admin", async move {
            if let Err(error) = admin::serve(address, pages, stop).await {
                tracing::error!(%error, %address, "no administration interface");
            }
        });
    }
    tracing::info!(node = config.node_name, "the node agent runs");
    let (zds, node) = (proxies.clone(), proxies);
    tokio::try_join!(
        proxies::serve_zds(&config.zds_socket, zds, shutdown.clone()),
        proxies::serve_node(&config.node_socket, node, answer, shutdown.clone()),
        async {
            tokio::join!(server.serve(plugin, shutdown.clone()), follow(&config, objects, &pods, &shutdown));
            Ok(())
        },
    )?;
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
    loop {
        let now = objects.borrow_and_update().objects.clone();
        pods.update(facts::of_node(&now, &config.node_name));
        let list = facts::enrolled_namespaces(&now).to_string();
        if written.as_ref() != Some(&list) {
            match files::write(&config.enrolled_namespaces, list.as_bytes(), 0o644) {
                Ok(()) => written = Some(list),
                Err(error) => {
                    let path = config.enrolled_namespaces.display();
                    tracing::error!(%error, %path, "the list of enrolled namespaces cannot be written");
                }
            }
        }
        tokio::select! {
            () = shutdown.requested() => return,
            changed = objects.changed() => if changed.is_err() { return shutdown.requested().await },
        }
    }
}

fn make_parents(config: &Config) -> Result<(), RunError> {
    let paths = [&config.plugin_socket, &config.zds_socket, &config.node_socket, &config.enrolled_namespaces];
    for parent in paths.into_iter().filter_map(|path| path.parent()) {
        std::fs::create_dir_all(parent).map_err(|source| RunError::Path { path: parent.into(), source })?;
    }
    Ok(())
}

fn pages(proxies: &Proxies) -> admin::Pages {
    let proxies = proxies.clone();
    admin::Pages::new().readiness(admin::Readiness::default()).page(Method::GET, "/debug/pods", move |_| {
        let report = proxies.report().to_string();
        async move { admin::json(report) }
    })
}
