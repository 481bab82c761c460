//! How long a tunnel may be relied on: until the certificates that made it expire, or the peer's is revoked.
//!
//! A handshake looks at them once. A tunnel can live for months after, so whoever keeps one asks again here.

use std::{
    cell::OnceCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use rustls::{pki_types::CertificateDer, sign::CertifiedKey};
use tokio::time::Instant;
use underpass_identity::{PeerError, Presented, Revocations};
use underpass_model::SerialNumber;
use underpass_runtime::metrics::catalogue;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Longer than any leaf is valid, and short enough for every timer.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// When the first of the two leaves expires: ours, and the peer's. One that cannot be read is taken as expired.
pub(crate) fn end(own: Option<&CertifiedKey>, peer: &[CertificateDer<'_>], now: SystemTime) -> Instant {
    let own = own.and_then(|own| own.cert.first());
    let left = |leaf: Option<&CertificateDer<'_>>| leaf.and_then(|leaf| left(leaf, now)).unwrap_or_default();
    Instant::now() + left(own).min(left(peer.first()))
}

/// What is left of a certificate's time.
fn left(certificate: &CertificateDer<'_>, now: SystemTime) -> Option<Duration> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let not_after = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    // The second that it names is its last one.
    let end = Duration::from_secs(not_after.checked_add(1)?);
    let now = now.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(end.saturating_sub(now).min(LONGEST))
}

/// Waits for the revocation of what the peer proved itself by.
pub(crate) struct Revocation {
    waiting: Pin<Box<dyn Future<Output = SerialNumber>>>,
    fate: Fate,
}

/// Why a tunnel was cut, for its streams to tell. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fate(Rc<OnceCell<SerialNumber>>);

impl Revocation {
    /// Refuses a peer that is revoked already.
    pub(crate) fn watch(revocations: &Revocations, peer: &[CertificateDer<'_>], fate: Fate) -> Result<Self, PeerError> {
        let presented = Presented::of(peer);
        match revocations.find(&presented) {
            Some(serial) => Err(PeerError::Revoked { serial }),
            None => Ok(Self { waiting: Box::pin(revocations.wait(presented)), fate }),
        }
    }

    /// Ready once, when the tunnel must be cut; its streams know then.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.fate.revoked().is_some() {
            return Poll::Pending;
        }
        let serial = ready!(self.waiting.as_mut().poll(cx));
        tracing::debug!(%serial, "the certificate of the tunnel's peer was revoked");
        catalogue::TUNNELS_REVOKED.with([]).increment(1);
        // Set by nobody else.
        let _first = self.fate.0.set(serial);
        Poll::Ready(())
    }
}

impl Fate {
    /// The peer's certificate that was revoked.
    pub(crate) fn revoked(&self) -> Option<&SerialNumber> {
        self.0.get()
    }
}
