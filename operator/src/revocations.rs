//! Tells subscribers what the authority revoked.

use tokio::sync::watch;
use underpass_discovery::{
    server::{Batch, Published, Publisher},
    wire::ResourceType,
};
use underpass_runtime::Shutdown;

use crate::ca::Told;

/// Publishes what is revoked now, with the mesh's first commit if that is yet to come: nobody may believe for a moment
/// that nothing is.
pub(crate) fn publish(told: &Told, publisher: &Publisher) {
    let mut batch = Batch::replacing(ResourceType::Revocation);
    for revocation in told.revocations.iter() {
        batch.set(Published::revocation(revocation));
    }
    publisher.commit_along(batch);
}

/// Publishes each change until asked to stop.
pub(crate) async fn run(mut told: watch::Receiver<Told>, publisher: Publisher, shutdown: Shutdown) {
    loop {
        let now = told.borrow_and_update().clone();
        publish(&now, &publisher);
        tokio::select! {
            () = shutdown.requested() => return,
            changed = told.changed() => if changed.is_err() { return },
        }
    }
}
