//! A worker: one thread that accepts connections and carries each of them to its end.
//!
//! A connection, its tunnel and its tasks stay on the worker that accepted it, so that no byte ever waits for another
//! thread. What workers share is read-only: views of the mesh, certificates, the table of pods.

use std::{io, panic::AssertUnwindSafe, rc::Rc, sync::Arc, time::Duration};

use ipnet::IpNet;
use tokio::{sync::mpsc, task::LocalSet, time::MissedTickBehavior};
use underpass_discovery::{Mesh, View};
use underpass_hbone::pool::{Pool, PoolCounts, PoolOptions};
use underpass_identity::store::CertificateStore;
use underpass_model::{PodUid, Tunnel};
use underpass_runtime::{Shutdown, metrics::catalogue, tasks, telemetry};

use crate::{
    account::{Accounts, Books},
    balance::{Loads, Place},
    capture::{Knock, Watch, Watched},
    connections::Arrival,
    pods::Pods,
    probe::Probes,
    sessions::Sessions,
};

/// What every worker is given.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) mesh: Mesh,
    pub(crate) certificates: CertificateStore,
    pub(crate) probes: Probes,
    pub(crate) accounts: Accounts,
    /// The pods of this node.
    pub(crate) pods: Arc<Pods>,
    /// Pods of this node are joined by tunnels, too.
    pub(crate) always_tunnel: bool,
    /// The endpoints that they keep.
    pub(crate) sessions: Arc<Sessions>,
    /// Where this node is, for pods of which discovery has not told yet.
    pub(crate) place: Place,
    /// The ranges of the mesh, where that matters.
    pub(crate) mesh_ranges: Arc<[IpNet]>,
    /// How long a tunnel is kept without a connection in it.
    pub(crate) tunnel_idle: Duration,
}

/// What the lanes of one worker work with.
pub(crate) struct Worker {
    pub(crate) shared: Shared,
    pub(crate) pool: Pool,
    pub(crate) loads: Loads,
    pub(crate) books: Rc<Books>,
}

/// A way to speak to all workers; clones share it.
#[derive(Clone)]
pub(crate) struct Workers(Arc<Vec<mpsc::Sender<Command>>>);

/// The workers' threads.
pub(crate) struct Threads(Vec<std::thread::JoinHandle<()>>);

/// Where a new connection goes.
pub(crate) type Enter = fn((Knock, Arrival), &Rc<Worker>);

#[derive(Clone, Debug)]
enum Command {
    /// A pod of this node is gone: its tunnels must not outlive it.
    Forget(PodUid),
}

/// Commands that may wait for a busy worker.
const COMMANDS: usize = 1024;
/// How late bytes may be counted.
const COUNTING: Duration = Duration::from_secs(1);

/// Starts the workers. They end when `stop` is asked for.
pub(crate) fn start(
    count: usize,
    watched: &Watched,
    shared: &Shared,
    enter: Enter,
    stop: &Shutdown,
) -> io::Result<(Workers, Threads)> {
    let mut senders = Vec::new();
    let mut threads = Vec::new();
    for number in 0..count {
        let (sender, commands) = mpsc::channel(COMMANDS);
        let (watched, shared, stop) = (watched.clone(), shared.clone(), stop.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            let local = LocalSet::new();
            let run = run(number, watched, (shared, enter), commands, stop);
            let ended = AssertUnwindSafe(|| runtime.block_on(local.run_until(run)));
            match std::panic::catch_unwind(ended) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => tracing::error!(%error, worker = number, "a worker cannot go on"),
                Err(_panic) => tracing::error!(worker = number, "a worker panicked"),
            }
            // Half of the connections would fail for ever; a new process serves all of them.
            telemetry::flush();
            std::process::exit(70);
        })?;
        senders.push(sender);
        threads.push(thread);
    }
    Ok((Workers(Arc::new(senders)), Threads(threads)))
}

impl Workers {
    /// Takes the tunnels of a pod out of use.
    pub(crate) fn forget(&self, pod: &PodUid) {
        for sender in self.0.iter() {
            if sender.try_send(Command::Forget(pod.clone())).is_err() {
                // Harmless: tunnels are found by the pod's uid, which never comes again, and idle ones are released.
                tracing::warn!(pod.uid = %pod, "a worker is too busy to forget a pod at once");
            }
        }
    }
}

impl Threads {
    /// Waits for all of them.
    pub(crate) fn join(self) {
        for thread in self.0 {
            drop(thread.join());
        }
    }
}

async fn run(
    number: usize,
    watched: Watched,
    (shared, enter): (Shared, Enter),
    mut commands: mpsc::Receiver<Command>,
    stop: Shutdown,
) -> io::Result<()> {
    let mut watch = watched.watch(number)?;
    let mut views = shared.mesh.subscribe();
    let books = Rc::new(shared.accounts.books());
    let revocations = shared.certificates.revocations().clone();
    let pool = Pool::new(PoolOptions { revocations, idle: shared.tunnel_idle, ..PoolOptions::default() });
    let worker = Rc::new(Worker { shared, pool, loads: Loads::default(), books });
    let mut counting = tokio::time::interval(COUNTING);
    counting.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut counted = PoolCounts::default();
    loop {
        tokio::select! {
            () = stop.requested() => return Ok(()),
            Some(command) = commands.recv() => match command {
                Command::Forget(pod) => worker.pool.evict(|key| key.pod == pod),
            },
            _ = counting.tick() => {
                worker.books.flush();
                counted = count(worker.pool.counts(), counted);
            }
            Ok(()) = views.changed() => {
                views.mark_unchanged();
                worker.forget_the_gone(&worker.shared.mesh.view());
            }
            knock = knock(&mut watch) => enter(knock, &worker),
        }
    }
}

/// Tells how the pool has changed; the workers' pools add up.
#[expect(clippy::cast_precision_loss, reason = "nobody has 2^53 tunnels")]
fn count(now: PoolCounts, before: PoolCounts) -> PoolCounts {
    catalogue::TUNNELS_OPEN.with([]).increment(now.tunnels as f64 - before.tunnels as f64);
    catalogue::TUNNEL_STREAMS_OPEN.with([]).increment(now.streams as f64 - before.streams as f64);
    catalogue::TUNNELS_OPENED.with([]).increment(now.opened - before.opened);
    catalogue::TUNNELS_EVICTED.with([]).increment(now.evicted - before.evicted);
    now
}

/// The next connection. An error of `accept` is about one connection or about resources, so accepting goes on.
async fn knock(watch: &mut Watch) -> (Knock, Arrival) {
    loop {
        match watch.knock().await {
            Ok(knock) => return knock,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                catalogue::ACCEPT_FAILURES.with([]).increment(1);
                // Out of descriptors, most likely: those in the queue wait, and trying at once would spin.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

impl Worker {
    /// Tunnels to workloads that are gone, moved, left the mesh or changed their name take no new connection.
    fn forget_the_gone(&self, view: &View) {
        self.loads.prune();
        self.pool.evict(|key| {
            !view.workload(&key.destination).is_some_and(|workload| {
                workload.tunnel == Tunnel::Hbone
                    && workload.addresses.contains(&key.address.ip())
                    && workload.identity().is_ok_and(|identity| key.expect.contains(&identity))
            })
        });
    }
}

/// Starts a connection's task on this worker.
pub(crate) fn carry(connection: impl Future<Output = ()> + 'static) {
    tasks::spawn_local("connection", connection);
}
