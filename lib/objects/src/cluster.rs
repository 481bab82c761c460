//! Objects kept up to date with an API server, as [`crate::Directory`] does with files: the same snapshots.
//!
//! Each kind is listed and then watched for itself. What goes wrong (the server is away, a right is missing, a kind is
//! not installed) is a problem of the snapshot, and the last good state stays in force until it is over.

mod connect;
pub mod event;
mod feed;
mod guards;
mod kind;
pub mod report;
mod table;
mod trim;

use std::{collections::BTreeSet, fmt, future::Future, time::SystemTime};

use tokio::sync::{mpsc, watch};
use underpass_runtime::{Shutdown, metrics::catalogue, tasks};

pub use self::{
    connect::{ConnectError, connect},
    kind::resource,
};
use self::{
    feed::{Feed, Heard, Update},
    table::Table,
};
use crate::{
    object::Kind,
    snapshot::{Problem, Snapshot},
};
// Callers name the client without a dependency of their own.
pub use kube::Client;

/// Updates that may wait to be taken up before a feed has to.
const BACKLOG: usize = 1024;

/// The objects of a kind that somebody follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interest {
    /// The kind.
    pub kind: Kind,
    /// What their fields must say (Kubernetes' field selector); empty for all.
    pub fields: String,
    /// What their labels must say (Kubernetes' label selector); empty for all.
    pub labels: String,
}

/// Who follows the server.
struct Feeds {
    /// One for each kind.
    of_kinds: Vec<Feed>,
    /// Asks for NetworkPolicies, if anybody does.
    network_policies: Option<Client>,
}

/// Keeps a snapshot up to date; see [`watch`].
#[derive(Debug)]
pub struct ClusterTask {
    feeds: Feeds,
    table: Table,
    publish: watch::Sender<Snapshot>,
}

impl Interest {
    /// All objects of a kind. Of EndpointSlices those that Kubernetes makes for Services with selectors are left out:
    /// they are many, and say what the mesh knows from the pods.
    #[must_use]
    pub fn all(kind: Kind) -> Self {
        let labels = match kind {
            Kind::EndpointSlice => "endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io",
            Kind::AuthorizationPolicy
            | Kind::MeshConfig
            | Kind::MeshTlsMode
            | Kind::Namespace
            | Kind::Node
            | Kind::Pod
            | Kind::Service
            | Kind::ServiceAccount => "",
        };
        Self { kind, fields: String::new(), labels: labels.into() }
    }

    /// The pods that are scheduled on a node.
    #[must_use]
    pub fn pods_of_node(node: &str) -> Self {
        Self { kind: Kind::Pod, fields: format!("spec.nodeName={node}"), labels: String::new() }
    }
}

/// Follows objects of several kinds, each kind once. The receiver always holds the newest snapshot while the task runs;
/// what has not been listed yet is a problem of it ([`Snapshot::unlisted`]).
#[must_use]
pub fn watch(client: &Client, interests: Vec<Interest>) -> (watch::Receiver<Snapshot>, ClusterTask) {
    let table = Table::new(interests.iter().map(|interest| interest.kind));
    let of_kinds = interests.into_iter().map(|interest| Feed::new(client.clone(), interest)).collect();
    let feeds = Feeds { of_kinds, network_policies: None };
    let (publish, receiver) = watch::channel(table.snapshot().clone());
    (receiver, ClusterTask { feeds, table, publish })
}

impl ClusterTask {
    /// Looks for NetworkPolicies too ([`Snapshot::network_policies`]), of whoever's kind.
    #[must_use]
    pub fn with_network_policies(mut self, client: &Client) -> Self {
        self.feeds.network_policies = Some(client.clone());
        self
    }

    /// Runs until asked to stop.
    pub async fn run(self, shutdown: Shutdown) {
        let Self { feeds: Feeds { of_kinds, network_policies }, mut table, publish } = self;
        let (send, mut updates) = mpsc::channel(BACKLOG);
        if let Some(client) = network_policies {
            let following = guards::follow(client, send.clone());
            tasks::spawn("network policies", until(shutdown.clone(), async { drop(following.await) }));
        }
        for feed in of_kinds {
            tasks::spawn(feed.kind().as_str(), until(shutdown.clone(), feed.run(send.clone())));
        }
        drop(send);
        let mut told = BTreeSet::new();
        loop {
            let first = tokio::select! {
                () = shutdown.requested() => return,
                heard = updates.recv() => heard,
            };
            // The feeds end only when asked to.
            let Some(first) = first else { return shutdown.requested().await };
            take(&mut table, first);
            // Whatever else is there already becomes one change.
            while let Ok(heard) = updates.try_recv() {
                take(&mut table, heard);
            }
            tell(&table.snapshot().problems, &mut told);
            publish.send_replace(table.snapshot().clone());
        }
    }
}

impl fmt::Debug for Feeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.of_kinds.iter().map(Feed::kind)).finish()
    }
}

fn take(table: &mut Table, heard: Heard) {
    match heard {
        Heard::Of(kind, update) => {
            count(kind, &update);
            table.take(kind, update);
        }
        Heard::NetworkPolicies(found) => table.take_network_policies(found),
    }
}

fn count(kind: Kind, update: &Update) {
    match update {
        Update::Failed(error) => catalogue::WATCH_FAILURES.with([kind.as_str(), error.reason()]).increment(1),
        Update::Alive(_) | Update::Applied(..) | Update::Deleted(..) | Update::Listed(..) => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            catalogue::WATCH_HEARD.with([kind.as_str()]).set(now.as_secs_f64());
        }
    }
}

async fn until(shutdown: Shutdown, work: impl Future<Output = ()>) {
    tokio::select! {
        () = shutdown.requested() => {}
        () = work => {}
    }
}

/// Logs each problem when it comes and when it has gone.
fn tell(problems: &[Problem], told: &mut BTreeSet<String>) {
    let now: BTreeSet<String> =
        problems.iter().filter(|problem| !problem.is_fresh()).map(ToString::to_string).collect();
    for problem in problems.iter().filter(|problem| now.contains(&problem.to_string())) {
        if !told.contains(&problem.to_string()) {
            let (origin, error, reason) = (&problem.origin, &problem.error, problem.error.reason());
            if problem.is_lost {
                tracing::error!(%origin, reason, %error, "objects are missing: no state of them is known");
            } else {
                tracing::warn!(%origin, reason, %error, "objects cannot be followed; their last state stays");
            }
        }
    }
    for gone in told.difference(&now) {
        tracing::info!(problem = gone, "over");
    }
    *told = now;
}
