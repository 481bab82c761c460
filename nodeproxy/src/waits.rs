//! What a connection may have to wait for, measured: who need not wait is not counted.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use underpass_discovery::Mesh;
use underpass_identity::{
    store::{CertificateStore, StoreError},
    tls::Credentials,
};
use underpass_model::Identity;
use underpass_runtime::metrics::catalogue;

use crate::budget::{Amount, Budget, Over, Share};

/// How long a connection waits for its pod's first certificate.
const CERTIFICATE_DEADLINE: Duration = Duration::from_secs(5);
/// How long a connection waits for the first complete view of the mesh.
const VIEW_DEADLINE: Duration = Duration::from_secs(5);

/// A pod's own certificate.
pub(crate) async fn credentials(
    certificates: &CertificateStore,
    own: &Identity,
) -> Result<Arc<Credentials>, StoreError> {
    match certificates.credentials(own) {
        Some(credentials) => Ok(credentials),
        None => measured("certificate", certificates.wait(own, CERTIFICATE_DEADLINE)).await,
    }
}

/// The first complete view of the mesh; says whether it came.
pub(crate) async fn view(mesh: &Mesh) -> bool {
    mesh.view().is_complete() || measured("view", mesh.wait_complete(VIEW_DEADLINE)).await
}

/// Room in a pod's budget. A peer waits no longer than this; it may have other endpoints to try.
pub(crate) async fn room(budget: &Arc<Budget>, amount: Amount) -> Result<Share, Over> {
    const STEP: Duration = Duration::from_millis(20);
    const STEPS: u32 = 50;
    for step in 0..STEPS {
        match budget.take(amount) {
            Ok(share) => return Ok(share),
            Err(over) if step == 0 => budget.waits(over),
            Err(_again) => {}
        }
        tokio::time::sleep(STEP).await;
    }
    budget.take(amount).inspect_err(|over| budget.refused(*over))
}

/// Waits, and counts how long.
pub(crate) async fn measured<T>(what: &'static str, wait: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let outcome = wait.await;
    catalogue::WAIT.with([what]).record(began.elapsed());
    outcome
}
