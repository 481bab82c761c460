//! What a source of objects says at one instant, and what is wrong with it.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc};

use crate::{
    directory::FileError,
    guarded::NetworkPolicies,
    object::{Kind, ObjectKey, Objects},
};

/// What a source says at one instant. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The objects in force.
    pub objects: Arc<Objects>,
    /// What is wrong: while there is anything, what is not in the snapshot may exist all the same.
    pub problems: Arc<Vec<Problem>>,
    /// Kinds that the mesh does not read, with how many objects of each there are.
    pub ignored: Arc<BTreeMap<String, usize>>,
    /// How far an API server's pods have been followed, in its own count; the same for everybody who follows them.
    pub pods_revision: u64,
    /// Whether there are policies that somebody enforces at the interfaces of pods.
    pub network_policies: NetworkPolicies,
}

/// What is wrong with a part of a source; of its objects the last good ones stay in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which part.
    pub origin: Origin,
    /// What is wrong.
    pub error: SourceError,
    /// No good state of it is known: what it should hold is missing from the snapshot.
    pub is_lost: bool,
}

/// A part of a source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A file of manifests, or their directory.
    File(PathBuf),
    /// All objects of a kind.
    Kind(Kind),
    /// One object.
    Object(ObjectKey),
}

/// Why what a part of a source holds is not in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// A file's contents.
    #[error(transparent)]
    File(#[from] FileError),
    /// The API server does not give a kind's objects.
    #[error(transparent)]
    Kind(#[from] KindError),
    /// An object of the mesh's own kinds says what this release does not understand.
    #[error("{0}")]
    Object(String),
}

/// Why an API server does not give a kind's objects.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KindError {
    /// It has not been asked, or has not answered yet.
    #[error("not listed yet")]
    NotListed,
    /// It does not know the kind.
    #[error("the API server does not know this kind: is its CustomResourceDefinition installed?")]
    Unknown,
    /// The caller may not.
    #[error("a right is missing: {0}")]
    Forbidden(String),
    /// The caller is not known.
    #[error("the API server does not accept the credentials: {0}")]
    Unauthorized(String),
    /// It says no.
    #[error("the API server refuses: {0}")]
    Refused(String),
    /// It does not answer.
    #[error("the API server does not answer: {0}")]
    Unreachable(String),
}

impl Snapshot {
    /// Kinds of which nothing is known yet.
    pub fn unlisted(&self) -> impl Iterator<Item = Kind> + '_ {
        self.problems.iter().filter(|problem| problem.is_lost).filter_map(|problem| match problem.origin {
            Origin::Kind(kind) => Some(kind),
            Origin::File(_) | Origin::Object(_) => None,
        })
    }

    /// Whether an object that is not in it does not exist.
    #[must_use]
    pub fn is_sure(&self) -> bool {
        self.problems.is_empty()
    }
}

impl Problem {
    /// Whether it only means that the source has just begun.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.error == SourceError::Kind(KindError::NotListed)
    }
}

impl SourceError {
    /// The line of the file, where one is to blame.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::File(error) => error.line(),
            Self::Kind(_) | Self::Object(_) => None,
        }
    }

    /// The path of the field, where one is to blame.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::File(error) => error.field(),
            Self::Kind(_) | Self::Object(_) => None,
        }
    }

    /// A stable label for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::File(error) => error.reason(),
            Self::Kind(error) => error.reason(),
            Self::Object(_) => "object",
        }
    }
}

impl KindError {
    /// A stable label for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Forbidden(_) => "forbidden",
            Self::NotListed => "not_listed",
            Self::Refused(_) => "refused",
            Self::Unauthorized(_) => "unauthorized",
            Self::Unknown => "unknown_kind",
            Self::Unreachable(_) => "unreachable",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Kind(kind) => kind.fmt(f),
            Self::Object(key) => key.fmt(f),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.error)
    }
}
