//! The two questions that stand before a signature: which node calls, and does it run what it asks for?

use std::{fmt, sync::Arc};

use tonic::metadata::MetadataMap;
use underpass_model::Identity;

use super::Preparation;

/// The name of a node, as authentication established it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(Arc<str>);

impl NodeName {
    /// Takes a name of a node: what Kubernetes allows for one (RFC 1123 subdomain).
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let label = |label: &str| {
            let allowed = label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            allowed && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
        };
        (name.len() <= 253 && name.split('.').all(label)).then(|| Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Why a caller is nobody. The caller is never told which; the log is.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum Unauthenticated {
    /// There is no `authorization`.
    #[error("no authorization in the metadata")]
    Missing,
    /// It is not `Bearer TOKEN`.
    #[error("the authorization is not a bearer token")]
    NotBearer,
    /// Nobody has this token.
    #[error("the token is not known")]
    UnknownToken,
    /// The token is good, but not that of a node's proxy.
    #[error("the token is that of {0:?}, which is no node")]
    NotANode(String),
    /// Nobody could say yet whose token it is.
    #[error("the token was not reviewed")]
    NotReviewed,
    /// The token is good, but it is not a pod's that runs on a node.
    #[error("the token is bound to no pod on a node")]
    Unbound,
}

/// Why a node does not get a certificate.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
pub enum NotAttested {
    /// Nothing that runs on the node has the identity.
    #[error("no pod that runs on the node has this identity")]
    NotOnNode,
}

impl NotAttested {
    /// A stable label for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotOnNode => "not_on_node",
        }
    }
}

/// Finds out which node calls. Any matching closure is one.
pub trait Authenticate: Send + Sync + 'static {
    /// Says who the caller is, by the call's metadata.
    ///
    /// # Errors
    /// [`Unauthenticated`], when it is nobody known.
    fn authenticate(&self, metadata: &MetadataMap) -> Result<NodeName, Unauthenticated>;

    /// Finds out what must be known of a token before. Most know all they need.
    fn prepare(&self, _token: &str) -> Preparation {
        Box::pin(std::future::ready(()))
    }
}

/// Whoever authenticates. Clones share it.
#[derive(Clone)]
pub struct Authenticator(Arc<dyn Authenticate>);

impl Authenticator {
    /// Hides which it is.
    #[must_use]
    pub fn new(authenticate: impl Authenticate) -> Self {
        Self(Arc::new(authenticate))
    }
}

impl Authenticate for Authenticator {
    fn authenticate(&self, metadata: &MetadataMap) -> Result<NodeName, Unauthenticated> {
        self.0.authenticate(metadata)
    }

    fn prepare(&self, token: &str) -> Preparation {
        self.0.prepare(token)
    }
}

impl<F> Authenticate for F
where
    F: Fn(&MetadataMap) -> Result<NodeName, Unauthenticated> + Send + Sync + 'static,
{
    fn authenticate(&self, metadata: &MetadataMap) -> Result<NodeName, Unauthenticated> {
        self(metadata)
    }
}

/// Decides whether a node may act for an identity. Any matching closure is one.
pub trait Attest: Send + Sync + 'static {
    /// Says yes, or why not.
    ///
    /// # Errors
    /// [`NotAttested`], when nothing on the node runs with this identity.
    fn attest(&self, node: &NodeName, identity: &Identity) -> Result<(), NotAttested>;
}

impl<F> Attest for F
where
    F: Fn(&NodeName, &Identity) -> Result<(), NotAttested> + Send + Sync + 'static,
{
    fn attest(&self, node: &NodeName, identity: &Identity) -> Result<(), NotAttested> {
        self(node, identity)
    }
}

/// The token of a call (RFC 6750, section 2.1).
///
/// # Errors
/// [`Unauthenticated::Missing`] or [`Unauthenticated::NotBearer`].
pub fn bearer(metadata: &MetadataMap) -> Result<&str, Unauthenticated> {
    let value = metadata.get("authorization").ok_or(Unauthenticated::Missing)?;
    token(value.to_str().map_err(|_| Unauthenticated::NotBearer)?)
}

/// The token in an `authorization`.
pub(super) fn token(text: &str) -> Result<&str, Unauthenticated> {
    let (scheme, token) = text.split_once(' ').ok_or(Unauthenticated::NotBearer)?;
    let token = token.trim();
    if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() { Ok(token) } else { Err(Unauthenticated::NotBearer) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_a_bearer_token_and_nothing_else() {
        for (value, wanted) in [
            (None, Err(Unauthenticated::Missing)),
            (Some("Bearer abc"), Ok("abc")),
            (Some("bearer  abc "), Ok("abc")),
            (Some("Bearer"), Err(Unauthenticated::NotBearer)),
            (Some("Bearer "), Err(Unauthenticated::NotBearer)),
            (Some("Basic abc"), Err(Unauthenticated::NotBearer)),
            (Some("abc"), Err(Unauthenticated::NotBearer)),
        ] {
            let mut metadata = MetadataMap::new();
            if let Some(value) = value {
                metadata.insert("authorization", value.parse().unwrap());
            }
            assert_eq!(bearer(&metadata), wanted, "{value:?}");
        }
    }

    #[test]
    fn takes_the_names_that_kubernetes_gives_to_nodes() {
        for good in ["a", "node-1", "ip-10-0-0-1.eu-west-1.compute.internal"] {
            assert_eq!(NodeName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "a..b", "-a", "a-", "Node", "a b", "a/b", "..", &"a".repeat(254)] {
            assert_eq!(NodeName::new(bad), None, "{bad:?}");
        }
    }
}
