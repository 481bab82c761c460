//! What people and tools may know of the certificates held: names and times, never keys.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use serde::Serialize;
use underpass_model::Identity;

use super::ledger::Entry;
use crate::certificate::ends;

/// One identity's certificate as it stands. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertificateStatus {
    /// Whose.
    pub identity: String,
    /// In one word.
    pub state: CertificateState,
    /// The certificate's number, in hexadecimal digits.
    pub serial: Option<String>,
    /// When the certificate began to be valid.
    pub not_before: Option<u64>,
    /// When it ends.
    pub not_after: Option<u64>,
    /// When the first of the certificates between it and the roots ends.
    pub issuer_not_after: Option<u64>,
    /// When the first of the roots ends that came with it.
    pub root_not_after: Option<u64>,
    /// When it will be renewed.
    pub renew_at: Option<u64>,
    /// Which edition of the credentials is in use.
    pub generation: Option<u64>,
    /// How many roots came with it.
    pub roots: usize,
    /// How many local users it has.
    pub wanted: usize,
    /// Whether the authority is being asked right now.
    pub fetching: bool,
    /// How many tries failed since the last that did not.
    pub failures: u32,
    /// What the last of them failed by.
    pub last_error: Option<String>,
    /// In how many seconds the authority will be asked.
    pub next_fetch_in: Option<u64>,
}

/// The state of an identity's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateState {
    /// There was one; its time is over.
    Expired,
    /// There is none yet.
    Missing,
    /// There is one that may be used.
    Valid,
}

pub(super) fn describe(
    identity: &Identity,
    entry: &Entry,
    next_fetch: Option<Duration>,
    now: SystemTime,
) -> CertificateStatus {
    let held = entry.held.as_ref();
    let certificate = held.map(|held| &held.issued.certificate);
    CertificateStatus {
        identity: identity.to_string(),
        state: match held {
            Some(held) if held.credentials.is_valid_at(now) => CertificateState::Valid,
            Some(_) => CertificateState::Expired,
            None => CertificateState::Missing,
        },
        serial: held.and_then(|held| held.presented.serial()).map(ToString::to_string),
        not_before: certificate.map(|certificate| seconds(certificate.not_before())),
        not_after: certificate.map(|certificate| seconds(certificate.not_after())),
        issuer_not_after: certificate.and_then(|certificate| first_end(certificate.chain().iter().skip(1))),
        root_not_after: held.and_then(|held| first_end(held.issued.roots.roots())),
        renew_at: held.map(|held| seconds(held.renew_at)),
        generation: held.map(|held| held.credentials.generation),
        roots: held.map_or(0, |held| held.issued.roots.roots().len()),
        wanted: entry.wants,
        fetching: entry.in_flight,
        failures: entry.failure.as_ref().map_or(0, |failure| failure.count),
        last_error: entry.failure.as_ref().map(|failure| failure.message.clone()),
        next_fetch_in: next_fetch.map(|left| left.as_secs()),
    }
}

fn first_end<'a>(certificates: impl Iterator<Item = &'a CertificateDer<'static>>) -> Option<u64> {
    certificates.filter_map(|der| ends(der)).map(seconds).min()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
