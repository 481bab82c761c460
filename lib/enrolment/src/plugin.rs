//! What the CNI plugin asks the node agent: one line of JSON each way over a Unix stream socket.
//!
//! No runtime and no descriptors: the plugin lives for milliseconds and names a namespace by its path. Unknown fields
//! are ignored, so that either side can be the newer one.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

/// The version of the messages that is spoken here.
pub const VERSION: u32 = 1;
/// The most bytes in a line, its end included. A GC names every attachment of the node.
pub const MAX_LINE: usize = 1 << 20;

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginRequest {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// What the container runtime wants.
    pub command: Command,
    /// The runtime's id of the pod's sandbox; empty on GC.
    #[serde(default)]
    pub container_id: String,
    /// The path of the pod's network namespace; may be empty on DEL, is empty on GC.
    #[serde(default)]
    pub netns: String,
    /// The pod's interface; empty on GC.
    #[serde(default)]
    pub ifname: String,
    /// Which pod; absent on GC, and on DEL if the runtime does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// The addresses that the plugins before ours gave to the pod.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The attachments that exist, on GC; every other one is gone.
    #[serde(default)]
    pub valid_attachments: Vec<Attachment>,
    /// How long the plugin will wait for the answer: an answer that names what is missing must come before. 0 if it
    /// does not say.
    #[serde(default)]
    pub deadline_ms: u64,
}

/// What the container runtime wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Command {
    /// A pod starts.
    Add,
    /// Does a pod have what ADD gave it?
    Check,
    /// A pod ends.
    Del,
    /// Forget what is gone.
    Gc,
}

/// A pod as Kubernetes names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid; empty if the runtime does not say.
    #[serde(default)]
    pub uid: String,
}

/// One interface of one sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attachment {
    /// The sandbox.
    pub container_id: String,
    /// The interface.
    pub ifname: String,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginResponse {
    /// Whether the pod is captured.
    pub enrolled: bool,
    /// What kept the agent from it.
    #[serde(default)]
    pub error: Option<PluginFailure>,
}

/// What kept the agent from doing as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{link}: {message}")]
pub struct PluginFailure {
    /// Which link of the chain is missing.
    pub link: Link,
    /// What is the matter with it.
    pub message: String,
}

/// The links of the chain that captures a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// The node agent itself.
    Agent,
    /// CHECK or DEL named a sandbox that the agent does not know.
    Attachment,
    /// The pod's certificate.
    Certificate,
    /// The sockets that take captured connections.
    Listeners,
    /// The pod's network namespace.
    Netns,
    /// The pod's object: the agent has not seen it.
    Pod,
    /// The node proxy.
    Proxy,
    /// The redirection rules in the pod.
    Rules,
    /// One that this version does not know.
    #[serde(other)]
    Unknown,
}

/// Why a line is not the message that it should be.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Not JSON, or not of this shape.
    #[error("not a message of plugin and agent: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Longer than [`MAX_LINE`].
    #[error("a message of {0} bytes is longer than the {MAX_LINE} that are allowed")]
    TooLong(usize),
    /// Another version.
    #[error("version {0} of the message is not the {VERSION} that is spoken here")]
    Version(u32),
}

impl PluginRequest {
    /// The request as one line.
    ///
    /// # Errors
    /// [`LineError::TooLong`] if the agent would refuse it.
    pub fn to_line(&self) -> Result<Vec<u8>, LineError> {
        to_line(self)
    }

    /// The request in a line, with or without its end.
    ///
    /// # Errors
    /// [`LineError`].
    pub fn from_line(line: &[u8]) -> Result<Self, LineError> {
        let request: Self = from_line(line)?;
        if request.version == VERSION { Ok(request) } else { Err(LineError::Version(request.version)) }
    }
}

impl PluginResponse {
    /// All is well.
    #[must_use]
    pub fn done(enrolled: bool) -> Self {
        Self { enrolled, error: None }
    }

    /// A link is missing.
    #[must_use]
    pub fn failed(link: Link, message: impl Into<String>) -> Self {
        Self { enrolled: false, error: Some(PluginFailure { link, message: message.into() }) }
    }

    /// The response as one line.
    ///
    /// # Errors
    /// [`LineError::TooLong`] if the plugin would refuse it.
    pub fn to_line(&self) -> Result<Vec<u8>, LineError> {
        to_line(self)
    }

    /// The response in a line, with or without its end.
    ///
    /// # Errors
    /// [`LineError`].
    pub fn from_line(line: &[u8]) -> Result<Self, LineError> {
        from_line(line)
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agent => "agent",
            Self::Attachment => "attachment",
            Self::Certificate => "certificate",
            Self::Listeners => "listeners",
            Self::Netns => "netns",
            Self::Pod => "pod",
            Self::Proxy => "proxy",
            Self::Rules => "rules",
            Self::Unknown => "unknown",
        })
    }
}

/// The namespaces whose pods must not start without the mesh. The agent leaves the list on disk for the plugin, for
/// when it is away: one name a line, blank lines and those that begin with `#` mean nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnrolledNamespaces(BTreeSet<String>);

impl EnrolledNamespaces {
    /// The list in a text. Nothing is refused: a line that is no namespace's name names no namespace.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        let names = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        names.map(str::to_owned).collect()
    }

    /// Whether a namespace is in the list.
    #[must_use]
    pub fn contains(&self, namespace: &str) -> bool {
        self.0.contains(namespace)
    }
}

impl FromIterator<String> for EnrolledNamespaces {
    fn from_iter<T: IntoIterator<Item = String>>(names: T) -> Self {
        Self(names.into_iter().collect())
    }
}

impl fmt::Display for EnrolledNamespaces {
    /// The text that [`EnrolledNamespaces::from_text`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|name| writeln!(f, "{name}"))
    }
}

fn to_line(message: &impl Serialize) -> Result<Vec<u8>, LineError> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    within_limit(&line).map(|()| line)
}

fn from_line<T: for<'de> Deserialize<'de>>(line: &[u8]) -> Result<T, LineError> {
    within_limit(line)?;
    Ok(serde_json::from_slice(line)?)
}

fn within_limit(line: &[u8]) -> Result<(), LineError> {
    if line.len() <= MAX_LINE { Ok(()) } else { Err(LineError::TooLong(line.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn speaks_the_agreed_json() {
        let request = PluginRequest {
            version: VERSION,
            command: Command::Add,
            container_id: "c1".to_owned(),
            netns: "/var/run/netns/a".to_owned(),
            ifname: "eth0".to_owned(),
            pod: Some(Pod { namespace: "shop".to_owned(), name: "web-0".to_owned(), uid: "u1".to_owned() }),
            addresses: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            valid_attachments: vec![],
            deadline_ms: 9500,
        };
        let line = request.to_line().unwrap();
        let expected = concat!(
            r#"{"version":1,"command":"ADD","container_id":"c1","netns":"/var/run/netns/a","ifname":"eth0","#,
            r#""pod":{"namespace":"shop","name":"web-0","uid":"u1"},"addresses":["10.0.0.2","fd00::2"],"#,
            r#""valid_attachments":[],"deadline_ms":9500}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(line.clone()).unwrap(), expected);
        assert_eq!(PluginRequest::from_line(&line).unwrap(), request);
    }

    #[test]
    fn names_the_missing_link() {
        let response = PluginResponse::failed(Link::Certificate, "the authority does not answer");
        let line = response.to_line().unwrap();
        assert_eq!(
            String::from_utf8(line.clone()).unwrap(),
            "{\"enrolled\":false,\"error\":{\"link\":\"certificate\",\"message\":\"the authority does not answer\"}}\n"
        );
        assert_eq!(PluginResponse::from_line(&line).unwrap(), response);
        assert_eq!(response.error.unwrap().to_string(), "certificate: the authority does not answer");
    }

    #[test]
    fn takes_what_a_newer_agent_adds() {
        let line = br#"{"enrolled":false,"more":1,"error":{"link":"moonlight","message":"m","since":2}}"#;
        let response = PluginResponse::from_line(line).unwrap();
        assert_eq!(response.error.unwrap().link, Link::Unknown);
    }

    #[test]
    fn refuses_another_version_and_endless_lines() {
        assert!(matches!(PluginRequest::from_line(br#"{"version":2,"command":"GC"}"#), Err(LineError::Version(2))));
        let long = vec![b' '; MAX_LINE + 1];
        assert!(matches!(PluginRequest::from_line(&long), Err(LineError::TooLong(_))));
    }

    #[test]
    fn the_list_of_namespaces_survives_the_disk() {
        let list: EnrolledNamespaces = ["shop".to_owned(), "bank".to_owned()].into_iter().collect();
        assert_eq!(list.to_string(), "bank\nshop\n");
        assert_eq!(EnrolledNamespaces::from_text("# by hand\n\n shop\r\nbank"), list);
        assert!(list.contains("shop") && !list.contains("sho") && !list.contains(""));
        assert_eq!(EnrolledNamespaces::from_text(""), EnrolledNamespaces::default());
    }

    proptest! {
        #[test]
        fn arbitrary_lines_never_panic(line in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(PluginRequest::from_line(&line));
            drop(PluginResponse::from_line(&line));
        }

        #[test]
        fn responses_survive_the_way(enrolled: bool, message in ".*") {
            let response = PluginResponse { enrolled, error: Some(PluginFailure { link: Link::Rules, message }) };
            prop_assert_eq!(PluginResponse::from_line(&response.to_line().unwrap()).unwrap(), response);
        }
    }
}
