//! Scenarios that break nodes, or what all scenarios share on them: one at a time, and while no other scenario uses the
//! cluster, as cargo runs one test program after the other.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests, which clippy does not see")]

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use underpass_e2e_kube::{Load, Namespace, Workload, cluster, mesh};
use underpass_model::names::{ENROLLED, MESH_LABEL};

mod away;
mod conflist;
mod crash;
mod reboot;
mod uninstall;
mod upgrade;

/// How long load goes on around each change.
const AROUND: Duration = Duration::from_secs(2);

/// The right to break nodes.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An enrolled namespace: a client on the first node, a server of the same name as its node's place on both.
fn enrolled(purpose: &str) -> Namespace {
    let (cluster, _mesh) = (cluster(), mesh());
    let workers = cluster.workers().unwrap();
    let space = Namespace::new(cluster, purpose).unwrap();
    space.label(MESH_LABEL, Some(ENROLLED)).unwrap();
    let on = |name: &str, node: usize| Workload::new(name).on(workers.get(node).unwrap());
    space.start(&[&on("client", 0), &on("near", 0), &on("far", 1)]).unwrap();
    space.wait_captured().unwrap();
    space
}

/// Load from the client to a server, as it is offered while something breaks.
fn load(space: &Namespace, server: &str) -> Load {
    Load::start(cluster(), space, "client", &format!("http://{server}/load"), 2).unwrap()
}
