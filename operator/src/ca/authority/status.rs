//! What people and tools may know of the authority: names, numbers and times, never keys.

use std::{
    collections::HashSet,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use underpass_runtime::metrics::catalogue;

use super::{Issuing, Revoked};
use crate::ca::roots::{self, Phase};

/// The authority as it stands. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuthorityStatus {
    /// Where the replacement of the root is: `single` (there is none), `announced`, `switched`, `finished`.
    pub phase: &'static str,
    /// All trusted roots.
    pub roots: Vec<Dated>,
    /// The certificate that signs workloads' certificates.
    pub issuing: Dated,
    /// Its serial number.
    pub issuing_serial: String,
    /// Who signed it.
    pub issuing_signed_by: String,
    /// What is revoked: `identity/...` or `serial/...`.
    pub revoked: Vec<String>,
}

/// A certificate and its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dated {
    /// Its subject.
    pub name: String,
    /// When it ends.
    pub not_after: u64,
}

impl AuthorityStatus {
    pub(super) fn new(phase: Phase, roots: Vec<(String, SystemTime)>, issuing: &Issuing, revoked: &Revoked) -> Self {
        let dated = |(name, not_after)| Dated { name, not_after: seconds(not_after) };
        Self {
            phase: match phase {
                Phase::Single => "single",
                Phase::Announced => "announced",
                Phase::Switched => "switched",
                Phase::Finished => "finished",
            },
            roots: roots.into_iter().map(dated).collect(),
            issuing: dated((roots::name(issuing.issuer.der()), issuing.not_after)),
            issuing_serial: issuing.serial.to_string(),
            issuing_signed_by: roots::name(&issuing.signed_by),
            revoked: revoked.revocations().map(underpass_model::Revocation::name).collect(),
        }
    }

    /// Measures what is left, and warns once of each root whose end is near.
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^53")]
    pub(super) fn observe(&self, warn_before: Duration, now: SystemTime, warned: &mut HashSet<String>) {
        let expiry = |kind: &'static str, seconds: u64| {
            catalogue::OPERATOR_EXPIRY.with([kind]).set(seconds as f64);
        };
        expiry("issuing", self.issuing.not_after);
        if let Some(first) = self.roots.iter().map(|root| root.not_after).min() {
            expiry("root", first);
        }
        for root in self.roots.iter().filter(|root| root.not_after < seconds(now + warn_before)) {
            if warned.insert(root.name.clone()) {
                let days = root.not_after.saturating_sub(seconds(now)) / 86_400;
                tracing::warn!(root = root.name, days, "a trusted root ends soon");
            }
        }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
