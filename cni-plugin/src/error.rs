//! What went wrong, and how the CNI specification wants to hear of it: a code and a text, as JSON on standard output.

use std::{io, path::PathBuf};

use serde_json::json;
use underpass_enrolment::plugin::PluginFailure;

/// Why the plugin did not do as the runtime wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The runtime or the configuration is at fault.
    #[error(transparent)]
    Invocation(#[from] InvocationError),
    /// The mesh is at fault.
    #[error(transparent)]
    Mesh(#[from] MeshError),
}

/// What is wrong with how the plugin was called.
#[derive(Debug, thiserror::Error)]
pub enum InvocationError {
    /// A key of the network configuration has a value that it cannot have.
    #[error("network configuration: {key}: {problem}")]
    Config {
        /// Which key.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// Something is not the JSON that it should be.
    #[error("{0}")]
    Decode(String),
    /// A variable of the environment is missing or wrong.
    #[error("environment: {name} {problem}")]
    Environment {
        /// Which variable.
        name: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// Something could not be read.
    #[error("cannot read {what}: {source}")]
    Io {
        /// What.
        what: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
    /// A key of the network configuration that nobody knows here.
    #[error("network configuration: unsupported field {key} with value {value}")]
    UnsupportedField {
        /// Which key.
        key: String,
        /// Its value, shortened.
        value: String,
    },
    /// A version of CNI that is not spoken here.
    #[error("cniVersion {0:?} is none of those that this plugin speaks: 0.3.1, 0.4.0, 1.0.0, 1.1.0")]
    Version(String),
}

/// What is wrong with the mesh, so that a pod must not start yet.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeshError {
    /// The node agent could not be asked.
    #[error("{subject}: missing link: agent: {cause}; asked at {socket}")]
    AgentAway {
        /// For what.
        subject: String,
        /// Where the agent should have been.
        socket: PathBuf,
        /// How it went.
        cause: String,
    },
    /// The agent says what is missing.
    #[error("{subject}: missing link: {failure}")]
    MissingLink {
        /// For what.
        subject: String,
        /// Which link, and why.
        failure: PluginFailure,
    },
    /// The agent does not know the sandbox.
    #[error("{subject}: {failure}")]
    UnknownContainer {
        /// Which sandbox.
        subject: String,
        /// What the agent says.
        failure: PluginFailure,
    },
}

impl Failure {
    /// The code of the CNI specification, section 5; ours begin at 100.
    pub(crate) fn code(&self) -> u32 {
        match self {
            Self::Invocation(InvocationError::Version(_)) => 1,
            Self::Invocation(InvocationError::UnsupportedField { .. }) => 2,
            Self::Mesh(MeshError::UnknownContainer { .. }) => 3,
            Self::Invocation(InvocationError::Environment { .. }) => 4,
            Self::Invocation(InvocationError::Io { .. }) => 5,
            Self::Invocation(InvocationError::Decode(_)) => 6,
            Self::Invocation(InvocationError::Config { .. }) => 7,
            Self::Mesh(MeshError::AgentAway { .. }) => 11,
            Self::Mesh(MeshError::MissingLink { .. }) => 100,
        }
    }

    /// The error as the runtime wants it.
    pub(crate) fn to_json(&self, version: &str) -> String {
        json!({ "cniVersion": version, "code": self.code(), "msg": self.to_string() }).to_string()
    }
}

/// At most 100 characters of a text that somebody else wrote.
pub(crate) fn shorten(text: &str) -> String {
    const REPEATED: usize = 100;
    text.chars().take(REPEATED).collect()
}
