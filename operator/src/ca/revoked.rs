//! What the authority revoked: a short list, since an entry is of no use once every certificate that it means has expired.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use underpass_model::{Identity, Revocation, SerialNumber};

/// Whom or what somebody wants revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revoke {
    /// Every certificate of an identity up to now.
    Identity(Identity),
    /// One certificate, a workload's or an issuing one.
    Serial(SerialNumber),
}

impl Revoke {
    /// Whether an entry says just this.
    fn is_said_by(&self, revocation: &Revocation) -> bool {
        match (self, revocation) {
            (Self::Identity(wanted), Revocation::Identity { identity, .. }) => wanted == identity,
            (Self::Serial(wanted), Revocation::Serial(serial)) => wanted == serial,
            _ => false,
        }
    }
}

impl fmt::Display for Revoke {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(identity) => identity.fmt(f),
            Self::Serial(serial) => write!(f, "certificate {serial}"),
        }
    }
}

/// Why the list is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum RevokedError {
    /// It is not JSON of the right form.
    #[error("revoked.json")]
    Json(#[from] serde_json::Error),
    /// An entry revokes nothing that there could be.
    #[error("revoked.json: entry {index}: {problem}")]
    Entry {
        /// Its place, from 0.
        index: usize,
        /// What is wrong.
        problem: String,
    },
}

/// All entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Revoked(Vec<Entry>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    revocation: Revocation,
    /// In seconds since 1970: when no certificate that it means is left.
    until: u64,
}

/// An entry in writing: one of the two names.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    until: u64,
}

impl Revoked {
    pub(super) fn read(text: Option<&str>) -> Result<Self, RevokedError> {
        let Some(text) = text else { return Ok(Self::default()) };
        let written: Vec<Written> = serde_json::from_str(text)?;
        let entries = written.into_iter().enumerate().map(|(index, written)| {
            let until = written.until;
            let revocation = written.read().map_err(|problem| RevokedError::Entry { index, problem })?;
            Ok(Entry { revocation, until })
        });
        entries.collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn write(&self) -> Result<String, RevokedError> {
        let written: Vec<Written> = self.0.iter().map(Written::of).collect();
        Ok(serde_json::to_string_pretty(&written)? + "\n")
    }

    /// Without what has no effect any more.
    pub(super) fn at(mut self, now: SystemTime) -> Self {
        self.0.retain(|entry| seconds(now) < entry.until);
        self
    }

    /// With one more, that is to last for as long as what it revokes may be valid.
    pub(super) fn with(mut self, what: Revoke, now: SystemTime, lasts: Duration) -> Self {
        let revocation = match what {
            Revoke::Serial(serial) => Revocation::Serial(serial),
            Revoke::Identity(identity) => {
                // Twice within a second means those too that were signed in between.
                let before = seconds(now).max(self.begins(&identity).map_or(0, |before| before + 1));
                Revocation::Identity { identity, before }
            }
        };
        let name = revocation.name();
        self.0.retain(|entry| entry.revocation.name() != name);
        self.0.push(Entry { revocation, until: seconds(now + lasts) });
        self
    }

    /// Without an entry; none if there is no such entry.
    pub(super) fn without(mut self, what: &Revoke) -> Option<Self> {
        let before = self.0.len();
        self.0.retain(|entry| !what.is_said_by(&entry.revocation));
        (self.0.len() < before).then_some(self)
    }

    /// When a new certificate of an identity must begin, at the earliest.
    pub(super) fn begins(&self, identity: &Identity) -> Option<u64> {
        self.0.iter().find_map(|entry| match &entry.revocation {
            Revocation::Identity { identity: revoked, before } if revoked == identity => Some(*before),
            _ => None,
        })
    }

    pub(super) fn revocations(&self) -> impl Iterator<Item = &Revocation> {
        self.0.iter().map(|entry| &entry.revocation)
    }

    /// Whether this certificate is revoked.
    pub(super) fn has_serial(&self, serial: &SerialNumber) -> bool {
        self.revocations().any(|revocation| matches!(revocation, Revocation::Serial(revoked) if revoked == serial))
    }
}

impl Written {
    fn of(entry: &Entry) -> Self {
        let until = entry.until;
        match &entry.revocation {
            Revocation::Identity { identity, before } => {
                Self { identity: Some(identity.to_string()), before: Some(*before), serial: None, until }
            }
            Revocation::Serial(serial) => {
                Self { identity: None, before: None, serial: Some(serial.to_string()), until }
            }
        }
    }

    fn read(self) -> Result<Revocation, String> {
        match (self.identity, self.before, self.serial) {
            (Some(identity), Some(before), None) => {
                let identity = identity.parse().map_err(|error| format!("identity: {error}"))?;
                Ok(Revocation::Identity { identity, before })
            }
            (None, None, Some(serial)) => {
                serial.parse().map(Revocation::Serial).map_err(|error| format!("serial: {error}"))
            }
            _ => Err("expected either `identity` and `before`, or `serial`".to_owned()),
        }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn an_entry_lasts_as_long_as_what_it_revokes() {
        let now = SystemTime::UNIX_EPOCH + DAY * 20_000;
        let web: Identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let serial: SerialNumber = "0102030405060708".parse().unwrap();
        let revoked = Revoked::default().with(Revoke::Identity(web.clone()), now, DAY);
        let revoked = revoked.with(Revoke::Serial(serial.clone()), now, DAY * 30);
        assert_eq!(Revoked::read(Some(&revoked.write().unwrap())).unwrap(), revoked);
        assert_eq!(revoked.begins(&web), Some(seconds(now)));
        assert!(revoked.has_serial(&serial));
        let later = revoked.clone().at(now + DAY);
        assert_eq!((later.begins(&web), later.revocations().count()), (None, 1));
        assert_eq!(revoked.clone().at(now + DAY * 30), Revoked::default());
        let restored = revoked.clone().without(&Revoke::Identity(web.clone())).unwrap();
        assert_eq!((restored.begins(&web), restored.revocations().count()), (None, 1));
        assert_eq!(restored.without(&Revoke::Identity(web.clone())), None, "it is not revoked");
        assert_eq!(revoked.clone().without(&Revoke::Serial("0909090909090909".parse().unwrap())), None);
        let twice = revoked.with(Revoke::Identity(web.clone()), now, DAY);
        assert_eq!((twice.begins(&web), twice.revocations().count()), (Some(seconds(now) + 1), 2));
    }

    #[test]
    fn refuses_a_list_that_says_something_else() {
        for (text, words) in [
            ("{}", "revoked.json"),
            (r#"[{"until": 1}]"#, "entry 0: expected either"),
            (r#"[{"serial": "01", "until": 1}]"#, "entry 0: serial"),
            (r#"[{"identity": "web", "before": 1, "until": 1}]"#, "entry 0: identity"),
            (r#"[{"identity": "spiffe://a/ns/b/sa/c", "until": 1}]"#, "entry 0: expected either"),
        ] {
            let error = Revoked::read(Some(text)).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        assert_eq!(Revoked::read(None).unwrap(), Revoked::default());
    }
}
