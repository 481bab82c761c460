//! SPIFFE identities of the form that Kubernetes meshes use.

use std::{fmt, str::FromStr, sync::Arc};

/// The root under which names are valid: the authority part of a SPIFFE id.
///
/// Lower-case letters, digits, dots, dashes and underscores; 1 to 255 bytes
/// (SPIFFE-ID standard, section 2.1).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// A workload's identity: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    trust_domain: TrustDomain,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

/// Why a text is no identity of this mesh.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdentityError {
    /// The trust domain is empty, too long, or has a byte outside `a-z 0-9 . - _`.
    #[error("trust domain {0:?} is not a lower-case DNS-like name of 1 to 255 bytes")]
    TrustDomain(String),
    /// A path segment is empty, too long, or has a byte outside `a-z A-Z 0-9 . - _`.
    #[error("{segment} {value:?} is not a SPIFFE path segment of 1 to 253 bytes")]
    Segment {
        /// Which part: `namespace` or `service account`.
        segment: &'static str,
        /// What stood there.
        value: String,
    },
    /// Not `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    #[error("{0:?} is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Shape(String),
}

impl TrustDomain {
    /// Checks and takes a trust domain.
    ///
    /// # Errors
    /// [`IdentityError::TrustDomain`] if a byte or the length is outside SPIFFE's rules.
    pub fn new(name: &str) -> Result<Self, IdentityError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if (1..=255).contains(&name.len()) && name.bytes().all(allowed) {
            Ok(Self(name.into()))
        } else {
            Err(IdentityError::TrustDomain(shorten(name)))
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    /// `cluster.local`, as an empty field of the discovery protocol means.
    fn default() -> Self {
        Self("cluster.local".into())
    }
}

impl Identity {
    /// Makes an identity of its parts.
    ///
    /// # Errors
    /// [`IdentityError::Segment`] if a part could not stand in a SPIFFE path.
    pub fn new(trust_domain: TrustDomain, namespace: &str, service_account: &str) -> Result<Self, IdentityError> {
        let checked = |segment: &'static str, value: &str| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            let dots = value.bytes().all(|b| b == b'.');
            if (1..=253).contains(&value.len()) && !dots && value.bytes().all(allowed) {
                Ok(Arc::from(value))
            } else {
                Err(IdentityError::Segment { segment, value: shorten(value) })
            }
        };
        Ok(Self {
            trust_domain,
            namespace: checked("namespace", namespace)?,
            service_account: checked("service account", service_account)?,
        })
    }

    /// The root under which this name is valid.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The Kubernetes service account.
    #[must_use]
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let shape = || IdentityError::Shape(shorten(text));
        let rest = text.strip_prefix("spiffe://").ok_or_else(shape)?;
        let parts: Vec<&str> = rest.splitn(6, '/').collect();
        match parts.as_slice() {
            [domain, "ns", namespace, "sa", account] => Self::new(TrustDomain::new(domain)?, namespace, account),
            _ => Err(shape()),
        }
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        Self::new(text)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What an error message repeats of a text that a peer chose: enough to recognise it, never megabytes.
fn shorten(text: &str) -> String {
    const KEPT: usize = 300;
    text.chars().take(KEPT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parses_what_istio_writes_and_nothing_else() {
        let good = "spiffe://cluster.local/ns/default/sa/web";
        assert_eq!(good.parse::<Identity>().unwrap().to_string(), good);
        for bad in [
            "",
            "spiffe://",
            "cluster.local/ns/default/sa/web",
            "SPIFFE://cluster.local/ns/default/sa/web",
            "spiffe:///ns/default/sa/web",
            "spiffe://Cluster.local/ns/default/sa/web",
            "spiffe://cluster.local/ns//sa/web",
            "spiffe://cluster.local/ns/default/sa/",
            "spiffe://cluster.local/ns/default/sa/web/",
            "spiffe://cluster.local/ns/default/sa/web/more",
            "spiffe://cluster.local/sa/web/ns/default",
            "spiffe://cluster.local/ns/../sa/web",
            "spiffe://cluster.local/ns/de fault/sa/web",
            "spiffe://user@cluster.local/ns/default/sa/web",
            "spiffe://cluster.local:1/ns/default/sa/web",
            "spiffe://cluster.local/ns/default/sa/we%62",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad:?} must not be an identity");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".*") {
            if let Ok(identity) = text.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), text);
            }
        }

        #[test]
        fn printing_and_parsing_are_inverse(domain in "[a-z0-9._-]{1,40}", ns in "[a-z0-9-]{1,40}", sa in "[a-z0-9.-]{0,39}[a-z0-9]") {
            let identity = Identity::new(TrustDomain::new(&domain).unwrap(), &ns, &sa).unwrap();
            prop_assert_eq!(identity.to_string().parse::<Identity>().unwrap(), identity);
        }
    }
}
