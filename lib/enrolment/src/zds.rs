//! ZDS, by which a node agent tells a node proxy which pods to serve. The agent listens, the proxy connects.
//!
//! ```text
//! proxy  Hello
//! agent  Request::Add | Keep ...   proxy  Ack, one each, in order
//! agent  Request::SnapshotSent     proxy  Ack; whatever was not named is dropped
//! agent  Request::Add | Del ...    proxy  Ack ...
//! ```
//! The agent sends the next request only when the one before is acknowledged. Deadlines are the callers'.

use std::os::fd::{AsFd, OwnedFd};

use underpass_model::PodUid;

use crate::{
    message::{
        DecodeError, EncodeError, Message, Packet, bad_field, count_descriptors, packet, parse, required, shorten,
    },
    wire::zds as wire,
};

/// The most bytes in a packet: Istio's proxy receives no more, and would end at a longer one.
pub const MAX_PACKET: usize = 1024;

/// The first packet of a connection, from the proxy: it speaks version 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello;

/// What the agent asks of the proxy.
#[derive(Debug)]
pub enum Request {
    /// Serve this pod.
    Add {
        /// Which pod.
        uid: PodUid,
        /// Who it is.
        info: WorkloadInfo,
        /// Its network namespace.
        netns: OwnedFd,
    },
    /// Go on serving this pod, whose namespace the agent no longer holds. Only before [`Request::SnapshotSent`].
    Keep {
        /// Which pod.
        uid: PodUid,
    },
    /// Stop serving this pod at once.
    Del {
        /// Which pod.
        uid: PodUid,
    },
    /// Every pod of the node has been named.
    SnapshotSent,
}

/// Who a pod is, in Kubernetes' names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadInfo {
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's service account.
    pub service_account: String,
}

/// The proxy's answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Done, or why not.
    pub outcome: Result<(), String>,
}

impl Ack {
    /// Done.
    #[must_use]
    pub fn done() -> Self {
        Self { outcome: Ok(()) }
    }

    /// Not done, and why; long texts are cut when sent.
    #[must_use]
    pub fn failed(why: &str) -> Self {
        Self { outcome: Err(if why.is_empty() { "failed without a reason".to_owned() } else { why.to_owned() }) }
    }
}

impl Request {
    /// The message's name in errors and logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Add { .. } => ADD,
            Self::Keep { .. } => KEEP,
            Self::Del { .. } => DEL,
            Self::SnapshotSent => SNAPSHOT_SENT,
        }
    }
}

impl Message for Hello {
    const NAME: &'static str = "zds hello";
    const LIMIT: usize = MAX_PACKET;

    fn encode(&self) -> Result<Packet<'_>, EncodeError> {
        packet::<Self>(&wire::ZdsHello { version: wire::Version::V1.into() }, Vec::new())
    }

    fn decode(bytes: &[u8], descriptors: Vec<OwnedFd>) -> Result<Option<Self>, DecodeError> {
        count_descriptors(Self::NAME, 0, &descriptors)?;
        let hello: wire::ZdsHello = parse::<Self, _>(bytes)?;
        if hello.version == i32::from(wire::Version::V1) {
            Ok(Some(Self))
        } else {
            Err(bad_field(Self::NAME, "version", &hello.version.to_string()))
        }
    }
}

const ADD: &str = "zds add";
const KEEP: &str = "zds keep";
const DEL: &str = "zds del";
const SNAPSHOT_SENT: &str = "zds snapshot_sent";

impl Message for Request {
    const NAME: &'static str = "zds request";
    const LIMIT: usize = MAX_PACKET;

    fn encode(&self) -> Result<Packet<'_>, EncodeError> {
        use wire::workload_request::Payload;
        let mut descriptors = Vec::new();
        let payload = match self {
            Self::Add { uid, info, netns } => {
                descriptors.push(netns.as_fd());
                let WorkloadInfo { name, namespace, service_account } = info.clone();
                let workload_info = Some(wire::WorkloadInfo { name, namespace, service_account });
                Payload::Add(wire::AddWorkload { uid: uid.to_string(), workload_info })
            }
            Self::Keep { uid } => Payload::Keep(wire::KeepWorkload { uid: uid.to_string() }),
            Self::Del { uid } => Payload::Del(wire::DelWorkload { uid: uid.to_string() }),
            Self::SnapshotSent => Payload::SnapshotSent(wire::SnapshotSent {}),
        };
        packet::<Self>(&wire::WorkloadRequest { payload: Some(payload) }, descriptors)
    }

    /// A request of an unknown kind is an error and not ignored: it would leave the agent without its answer.
    fn decode(bytes: &[u8], descriptors: Vec<OwnedFd>) -> Result<Option<Self>, DecodeError> {
        use wire::workload_request::Payload;
        let request: wire::WorkloadRequest = parse::<Self, _>(bytes)?;
        let Some(payload) = request.payload else {
            return Err(DecodeError::Missing { message: Self::NAME, field: "payload" });
        };
        let (message, expected) = match &payload {
            Payload::Add(_) => (ADD, 1),
            Payload::Keep(_) => (KEEP, 0),
            Payload::Del(_) => (DEL, 0),
            Payload::SnapshotSent(_) => (SNAPSHOT_SENT, 0),
        };
        count_descriptors(message, expected, &descriptors)?;
        let uid = |uid| required(message, "uid", uid).map(|uid| PodUid::new(&uid));
        Ok(Some(match (payload, descriptors.into_iter().next()) {
            (Payload::Add(add), Some(netns)) => {
                Self::Add { uid: uid(add.uid)?, info: workload_info(add.workload_info)?, netns }
            }
            (Payload::Add(_), None) => return Err(DecodeError::Descriptors { message, expected, actual: 0 }),
            (Payload::Keep(keep), _) => Self::Keep { uid: uid(keep.uid)? },
            (Payload::Del(del), _) => Self::Del { uid: uid(del.uid)? },
            (Payload::SnapshotSent(wire::SnapshotSent {}), _) => Self::SnapshotSent,
        }))
    }
}

/// A pod without names could be given no identity, so they are required though the protocol leaves them optional.
fn workload_info(info: Option<wire::WorkloadInfo>) -> Result<WorkloadInfo, DecodeError> {
    let info = info.ok_or(DecodeError::Missing { message: ADD, field: "workload_info" })?;
    Ok(WorkloadInfo {
        name: required(ADD, "workload_info.name", info.name)?,
        namespace: required(ADD, "workload_info.namespace", info.namespace)?,
        service_account: required(ADD, "workload_info.service_account", info.service_account)?,
    })
}

impl Message for Ack {
    const NAME: &'static str = "zds ack";
    const LIMIT: usize = MAX_PACKET;

    fn encode(&self) -> Result<Packet<'_>, EncodeError> {
        const REPEATED: usize = 900;
        let error = self.outcome.as_ref().err().map_or("", |why| shorten(why, REPEATED)).to_owned();
        let payload = wire::workload_response::Payload::Ack(wire::Ack { error });
        packet::<Self>(&wire::WorkloadResponse { payload: Some(payload) }, Vec::new())
    }

    fn decode(bytes: &[u8], descriptors: Vec<OwnedFd>) -> Result<Option<Self>, DecodeError> {
        count_descriptors(Self::NAME, 0, &descriptors)?;
        let response: wire::WorkloadResponse = parse::<Self, _>(bytes)?;
        let Some(wire::workload_response::Payload::Ack(ack)) = response.payload else {
            return Err(DecodeError::Missing { message: Self::NAME, field: "payload" });
        };
        Ok(Some(if ack.error.is_empty() { Self::done() } else { Self::failed(&ack.error) }))
    }
}

#[cfg(test)]
mod tests;
