//! Where in a lab a program runs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A pod's name within its lab.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodName {
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

/// Why a text names no pod, object or lab.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    /// Not `namespace/name`.
    #[error("{0:?} is not namespace/name")]
    Shape(String),
    /// A part is no DNS label.
    #[error("{0:?} is not a name of lower-case letters, digits and dashes (dots in pod names), at most 63 bytes")]
    Label(String),
}

impl PodName {
    /// Makes a name of its parts, unchecked until it is used.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// Refuses what Kubernetes would refuse, before it becomes part of a path.
    pub(crate) fn checked(self) -> Result<Self, NameError> {
        check_label(&self.namespace, false)?;
        check_label(&self.name, true)?;
        Ok(self)
    }
}

/// RFC 1123: what may be a part of a file's and a network namespace's name.
pub(crate) fn check_label(text: &str, dots: bool) -> Result<(), NameError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (dots && b == b'.');
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let good = bytes.len() <= 63 && bytes.iter().copied().all(allowed) && edge(bytes.first()) && edge(bytes.last());
    good.then_some(()).ok_or_else(|| NameError::Label(text.to_owned()))
}

impl FromStr for PodName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (namespace, name) = text.split_once('/').ok_or_else(|| NameError::Shape(text.to_owned()))?;
        Self::new(namespace, name).checked()
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A network namespace of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Where the operator runs.
    Control,
    /// The bridge that joins everything.
    Fabric,
    /// A node, by name.
    Node(String),
    /// A host that knows nothing of the mesh.
    Outside,
    /// A pod.
    Pod(PodName),
}

impl Place {
    /// A node, by name.
    #[must_use]
    pub fn node(name: &str) -> Self {
        Self::Node(name.to_owned())
    }

    /// A pod, by namespace and name.
    #[must_use]
    pub fn pod(namespace: &str, name: &str) -> Self {
        Self::Pod(PodName::new(namespace, name))
    }
}

impl From<&PodName> for Place {
    fn from(pod: &PodName) -> Self {
        Self::Pod(pod.clone())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control => f.write_str("control"),
            Self::Fabric => f.write_str("fabric"),
            Self::Node(node) => f.write_str(node),
            Self::Outside => f.write_str("outside"),
            Self::Pod(pod) => write!(f, "{}.{}", pod.namespace, pod.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_leave_its_directory_is_refused() {
        for bad in ["web", "a/b/c", "../x", "a/..", "A/b", "a/", "/b", "a.b/c", "a/-b", "a/b c"] {
            assert!(bad.parse::<PodName>().is_err(), "{bad:?}");
        }
        assert_eq!("shop/web-1.x".parse::<PodName>().unwrap(), PodName::new("shop", "web-1.x"));
    }
}
