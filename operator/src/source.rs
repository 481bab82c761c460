//! Where the objects and the agents' reports come from: a directory, or Kubernetes; everything after it is one.

use std::{io, path::PathBuf};

use imbl::OrdMap;
use tokio::sync::watch;
use underpass_discovery::server::Publisher;
use underpass_objects::{
    Directory, Kind, Snapshot, Status, StatusDirectory,
    cluster::{self as objects, Client, ConnectError, Interest},
    status::StatusError,
};
use underpass_runtime::{Shutdown, tasks};

use crate::{
    census::Count,
    cluster::{
        self, Place, lease,
        member::Member,
        namespaces::NamespaceTask,
        status::{StatusTask, Told},
        taints::TaintTask,
    },
    config::Config,
    tokens::NodeTokens,
    translate::Reports,
    withdrawal::{Attendance, Withdrawals},
};

/// Objects, and the way back to whoever wrote them.
#[derive(Debug)]
pub struct Source {
    /// The objects.
    pub objects: watch::Receiver<Snapshot>,
    /// The agents' reports, and how they are answered.
    pub reporting: Reporting,
    /// Whether this operator, of several, is the one that writes.
    pub leads: watch::Receiver<bool>,
}

/// The agents' reports, and how they are answered.
#[derive(Debug)]
pub enum Reporting {
    /// In a status directory.
    Directory {
        /// The reports.
        status: watch::Receiver<Status>,
        /// Those that were given out last: only they can have been published.
        taken: Status,
        /// Who answers.
        withdrawals: Withdrawals,
    },
    /// On the pods themselves.
    OnPods(cluster::withdrawal::Withdrawals),
}

/// What people should know, as it becomes known.
#[derive(Clone, Debug, Default)]
pub struct Telling {
    /// Of their objects.
    pub told: watch::Sender<Told>,
    /// Of their namespaces' enrolment.
    pub counts: watch::Sender<OrdMap<String, Count>>,
}

/// Why there is no source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The directory of manifests cannot be listed.
    #[error("directory {path} of objects")]
    Objects {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The status directory cannot be used.
    #[error("status directory")]
    Status(#[from] StatusError),
    /// Neither a directory nor an API server is named.
    #[error("neither a directory of objects nor Kubernetes is named")]
    None,
    /// There is no way to the API server.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// A client of the API server, if the objects are there.
///
/// # Errors
/// [`SourceError`] if there is no way to it.
pub async fn connect(config: &Config) -> Result<Option<Client>, SourceError> {
    if !config.is_on_kubernetes() {
        return Ok(None);
    }
    Ok(Some(objects::connect(config.kubeconfig.as_deref()).await?))
}

/// The directories that the configuration names; what keeps them up to date runs until asked to stop.
///
/// # Errors
/// [`SourceError`] if they cannot be used.
pub fn of_directory(
    config: &Config,
    tokens: &NodeTokens,
    publisher: &Publisher,
    shutdown: &Shutdown,
) -> Result<Source, SourceError> {
    let (Some(objects), Some(status), Some(state)) = (&config.objects, &config.status, &config.state) else {
        return Err(SourceError::None);
    };
    let status_directory = StatusDirectory::open(status)?;
    let directory = Directory::open_keeping(objects, &state.join("objects"));
    let directory = directory.map_err(|source| SourceError::Objects { path: objects.clone(), source })?;
    let (objects, objects_task) = directory.watch();
    let (status, status_task) = status_directory.watch();
    let attendance = Attendance::new(publisher.clone(), tokens.clone());
    // Without any one of these the operator would go on half-dead.
    tasks::root("objects", objects_task.run(shutdown.clone()), shutdown);
    tasks::root("status", status_task.run(shutdown.clone()), shutdown);
    tasks::root("attendance", attendance.clone().watch(shutdown.clone()), shutdown);
    let withdrawals = Withdrawals::new(publisher.clone(), status_directory, status.clone(), attendance);
    let reporting = Reporting::Directory { status, taken: Status::default(), withdrawals };
    // There are no others.
    Ok(Source { objects, reporting, leads: watch::channel(true).1 })
}

/// An API server; what follows it, and what is written there, runs until asked to stop.
#[must_use]
pub fn of_cluster(
    client: &Client,
    place: Place,
    publisher: &Publisher,
    telling: &Telling,
    shutdown: &Shutdown,
) -> Source {
    let (objects, objects_task) = objects::watch(client, Kind::ALL.into_iter().map(Interest::all).collect());
    let objects_task = objects_task.with_network_policies(client);
    let (leads, lease_task) = lease::contend(client, &place);
    let member = Member::new(client, place.clone(), publisher.clone());
    let (withdrawals, withdrawal_task) =
        cluster::withdrawal::Withdrawals::new(client.clone(), member.clone(), publisher.clone(), leads.clone());
    let status_task = StatusTask {
        client: client.clone(),
        publisher: publisher.clone(),
        leads: leads.clone(),
        told: telling.told.subscribe(),
    };
    let namespace_task = NamespaceTask {
        client: client.clone(),
        place,
        leads: leads.clone(),
        counts: telling.counts.subscribe(),
        objects: objects.clone(),
    };
    let taint_task = TaintTask { client: client.clone(), leads: leads.clone(), objects: objects.clone() };
    tasks::root("objects", objects_task.run(shutdown.clone()), shutdown);
    tasks::root("taints", taint_task.run(shutdown.clone()), shutdown);
    tasks::root("lease", lease_task.run(shutdown.clone()), shutdown);
    tasks::root("member", member.run(shutdown.clone()), shutdown);
    tasks::root("withdrawals", withdrawal_task.run(shutdown.clone()), shutdown);
    tasks::root("status of namespaces", namespace_task.run(shutdown.clone()), shutdown);
    tasks::root("status of objects", status_task.run(shutdown.clone()), shutdown);
    Source { objects, reporting: Reporting::OnPods(withdrawals), leads }
}

impl Reporting {
    /// Gives out the reports as they are now.
    pub fn reports(&mut self) -> Reports {
        match self {
            Self::Directory { status, taken, .. } => {
                taken.clone_from(&status.borrow_and_update());
                Reports::Apart(taken.reports.clone())
            }
            Self::OnPods(_) => Reports::OnPods,
        }
    }

    /// Completes when there are others, apart from the objects; false when there will be none any more.
    pub async fn changed(&mut self) -> bool {
        match self {
            Self::Directory { status, .. } => status.changed().await.is_ok(),
            Self::OnPods(_) => std::future::pending().await,
        }
    }

    /// A snapshot and the reports given out last have been published as `version`: agents whose pods leave may be
    /// answered.
    pub fn published(&mut self, snapshot: &Snapshot, version: u64) {
        match self {
            Self::Directory { taken, withdrawals, .. } => withdrawals.answer(taken, version),
            Self::OnPods(withdrawals) => withdrawals.note(snapshot, version),
        }
    }
}
