//! How long a tunnel may be relied on: until the certificates that made it expire.
//!
//! A handshake looks at them once. A tunnel can live for months after, so whoever keeps one asks again here.

use std::time::{Duration, SystemTime};

use rustls::{pki_types::CertificateDer, sign::CertifiedKey};
use tokio::time::Instant;
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
