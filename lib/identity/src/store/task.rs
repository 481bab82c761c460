//! Carries out what the ledger decides: asks the authority, checks the answers, publishes credentials.

use std::{error::Error, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{sync::watch, time::Instant};
use underpass_model::Identity;
use underpass_runtime::{Shutdown, metrics::catalogue};

use super::{Shared, StoreOptions};
use crate::{
    authority::{AuthorityError, CertificateAuthority},
    certificate::{CertificateError, Issued},
    key::{KeyError, KeyPair},
    tls::{CredentialsError, PeerError},
};

/// The work behind a [`super::CertificateStore`]; run it once, on one runtime.
#[must_use = "without it no certificate is fetched"]
pub struct StoreTask {
    shared: Arc<Shared>,
    authority: Arc<dyn CertificateAuthority>,
    changes: watch::Sender<u64>,
}

/// Why a try brought no certificate that can be used.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("cannot ask for a certificate")]
    Key(#[from] KeyError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("the authority's answer is wrong")]
    Answer(#[from] CertificateError),
    #[error("the authority's answer is wrong")]
    Credentials(#[from] CredentialsError),
    #[error("the authority gave a certificate that is revoked")]
    Revoked(#[from] PeerError),
}

/// Clocks may be set and machines sleep; certificates are looked at again at least this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

impl StoreTask {
    pub(super) fn new(
        shared: Arc<Shared>,
        authority: Arc<dyn CertificateAuthority>,
        changes: watch::Sender<u64>,
    ) -> Self {
        Self { shared, authority, changes }
    }

    /// Fetches, renews and forgets until asked to stop. Fetches under way are then abandoned.
    pub async fn run(self, shutdown: Shutdown) {
        let mut fetches = FuturesUnordered::new();
        let mut revocations = self.shared.options.revocations.changes();
        // What was revoked before counts too.
        revocations.mark_changed();
        loop {
            let (started, next) = self.plan(fetches.len());
            fetches.extend(started.into_iter().map(|identity| self.fetch(identity)));
            tokio::select! {
                () = shutdown.requested() => return,
                Some((identity, result)) = fetches.next() => self.finish(&identity, result),
                () = self.shared.wake.notified() => {}
                // Never an error: the options hold the sender.
                Ok(()) = revocations.changed() => self.revoke(),
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    fn plan(&self, under_way: usize) -> (Vec<Identity>, Instant) {
        let now = self.shared.now();
        let mut ledger = self.shared.ledger();
        if ledger.forget(now) {
            self.publish(&ledger);
        }
        let room = self.shared.options.parallel.saturating_sub(under_way);
        let started = ledger.start(room, now);
        let latest = now.instant + LONGEST_SLEEP;
        // Without room the end of a fetch is what wakes us; what is due already must not keep us spinning.
        let next = ledger.next_event(now).filter(|at| *at > now.instant).unwrap_or(latest);
        (started, next.min(latest))
    }

    fn revoke(&self) {
        let mut ledger = self.shared.ledger();
        if ledger.revoke(self.shared.now()) {
            self.publish(&ledger);
        }
    }

    async fn fetch(&self, identity: Identity) -> (Identity, Result<Issued, FetchError>) {
        let result = fetch(self.authority.as_ref(), &identity, &self.shared.options).await;
        (identity, result)
    }

    fn finish(&self, identity: &Identity, result: Result<Issued, FetchError>) {
        let now = self.shared.now();
        let mut ledger = self.shared.ledger();
        let result = result.and_then(|issued| Ok(ledger.succeed(identity, issued, now)?));
        let outcome = if result.is_ok() { "ok" } else { "error" };
        catalogue::CERTIFICATE_FETCHES.with([outcome]).increment(1);
        match result {
            Ok(()) => tracing::info!(%identity, "certificate fetched"),
            Err(error) => {
                let error = causes(&error);
                let retry_in = ledger.fail(identity, error.clone(), now).unwrap_or_default();
                if ledger.is_urgent(identity, now) {
                    tracing::error!(%identity, error, ?retry_in, "no certificate, and there is none or it ends soon");
                } else {
                    tracing::warn!(%identity, error, ?retry_in, "no certificate");
                }
            }
        }
        self.publish(&ledger);
    }

    fn publish(&self, ledger: &super::Ledger) {
        self.shared.published.store(Arc::new(ledger.credentials()));
        if let Some(Err(error)) = self.shared.options.kept.as_ref().map(|kept| kept.write(ledger.held())) {
            let error: &dyn Error = &error;
            tracing::error!(error, "certificates cannot be kept for the next process");
        }
        self.changes.send_modify(|version| *version += 1);
        if let Some(expiry) = ledger.first_expiry() {
            let seconds = expiry.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            catalogue::CERTIFICATE_FIRST_EXPIRY.with([]).set(seconds);
        }
    }
}

async fn fetch(
    authority: &dyn CertificateAuthority,
    identity: &Identity,
    options: &StoreOptions,
) -> Result<Issued, FetchError> {
    let key = Arc::new(KeyPair::generate()?);
    let asked = authority.sign(key.csr_pem(identity)?, identity, options.ttl);
    let answer = tokio::time::timeout(options.fetch_deadline, asked)
        .await
        .unwrap_or(Err(AuthorityError::Silent(options.fetch_deadline)))?;
    let issued = Issued::from_answer(&answer, key, identity, (options.clock)())?;
    options.revocations.check(issued.certificate.chain())?;
    Ok(issued)
}

/// An error and what caused it, as one line that is not longer than a log line should be.
fn causes(error: &dyn Error) -> String {
    const LONGEST: usize = 1000;
    let mut text = error.to_string();
    let mut next = error.source();
    while let (Some(cause), true) = (next, text.len() < LONGEST) {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text.chars().take(LONGEST).collect()
}
